r"""The exact product of every reverse step with r = N(value; x, scale^2) per coordinate.

From denoising (all coordinates noisy) to inpainting (some known exactly, some not at all). Each step is exact; x^0 is
not a sample of the posterior, for the reason that :mod:`.paper_tilt` gives.

References: Sohl-Dickstein et al. 2015, Section 2.5 and Appendix C.
"""

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from .._checks import check_finite, expected, is_concrete
from .._compat.numpyro import validate_sample
from .._numerics import safe_sqrt
from .._pytree import register_pytree
from .._typing import Array, ArrayLike, Shape
from ..chains import ReverseChain
from .base import Guided, check_normal, check_real
from .units import affine_by_coordinate

__all__ = ["ClampedNormal", "GaussianFactor"]


@register_pytree(data=("value", "scale"), static=("noised", "fixes"))
class GaussianFactor:
    """The exact product of every step with N(value; x, scale^2) per coordinate (approximate as a posterior).

    Each step is exact, p(x^{t-1} | x^t) N(value_{t-1}; x^{t-1}, scale_{t-1}^2) renormalised; x^0 is a sample of a
    proposal or a baseline, not of the posterior: only the last step has the factor that it should. A coordinate with
    scale

    - 0 < scale < inf was observed with noise (denoising);
    - 0 is known (inpainting): the step sets it to ``value``. It is then no random number, and the step's ``log_prob``
      is the density of the *other* coordinates: a known one adds 0 at its value, and -inf elsewhere;
    - inf was not observed: its value may be anything, NaN too.

    ``noised=False`` uses the same factor at every t, as the paper does. With it, known coordinates make the chain
    singular to every target that fixes x^0 alone, so it has no importance weights (``TiltedChain.log_weight``).
    ``noised=True`` moves the observation to the noise level of x^{t-1}: value sqrt(abar_{t-1}) and variance
    abar_{t-1} scale^2 + v_{t-1}, so that only x^0 is ever fixed. That is the posterior's own factor where p(x^0) is
    flat on the scale of the noise, and too strong where the noise is wider than p(x^0).

    Args:
        value: what was observed; broadcasts with (batch..., event...).
        scale: standard deviations of the observation, >= 0; broadcasts like ``value``.
        noised: whether the factor follows the noise level.

    Attributes:
        fixes: whether a coordinate may be known: some scale is 0, or none can be looked at, being traced. Where it is
            False every step is a Normal, which :class:`~numpyro_diffusion.infer.TwistedSMC` takes as a ``proposal``.

    Raises:
        ValueError: for a scale that is negative or NaN, a value that is not finite where it was observed, or, when
            used, shapes that do not broadcast to the state's.
        TypeError: when used with a kernel that is not Gaussian.

    >>> missing = GaussianFactor(value=jnp.array([1.0, jnp.nan]), scale=jnp.array([0.0, jnp.inf]))
    >>> from numpyro_diffusion import GaussianKernel, Transition, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper")
    >>> standard_normal = Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(2,))
    >>> missing(ReverseChain(kernel, standard_normal), jnp.zeros(2), 1).step.loc
    Array([1., 0.], dtype=float32)

    References: Sohl-Dickstein et al. 2015, Section 2.5 and Appendix C (denoising, inpainting).
    """

    value: ArrayLike
    scale: ArrayLike
    noised: bool
    fixes: bool

    def __init__(self, value: ArrayLike, scale: ArrayLike, *, noised: bool = False) -> None:
        if is_concrete(scale) and not np.all(np.asarray(scale) >= 0):
            raise ValueError(
                expected("scale >= 0", scale, "0 is for a coordinate that is known, inf for one that is not observed.")
            )
        if is_concrete((value, scale)):
            check_finite("value where scale < inf", np.where(np.isinf(scale), 0, value))
        self.value = value
        self.scale = scale
        self.noised = noised
        # Below this the variance may round to 0 beside the step's own.
        self.fixes = not (is_concrete(scale) and np.all(np.asarray(scale) > 1e-15))

    def in_states(self, transforms: Any) -> "GaussianFactor":
        """The same observation, given in the units of x = T(s), as one of the chain's states s.

        Args:
            transforms: T, as ``prior.transforms``: affine in each coordinate.

        Raises:
            ValueError: for a transform that is not affine (its factor is not Gaussian in s), or mixes coordinates.
        """
        shape = jnp.broadcast_shapes(jnp.shape(self.value), jnp.shape(self.scale))
        offset, slope = affine_by_coordinate(transforms, shape)
        return GaussianFactor((self.value - offset) / slope, self.scale / jnp.abs(slope), noised=self.noised)

    def __call__(self, chain: ReverseChain, x_t: Array, t: ArrayLike) -> Guided:
        cure = "For bits, PaperTilt is the exact product when r is one over bits."
        check_real(chain.kernel, "GaussianFactor", cure)
        prior = check_normal(chain.reverse(x_t, t), "GaussianFactor")
        dtype = prior.loc.dtype
        value, scale = jnp.asarray(self.value, dtype), jnp.asarray(self.scale, dtype)
        _check_broadcasts(value.shape, scale.shape, x_t.shape)
        observed = jnp.isfinite(scale)
        value, variance = jnp.where(observed, value, 0), jnp.where(observed, scale, 1) ** 2

        def factor(level: ArrayLike) -> tuple[Array, Array]:
            """Value and variance of the observation, at the noise of a level."""
            if not self.noised:
                return value, variance
            signal, noise = chain.kernel.signal_and_noise(chain.beside_state(level), value)
            return signal * value, signal**2 * variance + noise

        seen, spread = factor(t)
        # A known coordinate has no density beside it; before x^0 it is only known where the factor is noised.
        log_psi = dist.Normal(seen, jnp.where(spread > 0, safe_sqrt(spread), 1), validate_args=False).log_prob(x_t)
        log_psi = chain.sum_state(jnp.where(observed & (spread > 0), log_psi, 0))
        seen, spread = factor(jnp.asarray(t) - 1)
        prior_variance = prior.scale**2
        total = prior_variance + spread
        kept = jnp.where(observed, spread / total, 1)
        loc = kept * prior.loc + jnp.where(observed, prior_variance / total, 0) * seen
        if not self.fixes:
            return Guided(dist.Normal(loc, prior.scale * safe_sqrt(kept), validate_args=False), log_psi)
        # kept = 0 is a known coordinate: exactly the value, or its density would not be recognised as the atom.
        loc = jnp.where(kept == 0, seen, loc)
        return Guided(ClampedNormal(loc, prior.scale * safe_sqrt(kept), validate_args=False), log_psi)


class ClampedNormal(dist.Normal):
    """Normal with scale >= 0: where the scale is 0 a constant, whose log_prob is 0 at ``loc`` and -inf elsewhere.

    That is the density with respect to length for a scale > 0, and to counting at ``loc`` for a scale of 0.

    >>> ClampedNormal(jnp.ones(2), jnp.zeros(2)).log_prob(jnp.array([1.0, 1.1]))
    Array([  0., -inf], dtype=float32)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.nonnegative}

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        is_free = self.scale > 0
        free = dist.Normal(self.loc, jnp.where(is_free, self.scale, 1), validate_args=False).log_prob(value)
        return jnp.where(is_free, free, jnp.where(value == self.loc, 0, -jnp.inf))


def _check_broadcasts(value: Shape, scale: Shape, wanted: Shape) -> None:
    try:
        fits = jnp.broadcast_shapes(value, scale, wanted) == wanted
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            expected(
                f"value and scale to broadcast to the state's shape {wanted}",
                f"shapes {value} and {scale}",
                "They have the shape of one x, or of a batch of them: then expand the chain to that batch.",
            )
        )
