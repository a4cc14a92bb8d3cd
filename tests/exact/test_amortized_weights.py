"""E w = p(y) and the weighted draws are the posterior's, whatever the network: here it is noise."""

import amortized_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import integrate, stats

from numpyro_diffusion.infer.amortized.weights import log_weight_of_noise, weighted_values

DRAWS = 4000


@pytest.fixture(scope="module")
def wrong():
    """Of the linear model, with a network of noise."""
    return cases.spoiled(cases.untrained(cases.linear), jax.random.key(1), 0.09)


def weighted(posterior, num_paths, num_draws=DRAWS, key=2):
    keys = jax.random.split(jax.random.key(key), num_draws)
    return weighted_values(posterior._simulator, posterior._bounds, posterior._y, keys, num_paths)


def assert_unbiased(log_weights, log_evidence):
    weights = np.exp(np.asarray(log_weights, np.float64) - log_evidence)
    error = weights.std(ddof=1) / np.sqrt(len(weights))
    assert abs(weights.mean() - 1) < 5 * error
    assert error < 0.2  # the test has power


def assert_expectation(log_weights, values, truth):
    """A weighted mean, by the delta method."""
    weights = np.exp(np.asarray(log_weights, np.float64) - np.max(log_weights))
    weights /= weights.sum()
    mean = weights @ values
    error = np.sqrt((weights**2)[:, None].T @ (values - mean) ** 2)[0]
    assert (np.abs(mean - truth) < 5 * error).all()


@pytest.mark.parametrize("num_paths", [1, 5])
def test_the_mean_weight_is_the_evidence_for_a_network_of_noise(wrong, num_paths):
    log_evidence, mean, covariance = cases.linear_truth()
    values, log_weights = weighted(wrong.condition(cases.Y), num_paths)
    assert np.std(np.asarray(log_weights)) > 0.9  # it is wrong
    assert_unbiased(log_weights, log_evidence)
    x = np.asarray(values["x"], np.float64)
    assert_expectation(log_weights, x, mean)
    assert_expectation(log_weights, (x - mean) ** 2, np.diagonal(covariance))


def test_more_paths_make_weights_more_even(wrong):
    """The weight of many paths is the mean of one path's over which of them the chain drew."""
    posterior = wrong.condition(cases.Y)
    weights = [np.exp(np.asarray(weighted(posterior, num_paths)[1], np.float64)) for num_paths in (1, 5)]
    one, five = (each.std() / each.mean() for each in weights)
    assert five < 0.9 * one


def test_the_weight_of_noises_is_that_of_one_path(wrong):
    posterior = wrong.condition(cases.Y)
    (bound,) = posterior._bounds
    noise = jax.random.normal(jax.random.key(3), (2000, *bound.chain(bound.embedded[:0]).event_shape))
    _, log_weights = jax.jit(jax.vmap(lambda z: log_weight_of_noise(posterior._simulator, bound, posterior._y, z)))(
        noise
    )
    assert_unbiased(log_weights, cases.linear_truth()[0])


def test_the_path_of_noises_ends_where_they_lead(wrong):
    (bound,) = wrong.condition(cases.Y)._bounds
    chain = bound.chain(bound.embedded[:0])
    noise = jax.random.normal(jax.random.key(8), (3, *chain.event_shape))
    path = chain.path_from_noise(noise)
    assert path.shape == noise.shape
    np.testing.assert_allclose(path[:, 0], chain.from_noise(noise), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(path[:, -1], noise[:, -1])


def test_gradients_of_the_weight_of_noises_are_numbers(wrong):
    posterior = wrong.condition(cases.Y)
    (bound,) = posterior._bounds
    noise = jnp.zeros(bound.chain(bound.embedded[:0]).event_shape)
    slope = jax.grad(lambda z: log_weight_of_noise(posterior._simulator, bound, posterior._y, z)[1])(noise)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("num_paths", [1, 3])
def test_bits_are_weighted_to_the_enumerated_posterior(num_paths):
    amortized = cases.spoiled(cases.untrained(cases.bits), jax.random.key(4), 0.1)
    y = np.float32(0.4)
    log_evidence, chances = cases.bits_truth(0.4)
    values, log_weights = weighted(amortized.condition(y), num_paths)
    assert_unbiased(log_weights, log_evidence)
    drawn = np.concatenate([np.asarray(values["first"])[:, None], np.asarray(values["others"])], axis=1)
    assert_expectation(log_weights, drawn.astype(float), chances)


def mixed():
    """A class, a bit and positive numbers, one after the other in the chain."""
    group = numpyro.sample("group", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
    sign = numpyro.sample("sign", dist.Bernoulli(0.3))
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    numpyro.sample("y", dist.Normal((2.0 * sign - 1.0) * rate + jnp.array([0.0, 1.0, 3.0])[group], 0.5))


def test_classes_bits_and_positive_numbers_together():
    def density(rate, y, group, sign):
        mean = (2 * sign - 1) * rate + (0.0, 1.0, 3.0)[group]
        chance = (0.2, 0.5, 0.3)[group] * (0.3 if sign else 0.7)
        return chance * stats.gamma.pdf(rate, 2.0) * stats.norm.pdf(y, mean, 0.5)

    amortized = cases.spoiled(cases.untrained(mixed), jax.random.key(5), 0.1)
    parts = {
        (group, sign): integrate.quad(density, 0, 30, args=(0.8, group, sign), limit=200)[0]
        for group in range(3)
        for sign in range(2)
    }
    total = sum(parts.values())
    values, log_weights = weighted(amortized.condition(np.float32(0.8)), 2)
    assert_unbiased(log_weights, np.log(total))
    indicator = np.stack([np.asarray(values["group"]) == group for group in range(3)], axis=1).astype(float)
    truth = [(parts[group, 0] + parts[group, 1]) / total for group in range(3)]
    assert_expectation(log_weights, indicator, truth)


def simplex():
    """Sites whose bijections stretch: a simplex, a matrix, an interval."""
    shares = numpyro.sample("shares", dist.Dirichlet(jnp.array([2.0, 1.0, 3.0])))
    matrix = numpyro.sample("matrix", dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2))
    level = numpyro.sample("level", dist.Uniform(-1.0, 2.0))
    numpyro.sample("y", dist.Normal(jnp.array([shares[0], matrix.sum(), level]), 0.5).to_event(1))


def test_changes_of_variables_are_in_the_weight():
    """y_1 of the simplex alone, y_2 of the matrix, y_3 of the level: three evidences."""
    y = np.array([0.4, 1.0, 0.2])
    first = integrate.quad(lambda p: stats.beta.pdf(p, 2, 4) * stats.norm.pdf(y[0], p, 0.5), 0, 1)[0]
    second = stats.norm.pdf(y[1], 0, np.sqrt(4 + 0.25))
    third = (stats.norm.cdf((2 - y[2]) / 0.5) - stats.norm.cdf((-1 - y[2]) / 0.5)) / 3
    amortized = cases.spoiled(cases.untrained(simplex), jax.random.key(6), 0.1)
    values, log_weights = weighted(amortized.condition(y.astype(np.float32)), 2)
    assert_unbiased(log_weights, np.log(first * second * third))
    assert values["matrix"].shape == (DRAWS, 2, 2)
    np.testing.assert_allclose(np.asarray(values["shares"]).sum(1), 1, atol=1e-5)
