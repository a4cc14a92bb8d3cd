"""A NaN among the observations is named with its site and index by every engine, unless a mask leaves it out."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import affine_prior
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO

import numpyro_diffusion as nd
from numpyro_diffusion.infer import AutoDiffusionGuide, DiffusionGibbs, DiffusionReparam, EllipticalSlice, TwistedSMC
from numpyro_diffusion.model.observations import check_observed

PRIOR = affine_prior(nd.schedules.log_snr(2, 0.3, 10.0), [0.5, -0.3])
Y = np.array([[1.0, 2.0], [0.5, np.nan], [0.1, 0.2]], np.float32)
# NumPyro's own warning, where it is told to validate; it names neither the site nor the index.
pytestmark = pytest.mark.filterwarnings("ignore:Out-of-support values")
MESSAGE = r"observed values of site 'y' that are numbers; got NaN at index \(1, 1\), 1 of 6"


def model(y, masked=False):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", PRIOR)
        distribution = dist.Normal(x, 0.5)
        if masked:
            distribution = distribution.mask(~jnp.isnan(y))
            y = jnp.nan_to_num(y)
        numpyro.sample("y", distribution.to_event(1), obs=y)


def smc(*arguments):
    TwistedSMC(model, 8, 2, progress_bar=False).run(jax.random.key(0), *arguments)


def mcmc(kernel):
    def run(*arguments):
        MCMC(kernel(model), num_warmup=1, num_samples=2, progress_bar=False).run(jax.random.key(0), *arguments)

    return run


def guide(*arguments):
    guide = AutoDiffusionGuide(model)
    SVI(guide.model, guide, numpyro.optim.Adam(0.01), Trace_ELBO()).init(jax.random.key(0), *arguments)


ENGINES = {"smc": smc, "gibbs": mcmc(DiffusionGibbs), "slice": mcmc(EllipticalSlice), "guide": guide}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_every_engine_names_it(engine):
    with pytest.raises(ValueError, match=MESSAGE):
        engine(Y)


def test_numpyro_s_own_sampler_does_not_start_from_it():
    noncentred = reparam(model, config={"x": DiffusionReparam()})
    with pytest.raises(RuntimeError, match="Cannot find valid initial parameters"):
        mcmc(lambda _: NUTS(noncentred))(Y)


@pytest.mark.filterwarnings("ignore:The effective size fell", "ignore:The islands disagree")
def test_a_masked_one_is_left_out():
    smc(Y, True)


def test_one_beside_a_masked_one_is_named_by_its_own_index():
    seen = np.ones((3, 2), bool)
    seen[1, 0] = False
    two = Y.copy()
    two[1, 0] = np.nan

    def one_of_two(y):
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", PRIOR)
            numpyro.sample("y", dist.Normal(x, 0.5).mask(seen).to_event(1), obs=y)

    with pytest.raises(ValueError, match=MESSAGE):
        TwistedSMC(one_of_two, 8, 2, progress_bar=False).run(jax.random.key(0), two)
    with pytest.raises(ValueError, match=MESSAGE):
        check_observed(one_of_two, (two,), {})


def test_closed_over_data_are_looked_at_too():
    with pytest.raises(ValueError, match=MESSAGE):
        TwistedSMC(lambda: model(Y), 8, 2, progress_bar=False).run(jax.random.key(0))
