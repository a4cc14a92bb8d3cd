"""A chain with some of the levels of noise is another model of the same network, whose algebra is that of its levels.

With the exact denoiser of N(MEAN, SPREAD^2), or of independent bits, every reverse step is the exact posterior of its
two levels, however far they are apart: then every respaced chain is the data's distribution.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from catalogue import affine, affine_params, floats, gaussian, haiku_mlp, to_states
from closed_forms import all_bits, bit_probabilities, gaussian_moments
from measured_errors import check, of_chains, of_independent
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC
from precision import enable_x64
from respaced_cases import MEAN, SCHEDULE, SPREAD, T, normal_prior

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import CovarianceGuidance, ErrorCovariance, PaperTilt, TiltedChain
from numpyro_diffusion.infer import DiffusionHMC, TwistedSMC

LEVELS = (1, 6, 11, 20)


def log_normal(x, mean, variance):
    return -0.5 * ((x - mean) ** 2 / variance + np.log(2 * np.pi * variance))


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_with_the_exact_denoiser_of_a_normal_every_respaced_chain_is_that_normal(num_steps):
    with enable_x64():
        mean, variance = gaussian_moments(normal_prior().respaced(num_steps))
        assert mean.shape == (num_steps + 1, 1)
        np.testing.assert_allclose([mean[0, 0], variance[0, 0]], [MEAN, SPREAD**2], rtol=1e-4)


def test_the_density_of_a_path_is_that_of_the_data_and_the_forward_steps_between_its_levels():
    """p(path) = N(x^0) prod q(x^l | x^k) pi(x^T) / q(x^T), each q written out from the whole chain's abar."""
    with enable_x64():
        chain = normal_prior().chain.respaced(levels=LEVELS)
        path = np.random.default_rng(0).normal(size=(7, 5, 1)) * [[1.5]]
        x = path[..., 0]
        power = SCHEDULE.alpha_bar[[0, *LEVELS]]
        total = log_normal(x[:, 0], MEAN, SPREAD**2)
        for k in range(4):
            kept = power[k + 1] / power[k]
            total += log_normal(x[:, k + 1], np.sqrt(kept) * x[:, k], 1 - kept)
        total -= log_normal(x[:, 4], np.sqrt(power[4]) * MEAN, power[4] * SPREAD**2 + 1 - power[4])
        total += log_normal(x[:, 4], 0.0, 1.0)
        np.testing.assert_allclose(chain.log_prob(path), total, rtol=1e-6)


def test_the_bound_of_an_exact_denoiser_is_the_evidence_at_any_number_of_steps():
    x = jnp.asarray([[-1.0], [0.7], [3.0]])
    keys = jax.random.split(jax.random.key(0), 20)
    estimate = jax.jit(jax.vmap(lambda key, chain: nd.AllSteps(50)(key, chain, x), in_axes=(0, None)))
    for num_steps in (3, T):
        found = of_independent(estimate(keys, normal_prior().chain.respaced(num_steps)))
        check(found, log_normal(np.asarray(x)[:, 0], MEAN, SPREAD**2), refused=log_normal(np.asarray(x)[:, 0], 0, 1))


def test_the_schedule_of_some_levels_has_the_products_of_the_steps_between():
    for schedule in (SCHEDULE, nd.schedules.constant_fraction(T), nd.schedules.cosine(T)):
        kept = schedule.at_levels(LEVELS)
        beta = np.asarray(schedule.beta)
        wanted = [1 - np.prod(1 - beta[low + 1 : high + 1]) for low, high in zip((0, *LEVELS), LEVELS, strict=False)]
        np.testing.assert_allclose(kept.beta[1:], wanted, rtol=1e-12)
        np.testing.assert_allclose(kept.alpha_bar, np.cumprod(1 - kept.beta), rtol=1e-9, atol=1e-300)
        np.testing.assert_array_equal(kept.noise_variance, schedule.noise_variance[[0, *LEVELS]])
    learned = nd.schedules.learned(jnp.linspace(-1.0, 1.0, T - 1))
    for kept in (learned.at_levels(LEVELS), jax.jit(lambda schedule: schedule.at_levels(LEVELS))(learned)):
        assert isinstance(kept.beta, jax.Array)
        power = np.asarray(learned.alpha_bar, float)[[0, *LEVELS]]
        np.testing.assert_allclose(kept.beta[1:], 1 - power[1:] / power[:-1], rtol=1e-5, atol=2e-7)


def test_all_levels_are_the_chain_itself_and_twice_is_once():
    chain, prior = normal_prior().chain, normal_prior()
    assert chain.respaced(T) is chain
    assert prior.respaced(T) is prior
    twice, once = prior.respaced(levels=(1, 5, 6, 12, 20)).respaced(levels=(1, 3, 5)), prior.respaced(levels=(1, 6, 20))
    assert twice.transition.levels == once.transition.levels == (1, 6, 20)
    for name in ("beta", "alpha_bar", "noise_variance"):
        found, wanted = (getattr(each.kernel.schedule, name) for each in (twice, once))
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert jax.tree.structure(twice) == jax.tree.structure(once)
    key = jax.random.key(0)
    np.testing.assert_allclose(twice.sample(key, (5,)), once.sample(key, (5,)), rtol=1e-5)
    np.testing.assert_array_equal(prior.respaced(3).chain.sample(key), chain.respaced(3).sample(key))


def test_the_network_is_asked_at_its_own_steps():
    """A time embedding is that of the T-step chain."""
    whole = nd.ReverseChain(nd.GaussianKernel(nd.schedules.log_snr(3, 0.3, 5.0)), haiku_mlp())
    short = whole.respaced(levels=(1, 3))
    x = floats(4, 2)
    for step, own in enumerate((1, 3), start=1):
        for found, wanted in zip(short.output(x, step), whole.output(x, own), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    several = short.output(x, jnp.asarray([1, 2, 1, 2]))[0]
    np.testing.assert_allclose(several[1::2], whole.output(x, 3)[0][1::2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parameterization", ["v", "noise", "x0", "score"])
def test_the_mean_is_the_bridge_between_levels_and_a_learned_variance_keeps_its_fraction(parameterization):
    kernel = gaussian(parameterization=parameterization)
    whole = nd.ReverseChain(kernel, affine((2,), 2))
    short = whole.respaced(levels=(1, 3))
    x = floats(4, 2)
    power, noise = kernel.schedule.alpha_bar, kernel.schedule.noise_variance
    kept = power[3] / power[1]
    mean = (np.sqrt(power[1]) * (1 - kept) * whole.denoised(x, 3) + np.sqrt(kept) * noise[1] * x) / noise[3]
    step = short.reverse(x, 2)
    np.testing.assert_allclose(step.loc, mean, rtol=1e-4, atol=1e-5)

    def fraction(chain, step, t):
        lower, upper = chain.kernel.variance_bounds(t, x)
        return (jnp.log(step.scale**2) - jnp.log(lower)) / (jnp.log(upper) - jnp.log(lower))

    np.testing.assert_allclose(fraction(short, step, 2), fraction(whole, whole.reverse(x, 3), 3), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variance", ["learned", "lower", "upper", "denoiser"])
def test_the_last_step_is_that_of_the_whole_chain(variance):
    kernel = gaussian(variance=variance)
    whole = nd.ReverseChain(kernel, affine((2,), kernel.num_outputs))
    for short in (whole.respaced(levels=(1, 3)), whole.respaced(levels=(1, 2, 3)), whole.respaced(2).respaced(2)):
        found, wanted = short.reverse(floats(4, 2), 1), whole.reverse(floats(4, 2), 1)
        np.testing.assert_allclose(found.loc, wanted.loc, rtol=1e-6)
        np.testing.assert_allclose(found.scale, wanted.scale, rtol=1e-6)


# Levels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["log_snr", "linear", "cosine", "constant_fraction"])
@pytest.mark.parametrize("top", [2, 7, 50])
def test_chosen_levels_rise_from_1_to_T_for_every_number_of_them(make, top):
    chain = nd.ReverseChain(nd.GaussianKernel(getattr(nd.schedules, make)(top), variance="upper"), affine((2,)))
    for num_steps in range(1, top):
        levels = chain.respaced(num_steps).transition.levels
        assert len(levels) == num_steps
        assert levels[-1] == top
        assert num_steps == 1 or levels[0] == 1
        assert (np.diff(levels) > 0).all()


def test_chosen_levels_are_even_in_log_snr():
    assert nd.ReverseChain(nd.GaussianKernel(nd.schedules.log_snr(100)), haiku_mlp()).respaced(4).transition.levels == (
        1,
        34,
        67,
        100,
    )
    schedule = nd.schedules.linear(200)
    levels = nd.ReverseChain(nd.GaussianKernel(schedule), haiku_mlp()).respaced(8).transition.levels
    gaps = -np.diff(np.asarray(schedule.log_snr)[[*levels]])
    # Levels lie as far apart as their neighbours allow: half of the largest distance of two.
    assert np.abs(gaps - gaps.mean()).max() < np.diff(-np.asarray(schedule.log_snr)[1:]).max()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_steps": 0}, "num_steps to be an integer >= 1; got 0"),
        ({"num_steps": 2.0}, "num_steps to be an integer >= 1; got 2.0"),
        ({"num_steps": 21}, "num_steps <= T = 20; got 21. The network knows no levels between"),
        ({}, "num_steps or levels; got neither"),
        ({"num_steps": 2, "levels": (1, 20)}, "num_steps or levels; got both"),
        ({"levels": ()}, r"rising integers out of 1..T = 20, the last of them T; got \(\)"),
        ({"levels": (1, 5)}, r"the last of them T; got \(1, 5\)"),
        ({"levels": (0, 20)}, "rising integers"),
        ({"levels": (5, 5, 20)}, "rising integers"),
        ({"levels": (1.0, 20)}, "rising integers"),
        ({"levels": 20}, "rising integers"),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_levels_out_of_range_are_refused(options, match):
    for model in (normal_prior(), normal_prior().chain):
        with pytest.raises(ValueError, match=match):
            model.respaced(**options)


def test_a_traced_schedule_needs_its_levels_named():
    def alpha_bar(raw, **options):
        chain = nd.ReverseChain(nd.GaussianKernel(nd.schedules.learned(raw)), haiku_mlp())
        return chain.respaced(**options).kernel.schedule.alpha_bar

    raw = jnp.asarray([0.3, 1.1])
    found = jax.jit(lambda raw: alpha_bar(raw, levels=(1, 3)))(raw)
    np.testing.assert_allclose(found, np.asarray(nd.schedules.learned(raw).alpha_bar)[[0, 1, 3]], rtol=1e-6)
    with pytest.raises(ValueError, match="a schedule whose numbers are known; got a traced one"):
        jax.jit(lambda raw: alpha_bar(raw, num_steps=2))(raw)


def test_a_chain_that_stops_early_keeps_its_last_state():
    kernel, transition = gaussian(), affine((2,), 2)
    short = nd.ReverseChain(kernel, transition, stop=1).respaced(levels=(1, 3))
    assert (short.stop, short.event_shape) == (1, (2, 2))
    assert nd.ReverseChain(kernel, transition, stop=3).respaced(levels=(1, 3)).stop == 2
    with pytest.raises(ValueError, match=r"levels among which stop = 2 is; got \(1, 3\)"):
        nd.ReverseChain(kernel, transition, stop=2).respaced(levels=(1, 3))


def test_context_batch_and_validation_stay():
    chain = nd.ReverseChain(gaussian(), affine((2,), 2, (2,)), context=floats(3, 2), validate_args=True).expand((4, 3))
    short = chain.respaced(2)
    assert (short.batch_shape, short.event_shape, short._validate_args) == ((4, 3), (3, 2), True)
    prior = nd.Diffusion(gaussian(), affine((2,), 2), estimator=nd.AllSteps(), rng_key=jax.random.key(3)).expand((2,))
    assert (prior.respaced(2).batch_shape, prior.respaced(2).estimator) == ((2,), nd.AllSteps())
    assert prior.respaced(2).log_prob(floats(2, 2)).shape == (2,)


def test_inside_of_scan_a_stacked_prior_is_refused():
    def model():
        return scan(lambda carry, _: (carry, numpyro.sample("x", normal_prior())), 0.0, None, length=2)

    site = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace()["x"]
    with pytest.raises(ValueError, match="outside of scan to respace; got one stacked"):
        site["fn"].respaced(2)


class Foreign(nd.GaussianKernel):
    """As a kernel that is written on the abstract methods alone."""

    at_levels = nd.Kernel.at_levels


# Discrete states and refusals --------------------------------------------------------------------------


def test_bits_that_are_known_exactly_keep_their_probabilities():
    """Independent bits with P(x^0 = 1) = p: the exact posterior of one bit, written out."""
    schedule, rate, p = nd.schedules.constant_fraction(6), 0.3, np.array([0.8, 0.1])

    def exact(params, x_t, t, context):
        kept = jnp.asarray(schedule.alpha_bar, x_t.dtype)[t][..., None]
        seen = lambda bit: jnp.where(
            x_t == 1, kept * bit + (1 - kept) * rate, kept * (1 - bit) + (1 - kept) * (1 - rate)
        )
        return jnp.log(p) + jnp.log(seen(1.0)) - jnp.log1p(-p) - jnp.log(seen(0.0))

    prior = nd.Diffusion(nd.BernoulliKernel(schedule, rate=rate), nd.Transition(exact, None, (2,)))
    wanted = np.prod(np.where(all_bits(2) == 1, p, 1 - p), axis=1)
    for num_steps in (1, 2, 4):
        short = prior.respaced(num_steps)
        np.testing.assert_allclose(bit_probabilities(short), wanted, rtol=1e-4)
        bits = short.sample(jax.random.key(0), (4000,))
        assert np.abs(np.asarray(bits).mean(0) - p).max() < 5 * 0.5 / np.sqrt(4000)


@pytest.mark.parametrize("rates", ["uniform", "absorbing"])
def test_categorical_steps_between_levels_are_products(rates):
    schedule = nd.schedules.constant_fraction(6)
    kernel = nd.CategoricalKernel(schedule, 3, rates=rates)
    short = kernel.at_levels((1, 4, 6))
    states = jnp.arange(3)
    matrix = lambda kernel, t: np.exp(np.asarray(kernel.log_probabilities(kernel.step(states, t)), float))
    joined = matrix(kernel, 2) @ matrix(kernel, 3) @ matrix(kernel, 4)
    np.testing.assert_allclose(matrix(short, 2), joined, rtol=1e-5, atol=1e-7)
    prior = nd.Diffusion(nd.CategoricalKernel(schedule, 3), nd.Transition(to_states, affine_params(), (2,)))
    assert prior.respaced(3).sample(jax.random.key(0), (5,)).shape == (5, 2)


@pytest.mark.parametrize(
    ("prior", "match"),
    [
        (
            lambda: nd.Diffusion(gaussian(parameterization="paper"), affine((2,), 2)),
            r"of x\^0, noise, score or v .* got .*'paper'",
        ),
        (
            lambda: nd.Diffusion(nd.BernoulliKernel(nd.schedules.linear(3), parameterization="logits"), affine((2,))),
            r"a network of x\^0 to respace; got parameterization='logits'",
        ),
        (
            lambda: nd.Diffusion(Foreign(nd.schedules.log_snr(3)), affine((2,), 2)),
            "a kernel that has at_levels; got Foreign",
        ),
    ],
)
def test_what_a_kernel_cannot_is_refused_by_name(prior, match):
    for model in (prior(), prior().chain):
        with pytest.raises(TypeError, match=match):
            model.respaced(2)


def test_a_tilted_chain_is_tilted_after_it_is_respaced():
    tilted = TiltedChain(normal_prior().chain, PaperTilt(lambda x: x.sum(), "annealed"))
    with pytest.raises(TypeError, match="an unguided ReverseChain to respace; got a TiltedChain"):
        tilted.respaced(2)


# What is built on it -----------------------------------------------------------------------------------


def test_the_covariance_of_errors_goes_along_level_by_level():
    prior = normal_prior()
    errors = ErrorCovariance(1 + jnp.abs(floats(T, 1, 1)), 1 + jnp.abs(floats(T, 1)))
    short = prior.with_errors(errors).respaced(levels=LEVELS)
    np.testing.assert_array_equal(short.errors.factor, np.asarray(errors.factor)[np.array(LEVELS) - 1])
    np.testing.assert_array_equal(short.errors.matrices(), errors.matrices()[np.array(LEVELS) - 1])
    guides = [CovarianceGuidance(jnp.ones((1, 1)), jnp.ones(1), 0.5, errors=each) for each in (short.errors, errors)]
    residual, amplitude, noise = jnp.full(1, 0.7), jnp.ones(()), jnp.full((), 0.25)
    for step, level in enumerate(LEVELS, start=1):
        moves = [guides[i].spectrum.at(t, residual, amplitude, noise) for i, t in enumerate((step, level))]
        np.testing.assert_allclose(*moves, rtol=1e-5)
    assert TiltedChain(short.chain, guides[0]).sample(jax.random.key(0), (3,)).shape == (3, 5, 1)
    assert prior.respaced(2).errors is None


NOISE, Y = 0.8, 2.0
SHARE = SPREAD**2 / (SPREAD**2 + NOISE**2)
POSTERIOR_MEAN, POSTERIOR_VARIANCE = MEAN + SHARE * (Y - MEAN), SHARE * NOISE**2
EVIDENCE = log_normal(Y, MEAN, SPREAD**2 + NOISE**2)


def model():
    x = numpyro.sample("x", normal_prior().respaced(5))
    numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=jnp.array([Y]))


def test_particles_draw_its_posterior():
    smc = TwistedSMC(model, 400, 8, progress_bar=False)
    smc.run(jax.random.key(0))
    assert abs(smc.log_evidence - EVIDENCE) < 5 * smc.log_evidence_error + 0.01
    draws = np.asarray(smc.get_samples()["x"])
    assert abs(draws.mean() - POSTERIOR_MEAN) < 5 * np.sqrt(POSTERIOR_VARIANCE / (8 * smc.min_ess))


def test_hamiltonian_moves_of_its_noises_draw_its_posterior():
    mcmc = MCMC(
        DiffusionHMC(model),
        num_warmup=100,
        num_samples=300,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0))
    draws = mcmc.get_samples(group_by_chain=True)["x"][..., 0]
    check(of_chains(draws), POSTERIOR_MEAN, refused=MEAN)
    check(of_chains((draws - POSTERIOR_MEAN) ** 2), POSTERIOR_VARIANCE, refused=SPREAD**2)


def test_it_is_saved_and_comes_back_with_its_levels(tmp_path):
    prior = nd.Diffusion(nd.GaussianKernel(nd.schedules.log_snr(3, 0.3, 5.0)), haiku_mlp())
    path = tmp_path / "prior.safetensors"
    nd.save(prior.respaced(2), path)
    loaded = nd.load(path)
    assert loaded.transition.levels == (1, 3)
    key = jax.random.key(0)
    np.testing.assert_array_equal(
        jax.jit(lambda p: p.sample(key, (3,)))(loaded), jax.jit(lambda p: p.sample(key, (3,)))(prior.respaced(2))
    )
    again = jax.tree.unflatten(jax.tree.structure(loaded), jax.tree.leaves(loaded))
    assert again.transition.levels == (1, 3)
    assert "levels=(1, 3)" in repr(again.transition)
