"""Guidance above the data's noise level by a mean and covariance known beforehand, against the conjugate Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from closed_forms import linear_posterior
from correlated_gaussian import SPREAD, correlated_chain, exact_errors

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import CovarianceGuidance, PilotGuidance, TiltedChain, pilot_guidance

CHAIN, COVARIANCES = correlated_chain()
ERRORS = exact_errors(COVARIANCES)
Y, NOISE = np.array([1.5, -0.8, 0.4], np.float32), 0.6
EVIDENCE, MEAN, COVARIANCE = linear_posterior(np.zeros(3), SPREAD, np.eye(3), NOISE**2 * np.eye(3), Y)
BELOW = CovarianceGuidance(np.eye(3), Y, NOISE, errors=ERRORS)
LEVELS = np.sqrt(np.asarray(CHAIN.kernel.schedule.noise_variance / CHAIN.kernel.schedule.alpha_bar, float))


def test_one_network_call_gives_the_posterior_of_a_gaussian():
    """Whatever the level that the network is asked at: what it leaves of y is added exactly."""
    for noise in (NOISE, 2.3):
        _, mean, covariance = linear_posterior(np.zeros(3), SPREAD, np.eye(3), noise**2 * np.eye(3), Y)
        found = pilot_guidance(CHAIN, Y, noise, errors=ERRORS)
        np.testing.assert_allclose(found.mean, mean, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose((found.directions * found.powers) @ found.directions.T, covariance, atol=2e-3)


def test_a_step_is_that_of_x_0_given_x_t_under_the_pilot_and_below_the_level_that_of_the_other():
    """Written out in NumPy, step by step of t; a batch of t as one t each."""
    pilot = PilotGuidance(MEAN, COVARIANCE, NOISE, BELOW)
    x_t = jax.random.normal(jax.random.key(0), (2, 3))
    kernel = CHAIN.kernel
    for t in (1, 8, 15, 22, 30):
        a, n = np.sqrt(float(kernel.schedule.alpha_bar[t])), float(kernel.schedule.noise_variance[t])
        gain = a * COVARIANCE @ np.linalg.inv(a**2 * COVARIANCE + n * np.eye(3))
        x_0 = MEAN + (np.asarray(x_t, float) - a * MEAN) @ gain.T
        variance = np.diag(COVARIANCE - a * gain @ COVARIANCE)
        c, lower = (float(number) for number in kernel.bridge_terms(t, jnp.zeros(())))
        step = CHAIN.reverse(x_t, t)
        loc = np.asarray(step.loc) + c * (x_0 - np.asarray(CHAIN.denoised(x_t, t)))
        scale = np.broadcast_to(np.sqrt(lower + c**2 * variance), (2, 3))
        if LEVELS[t] <= NOISE:
            loc, scale = BELOW(CHAIN, x_t, t).loc, BELOW(CHAIN, x_t, t).scale
        found = pilot(CHAIN, x_t, t)
        np.testing.assert_allclose(found.loc, loc, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.scale, scale, rtol=1e-3)
    both = pilot(CHAIN, x_t, jnp.array([8, 22]))
    for row, t in enumerate((8, 22)):
        np.testing.assert_allclose(both.loc[row], pilot(CHAIN, x_t, t).loc[row], rtol=1e-5, atol=1e-6)


def test_the_weights_are_nearly_flat_and_their_mean_is_the_evidence():
    pilot = pilot_guidance(CHAIN, Y, NOISE, errors=ERRORS)
    log_r = lambda x: dist.Normal(x, NOISE).log_prob(Y).sum()
    tilted = TiltedChain(CHAIN, pilot)
    weights = np.asarray(tilted.log_weight(tilted.sample(jax.random.key(1), (2000,)), log_r), float)
    found = np.log(np.mean(np.exp(weights - weights.max()))) + weights.max()
    error = np.exp(weights - found).std() / np.sqrt(len(weights))
    assert weights.std() < 0.6
    assert abs(found - EVIDENCE) < 5 * error + 0.05  # the chain of 30 steps is not quite N(0, SPREAD)


def test_a_wrong_pilot_is_weighted_too():
    pilot = PilotGuidance(MEAN + 0.5, 2 * COVARIANCE, NOISE, BELOW)
    log_r = lambda x: dist.Normal(x, NOISE).log_prob(Y).sum()
    tilted = TiltedChain(CHAIN, pilot)
    x_0, weight = tilted.weighted_from_noise(jax.random.normal(jax.random.key(0), (20_000, 31, 3)))
    weights = np.asarray(weight + jax.vmap(log_r)(x_0), float)
    found = np.log(np.mean(np.exp(weights - weights.max()))) + weights.max()
    error = np.exp(weights - found).std() / np.sqrt(len(weights))
    assert abs(found - EVIDENCE) < 5 * error + 0.05


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"covariance": np.eye(2)}, r"covariance \(d, d\); got shapes \(3,\) and \(2, 2\)"),
        ({"covariance": -np.eye(3)}, "positive definite covariance; got smallest eigenvalue -1"),
        ({"covariance": np.triu(np.ones((3, 3))) + 3 * np.eye(3)}, "a symmetric positive definite covariance"),
        ({"mean": np.array([0.0, np.nan, 0.0])}, "mean"),
        ({"noise_level": 0.0}, "noise_level > 0; got 0.0"),
        ({"noise_level": float("nan")}, "noise_level > 0; got nan"),
    ],
)
def test_what_does_not_fit_is_named(options, match):
    with pytest.raises(ValueError, match=match):
        PilotGuidance(**{"mean": MEAN, "covariance": COVARIANCE, "noise_level": NOISE, "below": BELOW, **options})


def test_a_value_of_another_shape_and_bits_are_refused():
    with pytest.raises(ValueError, match=r"a value of shape \(3,\) and one chain; got shape \(2,\)"):
        pilot_guidance(CHAIN, Y[:2], NOISE, errors=ERRORS)
    with pytest.raises(ValueError, match=r"batch_shape \(4,\)"):
        pilot_guidance(CHAIN.expand((4,)), Y, NOISE, errors=ERRORS)
    kernel = nd.BernoulliKernel(nd.schedules.constant_fraction(3))
    bits = nd.ReverseChain(kernel, nd.Transition(lambda params, x_t, t, context: 0.0 * x_t, None, (3,)))
    with pytest.raises(TypeError, match="a kernel of real states for pilot_guidance"):
        pilot_guidance(bits, Y, NOISE, errors=ERRORS)
