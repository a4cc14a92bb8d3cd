r"""The chain and the network for data of a shape: what ``learn_prior`` chooses when it is not told.

    binary columns      Bernoulli kernel, a multilayer perceptron
    tables              Gaussian kernel in whitened coordinates, :class:`~.networks.GaussianSkip`
    images              Gaussian kernel after one shift and one scale for all pixels, a U-Net

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

__all__ = ["Plan", "for_bits", "for_images", "for_table"]

_WIDTH = 64  # of the network for tables: as many units again cost three times the seconds
_LEAST_END = 20.0  # standard deviations: twice what check_data_erased asks for
_MOST_ROWS = 1000  # to find nearest neighbours among


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


def for_table(z: np.ndarray, kernel: Kernel | None, network: Any, num_steps: int) -> Plan:
    """For whitened rows, shape (n, d)."""
    kernel_code = network_code = "...  # as it was given"
    if kernel is None:
        low, high = _range(z)
        kernel = GaussianKernel(log_snr(num_steps, low, high), parameterization="x0", variance="denoiser")
        schedule = f"nd.schedules.log_snr({num_steps}, {low!r}, {high!r})"
        kernel_code = f'nd.GaussianKernel({schedule}, parameterization="x0", variance="denoiser")'
    if network is None:
        if isinstance(kernel, GaussianKernel) and (kernel.parameterization, kernel.variance) == ("x0", "denoiser"):
            network = networks.GaussianSkip(kernel.schedule.log_snr[1:], width=_WIDTH)
            network_code = f"nd.networks.GaussianSkip(kernel.schedule.log_snr[1:], width={_WIDTH})"
        else:
            network, network_code = _perceptron(kernel)
    return Plan(kernel, network, kernel_code, network_code)


def for_bits(rows: np.ndarray, kernel: Kernel | None, network: Any, num_steps: int) -> Plan:
    """For rows of 0 and 1, shape (n, columns)."""
    kernel_code = network_code = "...  # as it was given"
    if kernel is None:
        # A bit that never changes among n rows has a rate all the same: one in n + 1 rows, halved (Krichevsky).
        rate = jnp.asarray((rows.sum(0) + 0.5) / (len(rows) + 1), float)
        kernel = BernoulliKernel(constant_fraction(num_steps), rate=rate)
        kernel_code = (
            f"nd.BernoulliKernel(nd.schedules.constant_fraction({num_steps}), rate=jnp.array({rate.tolist()}))"
        )
    if network is None:
        network, network_code = _perceptron(kernel)
    return Plan(kernel, network, kernel_code, network_code)


def for_images(z: np.ndarray, kernel: Kernel | None, network: Any, num_steps: int) -> Plan:
    """For standardised images, shape (n, height, width, channels)."""
    kernel_code = network_code = "...  # as it was given"
    if kernel is None:
        high = float(np.ceil(max(_LEAST_END, np.abs(z).max())))
        kernel = GaussianKernel(log_snr(num_steps, FINEST, high))
        kernel_code = f"nd.GaussianKernel(nd.schedules.log_snr({num_steps}, {FINEST!r}, {high!r}))"
    if network is None:
        network = networks.UNet(kernel.num_steps, kernel.num_outputs)
        network_code = "nd.networks.UNet(kernel.num_steps, kernel.num_outputs)"
    return Plan(kernel, network, kernel_code, network_code)


def _perceptron(kernel: Kernel) -> tuple[Any, str]:
    return networks.MLP(kernel.num_steps, kernel.num_outputs), "nd.networks.MLP(kernel.num_steps, kernel.num_outputs)"


def _range(z: np.ndarray) -> tuple[float, float]:
    """The least and the largest noise, to two digits."""
    some = z[np.linspace(0, len(z) - 1, min(len(z), _MOST_ROWS)).astype(int)]
    squares = (some**2).sum(1)
    distances = squares[:, None] + squares - 2 * some @ some.T
    np.fill_diagonal(distances, np.inf)
    nearest = float(np.median(np.sqrt(np.maximum(distances.min(1), 0) / z.shape[1])))
    return float(f"{np.clip(nearest / 2, FINEST, 0.1):.2g}"), float(np.ceil(max(_LEAST_END, np.abs(z).max())))
