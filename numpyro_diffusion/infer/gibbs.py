r"""Gibbs sampling of diffusion sites and everything else, exact for the T-step model.

The state is a whole path x^{0:T} for each diffusion site and a value of every other site. One draw is

    1. conditional SMC   N particles walk from noise to data, one of them along the current path; one of the N paths is
                         chosen by weight. Exact for any N >= 2.
    2. independence      (optional) N fresh particles, accepted with probability min(1, Z_new / Z_current).
    3. refresh           given x^0, propose x^{1:T} ~ q(x^{1:T} | x^0) by noising, accept with probability
                         min(1, w_new / w_old), w = p(x^{0:T}) / q(x^{1:T} | x^0). Near noise a retained path hardly
                         changes by itself; this move frees it, accepted ever more as the model learns its data.
    4. the inner kernel  moves the other sites given x^0 (and given the path, if they enter the chain's law).

Elements of a plate that the likelihood does not couple are filtered, chosen and accepted one by one.

Not assumed: that modes are connected, that the likelihood is linear, that the chain is Gaussian.

References: Andrieu, Doucet and Holenstein 2010 (particle Gibbs, PIMH); Sohl-Dickstein et al. 2015, Eq. 1 and 9.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.infer.hmc import HMC
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from .._checks import check_integer_at_least, expected
from .._numerics import expand_right
from .._typing import Array, PyTree
from .filter import choose_path, run_filter
from .named_twists import as_twist
from .paths import PATHS, GivenPaths, noised, refresh_paths, with_given_paths
from .sites import SplitModel
from .target import States, Target, draw_prior

__all__ = ["DiffusionGibbs", "DiffusionGibbsState"]


class DiffusionGibbsState(NamedTuple):
    """State of :class:`DiffusionGibbs`.

    Attributes:
        i: draws made.
        z: x^0 of the diffusion sites, and the inner kernel's unconstrained values of the others.
        paths: site name -> x^{0:T}, (T + 1, site shape...).
        inner_state: the inner kernel's state, None without other sites.
        prior_draws: draws of the prior, from which the twist takes its scale.
        effective_size: the smallest of this draw's conditional SMC, over levels and elements.
        moved: fraction of elements whose x^0 the particles changed.
        refresh_acceptance: fraction of paths whose noising was accepted.
        independence_acceptance: fraction of elements whose fresh particles were accepted; 0 without the move.
        rng_key: key of the next draw.
    """

    i: Array
    z: dict[str, Array]
    paths: dict[str, Array]
    inner_state: PyTree
    prior_draws: dict[str, Array]
    effective_size: Array
    moved: Array
    refresh_acceptance: Array
    independence_acceptance: Array
    rng_key: jax.Array


class DiffusionGibbs(MCMCKernel):
    """Particle Gibbs for the diffusion sites of a model, a kernel of the user's for its other sites.

    Args:
        inner_kernel: NUTS, HMC or any kernel with ``wrap_model`` and ``refresh``, built on the user's model; it is not
            run when the model has no other latent site.
        num_particles: N of the conditional SMC.
        twist: as for ``TwistedSMC``.
        refresh: whether to refresh the path by noising.
        independence: whether to add the independence move.
        elements: as for ``TwistedSMC``.

    Use it as any kernel: ``MCMC(DiffusionGibbs(NUTS(model)), num_warmup=..., num_samples=...)``, several chains by each
    ``chain_method``, ``thinning``, ``extra_fields=("effective_size", "refresh_acceptance", "moved")``,
    ``post_warmup_state``.

    >>> import numpyro
    >>> from numpyro.infer import MCMC, NUTS
    >>> from numpyro_diffusion import Diffusion, GaussianKernel, analytic, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(10), parameterization="x0", variance="denoiser")
    >>> prior = Diffusion(kernel, analytic.gaussian_mixture(kernel, jnp.array([[0.0]]), 1.0, jnp.ones(1)))
    >>> def model(y=None):
    ...     x = numpyro.sample("x", prior)
    ...     numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)
    >>> mcmc = MCMC(DiffusionGibbs(NUTS(model)), num_warmup=50, num_samples=500, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), y=jnp.array([3.0]))
    >>> abs(mcmc.get_samples()["x"].mean() - 1.5) < 0.2
    Array(True, dtype=bool)
    """

    sample_field = "z"

    def __init__(
        self,
        inner_kernel: MCMCKernel,
        *,
        num_particles: int = 16,
        twist: Any = "tempered",
        refresh: bool = True,
        independence: bool = False,
        elements: str = "auto",
    ) -> None:
        if not isinstance(inner_kernel, MCMCKernel) or getattr(inner_kernel, "model", None) is None:
            raise TypeError(
                expected(
                    "an MCMC kernel built on the model",
                    repr(inner_kernel),
                    "For example DiffusionGibbs(NUTS(model)); a potential function has no diffusion sites.",
                )
            )
        if type(inner_kernel).refresh is MCMCKernel.refresh:
            raise TypeError(
                expected(
                    "an inner kernel that can be told of new values of other sites (its `refresh`)",
                    type(inner_kernel).__name__,
                    "NUTS, HMC and Gibbs can.",
                )
            )
        self._model = inner_kernel.model
        self.inner_kernel = inner_kernel.wrap_model(with_given_paths)
        self.num_particles = check_integer_at_least(
            "num_particles", num_particles, 2, "With one particle the path would never move; 16 is usual."
        )
        self.twist = as_twist(twist)
        self.use_refresh = refresh
        self.independence = independence
        self._elements = elements
        self._split: SplitModel | None = None  # of the last init: static facts only are read from it

    @property
    def model(self) -> Callable:
        """The user's model."""
        return self._model

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
        """The first state: a path by SMC at a prior draw of the other sites, then the inner kernel's own start.

        ``init_params`` may hold x^0 of diffusion sites, and unconstrained values of others.
        """
        kwargs = dict(model_kwargs or {})
        self._split = SplitModel(self._model, model_args, kwargs, elements=self._elements)
        self._check(self._split)
        start = partial(self._init_one, num_warmup=num_warmup, model_args=model_args, model_kwargs=kwargs)
        if is_prng_key(rng_key):
            return start(rng_key, init_params)
        return jax.vmap(start)(rng_key, init_params)

    def sample(
        self, state: DiffusionGibbsState, model_args: tuple, model_kwargs: Mapping[str, Any] | None
    ) -> DiffusionGibbsState:
        step = partial(self._sample_one, model_args=model_args, model_kwargs=dict(model_kwargs or {}))
        return step(state) if is_prng_key(state.rng_key) else jax.vmap(step)(state)

    def postprocess_fn(self, model_args: tuple, model_kwargs: Mapping[str, Any] | None) -> Callable:
        """Constrain the other sites, and compute deterministic ones."""

        def constrain(z: dict[str, Array]) -> dict[str, Array]:
            split = self._resplit(model_args, dict(model_kwargs or {}))
            values = {site.name: z[site.name] for site in split.sites}
            rest = {name: value for name, value in z.items() if name not in values}
            if rest:
                values |= self._constrain(rest, model_args, dict(model_kwargs or {}), split, values)
            return {**values, **split.deterministic_values(values)} if split.deterministic else values

        return constrain

    def _init_one(
        self,
        rng_key: jax.Array,
        init_params: dict[str, Array] | None,
        *,
        num_warmup: int,
        model_args: tuple,
        model_kwargs: dict[str, Any],
    ) -> DiffusionGibbsState:
        split = self._resplit(model_args, model_kwargs)
        key, key_others, key_prior, key_path, key_inner = jax.random.split(rng_key, 5)
        others, _ = split.draw_others(key_others)
        target = Target(split, others)
        draws = draw_prior(target, key_prior, self.twist.num_prior_draws)
        given = {site.name: init_params[site.name] for site in split.sites if init_params and site.name in init_params}
        paths = self._first_path(target, draws, key_path)
        paths |= {name: noised(target.chains[name], jnp.asarray(x), key_path) for name, x in given.items()}
        inner_state = None
        if split.others:
            rest = {name: value for name, value in (init_params or {}).items() if name not in paths} or None
            kwargs = {**model_kwargs, PATHS: GivenPaths(paths, split.chains_depend_on_others())}
            inner_state = self.inner_kernel.init(key_inner, num_warmup, rest, model_args, kwargs)
        zero = jnp.zeros(())
        return DiffusionGibbsState(
            jnp.zeros((), int), self._z(paths, inner_state), paths, inner_state, draws, zero, zero, zero, zero, key
        )

    def _sample_one(
        self, state: DiffusionGibbsState, *, model_args: tuple, model_kwargs: dict[str, Any]
    ) -> DiffusionGibbsState:
        split = self._resplit(model_args, model_kwargs)
        key, key_cloud, key_refresh = jax.random.split(state.rng_key, 3)
        others: dict[str, Array] = {}
        if split.others:
            rest = getattr(state.inner_state, self.inner_kernel.sample_field)
            values = {name: path[0] for name, path in state.paths.items()}
            others = self._constrain(rest, model_args, model_kwargs, split, values)
        target = Target(split, others)
        paths, effective_size, moved, independent = self._particle_gibbs(target, state, key_cloud)
        refreshed = jnp.zeros(())
        if self.use_refresh:
            paths, refreshed = refresh_paths(target, paths, key_refresh)
        inner_state = state.inner_state
        if split.others:
            kwargs = {**model_kwargs, PATHS: GivenPaths(paths, split.chains_depend_on_others())}
            inner_state = self.inner_kernel.refresh(inner_state, model_args, kwargs)
            inner_state = self.inner_kernel.sample(inner_state, model_args, kwargs)
        return DiffusionGibbsState(
            i=state.i + 1,
            z=self._z(paths, inner_state),
            paths=paths,
            inner_state=inner_state,
            prior_draws=state.prior_draws,
            effective_size=effective_size,
            moved=moved,
            refresh_acceptance=refreshed,
            independence_acceptance=independent,
            rng_key=key,
        )

    def _particle_gibbs(
        self, target: Target, state: DiffusionGibbsState, key: jax.Array
    ) -> tuple[States, Array, Array, Array]:
        keys = jax.random.split(key, 4)
        constants = self.twist.prepare(target, state.prior_draws)
        walk = partial(run_filter, target, self.twist, constants, num_particles=self.num_particles, keep_paths=True)
        cloud = walk(keys[0], retained=state.paths)
        index = jax.random.categorical(keys[1], _no_nan(cloud.log_weights), axis=0)
        paths, moved, accepted = choose_path(target, cloud, index), index != 0, jnp.zeros(())
        if self.independence:
            fresh = walk(keys[2], independent=True)
            log_ratio = fresh.log_evidence - cloud.log_evidence
            accept = jnp.log(jax.random.uniform(keys[3], log_ratio.shape)) < log_ratio
            index = jax.random.categorical(keys[3], _no_nan(fresh.log_weights), axis=0)
            paths = _choose(accept, choose_path(target, fresh, index), paths)
            moved, accepted = moved | accept, jnp.mean(accept.astype(float))
        return paths, cloud.effective_sizes.min(), jnp.mean(moved.astype(float)), accepted

    def _first_path(self, target: Target, draws: States, key: jax.Array) -> States:
        key_walk, key_choice = jax.random.split(key)
        constants = self.twist.prepare(target, draws)
        cloud = run_filter(target, self.twist, constants, key_walk, num_particles=self.num_particles, keep_paths=True)
        index = jax.random.categorical(key_choice, _no_nan(cloud.log_weights), axis=0)
        return choose_path(target, cloud, index)

    def _constrain(
        self, rest: dict[str, Array], args: tuple, kwargs: dict[str, Any], split: SplitModel, x_0: States
    ) -> dict[str, Array]:
        """The other sites' constrained values."""
        paths = {name: value[None] for name, value in x_0.items()}
        kwargs = {**kwargs, PATHS: GivenPaths(paths, False)}
        values = self.inner_kernel.get_constrain_fn(args, kwargs)(rest)
        return {name: values[name] for name in split.others}

    def _z(self, paths: States, inner_state: PyTree) -> dict[str, Array]:
        x_0 = {name: path[0] for name, path in paths.items()}
        return x_0 if inner_state is None else {**getattr(inner_state, self.inner_kernel.sample_field), **x_0}

    def _resplit(self, args: tuple, kwargs: dict[str, Any]) -> SplitModel:
        """The model at arguments that may be tracers, split as it was found to be at ``init``."""
        if self._split is None:
            raise RuntimeError(expected("an initialised kernel", "none", "Run it in MCMC, which calls init first."))
        elements = "independent" if self._split.element_shape else "joint"
        return SplitModel(self._model, args, kwargs, elements=elements)

    def _check(self, split: SplitModel) -> None:
        if isinstance(self.inner_kernel, HMC) and split.discrete_others:
            raise ValueError(
                expected(
                    "continuous sites beside the diffusion for a Hamiltonian inner kernel",
                    f"discrete {sorted(split.discrete_others)}",
                    "Sum them out, or use numpyro.infer.Gibbs([(DiscreteGibbs(model), discrete_latent_sites), "
                    "(NUTS(model), None)]) as the inner kernel.",
                )
            )


def _choose(accept: Array, new: States, old: States) -> States:
    """For each element, the new or the old path; ``accept`` has shape (E...), paths (T + 1, E..., rest...)."""
    pick = lambda new, old: jnp.where(expand_right(accept, new.ndim - 1 - accept.ndim), new, old)  # noqa: E731
    return jax.tree.map(pick, new, old)


def _no_nan(log_weights: Array) -> Array:
    return jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
