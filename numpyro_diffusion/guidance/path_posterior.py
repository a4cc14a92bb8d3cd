r"""The posterior of a whole path, for a chain whose steps are linear: guidance with correlated coordinates.

Let z be the noise of p's step, x^{t-1} = m + s_t z. By Tweedie's formula the network's answer has the Jacobian

    J_0 = I,     J_t = (a_t / n_t) C_t        (q(x^t | x^0) = N(a_t x^0, n_t), C_t the covariance of its errors)

in the mean over x^t, and it is a martingale, so that x0hat(x^{t-1}) = x0hat(x^t) + J_{t-1} s_t z where it is linear.
Its errors along the T steps of the chain itself, which are C_t only if p's steps are the true ones, have

    P_0 = 0,     P_t = P_{t-1} + J_{t-1} s_t^2 J_{t-1}^T.

So y = A x^0 + N(0, R) tells of z, with r = y - A x0hat(x^t),

    r = A J_{t-1} s_t z + N(0, R + A P_{t-1} A^T),

and with M = R + A P_{t-1} A^T = G G^T and G^{-1} A J_{t-1} s_t = Q F^T, Q the eigenvectors of that matrix times its
transpose, w^2 the eigenvalues, z given x^t and y is

    z | x^t, y  ~  N(F diag(1 / (1 + w^2)) Q^T G^{-1} r,  (I + F F^T)^{-1}).

That is p(x^{t-1} | x^t, y), a :class:`.CorrelatedStep`. Where the network is linear and its errors are known the path
of the guided chain is the posterior's, and log w the log evidence, whatever the noises and however few the steps; but
for x^T, which is drawn as before and knows next to nothing of x^0. Only A P_t A^T, of k by k numbers, is carried from
step to step.

Steps with independent coordinates, of the same moves and variances, lose

    1/2 sum_t  ( sum_i log diag (I + F F^T)^{-1}_i  -  log |(I + F F^T)^{-1}| )        nats

of the path's log density in the mean. It is known beforehand, without a call of the network.

Of s_t, which may depend on x^t, F knows s_t^2 = lower_t + c_t^2 diag C_t alone, its mean for a network that tells its
own errors. Assumed: a Gaussian kernel, A and R the same at every evaluation. Not captured: that J_t differs from one
x^t to another.

Reference: Rauch, Tung, Striebel 1965 (the smoother of a linear chain).
"""

import copy

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from .._numerics import expand_right
from .._pytree import register_pytree
from .._small_matrices import symmetric
from .._typing import Array, ArrayLike
from ..kernels import Kernel
from .correlated_step import CorrelatedStep
from .covariances import ErrorCovariance

__all__ = ["PathPosterior"]


@register_pytree(data=("rows", "factor", "squares", "numbers"), static=())
class PathPosterior:
    """The steps of a chain given k numbers with noise N(0, I), with a batch E of observations or without.

    Attributes:
        rows: A, shape (E..., k, d).
        factor: F, shape (T, E..., d, k).
        squares: w^2, shape (T, E..., k).
        numbers: diag(1 / (1 + w^2)) Q^T G^{-1}, shape (T, E..., k, k).
    """

    def __init__(self, kernel: Kernel, errors: ErrorCovariance, rows: Array) -> None:
        """C_t of one of b equal blocks of n coordinates; A, shape (E..., k, b, n), d = b n."""
        self.rows = rows.reshape((*rows.shape[:-2], -1))
        self.factor, self.squares, self.numbers = _conditioned(kernel, errors, rows)

    def kept_where(self, is_kept: Array) -> "PathPosterior":
        """The same, or one by which nothing moves, by a boolean ()."""
        kept = copy.copy(self)
        kept.factor, kept.squares = (jnp.where(is_kept, part, 0.0) for part in (self.factor, self.squares))
        return kept

    def image(self, change: Array) -> Array:
        """As :meth:`.Spectrum.image`."""
        return jnp.einsum("...kd,...d->...k", jnp.asarray(self.rows, change.dtype), change)

    def nats(self) -> Array:
        """What steps with independent coordinates lose, of each element, shape (E...)."""

        def at(level: tuple[Array, Array]) -> Array:
            factor, squares = level
            left = 1 - ((factor**2) / (1 + squares[..., None, :])).sum(-1)
            return (jnp.log(left).sum(-1) + jnp.log1p(squares).sum(-1)) / 2

        return jax.lax.map(at, (self.factor, self.squares)).sum(0)

    def step(self, prior: dist.Normal, t: ArrayLike, residual: Array) -> CorrelatedStep:
        """The step given y.

        Args:
            prior: p's own.
            t: 1..T; one number where there is a batch E.
            residual: r, shape (batch..., k).
        """
        index = jnp.asarray(t) - 1
        factor, squares, numbers = (
            jnp.asarray(part, residual.dtype)[index] for part in (self.factor, self.squares, self.numbers)
        )
        move = jnp.einsum("...dk,...k->...d", factor, jnp.einsum("...kl,...l->...k", numbers, residual))
        return CorrelatedStep(prior, move, factor, squares)


@jax.jit
def _conditioned(kernel: Kernel, errors: ErrorCovariance, rows: Array) -> tuple[Array, Array, Array]:
    dtype = rows.dtype
    gain, lower = kernel.bridge_terms(errors.levels, rows)
    scales = jnp.sqrt(expand_right(lower, 1) + expand_right(gain, 1) ** 2 * jnp.asarray(errors.variances(), dtype))
    inverse = kernel.denoising_gain(errors.levels, rows)
    slopes = jnp.where(inverse > 0, 1 / jnp.where(inverse > 0, inverse, 1), 0.0)  # 0 where x^t has no signal left

    def flat(rows: Array) -> Array:
        return rows.reshape((*rows.shape[:-2], -1))

    def one(carry: tuple[Array, Array], level: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], tuple]:
        (slope, spread), (t, scale, tweedie) = carry, level
        told = flat(slope * scale)
        root = jnp.linalg.cholesky(spread)
        white = jax.scipy.linalg.solve_triangular(root, told, lower=True)
        squares, basis = jnp.linalg.eigh(symmetric(white @ jnp.swapaxes(white, -1, -2)))
        squares = jnp.maximum(squares, 0.0)
        turned = jax.scipy.linalg.solve_triangular(root, basis / (1 + squares[..., None, :]), trans=1, lower=True)
        found = (jnp.swapaxes(white, -1, -2) @ basis, squares, jnp.swapaxes(turned, -1, -2))
        spread = spread + told @ jnp.swapaxes(told, -1, -2)
        return (tweedie * errors.at(t, dtype).times(rows), spread), found

    start = rows, jnp.broadcast_to(jnp.eye(rows.shape[-3], dtype=dtype), (*rows.shape[:-2], rows.shape[-3]))
    return jax.lax.scan(one, start, (errors.levels, scales, slopes))[1]
