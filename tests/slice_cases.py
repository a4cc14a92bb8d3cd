"""What the tests of kernels on noises share: models with standard normal priors, their posteriors, and a sampler."""

import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import effective_sample_size
from numpyro.handlers import reparam
from numpyro.infer import MCMC
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.infer import DiffusionHMC, DiffusionReparam, EllipticalSlice

NORMAL = dist.Normal(0.0, 1.0)


def zero_network(params, x_t, t, context):
    return 0 * x_t


KERNEL = nd.GaussianKernel(nd.schedules.log_snr(5, 0.1, 100.0), variance="upper")
STANDARD_NORMAL = nd.Diffusion(KERNEL, nd.Transition(zero_network, None, ()))
STANDARD_NORMALS = nd.Diffusion(KERNEL, nd.Transition(zero_network, None, (2,)))


def conjugate(y):
    x = numpyro.sample("x", STANDARD_NORMAL)
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def unknown_scale(y):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    x = numpyro.sample("x", STANDARD_NORMAL)
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(x, sigma), obs=y)


SCALED_DATA = np.array([1.2, 0.4, 2.1, 0.9], np.float32)


def noncentred(model):
    return reparam(model, config={"x": DiffusionReparam()})


KERNELS = {"EllipticalSlice": EllipticalSlice, "DiffusionHMC": DiffusionHMC}


def sampler(
    model, num_samples=10, num_chains=1, num_warmup=5, chain_method="vectorized", kernel=EllipticalSlice, **kwargs
):
    return MCMC(
        kernel(model),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=chain_method,
        progress_bar=False,
        **kwargs,
    )


def z_score(values, wanted):
    """Of the mean of values, shape (chains, draws), with the standard error of their effective number."""
    values = np.asarray(values, float)
    return abs(values.mean() - wanted) / (values.std() / np.sqrt(effective_sample_size(values)))


def scale_posterior(prior_sd):
    """Of ``unknown_scale``, where x ~ N(0, prior_sd^2): x and sigma on a grid, the weights of its cells, log p(y)."""
    x, sigma = np.meshgrid(np.linspace(-6, 6, 801), np.linspace(0.005, 8, 1600), indexing="ij")
    log_density = norm.logpdf(x, 0, prior_sd) + norm.logpdf(sigma) + np.log(2)
    log_density += norm.logpdf(SCALED_DATA[:, None, None], x, sigma).sum(0)
    density = np.exp(log_density - log_density.max())
    cell = (x[1, 0] - x[0, 0]) * (sigma[0, 1] - sigma[0, 0])
    return x, sigma, density / density.sum(), log_density.max() + np.log(density.sum() * cell)


def check_scale_posterior(x_draws, sigma_draws, prior_sd, least_size):
    """Means and variances of both marginals of ``unknown_scale``, where x ~ N(0, prior_sd^2)."""
    x, sigma, density, _ = scale_posterior(prior_sd)
    for draws, value in ((x_draws, x), (sigma_draws, sigma)):
        mean = (density * value).sum()
        assert effective_sample_size(np.asarray(draws)) > least_size
        assert z_score(draws, mean) < 5
        assert z_score((draws - mean) ** 2, (density * (value - mean) ** 2).sum()) < 5
