"""Models whose posterior and evidence are known, and amortised posteriors of networks that are wrong on purpose."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from closed_forms import linear_posterior

from numpyro_diffusion import networks
from numpyro_diffusion.infer import AmortizedPosterior
from numpyro_diffusion.infer.amortized.parts import Part
from numpyro_diffusion.transition import Transition

MATRIX = np.array([[1.0, 0.5], [0.0, 1.0], [1.0, -1.0]])
PRIOR_MEAN, PRIOR_COVARIANCE = np.array([1.0, -1.0]), np.array([[2.0, 0.5], [0.5, 1.0]])
NOISE = 0.5
Y = jnp.array([1.0, 0.5, -1.0])


def linear(scale=1.0):
    """Jointly Gaussian x and y; a prior of another scale for the correction."""
    x = numpyro.sample("x", dist.MultivariateNormal(jnp.array(PRIOR_MEAN), jnp.array(scale**2 * PRIOR_COVARIANCE)))
    numpyro.sample("y", dist.Normal(x @ jnp.array(MATRIX.T), NOISE).to_event(1))


def linear_truth(scale=1.0):
    """Log evidence, mean and covariance given ``Y``."""
    noise = NOISE**2 * np.eye(3)
    return linear_posterior(PRIOR_MEAN, scale**2 * PRIOR_COVARIANCE, MATRIX, noise, np.asarray(Y))


LOGITS = np.array([0.5, -1.0, 0.0])


def bits():
    """Three coupled bits seen through one number."""
    first = numpyro.sample("first", dist.Bernoulli(logits=LOGITS[0]))
    with numpyro.plate("pair", 2):
        others = numpyro.sample("others", dist.Bernoulli(logits=jnp.array(LOGITS[1:])))
    numpyro.sample("y", dist.Normal(first + 2.0 * others[0] - others[1], 0.7))


def bits_truth(y):
    """Log evidence and the probability that each bit is one."""
    states = np.array(list(itertools.product((0, 1), repeat=3)))
    log_prior = (states * LOGITS - np.logaddexp(0, LOGITS)).sum(1)
    mean = states @ np.array([1.0, 2.0, -1.0])
    joint = np.exp(log_prior) * np.exp(-0.5 * ((y - mean) / 0.7) ** 2) / (0.7 * np.sqrt(2 * np.pi))
    return np.log(joint.sum()), joint @ states / joint.sum()


def rates(scale=1.0, exposure=1.0, is_bounded=False):
    """A count of a positive rate."""
    prior = dist.Uniform(0.0, 20.0) if is_bounded else dist.Gamma(2.0, 1.0 / scale)
    rate = numpyro.sample("rate", prior)
    numpyro.sample("y", dist.Poisson(exposure * rate))


def shares_of_groups():
    """A simplex, and a class of it."""
    shares = numpyro.sample("shares", dist.Dirichlet(jnp.ones(3)))
    group = numpyro.sample("group", dist.Categorical(probs=jnp.ones(3) / 3))
    numpyro.sample("y", dist.Normal(shares[0] + group, 1.0))


def spoiled(amortized, key, size):
    """The same with noise added to every parameter: a network that is wrong everywhere."""
    leaves = iter(jax.random.split(key, 1000))

    def spoil(part):
        transition = part.transition
        params = jax.tree.map(lambda leaf: leaf + size * jax.random.normal(next(leaves), leaf.shape), transition.params)
        wrong = Transition(transition.function, params, transition.event_shape, transition.context_shape)
        return Part(part.name, part.sites, part.kernel, wrong, part.affine)

    plan = amortized._plan
    amortized._plan = plan._replace(parts=tuple(spoil(part) for part in plan.parts))
    return amortized


def untrained(model, num_steps=4, **settings):
    """After one step of training, on coordinates that fit."""
    settings = {"num_steps": num_steps, "width": 8, "depth": 1, "observed": "y", **settings}
    amortized = AmortizedPosterior(model, **settings)
    return amortized.fit(jax.random.key(0), 500, max_steps=1, every=1, progress_bar=False)


def trained(model, num_simulations, max_steps, *, key=0, fit=None, **settings):
    """A small one."""
    embedding = networks.VectorEmbedding(size=16, width=32, depth=1)
    settings = {"num_steps": 40, "width": 32, "depth": 2, "observed": "y", "embedding": embedding, **settings}
    amortized = AmortizedPosterior(model, **settings)
    options = {"max_steps": max_steps, "batch_size": 128, "progress_bar": False, **(fit or {})}
    return amortized.fit(jax.random.key(key), num_simulations, **options)
