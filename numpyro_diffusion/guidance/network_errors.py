r"""Guidance by Normal observations, with the covariance of the network's own errors.

    C_t = E (x^0 - x0hat(x^t)) (x^0 - x0hat(x^t))^T        over draws x^0 of the prior, x^t of the forward chain

is Cov[x^0 | x^t] in the mean over x^t. It is computed once for a prior and serves every likelihood; its correlations
are what a diagonal variance leaves out. For y = A x^0 + noise the step is that of x^0 given x^t ~ N(x0hat, C_t):

    mean      m + c_t C_t A^T (R + A C_t A^T)^{-1} (y - A x0hat)
    variance  lower_t + (s_t^2 - lower_t) f_t,      f_t = 1 - diag(C_t A^T (R + A C_t A^T)^{-1} A C_t) / diag C_t

with c_t and lower_t the bridge's, m and s_t^2 the step's own. It needs no derivative of the network: a step costs what
p's own does. *Approximate*: biased by itself, a chart of noises (:class:`~.DiffusionReparam`) and a proposal.

Assumed: a Gaussian kernel. Not captured: that the errors differ from one x^t to another.
"""

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from .._checks import expected
from .._numerics import expand_right
from .._pytree import register_pytree
from .._typing import Array, ArrayLike
from ..chains import ReverseChain
from .base import check_normal, check_real
from .covariances import ErrorCovariance
from .linear_observation import LinearObservation
from .seen_coordinates import spectrum_of
from .spectrum import conditioned_step
from .units import affine_rows

__all__ = ["CovarianceGuidance"]


@register_pytree(data=("matrix", "value", "noise_scale", "mask", "errors", "spectrum"), static=())
class CovarianceGuidance(LinearObservation):
    """Approximate: guidance by y = A x^0 + noise as if x^0 given x^t were N(x0hat, C_t). Biased in general.

    Compare :class:`MomentMatching`, whose covariance is that of one x^t and takes passes back through the network.

    Args:
        matrix: A, shape (m, event...).
        value: y, shape (m,), or (batch..., m).
        noise_scale: standard deviations of the noise, > 0, shape () or (m,).
        errors: C_t, from :func:`error_covariance`.
        mask: booleans of shape (m,), False for a number that was not seen.
        inflation: a factor of C_t: guidance that trusts x^t less.

    Raises:
        ValueError: for shapes that do not agree, values that are not finite, or an inflation that is not positive.
        TypeError: when used with a kernel that is not Gaussian.

    >>> import jax
    >>> from numpyro_diffusion import GaussianKernel, Transition, schedules
    >>> from numpyro_diffusion.guidance import error_covariance
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper", parameterization="x0")
    >>> standard_normal = Transition(lambda params, x_t, t, context: x_t, None, event_shape=(2,))
    >>> chain = ReverseChain(kernel, standard_normal)
    >>> errors = error_covariance(jax.random.key(0), chain, num_draws=100)
    >>> guided = CovarianceGuidance(jnp.ones((1, 2)), jnp.ones(1), 0.1, errors=errors)
    >>> guided(chain, jnp.zeros((3, 2)), 20).batch_shape
    (3, 2)
    """

    def __init__(
        self,
        matrix: ArrayLike,
        value: ArrayLike,
        noise_scale: ArrayLike,
        *,
        errors: ErrorCovariance,
        mask: ArrayLike | None = None,
        inflation: float = 1.0,
    ) -> None:
        super().__init__(matrix, value, noise_scale, mask)
        if not inflation > 0:
            raise ValueError(expected("inflation > 0", inflation, "1 is the covariance as it was found."))
        if mask is not None and jnp.ndim(mask) != 1:
            raise ValueError(
                expected("a mask of shape (m,)", f"shape {jnp.shape(mask)}", "It is that of all elements.")
            )
        rows = self.rows(errors.diagonal.dtype)
        if rows.shape[1] != errors.diagonal.shape[1]:
            got = f"rows of {rows.shape[1]} numbers and errors of {errors.diagonal.shape[1]}"
            raise ValueError(expected("a matrix whose rows fit the errors", got, "Both are of one x."))
        self.errors = errors
        scale, noise = self._units(rows.dtype)
        seen = jnp.where(self.seen(rows.shape[:1])[:, None], rows, 0.0) / expand_right(scale, 1)
        self.spectrum = spectrum_of(errors.inflated(inflation), seen[:, None, :], is_fixed=True, noise=noise)

    def in_states(self, transforms: object) -> "CovarianceGuidance":
        """The same observation, given in the units of x = T(s), as one of the chain's states s.

        Args:
            transforms: T, as ``prior.transforms``: affine, also a whitening.

        Raises:
            ValueError: for a transform that is not affine: y is then not linear in s.
        """
        rows, offset = affine_rows(transforms, self.matrix)
        return CovarianceGuidance(rows, self.value - offset, self.noise_scale, errors=self.errors, mask=self.mask)

    def __call__(self, chain: ReverseChain, x_t: Array, t: ArrayLike) -> dist.Distribution:
        check_real(chain.kernel, "CovarianceGuidance", "Use PaperTilt.")
        output = chain.output(x_t, t)
        step = check_normal(chain.reverse(x_t, t, output), "CovarianceGuidance")
        residual = self.residual(chain.denoised(x_t, t, output), chain)
        scale, noise = self._units(residual.dtype)
        shift, share = self.spectrum.at(t, residual / scale, jnp.ones((), residual.dtype), noise)
        share = share.reshape(share.shape[:-1] + chain.state_shape)
        return conditioned_step(chain, step, t, shift.reshape(x_t.shape), share)

    def _units(self, dtype: Any) -> tuple[Array, Array]:
        """What the numbers are divided by, and the variance of the noise that is left."""
        scale = jnp.asarray(self.noise_scale, dtype)
        one = jnp.ones((), dtype)
        return (scale, one) if scale.ndim else (one, scale**2)
