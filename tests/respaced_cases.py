"""A chain with the exact denoiser of N(MEAN, SPREAD^2), for any schedule: its steps are exact however long they are."""

from typing import Any

import jax.numpy as jnp

import numpyro_diffusion as nd

T, MEAN, SPREAD = 20, 0.7, 1.3
SCHEDULE = nd.schedules.log_snr(T, 0.05, 200.0)


def exact_denoiser(params: Any, x_t: Any, t: Any, context: Any) -> Any:
    """Of N(MEAN, SPREAD^2), by the network's own step t."""
    power, noise = (jnp.asarray(values, x_t.dtype)[t][..., None] for values in params)
    return MEAN + jnp.sqrt(power) * SPREAD**2 / (power * SPREAD**2 + noise) * (x_t - jnp.sqrt(power) * MEAN)


def normal_prior(schedule: nd.Schedule = SCHEDULE) -> nd.Diffusion:
    """One number; its "upper" variance is the exact one."""
    kernel = nd.GaussianKernel(schedule, parameterization="x0", variance="upper", data_scale=SPREAD)
    params = jnp.asarray(schedule.alpha_bar, float), jnp.asarray(schedule.noise_variance, float)
    return nd.Diffusion(kernel, nd.Transition(exact_denoiser, params, (1,)))
