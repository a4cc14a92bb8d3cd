"""What a run of :class:`~.tempered.TemperedSMC` found: draws, evidence, and whether they can be relied on."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_integer_at_least, expected, on_host
from .._typing import Array
from .._weights import host_generator, log_mean_and_error, log_normalised
from ..noise.tempered import TemperedInfo
from .checklist import ADVICE
from .islands import disagreement, table
from .result import draw_particles, take

__all__ = ["TemperedResult"]

_POOR_ACCEPTANCE = 0.1
_SHORT_ANGLE = 0.1  # radians, of the 1.57 after which a particle may be anywhere
_FAR = 10.0  # spreads: of 512 draws of a normal the farthest is at 3, of a Cauchy one at some 200


class TemperedResult(NamedTuple):
    """All islands of one run: a pytree of arrays, K islands of N particles, M = ``max_temperatures``.

    After ``jax.vmap`` over data sets take one of them by ``jax.tree.map(lambda leaf: leaf[i], result)``.

    Attributes:
        samples: particles in the model's units, latent and deterministic sites by name, (K, N, site shape...).
        island_log_evidence: log Z by island, (K,), nats; -inf of one whose particles all had weight zero.
        history: what happened at each temperature, (K, M); NaN and 0 where it was not needed.
        num_temperatures: that were needed, (K,).
        num_gradients: of the model for each particle, (K,). One runs the chain once forth and back.
        num_possible: of the first particles, those of positive density, (K,).
        num_fixed: of the last particles, those that have no finite gradient and cannot move, (K,).
        farthest: how far the farthest of 512 prior draws of each other site is from their centre, in their spreads;
            of sites whose particles do not begin at draws of the prior.
        rng_key: from which draws are derived.
    """

    samples: dict[str, Any]
    island_log_evidence: Any
    history: TemperedInfo
    num_temperatures: Any
    num_gradients: Any
    num_possible: Any
    num_fixed: Any
    farthest: dict[str, Any]
    rng_key: jax.Array

    @property
    def num_particles(self) -> int:
        """N."""
        return next(iter(self.samples.values())).shape[1]

    @property
    def log_evidence(self) -> float:
        """Log p(y) in nats; with ``condition``-ed sites their prior is in it."""
        return float(log_mean_and_error(self.log_evidence_by_island())[0])

    @property
    def log_evidence_error(self) -> float:
        """The standard error of ``log_evidence`` over islands; NaN for one island."""
        return float(log_mean_and_error(self.log_evidence_by_island())[1])

    @property
    def temperatures(self) -> np.ndarray:
        """By island and step, (K, steps), the last one 1; NaN after it where others needed more."""
        return self._steps(self.history.temperature)

    @property
    def effective_sizes(self) -> np.ndarray:
        """By island and temperature, (K, steps), before resampling; NaN as in ``temperatures``."""
        return self._steps(self.history.effective_size)

    @property
    def accept_probs(self) -> np.ndarray:
        """Mean acceptance by island and temperature, (K, steps); NaN as in ``temperatures``."""
        return self._steps(self.history.accept_prob)

    @property
    def min_ess(self) -> float:
        """The smallest effective size over islands of positive evidence and temperatures."""
        return float(np.nanmin(self.effective_sizes[on_host(self.num_possible) > 0]))

    @property
    def last_accept_prob(self) -> float:
        """Acceptance at the last temperature, mean over islands of positive evidence."""
        return self._at_the_end(self.history.accept_prob)

    @property
    def last_angle(self) -> float:
        """Mean length of the trajectories at the last temperature, in radians; a quarter of a turn is 1.57."""
        return self._at_the_end(self.history.angle)

    def log_evidence_by_island(self) -> np.ndarray:
        """Shape (K,), nats.

        Raises:
            RuntimeError: if an island did not come to temperature 1.
        """
        reached = self._reached()
        if (reached < 1).any():
            most = self.history.temperature.shape[-1]
            raise RuntimeError(
                expected(
                    f"temperature 1 within max_temperatures={most}",
                    f"{reached.min():.3g} in the worst of {len(reached)} islands",
                    "The posterior is far from the first particles: guide the chain, or guide it better. Else take "
                    "more temperatures, and more moves where the acceptance is low.",
                )
            )
        return on_host(self.island_log_evidence, np.float64)

    def check(self) -> None:
        """Refuse a run without an answer, and warn of what makes its draws unreliable.

        Raises:
            RuntimeError: if an island did not come to temperature 1.
            ValueError: if no particle of any island had a positive density, or none a finite gradient.
        """
        num_particles, num_islands = self.num_particles, len(self._reached())
        fixed, possible = (int(on_host(count).sum()) for count in (self.num_fixed, self.num_possible))
        if possible == 0:
            raise ValueError(
                expected(
                    "a first particle of positive, finite density",
                    f"0, infinity or NaN at all {num_particles * num_islands}",
                    "Look at the likelihood at draws from the prior (numpyro.infer.Predictive); check units and scale.",
                )
            )
        alive = on_host(self.num_possible) > 0
        if fixed == num_particles * alive.sum():
            raise ValueError(
                expected(
                    "finite gradients of the log density",
                    "NaN or infinite ones at every particle",
                    "No particle can move. Look at the gradients of the network and of the likelihood.",
                )
            )
        error = self.log_evidence_error
        messages = []
        if fixed:
            messages.append(
                f"The gradient of the log density was NaN or infinite at {fixed} of {num_particles * num_islands} "
                "particles, which could not move. Look at the gradients of the network and of the likelihood."
            )
        if self.min_ess < max(2.0, 0.005 * num_particles):
            messages.append(
                f"The effective size fell to {self.min_ess:.1f} of {num_particles} particles: a few stand for all, and "
                "draws and evidence are unreliable. Take more particles, or guidance that brings the first of them to "
                "where the density is positive."
            )
        if self.last_accept_prob < _POOR_ACCEPTANCE or self.last_angle < _SHORT_ANGLE:
            messages.append(
                f"At temperature 1 particles hardly moved: {self.last_accept_prob:.2f} of the trajectories were "
                f"accepted, of {self.last_angle:.2g} radians. Particles are copies of a few. Take more moves "
                "(num_moves), more steps (max_steps), or better guidance."
            )
        wide = sorted(name for name, distance in self.farthest.items() if float(on_host(distance)) > _FAR)
        if wide:
            messages.append(
                f"The prior of the sites {wide} has much heavier tails than a normal: no particle begins there, and "
                "what mass the posterior has there is found by moves alone, if at all. Write such a site as a function "
                "of a standard normal one: particles then begin at draws of its prior."
            )
        messages += disagreement(error, "Take more particles, more moves (num_moves), or better guidance.")
        for message in messages:
            warnings.warn(f"{message} {ADVICE}", stacklevel=3)

    def summary(self) -> str:
        """Evidence, temperatures, acceptance and the posterior's moments, in words."""
        steps, gradients = (on_host(count) for count in (self.num_temperatures, self.num_gradients))
        possible = int(on_host(self.num_possible).sum())
        lines = [
            f"{len(steps)} islands of {self.num_particles} particles, {steps.min()} to {steps.max()} temperatures",
            f"log evidence {self.log_evidence:.3f} +- {self.log_evidence_error:.3f} nats",
            f"smallest effective size {self.min_ess:.0f} of {self.num_particles}",
            f"at temperature 1 acceptance {self.last_accept_prob:.2f} of trajectories of {self.last_angle:.2g} radians",
            f"{gradients.mean():.0f} gradients a particle",
        ]
        if possible < len(steps) * self.num_particles:
            lines.append(f"density 0, infinite or NaN at {len(steps) * self.num_particles - possible} first particles")
        return "\n".join([*lines, table(self.get_samples())])

    def get_samples(self, rng_key: jax.Array | None = None, num_samples: int | None = None) -> dict[str, Array]:
        """Equally weighted draws of all latent and deterministic sites, noises left out.

        Args:
            rng_key: for the resampling; by default derived from the key of the run, always the same draws.
            num_samples: how many; by default as many as there are particles. No more than that is worth having.

        Returns:
            Site name -> (num_samples, site shape...), in the model's units.
        """
        evidence = self.log_evidence_by_island()
        count = len(evidence) * self.num_particles if num_samples is None else num_samples
        count = check_integer_at_least("num_samples", count, 1, "It is the number of draws.")
        rng = host_generator(self.rng_key if rng_key is None else rng_key)
        islands, particles = draw_particles(rng, np.zeros((len(evidence), self.num_particles)), evidence, count)
        return {name: jnp.asarray(take(on_host(x), islands, particles)) for name, x in self.samples.items()}

    def get_weighted_samples(self) -> tuple[dict[str, Array], Array]:
        """All particles with their weights, equal within an island.

        Returns:
            Site name -> (K N, site shape...), and normalised log weights, (K N,).
        """
        log_weights = log_normalised(self.log_evidence_by_island()) - np.log(self.num_particles)
        flat = {name: jnp.asarray(np.reshape(on_host(x), (-1, *x.shape[2:]))) for name, x in self.samples.items()}
        return flat, jnp.repeat(jnp.asarray(log_weights, float), self.num_particles)

    def _reached(self) -> np.ndarray:
        """The last temperature of each island."""
        return np.nanmax(on_host(self.history.temperature), axis=1)

    def _at_the_end(self, values: Any) -> float:
        last = np.take_along_axis(on_host(values), on_host(self.num_temperatures)[:, None] - 1, 1)[:, 0]
        return float(last[on_host(self.num_possible) > 0].mean())

    def _steps(self, values: Any) -> np.ndarray:
        return on_host(values)[:, : on_host(self.num_temperatures).max()]
