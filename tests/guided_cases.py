"""Priors of independent Gaussian coordinates with their exact denoiser, guided by what a model sees of them.

Their errors are known. Where each number sees one coordinate the guided chain is then the posterior's own, and log w
the log evidence, whatever the noises. Noises are drawn afresh: no Markov chain is in between.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from closed_forms import gaussian_moments, linear_posterior
from measured_errors import check, of_independent, of_weighted

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import ErrorCovariance
from numpyro_diffusion.model.reference import NormalReference

Y = np.array([3.0, -2.5, 5.0], np.float32)
EYE = np.eye(3)
SOME = np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]], np.float32)
KERNEL = nd.GaussianKernel(nd.schedules.log_snr(6, 0.1, 300.0), parameterization="x0", variance="denoiser")
SIGNAL, NOISE = (np.asarray(part, float) for part in (KERNEL.schedule.alpha_bar**0.5, KERNEL.schedule.noise_variance))


def denoiser(params, x_t, t, context):
    mean, gain, variance, signal = params
    mean = mean if context is None else mean + context
    return mean + gain[t] * (x_t - signal[t][..., None] * mean), jnp.broadcast_to(variance[t], x_t.shape)


def independent(mean, variance, *, has_errors=True, **options):
    """N(mean, diag(variance)) with its exact denoiser, and with the covariance of its errors."""
    mean, variance = np.asarray(mean, float), np.asarray(variance, float)
    gain = variance * SIGNAL[:, None] / (SIGNAL[:, None] ** 2 * variance + NOISE[:, None])
    left = variance * (1 - SIGNAL[:, None] * gain)
    params = tuple(jnp.asarray(part, float) for part in (mean, gain, left, SIGNAL))
    context_shape = mean.shape if "context" in options else None
    prior = nd.Diffusion(KERNEL, nd.Transition(denoiser, params, mean.shape, context_shape), **options)
    return known(prior, left) if has_errors else prior


def known(prior, left):
    prior = copy.copy(prior)
    prior.errors = ErrorCovariance(jnp.zeros((*left[1:].shape, 1)), jnp.asarray(left[1:], float))
    return prior


def prior(**options):
    return independent([0.5, -0.3, 0.2], [1.0, 0.5, 2.0], **options)


def moments(x):
    mean, variance = gaussian_moments(x)
    return np.asarray(mean[0], float), np.diag(np.asarray(variance[0], float))


def weigher(model, args, guidance="auto"):
    """A function of the other unknowns, unconstrained: values of x at fresh noises, and log L there."""
    reference = NormalReference(model, args, {}, guidance)
    shapes = jax.eval_shape(reference.prior_draw, jax.random.key(0))

    def one(key, others):
        keys = dict(zip(sorted(shapes), jax.random.split(key, len(shapes)), strict=True))
        u = {name: jax.random.normal(keys[name], like.shape, like.dtype) for name, like in shapes.items()} | others
        return reference.constrain(u)["x"], reference.log_likelihood(u)

    compiled = jax.jit(jax.vmap(one, (0, None)))

    def weigh(num_draws=1000, **others):
        values = {name: jnp.asarray(value, shapes[name].dtype) for name, value in others.items()}
        found = compiled(jax.random.split(jax.random.key(3), num_draws), values)
        return [np.asarray(part, float) for part in found]

    return weigh, reference.charts["x"]


def check_flat(found, mean, covariance, matrix, noise, y, *, spread=0.05, to_state=lambda x: x):
    """Weights of a spread of at most so many nats, whose mean is the evidence, and draws of the posterior's mean."""
    x, log_weights = found
    evidence, wanted, _ = linear_posterior(mean, covariance, matrix, noise, y)
    assert log_weights.std() < spread
    peak = log_weights.max()
    ratio = of_independent(np.exp(log_weights - peak))
    # Single precision: some digits of log w are lost in sums of squares.
    assert abs(np.log(ratio.value) + peak - evidence) < 5 * ratio.error / ratio.value + 0.002
    check(of_weighted(to_state(x).reshape(len(x), -1), log_weights), wanted, refused=mean)


def one_site(x, y):
    numpyro.sample("y", dist.Normal(jnp.asarray(SOME) @ x + 1.0, 0.5).to_event(1), obs=y[:2])
