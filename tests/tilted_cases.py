"""What the tests of tilted chains share: a Gaussian prior with its exact denoiser, a chain of bits, a list of tilts."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.tree_util import Partial

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import GaussianFactor, MomentMatching, PaperTilt, ReconstructionGuidance

# A Gaussian prior with its exact denoiser ----------------------------------------------------------

MEAN = np.array([0.5, -0.3])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.8]])
MATRIX, VALUE, NOISE = np.array([[1.0, -0.5]]), np.array([1.2]), 1.2


def exact_denoiser(params, x_t, t, context):
    """(E[x^0 | x^t], Var[x^0 | x^t]) for x^0 ~ N(mean, covariance)."""
    mean, gain, signal, variance = (jnp.asarray(part, x_t.dtype) for part in params)
    centred = x_t - signal[t][..., None] * mean
    estimate = mean + (gain[t] @ centred[..., None])[..., 0]
    return estimate, jnp.broadcast_to(variance[t], x_t.shape)


def gaussian_prior(num_steps, mean=MEAN, covariance=COVARIANCE, **kernel_options):
    """The chain whose denoiser is exact for N(mean, covariance), and Cov[x^0 | x^t] for t = 0..T."""
    schedule = nd.schedules.log_snr(num_steps, 0.2, 100.0)
    kernel = nd.GaussianKernel(schedule, parameterization="x0", variance="denoiser", **kernel_options)
    power = np.asarray(schedule.alpha_bar, float)[:, None, None]
    noise = np.asarray(schedule.noise_variance, float)[:, None, None] * np.eye(len(mean))
    gain = np.sqrt(power) * covariance @ np.linalg.inv(power * covariance + noise)
    posterior = covariance - np.sqrt(power) * gain @ covariance
    params = (mean, gain, np.sqrt(power[:, 0, 0]), np.diagonal(posterior, axis1=1, axis2=2))
    transition = nd.Transition(exact_denoiser, jax.tree.map(jnp.asarray, params), (len(mean),))
    return nd.ReverseChain(kernel, transition), posterior


def moments(chain):
    """Mean and covariance of x^0 for a chain with affine steps, exact."""
    start = jnp.zeros(chain.event_shape)
    jacobian = np.asarray(jax.jit(jax.jacobian(chain.from_noise))(start)).reshape(chain.event_shape[-1], -1)
    return np.asarray(chain.from_noise(start)), jacobian @ jacobian.T


def conjugate(mean, covariance, matrix=MATRIX, value=VALUE, noise=NOISE):
    """Mean and covariance of x | y, and log p(y), for x ~ N(mean, covariance), y ~ N(matrix x, noise^2)."""
    spread = matrix @ covariance @ matrix.T + noise**2 * np.eye(len(value))
    gain = covariance @ matrix.T @ np.linalg.inv(spread)
    evidence = dist.MultivariateNormal(jnp.asarray(matrix @ mean), jnp.asarray(spread)).log_prob(jnp.asarray(value))
    return mean + gain @ (value - matrix @ mean), covariance - gain @ matrix @ covariance, evidence


def observed(matrix, value, noise, x):
    return dist.Normal(matrix @ x, noise).log_prob(value).sum()


@functools.partial(jax.jit, static_argnums=2)
def draw(chain, key, sample_shape=()):
    return chain.sample(key, sample_shape)


@jax.jit
def log_prob(chain, path):
    return chain.log_prob(path)


@jax.jit
def log_weight(chain, path, log_r=None):
    return chain.log_weight(path, log_r)


@jax.jit
def step_law(chain, x_t, t):
    """The distribution of x^{t-1} given x^t, for each coordinate."""
    return chain.conditional(x_t, t).base_dist


LOG_R = Partial(observed, jnp.asarray(MATRIX), jnp.asarray(VALUE), NOISE)


def quadratic(x):
    return -0.5 * ((x - 1.0) ** 2).sum()


def linear(x):
    return 0.7 * x.sum()


QUADRATIC = Partial(quadratic)


def tilts_of(log_r, matrix, value, noise):
    return {
        "paper constant": PaperTilt(log_r),
        "paper annealed": PaperTilt(log_r, "annealed"),
        "factor": GaussianFactor(1.0, 2.0),
        "factor noised": GaussianFactor(1.0, 1.0, noised=True),
        "reconstruction": ReconstructionGuidance(log_r, 0.7),
        "moments by scale": MomentMatching(matrix, value, noise, covariance="scale"),
        "moments by jacobian": MomentMatching(matrix, value, noise),
    }


TILTS = tilts_of(LOG_R, MATRIX, VALUE, NOISE)


# Bits ----------------------------------------------------------------------------------------------

BITS = np.array(list(itertools.product([0, 1], repeat=3)))
PATHS = jnp.asarray(BITS[np.array(list(itertools.product(range(8), repeat=4)))])  # (4096, 4, 3), time 0 first
FIELD = jnp.array([0.8, -1.5, 0.4])


def bit_network(params, x_t, t, context):
    """Logits of x^0 with couplings between neighbouring bits."""
    return 1.5 * x_t - 0.7 + jnp.roll(x_t, 1, axis=-1)


def bits_chain():
    kernel = nd.BernoulliKernel(nd.schedules.constant_fraction(3), rate=0.4)
    return nd.ReverseChain(kernel, nd.Transition(bit_network, None, (3,)))


def factorised(x):
    return (FIELD * x).sum()


def coupled(x):
    return 1.3 * x[0] * x[1] - 0.5 * x[2] + x[1] * (1 - x[2])
