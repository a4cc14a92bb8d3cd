"""What the tests of EllipticalSlice share: models with standard normal priors, and a sampler."""

import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.handlers import reparam
from numpyro.infer import MCMC

import numpyro_diffusion as nd
from numpyro_diffusion.infer import DiffusionReparam
from numpyro_diffusion.infer.slice import EllipticalSlice

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


def sampler(model, num_samples=10, num_chains=1, num_warmup=5, chain_method="vectorized", **kwargs):
    return MCMC(
        EllipticalSlice(model),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=chain_method,
        progress_bar=False,
        **kwargs,
    )
