"""A prior has no density: nothing of NumPyro, and no engine, takes a bound for one, whatever wraps it.

Right numbers stand beside the refusals: what the advised cure finds. Refusals happen when a model is traced.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from closed_forms import affine_prior, gaussian_moments
from density_cases import (
    DATA,
    DEPENDENT,
    DEPENDS,
    KEY,
    NO_DENSITY,
    UNNAMED,
    by_network,
    conditional,
    evaluate,
    latent,
    no_guide,
    svi,
)
from numpyro import infer
from numpyro.diagnostics import effective_sample_size
from numpyro.distributions.transforms import AffineTransform
from numpyro.handlers import reparam, seed
from numpyro.infer import MCMC, NUTS, autoguide, log_likelihood, psis_diagnostic
from numpyro.infer.inspect import get_dependencies
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.reparam import NeuTraReparam
from numpyro.infer.util import log_density, potential_energy
from wrapped_cases import OTHERS, PRIOR, SCHEDULE, SHAPES, TRANSFORMED

import numpyro_diffusion as nd
from numpyro_diffusion.infer import DiffusionReparam

NAMED = nd.Diffusion(PRIOR.kernel, PRIOR.transition, estimator=nd.AllSteps(), rng_key=KEY)

# Latent sites under NumPyro's own engines --------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [*SHAPES.values(), *TRANSFORMED.values(), *OTHERS.values()], ids=[*SHAPES, *TRANSFORMED, *OTHERS]
)
def test_nuts_refuses_a_latent_diffusion_inside_of_every_wrapper(make):
    with pytest.raises(ValueError, match=NO_DENSITY):
        NUTS(latent(make())).init(KEY, 0, None, (), {})


def with_a_bit(distribution):
    def model():
        numpyro.sample("k", dist.Bernoulli(0.5))
        latent(distribution)()

    return model


def with_a_subsample(distribution):
    def model():
        x = numpyro.sample("x", distribution)
        with numpyro.plate("n", 4, subsample_size=2):
            numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=jnp.zeros(2))

    return model


def with_another(distribution):
    def model():
        numpyro.sample("z", dist.Normal())
        latent(distribution)()

    return model


KERNELS = {
    "AIES": (infer.AIES, latent),
    "BarkerMH": (infer.BarkerMH, latent),
    "DiscreteHMCGibbs": (lambda model: infer.DiscreteHMCGibbs(NUTS(model)), with_a_bit),
    "ESS": (infer.ESS, latent),
    "Gibbs": (lambda model: infer.Gibbs([(NUTS(model), ["x"]), (NUTS(model), ["z"])]), with_another),
    "HMC": (infer.HMC, latent),
    "HMCECS": (lambda model: infer.HMCECS(NUTS(model), num_blocks=2), with_a_subsample),
    "HMCGibbs": (
        lambda model: infer.HMCGibbs(NUTS(model), lambda rng_key, gibbs_sites, hmc_sites: gibbs_sites, ["z"]),
        with_another,
    ),
    "MixedHMC": (lambda model: infer.MixedHMC(infer.HMC(model)), with_a_bit),
    "NUTS": (infer.NUTS, latent),
    "SA": (infer.SA, latent),
}


@pytest.mark.parametrize("name", KERNELS)
def test_every_mcmc_kernel_refuses_a_transformed_latent_diffusion(name):
    make, model = KERNELS[name]
    kernel = make(model(TRANSFORMED["TransformedDistribution"]()))
    keys = jax.random.split(KEY, 4) if name in ("AIES", "ESS") else KEY
    with pytest.raises(ValueError, match=NO_DENSITY):
        kernel.init(keys, 0, None, (), {})


def test_the_table_has_every_kernel_that_moves_real_sites():
    kernels = {name for name, cls in inspect.getmembers(infer, inspect.isclass) if issubclass(cls, MCMCKernel)}
    assert kernels - set(KERNELS) <= {"CustomGibbs", "DiscreteGibbs"}  # blocks of Gibbs


GUIDES = {
    name: cls
    for name, cls in inspect.getmembers(autoguide, inspect.isclass)
    if issubclass(cls, autoguide.AutoGuide)
    and name not in ("AutoGuide", "AutoGuideList", "AutoContinuous", "AutoBatchedMixin")
}


def _guide(cls, model):
    if cls is autoguide.AutoSurrogateLikelihoodDAIS:
        return cls(model, model)
    if cls is autoguide.AutoSemiDAIS:
        return cls(model, model)
    return cls(model)


@pytest.mark.parametrize("name", GUIDES)
def test_every_automatic_guide_refuses_a_transformed_latent_diffusion(name):
    model = latent(dist.TransformedDistribution(PRIOR.expand((2,)).to_event(1), AffineTransform(100.0, 5.0)))
    with pytest.raises(ValueError, match=NO_DENSITY):
        svi(model, _guide(GUIDES[name], model)).init(KEY)


def normal_guide():
    numpyro.sample("x", dist.Normal(jnp.zeros(1), 1.0).to_event(1))


def point_guide():
    numpyro.sample("x", dist.Delta(jnp.zeros(1), event_dim=1))


@pytest.mark.parametrize("guide", [normal_guide, point_guide])
@pytest.mark.parametrize("loss", [infer.Trace_ELBO, infer.TraceMeanField_ELBO, infer.TraceGraph_ELBO, infer.RenyiELBO])
def test_every_elbo_refuses_a_latent_diffusion_with_a_guide_by_hand(loss, guide):
    with pytest.raises(ValueError, match=NO_DENSITY):
        evaluate(latent(PRIOR), guide, loss())


def test_a_latent_diffusion_without_a_guide_is_refused():
    with pytest.raises(ValueError, match=NO_DENSITY):
        evaluate(latent(PRIOR), no_guide)


def test_a_guide_made_of_a_diffusion_has_no_density_either():
    with pytest.raises(ValueError, match=NO_DENSITY):
        evaluate(latent(dist.Normal(jnp.zeros(1), 1.0).to_event(1)), lambda: numpyro.sample("x", PRIOR))


def test_neutra_refuses_it():
    plain = latent(dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    guide = autoguide.AutoMultivariateNormal(plain)
    neutra = NeuTraReparam(guide, svi(plain, guide).run(KEY, 1, progress_bar=False).params)
    with pytest.raises(ValueError, match=NO_DENSITY):
        NUTS(neutra.reparam(latent(affine_prior(SCHEDULE, [0.5, 0.5])))).init(KEY, 0, None, (), {})


def test_any_joint_density_refuses_it():
    with pytest.raises(ValueError, match=NO_DENSITY):
        log_density(latent(PRIOR), (), {}, {"x": jnp.zeros(1)})


def test_a_named_estimate_is_refused_as_well():
    distribution = nd.Diffusion(PRIOR.kernel, PRIOR.transition, estimator=nd.ImportanceWeighted(64), rng_key=KEY)
    with pytest.raises(ValueError, match=NO_DENSITY):
        NUTS(latent(distribution)).init(KEY, 0, None, (), {})


@pytest.mark.optimised
def test_the_cure_finds_the_scale_of_a_transformed_prior():
    """100 + 5 z without data: 5 sd(z). The bound as a density gave 20.5 in place of 5, at an R-hat of 1.000."""

    def model():
        numpyro.deterministic("x", 100.0 + 5.0 * numpyro.sample("z", PRIOR))

    kernel = NUTS(reparam(model, config={"z": DiffusionReparam()}))
    mcmc = MCMC(kernel, num_warmup=200, num_samples=2000, progress_bar=False)
    mcmc.run(KEY)
    draws = mcmc.get_samples(group_by_chain=True)["x"][..., 0]
    mean, variance = (moment[0, 0] for moment in gaussian_moments(PRIOR))
    effective = _effective_size(draws)
    assert abs(draws.mean() - 100 - 5 * mean) < 5 * 5 * np.sqrt(variance / effective)
    assert abs(draws.var() / (25 * variance) - 1) < 5 * np.sqrt(2 / effective)


def _effective_size(draws):
    """Of the mean and of the variance, the smaller."""
    draws = np.asarray(draws)
    effective = min(float(effective_sample_size(draws)), float(effective_sample_size((draws - draws.mean()) ** 2)))
    assert effective > 300
    return effective


# The explicit way out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_wrapped", [False, True], ids=["bare", "transformed"])
def test_as_density_takes_the_named_estimate_for_the_density(is_wrapped):
    named = nd.Diffusion(PRIOR.kernel, PRIOR.transition, estimator=nd.AllSteps(), rng_key=KEY)
    told = nd.Diffusion(PRIOR.kernel, PRIOR.transition, estimator=nd.AsDensity(nd.AllSteps()), rng_key=KEY)

    def wrapped(distribution):
        return dist.TransformedDistribution(distribution, AffineTransform(100.0, 5.0)) if is_wrapped else distribution

    def model():
        numpyro.sample("x", wrapped(told))

    x = jnp.asarray([90.0])
    np.testing.assert_allclose(-potential_energy(model, (), {}, {"x": x}), wrapped(named).log_prob(x), rtol=1e-5)
    NUTS(model).init(KEY, 0, None, (), {})


def test_as_density_is_taken_at_an_observed_site_that_depends_on_a_latent_one():
    def told(*args, context):
        prior = affine_prior(*args, context=context)
        estimator = nd.AsDensity(nd.AllSteps())
        return nd.Diffusion(prior.kernel, prior.transition, context=context, estimator=estimator, rng_key=KEY)

    NUTS(lambda: conditional(told)).init(KEY, 0, None, (), {})


# Observed sites ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["NUTS", "HMC", "BarkerMH", "SA", "AIES", "ESS"])
def test_an_observed_diffusion_with_a_latent_context_is_refused_under_mcmc(name):
    keys = jax.random.split(KEY, 4) if name in ("AIES", "ESS") else KEY
    with pytest.raises(ValueError, match=DEPENDS):
        getattr(infer, name)(conditional).init(keys, 0, None, (), {})


@pytest.mark.parametrize("model", DEPENDENT.values(), ids=DEPENDENT)
def test_whatever_an_observed_diffusion_has_of_a_latent_site_is_refused_by_name(model):
    with pytest.raises(ValueError, match=DEPENDS):
        NUTS(model).init(KEY, 0, None, (), {})


@pytest.mark.parametrize("model", DEPENDENT.values(), ids=DEPENDENT)
def test_the_same_is_refused_of_a_density_by_hand_on_plain_numbers(model):
    """Nothing is traced there, and the bound came back without a word."""
    with seed(rng_seed=0):
        sites = numpyro.handlers.trace(model).get_trace()
    values = {
        name: site["value"] for name, site in sites.items() if site["type"] == "sample" and not site["is_observed"]
    }
    with pytest.raises(ValueError, match=DEPENDS):
        log_density(model, (), {}, values)


def test_a_density_by_hand_of_a_diffusion_that_depends_on_no_latent_site_has_its_bound_as_a_constant():
    def model():
        numpyro.sample("c", dist.Normal())
        numpyro.sample("x", NAMED, obs=DATA[0])

    found = log_density(model, (), {}, {"c": 0.3})[0]
    np.testing.assert_allclose(found, dist.Normal().log_prob(0.3) + NAMED.log_prob(DATA[0]), rtol=1e-5)


def test_a_site_on_which_python_decides_is_not_proved():
    """``if c > 0`` runs on plain numbers, and then no program tells what the density depends on."""

    def model():
        c = numpyro.sample("c", dist.Normal())
        x = DATA[0] if c > 0 else DATA[1]
        numpyro.sample("x", NAMED, obs=x)

    with pytest.raises(ValueError, match="got no proof of it: the model asks for a latent site"):
        log_density(model, (), {}, {"c": jnp.ones(())})


def test_the_other_sites_of_a_gibbs_block_are_latent_too():
    """One block's potential is traced with the other's sites given."""

    def model():
        numpyro.sample("z", dist.Normal())
        conditional()

    kernel = infer.Gibbs([(NUTS(model), ["z"]), (NUTS(model), ["c"])])
    with pytest.raises(ValueError, match=DEPENDS):
        MCMC(kernel, num_warmup=1, num_samples=1, progress_bar=False).run(KEY)


def test_an_observed_diffusion_that_depends_on_no_latent_site_is_a_constant_of_the_posterior():
    """Whatever its value is computed from, in the model or outside, and inside of jit, where all of it is traced."""

    def model(y):
        c = numpyro.sample("c", dist.Normal())
        shift = jnp.ones(1) * 2.0
        numpyro.sample("x", dist.TransformedDistribution(PRIOR, AffineTransform(shift, 1.0)), obs=jnp.sin(y) + 0.1)
        numpyro.sample("y", dist.Normal(c, 1.0), obs=3.0)

    y = jnp.ones(1)
    energy = jax.jit(lambda c: potential_energy(model, (y,), {}, {"c": c}))
    wanted = 0.5 * (0.5**2 + 2.5**2 - 3.0**2)
    np.testing.assert_allclose(energy(0.5) - energy(0.0), wanted, rtol=1e-4)
    MCMC(NUTS(model), num_warmup=1, num_samples=1, progress_bar=False).run(KEY, y)


@pytest.mark.optimised
def test_the_path_as_a_latent_site_gives_the_exact_posterior_of_a_latent_context():
    """c ~ N(0, 1), two x ~ N(m(c), v), m affine in c: a normal posterior. The bound: .57 +- .76, right: .93 +- .58."""
    start, moved = (gaussian_moments(affine_prior(SCHEDULE, [0.5 + shift])) for shift in (0.0, 1.0))
    mean_at_zero, variance = start[0][0, 0], start[1][0, 0]
    slope = moved[0][0, 0] - mean_at_zero
    precision = 1 + len(DATA) * slope**2 / variance
    mean = slope * (np.asarray(DATA) - mean_at_zero).sum() / variance / precision

    def model():
        c = numpyro.sample("c", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
        with numpyro.plate("n", 2):
            prior = affine_prior(SCHEDULE, [0.5], context=c)
            chain = nd.ReverseChain(prior.kernel, prior.transition, context=c, stop=1)
            path = numpyro.sample("path", chain)
            numpyro.sample("x", chain.conditional(path[..., 0, :], 1), obs=DATA)

    mcmc = MCMC(NUTS(model), num_warmup=300, num_samples=3000, progress_bar=False)
    mcmc.run(KEY)
    draws = mcmc.get_samples(group_by_chain=True)["c"][..., 0]
    effective = _effective_size(draws)
    assert abs(float(draws.mean()) - mean) < 5 / np.sqrt(precision * effective)
    assert abs(float(draws.var()) * precision - 1) < 5 * np.sqrt(2 / effective)


def training():
    with numpyro.plate("n", 2):
        numpyro.sample("x", nd.Diffusion(PRIOR.kernel, PRIOR.transition), obs=DATA)


@pytest.mark.parametrize("loss", [infer.Trace_ELBO, infer.TraceMeanField_ELBO, infer.TraceGraph_ELBO])
def test_training_on_an_observed_site_needs_no_name(loss):
    """The loss is a random step's: fresh noise with each key."""
    losses = [float(evaluate(training, no_guide, loss(), jax.random.key(k))) for k in (0, 1)]
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]


def test_a_named_estimate_is_used_as_named_in_training():
    distribution = nd.Diffusion(PRIOR.kernel, PRIOR.transition, estimator=nd.AllSteps(3), rng_key=KEY)
    found = evaluate(lambda: numpyro.sample("x", distribution, obs=DATA[0]), no_guide)
    np.testing.assert_allclose(found, -distribution.log_prob(DATA[0]), rtol=1e-5)


@pytest.mark.parametrize("model", [conditional, by_network], ids=["context", "weights"])
@pytest.mark.parametrize("guide", ["AutoNormal", "AutoMultivariateNormal", "AutoDAIS", "AutoLaplaceApproximation"])
def test_variational_inference_of_what_a_diffusion_depends_on_is_training(model, guide):
    """Bayesian weights: the ELBO of a bound is a bound."""
    losses = svi(model, getattr(autoguide, guide)(model)).run(KEY, 2, progress_bar=False).losses
    assert np.isfinite(losses).all()


def test_importance_weights_made_of_a_bound_are_refused():
    guide = autoguide.AutoNormal(conditional)
    params = svi(conditional, guide).run(KEY, 1, progress_bar=False).params
    with pytest.raises(ValueError, match=DEPENDS):
        psis_diagnostic(KEY, params, conditional, guide, num_particles=100)


def test_training_by_hand_without_latent_sites_needs_no_name():
    def model(weight):
        transition = nd.Transition(lambda params, x_t, t, context: params * x_t, weight, (1,))
        numpyro.sample("x", nd.Diffusion(PRIOR.kernel, transition), obs=DATA[0])

    gradient = jax.jit(jax.grad(lambda weight: log_density(seed(model, KEY), (weight,), {}, {})[0]))(0.1)
    assert np.isfinite(gradient)


# Nobody of NumPyro asks --------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [PRIOR.log_prob, jax.jit(PRIOR.log_prob), jax.vmap(PRIOR.log_prob)])
def test_a_prior_asked_for_its_density_names_the_estimates(ask):
    with pytest.raises(ValueError, match=UNNAMED):
        ask(DATA)


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_a_wrapped_prior_asked_for_its_density_names_the_estimates(make):
    distribution = make()
    with pytest.raises(ValueError, match=UNNAMED):
        distribution.log_prob(jnp.full(distribution.shape(), 1.0))


@pytest.mark.filterwarnings(r"ignore:Expected sqrt\(abar_T\)")  # two steps leave the data visible
def test_what_fit_returns_is_a_prior():
    def model(batch, size):
        prior = affine_prior(SCHEDULE, numpyro.param("mean", jnp.zeros(1)))
        with numpyro.plate("n", size, subsample_size=len(batch)):
            numpyro.sample("x", nd.Diffusion(prior.kernel, prior.transition, estimator=nd.RandomStep(2)), obs=batch)

    settings = {"num_steps": 2, "batch_size": 2, "rng_key": KEY, "progress_bar": False}
    prior = nd.fit(model, DATA, optimizer=optax.adam(0.1), **settings).distribution("x")
    assert prior.estimator is None
    assert prior.sample(KEY, (3,)).shape == (3, 1)
    with pytest.raises(ValueError, match=UNNAMED):
        prior.log_prob(DATA)


def test_log_likelihood_wants_a_name():
    def model(distribution):
        numpyro.sample("x", distribution, obs=DATA[0])

    named = nd.Diffusion(PRIOR.kernel, PRIOR.transition, estimator=nd.AllSteps(), rng_key=KEY)
    with pytest.raises(ValueError, match=UNNAMED):
        log_likelihood(model, {"unused": jnp.zeros(2)}, PRIOR)
    found = log_likelihood(model, {"unused": jnp.zeros(2)}, named)["x"]
    np.testing.assert_allclose(found, jnp.full(2, named.log_prob(DATA[0])), rtol=1e-5)


def test_the_dependence_of_sites_is_found_without_a_density():
    found = get_dependencies(latent(TRANSFORMED["TransformedDistribution"]()))
    assert found["prior_dependencies"]["y"] == {"y": set(), "x": set()}


def test_rows_under_vmap_share_their_noise_and_rows_of_a_batch_do_not():
    """A sharp bit: vmap hands every row the same key, so equal rows get equal estimates, each of them unbiased."""
    distribution = nd.Diffusion(PRIOR.kernel, PRIOR.transition, estimator=nd.RandomStep(), rng_key=KEY)
    rows = jnp.ones((4, 1))
    assert np.unique(jax.vmap(distribution.log_prob)(rows)).size == 1
    assert np.unique(distribution.log_prob(rows)).size == 4
