"""The Gaussian kernel's closed forms against products of steps, Bayes' rule and conjugacy, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions.kl import kl_divergence
from precision import enable_x64

from numpyro_diffusion import GaussianKernel, schedules

SCHEDULES = {
    "log_snr": schedules.log_snr(5, 0.1, 10.0),
    "constant_fraction": schedules.constant_fraction(5),
    "one step": schedules.constant_fraction(1),
}


@pytest.fixture(autouse=True)
def _x64():
    with enable_x64(True):
        yield


@pytest.mark.parametrize("name", SCHEDULES)
def test_product_of_steps_is_the_marginal(name):
    kernel = GaussianKernel(SCHEDULES[name])
    mean, variance = 0.7, 0.0
    for t in range(1, kernel.num_steps + 1):
        unit, zero = kernel.step(1.0, t), kernel.step(0.0, t)
        mean, variance = unit.loc * mean, unit.loc**2 * variance + zero.variance
        marginal = kernel.marginal(0.7, t)
        np.testing.assert_allclose((marginal.loc, marginal.variance), (mean, variance), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["log_snr", "constant_fraction"])
def test_bridge_satisfies_bayes_rule(name):
    kernel = GaussianKernel(SCHEDULES[name])
    x_0, x_previous, x_t = np.meshgrid([-1.0, 0.3], [-0.5, 2.0], [-0.2, 1.1])
    for t in range(2, kernel.num_steps + 1):
        joint = kernel.step(x_previous, t).log_prob(x_t) + kernel.marginal(x_0, t - 1).log_prob(x_previous)
        bayes = joint - kernel.marginal(x_0, t).log_prob(x_t)
        np.testing.assert_allclose(kernel.bridge(x_t, x_0, t).log_prob(x_previous), bayes, rtol=1e-9, atol=1e-9)


def test_bridge_at_the_first_step_is_the_data():
    kernel = GaussianKernel(SCHEDULES["log_snr"])
    bridge = kernel.bridge(3.0, 0.7, 1)
    assert bridge.loc == pytest.approx(0.7)
    assert bridge.scale == 0.0


def _outputs(kernel, x_0, x_t, t):
    """What a perfect network returns for a known x^0."""
    alpha_bar, noise = kernel.schedule.alpha_bar[t], kernel.schedule.noise_variance[t]
    eps = (x_t - np.sqrt(alpha_bar) * x_0) / np.sqrt(noise)
    return {
        "x0": x_0,
        "noise": eps,
        "v": np.sqrt(alpha_bar) * eps - np.sqrt(noise) * x_0,
        "score": -eps / np.sqrt(noise),
    }


@pytest.mark.parametrize("parameterization", ["x0", "noise", "v", "score"])
def test_every_parameterisation_of_the_same_x0_gives_the_bridge_mean(parameterization):
    kernel = GaussianKernel(SCHEDULES["log_snr"], parameterization=parameterization, variance="lower")
    x_0, x_t = np.array([0.4, -1.0]), np.array([1.5, 0.1])
    for t in range(1, kernel.num_steps + 1):
        output = _outputs(kernel, x_0, x_t, t)[parameterization]
        np.testing.assert_allclose(kernel.reverse(output, x_t, t).loc, kernel.bridge(x_t, x_0, t).loc, rtol=1e-10)
        np.testing.assert_allclose(kernel.denoised(output, x_t, t), x_0, rtol=1e-10)
        if t > 1:
            np.testing.assert_allclose(kernel.reverse(output, x_t, t).scale, kernel.bridge(x_t, x_0, t).scale)


def test_paper_form_is_equation_64_and_65_and_its_denoised_value_reproduces_the_mean():
    kernel = GaussianKernel(SCHEDULES["log_snr"], parameterization="paper")
    x_t, z_mean, z_variance = np.array([0.3, -2.0]), np.array([0.5, 0.1]), np.array([0.01, -0.02])
    for t in range(1, kernel.num_steps + 1):
        beta = kernel.schedule.beta[t]
        sigma = 1 / (1 + np.exp(-(z_variance + np.log(beta / (1 - beta)))))
        distribution = kernel.reverse((z_mean, z_variance), x_t, t)
        np.testing.assert_allclose(
            distribution.variance, sigma, rtol=1e-6
        )  # z is softly limited: identity to z^3 / 300
        np.testing.assert_allclose(distribution.loc, (x_t - z_mean) * (1 - distribution.variance) + z_mean, rtol=1e-12)
        denoised = kernel.denoised((z_mean, z_variance), x_t, t)
        np.testing.assert_allclose(kernel.bridge(x_t, denoised, t).loc, distribution.loc, rtol=1e-9)


@pytest.mark.parametrize("scale", [0.3, 1.0, 20.0])
def test_upper_variance_is_exact_for_gaussian_data_of_the_given_scale(scale):
    kernel = GaussianKernel(SCHEDULES["log_snr"], variance="upper", data_scale=scale)
    for t in range(1, kernel.num_steps + 1):
        before = kernel.schedule.alpha_bar[t - 1] * scale**2 + kernel.schedule.noise_variance[t - 1]
        step = kernel.step(1.0, t)
        conditional = 1 / (1 / before + step.loc**2 / step.variance)
        np.testing.assert_allclose(kernel.variance_bounds(t, 0.0)[1], conditional, rtol=1e-10)


@pytest.mark.parametrize("name", SCHEDULES)
def test_variance_lies_between_its_bounds_and_is_positive_at_every_step(name):
    kernel = GaussianKernel(SCHEDULES[name])
    for t in range(1, kernel.num_steps + 1):
        lower, upper = kernel.variance_bounds(t, 0.0)
        assert 0 < lower < upper or (0 < lower <= upper and kernel.schedule.beta[t] == 1)
        for raw in (-1e3, -1.0, 0.0, 1.0, 1e3):
            variance = kernel.reverse((jnp.zeros(()), jnp.asarray(raw)), jnp.zeros(()), t).variance
            assert lower * (1 - 1e-9) <= variance <= upper * (1 + 1e-9)
    if kernel.num_steps > 1:
        # The bridge's variance extrapolated one noise level below v_1.
        noise = kernel.schedule.noise_variance
        np.testing.assert_allclose(np.divide(*kernel.variance_bounds(1, 0.0)), noise[1] / noise[2])


def test_denoiser_variance_is_the_law_of_total_variance():
    kernel = GaussianKernel(SCHEDULES["log_snr"], parameterization="x0", variance="denoiser")
    # Data N(0, s^2): moments of x^0 given x^t are conjugate, and so is the distribution of x^{t-1} given x^t.
    scale, x_t = 0.6, np.array(1.3)
    for t in range(1, kernel.num_steps + 1):
        alpha_bar, noise = kernel.schedule.alpha_bar[t], kernel.schedule.noise_variance[t]
        posterior = scale**2 * noise / (alpha_bar * scale**2 + noise)
        mean = posterior * np.sqrt(alpha_bar) / noise * x_t
        distribution = kernel.reverse((mean, posterior), x_t, t)
        before = kernel.schedule.alpha_bar[t - 1] * scale**2 + kernel.schedule.noise_variance[t - 1]
        step = kernel.step(1.0, t)
        variance = 1 / (1 / before + step.loc**2 / step.variance)
        np.testing.assert_allclose(distribution.variance, variance, rtol=1e-10)
        np.testing.assert_allclose(distribution.loc, variance * step.loc / step.variance * x_t, rtol=1e-10)


def test_kl_agrees_with_numpyro_and_is_accurate_when_the_laws_are_close():
    kernel = GaussianKernel(SCHEDULES["log_snr"])
    first, second = dist.Normal(0.3, 0.7), dist.Normal(-0.1, 1.1)
    np.testing.assert_allclose(kernel.kl(first, second), kl_divergence(first, second), rtol=1e-12)
    with enable_x64(False):
        ratio = 1e-3
        close = kernel.kl(dist.Normal(0.0, 1.0), dist.Normal(0.0, jnp.float32(np.exp(ratio / 2))))
    np.testing.assert_allclose(close, 0.5 * (np.expm1(-ratio) + ratio), rtol=2e-1)


def test_tilt_of_a_gaussian_step_is_the_conjugate_posterior_for_a_log_linear_factor():
    kernel = GaussianKernel(SCHEDULES["log_snr"])
    distribution, slope = dist.Normal(0.4, 0.5), 1.7
    grid = np.linspace(-8, 8, 20001)
    weights = np.exp(distribution.log_prob(grid) + slope * grid)
    weights /= weights.sum()
    tilted = kernel.tilt(distribution, slope)
    mean = (weights * grid).sum()
    np.testing.assert_allclose(tilted.loc, mean, rtol=1e-8)
    np.testing.assert_allclose(tilted.variance, (weights * (grid - mean) ** 2).sum(), rtol=1e-8)


def test_bound_term_is_minus_kl_and_the_log_density_at_the_first_step():
    kernel = GaussianKernel(SCHEDULES["log_snr"])
    x_t, x_0 = np.array(0.3), np.array(-0.4)
    for t in range(1, kernel.num_steps + 1):
        distribution = kernel.reverse((jnp.asarray(0.2), jnp.asarray(0.1)), x_t, t)
        term = kernel.bound_term(distribution, x_t, x_0, t)
        wanted = distribution.log_prob(x_0) if t == 1 else -kl_divergence(kernel.bridge(x_t, x_0, t), distribution)
        np.testing.assert_allclose(term, wanted, rtol=1e-10)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("parameterization", ["v", "x0", "paper"])
@pytest.mark.parametrize("num_steps", [1, 2, 10_000])
def test_gradients_are_finite_where_b_is_one_and_at_the_first_step(parameterization, num_steps, x64):
    with enable_x64(x64):

        def value(beta, output, x_t, x_0, t):
            kernel = GaussianKernel(schedules.Schedule.from_beta(beta), parameterization=parameterization)
            distribution = kernel.reverse((output, output), x_t, t)
            return (
                kernel.bound_term(distribution, x_t, x_0, t)
                + kernel.marginal(x_0, t).loc
                + kernel.step(x_0, t).scale
                + kernel.bridge(x_t, x_0, t).loc
            )

        beta = jnp.asarray(schedules.constant_fraction(num_steps).beta[1:], float)
        gradient = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2, 3)))
        for t in {1, min(2, num_steps), num_steps}:
            result = gradient(beta, jnp.asarray(0.1), jnp.asarray(0.3), jnp.asarray(-0.2), t)
            assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(result))


def test_schedule_values_follow_the_dtype_of_the_state():
    kernel = GaussianKernel(SCHEDULES["log_snr"])
    assert kernel.marginal(jnp.zeros(2, jnp.float32), 3).loc.dtype == jnp.float32
    assert kernel.marginal(jnp.zeros(2, jnp.float64), 3).loc.dtype == jnp.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parameterization": "epsilon"}, "parameterization one of v, noise"),
        ({"variance": "small"}, "variance one of learned"),
        ({"parameterization": "paper", "variance": "lower"}, "Eq. 64-65"),
        ({"data_scale": 0.0}, "data_scale > 0; got 0.0"),
        ({"data_scale": float("nan")}, "data_scale > 0; got nan"),
        ({"parameterization": "noise"}, "b_T < 1 for parameterization='noise'"),
        ({"parameterization": "score"}, "b_T < 1 for parameterization='score'"),
    ],
)
def test_bad_arguments_are_named(no_type_checks, arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianKernel(schedules.constant_fraction(3), **arguments)
