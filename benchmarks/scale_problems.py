"""What is seen of a picture in ``posterior_scale.py``: problems for 8x8 digits and for 28x28 pictures."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

__all__ = ["NAMES", "Curved", "Linear", "problems"]

NAMES = ("noise1", "sharp", "half", "blocks", "unknown_noise", "counts", "outliers", "magnitudes")


class Linear(NamedTuple):
    """Seen is ``matrix @ x`` with Normal noise, x the pixels in one row."""

    matrix: np.ndarray
    noise: float

    def seen(self, x: jax.Array, noise: Any) -> dist.Distribution:
        return dist.Normal(jnp.asarray(self.matrix, jnp.float32) @ x, noise).to_event(1)


class Curved(NamedTuple):
    """Seen is a number with any distribution."""

    distribution: Callable[[jax.Array], dist.Distribution]
    noise: float = 1.0

    def seen(self, x: jax.Array, noise: Any) -> dist.Distribution:
        return self.distribution(x).to_event(1)


def block_means(side: int, size: int) -> np.ndarray:
    """The means of the blocks of ``size`` by ``size`` pixels, as rows."""
    blocks = np.arange(side * side).reshape(side // size, size, side // size, size).transpose(0, 2, 1, 3)
    return np.eye(side * side)[blocks.reshape(-1, size * size)].mean(1)


def blur(side: int) -> np.ndarray:
    """A Gaussian blur of a standard deviation of one pixel, cut off at the edges, as rows."""
    line = np.exp(-0.5 * (np.arange(side)[:, None] - np.arange(side)) ** 2)
    line /= line.sum(1, keepdims=True)
    return np.kron(line, line)


def problems(side: int) -> dict[str, Linear | Curved]:
    """By name, for square pictures."""
    pixels, blurred = np.eye(side * side), blur(side)
    half_noise, size = (0.5, 2) if side == 8 else (0.3, 4)

    def counts(x: jax.Array) -> dist.Distribution:
        return dist.Poisson(3.0 * jnp.exp(0.7 * (jnp.asarray(blurred, jnp.float32) @ x)))

    def magnitudes(x: jax.Array) -> dist.Distribution:
        waves = jnp.fft.rfft2(x.reshape(side, side)).ravel() / side
        return dist.Normal(jnp.sqrt(waves.real**2 + waves.imag**2 + 1e-6), 0.2)

    found = (
        Linear(pixels, 1.0),
        Linear(pixels, 0.3),
        Linear(pixels[: side * side // 2], half_noise),
        Linear(block_means(side, size), 0.1),
        Linear(pixels, 1.0),
        Curved(counts),
        Curved(lambda x: dist.StudentT(2.0, x, 0.5)),
        Curved(magnitudes),
    )
    return dict(zip(NAMES, found, strict=True))
