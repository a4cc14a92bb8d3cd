"""DiffusionHMC: the exact posterior of the T-step model, with any guidance, beside other sites of any scale."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import affine_prior, gaussian_moments
from measured_errors import check, of_chains
from numpyro.distributions.transforms import AffineTransform
from numpyro.handlers import seed, trace
from numpyro.infer import MCMC
from numpyro.infer.util import log_density
from slice_cases import SCALED_DATA, STANDARD_NORMAL, check_scale_posterior, unknown_scale, zero_network

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import (
    CovarianceGuidance,
    ErrorCovariance,
    GaussianFactor,
    MomentMatching,
    PaperTilt,
    ReconstructionGuidance,
    TiltedChain,
)
from numpyro_diffusion.infer import DiffusionHMC, DiffusionReparam

SCHEDULE = nd.schedules.log_snr(4, 0.3, 20.0)
MEANS = np.array([0.4, -0.7])
PRIOR = affine_prior(SCHEDULE, MEANS)
MATRIX, Y, NOISE = np.array([[1.0, 0.5]], np.float32), np.array([1.5], np.float32), 0.4


def seen(y):
    x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", dist.Normal(jnp.asarray(MATRIX) @ x, NOISE).to_event(1), obs=y)


def misfit(x):
    return dist.Normal(jnp.asarray(MATRIX) @ x, NOISE).log_prob(Y).sum()


def prior_moments():
    """Mean (2,) and covariance (2, 2) of x^0."""
    mean, variance = gaussian_moments(PRIOR)
    return np.asarray(mean[0], float), np.diag(np.broadcast_to(variance[0], 2))


def posterior():
    mean, covariance = prior_moments()
    gain = covariance @ MATRIX.T / (MATRIX @ covariance @ MATRIX.T + NOISE**2)
    return mean + gain @ (Y - MATRIX @ mean), covariance - gain @ MATRIX @ covariance, mean


def wrong_way(chain, x_t, t):
    """Guidance away from what was seen, with a spread that is not p's."""
    step = chain.reverse(x_t, t)
    return dist.Normal(step.loc - 0.3, 1.3 * step.scale)


ERRORS = ErrorCovariance(0.3 * jnp.ones((4, 2, 1)), jnp.full((4, 2), 0.2))
GUIDANCE = {
    "none": None,
    "moments": MomentMatching(MATRIX, Y, NOISE),
    "moments by scale": MomentMatching(MATRIX, Y, NOISE, covariance="scale"),
    "reconstruction": ReconstructionGuidance(misfit, 0.3),
    "paper": PaperTilt(misfit),
    "factor": GaussianFactor(np.array([1.5, 0.0], np.float32), 1.0, noised=True),
    "covariance": CovarianceGuidance(MATRIX, Y, NOISE, errors=ERRORS),
    "wrong way": wrong_way,
}


FIELDS = ("accept_prob", "num_steps", "step_size", "diverging", "log_likelihood")


def draws(model, *args, guidance=None, num_warmup=200, num_samples=800, num_chains=4, key=0, **options):
    guidance = None if guidance is None else {"x": guidance}
    kernel = DiffusionHMC(model, guidance=guidance, **options)
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(key), *args, extra_fields=FIELDS)
    return mcmc


# The weight of a guided path ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in GUIDANCE if name != "none"])
def test_the_weight_from_noises_is_that_of_the_path_they_make(name, x64):
    """By the chain's own log_weight of the path, in double precision."""
    chain = TiltedChain(affine_prior(SCHEDULE, MEANS).chain.expand((3,)), GUIDANCE[name])
    noise = jax.random.normal(jax.random.key(0), (3, 5, 2), float)
    state, log_ratio = chain.weighted_from_noise(noise)
    again = chain.weighted_from_noise(noise, checkpoint=True)
    np.testing.assert_allclose(state, chain.from_noise(noise), rtol=1e-9)
    np.testing.assert_allclose(again[1], log_ratio, rtol=1e-9)

    x, path = noise[:, -1], [noise[:, -1]]
    for t in range(4, 0, -1):
        step = chain.reverse(x, jnp.full(3, t))
        x = step.loc + step.scale * noise[:, t - 1]
        path.append(x)
    path = jnp.stack(path[::-1], axis=1)
    np.testing.assert_allclose(state, path[:, 0], rtol=1e-7)
    np.testing.assert_allclose(log_ratio, chain.log_weight(path), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(log_ratio, chain.chain.log_prob(path) - chain.log_prob(path), rtol=1e-6, atol=1e-8)


def test_the_reparameterised_model_has_the_weight_as_a_factor():
    model = numpyro.handlers.reparam(lambda: seen(Y), config={"x": DiffusionReparam(GUIDANCE["moments"])})
    sites = trace(seed(model, 0)).get_trace()
    noise = sites["x_noise"]["value"]
    found, _ = log_density(model, (), {}, {"x_noise": noise})
    state, log_ratio = TiltedChain(PRIOR.chain, GUIDANCE["moments"]).weighted_from_noise(noise)
    np.testing.assert_allclose(sites["x"]["value"], state, rtol=1e-5)
    wanted = dist.Normal().log_prob(noise).sum() + log_ratio + misfit(state)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_plate_has_a_weight_for_each_element():
    def model():
        with numpyro.plate("n", 3):
            numpyro.sample("x", PRIOR)

    reparameterised = numpyro.handlers.reparam(model, config={"x": DiffusionReparam(wrong_way)})
    site = trace(seed(reparameterised, 0)).get_trace()["x_log_ratio"]
    assert site["fn"].log_prob(site["value"]).shape == (3,)


@pytest.mark.parametrize("is_inside", [True, False], ids=["inside of the plate", "around it"])
def test_the_handler_may_stand_inside_of_a_plate(is_inside):
    """Then the plate is not yet in the site's shape, and the weight of all elements was counted for each."""

    def model():
        outer, inner = numpyro.handlers.reparam(config={"x": DiffusionReparam(wrong_way)}), numpyro.plate("n", 3)
        with inner if is_inside else outer, outer if is_inside else inner:
            numpyro.sample("x", PRIOR)

    sites = trace(seed(model, 0)).get_trace()
    noise, weight = sites["x_noise"]["value"], sites["x_log_ratio"]
    wanted = TiltedChain(PRIOR.chain, wrong_way).weighted_from_noise(noise)[1]
    np.testing.assert_allclose(weight["fn"].log_prob(weight["value"]), wanted, rtol=1e-5)


# Posteriors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GUIDANCE)
def test_the_conjugate_posterior_whatever_the_guidance(name):
    mean, covariance, prior_mean = posterior()
    mcmc = draws(seen, Y, guidance=GUIDANCE[name])
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"], float)
    check(of_chains(x), mean, refused=prior_mean)
    apart = x - mean
    check(of_chains(apart[..., 0] * apart[..., 1]), covariance[0, 1], refused=0.0)
    check(of_chains((apart @ MATRIX[0]) ** 2), MATRIX[0] @ covariance @ MATRIX[0], refused=1.5)
    assert not mcmc.get_extra_fields()["diverging"].any()


def test_guidance_makes_steps_long():
    """Near the posterior a step is most of a quarter of a turn, and the weight is nearly flat."""
    none, moments = (
        draws(seen, Y, guidance=GUIDANCE[name], num_samples=200).get_extra_fields() for name in ("none", "moments")
    )
    assert moments["step_size"][-1] > 1.2 * none["step_size"][-1]
    assert moments["log_likelihood"].std() < none["log_likelihood"].std()


@pytest.mark.optimised
def test_an_unknown_scale_is_drawn_with_x():
    mcmc = draws(unknown_scale, SCALED_DATA, num_warmup=300, num_samples=2000)
    found = mcmc.get_samples(group_by_chain=True)
    check_scale_posterior(found["x"], found["sigma"], prior_sd=1.0, least_size=1000)


def test_a_site_far_from_standard_normal_is_found_by_warm_up():
    """shift ~ N(100, 10) and x ~ N(0, 1), seen by their sum with noise 1."""

    def model(y):
        x = numpyro.sample("x", STANDARD_NORMAL)
        shift = numpyro.sample("shift", dist.Normal(100.0, 10.0))
        numpyro.sample("y", dist.Normal(shift + x, 1.0), obs=y)

    mcmc = draws(model, 130.0, num_warmup=600, num_samples=1000)
    found = mcmc.get_samples(group_by_chain=True)
    total = 1 + 100 + 1.0
    shift, x = (np.asarray(found[name], float) for name in ("shift", "x"))
    check(of_chains(shift), 100 + 100 * 30 / total, refused=100.0)
    check(of_chains(x), 30 / total, refused=0.0)
    check(of_chains((shift - 100 - 100 * 30 / total) ** 2), 100 - 100**2 / total, refused=100.0)
    assert mcmc.last_state.adapted.spread["shift"].shape == (4,)
    assert (mcmc.last_state.adapted.centre["shift"] > 100).all()


def test_elements_of_a_plate_and_units_of_the_data():
    """x = 100 + 5 z in a plate, guidance written in the units of x."""
    y = np.array([103.0, 97.0, 110.0], np.float32)

    def model(y):
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", dist.TransformedDistribution(PRIOR, AffineTransform(100.0, 5.0)))
            numpyro.sample("y", dist.Normal(x[..., 0], 2.0), obs=y)

    first = np.array([[1.0, 0.0]], np.float32)
    mcmc = draws(model, y, guidance=MomentMatching(first, y[:, None], 2.0).in_states([AffineTransform(100.0, 5.0)]))
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"], float)
    mean, covariance = prior_moments()
    prior_mean, spread = 100 + 5 * mean, 25 * covariance
    gain = spread[:, 0] / (spread[0, 0] + 4)
    wanted = prior_mean + gain * (y[:, None] - prior_mean[0])
    check(of_chains(x), wanted, refused=np.broadcast_to(prior_mean, (3, 2)))


def test_one_step_is_a_chain_too():
    kernel = nd.GaussianKernel(nd.schedules.Schedule.from_beta(jnp.array([0.99])), variance="upper")
    prior = nd.Diffusion(kernel, nd.Transition(zero_network, None, ()))

    def model():
        numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), 1.0), obs=2.0)

    step, moved = (prior.chain.reverse(jnp.asarray(x), 1) for x in (0.0, 1.0))
    variance = float((moved.loc - step.loc) ** 2 + step.scale**2)
    mcmc = draws(model)
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"], float)
    check(of_chains(x), 2 * variance / (variance + 1), refused=0.0)


# What it tells, and bad input --------------------------------------------------------------------------


def test_diagnostics_are_of_the_draws_after_warm_up():
    mcmc = draws(seen, Y, num_samples=50, num_chains=1)
    fields = mcmc.get_extra_fields()
    np.testing.assert_allclose(mcmc.last_state.mean_accept_prob, fields["accept_prob"].mean(), rtol=1e-4)
    assert (fields["step_size"] == fields["step_size"][0]).all()
    assert len(np.unique(fields["num_steps"])) > 2


def test_a_trajectory_that_meets_nan_is_told_and_refused():
    def model():
        x = numpyro.sample("x", STANDARD_NORMAL)
        numpyro.factor("inside", jnp.where(jnp.abs(x) < 0.5, 0.0, jnp.nan))

    mcmc = draws(model, num_warmup=0, num_samples=200)
    assert mcmc.get_extra_fields()["diverging"].any()
    assert (np.abs(mcmc.get_samples()["x"]) < 0.5).all()


def test_guidance_of_an_unknown_site_is_named():
    with pytest.raises(ValueError, match=r"guidance of the sites \['x'\]; got of \['z'\]"):
        MCMC(DiffusionHMC(seen, guidance={"z": wrong_way}), num_warmup=1, num_samples=1).run(jax.random.key(0), Y)


def test_guidance_of_a_site_that_the_model_reparameterised_is_refused():
    model = numpyro.handlers.reparam(seen, config={"x": DiffusionReparam()})
    with pytest.raises(ValueError, match=r"guidance of the sites \['x'\]; got of \['x'\].*not reparameterised itself"):
        MCMC(DiffusionHMC(model, guidance={"x": wrong_way}), num_warmup=1, num_samples=1).run(jax.random.key(0), Y)


def test_guidance_that_fixes_a_coordinate_is_refused():
    fixed = GaussianFactor(np.array([1.5, 0.0], np.float32), np.array([0.0, 1.0], np.float32))
    with pytest.raises(ValueError, match=r"a tilt that fixes no coordinate; got GaussianFactor.*scale > 0"):
        draws(seen, Y, guidance=fixed, num_warmup=1, num_samples=1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"step_size": 0.0}, r"step_size in \(0, 1.57\]; got 0.0"),
        ({"step_size": 2.0}, r"step_size in \(0, 1.57\]; got 2.0"),
        ({"target_accept_prob": 1.5}, r"target_accept_prob in \(0, 1\]; got 1.5"),
        ({"max_steps": 0}, "max_steps to be an integer >= 1; got 0"),
    ],
)
def test_options_out_of_range_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        DiffusionHMC(seen, **options)


def test_guidance_that_cannot_be_called_is_named(no_type_checks):
    with pytest.raises(TypeError, match="guidance that can be called; got 3"):
        DiffusionReparam(3)
    with pytest.raises(TypeError, match="guidance that can be called; got 3"):
        draws(seen, Y, guidance=3, num_warmup=1, num_samples=1)


def rounded(number):
    return jnp.round(4 * number) / 4


@pytest.mark.parametrize("chains", [1, 2])
def test_a_likelihood_without_a_gradient_is_named_with_an_engine_that_takes_it(chains):
    def model():
        x = numpyro.sample("x", STANDARD_NORMAL)
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(rounded(x), scale), obs=2.0)

    keys = jax.random.key(0) if chains == 1 else jax.random.split(jax.random.key(0), chains)
    with pytest.raises(ValueError, match=r"with a gradient in site 'x'; got 0 at every start.*DiffusionGibbs"):
        DiffusionHMC(model).init(keys, 10)


@pytest.mark.parametrize("chains", [1, 2])
def test_a_network_whose_gradient_is_nan_is_named(chains):
    """As that of ``where`` with a NaN in the branch that is not taken; before, the chain stood still without a word."""

    def network(params, x_t, t, context):
        return jnp.where(x_t > 100, jnp.sqrt(x_t - 100), 0.3 * x_t)

    kernel = nd.GaussianKernel(nd.schedules.log_snr(4), variance="upper")
    prior = nd.Diffusion(kernel, nd.Transition(network, None, ()))

    def model():
        numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), 1.0), obs=2.0)

    keys = jax.random.key(0) if chains == 1 else jax.random.split(jax.random.key(0), chains)
    with pytest.raises(ValueError, match=r"a finite gradient.*NaN or infinite ones in \['x_noise'\].*network"):
        DiffusionHMC(model, guidance=None).init(keys, 10)


def test_a_model_that_sees_nothing_has_no_gradient_and_is_drawn():
    state = DiffusionHMC(lambda: numpyro.sample("x", STANDARD_NORMAL)).init(jax.random.key(0), 10)
    assert float(state.log_likelihood) == 0


def test_the_evidence_is_refused_with_an_engine_that_gives_it():
    with pytest.raises(AttributeError, match=r"that gives the evidence; got DiffusionHMC\. Use TemperedSMC"):
        _ = DiffusionHMC(lambda: None).log_evidence
