r"""Reverse steps guided by the likelihood of the network's reconstruction: the guidance family.

Let x0hat(x^t) be the network's estimate of E[x^0 | x^t] and J its Jacobian. For r(x^0) = p(y | x^0) the posterior's
reverse step has the mean

    E[x^{t-1} | x^t, y] = c_t E[x^0 | x^t, y] + d_t x^t,    E[x^0 | x^t, y] = x0hat + (v_t / sqrt(abar_t)) g_t,
    g_t = the gradient of log p(y | x^t) with respect to x^t  (Tweedie's formula, exact)

and p(y | x^t), an integral over x^0 given x^t, is unknown. The family differs in what stands for it:

    ReconstructionGuidance   r(x0hat)                                       any r
    MomentMatching           N(y; A x0hat, noise_scale^2 I + A C A^T)       linear Gaussian y = A x^0 + noise

The law of the step keeps p's variance, which the observation should shrink. All are *approximate*: biased, however many
steps, except for what the classes say. They are proposals for weights and resampling, and baselines.
Assumed: a Gaussian kernel and a differentiable network. Cost: one network call and its vector-Jacobian product.

References: Chung et al. 2023 (DPS); Song et al. 2023 (PiGDM); Rozet et al. 2024 (MMPS); Ho et al. 2022
(reconstruction guidance).
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from .._checks import check_finite, expected, is_concrete
from .._numerics import expand_right
from .._pytree import register_pytree
from .._small_matrices import cholesky, solve
from .._typing import Array, ArrayLike
from ..kernels import GaussianKernel, Kernel
from ..transition import Transition, network_output
from .tilts import as_pytree_function, check_gaussian, checked_log_r, over_batch

__all__ = ["MomentMatching", "ReconstructionGuidance"]

Covariance = Literal["scale", "jacobian"]

_CURE = "For bits use PaperTilt, or a Gibbs or particle engine."


@register_pytree(data=("log_r", "strength"), static=())
class ReconstructionGuidance:
    """Approximate: the step's mean moved by strength s_t^2 (the gradient of log r(x0hat(x^t)) by x^t). Biased.

    The guidance of DPS with the reverse variance s_t^2 as its step size: it takes the reconstruction for the truth and
    overstates what y says while x^t is noisy. It is not the posterior even for a Gaussian prior. As an Euler step it
    is unstable where s_t^2 times the curvature of log r(x0hat(x^t)) exceeds 2.

    Args:
        log_r: function of one x^0, shape (event...), to a number in nats. It must have stable identity; data go in as
            leaves of a ``jax.tree_util.Partial``.
        strength: factor of the slope; 0 is the untilted step.

    Raises:
        TypeError: for a ``log_r`` that cannot be called; when used with a kernel that is not Gaussian.
        ValueError: when used, for a ``log_r`` that does not return one real number.

    >>> from numpyro_diffusion import schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper")
    >>> standard_normal = Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(2,))
    >>> guided = ReconstructionGuidance(lambda x: -0.5 * ((x - 1) ** 2).sum())
    >>> guided(kernel, standard_normal, jnp.zeros((3, 2)), 20, None).batch_shape
    (3, 2)

    References: Chung et al. 2023, Algorithm 1; Ho et al. 2022, Eq. 7.
    """

    log_r: Callable[[Array], ArrayLike]
    strength: ArrayLike

    def __init__(self, log_r: Callable[[Array], ArrayLike], strength: ArrayLike = 1.0) -> None:
        self.log_r = as_pytree_function("log_r(x)", log_r)
        self.strength = strength

    def __call__(self, kernel: Kernel, transition: Transition, x_t: Array, t: ArrayLike, context: Array | None) -> Any:
        gaussian = check_gaussian(kernel, "ReconstructionGuidance", _CURE)
        x_0, pull, law = _estimate(gaussian, transition, x_t, t, context)
        log_r = checked_log_r(self.log_r, transition.event_shape, x_0.dtype)
        (slope,) = pull(over_batch(jax.grad(log_r), jnp.ndim(x_t) - transition.event_dim)(x_0))
        return kernel.tilt(law, jnp.asarray(self.strength, slope.dtype) * slope)


@register_pytree(data=("matrix", "value", "noise_scale"), static=("covariance",))
class MomentMatching:
    """Approximate: guidance by N(y; A x0hat, noise_scale^2 I + A C A^T), for y = A x^0 + noise. Biased in general.

    C stands for Cov[x^0 | x^t]:

    - ``"scale"``: r_t^2 I with r_t^2 = S^2 v_t / (abar_t S^2 + v_t), S the kernel's ``data_scale`` (PiGDM);
    - ``"jacobian"``: (v_t / sqrt(abar_t)) J, the exact covariance when the network is E[x^0 | x^t] (MMPS). J is taken
      whole from one vector-Jacobian product for each row of A, so A should have few rows. Where a network's Jacobian
      is no covariance (far from symmetric and positive, as at the noisiest levels of many), ``"scale"`` is used.

    The step's mean is E[x^{t-1} | x^t, y] exactly when x^0 given x^t is Gaussian with covariance C; the step's variance
    stays p's, too wide along what was observed, and on a mixture the mean is wrong too. Where abar_t = 0 nothing is
    known of x^0 and the step is left alone.

    Args:
        matrix: A, shape (m, event...).
        value: y, shape (m,), or (batch..., m).
        noise_scale: standard deviations of the noise, > 0, shape () or (m,).
        covariance: ``"scale"`` or ``"jacobian"``.

    Raises:
        ValueError: for an unknown covariance, shapes that do not agree, values that are not finite, or a noise_scale
            that is not positive.
        TypeError: when used with a kernel that is not Gaussian.

    >>> from numpyro_diffusion import schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper", parameterization="x0")
    >>> standard_normal = Transition(lambda params, x_t, t, context: x_t, None, event_shape=(2,))
    >>> guided = MomentMatching(jnp.ones((1, 2)), jnp.ones(1), 0.1)
    >>> guided(kernel, standard_normal, jnp.zeros((3, 2)), 20, None).batch_shape
    (3, 2)

    References: Song et al. 2023, Eq. 7-8; Rozet et al. 2024, Section 4.
    """

    matrix: ArrayLike
    value: ArrayLike
    noise_scale: ArrayLike
    covariance: Covariance

    def __init__(
        self, matrix: ArrayLike, value: ArrayLike, noise_scale: ArrayLike, *, covariance: Covariance = "jacobian"
    ) -> None:
        if covariance not in get_args(Covariance):
            raise ValueError(
                expected(
                    f"covariance one of {', '.join(get_args(Covariance))}",
                    repr(covariance),
                    "It stands for Cov[x^0 | x^t].",
                )
            )
        rows, scales = jnp.shape(matrix)[:1], jnp.shape(noise_scale)
        if not rows or jnp.shape(value)[-1:] != rows or scales not in ((), rows):
            raise ValueError(
                expected(
                    "matrix (m, event...), value (m,) or (batch..., m), noise_scale () or (m,)",
                    f"shapes {jnp.shape(matrix)}, {jnp.shape(value)}, {scales}",
                    "The matrix has one row for each observed number.",
                )
            )
        if is_concrete(noise_scale) and not np.all(np.asarray(noise_scale) > 0):
            raise ValueError(
                expected("noise_scale > 0", noise_scale, "For numbers that are known exactly use GaussianFactor.")
            )
        check_finite("matrix", matrix)
        check_finite("value", value)
        self.matrix = matrix
        self.value = value
        self.noise_scale = noise_scale
        self.covariance = covariance

    def __call__(self, kernel: Kernel, transition: Transition, x_t: Array, t: ArrayLike, context: Array | None) -> Any:
        gaussian = check_gaussian(kernel, "MomentMatching", _CURE)
        x_0, pull, law = _estimate(gaussian, transition, x_t, t, context)
        matrix = jnp.asarray(self.matrix, x_0.dtype)
        residual = self._residual(matrix, x_0, transition)
        alpha_bar = jnp.asarray(kernel.schedule.alpha_bar, x_0.dtype)[jnp.asarray(t)]
        noise = jnp.asarray(kernel.schedule.noise_variance, x_0.dtype)[jnp.asarray(t)]
        has_signal = alpha_bar > 0
        rate = jnp.where(has_signal, noise / jnp.sqrt(jnp.where(has_signal, alpha_bar, 1)), 0)
        rows = matrix.reshape(matrix.shape[0], -1)
        power = gaussian.data_scale**2
        spread = expand_right(power * noise / (alpha_bar * power + noise), 2) * (rows @ rows.T)
        if self.covariance == "scale":
            (slope,) = pull((self._solve(spread, residual) @ rows).reshape(x_0.shape))
        else:
            pulled = jax.vmap(lambda row: pull(jnp.broadcast_to(row, x_0.shape))[0])(matrix)
            pulled = jnp.moveaxis(pulled, 0, residual.ndim - 1).reshape(residual.shape + rows.shape[1:])  # A J
            found = expand_right(rate, 2) * (pulled @ rows.T)
            # A covariance is symmetric and not negative; a network's Jacobian is only nearly so, or not at all.
            found = 0.5 * (found + jnp.swapaxes(found, -1, -2))
            spread = jnp.where(self._is_covariance(found)[..., None, None], found, spread)
            weight = self._solve(spread, residual)
            slope = (weight[..., None, :] @ pulled).reshape(x_0.shape)
        x_0_moved = expand_right(rate, transition.event_dim) * slope
        # With x^t = 0 the bridge's mean is c_t times its x^0.
        moved = kernel.bridge(jnp.zeros_like(x_0), x_0_moved, expand_right(t, transition.event_dim))
        return dist.Normal(law.loc + moved.mean, law.scale, validate_args=False)

    def _residual(self, matrix: Array, x_0: Array, transition: Transition) -> Array:
        """The misfit y - A x0hat, shape (batch..., m)."""
        if matrix.shape[1:] != transition.event_shape:
            raise ValueError(
                expected(
                    f"a matrix of shape (m, *{transition.event_shape})",
                    f"shape {matrix.shape}",
                    "Each row has the shape of one x.",
                )
            )
        predicted = jnp.tensordot(
            x_0, matrix, axes=(tuple(range(-transition.event_dim, 0)), tuple(range(1, matrix.ndim)))
        )
        residual = jnp.asarray(self.value, x_0.dtype) - predicted
        if residual.shape != predicted.shape:
            raise ValueError(
                expected(
                    f"a value that broadcasts to shape {predicted.shape}",
                    f"shape {jnp.shape(self.value)}",
                    "A batch of values needs a chain expanded to that batch.",
                )
            )
        return residual

    def _solve(self, spread: Array, residual: Array) -> Array:
        """(noise_scale^2 I + spread)^-1 residual; of a spread that is nearly a covariance, what is one."""
        total, least = self._total(jnp.broadcast_to(spread, (*residual.shape, residual.shape[-1])))
        return solve(total, residual, least=least)

    def _is_covariance(self, spread: Array) -> Array:
        """Whether the factor with pivots raised to what they must be still is one of the sum: (batch...,)."""
        total, least = self._total(jax.lax.stop_gradient(spread))
        factor = cholesky(total, least)
        error = jnp.abs(factor @ jnp.swapaxes(factor, -1, -2) - total).max((-2, -1))
        return error <= 0.01 * jnp.diagonal(total, axis1=-2, axis2=-1).max(-1)

    def _total(self, spread: Array) -> tuple[Array, Array]:
        """The sum noise_scale^2 I + spread, and the least that its pivots can be."""
        least = jnp.broadcast_to(jnp.asarray(self.noise_scale, spread.dtype), spread.shape[-1:]) ** 2
        return spread + jnp.diag(least), least


def _estimate(
    kernel: GaussianKernel, transition: Transition, x_t: Array, t: ArrayLike, context: Array | None
) -> tuple[Array, Callable[[Array], tuple[Array]], Any]:
    """From one network call: the estimate of x^0, the map from a cotangent of it to one of x_t, the reverse step."""

    def estimate(x_t: Array) -> tuple[Array, Any]:
        output = network_output(kernel, transition, x_t, t, context)
        t_of_event = expand_right(t, transition.event_dim)
        return jnp.asarray(kernel.denoised(output, x_t, t_of_event)), kernel.reverse(output, x_t, t_of_event)

    return jax.vjp(estimate, x_t, has_aux=True)
