r"""The paper's network for images: multi-scale convolutions, a dense pathway beside them, and readouts by time bumps.

A multi-scale layer averages its input over squares of 2^k by 2^k pixels, convolves each of these smaller images,
brings all back to full size, adds them and applies log(1 + exp). Layers of 1 x 1 convolutions with tanh follow. The
dense pathway sees the whole image as one vector (tanh layers) and gives a few numbers for each pixel, which join what
the convolutions give. All this is the same for every t; time enters at the end, where each output is a mixture of J
readouts,

    z(x^t, t) = sum_j y_j(x^t) g_j(t),
    g_j(t) = exp(-(t - tau_j)^2 / 2 w^2) / sum_k exp(-(t - tau_k)^2 / 2 w^2),     w the spacing of the centres tau.

With ``GaussianKernel(parameterization="paper")`` the two outputs z_mu and z_Sigma are what Eq. 64-65 perturb the
forward kernel with; at the start, when they are zero, the reverse step has the forward one's variance.

Not assumed: the size of the image. With convolutions alone a trained network runs on images of any size.

References: Sohl-Dickstein et al. 2015, Appendix D.2, Eq. 62-63.
"""

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp

from .._checks import check_integer_at_least, expected
from .._typing import Array
from .common import bump_features, distinct_steps
from .images import convolution, enlarge, in_half_precision, shrink, to_images, to_outputs, to_rows

__all__ = ["MultiScaleConv"]


@dataclasses.dataclass(frozen=True)
class MultiScaleConv:
    """The paper's convolutional network, its dense network, or both in parallel.

    The paper uses the convolutions alone for textures and dead leaves, both pathways for CIFAR-10 (here
    ``dense_layers=4``), and the dense one alone for MNIST (``conv_layers=0, dense_layers=4``). The readout starts at
    zero.

    Args:
        num_steps: T, ``kernel.num_steps``.
        num_outputs: ``kernel.num_outputs``.
        conv_layers: multi-scale layers; 0 for the dense pathway alone.
        conv_width: channels of each.
        num_scales: sizes at which each convolves: the image, and means over squares of 2, 4, ... pixels.
        filter_size: pixels across each filter.
        dense_layers: layers of the dense pathway; 0 for none.
        dense_width: units of each but the last.
        dense_outputs: numbers for each pixel that the dense pathway gives.
        pixel_layers: 1 x 1 layers after the pathways have met.
        pixel_width: channels of each.
        num_bumps: J, readouts along time.
        event_dim: 3 for images (height, width, channels), 2 for grey ones (height, width).
        checkpoint: keep no hidden layers for the gradient but compute them again: less memory, a third more time.
        bfloat16: compute hidden layers in half precision; parameters and outputs stay in x_t's.

    Raises:
        ValueError: for sizes that are no integers, or too small.

    >>> network = MultiScaleConv(num_steps=100, conv_layers=2, conv_width=8)
    >>> init = hk.transform(network).init
    >>> params = jax.eval_shape(init, jax.random.key(0), jnp.ones((16, 16, 1)), jnp.array(1))
    >>> params["conv_0_scale_1"]["w"].shape, params["~"]["readout_w"].shape
    ((3, 3, 1, 8), (10, 20, 2))

    References: Sohl-Dickstein et al. 2015, Appendix D.2, Figure D.1.
    """

    num_steps: int
    num_outputs: int = 2
    conv_layers: int = 4
    conv_width: int = 20
    num_scales: int = 3
    filter_size: int = 3
    dense_layers: int = 0
    dense_width: int = 500
    dense_outputs: int = 2
    pixel_layers: int = 2
    pixel_width: int = 20
    num_bumps: int = 10
    event_dim: int = 3
    checkpoint: bool = False
    bfloat16: bool = False

    def __post_init__(self) -> None:
        optional = ("conv_layers", "dense_layers", "pixel_layers")
        for field in dataclasses.fields(self):
            if field.type is int:
                cure = "It is a number of layers." if field.name in optional else "It is a size."
                check_integer_at_least(field.name, getattr(self, field.name), int(field.name not in optional), cure)
        if not self.conv_layers and not self.dense_layers:
            raise ValueError(
                expected("a pathway", "conv_layers=0 and dense_layers=0", "Set conv_layers, dense_layers or both.")
            )

    def __call__(self, x_t: Array, t: Array) -> Array | tuple[Array, ...]:
        """The output for x_t of shape (batch..., height, width, channels), or as ``event_dim`` says."""
        images = to_images(x_t, self.event_dim)
        channels = images.shape[-1]
        with in_half_precision(self.bfloat16, x_t.dtype) as dtype:
            features = self._features(images.astype(dtype))
            weights, biases = self._readout(t, x_t, features.shape[-1], self.num_outputs * channels, dtype)
            maps = jnp.einsum("nhwf,nfo->nhwo", features, jnp.broadcast_to(weights, (len(images), *weights.shape[1:])))
            maps = maps + biases[:, None, None]
        return to_outputs(maps, self.num_outputs, x_t)

    def _features(self, images: Array) -> Array:
        """What the layers that know no time see, shape (count, height, width, features)."""
        pathways = []
        if self.conv_layers:
            hidden = images
            for layer in range(self.conv_layers):
                hidden = self._layer(self._multi_scale, hidden, f"conv_{layer}")
            pathways.append(hidden)
        if self.dense_layers:
            pathways.append(self._layer(self._dense, images, "dense"))
        hidden = jnp.concatenate(pathways, axis=-1)
        for layer in range(self.pixel_layers):
            hidden = jnp.tanh(convolution(hidden, self.pixel_width, 1, f"pixel_{layer}"))
        return hidden

    def _layer(self, layer, images, name):  # type: ignore[no-untyped-def]
        apply = lambda images: layer(images, name)  # noqa: E731
        return (hk.remat(apply) if self.checkpoint else apply)(images)

    def _multi_scale(self, images: Array, name: str) -> Array:
        height, width = images.shape[1:3]
        total = jnp.zeros((), images.dtype)
        for scale in range(self.num_scales):
            factor = 2**scale
            # Independent sums: each scale has its share of the variance that a single convolution would have.
            convolved = convolution(
                shrink(images, factor), self.conv_width, self.filter_size, f"{name}_scale_{scale}", 1 / self.num_scales
            )
            total = total + enlarge(convolved, factor, height, width)
        return jax.nn.softplus(total)

    def _dense(self, images: Array, name: str) -> Array:
        pixels = images.shape[1] * images.shape[2]
        hidden = images.reshape(len(images), -1)
        sizes = [self.dense_width] * (self.dense_layers - 1) + [pixels * self.dense_outputs]
        for layer, size in enumerate(sizes):
            hidden = jnp.tanh(hk.Linear(size, name=f"{name}_{layer}")(hidden))
        return hidden.reshape(*images.shape[:3], self.dense_outputs)

    def _readout(self, t: Array, x_t: Array, size: int, num_outputs: int, dtype) -> tuple[Array, Array]:  # type: ignore[no-untyped-def]
        """Weights (count or 1, size, outputs) and biases (count or 1, outputs) at each image's time, Eq. 62-63.

        Mixing J small matrices and applying one costs less than applying J to every pixel and mixing the results.
        """
        zeros = hk.initializers.Constant(0.0)
        weights = hk.get_parameter("readout_w", (self.num_bumps, size, num_outputs), dtype, zeros)
        biases = hk.get_parameter("readout_b", (self.num_bumps, num_outputs), dtype, zeros)
        rows = to_rows(jnp.asarray(t), x_t.shape[: x_t.ndim - self.event_dim])
        steps, rows_of_t = distinct_steps(rows, self.num_steps)
        bumps = bump_features(steps, self.num_steps, self.num_bumps).astype(dtype)
        return rows_of_t(jnp.tensordot(bumps, weights, 1)), rows_of_t(bumps @ biases)
