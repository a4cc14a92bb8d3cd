"""The network that starts as the exact denoiser of a Gaussian: its bound is the Gaussian's log density."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.modules import HaikuFunction
from numpyro_diffusion.networks import GaussianSkip


def kernel_of(num_steps=5, sigma_max=10.0):
    schedule = nd.schedules.log_snr(num_steps, 0.1, sigma_max)
    return nd.GaussianKernel(schedule, parameterization="x0", variance="denoiser")


def prior_of(kernel, mean=0.0, scale=1.0, event_shape=(3,)):
    network = GaussianSkip(
        kernel.schedule.log_snr[1:], mean, scale, width=8, depth=1, num_time_features=4, event_dim=len(event_shape)
    )
    function = HaikuFunction(network)
    params, _ = jax.jit(function.init)(jax.random.key(0), jnp.ones((1, *event_shape)), jnp.ones(1, int), None)
    return nd.Diffusion(kernel, nd.Transition(function, params, event_shape=event_shape))


@pytest.mark.parametrize("of_pixels", [False, True])
def test_a_u_net_begins_at_independent_pixels_too(of_pixels):
    kernel = kernel_of(4, 1e3)
    rng = np.random.default_rng(2)
    mean, scale = (rng.normal(size=15), rng.uniform(0.5, 2.0, 15)) if of_pixels else (0.0, 1.0)
    network = nd.networks.GaussianSkipUNet(
        kernel.schedule.log_snr[1:], mean, scale, width=4, num_levels=2, attention=False, num_time_features=2
    )
    function = HaikuFunction(network)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 5, 1)), jnp.float32)
    params, _ = jax.jit(function.init)(jax.random.key(0), x, jnp.ones(3, int), None)
    prior = nd.Diffusion(kernel, nd.Transition(function, params, event_shape=(3, 5, 1)))
    found = nd.evaluation.importance_weighted(jax.random.key(1), prior, x, num_trajectories=1)
    exact = dist.Normal(jnp.asarray(mean), jnp.asarray(scale)).log_prob(x.reshape(3, 15)).sum(1)
    np.testing.assert_allclose(found.per_point, exact, atol=0.05)
    with pytest.raises(ValueError, match=r"scales > 0; got 0.0"):
        nd.networks.GaussianSkipUNet(kernel.schedule.log_snr[1:], scale=np.zeros(15))
    if of_pixels:
        with pytest.raises(ValueError, match=r"for each number of \(3, 3, 1\); got 15 numbers"):
            jax.eval_shape(function.init, jax.random.key(0), x[:, :, :3], jnp.ones(3, int), None)


X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_on_whitened_data_every_path_weighs_the_gaussian_density_at_the_start(num_steps):
    prior = prior_of(kernel_of(num_steps))
    found = nd.evaluation.importance_weighted(jax.random.key(1), prior, X, num_trajectories=2)
    exact = dist.Normal().log_prob(X).sum(-1)
    np.testing.assert_allclose(found.per_point, exact, rtol=1e-4)
    np.testing.assert_allclose(found.effective_sample_size, 2, rtol=1e-4)


def test_the_bound_at_the_start_is_that_of_the_exact_denoiser():
    kernel = kernel_of(7)
    exact = nd.analytic.gaussian_mixture(kernel, jnp.full((1, 3), 0.7), 0.4, jnp.ones(1))
    ours, theirs = (
        nd.evaluation.bound(jax.random.key(2), model, 0.4 * X + 0.7, num_draws=2)
        for model in (prior_of(kernel, 0.7, 0.4), nd.Diffusion(kernel, exact))
    )
    np.testing.assert_allclose(ours.per_point, theirs.per_point, rtol=1e-5)


def test_the_bound_of_another_gaussian_is_its_log_density_within_what_the_last_step_shows():
    mean, scale = 0.7, 0.4
    x = scale * X + mean
    exact = dist.Normal(mean, scale).log_prob(x).sum(-1)
    for num_steps in (3, 40):
        kernel = kernel_of(num_steps, sigma_max=3.0)
        found = nd.evaluation.importance_weighted(jax.random.key(3), prior_of(kernel, mean, scale), x)
        # The start N(0, 1) instead of q(x^T): its log density ratio at x^T has this size in standard deviations.
        allowed = float(jnp.sqrt(kernel.schedule.alpha_bar[-1])) * mean * 3
        gap = np.asarray(found.per_point - exact)
        assert np.abs(gap).max() < allowed
        assert np.abs(gap).max() > 1e-3  # the tolerance is not what makes them equal


def test_the_draws_at_the_start_are_the_gaussians():
    draws = np.asarray(prior_of(kernel_of(4), 0.0, 1.0).sample(jax.random.key(4), (4000,)))
    np.testing.assert_allclose(draws.mean(0), 0, atol=5 / np.sqrt(4000))
    np.testing.assert_allclose(np.cov(draws.T), np.eye(3), atol=5 * np.sqrt(2 / 4000))


def test_events_of_two_dimensions_and_steps_that_broadcast():
    prior = prior_of(kernel_of(4), event_shape=(2, 2))
    x = jnp.ones((3, 5, 2, 2))
    for t in (jnp.array(2), jnp.array([1, 2, 3, 4, 1]), jnp.ones((3, 1), int)):
        mean, variance = prior.transition(x, t)
        assert mean.shape == variance.shape == x.shape
    with jax.numpy_dtype_promotion("strict"):
        prior.transition(x, jnp.array(1))


def test_it_is_saved_and_loaded(tmp_path):
    prior = prior_of(kernel_of(4))
    nd.save(prior, tmp_path / "prior.safetensors")
    again = nd.load(tmp_path / "prior.safetensors")
    assert again.transition.function == prior.transition.function
    np.testing.assert_array_equal(again.sample(jax.random.key(1)), prior.sample(jax.random.key(1)))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"log_snr of shape \(T,\); got shape \(\)"):
        GaussianSkip(1.0)
    with pytest.raises(ValueError, match="scale > 0; got 0"):
        GaussianSkip([1.0, 0.0], scale=0.0)
