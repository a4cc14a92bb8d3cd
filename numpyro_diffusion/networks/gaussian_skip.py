r"""A network that begins as the exact denoiser of a Gaussian, and learns what is not Gaussian about the data.

For data x^0 ~ N(m, S^2) in each coordinate and x^t = a x^0 + sqrt(v) eps, with a^2 = abar_t and v = 1 - abar_t,

    E[x^0 | x^t] = m + g (x^t - a m),        g = a S^2 / (a^2 S^2 + v)
    Var[x^0 | x^t] = S^2 v / (a^2 S^2 + v) = s^2.

The network returns E + s f_1 and s^2 exp(f_2), where f is a multilayer perceptron, or a U-Net, of the standardised x^t
whose last layer starts at zero. With f = 0 every reverse step is that of the Gaussian chain backwards. If N(m, S^2)
also is what the forward chain ends in, m = 0 and S = 1, the ratio p(x^{0:T}) / q(x^{1:T} | x^0) is N(x^0; 0, I) on
*every* path: the bound K is the Gaussian's log density at the start, for any number of steps. For another Gaussian its
mean is KL(q(x^T) || N(0, 1)) below, about abar_T m^2 / 2 nats per coordinate.

Assumed: independent coordinates of the Gaussian. Data of covariance C are whitened first, by a
``TransformedDistribution`` with NumPyro's ``LowerCholeskyAffine``; a skip through the matrix C would not do as well,
because reverse steps have no covariances, and only many of them make up for it.

References: Karras et al. 2022, Table 1 (the same skip and output scaling, there for denoising losses).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import expected
from .._typing import Array, ArrayLike
from .mlp import MLP
from .unet import UNet

__all__ = ["GaussianSkip", "GaussianSkipUNet"]

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
        modulated: as for :class:`MLP`.

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
    modulated: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "log_snr", _checked(self.log_snr))
        if not 0 < self.scale < np.inf:
            raise ValueError(expected("scale > 0", self.scale, "Pass the data's standard deviation."))

    @property
    def num_outputs(self) -> int:
        """Two: the mean and the variance of x^0 given x^t."""
        return 2

    def __call__(self, x_t: Array, t: Array, context: Array | None = None) -> tuple[Array, Array]:
        """E[x^0 | x^t] and Var[x^0 | x^t], each of x_t's shape (batch..., event...)."""
        network = MLP(
            num_steps=len(self.log_snr),
            num_outputs=2,
            width=self.width,
            depth=self.depth,
            num_frequencies=self.num_frequencies,
            num_time_features=self.num_time_features,
            event_dim=self.event_dim,
            context_dim=self.context_dim,
            modulated=self.modulated,
        )
        return _around(network, self.log_snr, self.mean, self.scale, x_t, t, context)


@dataclasses.dataclass(frozen=True)
class GaussianSkipUNet:
    """The exact denoiser of independent Gaussian pixels, plus the residual of a U-Net that starts at zero.

    For standardised images, and kernels with ``parameterization="x0"`` and ``variance="denoiser"``. The U-Net sees x^t
    as it is.

    Args:
        log_snr: lambda_1..lambda_T of the schedule, shape (T,): ``kernel.schedule.log_snr[1:]``.
        mean: one number for all pixels, or a row of one for each number of the event. With one, the network runs at
            other sizes than that of training.
        scale: standard deviations, > 0, likewise.
        width: as for :class:`UNet`, like all that follow.
        num_levels: resolutions: full, half, a quarter, ...
        num_blocks: residual blocks at each resolution, on the way down and on the way up.
        attention: self-attention over all pixels of the lowest resolution.
        num_time_features: sines and cosines of t each.
        event_dim: 3 for images (height, width, channels), 2 for grey ones (height, width).
        context_dim: how many trailing dimensions of the context are one context.
        checkpoint: compute insides of blocks again for the gradient.
        bfloat16: compute in half precision.
        patch_size: side of the squares of pixels that are one pixel inside.

    Raises:
        ValueError: for ``log_snr`` that is no vector, a scale that is not positive, or as many numbers as no event has;
            as :class:`UNet`.

    >>> import numpyro_diffusion as nd
    >>> kernel = nd.GaussianKernel(nd.schedules.log_snr(10), parameterization="x0", variance="denoiser")
    >>> network = GaussianSkipUNet(kernel.schedule.log_snr[1:], width=4, num_levels=1)
    >>> init = nd.modules.HaikuFunction(network).init
    >>> jax.eval_shape(init, jax.random.key(0), jnp.ones((7, 9, 1)), jnp.array(1), None)[0]["output"]["w"].shape
    (3, 3, 4, 2)
    """

    log_snr: Any
    mean: Any = (0.0,)
    scale: Any = (1.0,)
    width: int = 32
    num_levels: int = 3
    num_blocks: int = 1
    attention: bool = True
    num_time_features: int = 16
    event_dim: int = 3
    context_dim: int = 1
    checkpoint: bool = False
    bfloat16: bool = False
    patch_size: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "log_snr", _checked(self.log_snr))
        for name in ("mean", "scale"):
            row = np.asarray(getattr(self, name), np.float64).reshape(-1)
            object.__setattr__(self, name, tuple(row.tolist()))
        if not all(0 < scale < np.inf for scale in self.scale):
            raise ValueError(expected("scales > 0", min(self.scale), "Pass the pixels' standard deviations."))
        self._network()

    @property
    def num_outputs(self) -> int:
        """Two: the mean and the variance of x^0 given x^t."""
        return 2

    def __call__(self, x_t: Array, t: Array, context: Array | None = None) -> tuple[Array, Array]:
        """E[x^0 | x^t] and Var[x^0 | x^t], each of x_t's shape (batch..., height, width, channels)."""
        mean, scale = (self._of_pixels(row, x_t) for row in (self.mean, self.scale))
        return _around(self._network(), self.log_snr, mean, scale, x_t, t, context, seen=x_t)

    def _of_pixels(self, row: tuple[float, ...], x_t: Array) -> Array:
        shape = x_t.shape[x_t.ndim - self.event_dim :]
        if len(row) not in (1, math.prod(shape)):
            wanted = f"a mean and a scale for all pixels, or for each number of {shape}"
            raise ValueError(expected(wanted, f"{len(row)} numbers", "Pass those of images of this size."))
        values = jnp.asarray(row, x_t.dtype)
        return values.reshape(shape) if len(row) > 1 else values

    def _network(self) -> UNet:
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        log_snr, _, _ = (settings.pop(name) for name in ("log_snr", "mean", "scale"))
        return UNet(len(log_snr), 2, **settings)


def _checked(log_snr: Any) -> tuple[float, ...]:
    """A tuple, so that networks compare by value."""
    if np.ndim(log_snr) != 1 or not np.size(log_snr):
        cure = "Pass kernel.schedule.log_snr[1:]."
        raise ValueError(expected("log_snr of shape (T,)", f"shape {np.shape(log_snr)}", cure))
    return tuple(np.asarray(log_snr, np.float64).tolist())


def _around(
    network: Any,
    log_snr: tuple[float, ...],
    mean: ArrayLike,
    scale: ArrayLike,
    x_t: Array,
    t: Array,
    context: Array | None,
    *,
    seen: Array | None = None,
) -> tuple[Array, Array]:
    """E + s f_1 and s^2 exp(f_2), f the network of what it sees: by default the standardised x^t."""
    ratio = jnp.asarray(log_snr, x_t.dtype)[t - 1]
    ratio = ratio.reshape(ratio.shape + (1,) * network.event_dim)
    power, noise = jax.nn.sigmoid(ratio), jax.nn.sigmoid(-ratio)
    signal = jnp.sqrt(power)
    total: Any = power * scale**2 + noise
    centred = x_t - signal * mean
    variance = scale**2 * noise / total
    shift, stretch = network(centred * jax.lax.rsqrt(total) if seen is None else seen, t, context)
    estimate = mean + signal * scale**2 / total * centred + jnp.sqrt(variance) * shift
    return estimate, variance * jnp.exp(_LIMIT * jnp.tanh(stretch / _LIMIT))
