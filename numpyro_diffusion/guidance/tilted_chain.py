r"""The reverse chain with its steps tilted: q(x^{0:T}) = pi(x^T) prod_t q(x^{t-1} | x^t), a proposal for a posterior.

Guidance (:mod:`numpyro_diffusion.guidance.base`) gives q(x^{t-1} | x^t). Samples and density of the chain are exact,
whatever the guidance; that x^0 is a sample of the posterior is not claimed. What makes it one are the weights

    log w(x^{0:T}) = log p(x^{0:T}) + log r(x^0) - log q(x^{0:T}),     E_q[w] = E_p[r(x^0)], the evidence,

for any tilt that gives positive density wherever p r has it. Both chains start from the same pi, which cancels; the
rest is summed from differences step by step and coordinate by coordinate, each a difference of quadratics in the
standardised noise, so that single precision is enough for any T.

References: Sohl-Dickstein et al. 2015, Section 2.5, Eq. 16-22.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from .._checks import check_trailing_shape, expected, is_concrete
from .._typing import Array, ArrayLike, PyTree
from ..chains import ReverseChain
from .base import Guidance, as_numbers, as_pytree_function, check_normal, checked_log_r, guide_step, over_batch
from .correlated_step import CorrelatedStep
from .gaussian_factor import ClampedNormal

__all__ = ["TiltedChain", "log_ratio"]


class TiltedChain(ReverseChain):
    """Distribution of the path x^{stop:T} when every reverse step is guided (approximate as a posterior: weight it).

    Shapes are those of ``chain``. As a sample site it is a proposal or an SVI guide for a :class:`ReverseChain` site.

    Args:
        chain: the unguided chain.
        tilt: the guidance: ``PaperTilt``, ``GaussianFactor``, ``ReconstructionGuidance``, ``MomentMatching``,
            ``LearnedGuidance``, or a function ``(chain, x_t, t) -> step`` of stable identity.

    Raises:
        TypeError: if ``chain`` is no unguided ReverseChain, or ``tilt`` cannot be called.
        ValueError: when used, if the guided step has not the state's shape.

    >>> from jax import random
    >>> from numpyro_diffusion import GaussianKernel, Transition, schedules
    >>> from numpyro_diffusion.guidance import GaussianFactor
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper")
    >>> standard_normal = ReverseChain(kernel, Transition(lambda params, x_t, t, context: 0 * x_t, None, ()))
    >>> y, factor = 3.0, GaussianFactor(value=3.0, scale=1.0, noised=True)  # y ~ N(x, 1), p(y) = N(3; 0, 2)
    >>> chain = TiltedChain(standard_normal, factor)
    >>> weight = chain.log_weight(chain.sample(random.key(0), (2000,)), lambda x: dist.Normal(x, 1.0).log_prob(y))
    >>> evidence, exact = jnp.exp(weight).mean(), jnp.exp(dist.Normal(0, 2**0.5).log_prob(y))
    >>> bool(abs(evidence / exact - 1) < 0.1)
    True

    References: Sohl-Dickstein et al. 2015, Section 2.5.
    """

    pytree_data_fields: tuple[str, ...] = ("tilt",)

    def __init__(self, chain: ReverseChain, tilt: Guidance, *, validate_args: bool | None = None) -> None:
        if not isinstance(chain, ReverseChain) or isinstance(chain, TiltedChain):
            raise TypeError(
                expected(
                    "an unguided ReverseChain",
                    repr(chain) if not isinstance(chain, TiltedChain) else "a TiltedChain",
                    "Two tilts do not combine: write one function that does both.",
                )
            )
        self.tilt = as_pytree_function("tilt(chain, x_t, t)", tilt)
        super().__init__(
            chain.kernel, chain.transition, context=chain.context, stop=chain.stop, validate_args=validate_args
        )
        self._batch_shape = chain.batch_shape

    @property
    def chain(self) -> ReverseChain:
        """The unguided chain."""
        chain = ReverseChain(self.kernel, self.transition, context=self.context, stop=self.stop)
        return chain.expand(self.batch_shape)

    def respaced(self, num_steps: int | None = None, *, levels: Sequence[int] | None = None) -> "ReverseChain":
        """Refused: guidance may count the steps. Respace the chain, and guide that.

        Raises:
            TypeError: always.
        """
        cure = "TiltedChain(chain.respaced(num_steps), tilt), with a tilt made for that chain."
        raise TypeError(expected("an unguided ReverseChain to respace", "a TiltedChain", cure))

    def log_weight(self, path: ArrayLike, log_r: Callable[[Array], ArrayLike] | None = None) -> Array:
        """The importance weight log p(path) + log r(x^0) - log q(path) of trajectories drawn from this chain.

        A coordinate of x^0 that the tilt fixes (``GaussianFactor`` with scale 0) is taken as observed exactly: it
        enters by p's density at its value, so that the evidence includes it, and ``log_r`` is the factor of what else
        was seen.

        Args:
            path: shape (batch...,) + event_shape.
            log_r: function of one x^0, shape (event...), to a number in nats; None for 0. It need not be the tilt's.

        Returns:
            Shape (batch...), nats.

        Raises:
            ValueError: for a path of another shape; for ``log_r`` and ``stop`` > 0, where the path has no x^0; or if
                the tilt fixes coordinates of a state before x^0, where p r has no mass (traced: the weight is -inf).
        """
        if log_r is not None and self.stop:
            raise ValueError(expected("a chain down to x^0 for log_r", f"stop={self.stop}", "Build it with stop=0."))
        value_batch = check_trailing_shape("path", path, self.event_shape, "Batch dimensions go to the left.")
        batch_shape = jnp.broadcast_shapes(value_batch, self.batch_shape)
        states, t = self.time_first(jnp.broadcast_to(path, batch_shape + self.event_shape), batch_shape)
        proposed = self.reverse(states[1:], t)
        ratio = log_ratio(self.chain.reverse(states[1:], t), proposed, states[:-1])
        if isinstance(proposed, ClampedNormal):
            ratio = jnp.where(_clamped_early(proposed, self.beside_state(t)), -jnp.inf, ratio)
        log_weight = ratio.sum((0, *range(len(batch_shape) + 1, ratio.ndim)))
        if log_r is None:
            return log_weight
        x_0 = as_numbers(self.kernel, states[0])
        log_r = checked_log_r(log_r, self.state_shape, x_0.dtype)
        return log_weight + over_batch(log_r, len(batch_shape))(x_0)

    def weighted_from_noise(self, noise: ArrayLike, *, checkpoint: bool = False) -> tuple[Array, Array]:
        """The draw of x^stop that standard normal noises stand for, as ``from_noise``, and the weight of its path.

        The weight is that of ``log_weight`` without ``log_r``, from the noises themselves: nothing is subtracted that
        a path's states have lost.

        Args:
            noise: shape (batch...,) + event_shape.
            checkpoint: for gradients, compute each step again on the way back.

        Returns:
            x^stop, shape (batch..., event...), and log p(path) - log q(path), shape (batch...), nats.

        Raises:
            TypeError: for a discrete kernel, or a step that is not Normal.
            ValueError: for a tilt that fixes coordinates: no noise moves them.
        """
        batch = check_trailing_shape("noise", noise, self.event_shape, "There is one for each coordinate and time.")
        noise = jnp.moveaxis(jnp.asarray(noise), len(batch), 0)
        top = self.kernel.from_noise(self.kernel.stationary(noise[-1].shape), noise[-1])

        def step(carry: tuple[Array, Array], t_and_noise: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            (x_t, log_weight), (t, eps) = carry, t_and_noise
            target, proposal = self.chain.reverse(x_t, t), self.reverse(x_t, t)
            if isinstance(proposal, ClampedNormal):
                cure = "Give it noise: GaussianFactor(..., scale > 0, noised=True)."
                raise ValueError(expected("a tilt that fixes no coordinate", type(self.tilt).__name__, cure))
            ratio = self.sum_state(_log_ratio_of_noise(target, proposal, eps))
            return (self.step_from_noise(proposal, eps), log_weight + ratio), None

        start = top, jnp.zeros(top.shape[: top.ndim - self.state_dim], top.dtype)
        body: Any = jax.checkpoint(step, prevent_cse=False) if checkpoint else step
        return jax.lax.scan(body, start, (self._steps(), noise[:-1]), reverse=True)[0]

    def reverse(self, x_t: Array, t: ArrayLike, output: PyTree = None) -> Any:
        """q(x^{t-1} | x^t), of the guidance; ``output`` is not used."""
        return guide_step(self.tilt, self.chain, x_t, t).step

    def step_from_noise(self, step: Any, noise: Array) -> Array:
        return step.from_noise(noise) if isinstance(step, CorrelatedStep) else super().step_from_noise(step, noise)


def log_ratio(target: Any, proposal: Any, value: ArrayLike) -> Array:
    """The log density ratio log p(value) - log q(value) per coordinate, accurate when the two are close.

    For Normals it is a difference of quadratics in the standardised noises, in which nothing large cancels: with
    z = (x - m_q) / s_q and u = (x - m_p) / s_p it is log(s_q / s_p) - (u - z)(u + z) / 2. Where q is clamped at its
    value (:class:`.ClampedNormal`) it is log p(value).

    Args:
        target: p, elementwise.
        proposal: q, elementwise, of the same shape; or with correlated coordinates, whose sum over a state alone is a
            ratio of densities.
        value: of that shape.

    Returns:
        Nats.
    """
    if isinstance(proposal, CorrelatedStep):
        return _log_ratio_of_noise(target, proposal, proposal.noise_of(value))
    if not (isinstance(target, dist.Normal) and isinstance(proposal, dist.Normal)):
        return jnp.asarray(target.log_prob(value)) - proposal.log_prob(value)
    is_free = proposal.scale > 0
    free = dist.Normal(proposal.loc, jnp.where(is_free, proposal.scale, target.scale), validate_args=False)
    ratio = _log_ratio_of_noise(target, free, (value - free.loc) / free.scale)
    return jnp.where(is_free, ratio, target.log_prob(value) - proposal.log_prob(value))


def _log_ratio_of_noise(target: dist.Normal, proposal: Any, noise: Array) -> Array:
    """Log p(x) - log q(x) of two Normals at q's x = loc + scale noise, or of one with correlated coordinates."""
    if isinstance(proposal, CorrelatedStep):
        return proposal.log_ratio_of_noise(target, noise)
    check_normal(proposal, "noises of a guided step")
    stretch = proposal.scale / target.scale
    change = noise * (stretch - 1) + (proposal.loc - target.loc) / target.scale
    return jnp.log(stretch) - 0.5 * change * (2 * noise + change)


def _clamped_early(proposed: ClampedNormal, t: Array) -> Array:
    """Where a state before x^0 is fixed.

    Raises:
        ValueError: if it is known to be anywhere.
    """
    early = (proposed.scale == 0) & (t > 1)
    if is_concrete(early) and bool(jnp.any(early)):
        raise ValueError(
            expected(
                "a tilt that fixes coordinates of x^0 alone",
                "fixed coordinates at earlier states too",
                "No trajectory of the model has them: use GaussianFactor(..., noised=True) for weights.",
            )
        )
    return early
