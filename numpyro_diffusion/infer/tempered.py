r"""Tempered sequential Monte Carlo of all real latent sites together, diffusion sites in the noises of a guided chain.

With u all latent sites, unconstrained, and each diffusion site as its noises, the target is N(u; 0, I) L(u) (see
:mod:`numpyro_diffusion.model.reference`), and L = b l: the priors of the other sites over N(0, 1), and the rest. The
first particles are draws of the guided chain and of the priors. They go to the target over N(u; 0, I) b(u) l(u)^a, a
from 0 to 1, as :mod:`numpyro_diffusion.noise.tempered` has it, and l is what the guidance left: a few temperatures do,
in any number of coordinates. Modes far apart keep their weights, and the mean weights are the evidence p(y).

Any other site v moves in coordinates of its own: v = m + s e, at the start with m and s from quantiles of prior draws
that no particle sees.

The priors cannot be drawn from as they are where one of them is scaled or masked, or depends on a diffusion site whose
guidance follows other sites. Then other sites begin at N(m, s^2), and b is part of l.

Assumed: real latent sites, a likelihood that is differentiable almost everywhere; in the case just named, priors whose
tails are not much heavier than those of N(m, s^2): no particle begins in them, and ``check`` warns. All elements of a
plate move together, so that a plate of many elements takes more temperatures than one.

References: the noise module's.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from .._checks import check_integer_at_least, expected, is_concrete, on_host
from .._typing import Array
from ..guidance import Guidance
from ..model.arguments import NEEDS_VALUES, Static, join, split_arguments, without_arrays
from ..model.automatic import AutoGuidance, ModelGuidance, checked_guidance
from ..model.observations import check_observed
from ..model.reference import NormalReference, Values
from ..noise.hmc import MAX_ANGLE
from ..noise.tempered import Settings, Start, run_tempered
from .engine import IslandEngine
from .tempered_result import TemperedResult

__all__ = ["TemperedSMC"]

_PRIOR_DRAWS = 512  # quantiles of which are centre and spread of other sites at the start
_DRAWS_AT_ONCE = 64
_SD_QUANTILES = (0.1587, 0.5, 0.8413)  # of a normal: mean less sd, mean, mean plus sd

_Coordinates: TypeAlias = Mapping[str, tuple[Array, Array]]  # centre and spread by site


class TemperedSMC(IslandEngine[TemperedResult]):
    """Posterior draws and evidence where modes are far apart and coordinates many, by particles that move by gradients.

    Latent :class:`Diffusion` sites with a Gaussian kernel are reparameterised here; a model in which
    :class:`DiffusionReparam` did so already is taken as well. Draws and evidence converge to those of the T-step
    model's posterior as particles grow, whatever the guidance: good guidance takes few temperatures. By default it is
    made of the model, by the numbers that depend on a diffusion site; ``charts`` says what guides. The result
    tells how many gradients of the model a particle took, each the chain once forth and back.

    ``run`` is a function of arrays: ``jax.jit(smc.run)`` and ``jax.vmap(smc.run)`` over data sets of one shape work,
    and return :class:`TemperedResult`; call its ``check()`` outside. Called plainly, ``run`` checks, warns, and keeps
    the result: its attributes and methods are then the engine's, too.

    Args:
        model: a NumPyro model with one or more latent ``Diffusion`` sites.
        guidance: ``"auto"``, made of the model; None, for the noises of the prior's chain; or by the name of a
            diffusion site, for example ``{"x": MomentMatching(A, y, noise)}``, in units of the chain's states, see
            ``in_states``.
        num_particles: N in each island, >= 2.
        num_islands: K independent runs; two or more give standard errors.
        num_moves: trajectories that a particle accepts at each temperature, in the mean; at most five times as many
            are tried.
        target_ess: the effective size that a temperature leaves, as a share of the particles; larger takes more of
            them.
        step_size: angle of the first steps in radians; later ones are adapted.
        target_accept_prob: the mean acceptance that the step size is adapted to.
        max_steps: the largest mean length of a trajectory.
        max_temperatures: an error tells if they do not suffice.
        particles_at_once: of an island, that are moved together; None for all. Memory grows with it and with T.
        progress_bar: show one over islands.
        mesh: divide the islands among the devices of a mesh, which may belong to several processes.

    Raises:
        TypeError: for a model that cannot be called.
        ValueError: for options out of range.

    >>> import numpyro, numpyro.distributions as dist
    >>> from numpyro_diffusion import Diffusion, GaussianKernel, analytic, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), parameterization="x0", variance="denoiser")
    >>> prior = Diffusion(kernel, analytic.gaussian_mixture(kernel, jnp.array([[0.0]]), 1.0, jnp.ones(1)))
    >>> def model(y=None):
    ...     x = numpyro.sample("x", prior)
    ...     numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)
    >>> smc = TemperedSMC(model, num_particles=500, num_islands=4, progress_bar=False)
    >>> result = smc.run(jax.random.key(0), y=jnp.array([3.0]))
    >>> abs(result.log_evidence - (-3.515)) < 0.2, smc.get_samples(num_samples=1000)["x"].shape
    (True, (1000, 1))
    """

    def __init__(
        self,
        model: Callable,
        *,
        guidance: Mapping[str, Guidance] | Literal["auto"] | None = "auto",
        num_particles: int = 256,
        num_islands: int = 4,
        num_moves: int = 2,
        target_ess: float = 0.5,
        step_size: float = 0.5,
        target_accept_prob: float = 0.8,
        max_steps: int = 32,
        max_temperatures: int = 100,
        particles_at_once: int | None = None,
        progress_bar: bool = True,
        mesh: jax.sharding.Mesh | None = None,
    ) -> None:
        super().__init__(model, num_particles, num_islands, progress_bar, mesh)
        for name, value, least, most in (
            ("target_ess", target_ess, 0.0, 0.99),
            ("step_size", step_size, 0.0, MAX_ANGLE),
            ("target_accept_prob", target_accept_prob, 0.0, 1.0),
        ):
            if not least < value <= most:
                cure = "A step is an angle in radians, the others are shares."
                raise ValueError(expected(f"{name} in ({least:g}, {most:.3g}]", value, cure))
        self.guidance = checked_guidance(guidance)
        self._auto = AutoGuidance(model)
        self._charts: dict[str, str] | None = None
        if particles_at_once is not None:
            check_integer_at_least("particles_at_once", particles_at_once, 1, "Pass None for all.")
        self._settings = Settings(
            num_moves=check_integer_at_least("num_moves", num_moves, 1, "Particles that stay are copies."),
            target_ess=float(target_ess),
            step_size=float(step_size),
            target_accept_prob=float(target_accept_prob),
            max_steps=check_integer_at_least("max_steps", max_steps, 1, "It bounds the cost of a move."),
            max_temperatures=check_integer_at_least("max_temperatures", max_temperatures, 1, "One may suffice."),
            batch_size=particles_at_once,
        )
        self._begin = jax.jit(self._find_coordinates, static_argnums=0)
        self._islands = jax.jit(self._run_islands, static_argnums=0)
        self._arguments: tuple[tuple, Values] = ((), {})

    def run(self, rng_key: jax.Array, *args: Any, **kwargs: Any) -> TemperedResult:
        """Run the islands at these arguments.

        Args:
            rng_key: JAX random key.
            *args: the model's.
            **kwargs: the model's.

        Raises:
            TypeError: for a discrete latent site.
            ValueError: for a model without a latent diffusion site, with a subsampled plate or with untrained
                parameters; for guidance of an unknown site; for an observed diffusion without a named estimate, which
                would be part of the evidence; if the density is zero or without a finite gradient at all
                particles.
            RuntimeError: if an island did not come to temperature 1.
        """
        self._result = None  # what an earlier run found is no answer to this one
        check_observed(self.model, args, kwargs)
        begin_key, islands_key, draws_key = jax.random.split(rng_key, 3)
        keys = jax.random.split(islands_key, self.num_islands)
        auto = self._auto.bind(args, kwargs) if self.guidance == "auto" else None
        arrays, static = split_arguments(args, kwargs)
        try:
            coordinates, farthest = self._begin(static, begin_key, arrays, auto)
        except NEEDS_VALUES:
            # The model asks for values (the largest of some group numbers, as the size of a plate).
            if not is_concrete(arrays):
                raise
            arrays, static = without_arrays(arrays, static)
            coordinates, farthest = self._begin(static, begin_key, arrays, auto)
        if not is_concrete((rng_key, arrays)):
            return TemperedResult(
                **self._islands(static, keys, arrays, auto, coordinates), farthest=farthest, rng_key=draws_key
            )
        # One island after the other on a device: side by side they would wait for the one with the longest way.
        found = self._run_in_batches(partial(self._islands, static), keys, 1, arrays, auto, coordinates)
        result = TemperedResult(**found, farthest=farthest, rng_key=draws_key)
        result.check()
        self._result, self._arguments = result, (args, kwargs)
        self._charts = self._reference(static, arrays, auto).charts
        return result

    @property
    def arguments(self) -> tuple[tuple, Values]:
        return self._arguments

    @property
    def charts(self) -> dict[str, str]:
        """What the noises of each diffusion site are those of, in words, for the data of the last run.

        Raises:
            RuntimeError: before a run.
        """
        if self._charts is None:
            cure = "What guides a chain depends on the data: call run(rng_key, *model_arguments) first."
            raise RuntimeError(expected("a finished run", "none", cure))
        return self._charts

    @property
    def num_gradients(self) -> float:
        """Of the result: gradients of the model for one particle, each the chain once forth and back."""
        return float(on_host(self.result.num_gradients).mean())

    # Compiled parts -------------------------------------------------------------------------------

    def _find_coordinates(
        self, static: Static, key: jax.Array, arrays: list, auto: ModelGuidance | None
    ) -> tuple[dict[str, tuple[Array, Array]], dict[str, Array]]:
        """Centre and spread of the prior of every site that is no noise, by name, and how far its draws reach."""
        reference = self._reference(static, arrays, auto)
        reference.check_evidence()
        noises = reference.noises()

        def draw(key: jax.Array) -> Values:
            return {name: u for name, u in reference.prior_draw(key).items() if name not in noises}

        draws = jax.lax.map(draw, jax.random.split(key, _PRIOR_DRAWS), batch_size=_DRAWS_AT_ONCE)
        coordinates = {name: _centre_and_spread(values) for name, values in draws.items()}
        farthest = {
            name: jnp.max(jnp.abs(draws[name] - centre) / spread, initial=0.0)
            for name, (centre, spread) in coordinates.items()
            if name not in reference.prior_drawn
        }
        return coordinates, farthest

    def _run_islands(
        self, static: Static, keys: jax.Array, arrays: list, auto: ModelGuidance | None, coordinates: _Coordinates
    ) -> dict[str, Any]:
        def share(keys: jax.Array, arrays: list, auto: ModelGuidance | None, coordinates: _Coordinates) -> dict:
            return jax.lax.map(lambda key: self._run_island(static, key, arrays, auto, coordinates), keys)

        return self._place.divide(share)(keys, arrays, auto, coordinates)

    def _run_island(
        self, static: Static, key: jax.Array, arrays: list, auto: ModelGuidance | None, coordinates: _Coordinates
    ) -> dict[str, Any]:
        reference = self._reference(static, arrays, auto)
        like = jax.eval_shape(reference.prior_draw, key)
        drawn = reference.prior_drawn

        def values_of(e: Values) -> Values:
            return {**e, **{name: centre + spread * e[name] for name, (centre, spread) in coordinates.items()}}

        def over_coordinates(e: Values, u: Values, is_drawn: bool) -> Array:
            """Log N(u; 0, I) over N(e; 0, I), of densities of e, for sites that are drawn from their prior, or not."""
            parts = (
                (0.5 * (e[name] - u[name]) * (e[name] + u[name]) + jnp.log(spread)).sum()
                for name, (_, spread) in coordinates.items()
                if (name in drawn) == is_drawn
            )
            return sum(parts, jnp.zeros(()))

        def draw(key: Array) -> Values:
            if not coordinates.keys() <= drawn:
                key, normal_key = jax.random.split(key)
            u = reference.prior_draw(key)
            for i, (name, (centre, spread)) in enumerate(sorted(coordinates.items())):
                if name in drawn:
                    u[name] = (u[name] - centre) / spread
                else:
                    u[name] = jax.random.normal(jax.random.fold_in(normal_key, i), u[name].shape, u[name].dtype)
            return u

        def log_prior(e: Values) -> Array:
            u = values_of(e)
            return reference.log_prior_and_rest(u)[0] + over_coordinates(e, u, True)

        def log_weight(e: Values) -> Array:
            u = values_of(e)
            return reference.log_prior_and_rest(u)[1] + over_coordinates(e, u, False)

        start, end, history, num_temperatures = run_tempered(
            key,
            log_weight,
            like,
            self.num_particles,
            self._settings,
            whitened=coordinates,
            start=Start(draw, log_prior),
        )
        noises = reference.noises()

        def in_the_models_units(e: Values) -> Values:
            return {name: x for name, x in reference.constrain(values_of(e)).items() if name not in noises}

        last = end.particles
        samples = jax.lax.map(in_the_models_units, last.u, batch_size=self._settings.batch_size or self.num_particles)
        gradients = jnp.stack([jnp.isfinite(g).reshape(len(g), -1).all(1) for g in last.gradient.values()])
        return {
            "samples": samples,
            "island_log_evidence": end.log_evidence,
            "history": history,
            "num_temperatures": num_temperatures,
            "num_gradients": history.num_gradients.sum() + 1,
            "num_possible": (start.particles.log_weight > -jnp.inf).sum(),
            "num_fixed": (~gradients.all(0) & (last.log_weight > -jnp.inf)).sum(),
        }

    def _reference(self, static: Static, arrays: list, auto: ModelGuidance | None) -> NormalReference:
        args, kwargs = join(arrays, static)
        return NormalReference(self.model, args, kwargs, self.guidance if auto is None else auto)


def _centre_and_spread(draws: Array) -> tuple[Array, Array]:
    """Median and half the width of the middle 68%, which heavy tails do not move; draws lead."""
    low, centre, high = jnp.quantile(draws, jnp.asarray(_SD_QUANTILES, draws.dtype), axis=0)
    spread = 0.5 * (high - low)
    is_known = jnp.isfinite(spread) & (spread > 0) & jnp.isfinite(centre)
    return jnp.where(is_known, centre, 0.0), jnp.where(is_known, spread, 1.0)
