r"""Twisted sequential Monte Carlo over the levels of a diffusion: posterior draws, and the evidence.

Particles start at noise and walk the reverse chain down to data, guided by a twist and corrected by weights
(:mod:`numpyro_diffusion.particles`), in several independent islands. Nothing is learned and nothing
tuned; the answer is exact for the T-step model as particles grow, at every separation of modes. What can go
wrong shows in two numbers that are always reported: the smallest effective size over levels, and the spread
of the islands' evidence.

Other latent sites are conditioned on by the user (``numpyro.handlers.condition``), or drawn from their prior, one draw
for each island, and weighted by the island's evidence. With a prior much wider than the posterior few islands carry
all the weight; DiffusionGibbs does better there.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from .._checks import check_integer_at_least, expected
from .._placement import Placement
from .._typing import Array, PyTree
from .._weights import host_generator, log_mean_and_error, log_normalised
from ..guidance.tilts import ClampedNormal
from ..model import arguments as _arguments
from ..model.split import SplitModel
from ..particles.filter import Cloud, run_filter
from ..particles.ordering import principal_directions
from ..particles.pooling import draw_particles
from ..particles.steps import TiltedStep
from ..particles.target import Calibration, States, Target, calibrate, draw_prior
from ..particles.twists.named import as_twist
from ..particles.twists.tempered import Twist
from .islands import Islands, check_weights, report, table, warn

__all__ = ["TwistedSMC"]

_Prior: TypeAlias = tuple[States, dict[str, Calibration]]  # draws, and how far the network is believed
_MAX_ROWS = 2**16  # particles that walk at once
_MIXTURE_DRAWS = 64  # of x, over which the law of other sites that depend on x is averaged


class TwistedSMC:
    """Posterior draws and evidence of a model with diffusion sites.

    Args:
        model: a NumPyro model with one or more latent ``Diffusion`` sites.
        num_particles: N in each island, >= 2.
        num_islands: K independent runs; two or more give standard errors.
        twist: ``"tempered"`` (any differentiable likelihood), ``"gaussian"`` (Normal observations, locally linear in
            x: fewest particles), ``"none"`` (bootstrap), a :class:`Twist`, or a function
            ``(x_t, t, x_0, log_r) -> log psi_t`` of one particle.
        proposal: None, or site name -> tilt ``(kernel, transition, x_t, t, context) -> law`` that replaces the twist's
            move, for example ``AutoDiffusionGuide.proposals(params)``.
        elements: whether a plate of diffusion variables is filtered element by element: ``"auto"`` (found out),
            ``"independent"`` or ``"joint"`` (told). What was done is in ``elements_reason`` and in the summary.
        keep_paths: keep x^{0:T} of every particle, in memory that grows with T; draws gain ``<site>_path``.
        progress_bar: show one while islands run in batches.
        mesh: divide the islands among the devices of a mesh, which may belong to several processes.

    Attributes (after :meth:`run`):
        log_evidence: log p(y) in nats (of all elements together); with ``condition``-ed sites their prior is in it.
        log_evidence_error: its standard error over islands; NaN for one island.
        log_evidence_by_element: shape E; equal to ``log_evidence`` up to the shared terms when E is ().
        effective_sizes: shape (K, T + 1, E...), by level, before resampling.
        min_ess: the smallest of them, among islands that carry weight.
        num_network_calls: for one particle, in forward passes; a pass back counts as two.

    >>> import numpyro, numpyro.distributions as dist
    >>> from numpyro_diffusion import Diffusion, GaussianKernel, analytic, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), parameterization="x0", variance="denoiser")
    >>> prior = Diffusion(kernel, analytic.gaussian_mixture(kernel, jnp.array([[0.0]]), 1.0, jnp.ones(1)))
    >>> def model(y=None):
    ...     x = numpyro.sample("x", prior)
    ...     numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)
    >>> smc = TwistedSMC(model, num_particles=500, num_islands=4, twist="gaussian", progress_bar=False)
    >>> smc.run(jax.random.key(0), y=jnp.array([3.0]))
    >>> abs(smc.log_evidence - (-3.515)) < 0.05, smc.get_samples(num_samples=1000)["x"].shape
    (True, (1000, 1))

    References: Guarniero, Johansen and Lee 2017; Wu et al. 2023; Cardoso et al. 2024.
    """

    def __init__(
        self,
        model: Callable,
        num_particles: int = 1024,
        num_islands: int = 4,
        twist: Any = "tempered",
        *,
        proposal: Mapping[str, Any] | None = None,
        elements: str = "auto",
        keep_paths: bool = False,
        progress_bar: bool = True,
        mesh: jax.sharding.Mesh | None = None,
    ) -> None:
        self.model = model
        self.num_particles = check_integer_at_least(
            "num_particles", num_particles, 2, "One particle has nothing to be compared with; take hundreds."
        )
        self.num_islands = check_integer_at_least("num_islands", num_islands, 1, "Take 4 or so for standard errors.")
        self.twist = as_twist(twist)
        self.proposal = dict(proposal or {})
        self.elements = elements
        self.keep_paths = keep_paths
        self.progress_bar = progress_bar
        self._place = Placement(mesh)
        self._place.check_divisible("num_islands", num_islands)
        self._islands = jax.jit(self._run_islands, static_argnums=(3, 4))
        self._prior = jax.jit(self._draw_prior, static_argnums=(2, 3))
        self._replay = jax.jit(self._compute_deterministic, static_argnums=(2, 3))
        self._result: Islands | None = None

    def run(self, key: jax.Array, *args: Any, **kwargs: Any) -> None:
        """Filter the model at these arguments.

        Args:
            key: JAX random key.
            *args: the model's.
            **kwargs: the model's.

        Raises:
            ValueError: for a model that cannot be filtered; or if all weights were zero, with the level.
        """
        self._result = None  # what an earlier run found is no answer to this one
        split = SplitModel(self.model, args, kwargs, elements=self.elements)
        unknown = sorted(set(self.proposal) - {site.name for site in split.sites})
        if unknown:
            raise ValueError(
                expected(
                    f"proposals for sites among {[site.name for site in split.sites]}", unknown, "Name diffusion sites."
                )
            )
        elements = "independent" if split.element_shape else "joint"
        arrays, static = _arguments.split(args, kwargs, lambda arrays, static: self._split(arrays, static, elements))
        key_prior, key_islands, key_draws = jax.random.split(key, 3)
        prior = self._prior(key_prior, arrays, static, elements)
        keys = jax.random.split(key_islands, self.num_islands)
        per_device = min(self.num_islands // self._place.num_devices, max(1, _MAX_ROWS // self.num_particles))
        batch = per_device * self._place.num_devices
        arrays_of_all, prior = self._place.replicate((arrays, prior))
        parts = []
        starts = range(0, self.num_islands, batch)
        for start in tqdm(starts, desc="islands", disable=not self.progress_bar or len(starts) == 1):
            # The last batch begins earlier rather than be compiled for another size.
            first = min(start, self.num_islands - batch)
            batch_keys = self._place.replicate(keys[first : first + batch])
            part = self._place.gather(self._islands(batch_keys, arrays_of_all, prior, static, elements))
            parts.append(jax.tree.map(lambda leaf, skip=start - first: leaf[skip:], part))
        cloud, others, shared = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        result = Islands(split, arrays, static, elements, cloud, others, shared, key_draws)
        check_weights(result)
        self._result = result
        self._summarise()

    def get_samples(self, key: jax.Array | None = None, num_samples: int | None = None) -> dict[str, Array]:
        """Equally weighted draws of all latent and deterministic sites.

        Args:
            key: for the resampling; by default derived from the key of the run, always the same draws.
            num_samples: how many; by default as many as there are particles. No more than that is worth having.

        Returns:
            Site name -> (num_samples, site shape...); with ``keep_paths`` also ``<site>_path``,
            (num_samples, T + 1, site shape...).
        """
        result = self._require_result()
        count = self.num_islands * self.num_particles if num_samples is None else num_samples
        count = check_integer_at_least("num_samples", count, 1, "It is the number of draws.")
        key = result.key if key is None else key
        rng = host_generator(key)
        by_element = bool(result.split.element_shape) and not result.islands_differ
        evidence = result.cloud.log_evidence if by_element else result.log_evidence_by_island()
        islands, particles = draw_particles(rng, result.cloud.log_weights, evidence, count)
        samples: dict[str, Any] = {name: _take(x, islands, particles) for name, x in result.cloud.x.items()}
        first_island = islands.reshape(count, -1)[:, 0]
        samples |= {name: value[first_island] for name, value in result.others.items()}
        if result.split.deterministic:
            samples |= self._replay(samples, result.arrays, result.static, result.elements)
        if self.keep_paths:
            samples |= self._paths(islands, particles)
        return {name: jnp.asarray(value) for name, value in samples.items()}

    def get_weighted_samples(self) -> tuple[dict[str, Array], Array]:
        """All particles with their weights.

        Returns:
            Site name -> (K N, site shape...), and normalised log weights, (K N, E...).
        """
        result = self._require_result()
        evidence = result.cloud.log_evidence
        if result.islands_differ or not result.split.element_shape:
            evidence = np.reshape(result.log_evidence_by_island(), (-1,) + (1,) * (evidence.ndim - 1))
        within = log_normalised(result.cloud.log_weights, axis=1)
        log_weights = within + np.expand_dims(log_normalised(evidence), 1)
        flat = lambda x: jnp.asarray(np.reshape(x, (-1, *x.shape[2:])))  # noqa: E731
        values = {name: flat(x) for name, x in result.cloud.x.items()}
        values |= {n: jnp.repeat(jnp.asarray(v), self.num_particles, axis=0) for n, v in result.others.items()}
        return values, flat(log_weights)

    @property
    def elements_reason(self) -> str:
        """How a plate was filtered, and why."""
        split = self._require_result().split
        how = f"element by element, {split.element_shape}" if split.element_shape else "jointly"
        return f"{how}: {split.reason}"

    def print_summary(self) -> None:
        """Print evidence, effective sizes and the posterior's moments."""
        result = self._require_result()
        print(report(result, self.log_evidence, self.log_evidence_error, self.elements_reason))
        print(table(self.get_samples()))

    # Compiled parts -------------------------------------------------------------------------------

    def _split(self, arrays: list, static: _arguments.Static, elements: str) -> SplitModel:
        args, kwargs = _arguments.join(arrays, static)
        return SplitModel(self.model, args, kwargs, elements=elements)

    def _draw_prior(self, key: jax.Array, arrays: list, static: _arguments.Static, elements: str) -> _Prior:
        split = self._split(arrays, static, elements)
        key_others, key_draws = jax.random.split(key)
        others, _ = split.draw_others(key_others)
        least = _MIXTURE_DRAWS if split.others_depend_on_x() else 0
        target = Target(split, others)
        draws = draw_prior(target, key_draws, max(self.twist.num_prior_draws, least))
        believed = self.twist.num_prior_draws > 0  # else nothing is asked of the network
        return draws, calibrate(target, draws, jax.random.fold_in(key_draws, 1)) if believed else {}

    def _run_islands(
        self, keys: jax.Array, arrays: list, prior: _Prior, static: _arguments.Static, elements: str
    ) -> tuple[Cloud, dict[str, Array], Array]:
        def run(keys: jax.Array, arrays: list, prior: _Prior) -> tuple[Cloud, dict[str, Array], Array]:
            return self._run_share(keys, arrays, prior, static, elements)

        return self._place.divide(run)(keys, arrays, prior)

    def _run_share(
        self, keys: jax.Array, arrays: list, prior: _Prior, static: _arguments.Static, elements: str
    ) -> tuple[Cloud, dict[str, Array], Array]:
        split = self._split(arrays, static, elements)
        prior_draws, calibration = prior

        def island(key: jax.Array) -> tuple[Cloud, dict[str, Array], Array]:
            key_others, key_filter = jax.random.split(key)
            others, log_density = split.draw_others(key_others, prior_draws)
            target = Target(split, others, calibration)
            constants = self.twist.prepare(target, prior_draws)
            twist = _Proposed(self.twist, self.proposal) if self.proposal else self.twist
            directions = principal_directions(target, prior_draws) if prior_draws else None
            cloud = run_filter(
                target,
                twist,
                constants,
                key_filter,
                self.num_particles,
                directions=directions,
                keep_paths=self.keep_paths,
            )
            return cloud, others, target.shared_factor() - log_density

        return jax.vmap(island)(keys)

    def _compute_deterministic(
        self, samples: dict[str, Array], arrays: list, static: _arguments.Static, elements: str
    ) -> dict[str, Array]:
        split = self._split(arrays, static, elements)
        return jax.vmap(split.deterministic_values)(samples)

    # What was found -------------------------------------------------------------------------------

    def _require_result(self) -> Islands:
        if self._result is None:
            raise RuntimeError(expected("a finished run", "none", "Call run(key, *model_arguments) first."))
        return self._result

    def _summarise(self) -> None:
        """Evidence and diagnostics; warnings for what must not pass in silence."""
        result = self._require_result()
        by_element, error_by_element = log_mean_and_error(result.cloud.log_evidence)
        if result.islands_differ or not result.split.element_shape:
            total, error = log_mean_and_error(result.log_evidence_by_island())
        else:
            total, error = by_element.sum() + result.shared[0], np.sqrt((error_by_element**2).sum())
        self.log_evidence = float(total)
        self.log_evidence_error = float(error)
        self.log_evidence_by_element = by_element
        self.effective_sizes = result.cloud.effective_sizes
        self.min_ess, _ = result.smallest
        self.num_network_calls = result.split.num_steps * (1.0 + 2.0 * self.twist.num_passes_back(result.split))
        warn(result, float(np.max(error_by_element)))

    def _paths(self, islands: np.ndarray, particles: np.ndarray) -> dict[str, np.ndarray]:
        result = self._require_result()
        paths = {}
        levels: Any = result.cloud.levels
        ancestors: Any = result.cloud.ancestors
        at = particles
        states = {name: [_take(x, islands, at)] for name, x in result.cloud.x.items()}
        for step in range(result.split.num_steps):
            at = _take(ancestors[:, step], islands, at)
            for name in states:
                states[name].append(_take(levels[name][:, step], islands, at))
        for site in result.split.sites:
            paths[f"{site.name}_path"] = np.stack(states[site.name][: site.num_steps + 1], axis=1)
        return paths


class _Proposed:
    """A twist whose moves are replaced by tilts, for some sites."""

    def __init__(self, twist: Twist, proposal: Mapping[str, Any]) -> None:
        self.twist = twist
        self.proposal = proposal

    def look(self, target: Target, constants: PyTree, x: States, step: Array) -> tuple[Array, TiltedStep]:
        log_psi, move = self.twist.look(target, constants, x, step)
        if not isinstance(move, TiltedStep):
            move = TiltedStep(move.laws, {})
        tilted = dict(move.tilted)
        for name, tilt in self.proposal.items():
            chain = target.chains[name]
            context = None if chain.context is None else jnp.asarray(chain.context)
            law = tilt(chain.kernel, chain.transition, x[name], target.level(name, step), context)
            if isinstance(law, ClampedNormal):
                raise ValueError(
                    expected(
                        f"a proposal with a density in every coordinate of site {name!r}",
                        "one that can fix coordinates",
                        "Observe them in the model with a small noise, or use TiltedChain.log_weight.",
                    )
                )
            tilted[name] = jax.tree.map(lambda leaf, like=x[name]: jnp.broadcast_to(leaf, like.shape), law)
        return log_psi, TiltedStep(move.laws, tilted)


def _take(x: np.ndarray, islands: np.ndarray, particles: np.ndarray) -> np.ndarray:
    """X of shape (K, N, E..., rest...) at (draws, E...)."""
    elements = np.indices(islands.shape)[1:]
    return x[(islands, particles, *elements)]
