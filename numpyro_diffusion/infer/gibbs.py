r"""Gibbs sampling of diffusion sites beside all other sites.

Every draw leaves the posterior of the T-step model invariant. The state is a whole path x^{0:T} for each diffusion site
and a value of every other site. One draw is

    1. conditional SMC   N particles walk from noise to data, one of them along the current path; one of the N paths is
                         chosen by weight. Leaves the posterior invariant for any N >= 2.
    2. independence      (optional) N fresh particles, accepted with probability min(1, Z_new / Z_current).
    3. refresh           given x^0, propose x^{1:T} ~ q(x^{1:T} | x^0) by noising, accept with probability
                         min(1, w_new / w_old), w = p(x^{0:T}) / q(x^{1:T} | x^0). Near noise a retained path hardly
                         changes by itself; this move frees it, accepted ever more as the model learns its data.
    4. the inner kernel  moves the other sites given x^0 (and given the path, if they enter the chain's distribution).

Elements of a plate that the likelihood does not couple are filtered, chosen and accepted one by one.

Not assumed: that modes are connected, that the likelihood is linear, that the chain is Gaussian.

References: Andrieu, Doucet and Holenstein 2010 (particle Gibbs, PIMH); Sohl-Dickstein et al. 2015, Eq. 1 and 9.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import NUTS
from numpyro.infer.mcmc import MCMCKernel

from .._checks import check_integer_at_least, expected, is_concrete
from .._compat.numpyro import is_prng_key
from .._typing import Array, PyTree
from ..model.given_paths import GivenPaths
from ..model.split import Programs, SplitModel
from ..particles.filter import Cloud, run_filter
from ..particles.path_moves import conditional_smc, first_paths, independent_paths, noised, refresh_paths
from ..particles.target import Calibration, States, Target, calibrate, draw_prior
from ..particles.twists.named import as_twist
from .inner_kernel import InnerKernel
from .smc import target_of
from .stalls import count_stalled, has_moved, warn_of_stalls

__all__ = ["DiffusionGibbs", "DiffusionGibbsState"]

_MAX_STARTS = 10  # draws of the other sites and of paths in search of a likelihood that is not 0


class DiffusionGibbsState(NamedTuple):
    """State of :class:`DiffusionGibbs`.

    Attributes:
        i: draws made.
        z: the state x^0 of the diffusion sites, before their transforms, and the inner kernel's unconstrained values of
            the others.
        paths: site name -> x^{0:T}, (T + 1, state shape...).
        inner_state: the inner kernel's state, None without other sites.
        prior_draws: draws of the prior, from which the twist takes its scale.
        calibration: how far the twist believes the networks' denoised estimates.
        effective_size: the smallest of this draw's conditional SMC, over levels and elements.
        moved: fraction of elements whose x^0 the particles changed.
        refresh_acceptance: fraction of paths whose noising was accepted.
        independence_acceptance: fraction of elements whose fresh particles were accepted; 0 without the move.
        stalled: draws since particles last changed x^0, shape (elements...).
        inner_stalled: draws since the inner kernel last changed a real number of the other sites.
        rng_key: key of the next draw.
    """

    i: Array
    z: dict[str, Array]
    paths: dict[str, Array]
    inner_state: PyTree
    prior_draws: dict[str, Array]
    calibration: dict[str, Calibration]
    effective_size: Array
    moved: Array
    refresh_acceptance: Array
    independence_acceptance: Array
    stalled: Array
    inner_stalled: Array
    rng_key: jax.Array


class _Start(NamedTuple):
    """What a chain has before the inner kernel starts."""

    rng_key: jax.Array
    inner_key: jax.Array
    paths: States
    prior_draws: States
    calibration: dict[str, Calibration]
    log_r: Array


class DiffusionGibbs(MCMCKernel):
    """Particle Gibbs for the diffusion sites of a model, a kernel of the user's for its other sites.

    Args:
        model: a NumPyro model, or a kernel built on one (NUTS, HMC or any with ``wrap_model`` and ``refresh``) that
            moves its other latent sites. Of a model alone they are moved by NUTS. Without other sites none is run.
        num_particles: N of the conditional SMC.
        twist: as for ``TwistedSMC``.
        refresh: whether to refresh the path by noising.
        independence: whether to add the independence move.
        elements: as for ``TwistedSMC``.

    Use it as any kernel: ``MCMC(DiffusionGibbs(model), num_warmup=..., num_samples=...)``, several chains by each
    ``chain_method``, ``thinning``, ``extra_fields=("effective_size", "refresh_acceptance", "moved")``,
    ``post_warmup_state``. When weights collapse, so that particles leave x^0 as it is for 100 draws, a warning says so;
    so does one when the inner kernel leaves the other sites as they are.

    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro.infer import MCMC
    >>> from numpyro_diffusion import Diffusion, GaussianKernel, analytic, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(10), parameterization="x0", variance="denoiser")
    >>> prior = Diffusion(kernel, analytic.gaussian_mixture(kernel, jnp.array([[0.0]]), 1.0, jnp.ones(1)))
    >>> def model(y=None):
    ...     x = numpyro.sample("x", prior)
    ...     numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)
    >>> mcmc = MCMC(DiffusionGibbs(model), num_warmup=50, num_samples=500, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), y=jnp.array([3.0]))
    >>> abs(mcmc.get_samples()["x"].mean() - 1.5) < 0.2
    Array(True, dtype=bool)
    """

    sample_field = "z"

    def __init__(
        self,
        model: Callable | MCMCKernel,
        *,
        num_particles: int = 16,
        twist: Any = "tempered",
        refresh: bool = True,
        independence: bool = False,
        elements: str = "auto",
    ) -> None:
        is_model = callable(model) and not isinstance(model, (type, MCMCKernel))
        self._inner = InnerKernel(NUTS(model) if is_model else model)
        self.num_particles = check_integer_at_least(
            "num_particles", num_particles, 2, "With one particle the path would never move; 16 is usual."
        )
        self.twist = as_twist(twist)
        self.use_refresh = refresh
        self.independence = independence
        self._programs = Programs(self._inner.model, elements)
        self._compiled_start = jax.jit(self._start)

    @property
    def model(self) -> Callable:
        """The user's model."""
        return self._inner.model

    @property
    def inner_kernel(self) -> MCMCKernel:
        """The user's kernel, on the model with given paths."""
        return self._inner.kernel

    @property
    def default_fields(self) -> tuple[str, ...]:
        return ("z",)

    def get_diagnostics_str(self, state: DiffusionGibbsState) -> str:
        inner = "" if state.inner_state is None else self.inner_kernel.get_diagnostics_str(state.inner_state)
        ours = f"x moved {state.moved:.2f}, refresh {state.refresh_acceptance:.2f}, ESS {state.effective_size:.1f}"
        return f"{ours} | {inner}" if inner else ours

    def init(
        self,
        rng_key: jax.Array,
        num_warmup: int,
        init_params: dict[str, Array] | None = None,
        model_args: tuple = (),
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> DiffusionGibbsState:
        """The first state: paths by SMC at a prior draw of the other sites, then the inner kernel's own start.

        Args:
            rng_key: one key, or a batch of them for as many chains.
            num_warmup: draws in which the inner kernel adapts.
            init_params: diffusion sites in the model's units, and the inner kernel's own start for the others (for NUTS
                and HMC unconstrained), each with the keys' batch in front.
            model_args: the model's arguments.
            model_kwargs: the model's keyword arguments.

        Raises:
            RuntimeError: if the likelihood is 0, infinite or NaN at the start. Where JAX traces this function
                (``chain_method="parallel"``) nothing can be raised; such a chain's ``moved`` stays 0.
        """
        kwargs = dict(model_kwargs or {})
        split = self._programs.bind(model_args, kwargs)
        self._inner.check(split)
        values = _check_names(init_params or {}, split)
        begin = partial(self._init_one, split, num_warmup=num_warmup, args=model_args, kwargs=kwargs)
        state, log_r = (begin if is_prng_key(rng_key) else jax.vmap(begin))(rng_key, values)
        _check_start(log_r)
        return state

    def sample(
        self, state: DiffusionGibbsState, model_args: tuple, model_kwargs: Mapping[str, Any] | None
    ) -> DiffusionGibbsState:
        step = partial(self._sample_one, args=model_args, kwargs=dict(model_kwargs or {}))
        state = step(state) if is_prng_key(state.rng_key) else jax.vmap(step)(state)
        warn_of_stalls(state.stalled, state.inner_stalled, state.effective_size, self.num_particles)
        return state

    def postprocess_fn(self, model_args: tuple, model_kwargs: Mapping[str, Any] | None) -> Callable:
        """Constrain the other sites, and compute deterministic ones."""
        kwargs = dict(model_kwargs or {})

        def constrain(z: dict[str, Array]) -> dict[str, Array]:
            split = self._programs.bind(model_args, kwargs)
            x_0 = {site.name: z[site.name] for site in split.sites}
            others = self._others(split, {name: z[name] for name in split.others}, x_0, model_args, kwargs)
            values = {**x_0, **others}
            return {**values, **split.outputs(values)} if split.has_outputs else values

        return constrain

    def _init_one(
        self,
        split: SplitModel,
        rng_key: jax.Array,
        init_params: Mapping[str, Array],
        *,
        num_warmup: int,
        args: tuple,
        kwargs: dict[str, Any],
    ) -> tuple[DiffusionGibbsState, Array]:
        """One chain's first state, and log r there."""
        names = {site.name for site in split.sites}
        values = {name: value for name, value in init_params.items() if name in names}
        start = self._compiled_start(rng_key, split.states(values) if values else {}, split)
        _check_start(start.log_r)
        inner_state, log_r = None, start.log_r
        if split.others:
            rest = {name: value for name, value in init_params.items() if name not in names} or None
            given = _given(split, start.paths)
            inner_state = self._inner.init(start.inner_key, num_warmup, rest, args, kwargs, given, split.others)
            x_0 = {name: path[0] for name, path in start.paths.items()}
            others = self._others(split, self._inner.unconstrained(inner_state), x_0, args, kwargs)
            log_r = _compiled_log_r(split, start.paths, others)
        count, zero = jnp.zeros((), int), jnp.zeros(())
        state = DiffusionGibbsState(
            i=count,
            z=self._z(start.paths, inner_state),
            paths=start.paths,
            inner_state=inner_state,
            prior_draws=start.prior_draws,
            calibration=start.calibration,
            effective_size=zero,
            moved=zero,
            refresh_acceptance=zero,
            independence_acceptance=zero,
            stalled=jnp.zeros(split.element_shape, int),
            inner_stalled=count,
            rng_key=start.rng_key,
        )
        return state, log_r

    def _start(self, rng_key: jax.Array, given: Mapping[str, Array], split: SplitModel) -> _Start:
        """Paths at a prior draw of the other sites, at the first of some such draws where log r is finite."""
        rng_key, inner_key, search_key = jax.random.split(rng_key, 3)

        def attempt(search: tuple) -> tuple:
            tries, key, *_ = search
            key, key_others, key_draws, key_paths, key_given = jax.random.split(key, 5)
            others, _ = split.draw_others(key_others)
            target = target_of(split, others)
            draws = draw_prior(target, key_draws, self.twist.num_prior_draws)
            calibration = calibrate(target, draws, jax.random.fold_in(key_draws, 1))
            target = target_of(split, others, calibration)
            paths = first_paths(target, self._walk(target, draws), key_paths)
            for index, (name, x_0) in enumerate(sorted(given.items())):
                x_0 = jnp.asarray(x_0, paths[name].dtype)
                paths[name] = noised(target.chains[name], x_0, jax.random.fold_in(key_given, index))
            return tries + 1, key, paths, draws, calibration, _log_r(split, paths, others)

        def is_searching(search: tuple) -> Array:
            tries, *_, log_r = search
            return (tries < _MAX_STARTS) & ~jnp.isfinite(log_r)

        _, _, *found, _ = jax.eval_shape(attempt, (0, search_key))
        blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), found)
        search = (0, search_key, *blank, jnp.asarray(-jnp.inf, float))
        _, _, paths, draws, calibration, log_r = jax.lax.while_loop(is_searching, attempt, search)
        return _Start(rng_key, inner_key, paths, draws, calibration, log_r)

    def _sample_one(self, state: DiffusionGibbsState, *, args: tuple, kwargs: dict[str, Any]) -> DiffusionGibbsState:
        split = self._programs.bind(args, kwargs)
        key, key_cloud, key_fresh, key_refresh = jax.random.split(state.rng_key, 4)
        others: dict[str, Array] = {}
        if split.others:
            x_0 = {name: path[0] for name, path in state.paths.items()}
            others = self._others(split, self._inner.unconstrained(state.inner_state), x_0, args, kwargs)
        target = target_of(split, others, state.calibration)
        walk = self._walk(target, state.prior_draws)
        paths, cloud, moved = conditional_smc(target, walk, state.paths, key_cloud)
        accepted = refreshed = jnp.zeros(())
        if self.independence:
            paths, accept = independent_paths(target, walk, paths, cloud.log_evidence, key_fresh)
            moved, accepted = moved | accept, accept.mean(dtype=float)
        if self.use_refresh:
            paths, refreshed = refresh_paths(target, paths, key_refresh)
        inner_state, inner_moved = state.inner_state, jnp.ones((), bool)
        if split.others:
            inner_state = self._inner.move(inner_state, args, kwargs, _given(split, paths))
            inner_moved = has_moved(*(self._inner.unconstrained(of) for of in (state.inner_state, inner_state)))
        return DiffusionGibbsState(
            i=state.i + 1,
            z=self._z(paths, inner_state),
            paths=paths,
            inner_state=inner_state,
            prior_draws=state.prior_draws,
            calibration=state.calibration,
            effective_size=cloud.effective_sizes.min(),
            moved=moved.mean(dtype=float),
            refresh_acceptance=refreshed,
            independence_acceptance=accepted,
            stalled=count_stalled(state.stalled, moved),
            inner_stalled=count_stalled(state.inner_stalled, inner_moved),
            rng_key=key,
        )

    def _walk(self, target: Target, prior_draws: States) -> Callable[..., Cloud]:
        """Particles from noise to data, with all but the key and the retained path said."""
        constants = self.twist.prepare(target, prior_draws)
        return partial(run_filter, target, self.twist, constants, num_particles=self.num_particles, keep_paths=True)

    def _others(
        self, split: SplitModel, z: Mapping[str, Array], x_0: States, args: tuple, kwargs: dict[str, Any]
    ) -> dict[str, Array]:
        if not z:
            return {}
        given = GivenPaths({name: x[None] for name, x in x_0.items()}, split.site_values(x_0), False)
        return self._inner.constrained(z, args, kwargs, given)

    def _z(self, paths: States, inner_state: PyTree) -> dict[str, Array]:
        x_0 = {name: path[0] for name, path in paths.items()}
        return x_0 if inner_state is None else {**self._inner.unconstrained(inner_state), **x_0}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_compiled_start"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._compiled_start = jax.jit(self._start)


def _given(split: SplitModel, paths: States) -> GivenPaths:
    """Paths for the inner kernel."""
    values = split.site_values({name: path[0] for name, path in paths.items()})
    return GivenPaths(paths, values, split.chains_depend_on_others())


def _log_r(split: SplitModel, paths: States, others: Mapping[str, Array]) -> Array:
    """All of log r, at x^0 of the paths."""
    log_r = split.log_factor({name: path[0] for name, path in paths.items()}, others)
    return log_r.elements.sum() + log_r.shared


_compiled_log_r = jax.jit(_log_r)


def _check_start(log_r: Array) -> None:
    if is_concrete(log_r) and not np.isfinite(log_r).all():
        raise RuntimeError(
            expected(
                "a likelihood that is finite and not 0 where a chain starts",
                f"log r = {log_r}",
                "Look at the likelihood of draws from the prior (numpyro.infer.Predictive), or start the chains at "
                "init_params that have one: x^0 of diffusion sites, unconstrained values of others.",
            )
        )


def _check_names(init_params: Mapping[str, Array], split: SplitModel) -> Mapping[str, Array]:
    known = {site.name for site in split.sites} | set(split.others)
    if not known.issuperset(init_params):
        raise ValueError(
            expected(
                f"init_params among the latent sites {sorted(known)}",
                f"{sorted(init_params)}",
                "A diffusion site has one value, x^0, and no noises here.",
            )
        )
    return init_params
