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
from numpyro_diffusion.infer import (
    AutoDiffusionGuide,
    DiffusionGibbs,
    DiffusionHMC,
    DiffusionReparam,
    EllipticalSlice,
    TemperedSMC,
    TwistedSMC,
)

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


def scaled():
    with numpyro.handlers.scale(scale=2.0):
        x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=1.0)


def subsampled():
    with numpyro.plate("n", 4, subsample_size=2):
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=jnp.ones(2))


def in_a_scope():
    with numpyro.handlers.scope(prefix="a"), numpyro.handlers.scope(prefix="b", divider="."):
        x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=1.0)


def chain(kernel):
    mcmc = MCMC(kernel, num_warmup=1, num_samples=1, progress_bar=False)
    mcmc.run(jax.random.key(0))
    return mcmc.get_samples()


def guided(model):
    guide = AutoDiffusionGuide(model)
    svi = SVI(guide.model, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
    params = svi.run(jax.random.key(0), 1, progress_bar=False).params
    return guide.importance_weights(jax.random.key(0), params, 25).samples


def reparametrised(model):
    config = dict.fromkeys(("x", "a/b.x"), DiffusionReparam())
    return chain(NUTS(numpyro.handlers.reparam(model, config=config)))


def filtered(smc):
    smc.run(jax.random.key(0))
    return smc.get_samples()


ENGINES = {
    "smc": lambda model: filtered(TwistedSMC(model, 8, 2, progress_bar=False)),
    "gibbs": lambda model: chain(DiffusionGibbs(model)),
    "slice": lambda model: chain(EllipticalSlice(model)),
    "hmc": lambda model: chain(DiffusionHMC(model)),
    "tempered": lambda model: filtered(TemperedSMC(model, num_particles=64, num_islands=2, progress_bar=False)),
    "guide": guided,
    "reparam": reparametrised,
}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_diffusion_site_in_scan_gets_the_true_cure(engine):
    with pytest.raises(ValueError, match=r"'x' outside of scan; got one inside\. Draw it before, in a plate"):
        ENGINES[engine](in_scan)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "reparam"])
def test_an_improper_prior_is_named(engine):
    """NUTS on the reparameterised model needs no draw of the prior, and takes it."""
    with pytest.raises(ValueError, match=r"can be sampled at site 'shift'; got ImproperUniform\. Give it a proper one"):
        ENGINES[engine](beside_an_improper_prior)


@pytest.mark.parametrize("engine", ["smc", "gibbs", "slice", "hmc", "tempered"])
def test_a_wrong_shape_names_the_site(engine):
    with pytest.raises(ValueError, match=r"a value of shape \(2,\) at site 'y'; got shape \(3,\)"):
        ENGINES[engine](of_another_shape)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", [scaled, subsampled])
def test_a_power_of_a_diffusion_has_no_posterior(engine, model):
    """The noises had the power of their density: an evidence of -5.99 without a word."""
    wanted = "an unscaled (latent|diffusion) site 'x(_noise)?'; got scale 2.0|a model with all its data; got plate 'n'"
    with pytest.raises(ValueError, match=wanted):
        ENGINES[engine](model)


@pytest.mark.filterwarnings("ignore:Expected Pareto k-hat")  # of the guide's, which is not trained
@pytest.mark.parametrize("engine", ENGINES)
def test_a_scope_names_a_diffusion_site_and_its_noises_once(engine):
    """Noises were called a/b.a/b.x_noise, and engines found no diffusion."""
    assert set(ENGINES[engine](in_a_scope)) - {"a/b.x_noise"} == {"a/b.x"}


def test_what_is_no_model_is_refused_when_the_engine_is_made(no_type_checks):
    for make in (TwistedSMC, DiffusionGibbs, EllipticalSlice, DiffusionHMC, TemperedSMC):
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
