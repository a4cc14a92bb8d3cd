"""A likelihood that is a diffusion, under NUTS: the noises of its forward path beside theta make it exact."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import gaussian_moments
from numpyro.handlers import mask, reparam, scale, seed, trace
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.util import log_density

import numpyro_diffusion as nd
from numpyro_diffusion.infer import DiffusionHMC, ObservedDiffusionReparam

SCHEDULE = nd.schedules.log_snr(8, 0.1, 10.0)
SCALE, GUESSED = 1.0, 1.2  # of y given theta, and what the kernel's reverse variance takes for it
Y = jnp.array([[1.0, 0.2], [0.3, -2.0], [0.8, 0.1]])
UNITS = dist.transforms.AffineTransform(2.0, 3.0)


def denoiser(params, x_t, t, context):
    """E[x^0 | x^t] of x^0 ~ N(theta, SCALE^2): right but for a tenth of theta, so that weights are not all equal."""
    signal, noise = (jnp.asarray(part)[t][..., None] for part in (SCHEDULE.alpha_bar, SCHEDULE.noise_variance))
    total = signal * SCALE**2 + noise
    return SCALE**2 * jnp.sqrt(signal) / total * x_t + noise / total * 0.9 * context


def likelihood_of(theta):
    kernel = nd.GaussianKernel(SCHEDULE, parameterization="x0", variance="upper", data_scale=GUESSED)
    return nd.Diffusion(kernel, nd.Transition(denoiser, None, (2,), (2,)), context=theta)


def model(y=Y, in_units=False):
    """Three rows of a Gaussian chain whose context is theta; of this context and steps its x^0 is exactly Gaussian."""
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("rows", 3):
        likelihood = likelihood_of(theta)
        if in_units:
            likelihood = dist.TransformedDistribution(likelihood, UNITS)
        numpyro.sample("y", likelihood, obs=y)


def slope_and_moments():
    """x^0 ~ N(start + slope theta, variance), each of shape (2,)."""
    moments = [gaussian_moments(likelihood_of(jnp.full(2, value))) for value in (0.0, 1.0)]
    start, variance = moments[0][0][0], moments[0][1][0]
    return start, moments[1][0][0] - start, variance


def truth():
    """Mean and standard deviation of theta given ``Y``."""
    start, slope, variance = slope_and_moments()
    precision = 1 + len(Y) * slope**2 / variance
    return slope * (np.asarray(Y, float) - start).sum(0) / variance / precision, precision**-0.5


def log_joint_ratio(values, num_paths, in_units=False):
    """The model's log density at theta and noises, less that of the noises."""
    changed = reparam(model, config={"y": ObservedDiffusionReparam(num_paths)})
    y = UNITS(Y) if in_units else Y
    found, _ = log_density(changed, (y, in_units), {}, values)
    return found - dist.Normal(0.0, 1.0).log_prob(values["y_noise"]).sum()


@pytest.mark.parametrize(("num_paths", "in_units"), [(1, False), (3, False), (2, True)])
def test_the_factors_mean_over_noises_is_the_density_of_the_chain(num_paths, in_units):
    theta = jnp.array([0.3, -0.4])
    noise = jax.random.normal(jax.random.key(0), (4000, 3, num_paths, SCHEDULE.num_steps, 2))
    log_ratios = jax.vmap(lambda eps: log_joint_ratio({"theta": theta, "y_noise": eps}, num_paths, in_units))(noise)
    ratio = np.exp(np.asarray(log_ratios, np.float64))
    start, slope, variance = slope_and_moments()
    log_prob = dist.Normal(start + slope * theta, np.sqrt(variance)).log_prob(Y).sum()
    log_prob = log_prob + dist.Normal(0.0, 1.0).log_prob(theta).sum() - in_units * Y.size * np.log(3.0)
    error = ratio.std() / np.sqrt(len(ratio))
    assert error < 0.05 * np.exp(log_prob)
    assert abs(ratio.mean() - np.exp(log_prob)) < 5 * error


@pytest.mark.parametrize("kernel", [NUTS, DiffusionHMC], ids=["NUTS", "DiffusionHMC"])
def test_mcmc_finds_the_posterior_of_the_chain(kernel):
    changed = reparam(model, config={"y": ObservedDiffusionReparam(2)})
    settings = {"guidance": None} if kernel is DiffusionHMC else {}
    mcmc = MCMC(
        kernel(changed, **settings), num_warmup=200, num_samples=1000, num_chains=2, chain_method="vectorized",
        progress_bar=False,
    )  # fmt: skip
    mcmc.run(jax.random.key(1))
    theta = np.asarray(mcmc.get_samples()["theta"], float)
    mean, sd = truth()
    effective = numpyro.diagnostics.effective_sample_size(np.asarray(mcmc.get_samples(group_by_chain=True)["theta"]))
    assert (effective > 300).all()
    assert (np.abs(theta.mean(0) - mean) < 5 * sd / np.sqrt(effective)).all()
    assert (np.abs(theta.std(0) / sd - 1) < 5 / np.sqrt(effective)).all()


def test_a_site_without_data_predicts():
    changed = reparam(model, config={"y": ObservedDiffusionReparam()})
    draws = Predictive(changed, num_samples=5)(jax.random.key(0), None)
    assert draws["y"].shape == (5, 3, 2)
    assert "y_noise" not in draws


def test_without_it_the_error_names_it():
    with pytest.raises(ValueError, match=r"reparam\(model, config=\{'y': infer.ObservedDiffusionReparam\(\)\}\)"):
        NUTS(model).init(jax.random.key(0), 0, None, (), {})


def normal():
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=jnp.zeros(()))


@pytest.mark.parametrize(
    ("site", "error", "match"),
    [
        (normal, TypeError, "a Diffusion at site 'y'; got Normal"),
        (mask(model, mask=jnp.arange(3) != 1), TypeError, "a Diffusion at site 'y'; got MaskedDistribution"),
        (lambda: model(Y.at[1, 0].set(jnp.nan)), ValueError, "finite values for observed site 'y'; got 1 NaN"),
        (lambda: model(Y[0]), ValueError, r"value of shape \(3, 2\) at site 'y'; got shape \(2,\)"),
    ],
)
def test_sites_that_it_cannot_take_are_refused(site, error, match):
    with pytest.raises(error, match=match):
        trace(seed(reparam(site, config={"y": ObservedDiffusionReparam()}), 0)).get_trace()


def test_a_power_of_the_likelihood_is_refused():
    changed = reparam(scale(model, 0.5), config={"y": ObservedDiffusionReparam()})
    with pytest.raises(ValueError, match=r"an unscaled latent site 'y_noise'; got scale 0\.5"):
        NUTS(changed).init(jax.random.key(0), 0, None, (), {})


def test_bits_have_no_noises_and_paths_are_counted(no_type_checks):
    kernel = nd.BernoulliKernel(nd.schedules.constant_fraction(3))
    bits = nd.Diffusion(kernel, nd.Transition(lambda params, x_t, t, context: 0 * x_t, None, (2,)))
    with pytest.raises(TypeError, match="a Gaussian kernel at site 'y'; got BernoulliKernel"):
        ObservedDiffusionReparam()("y", bits, jnp.zeros(2, int))
    with pytest.raises(ValueError, match="num_paths to be an integer >= 1"):
        ObservedDiffusionReparam(0)


def test_noises_of_the_forward_chain_stand_for_its_path():
    kernel = nd.GaussianKernel(nd.schedules.log_snr(4))
    chain = nd.ForwardChain(kernel, jnp.array([[1.0, 2.0], [0.0, -1.0]]))
    noise = jax.random.normal(jax.random.key(0), (2, 4, 2))
    path = chain.path_from_noise(noise)
    before = jnp.concatenate([chain.x_0[:, None], path[:, :-1]], axis=1)
    step = kernel.step(before, jnp.arange(1, 5)[:, None])
    np.testing.assert_allclose((path - step.loc) / step.scale, noise, rtol=1e-4, atol=1e-4)
