"""Posteriors of bits by enumeration of every path: what is exact is exact, the rest has no bias."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import affine_prior, all_bits, bit_probabilities, gaussian_moments
from measured_errors import Moments, check_islands, check_moments
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.infer import TwistedSMC

RATE = 0.4
SIZE = 3
STATES = all_bits(SIZE)
COUPLING = np.array([[1.5, -1.0, 0.5], [0.8, 1.2, -0.7], [-0.4, 0.9, 1.0]])
CHANCE = np.array([0.2, 0.7, 0.5])


def coupled_network(params, x_t, t, context):
    """Every bit's logit depends on all bits of x_t."""
    return (x_t - 0.5) @ jnp.asarray(COUPLING, x_t.dtype).T + jnp.asarray([0.3, -0.5, 0.1], x_t.dtype) / t


def denoiser_of_independent_bits(params, x_t, t, context):
    """Bayes' rule for bits of chance CHANCE, each noised by itself."""
    alpha_bar, noise = params["alpha_bar"][t], params["noise_variance"][t]
    seen = lambda bit: jnp.where(x_t == 1, alpha_bar * bit + noise * RATE, 1 - alpha_bar * bit - noise * RATE)
    chance = jnp.asarray(CHANCE, x_t.dtype)
    return jnp.log(chance * seen(1.0)) - jnp.log((1 - chance) * seen(0.0))


def step_back_of_stationary_bits(params, x_t, t, context):
    """Logits of x^{t-1} when every x^t has the distribution of pure noise: a reversible chain."""
    chance = (1 - params["beta"][t]) * x_t + params["beta"][t] * RATE
    return jnp.log(chance) - jnp.log1p(-chance)


def prior(network, parameterization, num_steps=3):
    schedule = nd.schedules.constant_fraction(num_steps)
    kernel = nd.BernoulliKernel(schedule, rate=RATE, parameterization=parameterization)
    params = {name: jnp.asarray(getattr(schedule, name), float) for name in ("alpha_bar", "noise_variance", "beta")}
    return nd.Diffusion(kernel, nd.Transition(network, params, (SIZE,)))


def log_r(x, y, which):
    """One likelihood of three: bits apart, their sum with noise, and an odd sum without."""
    apart = -0.5 * ((x - y) ** 2).sum(-1) / 0.49
    total = -0.5 * (x.sum(-1) - y.sum(-1)) ** 2 / 0.25
    odd = jnp.where(x.sum(-1) % 2 == 1, 0.0, -jnp.inf)
    return jnp.where(which == 0, apart, jnp.where(which == 1, total, odd))


def model_of(distribution):
    def model(y, which):
        x = numpyro.sample("x", distribution)
        numpyro.factor("likelihood", log_r(x, y, which))

    return model


def engine(model, num_particles, num_islands, twist="tempered", **options):
    return TwistedSMC(model, num_particles, num_islands, twist, progress_bar=False, **options)


Y = np.array([0.9, 0.2, 1.4])


def enumerated(distribution, which):
    """Log evidence, and the probability of every state, in the posterior and in the prior."""
    before = bit_probabilities(distribution)
    with np.errstate(divide="ignore"):
        likelihood = np.exp(np.asarray(log_r(jnp.asarray(STATES), jnp.asarray(Y, float), which), float))
    joint = before * likelihood
    return np.log(joint.sum()), joint / joint.sum(), before


def check_states(smc, select, probability, before, element=None):
    """Frequencies of states, the rarest counted together until they make one in fifty; ``before`` is the prior's."""
    order = np.argsort(probability)
    num_rare = np.searchsorted(np.cumsum(probability[order]), 0.02) + 1
    state = np.eye(2**SIZE)
    classes = np.concatenate([state[:, order[:num_rare]].sum(1, keepdims=True), state[:, order[num_rare:]]], axis=1)
    number = 2 ** np.arange(SIZE)[::-1]
    function = lambda samples: classes[np.asarray(select(samples)) @ number]
    check_islands(smc, function, probability @ classes, before @ classes, element)


@pytest.mark.filterwarnings("ignore:The effective size fell")
@pytest.mark.parametrize(
    ("network", "parameterization"),
    [(denoiser_of_independent_bits, "x0"), (step_back_of_stationary_bits, "logits")],
)
def test_four_particles_are_exact_when_bits_are_independent_and_the_likelihood_factorises(network, parameterization):
    """Every weight is one: evidence without variance. It takes all of it: independent bits whose denoiser is exact (for
    "logits": of the chance of pure noise), b_T = 1, and a likelihood that factorises."""
    distribution = prior(network, parameterization)
    smc = engine(model_of(distribution), 4, 8)
    smc.run(jax.random.key(0), jnp.asarray(Y, float), jnp.asarray(0))
    log_evidence, _, _ = enumerated(distribution, 0)
    np.testing.assert_allclose(smc.log_evidence, log_evidence, atol=1e-5)
    assert smc.log_evidence_error < 1e-5
    np.testing.assert_allclose(smc.effective_sizes, 4.0, rtol=1e-4)
    # A likelihood that couples them is not exact, and has no bias.
    smc.run(jax.random.key(0), jnp.asarray(Y, float), jnp.asarray(1))
    assert smc.log_evidence_error > 1e-3


@functools.cache
def coupled_engine(parameterization, num_particles, num_islands):
    distribution = prior(coupled_network, parameterization)
    return distribution, engine(model_of(distribution), num_particles, num_islands)


@pytest.mark.filterwarnings("ignore:The effective size fell")  # 8 particles: the smallest of 3000 islands is one
@pytest.mark.parametrize("which", [0, 1, 2], ids=["apart", "sum", "odd"])
@pytest.mark.parametrize("parameterization", ["x0", "logits"])
def test_coupled_bits_have_their_posterior_and_an_evidence_without_bias(parameterization, which):
    """3000 islands of 8 particles, so that a bias of a few particles would show."""
    distribution, smc = coupled_engine(parameterization, 8, 3000)
    smc.run(jax.random.key(which), jnp.asarray(Y, float), jnp.asarray(which))
    log_evidence, probability, before = enumerated(distribution, which)
    assert 1e-4 < smc.log_evidence_error < 0.02
    assert abs(smc.log_evidence - log_evidence) < 5 * smc.log_evidence_error
    draws = smc.get_samples()["x"]
    assert jnp.issubdtype(draws.dtype, jnp.integer)
    check_states(smc, lambda samples: samples["x"], probability, before)


def test_one_step_of_bits_is_exact_up_to_where_it_starts():
    """T = 1: the only step is the exact product; what varies is E[r | x^1] over the particles' starts."""
    distribution = prior(coupled_network, "x0", num_steps=1)
    smc = engine(model_of(distribution), 512, 16)
    smc.run(jax.random.key(0), jnp.asarray(Y, float), jnp.asarray(0))
    log_evidence, probability, before = enumerated(distribution, 0)
    assert abs(smc.log_evidence - log_evidence) < 5 * smc.log_evidence_error < 0.05
    check_states(smc, lambda samples: samples["x"], probability, before)


def test_a_plate_of_bits_is_filtered_element_by_element():
    distribution = prior(coupled_network, "x0", num_steps=2)
    y = jnp.asarray(np.stack([Y, 1 - Y]), float)

    def model(y):
        with numpyro.plate("n", 2):
            x = numpyro.sample("x", distribution)
            numpyro.sample("y", dist.Normal(x.sum(-1), 0.5), obs=y.sum(-1))

    smc = engine(model, 256, 16)
    smc.run(jax.random.key(0), y)
    assert smc.elements_reason.startswith("element by element, (2,)")
    probability = bit_probabilities(distribution)
    for i in range(2):
        joint = probability * norm.pdf(float(y[i].sum()), STATES.sum(1), 0.5)
        assert abs(smc.log_evidence_by_element[i] - np.log(joint.sum())) < 5 * smc.log_evidence_error < 0.2
        check_states(smc, lambda samples, i=i: samples["x"][:, i], joint / joint.sum(), probability, element=i)


@pytest.mark.parametrize("twist", ["tempered", "function"])
def test_a_gaussian_and_a_bernoulli_site_in_one_model(twist):
    """Chains of length 3 and 2; x is summed out in closed form for every state of the bits."""
    number = affine_prior(nd.schedules.log_snr(3, 0.3, 10.0), [0.5])
    distribution = prior(coupled_network, "x0", num_steps=2)

    def model(y):
        x = numpyro.sample("x", number)
        bits = numpyro.sample("bits", distribution)
        numpyro.sample("y", dist.Normal(x[0] + 2.0 * bits.sum(), 0.5), obs=y)

    def halfway(x_t, t, x_0, log_r):
        """A user's function is given the chance of a one in the place of bits."""
        return 0.5 * log_r(x_0)

    smc = engine(model, 512, 64, halfway if twist == "function" else twist)
    smc.run(jax.random.key(0), jnp.asarray(2.8))
    means, variances = gaussian_moments(number)
    before = bit_probabilities(distribution)
    joint = before * norm.pdf(2.8, means[0, 0] + 2 * STATES.sum(1), np.sqrt(variances[0, 0] + 0.25))
    assert abs(smc.log_evidence - np.log(joint.sum())) < 5 * smc.log_evidence_error < 0.5
    joint = joint / joint.sum()
    check_states(smc, lambda samples: samples["bits"], joint, before)
    gain = variances[0, 0] / (variances[0, 0] + 0.25)
    by_state = means[0, 0] + gain * (2.8 - means[0, 0] - 2 * STATES.sum(1))
    mean = joint @ by_state
    variance = joint @ (by_state - mean) ** 2 + (1 - gain) * variances[0, 0]
    check_moments(smc, lambda samples: samples["x"], Moments([mean], [[variance]]), Moments(means[0], [variances[0]]))
