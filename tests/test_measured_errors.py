"""The comparisons other tests rely on: their errors are the errors; what is wrong fails, and what cannot tell fails."""

import numpy as np
import pytest
from measured_errors import (
    Mean,
    Moments,
    agree,
    check,
    of_chains,
    of_independent,
    of_islands,
    of_resampled,
    of_weighted,
)

REPEATS = 400
SPREAD = 5 / np.sqrt(2 * REPEATS)  # five errors of a standard deviation that is one


def z_scores(estimate, wanted):
    found = [estimate(np.random.default_rng(seed)) for seed in range(REPEATS)]
    return np.array([(mean.value - wanted) / mean.error for mean in found])


def islands(rng):
    """64 islands of 8 particles: an island's particles share an error, and its weight depends on where they are."""
    values = rng.normal(size=(64, 1)) + 0.5 * rng.normal(size=(64, 8))
    return values.ravel(), np.broadcast_to(0.3 * values.mean(1, keepdims=True), values.shape).ravel()


# The weights exp(0.3 m) move the mean of N(0, 1 + 1/32) by 0.3 of its variance.
ISLANDS_MEAN = 0.3 * (1 + 0.25 / 8)


def autoregressive(rng):
    values = rng.normal(size=(8, 500))
    for i in range(1, 500):
        values[:, i] = 0.9 * values[:, i - 1] + np.sqrt(1 - 0.81) * values[:, i]
    return values


@pytest.mark.parametrize(
    ("estimate", "wanted"),
    [
        (lambda rng: of_independent(rng.exponential(size=300)), 1.0),
        (lambda rng: of_islands(*islands(rng), 64), ISLANDS_MEAN),
        (lambda rng: of_weighted(x := rng.normal(size=300), 0.3 * x), 0.3),
        (lambda rng: of_chains(autoregressive(rng)), 0.0),
    ],
    ids=["independent", "islands", "weighted", "chains"],
)
def test_errors_are_the_spread_of_the_means(estimate, wanted):
    z = z_scores(estimate, wanted)
    # Estimating the error itself, from 64 islands or a chain's effective size, widens z by a few hundredths.
    assert abs(z.std() - 1) < SPREAD + 0.05
    assert abs(z.mean()) < 0.3  # the delta method's bias, a small part of one error


def test_errors_that_take_islands_or_chains_for_independent_draws_would_be_too_small():
    rng = np.random.default_rng(0)
    values, log_weights = islands(rng)
    assert of_islands(values, log_weights, 64).error > 2 * of_weighted(values, log_weights).error
    chains = autoregressive(rng)
    assert of_chains(chains).error > 3 * of_independent(chains.ravel()).error


def test_resampling_adds_its_own_error():
    values = np.random.default_rng(0).normal(size=400)
    assert of_resampled(values, Mean(0.0, 0.0)).error == pytest.approx(0.05, rel=0.2)
    assert of_resampled(values, Mean(0.0, 0.1)).error == pytest.approx(np.hypot(0.05, 0.1), rel=0.1)


def test_what_is_more_than_five_errors_off_fails():
    found = Mean(np.array([1.0, 2.0]), np.array([0.1, 0.1]))
    assert agree(found, [1.4, 2.4])
    assert not agree(found, [1.4, 2.6])
    check(found, [1.0, 2.0], refused=[1.0, 3.1])
    with pytest.raises(AssertionError, match="is exact"):
        check(found, [1.0, 2.6])


def test_a_comparison_that_the_wrong_value_would_pass_fails():
    with pytest.raises(AssertionError, match="do not tell"):
        check(Mean(np.array(1.0), np.array(0.1)), 1.0, refused=1.6)


def test_no_error_is_no_comparison():
    with pytest.raises(AssertionError):
        check(Mean(np.array(1.0), np.array(np.nan)), 1.0)


def test_second_moments_are_taken_about_the_wanted_mean():
    wanted, other = Moments([1.0, 0.0], np.eye(2)), Moments([0.0, 0.0], 2 * np.eye(2))
    draws = np.random.default_rng(0).normal(size=(4000, 2)) * np.sqrt(2)
    check(of_independent(wanted.of(draws)), other.expected(wanted), refused=wanted.expected(wanted))
