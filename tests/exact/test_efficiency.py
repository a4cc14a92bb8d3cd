"""The interval of importance weights' efficiency holds the truth where the estimate itself is too large."""

import numpy as np
import pytest

from numpyro_diffusion.noise.efficiency import efficiency_interval, pareto_k


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_the_interval_holds_the_truth_of_log_normal_weights(spread):
    """(E w)^2 / E w^2 = exp(-s^2)."""
    truth, rng = np.exp(-(spread**2)), np.random.default_rng(0)
    held, above = 0, 0
    for _ in range(40):
        log_weights = spread * rng.normal(size=500)
        low, high = efficiency_interval(log_weights)
        held += low <= truth <= high
        weights = np.exp(log_weights)
        above += weights.mean() ** 2 / (weights**2).mean() > truth
    assert held >= 33  # of 40: 95% less four standard errors
    assert spread < 2 or above > 33


def test_equal_weights_are_worth_all_of_their_draws():
    assert efficiency_interval(np.zeros(100)) == (1.0, 1.0)
    assert efficiency_interval(np.where(np.arange(100) < 25, 3.0, -np.inf)) == (0.25, 0.25)


def test_weights_without_a_variance_have_no_lower_end():
    rng = np.random.default_rng(0)
    assert efficiency_interval(0.8 * rng.exponential(size=1000))[0] == 0  # tail index 1 / 0.8


@pytest.mark.parametrize("count", [2, 20, 24])
def test_weights_too_few_for_a_shape_tell_nothing(count):
    weights = np.random.default_rng(0).normal(size=count)
    assert pareto_k(weights) == np.inf
    assert efficiency_interval(weights) == (0.0, 1.0)


def test_thirty_weights_have_a_shape():
    assert np.isfinite(pareto_k(np.random.default_rng(0).normal(size=30)))
