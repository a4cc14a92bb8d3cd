r"""Guidance by Normal observations, with the moments of x^0 given x^t.

    psi_t = N(y; A x0hat, R + A C A^T),     C = Cov[x^0 | x^t]

is p(y | x^t) when x^0 given x^t is Gaussian with covariance C; compare :mod:`.reconstruction`, for which C is 0. It is
*approximate*: biased in general, a proposal and a baseline.

References: Song et al. 2023 (PiGDM); Rozet et al. 2024 (MMPS).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from .._checks import check_choice
from .._numerics import expand_right
from .._pytree import register_pytree
from .._small_matrices import is_covariance, normal_log_density, solve, symmetric
from .._typing import Array, ArrayLike
from ..chains import ReverseChain
from .base import Guided, check_normal
from .linear_observation import LinearObservation
from .reconstruction import reconstruct
from .units import affine_rows

__all__ = ["Covariance", "MomentMatching"]

Covariance = Literal["scale", "jacobian"]


@register_pytree(data=("matrix", "value", "noise_scale", "mask"), static=("covariance",))
class MomentMatching(LinearObservation):
    """Approximate: guidance by N(y; A x0hat, noise_scale^2 I + A C A^T), for y = A x^0 + noise. Biased in general.

    C stands for Cov[x^0 | x^t]:

    - ``"scale"``: r_t^2 I, of Gaussian data with the kernel's ``data_scale`` (PiGDM);
    - ``"jacobian"``: (n_t / a_t) J, J the Jacobian of x0hat, the exact covariance when the network is
      E[x^0 | x^t] (MMPS). It is taken whole from one vector-Jacobian product for each row of A, so A should have few
      rows. Where a network's Jacobian is no covariance (far from symmetric and positive, as at the noisiest levels of
      many), ``"scale"`` is used.

    The step's mean is E[x^{t-1} | x^t, y] exactly when x^0 given x^t is Gaussian with covariance C; the step's variance
    stays p's, too wide along what was observed, and on a mixture the mean is wrong too. Where a_t = 0 nothing is
    known of x^0 and the step is left alone.

    Args:
        matrix: A, shape (m, event...).
        value: y, shape (m,), or (batch..., m).
        noise_scale: standard deviations of the noise, > 0, shape () or (m,).
        covariance: ``"scale"`` or ``"jacobian"``.
        mask: booleans that broadcast to the value's shape, False for a number that was not seen; its value may be
            anything, NaN too. The guidance is that of the other numbers alone. None: all were seen.

    Raises:
        ValueError: for an unknown covariance, shapes that do not agree, a mask of another shape or dtype, values that
            are not finite where they were seen, or a noise_scale that is not positive.
        TypeError: when used with a kernel that is not Gaussian.

    >>> from numpyro_diffusion import GaussianKernel, Transition, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper", parameterization="x0")
    >>> standard_normal = Transition(lambda params, x_t, t, context: x_t, None, event_shape=(2,))
    >>> guided = MomentMatching(jnp.ones((1, 2)), jnp.ones(1), 0.1)
    >>> guided(ReverseChain(kernel, standard_normal), jnp.zeros((3, 2)), 20).step.batch_shape
    (3, 2)

    References: Song et al. 2023, Eq. 7-8; Rozet et al. 2024, Section 4.
    """

    covariance: Covariance

    def __init__(
        self,
        matrix: ArrayLike,
        value: ArrayLike,
        noise_scale: ArrayLike,
        *,
        covariance: Covariance = "jacobian",
        mask: ArrayLike | None = None,
    ) -> None:
        check_choice("covariance", covariance, Covariance)
        super().__init__(matrix, value, noise_scale, mask)
        self.covariance = covariance

    def in_states(self, transforms: Any) -> "MomentMatching":
        """The same observation, given in the units of x = T(s), as one of the chain's states s.

        Args:
            transforms: T, as ``prior.transforms``: affine, also a whitening.

        Raises:
            ValueError: for a transform that is not affine: y is then not linear in s.
        """
        rows, offset = affine_rows(transforms, self.matrix)
        options: Any = {"covariance": self.covariance, "mask": self.mask}
        return MomentMatching(rows, self.value - offset, self.noise_scale, **options)

    def __call__(self, chain: ReverseChain, x_t: Array, t: ArrayLike) -> Guided:
        x_0, pull, step = reconstruct("MomentMatching", chain, x_t, t)
        check_normal(step, "MomentMatching")
        matrix = jnp.asarray(self.matrix, x_0.dtype)
        residual = self.residual(x_0, chain)
        seen = self.seen(residual.shape)
        gain = chain.kernel.denoising_gain(t, x_0)
        rows, scales = self.rows(x_0.dtype), self.scales(x_0.dtype)
        noise = jnp.diag(scales**2)  # a number that was not seen keeps its own, and nothing else
        both = seen[..., :, None] & seen[..., None, :]
        power = jnp.asarray(getattr(chain.kernel, "data_scale", 1.0) ** 2, x_0.dtype)
        spread = expand_right(chain.kernel.denoised_variance(t, power), 2) * (rows @ rows.T)
        spread = jnp.where(both, jnp.broadcast_to(spread, both.shape), 0)
        if self.covariance == "scale":
            (slope,) = pull((solve(noise + spread, residual) @ rows).reshape(x_0.shape))
        else:
            pulled = jax.vmap(lambda row: pull(jnp.broadcast_to(row, x_0.shape))[0])(matrix)
            pulled = jnp.moveaxis(pulled, 0, residual.ndim - 1).reshape(residual.shape + rows.shape[1:])  # A J
            found = jnp.where(both, symmetric(expand_right(gain, 2) * (pulled @ rows.T)), 0)
            spread = jnp.where(is_covariance(found, noise)[..., None, None], found, spread)
            weight = solve(noise + spread, residual, least=scales**2)
            slope = (weight[..., None, :] @ pulled).reshape(x_0.shape)
        unseen = jnp.where(seen, 0, 0.5 * jnp.log(2 * jnp.pi * scales**2)).sum(-1)
        log_psi = normal_log_density(residual, noise + spread) + unseen
        bridge_gain, _ = chain.kernel.bridge_terms(chain.beside_state(t), x_0)
        moved = step.loc + bridge_gain * chain.beside_state(gain) * slope
        return Guided(dist.Normal(moved, step.scale, validate_args=False), log_psi)
