r"""Hamiltonian Monte Carlo of all real latent sites together, diffusion sites through their noises.

With u all latent sites, unconstrained, and each diffusion site as its noises, the target is N(u; 0, I) L(u) (see
:mod:`numpyro_diffusion.model.reference`). The noises are standard normal before anything is seen, and near it after,
when they are those of a guided chain. Every other site v is used in coordinates in which it is near standard normal
too: v = centre + spread e, with mean and standard deviation of warm-up draws. Then

    pi(z)  proportional to  N(z; 0, I) w(z),     log w = log L(u) - v^2 / 2 + e^2 / 2,

and a draw is a trajectory of :mod:`numpyro_diffusion.noise.hmc`. Of the standard normal every step is exact: what is
left in w alone bounds its size. Where the elements of a plate are independent a posteriori, which is proved from the
model's operations and holds only if nothing else is unknown, each accepts its part of a trajectory on its own.

Warm-up, in thirds: log w is raised from 1/1000 of itself (a chain started at a draw of the prior would meet a cliff);
then the step size is adapted by dual averaging to the wanted acceptance, on short trajectories, and on those of the
length that draws have. Centres and spreads are taken anew after the first and the second third.

Assumed: real latent sites, a likelihood that is differentiable almost everywhere. What it is not good at: modes far
apart, as every local sampler.

References: Hoffman and Gelman 2014, Section 3.2 (dual averaging); the noise module's.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._checks import check_integer_at_least, expected, is_concrete
from .._compat.numpyro import is_prng_key
from .._typing import Array
from ..guidance import Guidance
from ..model.reference import NormalReference
from ..noise.hmc import MAX_ANGLE, Point, hamiltonian_move, num_steps_of, over_coordinates
from .adaptation import Moments, StepSearch
from .noise_kernel import NoiseKernel

__all__ = ["DiffusionHMC", "DiffusionHMCState"]

_LEAST_POWER = 1e-3  # log w is raised from here
_EARLY_STEPS = 2  # of a trajectory in the first two thirds of warm-up
_DIVERGENT = 1000.0  # nats, as NumPyro has it
_FEWEST = 10  # draws from which a mean and a standard deviation are taken


class _Adapted(NamedTuple):
    """What warm-up changes.

    Attributes:
        centre, spread: of the sites that are no noises, by name, in their shapes.
        moments: of these sites since the last change.
        search: of the step size.
    """

    centre: dict[str, Array]
    spread: dict[str, Array]
    moments: Moments
    search: StepSearch


class DiffusionHMCState(NamedTuple):
    """State of :class:`DiffusionHMC`, of one chain; chains side by side have one more axis.

    Attributes:
        i: draws made, warm-up included.
        z: unconstrained values of the latent sites, diffusion sites as ``x_noise``.
        log_likelihood: log L(z) in nats: what the density has on top of N(z; 0, I).
        by_element: the same by element of the plate, where they are independent; else the number itself, shape ().
        gradient: of it.
        accept_prob: acceptance probability of this draw's trajectory, its mean over elements.
        mean_accept_prob: of each element, its mean over the draws since warm-up, or since its start.
        num_steps: steps of this draw's trajectory, a gradient each.
        step_size: the step's angle in radians, before it is shortened at random by up to a fifth.
        diverging: whether the trajectory's energy, of any element, was off by more than 1000 nats, or not a number.
        num_warmup: how many draws adapt.
        adapted: what warm-up changes.
        rng_key: key of the next draw.
    """

    i: Array
    z: dict[str, Array]
    log_likelihood: Array
    by_element: Array
    gradient: dict[str, Array]
    accept_prob: Array
    mean_accept_prob: Array
    num_steps: Array
    step_size: Array
    diverging: Array
    num_warmup: Array
    adapted: _Adapted
    rng_key: Array


class DiffusionHMC(NoiseKernel):
    """MCMC kernel that draws all real latent sites together, diffusion sites in the noises of a guided chain.

    Latent :class:`Diffusion` sites with a Gaussian kernel are reparameterised here; a model in which
    :class:`DiffusionReparam` did so already is taken as well. The posterior is that of the T-step model, whatever the
    guidance: good guidance makes steps long. By default it is made of the model, by the numbers, Normal or nearly, that
    depend on a diffusion site: see :mod:`numpyro_diffusion.model.automatic`. ``charts`` says, after a run, what
    guides, or why a site keeps the noises of its prior. ``MCMC`` returns diffusion sites and noises;
    ``extra_fields=("~z.x_noise", "accept_prob", "num_steps", "diverging", "log_likelihood")`` drops the noises and adds
    a diagnosis. A draw costs ``num_steps`` gradients of the model, each the chain once forth and back. Elements of a
    plate that are independent a posteriori are drawn side by side; ``elements_reason`` says whether, and why.

    Args:
        model: a NumPyro model.
        guidance: ``"auto"``, made of the model; None, for the noises of the prior's chain; or by the name of a
            diffusion site, for example ``{"x": MomentMatching(A, y, noise)}``, in units of the chain's states, see
            ``in_states``, and the others' noises those of the prior's chain. ``"auto"`` needs the covariance of the
            network's errors. If the prior does not bring it, it is computed before the first draw: 2000 draws of the
            prior and as many network calls again, once for a kernel.
        step_size: where adaptation starts; the step size itself where ``num_warmup`` is 0. An angle in radians.
        target_accept_prob: the mean acceptance that the step size is adapted to.
        max_steps: the largest mean length of a trajectory.

    Raises:
        TypeError: for a discrete latent site.
        ValueError: for a model without a latent diffusion site, with a subsampled plate or with untrained parameters;
            for guidance of an unknown site; for options out of range.
        RuntimeError: if no starting point of finite density is found.

    >>> import numpyro
    >>> from numpyro_diffusion import Diffusion, GaussianKernel, Transition, schedules
    >>> import numpyro.distributions as dist
    >>> kernel = GaussianKernel(schedules.log_snr(5), variance="upper")
    >>> prior = Diffusion(kernel, Transition(lambda params, x_t, t, context: 0 * x_t, None, (2,)))
    >>> def model(y): numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), 1.0).to_event(1), obs=y)
    >>> mcmc = numpyro.infer.MCMC(DiffusionHMC(model), num_warmup=30, num_samples=20, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), jnp.array([1.0, -1.0]))
    >>> mcmc.get_samples()["x"].shape, mcmc.sampler.charts
    ((20, 2), {'x': "guided by 'y', 2 numbers; errors computed"})
    """

    def __init__(
        self,
        model: Callable,
        *,
        guidance: Mapping[str, Guidance] | Literal["auto"] | None = "auto",
        step_size: float = 0.5,
        target_accept_prob: float = 0.8,
        max_steps: int = 32,
    ) -> None:
        super().__init__(model, guidance)
        for name, value, most in (
            ("step_size", step_size, MAX_ANGLE),
            ("target_accept_prob", target_accept_prob, 1.0),
        ):
            if not 0 < value <= most:
                raise ValueError(expected(f"{name} in (0, {most:.3g}]", value, "A step is an angle in radians."))
        self._step_size = float(step_size)
        self._target = float(target_accept_prob)
        self._max_steps = check_integer_at_least("max_steps", max_steps, 1, "It bounds the cost of a draw.")

    def init(
        self, rng_key: Array, num_warmup: int, init_params: Any = None, model_args: tuple = (), model_kwargs: Any = None
    ) -> Any:
        """As :meth:`.NoiseKernel.init`; it refuses a gradient that is no number, and a likelihood without one.

        Raises:
            ValueError: for a gradient that is NaN or infinite at a starting point; for a likelihood that changes with a
                diffusion site and has no gradient, as that of a rounded number.
        """
        state = super().init(rng_key, num_warmup, init_params, model_args, model_kwargs)
        if is_concrete(state.gradient):
            self._check_gradient(state, model_args, model_kwargs)
        return state

    def get_diagnostics_str(self, state: DiffusionHMCState) -> str:
        step, accepts = float(state.step_size), np.asarray(state.mean_accept_prob)
        charts = self.charts if self._program is not None else {}
        unguided = [name for name, chart in charts.items() if chart.startswith("the prior's")]
        said = f", {', '.join(unguided)} not guided" if unguided else ""
        least = f" ({accepts.min():.2f} in one of {accepts.size})" if accepts.ndim else ""
        return f"step size {step:.2f}, {int(state.num_steps)} steps, acceptance {accepts.mean():.2f}{least}{said}"

    @property
    def elements_reason(self) -> str:
        """Why the elements of a plate are accepted one by one, or together, in words.

        Raises:
            RuntimeError: before a run.
        """
        return self._latest().elements_reason

    def refresh(self, state: DiffusionHMCState, model_args: tuple, model_kwargs: Any) -> DiffusionHMCState:
        terms, gradient = self._reference(model_args, model_kwargs).terms_and_gradient(state.z)
        return state._replace(log_likelihood=terms.sum(), by_element=terms, gradient=gradient)

    def _check_gradient(self, state: DiffusionHMCState, model_args: tuple, model_kwargs: Any) -> None:
        broken = sorted(name for name, gradient in state.gradient.items() if not np.isfinite(gradient).all())
        if broken:
            raise ValueError(
                expected(
                    "a finite gradient of the log density at the starting points",
                    f"NaN or infinite ones in {broken}",
                    "No trajectory can move. Look at the gradients of the network and of the likelihood, or use "
                    "DiffusionGibbs or EllipticalSlice, which need none.",
                )
            )
        flat = {name for name, gradient in state.gradient.items() if not np.any(gradient)}
        if not flat:
            return
        reference = self._reference(model_args, model_kwargs)
        flat &= reference.noises()
        z = state.z if is_prng_key(state.rng_key) else jax.tree.map(lambda leaf: leaf[0], state.z)
        log_likelihood = jax.jit(reference.log_likelihood)
        for name in sorted(flat):
            elsewhere = jax.random.normal(jax.random.key(0), z[name].shape, z[name].dtype)
            here, there = float(log_likelihood(z)), float(log_likelihood({**z, name: elsewhere}))
            if math.isfinite(there) and here != there:  # a region of density 0 has no gradient inside either
                site = name.removesuffix("_noise")
                raise ValueError(
                    expected(
                        f"a likelihood with a gradient in site {site!r}",
                        "0 at every start, of one that changes with the site",
                        "Use DiffusionGibbs or EllipticalSlice, which need no gradient.",
                    )
                )

    def _first_state(
        self, reference: NormalReference, num_warmup: int, z: dict[str, Array], log_likelihood: Array, rng_key: Array
    ) -> DiffusionHMCState:
        terms, gradient = reference.terms_and_gradient(z)
        others = {name: site for name, site in z.items() if name not in reference.noises()}
        adapted = _Adapted(
            centre=jax.tree.map(jnp.zeros_like, others),
            spread=jax.tree.map(jnp.ones_like, others),
            moments=Moments.start(ravel_pytree(others)[0]),
            search=StepSearch.start(self._step_size),
        )
        zero, count = jnp.zeros((), float), jnp.zeros((), int)
        return DiffusionHMCState(
            i=count,
            z=z,
            log_likelihood=terms.sum(),
            by_element=terms,
            gradient=gradient,
            accept_prob=zero,
            mean_accept_prob=jnp.zeros_like(terms),
            num_steps=count,
            step_size=zero + self._step_size,
            diverging=jnp.asarray(False),
            num_warmup=count + num_warmup,
            adapted=adapted,
            rng_key=rng_key,
        )

    def _step(self, reference: NormalReference, state: DiffusionHMCState) -> DiffusionHMCState:
        rng_key, move_key, angle_key, length_key = jax.random.split(state.rng_key, 4)
        is_warm = state.i < state.num_warmup
        power = _power(state.i, state.num_warmup)
        angle = state.step_size * jax.random.uniform(angle_key, (), state.step_size.dtype, 0.8, 1.0)
        # The step size is settled on trajectories of the length that draws have.
        is_early = 3 * state.i < 2 * state.num_warmup
        num_steps = jnp.where(is_early, _EARLY_STEPS, num_steps_of(length_key, state.step_size, self._max_steps))
        centre, spread = state.adapted.centre, state.adapted.spread

        def evaluate(e: dict[str, Array]) -> Point:
            u = {**e, **{name: centre[name] + spread[name] * e[name] for name in centre}}
            return _point(e, u, *reference.terms_and_gradient(u), spread, power)

        start = {**state.z, **{name: (state.z[name] - centre[name]) / spread[name] for name in centre}}
        here = _point(start, state.z, state.by_element, state.gradient, spread, power)
        move = hamiltonian_move(evaluate, move_key, here, angle, num_steps)
        z, terms, gradient = move.point.beside
        accept_prob = move.accept_prob.mean()
        count = jnp.where(is_warm, state.i, state.i - state.num_warmup) + 1
        mean = jnp.where(count == 1, 0.0, state.mean_accept_prob)
        adapted, step_size = _adapt(state, {name: z[name] for name in centre}, accept_prob, self._target)
        return DiffusionHMCState(
            i=state.i + 1,
            z=z,
            log_likelihood=terms.sum(),
            by_element=terms,
            gradient=gradient,
            accept_prob=accept_prob,
            mean_accept_prob=mean + (move.accept_prob - mean) / count.astype(mean.dtype),
            num_steps=num_steps,
            step_size=step_size,
            diverging=~(jnp.abs(move.energy_error) < _DIVERGENT).all(),
            num_warmup=state.num_warmup,
            adapted=adapted,
            rng_key=rng_key,
        )


def _point(
    e: dict[str, Array], u: dict[str, Array], terms: Array, gradient: dict[str, Array], spread: dict[str, Array],
    power: Array,
) -> Point:  # fmt: skip
    """The point at e, of which u are the values, with the weight over N(e; 0, I) raised to a power."""
    log_weight, slope = over_coordinates(e, u, terms, gradient, spread)
    return Point(e, power * log_weight, jax.tree.map(lambda g: power * g, slope), (u, terms, gradient))


def _power(i: Array, num_warmup: Array) -> Array:
    """From 1/1000 to 1 in the first third of warm-up, on a logarithmic scale."""
    share = jnp.clip(3 * i.astype(float) / jnp.maximum(num_warmup, 1).astype(float), 0.0, 1.0)
    return jnp.where(i < num_warmup, _LEAST_POWER ** (1 - share), 1.0)


def _adapt(
    state: DiffusionHMCState, others: dict[str, Array], accept_prob: Array, target: float
) -> tuple[_Adapted, Array]:
    """What warm-up has learned after a draw, and the next step size; after warm-up, what it was."""
    adapted, done, last = state.adapted, state.i + 1, state.num_warmup
    flat, unravel = ravel_pytree(others)
    moments, search = adapted.moments.after(flat), adapted.search.after(accept_prob, target)
    log_step = jnp.where(done == last, search.log_mean, search.log_step)
    step_size = jnp.exp(jnp.minimum(log_step, math.log(MAX_ANGLE)))

    # At the end of the first two thirds coordinates change, and the search for the step size begins anew.
    is_end = (done == last // 3) | (done == 2 * last // 3)
    spread = moments.standard_deviation()
    is_known = is_end & (moments.num_draws >= _FEWEST) & jnp.isfinite(spread).all() & (spread > 0).all()
    changed = _Adapted(
        centre=jax.tree.map(partial(jnp.where, is_known), unravel(moments.mean), adapted.centre),
        spread=jax.tree.map(partial(jnp.where, is_known), unravel(spread), adapted.spread),
        moments=jax.tree.map(partial(jnp.where, is_end), Moments.start(flat), moments),
        search=jax.tree.map(partial(jnp.where, is_end), StepSearch.start(step_size), search),
    )
    is_warm = state.i < last
    return jax.tree.map(partial(jnp.where, is_warm), changed, adapted), jnp.where(is_warm, step_size, state.step_size)
