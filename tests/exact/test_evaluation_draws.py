"""Distances of draws, Parzen windows and calibration against their definitions and known distributions.

Random tests have fixed keys; an average passes when it lies within 5 standard errors, a p-value above 1e-5.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion.evaluation import (
    classifier_two_sample_test,
    expected_coverage,
    max_mean_discrepancy,
    parzen_log_likelihood,
    rank_uniformity,
    sbc_ranks,
    sliced_wasserstein,
)

KEY = jax.random.key(0)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def test_sliced_distance_of_a_shift_is_its_mean_projection():
    """The mean of |<theta, shift>| over the circle is 2 |shift| / pi, with variance |shift|^2 (1/2 - 4/pi^2)."""
    x, shift = normal(0, 50, 2), np.array([3.0, 4.0])
    distance = sliced_wasserstein(KEY, x, x[::-1] + shift, num_slices=2000)
    assert abs(distance - 10 / math.pi) < 5 * 5 * math.sqrt(0.5 - 4 / math.pi**2) / math.sqrt(2000)
    # In one dimension every direction is the same one; images are points too.
    np.testing.assert_allclose(sliced_wasserstein(KEY, x[:, :1], x[:, :1] - 0.7), 0.7, rtol=1e-12)
    images = x.reshape(50, 2, 1)
    assert sliced_wasserstein(KEY, images, images + 1.0) == sliced_wasserstein(KEY, x, x + 1.0)


def test_discrepancy_is_the_mean_over_pairs_without_the_diagonal():
    x, y, widths = normal(1, 30, 2), normal(2, 21, 2) + 0.5, [0.5, 2.0]

    def kernel(a, b):
        squares = ((a[:, None] - b) ** 2).sum(-1)
        return np.mean([np.exp(-0.5 * squares / h**2) for h in widths], axis=0)

    exact = (kernel(x, x).sum() - 30) / (30 * 29) + (kernel(y, y).sum() - 21) / (21 * 20) - 2 * kernel(x, y).mean()
    for chunk_size in (8, 100):
        found = max_mean_discrepancy(x, y, bandwidths=widths, chunk_size=chunk_size)
        assert found == pytest.approx(exact, abs=1e-6)


def test_discrepancy_of_one_law_is_zero_on_average():
    found = [max_mean_discrepancy(normal(2 * seed, 20, 1), normal(2 * seed + 1, 20, 1)) for seed in range(200)]
    assert abs(np.mean(found)) < 5 * np.std(found) / math.sqrt(200)
    assert min(found) < 0  # unbiased, so not clipped
    assert np.std(found) / math.sqrt(200) < 0.005  # the biased estimate would be 0.05 off


def test_a_classifier_tells_a_shift_and_nothing_else():
    same = classifier_two_sample_test(KEY, normal(3, 200, 2), normal(4, 220, 2))
    assert same.num_held_out == 200
    assert same.p_value > 1e-5
    apart = classifier_two_sample_test(KEY, normal(3, 200, 2), normal(4, 220, 2) + 3)
    assert apart.accuracy > 0.9
    assert apart.p_value < 1e-5


def parzen(samples, points, bandwidth):
    squares = ((points[:, None].astype(float) - samples) ** 2).sum(-1) / bandwidth**2
    return np.log(np.exp(-0.5 * squares).mean(1)) - samples.shape[1] * np.log(bandwidth * math.sqrt(2 * math.pi))


def test_parzen_windows_are_the_mean_of_normals_in_any_chunks():
    samples, x, held_out = (normal(seed, count, 2).astype(np.float32) for seed, count in ((5, 50), (6, 9), (7, 12)))
    for chunk_size in (1000, 8):
        found = parzen_log_likelihood(samples, x, held_out, bandwidths=[0.05, 0.4, 5.0], chunk_size=chunk_size)
        np.testing.assert_allclose(
            found.validation, [parzen(samples, held_out, h).mean() for h in (0.05, 0.4, 5.0)], rtol=1e-4
        )
        assert found.bandwidth == 0.4
        np.testing.assert_allclose(found.per_point, parzen(samples, x, 0.4), rtol=1e-4)


def test_the_bandwidth_is_the_validation_datas_and_not_the_test_datas():
    samples = normal(8, 60, 1).astype(np.float32)
    wide = 3 * normal(9, 40, 1).astype(np.float32)
    narrow = parzen_log_likelihood(samples, wide, samples[:20])
    assert narrow.bandwidth < parzen_log_likelihood(samples, samples, wide).bandwidth
    assert narrow.bandwidths.shape == narrow.validation.shape == (13,)


def conjugate(num_data_sets, num_draws, spread, seed=0):
    """x ~ N(0, 1), y ~ N(x, 1), draws of N(y / 2, spread^2 / 2): the posterior if spread is 1."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=num_data_sets)
    y = truth + rng.normal(size=num_data_sets)
    return truth, y[:, None] / 2 + spread * math.sqrt(0.5) * rng.normal(size=(num_data_sets, num_draws))


def test_ranks_are_uniform_for_the_posterior_and_not_for_a_narrower_one():
    ranks = sbc_ranks(*conjugate(800, 63, 1.0))
    assert ranks.shape == (800,)
    assert (ranks.min(), ranks.max()) == (0, 63)
    assert rank_uniformity(ranks, 63) > 1e-5
    assert rank_uniformity(sbc_ranks(*conjugate(800, 63, 0.7)), 63) < 1e-5


def test_ties_are_broken_at_random():
    truth, draws = np.ones((4000, 1)), np.ones((4000, 3, 1))
    with pytest.raises(ValueError, match="12000 ties"):
        sbc_ranks(truth, draws)
    ranks = sbc_ranks(truth, draws, rng_key=KEY)[:, 0]
    assert rank_uniformity(ranks, 3, num_bins=4) > 1e-5
    assert set(ranks) == {0, 1, 2, 3}


def test_credible_intervals_hold_the_truth_as_often_as_they_say():
    found = expected_coverage(*conjugate(2000, 199, 1.0), levels=[0.5, 0.9])
    np.testing.assert_allclose(found.levels, [0.5, 0.9])
    assert (np.abs(found.coverage - found.levels) < 5 * found.standard_errors).all()
    narrow = expected_coverage(*conjugate(2000, 199, 0.7), levels=[0.5, 0.9])
    assert (narrow.coverage < found.levels - 5 * found.standard_errors).all()


def test_levels_that_few_draws_cannot_have_are_rounded_and_stated():
    found = expected_coverage(*conjugate(4000, 9, 1.0), levels=[0.75])
    np.testing.assert_allclose(found.levels, [0.8])
    assert abs(found.coverage[0] - 0.8) < 5 * found.standard_errors[0]


X = np.zeros((25, 2), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sliced_wasserstein(KEY, X, X[:3]), ValueError, "x and y of one shape"),
        (lambda: sliced_wasserstein(KEY, X, X * np.nan), ValueError, "finite values for y"),
        (lambda: sliced_wasserstein(KEY, X, X, num_slices=0), ValueError, "num_slices"),
        (lambda: max_mean_discrepancy(X, X[:, :1]), ValueError, "x of shape"),
        (lambda: max_mean_discrepancy(X, X[:1]), ValueError, "number of draws in y"),
        (lambda: max_mean_discrepancy(X, X), ValueError, "a median distance of 0"),
        (lambda: max_mean_discrepancy(X, X, bandwidths=[0.0]), ValueError, "bandwidths > 0"),
        (lambda: max_mean_discrepancy(X, X, chunk_size=0), ValueError, "chunk_size"),
        (lambda: classifier_two_sample_test(KEY, X, X[:5]), ValueError, "number of draws in x and y"),
        (lambda: parzen_log_likelihood(X, X, X[:0]), ValueError, "validation of shape"),
        (lambda: parzen_log_likelihood(X, X, X, bandwidths=[-1.0]), ValueError, "bandwidths > 0"),
        (lambda: parzen_log_likelihood(X, X.astype(int), X), TypeError, "floating-point values for x"),
        (lambda: sbc_ranks(X, X), ValueError, "draws of shape"),
        (lambda: sbc_ranks(X, np.full((25, 3, 2), np.inf)), ValueError, "finite values for draws"),
        (lambda: rank_uniformity(np.zeros(100, int), 62), ValueError, "num_bins to divide num_draws"),
        (lambda: rank_uniformity(np.zeros(10, int), 63), ValueError, "n >= 5 for each of 8 bins"),
        (lambda: rank_uniformity(np.full(100, 64), 63), ValueError, r"ranks in 0\.\.63"),
        (lambda: expected_coverage(X, np.ones((25, 3, 2))), ValueError, "enough draws"),
        (lambda: expected_coverage(X, np.ones((25, 30, 2)), levels=[1.0]), ValueError, "levels in"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.neural_network", None)
    with pytest.raises(ImportError, match=r"numpyro-diffusion\[evaluation\]"):
        classifier_two_sample_test(KEY, normal(0, 30, 1), normal(1, 30, 1))


def test_jax_arrays_are_taken_as_well():
    x = jnp.asarray(normal(0, 40, 2), jnp.float32)
    assert sliced_wasserstein(KEY, x, x) == 0
    assert max_mean_discrepancy(x, x) == pytest.approx(-2 * (1 - float(mean_kernel(x))) / 40, abs=1e-5)


def mean_kernel(x):
    """The mean kernel of two different rows, at the median distance of all rows of x twice over."""
    both = np.concatenate([x, x])
    distances = np.sqrt(((both[:, None] - both) ** 2).sum(-1))
    width = np.median(distances[np.triu_indices(80, 1)])
    kernel = np.exp(-0.5 * distances[:40, :40] ** 2 / width**2)
    return (kernel.sum() - 40) / (40 * 39)
