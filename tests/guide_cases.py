"""What the tests of AutoDiffusionGuide share: two priors with exact denoisers, random corrections, training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.handlers import seed, trace
from numpyro.infer import SVI, Trace_ELBO

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import StepCorrection

T = 5
KERNEL = nd.GaussianKernel(nd.schedules.log_snr(T, 0.1, 30.0), parameterization="x0", variance="denoiser")
GAUSSIAN = nd.analytic.gaussian_mixture(KERNEL, jnp.asarray([[0.5, -0.3]]), 0.7, jnp.ones(1))
MODES = nd.analytic.gaussian_mixture(KERNEL, jnp.asarray([[1.0], [-1.5]]), 0.3, jnp.asarray([0.6, 0.4]))
GAUSSIAN_PRIOR = nd.Diffusion(KERNEL, GAUSSIAN)
MODES_PRIOR = nd.Diffusion(KERNEL, MODES)


def fit(guide, *args, num_steps=600, rate=0.05, num_particles=16):
    """Parameters after training."""
    svi = SVI(guide.model, guide, optax.adam(optax.cosine_decay_schedule(rate, num_steps)), Trace_ELBO(num_particles))
    guide._prepare(args, {})  # outside of jit

    @jax.jit
    def train():
        start = svi.init(jax.random.key(0), *args)
        return svi.get_params(jax.lax.scan(lambda state, _: svi.update(state, *args), start, length=num_steps)[0])

    return train()


def untrained(guide, *args):
    """Parameters before training."""

    @jax.jit
    def values():
        sites = trace(seed(guide, 0)).get_trace(*args)
        return {name: site["value"] for name, site in sites.items() if site["type"] == "param"}

    guide._prepare(args, {})  # outside of jit
    return values()


def random_correction(shape, seed=0):
    """Corrections that differ everywhere; shape is (batch..., T, event...)."""
    normal = lambda index: jnp.asarray(np.random.default_rng([seed, index]).normal(size=shape), float)
    return StepCorrection(0.4 * normal(0), jnp.exp(0.5 * normal(1)), 0.7 * normal(2), jnp.exp(0.3 * normal(3)))


def random_start(shape, seed=0):
    correction = random_correction(shape, seed + 100)
    return correction.shift, correction.scale


def density_on_grid(transition, grid):
    """The exact density of a one-dimensional chain's x^0, by passing it down the steps on a grid."""
    density = np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
    for t in range(T, 0, -1):
        distribution = nd.ReverseChain(KERNEL, transition).reverse(jnp.asarray(grid, float)[:, None], t)
        loc, scale = np.asarray(distribution.loc, float), np.asarray(distribution.scale, float)
        steps = np.exp(-0.5 * ((grid - loc) / scale) ** 2) / (scale * np.sqrt(2 * np.pi))
        density = density @ steps * (grid[1] - grid[0])
    return density
