"""AutoDiffusionGuide: starts at the prior, reaches what it can reach, and its weights are those of the exact model."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from guide_cases import (
    GAUSSIAN,
    GAUSSIAN_PRIOR,
    KERNEL,
    MODES,
    MODES_PRIOR,
    T,
    density_on_grid,
    fit,
    random_correction,
    untrained,
)
from measured_errors import check, of_chains, of_independent
from numpyro.contrib.control_flow import scan
from numpyro.handlers import replay, seed, substitute, trace
from numpyro.infer import MCMC, SVI, Predictive, Trace_ELBO

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import LearnedGuidance, StepCorrection
from numpyro_diffusion.infer import DiffusionHMC, TwistedSMC
from numpyro_diffusion.infer.guide import AutoDiffusionGuide
from numpyro_diffusion.noise.importance import importance_result, pareto_k

# Training -------------------------------------------------------------------------------------------


NOISE = jnp.asarray([0.3, 2.0])
OBSERVED = jnp.asarray([[1.5, -1.0], [-1.0, 2.0]])


def gaussian_model(y):
    with numpyro.plate("n", 2):
        x = numpyro.sample("x", GAUSSIAN_PRIOR)
        numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=y)


@functools.cache
def trained_gaussian():
    guide = AutoDiffusionGuide(gaussian_model, path_gradient=True)
    return guide, fit(guide, OBSERVED)


def moments_of_data():
    """Mean and variance of x^0 under the Gaussian chain, whose steps are affine."""
    mean, variance = np.zeros(2), np.ones(2)
    for t in range(T, 0, -1):
        at_0, at_1 = (nd.ReverseChain(KERNEL, GAUSSIAN).reverse(jnp.full(2, x), t) for x in (0.0, 1.0))
        slope = np.asarray(at_1.loc - at_0.loc)
        mean, variance = slope * mean + at_0.loc, slope**2 * variance + at_0.variance
    return mean, variance


def test_gaussian_posterior_is_in_the_family_and_is_reached():
    """The chain is affine, so its x^0 is Normal, and its moments give the evidence exactly."""
    guide, params = trained_gaussian()
    mean, variance = moments_of_data()
    evidence = float(dist.Normal(mean, np.sqrt(variance + NOISE**2)).log_prob(OBSERVED).sum())
    weighted = guide.importance_weights(jax.random.key(1), params, 1000, OBSERVED)
    assert params["x_auto_gain"].shape == params["x_auto_inflation"].shape == (2, T, 2)
    assert params["x_auto_shift"].shape == params["x_auto_scale"].shape == (2, T + 1, 2)
    # The weights' logs are constant but for what training leaves: measured spread .015, gap 1e-4.
    assert weighted.log_weights.std() < 0.05
    assert evidence - weighted.log_weights.mean() == pytest.approx(0, abs=2e-3)
    base = float(dist.Normal(0.0, np.sqrt(1 + NOISE**2)).log_prob(OBSERVED).sum())  # of N(0, 1) as a prior
    check(of_independent(np.exp(weighted.log_weights - evidence)), 1.0, refused=np.exp(base - evidence))
    assert weighted.log_evidence == pytest.approx(np.log(np.exp(weighted.log_weights).mean()), rel=1e-5)
    assert weighted.pareto_k < 0.7
    assert weighted.effective_sample_size > 990
    draws = weighted.samples["x"]
    posterior_variance = 1 / (1 / variance + 1 / NOISE**2)
    posterior_mean = posterior_variance * (mean / variance + OBSERVED / NOISE**2)
    assert (abs(draws.mean(0) - posterior_mean) < 5 * np.sqrt(posterior_variance / 1000)).all()
    assert (abs(draws.std(0) / np.sqrt(posterior_variance) - 1) < 5 / np.sqrt(2000)).all()


def modes_model(y):
    x = numpyro.sample("x", MODES_PRIOR)
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


def test_weights_correct_the_bound_of_a_guide_that_is_not_exact():
    y = jnp.asarray([-0.2])
    grid = np.linspace(-8, 8, 2001)
    joint = density_on_grid(MODES, grid) * np.exp(-0.5 * (grid - float(y[0])) ** 2) / np.sqrt(2 * np.pi)
    evidence = joint.sum() * (grid[1] - grid[0])
    positive = joint[grid > 0].sum() / joint.sum()
    guide = AutoDiffusionGuide(modes_model, path_gradient=True)
    bounds = []
    for params in (untrained(guide, y), fit(guide, y, num_steps=300)):
        weighted = guide.importance_weights(jax.random.key(1), params, 4000, y)
        weights = np.exp(np.asarray(weighted.log_weights - weighted.log_evidence, np.float64))
        error = weights.std() / np.sqrt(len(weights))
        assert abs(float(weighted.log_evidence) - np.log(evidence)) < 5 * error
        terms = weights * (np.asarray(weighted.samples["x"][:, 0] > 0) - positive)
        assert abs(terms.mean()) < 5 * terms.std() / np.sqrt(len(weights))
        assert weighted.effective_sample_size == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-3)
        bounds.append(float(weighted.log_weights.mean()))
    assert bounds[0] < np.log(evidence) - 0.1  # the untrained guide's bound is far off, its weights are not
    assert bounds[0] + 0.05 < bounds[1] < np.log(evidence) + 5 * error


def test_an_untrained_guide_under_a_sharp_likelihood_warns_with_the_number_and_the_cure():
    guide, params = trained_gaussian()
    start = {
        name: jnp.full_like(value, float("inflation" in name or "scale" in name)) for name, value in params.items()
    }
    y = jnp.asarray([[2.0, 6.0], [1.0, 7.0]])
    with pytest.warns(UserWarning, match=r"Pareto k-hat <= 0.7 .*; got \d+\.\d\d, .* SVI steps, or TwistedSMC"):
        weighted = guide.importance_weights(jax.random.key(0), start, 2000, y)
    assert weighted.pareto_k > 0.7


def test_joint_with_an_unknown_scale_agrees_with_quadrature():
    y = jnp.asarray([[0.9], [1.6], [0.2], [-0.3]])

    def model(y):
        sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 0.5))
        x = numpyro.sample("x", MODES_PRIOR)
        with numpyro.plate("data", 4):
            numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)

    grid = np.linspace(-8, 8, 1601)
    sigma = np.exp(np.linspace(-3, 3, 601))
    likelihood = np.ones((len(sigma), len(grid)))
    for value in np.asarray(y[:, 0]):
        likelihood *= np.exp(-0.5 * ((value - grid) / sigma[:, None]) ** 2) / (sigma[:, None] * np.sqrt(2 * np.pi))
    log_sigma = np.log(sigma)
    prior_sigma = np.exp(-0.5 * (log_sigma / 0.5) ** 2) / (0.5 * np.sqrt(2 * np.pi))  # of log sigma
    joint = prior_sigma[:, None] * density_on_grid(MODES, grid) * likelihood
    joint *= (grid[1] - grid[0]) * (log_sigma[1] - log_sigma[0])
    evidence = joint.sum()
    sigma_mean, x_mean = (joint.sum(1) @ sigma) / evidence, (joint.sum(0) @ grid) / evidence

    guide = AutoDiffusionGuide(model, path_gradient=True)
    params = fit(guide, y, num_steps=400)
    weighted = guide.importance_weights(jax.random.key(1), params, 4000, y)
    weights = np.exp(np.asarray(weighted.log_weights - weighted.log_evidence, np.float64))
    assert weighted.pareto_k < 0.7
    assert abs(float(weighted.log_evidence) - np.log(evidence)) < 5 * weights.std() / np.sqrt(4000)
    for draws, exact in ((weighted.samples["sigma"], sigma_mean), (weighted.samples["x"][:, 0], x_mean)):
        terms = weights * (np.asarray(draws) - exact)
        assert abs(terms.mean()) < 5 * terms.std() / np.sqrt(4000)


# Models ---------------------------------------------------------------------------------------------


def test_a_subsampled_plate_trains_the_elements_it_draws():
    def model(y):
        with numpyro.plate("n", 4, subsample_size=2) as index:
            x = numpyro.sample("x", GAUSSIAN_PRIOR)
            numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y[index])

    y = jnp.ones((4, 2))
    guide = AutoDiffusionGuide(model)
    svi = SVI(guide.model, guide, optax.sgd(0.1), Trace_ELBO())
    state = svi.init(jax.random.key(0), y)
    before = svi.get_params(state)["x_auto_shift"]
    after = svi.get_params(jax.jit(svi.update)(state, y)[0])["x_auto_shift"]
    assert before.shape == after.shape == (4, T + 1, 2)
    moved = np.asarray((before != after).any((1, 2)))

    @jax.jit
    def indices(params):
        ours = trace(seed(substitute(guide, params), 1)).get_trace(y)
        theirs = trace(replay(seed(guide.model, 2), ours)).get_trace(y)
        return ours["n"]["value"], theirs["n"]["value"], ours["x_noise"]["value"]

    ours, theirs, noise = indices(svi.get_params(state))
    assert moved.sum() == 2
    np.testing.assert_array_equal(ours, theirs)
    assert noise.shape == (2, T + 1, 2)
    with pytest.raises(ValueError, match=r"all its data; got plate 'n' with 2 of 4.*A subsampled density"):
        guide.importance_weights(jax.random.key(0), svi.get_params(state), 25, y)


def drift(params, x_t, t, context):
    return params * x_t + (0 if context is None else context)


def test_sites_that_depend_on_each_other_and_on_parameters():
    """The chain of z has x as its context, that of x a trained parameter; weights stay those of the model."""
    kernel = nd.GaussianKernel(nd.schedules.log_snr(3, 0.3, 10.0), variance="upper")

    def model():
        slope = numpyro.param("slope", jnp.asarray(0.2))
        x = numpyro.sample("x", nd.Diffusion(kernel, nd.Transition(drift, slope, (2,))))
        loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
        transition = nd.Transition(drift, 0.1, (2,), context_shape=(2,))
        numpyro.sample("z", nd.Diffusion(kernel, transition, context=x + loc))

    guide = AutoDiffusionGuide(model)
    params = {**untrained(guide), "slope": jnp.asarray(0.7)}
    assert {name for name in params if name.endswith("_shift")} == {"x_auto_shift", "z_auto_shift"}
    # The guide of x and z is the prior, so what remains of the weight is that of loc.
    weighted = guide.importance_weights(jax.random.key(0), params, 50)
    loc = weighted.samples["loc"]
    expected = dist.Normal(0, 1).log_prob(loc) - dist.Normal(params["loc_auto_loc"], params["loc_auto_scale"]).log_prob(
        loc
    )
    np.testing.assert_allclose(weighted.log_weights, expected, atol=2e-4)
    x_chain = nd.ReverseChain(kernel, nd.Transition(drift, jnp.asarray(0.7), (2,)))
    np.testing.assert_allclose(
        weighted.samples["x"], x_chain.from_noise(weighted.samples["x_noise"]), rtol=1e-4, atol=1e-5
    )
    # With a correction, z's chain in the guide must be that of the model, with the guide's own x as context.
    params["z_auto_gain"] = jnp.full_like(params["z_auto_gain"], 0.3)

    @jax.jit
    def values(params):
        ours = trace(seed(substitute(guide, params), 3)).get_trace()
        theirs = trace(replay(seed(substitute(guide.model, params), 4), ours)).get_trace()
        return [{name: sites[name]["value"] for name in ("x", "z")} for sites in (ours, theirs)]

    ours, theirs = values(params)
    for name in ("x", "z"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)


@pytest.mark.parametrize(
    ("wrap", "batch"),
    [
        (lambda d: d.expand((4, 3)), (4, 3)),
        (lambda d: d.expand((4, 3)).to_event(1), (4,)),
        (lambda d: d.expand((3,)).to_event(1), ()),
    ],
)
def test_wrapped_sites_keep_their_shapes(wrap, batch):
    site = wrap(GAUSSIAN_PRIOR)
    guide = AutoDiffusionGuide(lambda: numpyro.sample("x", site))
    names = ("x", "x_noise", "x_auto_gain", "x_auto_shift")

    def values():
        sites = trace(seed(guide, 0)).get_trace()
        assert sites["x_noise"]["fn"].batch_shape == batch
        return [sites[name]["value"] for name in names]

    shapes = [value.shape for value in jax.eval_shape(values)]
    full = site.shape()[:-1]
    assert shapes == [full + (2,), full + (T + 1, 2), full + (T, 2), full + (T + 1, 2)]


def test_gradients_are_finite_far_from_the_prior():
    guide, params = trained_gaussian()
    params = {name: value + 3.0 for name, value in params.items()}
    loss = lambda params: Trace_ELBO().loss(jax.random.key(0), params, guide.model, guide, 30 * OBSERVED)
    assert all(np.isfinite(gradient).all() for gradient in jax.jit(jax.grad(loss))(params).values())


# Use ------------------------------------------------------------------------------------------------


def test_a_tilt_and_the_guide_make_the_same_path_of_the_same_normal_numbers():
    guide, params = trained_gaussian()
    tilt = jax.tree.map(jnp.asarray, guide.proposals(params)["x"])  # through a pytree round trip
    assert isinstance(tilt, LearnedGuidance)
    distribution = trace(seed(substitute(guide, params), 1)).get_trace(OBSERVED)["x_noise"]["fn"]
    standard = jax.random.normal(jax.random.key(2), (7, 2, T + 1, 2))
    noise = distribution.sample(jax.random.key(2), (7,))
    x_t = noise[:, :, T]
    step_law = jax.jit(lambda tilt, x_t, t: tilt(nd.ReverseChain(KERNEL, GAUSSIAN), x_t, t))
    for t in range(T, 0, -1):
        step = step_law(tilt, x_t, t)
        assert step.batch_shape == x_t.shape
        x_t = step.loc + step.scale * standard[:, :, t - 1]
    np.testing.assert_allclose(x_t, nd.ReverseChain(KERNEL, GAUSSIAN).from_noise(noise), rtol=1e-4, atol=1e-5)


def test_as_a_proposal_the_guide_makes_the_particle_filter_nearly_exact():
    guide, params = trained_gaussian()
    smc = TwistedSMC(gaussian_model, 64, 16, twist="tempered", proposal=guide.proposals(params), progress_bar=False)
    smc.run(jax.random.key(0), OBSERVED)
    mean, variance = moments_of_data()
    evidence = float(dist.Normal(mean, np.sqrt(variance + NOISE**2)).log_prob(OBSERVED).sum())
    # Without the proposal an error of .03 and min_ess 24.
    assert abs(smc.log_evidence - evidence) < 5 * smc.log_evidence_error < 0.05
    assert smc.min_ess > 50


def test_as_guidance_of_hamiltonian_moves_the_guide_makes_steps_longer_and_draws_the_posterior():
    guide, params = trained_gaussian()
    wanted, variance = (np.asarray(part, float) for part in moments_of_data())
    gain = variance / (variance + NOISE**2)
    steps = {}
    for name, guidance in (("guide", guide.proposals(params)), ("prior", None)):
        kernel = DiffusionHMC(gaussian_model, guidance=guidance)
        mcmc = MCMC(
            kernel, num_warmup=150, num_samples=300, num_chains=4, chain_method="vectorized", progress_bar=False
        )
        mcmc.run(jax.random.key(0), OBSERVED)
        steps[name] = float(mcmc.last_state.step_size.mean())
        draws = np.asarray(mcmc.get_samples(group_by_chain=True)["x"], float)
        check(of_chains(draws), wanted + gain * (np.asarray(OBSERVED, float) - wanted), refused=wanted)
    assert kernel.charts == {"x": "the prior's"}
    assert steps["guide"] > 1.3 * steps["prior"]


def test_a_tilt_takes_its_own_step_for_each_element():
    tilt = LearnedGuidance(random_correction((3, T, 2)))
    x_t = jax.random.normal(jax.random.key(0), (4, 3, 2))
    t = jnp.asarray([[1, 2, 3], [5, 4, 3], [1, 1, 1], [2, 5, 2]])
    together = tilt(nd.ReverseChain(KERNEL, GAUSSIAN), x_t, t)
    for particle, element in ((0, 1), (1, 0), (3, 2)):
        one = LearnedGuidance(jax.tree.map(lambda x, i=element: x[i], tilt.correction))
        alone = one(nd.ReverseChain(KERNEL, GAUSSIAN), x_t[particle, element], t[particle, element])
        np.testing.assert_allclose(together.loc[particle, element], alone.loc, rtol=1e-5)
        np.testing.assert_allclose(together.scale[particle, element], alone.scale, rtol=1e-5)
    per_particle = tilt(nd.ReverseChain(KERNEL, GAUSSIAN), x_t, t[:, :1])
    np.testing.assert_allclose(per_particle.loc[:, 0], together.loc[:, 0], rtol=1e-5)


@pytest.mark.parametrize("shape", [(T + 3, 2), (T, 3), (4, T, 2), (2,)], ids=["steps", "event", "plate", "no steps"])
def test_a_tilt_of_another_model_is_refused(shape):
    tilt = LearnedGuidance(StepCorrection(*[jnp.ones(shape)] * 4))

    def model(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("x", GAUSSIAN_PRIOR), 1.0).to_event(1), obs=y)

    told = re.escape(f"Expected a learned gain of shape (plates..., T, *event), here (..., {T}, 2) for states of batch")
    with pytest.raises(ValueError, match=told):
        TwistedSMC(model, 64, 2, proposal={"x": tilt}, progress_bar=False).run(jax.random.key(0), jnp.zeros(2))
    with pytest.raises(ValueError, match=told):
        DiffusionHMC(model, guidance={"x": tilt}).init(jax.random.key(0), 1, None, (jnp.zeros(2),), {})


def test_a_tilt_without_correction_is_the_reverse_step():
    one, zero = jnp.ones((T, 2)), jnp.zeros((T, 2))
    tilt = LearnedGuidance(StepCorrection(gain=zero, inflation=one, shift=zero, scale=one))
    x_t = jax.random.normal(jax.random.key(0), (4, 2))
    for t in (1, T):
        distribution, prior = (
            tilt(nd.ReverseChain(KERNEL, GAUSSIAN), x_t, t),
            nd.ReverseChain(KERNEL, GAUSSIAN).reverse(x_t, t),
        )
        np.testing.assert_array_equal(distribution.loc, prior.loc)
        np.testing.assert_array_equal(distribution.scale, prior.scale)


def test_posterior_draws_and_predictions():
    guide, params = trained_gaussian()
    draws = guide.sample_posterior(jax.random.key(0), params, sample_shape=(4, 50))
    assert draws["x"].shape == (4, 50, 2, 2)
    assert draws["x_noise"].shape == (4, 50, 2, T + 1, 2)
    x = nd.ReverseChain(KERNEL, GAUSSIAN).from_noise(draws["x_noise"])
    np.testing.assert_allclose(draws["x"], x, rtol=1e-4, atol=1e-5)
    exact = guide.importance_weights(jax.random.key(1), params, 1000, OBSERVED).samples["x"]
    for model in (guide.model, gaussian_model):  # the guide's x reaches the user's own model too
        predictive = Predictive(model, guide=guide, params=params, num_samples=500)(jax.random.key(2), None)
        assert predictive["y"].shape == (500, 2, 2)
        spread = jnp.sqrt(exact.var(0) + NOISE**2)
        assert (abs(predictive["y"].mean(0) - exact.mean(0)) < 5 * spread * np.sqrt(1 / 500 + 1 / 1000)).all()


def test_draws_are_compiled_once_for_the_same_data_and_see_what_is_changed_in_place():
    runs = []

    def model(y):
        runs.append(y)
        numpyro.sample("y", dist.Normal(numpyro.sample("x", GAUSSIAN_PRIOR), 1.0).to_event(1), obs=y)

    guide = AutoDiffusionGuide(model)
    y = np.zeros(2, np.float32)
    params = untrained(guide, y)
    draw = lambda key: guide.importance_weights(jax.random.key(key), params, 25, y)
    first = draw(0)
    traces = len(runs)
    assert (draw(1).log_weights != first.log_weights).any()
    assert len(runs) == traces
    y[:] = 3
    np.testing.assert_allclose(
        draw(0).log_weights - first.log_weights, 3 * (first.samples["x"] - 1.5).sum(-1), rtol=1e-3
    )
    y[:] = 0
    np.testing.assert_allclose(draw(0).log_weights, first.log_weights, rtol=1e-6)


def test_constant_weights_have_no_tail_and_a_known_tail_is_found():
    assert pareto_k(np.full(100, -3.0, np.float32)) == 0.0
    weights = np.random.default_rng(0).pareto(1 / 0.9, (20, 20_000)) + 1
    # The estimate is drawn towards .5 as by 10 weights more than the tail's 425 (Vehtari et al. 2024).
    check(of_independent([pareto_k(np.log(row)) for row in weights]), (425 * 0.9 + 5) / 435, refused=0.5)


# Bad input ------------------------------------------------------------------------------------------


def first_call(model, *args):
    with seed(rng_seed=0):
        AutoDiffusionGuide(model)(*args)


def test_bits_are_named_with_the_cure():
    kernel = nd.BernoulliKernel(nd.schedules.constant_fraction(3))

    def model():
        numpyro.sample("x", nd.Diffusion(kernel, nd.Transition(drift, 0.1, (2,))))

    with pytest.raises(TypeError, match=r"site 'x'; got BernoulliKernel.*use TwistedSMC or DiffusionGibbs"):
        first_call(model)


def test_a_model_without_diffusion_is_told_to_use_auto_normal():
    def model():
        numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("x", GAUSSIAN_PRIOR, obs=jnp.zeros(2))

    with pytest.raises(ValueError, match=r"a latent Diffusion site; got only sites \['z', 'x'\]. Use AutoNormal"):
        first_call(model)


def test_a_site_inside_scan_is_named():
    def model():
        scan(lambda c, _: (c, numpyro.sample("x", GAUSSIAN_PRIOR)), 0, jnp.arange(3))

    with pytest.raises(ValueError, match="diffusion site 'x' outside of scan; got one inside"):
        first_call(model)


def test_a_masked_site_is_named():
    with pytest.raises(ValueError, match=r"a Diffusion at latent site 'x'.*; got one inside of MaskedDistribution"):
        first_call(lambda: numpyro.sample("x", GAUSSIAN_PRIOR.mask(False)))


def test_too_few_draws_for_a_diagnosis():
    guide = AutoDiffusionGuide(gaussian_model)
    with pytest.raises(ValueError, match=r"num_samples to be an integer >= 25; got 1. Pareto"):
        guide.importance_weights(jax.random.key(0), {}, 1, jnp.zeros(2))


def test_a_missing_observation_is_named():
    guide, params = trained_gaussian()
    with pytest.raises(ValueError, match=r"site 'y' to be observed; got a latent one.*Pass the observations"):
        guide.importance_weights(jax.random.key(0), params, 25, None)


def test_a_scaled_prior_is_named():
    def model():
        with numpyro.handlers.scale(scale=0.5):
            numpyro.sample("x", GAUSSIAN_PRIOR)

    guide = AutoDiffusionGuide(model)
    with pytest.raises(ValueError, match=r"an unscaled latent site 'x_noise'; got scale 0.5"):
        guide.importance_weights(jax.random.key(0), untrained(guide), 25)


def test_weights_that_say_nothing_are_refused():
    log_weights = jnp.zeros(30)
    with pytest.raises(ValueError, match=r"log weights that are numbers; got 1 NaN or \+inf of 30"):
        importance_result({}, log_weights.at[3].set(jnp.nan), "")
    with pytest.raises(ValueError, match="density is not 0; got none of 30"):
        importance_result({}, jnp.full(30, -jnp.inf), "")


def test_some_weights_may_be_zero():
    log_weights = jnp.zeros(100).at[:50].set(-jnp.inf)
    assert importance_result({}, log_weights, "").log_evidence == pytest.approx(np.log(0.5))


def test_proposals_need_a_guide_that_ran_and_its_own_parameters():
    with pytest.raises(ValueError, match="a guide that has seen its model; got one that was never called"):
        AutoDiffusionGuide(gaussian_model).proposals({})
    guide, params = trained_gaussian()
    params = {name: value for name, value in params.items() if name != "x_auto_scale"}
    with pytest.raises(ValueError, match=r"params to have 'x_auto_scale'; got \['x_auto_gain'.*svi.get_params"):
        guide.proposals(params)


def test_a_path_has_no_median():
    guide, params = trained_gaussian()
    with pytest.raises(NotImplementedError, match=r"known quantiles; got a chain's. Use sample_posterior"):
        guide.median(params)
    with pytest.raises(NotImplementedError, match="Use sample_posterior"):
        guide.quantiles(params, jnp.asarray([0.5]))
