r"""A network that begins as the exact denoiser of a Gaussian, and learns what is not Gaussian about the data.

For data x^0 ~ N(m, S^2) in each coordinate and x^t = a x^0 + sqrt(v) eps, with a^2 = abar_t and v = 1 - abar_t,

    E[x^0 | x^t] = m + g (x^t - a m),        g = a S^2 / (a^2 S^2 + v)
    Var[x^0 | x^t] = S^2 v / (a^2 S^2 + v) = s^2.

The network returns E + s f_1 and s^2 exp(f_2), where f is a multilayer perceptron of the standardised x^t whose last
layer starts at zero. With f = 0 every reverse step is that of the Gaussian chain backwards. If N(m, S^2) also is what
the forward chain ends in, m = 0 and S = 1, the ratio p(x^{0:T}) / q(x^{1:T} | x^0) is N(x^0; 0, I) on *every* path:
the bound K is the Gaussian's log density at the start, for any number of steps. For another Gaussian its mean is
KL(q(x^T) || N(0, 1)) below, about abar_T m^2 / 2 nats per coordinate.

Assumed: independent coordinates of the Gaussian. Data of covariance C are whitened first, by a
``TransformedDistribution`` with NumPyro's ``LowerCholeskyAffine``; a skip through the matrix C would not do as well,
because reverse steps have no covariances, and only many of them make up for it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import expected
from .._typing import Array
from .mlp import MLP

__all__ = ["GaussianSkip"]

# exp of an output that no data restrain must not overflow: f_2 is kept softly within +-8. Near 0 this is the identity.
_LIMIT = 8.0


@dataclasses.dataclass(frozen=True)
class GaussianSkip:
    """The exact denoiser of N(mean, scale^2), plus a residual that starts at zero.

    For kernels with ``parameterization="x0"`` and ``variance="denoiser"``.

    Args:
        log_snr: lambda_1..lambda_T of the schedule, shape (T,): ``kernel.schedule.log_snr[1:]``.
        mean: of every coordinate.
        scale: standard deviation of every coordinate, > 0.
        width: units of each layer.
        depth: hidden layers.
        num_frequencies: as for :class:`MLP`.
        num_time_features: sines and cosines of t each.
        event_dim: how many trailing dimensions of x are one event (flattened inside).
        context_dim: how many trailing dimensions of the context are one context.

    Raises:
        ValueError: for ``log_snr`` that is no vector, or a scale that is not positive.

    >>> import numpyro_diffusion as nd
    >>> kernel = nd.GaussianKernel(nd.schedules.log_snr(10), parameterization="x0", variance="denoiser")
    >>> network = GaussianSkip(kernel.schedule.log_snr[1:], width=8, depth=1)
    >>> function = nd.modules.HaikuFunction(network)
    >>> params, _ = jax.jit(function.init)(jax.random.key(0), jnp.ones(2), jnp.array(5), None)
    >>> prior = nd.Diffusion(kernel, nd.Transition(function, params, event_shape=(2,)))
    >>> nd.evaluation.importance_weighted(jax.random.key(1), prior, jnp.zeros((1, 2)), num_trajectories=1).nats
    -1.8378...
    """

    log_snr: Any
    mean: float = 0.0
    scale: float = 1.0
    width: int = 128
    depth: int = 3
    num_frequencies: int = 0
    num_time_features: int = 16
    event_dim: int = 1
    context_dim: int = 1

    def __post_init__(self) -> None:
        if np.ndim(self.log_snr) != 1 or not np.size(self.log_snr):
            got = f"shape {np.shape(self.log_snr)}"
            raise ValueError(expected("log_snr of shape (T,)", got, "Pass kernel.schedule.log_snr[1:]."))
        if not 0 < self.scale < np.inf:
            raise ValueError(expected("scale > 0", self.scale, "Pass the data's standard deviation."))
        # A tuple, so that networks compare by value.
        object.__setattr__(self, "log_snr", tuple(np.asarray(self.log_snr, np.float64).tolist()))

    @property
    def num_outputs(self) -> int:
        """Two: the mean and the variance of x^0 given x^t."""
        return 2

    def __call__(self, x_t: Array, t: Array, context: Array | None = None) -> tuple[Array, Array]:
        """E[x^0 | x^t] and Var[x^0 | x^t], each of x_t's shape (batch..., event...)."""
        log_snr = jnp.asarray(self.log_snr, x_t.dtype)[t - 1]
        log_snr = log_snr.reshape(log_snr.shape + (1,) * self.event_dim)
        power, noise = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)
        signal = jnp.sqrt(power)
        total = power * self.scale**2 + noise
        centred = x_t - signal * self.mean
        variance = self.scale**2 * noise / total
        network = MLP(
            num_steps=len(self.log_snr),
            num_outputs=2,
            width=self.width,
            depth=self.depth,
            num_frequencies=self.num_frequencies,
            num_time_features=self.num_time_features,
            event_dim=self.event_dim,
            context_dim=self.context_dim,
        )
        shift, stretch = network(centred * jax.lax.rsqrt(total), t, context)
        estimate = self.mean + signal * self.scale**2 / total * centred + jnp.sqrt(variance) * shift
        return estimate, variance * jnp.exp(_LIMIT * jnp.tanh(stretch / _LIMIT))
