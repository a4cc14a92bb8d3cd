"""Draws of the flow in few steps: for a Gaussian every step is one known line, and more steps come nearer the data."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from catalogue import affine, bernoulli
from measured_errors import check, of_independent
from numpyro.distributions.transforms import AffineTransform
from precision import enable_x64
from respaced_cases import MEAN, SPREAD, T, normal_prior

import numpyro_diffusion as nd
from numpyro_diffusion.evaluation import flow_sample

LONG = nd.schedules.log_snr(200, 0.01, 200.0)


def line(schedule):
    """Intercept and slope of x^0 in x^T, by DDIM's recursion in eps = (x^t - a x0hat) / sqrt(n)."""
    signal, sigma = np.sqrt(schedule.alpha_bar), np.sqrt(schedule.noise_variance)
    start, slope = 0.0, 1.0
    for t in range(schedule.num_steps, 0, -1):
        gain = signal[t] * SPREAD**2 / (signal[t] ** 2 * SPREAD**2 + sigma[t] ** 2)
        estimate = np.array([MEAN + gain * (start - signal[t] * MEAN), gain * slope])
        noise = (np.array([start, slope]) - signal[t] * estimate) / sigma[t]
        start, slope = signal[t - 1] * estimate + sigma[t - 1] * noise
    return start, slope


@pytest.mark.parametrize("num_steps", [1, 2, 7, T])
def test_for_a_gaussian_it_is_the_line_of_the_recursion(num_steps):
    with enable_x64():
        chain = normal_prior().chain.respaced(num_steps)
        x_top = np.linspace(-2.0, 2.0, 5)[:, None]
        start, slope = line(chain.kernel.schedule)
        np.testing.assert_allclose(chain.flow(x_top), start + slope * x_top, rtol=1e-9)


def test_more_steps_come_nearer_the_data_in_proportion():
    """The distance W2 of two Gaussians, by the line alone; Euler's rule is of first order."""
    with enable_x64():
        distances = []
        for num_steps in (10, 20, 40, 80):
            chain = normal_prior(LONG).chain.respaced(num_steps)
            low, high = np.asarray(chain.flow(np.array([[0.0], [1.0]])))[:, 0]
            distances.append(np.hypot(low - MEAN, abs(high - low) - SPREAD))
        ratios = np.array(distances[:-1]) / distances[1:]
        assert (ratios > 1.7).all(), distances
        assert distances[-1] < 0.1 * SPREAD


def test_draws_have_the_moments_of_the_line_in_the_models_units():
    prior = normal_prior()
    start, slope = line(prior.respaced(5).kernel.schedule)
    draws = np.asarray(flow_sample(jax.random.key(0), prior, 5, (5000,)))
    assert draws.shape == (5000, 1)
    check(of_independent(draws[:, 0]), start, refused=0.0)
    check(of_independent((draws[:, 0] - start) ** 2), slope**2, refused=SPREAD**2)
    scaled = dist.TransformedDistribution(prior.expand((3,)), AffineTransform(100.0, 5.0))
    found = flow_sample(jax.random.key(1), scaled, 5, (2,))
    plain = flow_sample(jax.random.key(1), prior.expand((3,)), 5, (2,))
    assert found.shape == (2, 3, 1)
    np.testing.assert_allclose(found, 100 + 5 * plain, rtol=1e-5)
    np.testing.assert_array_equal(flow_sample(jax.random.key(1), prior.chain, T), flow_sample(jax.random.key(1), prior))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda key: flow_sample(key, nd.Diffusion(bernoulli(), affine((2,))), 2),
            TypeError,
            "a kernel of real states for the flow; got BernoulliKernel",
        ),
        (lambda key: flow_sample(key, dist.Normal()), TypeError, "a Diffusion, alone or inside of transforms"),
        (lambda key: flow_sample(key, normal_prior(), 0), ValueError, "num_steps to be an integer >= 1; got 0"),
        (lambda key: flow_sample(key, normal_prior(), 21), ValueError, "num_steps <= T = 20; got 21"),
        (lambda key: normal_prior().chain.flow(jnp.zeros(3)), ValueError, r"trailing dimensions \(1,\) for x_top"),
        (
            lambda key: nd.ReverseChain(normal_prior().kernel, normal_prior().transition, stop=1).flow(jnp.zeros(1)),
            ValueError,
            r"a chain down to x\^0 for the flow; got stop=1",
        ),
    ],
)
def test_what_has_no_flow_is_refused(call, error, match):
    with pytest.raises(error, match=match):
        call(jax.random.key(0))
