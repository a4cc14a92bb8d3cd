"""Every symptom of the page on troubleshooting, made to happen: what names it, and that the page's cure cures it."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import HMC, MCMC

import numpyro_diffusion as nd
from numpyro_diffusion.infer import Checklist, DiffusionHMC, TwistedSMC, check, checks, checks_cost
from numpyro_diffusion.model.split import Programs

PAGE = Path(__file__).parent.parent / "docs" / "troubleshooting.md"
SYMPTOMS = re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE)

SCHEDULE = nd.schedules.log_snr(4, 0.1, 100.0)
KERNEL = nd.GaussianKernel(SCHEDULE, parameterization="x0", variance="denoiser")
PRIOR = nd.Diffusion(KERNEL, nd.analytic.gaussian_mixture(KERNEL, jnp.zeros((1, 1)), 1.0, jnp.ones(1)))


def model(y, noise=1.0):
    numpyro.sample("y", dist.Normal(numpyro.sample("x", PRIOR), noise).to_event(1), obs=y)


def squared(y):
    """Two modes of x, with nothing between them."""
    x = numpyro.sample("x", PRIOR)
    numpyro.factor("y", dist.Normal(x[0] ** 2, 0.05).log_prob(y))


def finding(found, name):
    """The one of this name."""
    return next(one for one in found.findings if one.name == name)


def run(model, *args, step_size=0.3, num_warmup=60, num_samples=100, **settings):
    kernel = DiffusionHMC(model, guidance=None, step_size=step_size)
    settings = {"num_chains": 4, "chain_method": "vectorized", "progress_bar": False, **settings}
    mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, **settings)
    mcmc.run(jax.random.key(0), *args)
    return mcmc


def test_symptoms_of_the_page_are_those_of_this_file():
    """Headings as names of tests, in order."""
    others = ["symptoms_of_the_page_are_those_of_this_file"]
    tests = [name.removeprefix("test_") for name in globals() if name.startswith("test_")]
    assert [name for name in tests if name not in others] == [re.sub(r"\W+", "_", title.lower()) for title in SYMPTOMS]


@pytest.fixture
def no_engine(monkeypatch):
    """``check`` without what it compiles to recommend one."""
    monkeypatch.setattr(checks, "_with_engine", lambda findings, *_: Checklist(tuple(findings)))


def test_r_hat_is_high():
    told = finding(check(run(squared, 1.0)), "R-hat")
    assert told.passed is False
    assert re.search(r"of 'x'\[0\]; means of chains there: .*1.*-0\.9|-1", told.told)
    assert "modes lie far apart: TwistedSMC" in told.cure
    smc = TwistedSMC(squared, 200, 2, progress_bar=False)
    smc.run(jax.random.key(1), 1.0)
    assert 0.2 < (smc.get_samples()["x"] > 0).mean() < 0.8


def test_the_effective_size_is_1():
    y = jnp.array([2.0])
    with pytest.warns(UserWarning, match=r"effective size fell to 1\.\d of 50 particles at level 0"):
        TwistedSMC(model, 50, 1, "none", progress_bar=False).run(jax.random.key(0), y, 1e-3)
    TwistedSMC(model, 50, 1, "gaussian", progress_bar=False).run(jax.random.key(0), y, 1e-3)  # warnings are errors


def test_the_acceptance_is_0():
    y = jnp.array([0.5])
    still = finding(check(run(model, y, 1e-3, step_size=1.5, num_warmup=0, num_samples=20)), "acceptance")
    assert still.passed is False
    assert "'x' changes in 0% of the draws of one chain; mean acceptance 0" in still.told
    assert finding(check(run(model, y, 1e-3, num_samples=20)), "acceptance").passed


def test_nan():
    y = jnp.array([jnp.nan])
    found = check(model, y)
    assert "NaN at index (0,)" in finding(found, "data").told
    with pytest.raises(ValueError, match="got nan at row 3, column 0"):
        train(jnp.ones((8, 1)).at[3].set(jnp.nan), learning_rate=1e-3)


def train(data, learning_rate, num_steps=150):
    kernel = nd.GaussianKernel(nd.schedules.log_snr(10, 0.03, 100.0))
    network = nd.networks.MLP(10, kernel.num_outputs, width=8, depth=1)

    def train_model(x, size):
        transition = nd.haiku_module("net", network, kernel=kernel, event_shape=(1,))
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", nd.Diffusion(kernel, transition), obs=x)

    settings = {"num_steps": num_steps, "batch_size": len(data), "rng_key": jax.random.key(1), "progress_bar": False}
    return nd.fit(train_model, data, optimizer=optax.adam(learning_rate), **settings)


SMALL = 0.1 * jax.random.normal(jax.random.key(0), (256, 1))


def test_the_loss_is_flat_or_negative():
    with pytest.warns(
        UserWarning, match="Expected a loss that falls .* parameters that moved by .* Raise the learning"
    ):
        flat = train(SMALL, 1e-6)
    assert finding(check(flat), "loss falls").passed is False
    found = check(train(SMALL, 2e-2))
    assert found.passed
    assert "is no fault" in finding(found, "loss below 0").told


def test_draws_are_in_the_wrong_range(no_engine):
    y = jnp.array([130.0])
    assert "same units" in finding(check(model, y), "data within the model's reach").cure
    in_units = dist.TransformedDistribution(PRIOR, dist.transforms.AffineTransform(128.0, 20.0))

    def mended(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("x", in_units), 1.0).to_event(1), obs=y)

    assert finding(check(mended, y), "data within the model's reach").passed


def test_it_is_too_slow():
    def counted(prior):
        def model(y):
            k = numpyro.sample("k", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Normal(numpyro.sample("x", prior) + k, 1.0).to_event(1), obs=y)

        return check(model, jnp.array([0.5]))

    slow, quick = counted(PRIOR), counted(PRIOR.respaced(2))
    assert "network calls" in " ".join(repr(slow).split())
    assert slow.network_calls == 2 * quick.network_calls


def test_memory_runs_out(monkeypatch):
    monkeypatch.setattr(checks_cost, "device_memory", lambda: 50_000)
    found = check(squared, 1.0)
    told = finding(found, "memory")
    assert told.passed is False
    assert "120 kB for 4 x 1500 draws with their noises, of 50 kB" in told.told
    assert '"~z.x_noise"' in told.cure


def test_it_compiles_for_ever(no_engine):
    def unrolled(y):
        mean = numpyro.sample("x", PRIOR)
        for _ in range(2600):
            mean = 0.5 * mean + 1.0
        numpyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    told = finding(check(unrolled, jnp.ones(1)), "programs")
    assert told.passed is False
    assert "jax.lax.scan" in told.cure

    def scanned(y):
        mean, _ = jax.lax.scan(lambda mean, _: (0.5 * mean + 1.0, None), numpyro.sample("x", PRIOR), None, 2600)
        numpyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    assert finding(check(scanned, jnp.ones(1)), "programs").passed


def test_it_compiles_each_time(no_engine):
    def with_lambda(y):
        kernel = nd.GaussianKernel(SCHEDULE, variance="upper")
        prior = nd.Diffusion(kernel, nd.Transition(lambda params, x_t, t, context: 0 * x_t, None, (1,)))
        numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), 1.0).to_event(1), obs=y)

    told = finding(check(with_lambda, jnp.ones(1)), "programs")
    assert told.passed is False
    assert "outside of the model" in told.cure

    programs = Programs(model)
    with pytest.warns(UserWarning, match="10th set of arguments.*Pass numbers as arrays"):
        for noise in range(1, 12):
            programs.bind((jnp.ones(1), float(noise)), {})
    programs = Programs(model)
    for noise in range(1, 12):
        programs.bind((jnp.ones(1), jnp.asarray(float(noise))), {})

    def plain(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("m", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    for is_traced in (False, True):
        mcmc = MCMC(HMC(plain), num_warmup=0, num_samples=4, progress_bar=False, jit_model_args=is_traced)
        for y in (0.0, 1.0):
            mcmc.run(jax.random.key(0), jnp.asarray(y))
        assert finding(check(mcmc), "programs").passed is is_traced
