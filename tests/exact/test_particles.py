"""Weights, resampling and pooling: what holds exactly, and proportions where draws are random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion._weights import (
    _invert,
    effective_size,
    gather,
    log_mean_and_error,
    log_mean_exp,
    log_normalised,
    multinomial,
    normalised,
    systematic,
)
from numpyro_diffusion.infer.result import draw_particles

WEIGHTS = np.array([0.1, 0.0, 0.45, 0.25, 0.2, 0.0])
LOG_WEIGHTS = jnp.log(jnp.asarray(WEIGHTS, float))


@pytest.mark.parametrize("library", [np, jnp], ids=["numpy", "jax"])
def test_weights_keep_their_numbers_whatever_their_size(library):
    """In the library and the dtype of the array."""
    weights = library.asarray(LOG_WEIGHTS, float)
    np.testing.assert_allclose(normalised(weights + 500.0), WEIGHTS, atol=1e-5)
    np.testing.assert_allclose(log_normalised(weights + 500.0), LOG_WEIGHTS, atol=1e-4)
    np.testing.assert_allclose(log_mean_exp(weights - 1000.0), -1000 - np.log(6), rtol=1e-6)
    np.testing.assert_allclose(effective_size(weights), 1 / (WEIGHTS**2).sum(), rtol=1e-5)
    by_element = library.stack([weights, library.zeros(6), library.full(6, -np.inf)], axis=1)
    for axis, logs in ((0, by_element), (1, by_element.T)):
        assert type(log_mean_exp(logs, axis)) is type(logs)
        assert log_mean_exp(logs, axis).dtype == logs.dtype
        np.testing.assert_allclose(effective_size(logs, axis)[1:], 6.0, rtol=1e-6)  # all zero: as equal, no NaN
        np.testing.assert_allclose(log_mean_exp(logs, axis)[1:], [0.0, -np.inf])
        np.testing.assert_array_equal(log_normalised(logs, axis).take(2, 1 - axis), np.full(6, -np.inf))


def test_systematic_resampling_takes_each_particle_its_share_rounded_up_or_down():
    weights = np.repeat(WEIGHTS, 3)
    log_weights = jnp.log(jnp.asarray(weights, float))
    for seed in range(20):
        on_device = systematic(jax.random.key(seed), log_weights)
        on_host = systematic(np.random.default_rng(seed), np.asarray(log_weights, np.float64))
        for counts in (np.bincount(ancestors, minlength=18) for ancestors in (on_device, on_host)):
            assert (np.abs(counts - 18 * weights / weights.sum()) < 1).all()
            assert (counts[weights == 0] == 0).all()


@pytest.mark.parametrize("resample", [systematic, multinomial])
def test_resampling_is_unbiased_and_apart_for_each_element(resample):
    """4000 times 6 of 6: the mean count of each particle against its weight, in two elements of different weights."""
    both = jnp.stack([LOG_WEIGHTS, LOG_WEIGHTS[::-1]], axis=1).reshape(6, 2, 1)
    ancestors = jax.jit(jax.vmap(lambda key: resample(key, both)))(jax.random.split(jax.random.key(0), 4000))
    assert ancestors.shape == (4000, 6, 2, 1)
    counts = (ancestors[..., None] == jnp.arange(6)).sum(1).reshape(4000, 2, 6)
    for element, weights in enumerate((WEIGHTS, WEIGHTS[::-1])):
        # A count varies no more than a binomial one.
        error = np.sqrt(6 * weights * (1 - weights) / 4000)
        assert (np.abs(counts[:, element].mean(0) - 6 * weights) <= 5 * error).all()


def test_a_particle_of_weight_zero_is_not_taken_even_at_the_edge():
    """Points that rounding puts at 0 or at 1, where the last particle has no weight."""
    assert _invert(jnp.array([0.0, 1.0]), jnp.array([-jnp.inf, 0.0, 0.0, -jnp.inf])).tolist() == [1, 2]


def test_ancestors_are_gathered_element_by_element():
    x = jnp.arange(24.0).reshape(4, 3, 2)
    ancestors = jnp.array([[0, 1, 2], [3, 3, 3]])
    wanted = [[x[0, 0], x[1, 1], x[2, 2]], [x[3, 0], x[3, 1], x[3, 2]]]
    np.testing.assert_array_equal(gather({"x": x}, ancestors)["x"], wanted)
    np.testing.assert_array_equal(gather(x, jnp.array([2, 0])), x[jnp.array([2, 0])])


def test_the_mean_evidence_and_its_error_by_the_delta_method():
    values = np.array([1.0, 2.0, 4.0])
    log_mean, error = log_mean_and_error(np.log(values) - 800.0)
    np.testing.assert_allclose(log_mean, np.log(values.mean()) - 800.0)
    np.testing.assert_allclose(error, values.std(ddof=1) / np.sqrt(3) / values.mean())
    assert np.isnan(log_mean_and_error(np.zeros(1))[1])
    assert log_mean_and_error(np.full(3, -np.inf))[0] == -np.inf


@pytest.mark.parametrize("together", [True, False])
def test_pooled_draws_have_the_weights_of_islands_and_particles(together):
    """Two islands with weights 1:3, two elements: joint proportions of 20000 draws."""
    log_weights = np.log(np.array([[[0.5, 0.9], [0.5, 0.1]], [[0.2, 0.5], [0.8, 0.5]]]))  # (island, particle, element)
    log_evidence = np.log(np.array([1.0, 3.0]))
    evidence = log_evidence if together else np.stack([log_evidence, log_evidence[::-1]], axis=1)
    count = 20_000
    islands, particles = draw_particles(np.random.default_rng(0), log_weights, evidence, count)
    assert islands.shape == particles.shape == (count, 2)
    if together:
        assert (islands[:, 0] == islands[:, 1]).all()
    share = np.exp(evidence) / np.exp(evidence).sum(0)
    for first in range(4):
        for second in range(4):
            at = (first // 2, first % 2), (second // 2, second % 2)
            if together:
                wanted = share[at[0][0]] if at[0][0] == at[1][0] else 0.0
            else:
                wanted = share[at[0][0], 0] * share[at[1][0], 1]
            for element in range(2):
                wanted = wanted * np.exp(log_weights[(*at[element], element)])
            found = np.all((islands == [a[0] for a in at]) & (particles == [a[1] for a in at]), axis=1).mean()
            assert abs(found - wanted) <= 5 * np.sqrt(wanted / count)
