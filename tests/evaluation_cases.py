"""Small models of which everything is known, for the tests of evaluation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from closed_forms import all_bits

import numpyro_diffusion as nd

NUM_BITS, NUM_STEPS = 2, 3


def bits_network(params, x_t, t, context):
    """Couples the two bits and depends on t, so that nothing cancels by symmetry."""
    flipped = x_t[..., ::-1]
    return (params * (2 * flipped - 1) * (1 + t[..., None] / 3) + 0.3 * x_t - 0.2).astype(x_t.dtype)


def bits_model(rate=0.3, num_steps=NUM_STEPS):
    kernel = nd.BernoulliKernel(nd.schedules.constant_fraction(num_steps), rate=rate)
    return nd.Diffusion(kernel, nd.Transition(bits_network, jnp.asarray(0.8), (NUM_BITS,)))


def enumerated_bits(distribution):
    """Every vector of bits and its probability under a distribution of single bits."""
    states = jnp.asarray(all_bits(NUM_BITS))
    return states, np.exp(np.asarray(distribution.log_prob(states).sum(-1), float))


def wavy_network(params, x_t, t, context):
    shift = 0 if context is None else 0.2 * context
    return params * jnp.sin(x_t) + shift, 0.3 * x_t


def wavy_model(num_steps=3, context=None):
    kernel = nd.GaussianKernel(nd.schedules.log_snr(num_steps, 0.3, 20.0))
    context_shape = None if context is None else (2,)
    return nd.Diffusion(kernel, nd.Transition(wavy_network, jnp.asarray(0.7), (2,), context_shape), context=context)


MEANS = np.array([[-2.0, 0.5], [1.5, 1.0], [0.0, -2.0]])
WEIGHTS, SCALE = np.array([0.3, 0.5, 0.2]), 0.5


def mixture_model(num_steps=20, sigma_min=0.05, sigma_max=1000.0):
    schedule = nd.schedules.log_snr(num_steps, sigma_min, sigma_max)
    kernel = nd.GaussianKernel(schedule, parameterization="x0", variance="denoiser", data_scale=1.7)
    means, weights = jnp.asarray(MEANS, float), jnp.asarray(WEIGHTS, float)
    return nd.Diffusion(kernel, nd.analytic.gaussian_mixture(kernel, means, SCALE, weights))


def mixture_draws(count, seed=0):
    rng = np.random.default_rng(seed)
    return MEANS[rng.choice(3, p=WEIGHTS, size=count)] + SCALE * rng.standard_normal((count, 2))


def mixture_log_density(x):
    squares = ((x[:, None] - MEANS) ** 2).sum(-1) / SCALE**2
    return np.log(np.exp(-0.5 * squares) @ WEIGHTS / (2 * math.pi * SCALE**2))


def point_key(key, index, draw):
    """The key of one draw for one point, as the module's docstring promises."""
    return jax.random.fold_in(jax.random.fold_in(key, index), draw)
