r"""The chain and the network for data of a shape: what ``learn_prior`` chooses when it is not told.

    0 and 1 alone       Bernoulli kernel, a multilayer perceptron, or of images a U-Net
    tables              Gaussian kernel in whitened coordinates, :class:`~.networks.GaussianSkip`
    images              Gaussian kernel after one shift and one scale for all pixels,
                        :class:`~.networks.GaussianSkipUNet`

The network of images starts at independent Gaussian pixels, each with its mean, and with its standard deviation where
that is at least a quarter of that of all pixels: one that is hardly ever lit would else lie fifty of its own away.

The schedule's last noise is as large as the farthest coordinate of any row, and at least twenty standard deviations:
what the last step shows of a row then moves its start by at most one. The first noise is half of the median distance
from a row to its nearest neighbour, per coordinate, between a hundredth and a tenth of a standard deviation.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .. import networks
from ..kernels import BernoulliKernel, GaussianKernel, Kernel
from ..schedules import constant_fraction, log_snr
from .columns import FINEST
from .stretches import thinned

__all__ = ["Plan", "for_bits", "for_images", "for_table"]

_WIDTH = 64  # of the network for tables: as many units again cost three times the seconds
_LEAST_END = 20.0  # standard deviations: twice what check_data_erased asks for
_MOST_ROWS = 1000  # to find nearest neighbours among
_LEAST_SCALE = 0.25  # of a pixel, beside the 1 of all
_GIVEN = "...  # as it was given"


class Plan(NamedTuple):
    """A kernel, a network, and the code that makes them.

    Attributes:
        kernel: of the chain.
        network: for :func:`~numpyro_diffusion.haiku_module`.
        kernel_code: Python.
        network_code: Python, in which ``kernel`` is known.
    """

    kernel: Kernel
    network: Any
    kernel_code: str
    network_code: str


def for_table(z: np.ndarray, farthest: float, kernel: Kernel | None, network: Any, num_steps: int) -> Plan:
    """For whitened rows, shape (n, d), of which no coordinate is larger than ``farthest``."""
    kernel_code = network_code = _GIVEN
    if kernel is None:
        kernel, kernel_code = _gaussian(num_steps, _least_noise(z), farthest)
    if network is None and _starts_gaussian(kernel):
        network = networks.GaussianSkip(kernel.schedule.log_snr[1:], width=_WIDTH)
        network_code = f"nd.networks.GaussianSkip(kernel.schedule.log_snr[1:], width={_WIDTH})"
    elif network is None:
        network, network_code = _perceptron(kernel)
    return Plan(kernel, network, kernel_code, network_code)


def for_bits(ones: np.ndarray, count: int, kernel: Kernel | None, network: Any, num_steps: int) -> Plan:
    """For rows of 0 and 1, vectors or images: how many are 1 in each place, and how many rows there are."""
    kernel_code = network_code = _GIVEN
    if kernel is None:
        # A bit that never changes among n rows has a rate all the same: one in n + 1 rows, halved (Krichevsky).
        rate = jnp.asarray((ones + 0.5) / (count + 1), float)
        kernel = BernoulliKernel(constant_fraction(num_steps), rate=rate)
        kernel_code = (
            f"nd.BernoulliKernel(nd.schedules.constant_fraction({num_steps}), rate=jnp.array({rate.tolist()}))"
        )
    if network is None:
        network, network_code = (_unet if np.ndim(ones) == 3 else _perceptron)(kernel)
    return Plan(kernel, network, kernel_code, network_code)


def for_images(z: np.ndarray, farthest: float, kernel: Kernel | None, network: Any, num_steps: int) -> Plan:
    """For standardised images, shape (n, height, width, channels), of which no pixel is larger than ``farthest``."""
    kernel_code = network_code = _GIVEN
    if kernel is None:
        kernel, kernel_code = _gaussian(num_steps, FINEST, farthest)
    if network is None and _starts_gaussian(kernel):
        # Three digits, which are all that the code shows.
        rows = z.mean(0), np.maximum(z.std(0), _LEAST_SCALE)
        mean, scale = (tuple(float(f"{number:.3g}") for number in row.reshape(-1)) for row in rows)
        network = networks.GaussianSkipUNet(kernel.schedule.log_snr[1:], mean, scale)
        network_code = f"nd.networks.GaussianSkipUNet(kernel.schedule.log_snr[1:], {mean}, {scale})"
    elif network is None:
        network, network_code = _unet(kernel)
    return Plan(kernel, network, kernel_code, network_code)


def _gaussian(num_steps: int, least: float, farthest: float) -> tuple[Kernel, str]:
    high = float(np.ceil(max(_LEAST_END, farthest)))
    kernel = GaussianKernel(log_snr(num_steps, least, high), parameterization="x0", variance="denoiser")
    schedule = f"nd.schedules.log_snr({num_steps}, {least!r}, {high!r})"
    return kernel, f'nd.GaussianKernel({schedule}, parameterization="x0", variance="denoiser")'


def _starts_gaussian(kernel: Kernel) -> bool:
    """Whether a network may begin as a Gaussian's denoiser."""
    return isinstance(kernel, GaussianKernel) and (kernel.parameterization, kernel.variance) == ("x0", "denoiser")


def _perceptron(kernel: Kernel) -> tuple[Any, str]:
    return networks.MLP(kernel.num_steps, kernel.num_outputs), "nd.networks.MLP(kernel.num_steps, kernel.num_outputs)"


def _unet(kernel: Kernel) -> tuple[Any, str]:
    return networks.UNet(kernel.num_steps, kernel.num_outputs), "nd.networks.UNet(kernel.num_steps, kernel.num_outputs)"


def _least_noise(z: np.ndarray) -> float:
    """To two digits."""
    some = thinned(z, _MOST_ROWS)
    squares = (some**2).sum(1)
    distances = squares[:, None] + squares - 2 * some @ some.T
    np.fill_diagonal(distances, np.inf)
    nearest = float(np.median(np.sqrt(np.maximum(distances.min(1), 0) / z.shape[1])))
    return float(f"{np.clip(nearest / 2, FINEST, 0.1):.2g}")
