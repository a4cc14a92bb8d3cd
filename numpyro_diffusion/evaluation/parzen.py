r"""Parzen-window log likelihood: a density estimate from a model's samples, evaluated at test data.

    log p(x) = log (1/m) sum_j N(x; s_j, h^2 I),     s_j the samples, h chosen on validation data

Only for comparison with published tables, such as the paper's row for MNIST. It judges the density *of the samples
blurred by h*, not the model's: in many dimensions its value depends on the number of samples more than on their
quality, it ranks models wrongly, and a model that repeats its training data can beat the truth. For a diffusion use
the bound K or the importance-weighted estimate.

References: Sohl-Dickstein et al. 2015, Section 3.3.2 and Table 2; Goodfellow et al. 2014 (the estimate); Theis, van den
Oord, Bethge 2016 (its weakness).
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_floating, check_integer_at_least, expected
from .._typing import Array, ArrayLike
from .distances import rows, squared_distances
from .results import LogLikelihood

__all__ = ["ParzenLikelihood", "parzen_log_likelihood"]


@dataclasses.dataclass(frozen=True, eq=False)
class ParzenLikelihood(LogLikelihood):
    """The Parzen-window estimate over test data; for comparison with published tables only.

    Attributes:
        per_point: shape (n,), nats.
        num_dimensions: numbers in one data point.
        bandwidth: h, the best on the validation data.
        bandwidths: all that were tried, shape (bandwidths,).
        validation: mean log likelihood of the validation data for each, shape (bandwidths,), nats.
    """

    bandwidth: float
    bandwidths: np.ndarray
    validation: np.ndarray


def parzen_log_likelihood(
    samples: ArrayLike,
    x: ArrayLike,
    validation: ArrayLike,
    *,
    bandwidths: ArrayLike | Sequence[float] | None = None,
    chunk_size: int = 1024,
) -> ParzenLikelihood:
    """Log likelihood of data under a Gaussian kernel density of samples. Not a likelihood of the model: see above.

    Args:
        samples: draws of the model, shape (m, event...).
        x: test data, shape (n, event...).
        validation: data to choose the bandwidth on, shape (k, event...), not the test data.
        bandwidths: h to try, each > 0; by default 13 from 0.03 to 3 times the samples' standard deviation.
        chunk_size: samples and points that meet in memory at once.

    Raises:
        TypeError: for data that are no floating-point numbers.
        ValueError: for shapes that do not match, values that are not finite, bandwidths that are not positive.

    >>> draws = jax.random.normal(jax.random.key(0), (3, 1000, 1))
    >>> estimate = parzen_log_likelihood(draws[0], draws[1], draws[2])
    >>> abs(estimate.nats + 1.42) < 0.1  # minus the entropy of N(0, 1)
    True

    References: Sohl-Dickstein et al. 2015, Table 2.
    """
    for name, value in (("samples", samples), ("x", x), ("validation", validation)):
        check_floating(name, value, "Convert it with .astype(jnp.float32).")
    flat, points = rows("samples", samples, "x", x)
    _, held_out = rows("samples", samples, "validation", validation)
    check_integer_at_least("chunk_size", chunk_size, 1, "It counts points that are in memory.")
    if bandwidths is None:
        bandwidths = float(flat.std()) * np.geomspace(0.03, 3, 13)
    candidates = np.asarray(bandwidths, float)
    if candidates.ndim != 1 or not len(candidates) or not (np.isfinite(candidates) & (candidates > 0)).all():
        raise ValueError(
            expected("bandwidths > 0 of shape (k,)", bandwidths, "Try fractions of the samples' standard deviation.")
        )
    scores = np.asarray([_log_density(flat, held_out, h, chunk_size).mean() for h in candidates])
    best = float(candidates[int(scores.argmax())])
    return ParzenLikelihood(
        per_point=_log_density(flat, points, best, chunk_size),
        num_dimensions=flat.shape[1],
        bandwidth=best,
        bandwidths=candidates,
        validation=scores,
    )


def _log_density(samples: np.ndarray, points: np.ndarray, bandwidth: float, chunk_size: int) -> np.ndarray:
    """Shape (n,), float64."""
    size, width = min(chunk_size, len(samples)), min(chunk_size, len(points))
    # Filled up with samples of weight 0, so that all chunks have one size.
    missing = -len(samples) % size
    blocks = np.pad(samples, ((0, missing), (0, 0))).reshape(-1, size, samples.shape[1])
    log_weights = np.where(np.arange(blocks.shape[0] * size) < len(samples), 0.0, -np.inf).reshape(-1, size)
    found = []
    for start in range(0, len(points), width):
        index = np.minimum(np.arange(start, start + width), len(points) - 1)
        values = _log_sum(jnp.asarray(blocks), jnp.asarray(log_weights), jnp.asarray(points[index]), bandwidth)
        found.append(np.asarray(values, np.float64)[: len(points) - start])
    log_norm = np.log(len(samples)) + samples.shape[1] * (np.log(bandwidth) + 0.5 * np.log(2 * np.pi))
    return np.concatenate(found) - log_norm


@jax.jit
def _log_sum(blocks: Array, log_weights: Array, points: Array, bandwidth: Array) -> Array:
    """The log of the sum of exp(-|x - s|^2 / 2 h^2) over all samples, one block of them at a time."""

    def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        samples, weights = block
        terms = weights - 0.5 * squared_distances(points, samples) / bandwidth**2
        return jnp.logaddexp(total, jax.nn.logsumexp(terms, axis=1)), None

    start = jnp.full(len(points), -jnp.inf, points.dtype)
    return jax.lax.scan(add, start, (blocks, log_weights))[0]
