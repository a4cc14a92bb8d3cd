"""Models that no engine takes: each says why, with the site's name and the cure."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import affine_prior
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO

import numpyro_diffusion as nd
from numpyro_diffusion.infer import AutoDiffusionGuide, DiffusionGibbs, DiffusionReparam, EllipticalSlice, TwistedSMC

PRIOR = affine_prior(nd.schedules.log_snr(2, 0.3, 10.0), [0.5, -0.3])


def in_scan():
    def round_(carry, y):
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=y)
        return carry, x

    scan(round_, 0.0, jnp.ones(3))


def beside_an_improper_prior():
    shift = numpyro.sample("shift", dist.ImproperUniform(dist.constraints.real, (), ()))
    x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", dist.Normal(x.sum() + shift, 1.0), obs=1.0)


def of_another_shape():
    x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=jnp.ones(3))


def chain(kernel):
    MCMC(kernel, num_warmup=1, num_samples=1, progress_bar=False).run(jax.random.key(0))


def guided(model):
    guide = AutoDiffusionGuide(model)
    SVI(guide.model, guide, numpyro.optim.Adam(0.1), Trace_ELBO()).init(jax.random.key(0))


def reparametrised(model):
    chain(NUTS(numpyro.handlers.reparam(model, config={"x": DiffusionReparam()})))


ENGINES = {
    "smc": lambda model: TwistedSMC(model, 8, 2, progress_bar=False).run(jax.random.key(0)),
    "gibbs": lambda model: chain(DiffusionGibbs(model)),
    "slice": lambda model: chain(EllipticalSlice(model)),
    "guide": guided,
    "reparam": reparametrised,
}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_diffusion_site_in_scan_gets_the_true_cure(engine):
    with pytest.raises(ValueError, match=r"'x' outside of scan; got one inside\. Draw it before, in a plate"):
        ENGINES[engine](in_scan)


@pytest.mark.parametrize("engine", ["smc", "gibbs", "slice", "guide"])
def test_an_improper_prior_is_named(engine):
    """NUTS on the reparameterised model needs no draw of the prior, and takes it."""
    with pytest.raises(ValueError, match=r"can be sampled at site 'shift'; got ImproperUniform\. Give it a proper one"):
        ENGINES[engine](beside_an_improper_prior)


@pytest.mark.parametrize("engine", ["smc", "gibbs"])
def test_a_wrong_shape_names_the_site(engine):
    with pytest.raises(ValueError, match=r"a value of shape \(2,\) at site 'y'; got shape \(3,\)"):
        ENGINES[engine](of_another_shape)


def test_what_is_no_model_is_refused_when_the_engine_is_made(no_type_checks):
    for make in (TwistedSMC, DiffusionGibbs, EllipticalSlice):
        with pytest.raises(TypeError, match=r"Expected .*model.*; got 'm'"):
            make("m")


def test_results_before_a_run_are_refused_in_words():
    smc = TwistedSMC(of_another_shape)
    for name in (
        "log_evidence",
        "log_evidence_error",
        "log_evidence_by_element",
        "min_ess",
        "effective_sizes",
        "result",
    ):
        with pytest.raises(RuntimeError, match=r"a finished run; got none\. Call run"):
            getattr(smc, name)
