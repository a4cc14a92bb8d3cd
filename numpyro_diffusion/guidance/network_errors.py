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

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from tqdm.auto import tqdm

from .._checks import check_finite, check_integer_at_least, expected, first_index, is_concrete
from .._numerics import expand_right
from .._pytree import register_pytree
from .._small_matrices import symmetric
from .._typing import Array, ArrayLike
from ..chains import ReverseChain
from .base import check_normal, check_real
from .linear_observation import LinearObservation
from .seen_coordinates import spectrum_of
from .spectrum import conditioned_step
from .units import affine_rows

__all__ = ["CovarianceGuidance", "ErrorCovariance", "error_covariance"]

_SECONDS_BEFORE_BAR = 5.0


@register_pytree(data=("factor", "diagonal"), static=())
class ErrorCovariance:
    """Covariances C_t = U_t U_t^T + diag(D_t) of a network's errors, for t = 1..T.

    Attributes:
        factor: U, shape (T, d, q), d the number of coordinates.
        diagonal: D, shape (T, d), > 0.

    Raises:
        ValueError: for shapes that do not agree, and for numbers that are not finite or a D that is not positive.
    """

    factor: Array
    diagonal: Array

    def __init__(self, factor: Array, diagonal: Array) -> None:
        if jnp.ndim(factor) != 3 or factor.shape[:2] != diagonal.shape:
            got = f"shapes {factor.shape} and {diagonal.shape}"
            raise ValueError(expected("factor (T, d, q) and diagonal (T, d)", got, "Use error_covariance."))
        check_finite("factor", factor)
        check_finite("diagonal", diagonal)
        if is_concrete(diagonal) and not (np.asarray(diagonal) > 0).all():
            first = first_index(np.asarray(diagonal) <= 0)
            got = f"{np.asarray(diagonal)[first]} at index {first}"
            raise ValueError(expected("diagonal > 0", got, "It is a variance; use error_covariance."))
        self.factor, self.diagonal = factor, diagonal

    def at_levels(self, levels: Sequence[int]) -> "ErrorCovariance":
        """Those of a respaced chain, which visits these levels t alone."""
        index = np.asarray(levels) - 1
        return ErrorCovariance(self.factor[index], self.diagonal[index])

    def blocks(self, flat: Array) -> Array:
        """Numbers of several x side by side, shape (..., b d), as (..., b, d)."""
        return flat.reshape((*flat.shape[:-1], -1, self.diagonal.shape[-1]))

    def matrices(self) -> Array:
        """All C_t, shape (T, d, d)."""
        low_rank = self.factor @ jnp.swapaxes(self.factor, -1, -2)
        return low_rank + jnp.eye(self.diagonal.shape[-1], dtype=self.diagonal.dtype) * self.diagonal[..., None, :]


def error_covariance(
    rng_key: jax.Array,
    chain: ReverseChain,
    *,
    num_draws: int = 4000,
    rank: int = 32,
    batch_size: int = 250,
    progress_bar: bool = True,
) -> ErrorCovariance:
    """The covariance of a network's errors, over draws of the prior itself.

    Args:
        rng_key: of the draws.
        chain: ``prior.chain``, of one x, without a batch; with a context, that context's.
        num_draws: of x^0, each noised once for each t: T + T network calls for each.
        rank: the number q of leading directions that are kept; the rest is their diagonal.
        batch_size: draws at once.
        progress_bar: show one over batches, if it takes longer than five seconds.

    Raises:
        TypeError: for a kernel that is not Gaussian.
        ValueError: for a chain with a batch, counts out of range, or a network whose errors are not finite.
    """
    check_real(chain.kernel, "error_covariance", "Bits have no covariance of this kind.")
    if chain.batch_shape:
        cure = "Pass the chain of one x: prior.chain before any plate."
        raise ValueError(expected("a chain of one x", f"batch_shape {chain.batch_shape}", cure))
    check_integer_at_least("num_draws", num_draws, 2, "A covariance needs some; 20 for each coordinate are good.")
    check_integer_at_least("rank", rank, 1, "It is the number of directions.")
    check_integer_at_least("batch_size", batch_size, 1, "It bounds the memory.")
    size = min(batch_size, num_draws)
    batches = -(-num_draws // size)
    keys = jax.random.split(rng_key, batches)
    # A chain that is traced has no batches to wait for.
    is_shown = progress_bar and is_concrete((rng_key, chain))
    chain = jax.tree.map(jnp.asarray, chain)  # on the device once, and not with every batch
    total = jnp.zeros(())
    for key in tqdm(keys, desc="errors of the network", disable=not is_shown, delay=_SECONDS_BEFORE_BAR):
        total = total + _squares(chain, key, size)
        if is_shown:
            jax.block_until_ready(total)
    return ErrorCovariance(*_low_rank(symmetric(total / (batches * size)), rank))


@partial(jax.jit, static_argnums=2)
def _squares(chain: ReverseChain, key: jax.Array, size: int) -> Array:
    """The sum of the errors' outer products over so many draws, for every t: shape (T, d, d)."""
    draw_key, noise_key = jax.random.split(key)
    x_0 = chain.sample_last(draw_key, (size,))

    def at(t: Array) -> Array:
        x_t = chain.kernel.marginal(x_0, t).sample(jax.random.fold_in(noise_key, t))
        error = (x_0 - chain.denoised(x_t, jnp.full(size, t))).reshape(size, -1)
        return error.T @ error

    return jax.lax.map(at, jnp.arange(1, chain.num_steps + 1))


@partial(jax.jit, static_argnums=1)
def _low_rank(covariances: Array, rank: int) -> tuple[Array, Array]:
    """U (T, d, q) and D (T, d): leading directions, and what they leave of the diagonal."""

    def one(covariance: Array) -> tuple[Array, Array]:
        values, directions = jnp.linalg.eigh(covariance)
        factor = directions[:, -rank:] * jnp.sqrt(jnp.maximum(values[-rank:], 0.0))
        variance = jnp.diagonal(covariance)
        least = 1e-4 * jnp.maximum(variance, 1e-6 * variance.mean())
        return factor, jnp.maximum(variance - (factor**2).sum(-1), least)

    return jax.lax.map(one, covariances)


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

    >>> from numpyro_diffusion import GaussianKernel, Transition, schedules
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
        factor, diagonal = math.sqrt(inflation) * errors.factor, inflation * errors.diagonal
        self.spectrum = spectrum_of(factor, diagonal, seen[:, None, :], is_fixed=True, noise=noise)

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
