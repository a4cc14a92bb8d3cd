"""Models whose diffusion sites have no density that anybody may take, and the words of the refusals."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from closed_forms import affine_prior
from numpyro import infer
from numpyro.distributions.transforms import AffineTransform
from numpyro.infer import SVI
from wrapped_cases import NUMBER, PRIOR, SCHEDULE

import numpyro_diffusion as nd

KEY = jax.random.key(0)
NO_DENSITY = r"Expected a density at latent site 'x'; got a Diffusion, .*lower bound.*DiffusionReparam.*AsDensity"
DEPENDS = r"Expected an observed Diffusion at site 'x' that depends on no latent site; got .*stop=1.*AsDensity"
UNNAMED = r"Expected a named estimate of log p\(x\^0\) .*; got estimator=None.*RandomStep.*AllSteps.*ImportanceWeighted"
DATA = jnp.asarray([[1.2], [1.6]])


def latent(distribution):
    def model():
        x = numpyro.sample("x", distribution)
        numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=1.0)

    return model


def conditional(make=affine_prior):
    """c ~ N(0, 1), and two rows of a diffusion with context c."""
    c = numpyro.sample("c", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
    with numpyro.plate("n", 2):
        numpyro.sample("x", make(SCHEDULE, [0.5], context=c), obs=DATA)


def svi(model, guide, loss=None):
    return SVI(model, guide, optax.adam(0.01), loss or infer.Trace_ELBO())


def evaluate(model, guide, loss=None, key=KEY):
    inference = svi(model, guide, loss)
    return inference.evaluate(inference.init(key))


def no_guide():
    """No latent site has a distribution here."""


# Observed diffusions that depend on a latent site


def by_network():
    weight = numpyro.sample("w", dist.Normal())
    transition = nd.Transition(lambda params, x_t, t, context: params * x_t, weight, (1,))
    numpyro.sample("x", nd.Diffusion(PRIOR.kernel, transition), obs=DATA[0])


def by_schedule():
    end = numpyro.sample("s", dist.Uniform(0.4, 0.6))
    kernel = nd.GaussianKernel(nd.Schedule.from_beta(jnp.stack([0.1, 0.2, end])), variance="upper")
    numpyro.sample("x", nd.Diffusion(kernel, NUMBER.transition), obs=0.5)


def by_wrapper():
    loc = numpyro.sample("loc", dist.Normal())
    numpyro.sample("x", dist.TransformedDistribution(NUMBER, AffineTransform(loc, 1.0)), obs=0.5)


class Shifted(dist.Distribution):
    """As a user may write one, with no fields declared."""

    support = dist.constraints.real

    def __init__(self, loc, base_dist):
        self.loc, self.base_dist = loc, base_dist
        super().__init__()

    def log_prob(self, value):
        return self.base_dist.log_prob(value - self.loc)


def by_a_wrapper_of_the_user():
    loc = numpyro.sample("loc", dist.Normal())
    numpyro.sample("x", Shifted(loc, NUMBER), obs=0.5)


def by_mixing():
    weight = numpyro.sample("w", dist.Uniform())
    mixing = dist.Categorical(jnp.stack([weight, 1 - weight]))
    numpyro.sample("x", dist.MixtureGeneral(mixing, [NUMBER, NUMBER]), obs=0.5)


def by_value():
    shift = numpyro.sample("shift", dist.Normal())
    numpyro.sample("x", NUMBER, obs=0.5 + shift)


def by_scale():
    power = numpyro.sample("power", dist.Uniform())
    with numpyro.handlers.scale(scale=power):
        numpyro.sample("x", NUMBER, obs=0.5)


DEPENDENT = {
    "context": conditional,
    "network": by_network,
    "schedule": by_schedule,
    "wrapper": by_wrapper,
    "wrapper of the user": by_a_wrapper_of_the_user,
    "mixing": by_mixing,
    "value": by_value,
    "scale": by_scale,
}
