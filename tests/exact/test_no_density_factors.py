"""A factor that a model makes of a bound: refused where a latent site is a part of it; else a constant, or training."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import affine_prior
from density_cases import DATA, KEY, UNNAMED, conditional, evaluate, no_guide
from numpyro import infer
from numpyro.handlers import reparam
from numpyro.infer import NUTS
from numpyro.infer.util import log_density, potential_energy
from wrapped_cases import PRIOR, SCHEDULE

import numpyro_diffusion as nd

ELBOS = [infer.Trace_ELBO, infer.TraceMeanField_ELBO, infer.TraceGraph_ELBO, infer.RenyiELBO]
NAMED = nd.Diffusion(PRIOR.kernel, PRIOR.transition, estimator=nd.AllSteps(), rng_key=KEY)
FACTORS = {
    "value": lambda z: NAMED.log_prob(z),
    "weight": lambda z: jnp.logaddexp(NAMED.log_prob(DATA[0]), dist.Normal().log_prob(z.sum())),
    "context": lambda z: nd.Diffusion(
        *_parts(affine_prior(SCHEDULE, [0.5], context=z)), context=z, estimator=nd.AllSteps(), rng_key=KEY
    ).log_prob(DATA[0]),
}
A_FACTOR = "no log_prob of a Diffusion as a factor of a model with latent sites; got site 'f'"


def _parts(prior):
    return prior.kernel, prior.transition


def with_factor(factor):
    def model():
        z = numpyro.sample("z", dist.Normal(jnp.zeros(1), 10.0).to_event(1))
        numpyro.factor("f", factor(z))

    return model


@pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS)
def test_a_factor_made_of_a_bound_is_refused_under_mcmc_and_by_hand(factor):
    model = with_factor(factor)
    with pytest.raises(ValueError, match=A_FACTOR):
        NUTS(model).init(KEY, 0, None, (), {})
    with pytest.raises(ValueError, match=A_FACTOR):
        log_density(model, (), {}, {"z": jnp.ones(1)})


@pytest.mark.parametrize("loss", ELBOS)
def test_a_factor_made_of_a_bound_is_refused_by_every_elbo(loss):
    guide = lambda: numpyro.sample("z", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
    with pytest.raises(ValueError, match=A_FACTOR):
        evaluate(with_factor(FACTORS["value"]), guide, loss())


def test_a_factor_that_depends_on_no_latent_site_is_a_constant():
    def shifted(z):
        return NAMED.log_prob(DATA[0] + jnp.zeros(1))

    energy = jax.jit(lambda z: potential_energy(with_factor(shifted), (), {}, {"z": z}))
    found = energy(jnp.ones(1)) - energy(jnp.zeros(1))
    np.testing.assert_allclose(found, 0.5 * 0.1**2, rtol=1e-4)
    density, _ = log_density(with_factor(shifted), (), {}, {"z": jnp.zeros(1)})
    wanted = dist.Normal(0.0, 10.0).log_prob(0.0) + NAMED.log_prob(DATA[0])
    np.testing.assert_allclose(density, wanted, rtol=1e-5)


@pytest.mark.parametrize("loss", ELBOS)
def test_a_factor_of_data_trains_a_parameter(loss):
    def model():
        prior = affine_prior(SCHEDULE, numpyro.param("mean", jnp.zeros(1)))
        numpyro.factor("f", nd.Diffusion(*_parts(prior), estimator=nd.AllSteps(), rng_key=KEY).log_prob(DATA[0]))

    assert np.isfinite(evaluate(model, no_guide, loss()))


def test_a_reparameterisation_that_asks_for_an_observed_density_makes_a_factor_of_it():
    class AsFactor(numpyro.infer.reparam.Reparam):
        def __call__(self, name, fn, obs):
            numpyro.factor("f", fn.log_prob(obs))
            return None, obs

    model = reparam(conditional, config={"x": AsFactor()})
    with pytest.raises(ValueError, match=A_FACTOR):
        log_density(model, (), {}, {"c": jnp.ones(1)})
    with pytest.raises(ValueError, match=UNNAMED):
        NUTS(model).init(KEY, 0, None, (), {})
