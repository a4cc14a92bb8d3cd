r"""How far draws of a model are from data, by the draws alone.

    sliced_wasserstein     E_theta W_1(<theta, x>, <theta, y>), theta uniform on the sphere: exact by sorting
    max_mean_discrepancy   E k(x, x') + E k(y, y') - 2 E k(x, y), unbiased, k a mean of Gaussian kernels
    classifier_two_sample  held-out accuracy of a classifier that tells the two apart: 1/2 if it cannot

None is zero for two finite samples of one distribution. Compare with the same number for two halves of the data, the
floor.

References: Bonneel et al. 2015 (sliced Wasserstein); Gretton et al. 2012, Eq. 3 (MMD); Lopez-Paz and Oquab 2017 (C2ST).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_finite, check_integer_at_least, expected
from .._typing import Array, ArrayLike

__all__ = [
    "TwoSampleTest",
    "classifier_two_sample_test",
    "max_mean_discrepancy",
    "rows",
    "sliced_wasserstein",
    "squared_distances",
]

_CLASSIFIER_CURE = "Install the extra: python -m pip install 'numpyro-diffusion[evaluation]'."


def rows(name: str, x: ArrayLike, other_name: str, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of points of one event shape, as floating-point matrices (n, d) and (m, d) on the host.

    Raises:
        ValueError: for no points, event shapes that differ, values that are not finite.
    """
    shapes = jnp.shape(x), jnp.shape(y)
    if not (shapes[0] and shapes[1]) or shapes[0][1:] != shapes[1][1:] or 0 in (*shapes[0], *shapes[1]):
        raise ValueError(
            expected(
                f"{name} of shape (n, event...) and {other_name} of shape (m, event...), n and m >= 1",
                f"shapes {shapes[0]} and {shapes[1]}",
                "Points go along the first axis of both.",
            )
        )
    check_finite(name, x)
    check_finite(other_name, y)
    dtype = jnp.result_type(float)
    matrices = [np.asarray(value, dtype).reshape(len(value), -1) for value in (np.asarray(x), np.asarray(y))]
    return matrices[0], matrices[1]


def sliced_wasserstein(rng_key: jax.Array, x: ArrayLike, y: ArrayLike, *, num_slices: int = 500) -> float:
    """The mean over random directions of the first Wasserstein distance of the projections, exact by sorting.

    Args:
        rng_key: JAX random key, of the directions.
        x: draws, shape (n, event...).
        y: as many draws, shape (n, event...).
        num_slices: directions, uniform on the sphere.

    Returns:
        In the units of the draws, >= 0. Computed in float64.

    Raises:
        ValueError: for shapes that differ or values that are not finite.

    >>> x = np.arange(6.0).reshape(3, 2)
    >>> sliced_wasserstein(jax.random.key(0), x, x[::-1])
    0.0

    References: Bonneel et al. 2015.
    """
    if jnp.shape(x) != jnp.shape(y):
        raise ValueError(
            expected("x and y of one shape (n, event...)", f"{jnp.shape(x)} and {jnp.shape(y)}", "Draw as many.")
        )
    check_integer_at_least("num_slices", num_slices, 1, "It counts directions.")
    rows("x", x, "y", y)
    left, right = (np.asarray(value, np.float64).reshape(len(value), -1) for value in (np.asarray(x), np.asarray(y)))
    directions = np.asarray(jax.random.normal(rng_key, (left.shape[1], num_slices)), np.float64)
    directions /= np.linalg.norm(directions, axis=0)
    total = 0.0
    for start in range(0, num_slices, 64):  # so many at a time: memory does not grow with their number
        some = directions[:, start : start + 64]
        total += np.abs(np.sort(left @ some, axis=0) - np.sort(right @ some, axis=0)).mean(0).sum()
    return float(total / num_slices)


def max_mean_discrepancy(
    x: ArrayLike, y: ArrayLike, *, bandwidths: ArrayLike | Sequence[float] | None = None, chunk_size: int = 512
) -> float:
    """The unbiased squared maximum mean discrepancy with a mean of Gaussian kernels exp(-|x - y|^2 / 2 h^2).

    Unbiased, so it may be negative where the two distributions agree. Time grows with the product of the two counts;
    memory does not.

    Args:
        x: draws, shape (n, event...), n >= 2.
        y: draws, shape (m, event...), m >= 2.
        bandwidths: h, shape (k,), each > 0; by default the median distance of two draws, among 1000 of both sets.
        chunk_size: rows that are compared with all others at once.

    Raises:
        ValueError: for shapes that do not match, fewer than two draws, bandwidths that are not positive.

    >>> x = jax.random.normal(jax.random.key(0), (2, 500, 2))
    >>> abs(max_mean_discrepancy(x[0], x[1])) < 0.01 < max_mean_discrepancy(x[0], x[1] + 1)
    True

    References: Gretton et al. 2012, Lemma 6.
    """
    left, right = rows("x", x, "y", y)
    check_integer_at_least("the number of draws in x", len(left), 2, "Pairs of draws are compared.")
    check_integer_at_least("the number of draws in y", len(right), 2, "Pairs of draws are compared.")
    check_integer_at_least("chunk_size", chunk_size, 1, "It counts rows that are in memory.")
    widths = np.asarray([_median_distance(left, right)] if bandwidths is None else bandwidths, left.dtype)
    if widths.ndim != 1 or not len(widths) or not (np.isfinite(widths) & (widths > 0)).all():
        raise ValueError(
            expected("bandwidths > 0 of shape (k,)", widths, "Pass distances at which differences should be seen.")
        )
    n, m = len(left), len(right)
    within_left = (_kernel_sum(left, left, widths, chunk_size) - n) / (n * (n - 1))  # without the n pairs of x with x
    within_right = (_kernel_sum(right, right, widths, chunk_size) - m) / (m * (m - 1))
    return within_left + within_right - 2 * _kernel_sum(left, right, widths, chunk_size) / (n * m)


def _median_distance(left: np.ndarray, right: np.ndarray) -> float:
    """Of two draws, among at most 1000 of both sets, evenly picked."""
    both = np.concatenate([left, right])
    some = np.asarray(both[np.linspace(0, len(both) - 1, min(len(both), 1000)).astype(int)], np.float64)
    squares = (some**2).sum(1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * some @ some.T, 0))
    median = float(np.median(distances[np.triu_indices(len(some), 1)]))
    if not median > 0:
        raise ValueError(expected("draws that differ", "a median distance of 0", "Pass bandwidths."))
    return median


def _kernel_sum(left: np.ndarray, right: np.ndarray, widths: np.ndarray, chunk_size: int) -> float:
    """Sum of the mean kernel over all pairs, gathered in float64; block by block in both directions."""
    total = 0.0
    for one, one_weights in _blocks(left, chunk_size):
        for other, other_weights in _blocks(right, chunk_size):
            total += float(_block_sum(one, one_weights, other, other_weights, jnp.asarray(widths)))
    return total


def _blocks(points: np.ndarray, chunk_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Blocks of one size with weights 1, or 0 for the filling."""
    size = min(chunk_size, len(points))
    found = []
    for start in range(0, len(points), size):
        index = np.arange(start, start + size)
        found.append((points[np.minimum(index, len(points) - 1)], (index < len(points)).astype(points.dtype)))
    return found


@jax.jit
def _block_sum(one: Array, one_weights: Array, other: Array, other_weights: Array, widths: Array) -> Array:
    kernel = jnp.exp(-0.5 * squared_distances(one, other)[..., None] / widths**2).mean(-1)
    return one_weights @ kernel @ other_weights


@jax.jit
def squared_distances(one: Array, other: Array) -> Array:
    """Of all pairs, shape (n, m), by differences of coordinates.

    A product of matrices would be faster, but loses what small bandwidths ask for: a point must be 0 from itself.
    """
    return jax.lax.map(lambda x: ((other - x) ** 2).sum(-1), one)


class TwoSampleTest(NamedTuple):
    """What a classifier made of two samples.

    Attributes:
        accuracy: on held-out draws; 1/2 where it sees no difference.
        p_value: the probability of such an accuracy or a better one by guessing.
        num_held_out: how many draws the accuracy is of.
    """

    accuracy: float
    p_value: float
    num_held_out: int


def classifier_two_sample_test(
    rng_key: jax.Array, x: ArrayLike, y: ArrayLike, *, hidden: tuple[int, ...] = (64, 64)
) -> TwoSampleTest:
    """Train a small network on half of the draws to tell x from y, and count how often it is right on the others.

    Needs the extra ``evaluation`` (scikit-learn). Both samples are cut to the same count, so that guessing is right
    half the time.

    Args:
        rng_key: JAX random key: which half, and the network's start.
        x: draws, shape (n, event...), n >= 20.
        y: draws, shape (m, event...), m >= 20.
        hidden: units of the hidden layers.

    Raises:
        ImportError: without scikit-learn.
        ValueError: for shapes that do not match, or fewer than 20 draws.

    References: Lopez-Paz and Oquab 2017.
    """
    left, right = rows("x", x, "y", y)
    count = min(len(left), len(right))
    check_integer_at_least("the number of draws in x and y", count, 20, "Half of them train, half test.")
    try:
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError(expected("scikit-learn", "no such module", _CLASSIFIER_CURE)) from error
    from scipy import stats

    key_left, key_right, key_network = jax.random.split(rng_key, 3)
    left = left[np.asarray(jax.random.permutation(key_left, len(left)))[:count]]
    right = right[np.asarray(jax.random.permutation(key_right, len(right)))[:count]]
    seed = int(jax.random.randint(key_network, (), 0, 2**31 - 1))
    half = count // 2
    network = MLPClassifier(
        hidden,
        batch_size=min(64, 2 * half),
        learning_rate_init=3e-3,
        early_stopping=True,
        n_iter_no_change=20,
        max_iter=500,
        random_state=seed,
    )
    classifier = make_pipeline(StandardScaler(), network)
    classifier.fit(np.concatenate([left[:half], right[:half]]), np.repeat([0, 1], half))
    held_out = np.concatenate([left[half:], right[half:]])
    right_answers = classifier.predict(held_out) == np.repeat([0, 1], count - half)
    test = stats.binomtest(int(right_answers.sum()), len(held_out), alternative="greater")
    return TwoSampleTest(float(right_answers.mean()), float(test.pvalue), len(held_out))
