r"""A reverse step whose coordinates are correlated: the noise of p's step, moved and squeezed the same for every x^t.

With m and s the mean and the scale of p(x^{t-1} | x^t), one number for each coordinate, the step is

    x^{t-1} = m + s (h + L z),     L = I - F diag(1 / (1 + w^2 + sqrt(1 + w^2))) F^T,     z ~ N(0, I)

where F has orthogonal columns with squares w^2. So L L^T = (I + F F^T)^{-1}, and

    L^{-1} = I + F diag(1 / (1 + sqrt(1 + w^2))) F^T,     log |L| = -1/2 sum log(1 + w^2)

need no factorisation, and are well conditioned for columns that vanish. F does not depend on x^t: with u = h + L z the
noise that p has for the same x^{t-1}, log p - log q = |z|^2 / 2 - |u|^2 / 2 + log |L|, and the last is a number.
"""

import math

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints

from .._typing import Array, ArrayLike, Shape

__all__ = ["CorrelatedStep"]


class CorrelatedStep(dist.Distribution):
    """The law of x^{t-1} given x^t; ``batch_shape`` is that of x^t, as of any step.

    Terms of ``log_prob`` belong to the coordinates of z. Their sum over one state is its log density.

    Args:
        step: p's own, Normal, of shape (batch..., event...).
        move: h, shape (batch..., d), d the number of coordinates.
        factor: F, shape (d, k), or (batch..., d, k).
        squares: w^2, shape (k,), or (batch..., k).
    """

    support = constraints.real
    pytree_data_fields = ("step", "move", "factor", "squares")

    def __init__(self, step: dist.Normal, move: Array, factor: Array, squares: Array) -> None:
        self.step, self.move, self.factor, self.squares = step, move, factor, squares
        super().__init__(batch_shape=step.batch_shape, validate_args=False)

    def from_noise(self, noise: ArrayLike) -> Array:
        """The x^{t-1} of a z, shape (sample..., batch..., event...)."""
        return self.step.loc + self.step.scale * self._noise_of_prior(jnp.asarray(noise))

    def noise_of(self, value: ArrayLike) -> Array:
        """The z of an x^{t-1}."""
        noise = (jnp.asarray(value) - self.step.loc) / self.step.scale
        root = jnp.sqrt(1 + self.squares)
        return self._times(noise, -self.move, 1 / (1 + root), is_after=False)

    def log_ratio_of_noise(self, target: dist.Normal, noise: Array) -> Array:
        """Log p(x^{t-1}) - log q(x^{t-1}) at the x^{t-1} of a z, its terms as those of ``log_prob``; p a Normal step.

        Nothing large cancels where p is the step that this one was made of.
        """
        stretch = self.step.scale / target.scale
        ours = (self.step.loc - target.loc) / target.scale + stretch * self._noise_of_prior(noise)
        return 0.5 * (noise - ours) * (noise + ours) + jnp.log(stretch) + self._log_det()

    def sample(self, key: jax.Array, sample_shape: Shape = ()) -> Array:
        return self.from_noise(jax.random.normal(key, self.shape(sample_shape), jnp.result_type(self.step.loc)))

    def log_prob(self, value: ArrayLike) -> Array:
        noise = self.noise_of(value)
        return -0.5 * noise**2 - 0.5 * math.log(2 * math.pi) - jnp.log(self.step.scale) - self._log_det()

    def _noise_of_prior(self, noise: Array) -> Array:
        """The noise of p's step, h + L z, in the shape of z."""
        root = jnp.sqrt(1 + self.squares)
        return self._times(noise, self.move, -1 / (root * (1 + root)), is_after=True)

    def _times(self, noise: Array, move: Array, weights: Array, *, is_after: bool) -> Array:
        """(I + F diag(weights) F^T) z + h, or the same of z + h."""
        sample_shape = noise.shape[: noise.ndim - len(self.batch_shape)]
        flat = noise.reshape(sample_shape + move.shape)
        flat = flat if is_after else flat + move
        along = weights * jnp.einsum("...dk,...d->...k", self.factor, flat)
        flat = flat + jnp.einsum("...dk,...k->...d", self.factor, along)
        return (flat + move if is_after else flat).reshape(noise.shape)

    def _log_det(self) -> Array:
        """Log |L| over the number of coordinates, shape (batch..., 1...)."""
        each = -0.5 * jnp.log1p(self.squares).sum(-1) / self.move.shape[-1]
        num_event = len(self.batch_shape) - (self.move.ndim - 1)
        return each.reshape(each.shape + (1,) * num_event)
