r"""Twisted sequential Monte Carlo over the levels of a diffusion: posterior draws, and the evidence.

Particles start at noise and walk the reverse chain down to data, guided by a twist and corrected by weights
(:mod:`numpyro_diffusion.particles`), in several independent islands. Nothing is learned and nothing tuned. Draws and
evidence converge to those of the T-step model's posterior as particles grow, at every separation of modes. What can go
wrong shows in two numbers that are always reported: the smallest effective size over levels, and the spread of the
islands' evidence.

Other latent sites are conditioned on by the user (``numpyro.handlers.condition``), or drawn from their prior, one draw
for each island, and weighted by the island's evidence. With a prior much wider than the posterior few islands carry
all the weight; DiffusionGibbs does better there.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

from .._checks import expected, is_concrete
from .._typing import Array, PyTree
from ..guidance.base import guide_step
from ..guidance.gaussian_factor import ClampedNormal
from ..model.split import Programs, SplitModel
from ..particles.filter import Cloud, run_filter
from ..particles.steps import TiltedStep
from ..particles.target import Calibration, States, Target, as_rows, calibrate, draw_prior
from ..particles.twists.auto import Auto
from ..particles.twists.base import Twist
from ..particles.twists.named import as_twist
from .engine import IslandEngine
from .result import SMCResult

__all__ = ["TwistedSMC", "target_of"]

_Prior: TypeAlias = tuple[States, dict[str, Calibration]]  # draws, and how far the network is believed
_MAX_ROWS = 2**16  # particles that walk at once
_MIXTURE_DRAWS = 64  # of x, over which the prior of other sites that depend on x is averaged


class TwistedSMC(IslandEngine[SMCResult]):
    """Posterior draws and evidence of a model with diffusion sites.

    ``run`` is a function of arrays: ``jax.jit(smc.run)`` and ``jax.vmap(smc.run)`` over data sets of one shape work,
    and return :class:`SMCResult`; call its ``check()`` outside. Called plainly, ``run`` checks, warns, and keeps the
    result: its attributes and methods are then the engine's, too.

    Args:
        model: a NumPyro model with one or more latent ``Diffusion`` sites.
        num_particles: N in each island, >= 2.
        num_islands: K independent runs; two or more give standard errors.
        twist: ``"tempered"`` (any differentiable likelihood), ``"gaussian"`` (Normal observations, locally linear in
            x: fewest particles), ``"auto"`` (whichever of the two fits the model; the summary says which), ``"none"``
            (bootstrap), a :class:`Twist`, or a function ``(x_t, t, x_0, log_r) -> log psi_t`` of one particle.
        proposal: None, or site name -> guidance ``(chain, x_t, t) -> step`` that replaces the twist's move, for example
            ``AutoDiffusionGuide.proposals(params)``.
        elements: whether a plate of diffusion variables is filtered element by element: ``"auto"`` (where the
            likelihood is proved not to couple them), ``"independent"`` or ``"joint"`` (told). What was done is in
            ``elements_reason`` and in the summary.
        keep_paths: keep x^{0:T} of every particle, in memory that grows with T; draws gain ``<site>_path``.
        progress_bar: show one while islands run in batches.
        mesh: divide the islands among the devices of a mesh, which may belong to several processes.

    Raises:
        TypeError: for a model that cannot be called.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro_diffusion import Diffusion, GaussianKernel, analytic, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), parameterization="x0", variance="denoiser")
    >>> prior = Diffusion(kernel, analytic.gaussian_mixture(kernel, jnp.array([[0.0]]), 1.0, jnp.ones(1)))
    >>> def model(y=None):
    ...     x = numpyro.sample("x", prior)
    ...     numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)
    >>> smc = TwistedSMC(model, num_particles=500, num_islands=4, twist="gaussian", progress_bar=False)
    >>> result = smc.run(jax.random.key(0), y=jnp.array([3.0]))
    >>> abs(result.log_evidence - (-3.515)) < 0.05, smc.get_samples(num_samples=1000)["x"].shape
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
        super().__init__(model, num_particles, num_islands, progress_bar, mesh)
        self.twist = as_twist(twist)
        self.proposal = dict(proposal or {})
        self.elements = elements
        self.keep_paths = keep_paths
        self._programs = Programs(model, elements)
        self._islands = jax.jit(self._run_islands)
        self._prior = jax.jit(self._draw_prior)

    def run(self, rng_key: jax.Array, *args: Any, **kwargs: Any) -> SMCResult:
        """Filter the model at these arguments.

        Args:
            rng_key: JAX random key.
            *args: the model's.
            **kwargs: the model's.

        Raises:
            ValueError: for a model that cannot be filtered; or if all weights were zero, with the level.
        """
        self._result = None  # what an earlier run found is no answer to this one
        split = self._programs.bind(args, kwargs)
        unknown = sorted(set(self.proposal) - {site.name for site in split.sites})
        if unknown:
            raise ValueError(
                expected(
                    f"proposals for sites among {[site.name for site in split.sites]}", unknown, "Name diffusion sites."
                )
            )
        key_prior, key_islands, key_draws = jax.random.split(rng_key, 3)
        keys = jax.random.split(key_islands, self.num_islands)
        prior = self._prior(key_prior, split)
        width = max(1, _MAX_ROWS // self.num_particles)
        if not is_concrete((rng_key, split)):
            island = lambda key: self._run_island(key, split, prior)  # noqa: E731
            cloud, others, shared = jax.lax.map(island, keys, batch_size=min(width, self.num_islands))
            return SMCResult(split, cloud, others, shared, key_draws)
        cloud, others, shared = self._run_in_batches(self._islands, keys, width, split, prior)
        result = SMCResult(split, cloud, others, shared, key_draws)
        result.check()
        self._result = result
        return result

    @property
    def arguments(self) -> tuple[tuple, dict[str, Any]]:
        return self.result.split.arguments

    @property
    def log_evidence_by_element(self) -> np.ndarray:
        """Of the result: shape E."""
        return self.result.log_evidence_by_element

    @property
    def elements_reason(self) -> str:
        """Of the result: how a plate was filtered, and why."""
        return self.result.elements_reason

    @property
    def chosen_twist(self) -> Twist:
        """By which the particles of the result looked ahead: what ``"auto"`` chose, else ``twist`` itself."""
        return self._of_target(lambda target: self.twist.chosen(target) if isinstance(self.twist, Auto) else self.twist)

    @property
    def num_network_calls(self) -> float:
        """For one particle, in forward passes; a pass back counts as two."""
        return self.result.split.num_steps * (1.0 + 2.0 * self._of_target(self.twist.num_passes_back))

    def print_summary(self) -> None:
        """Print the evidence, effective sizes, the posterior's moments and the twist."""
        super().print_summary()
        print(f"twist {self.chosen_twist}")

    def _of_target(self, ask: Callable[[Target], Any]) -> Any:
        """What is asked of the result's target, by kinds and shapes alone."""
        split, found = self.result.split, []

        def look() -> None:
            found.append(ask(target_of(split, split.draw_others(jax.random.key(0))[0])))

        jax.eval_shape(look)
        return found[0]

    # Compiled parts -------------------------------------------------------------------------------

    def _draw_prior(self, key: jax.Array, split: SplitModel) -> _Prior:
        key_others, key_draws = jax.random.split(key)
        others, _ = split.draw_others(key_others)
        least = _MIXTURE_DRAWS if split.others_depend_on_x() else 0
        target = target_of(split, others)
        draws = draw_prior(target, key_draws, max(self.twist.num_prior_draws, least))
        believed = self.twist.num_prior_draws > 0  # else nothing is asked of the network
        return draws, calibrate(target, draws, jax.random.fold_in(key_draws, 1)) if believed else {}

    def _run_islands(self, keys: jax.Array, split: SplitModel, prior: _Prior) -> tuple[Cloud, dict, Array]:
        def share(keys: jax.Array, split: SplitModel, prior: _Prior) -> tuple[Cloud, dict, Array]:
            return jax.vmap(lambda key: self._run_island(key, split, prior))(keys)

        return self._place.divide(share)(keys, split, prior)

    def _run_island(self, key: jax.Array, split: SplitModel, prior: _Prior) -> tuple[Cloud, dict, Array]:
        prior_draws, calibration = prior
        key_others, key_filter = jax.random.split(key)
        others, log_density = split.draw_others(key_others, prior_draws)
        target = target_of(split, others, calibration)
        cloud = run_filter(
            target,
            _Proposed(self.twist, self.proposal) if self.proposal else self.twist,
            self.twist.prepare(target, prior_draws),
            key_filter,
            self.num_particles,
            keep_paths=self.keep_paths,
        )
        return cloud, others, split.shared_factor(others) - log_density


def target_of(
    split: SplitModel, others: Mapping[str, Array], calibration: Mapping[str, Calibration] | None = None
) -> Target:
    """What particles walk through, at values of the model's other latent sites."""
    return Target(
        chains=split.chains(others),
        shapes={site.name: site.shape for site in split.sites},
        element_shape=split.element_shape,
        log_likelihood=lambda x: split.log_factor(x, others).elements,
        observe=lambda x: split.observation(x, others),
        calibration=dict(calibration or {}),
        errors=split.errors(others),
    )


class _Proposed:
    """A twist whose moves are replaced by guidance, for some sites."""

    def __init__(self, twist: Twist, proposal: Mapping[str, Any]) -> None:
        self.twist = twist
        self.proposal = proposal

    def look(self, target: Target, constants: PyTree, x: States, step: Array) -> tuple[Array, TiltedStep]:
        log_psi, move = self.twist.look(target, constants, x, step)
        if not isinstance(move, TiltedStep):
            move = TiltedStep(move.steps, {})
        tilted = dict(move.tilted)
        for name, guidance in self.proposal.items():
            guided = guide_step(guidance, target.chains[name], x[name], target.level(name, step)).step
            if isinstance(guided, ClampedNormal):
                raise ValueError(
                    expected(
                        f"a proposal with a density in every coordinate of site {name!r}",
                        "one that can fix coordinates",
                        "Observe them in the model with a small noise, or use TiltedChain.log_weight.",
                    )
                )
            tilted[name] = as_rows(guided, x[name].shape)
        return log_psi, TiltedStep(move.steps, tilted)
