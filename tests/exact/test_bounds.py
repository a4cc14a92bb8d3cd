"""The bounds against enumeration of every trajectory (bits) and against the evidence (linear-Gaussian).

Random tests have fixed keys; an average passes when it lies within 5 standard errors (6e-7 a comparison).
"""

import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import xla_flags
from measured_errors import check, of_independent
from precision import enable_x64

from numpyro_diffusion import (
    AllSteps,
    BernoulliKernel,
    Diffusion,
    ForwardChain,
    GaussianKernel,
    ImportanceWeighted,
    RandomStep,
    ReverseChain,
    Transition,
    paper_bound,
    schedules,
)
from numpyro_diffusion.estimates.terms import prior_term, sum_of_step_terms

NUM_BITS, NUM_STEPS = 2, 3


def bits_network(params, x_t, t, context):
    """Couples the two bits and depends on t, so that nothing cancels by symmetry."""
    flipped = x_t[..., ::-1]
    return (params * (2 * flipped - 1) * (1 + t[..., None] / 3) + 0.3 * x_t - 0.2).astype(x_t.dtype)


@pytest.fixture(params=["x0", "logits"], name="bits")
def _bits(request):
    kernel = BernoulliKernel(schedules.constant_fraction(NUM_STEPS), rate=0.3, parameterization=request.param)
    return kernel, Transition(bits_network, jnp.asarray(0.8), (NUM_BITS,))


def all_binary(*shape):
    return np.array(list(itertools.product([0, 1], repeat=int(np.prod(shape))))).reshape(-1, *shape)


def exact_bits_log_prob(kernel, transition, x_0):
    """log p(x^0), by summing the joint over all x^{1:T}."""
    rest = all_binary(NUM_STEPS, NUM_BITS)
    path = np.concatenate([np.broadcast_to(x_0, (len(rest), 1, NUM_BITS)), rest], axis=1)
    return jax.nn.logsumexp(ReverseChain(kernel, transition).log_prob(path))


def test_both_chains_sum_to_one_over_all_trajectories(bits):
    kernel, transition = bits
    reverse = ReverseChain(kernel, transition)
    assert jnp.exp(reverse.log_prob(all_binary(NUM_STEPS + 1, NUM_BITS))).sum() == pytest.approx(1, rel=1e-5)
    latent = ReverseChain(kernel, transition, stop=1)
    assert jnp.exp(latent.log_prob(all_binary(NUM_STEPS, NUM_BITS))).sum() == pytest.approx(1, rel=1e-5)
    forward = ForwardChain(kernel, np.array([0, 1]))
    assert jnp.exp(forward.log_prob(all_binary(NUM_STEPS, NUM_BITS))).sum() == pytest.approx(1, rel=1e-5)


def test_draws_of_the_reverse_chain_follow_its_enumerated_law(bits):
    kernel, transition = bits
    draws = np.asarray(Diffusion(kernel, transition).sample(jax.random.key(0), (40_000,)))
    for x_0 in all_binary(NUM_BITS):
        prob = float(jnp.exp(exact_bits_log_prob(kernel, transition, x_0)))
        error = np.sqrt(prob * (1 - prob) / len(draws))
        assert abs((draws == x_0).all(-1).mean() - prob) < 5 * error


def test_sample_last_is_the_end_of_the_sampled_path(bits):
    chain = ReverseChain(*bits)
    key = jax.random.key(3)
    np.testing.assert_array_equal(chain.sample(key, (5,))[:, 0], chain.sample_last(key, (5,)))


def exact_bits_bound(kernel, transition, x_0):
    """The bound of Eq. 13 by summing log p - log q over all forward trajectories."""
    rest = all_binary(NUM_STEPS, NUM_BITS)
    path = np.concatenate([np.broadcast_to(x_0, (len(rest), 1, NUM_BITS)), rest], axis=1)
    log_q = ForwardChain(kernel, x_0).log_prob(rest)
    log_p = ReverseChain(kernel, transition).log_prob(path)
    return float((jnp.exp(log_q) * (log_p - log_q)).sum())


@pytest.mark.parametrize("estimator", [AllSteps(), AllSteps(3), RandomStep(), RandomStep(3), ImportanceWeighted(1)])
def test_every_estimator_of_the_bound_has_the_enumerated_bound_as_its_mean(bits, estimator):
    kernel, transition = bits
    x_0 = np.array([1, 0])
    keys = jax.random.split(jax.random.key(1), 20_000)
    values = jax.jit(jax.vmap(lambda key: estimator(key, ReverseChain(kernel, transition), jnp.asarray(x_0))))(keys)
    error = values.std() / np.sqrt(len(keys))
    assert abs(values.mean() - exact_bits_bound(kernel, transition, x_0)) < 5 * error
    assert error < 0.02


def test_importance_weights_average_to_the_enumerated_probability(bits):
    kernel, transition = bits
    for x_0 in all_binary(NUM_BITS)[1:3]:
        exact = float(jnp.exp(exact_bits_log_prob(kernel, transition, x_0)))
        x_0_drawn = jnp.broadcast_to(jnp.asarray(x_0), (50_000, 2))
        weights = np.exp(
            np.asarray(ImportanceWeighted(1)(jax.random.key(2), ReverseChain(kernel, transition), x_0_drawn))
        )
        assert abs(weights.mean() - exact) < 5 * weights.std() / np.sqrt(weights.size)
        # With 50,000 trajectories inside the log the estimate is the evidence itself.
        many = ImportanceWeighted(50_000)(jax.random.key(3), ReverseChain(kernel, transition), jnp.asarray(x_0))
        assert abs(float(many) - np.log(exact)) < 5 * weights.std() / exact / np.sqrt(50_000)


def test_bounds_are_ordered(bits):
    kernel, transition = bits
    x_0 = jnp.broadcast_to(jnp.asarray([1, 0]), (20_000, 2))
    mean = {
        n: float(ImportanceWeighted(n)(jax.random.key(4), ReverseChain(kernel, transition), x_0).mean())
        for n in (1, 4, 32)
    }
    exact = float(exact_bits_log_prob(kernel, transition, np.array([1, 0])))
    assert exact_bits_bound(kernel, transition, np.array([1, 0])) < mean[4] < mean[32] < exact + 0.01
    assert mean[1] < mean[4]


# Linear-Gaussian: data and network for which everything is known.


def matched_network(params, x_t, t, context):
    """v = 0 is E[x^0 | x^t] = sqrt(abar_t) x^t: exact for N(0, 1) data."""
    return jnp.zeros_like(x_t)


def shrunk_network(params, x_t, t, context):
    return params * x_t


def linear_gaussian_evidence(kernel, gain):
    """Variance of x^0 when each reverse step is linear: x^{t-1} = m_t x^t + s_t eps."""
    variance = 1.0
    for t in range(kernel.num_steps, 0, -1):
        distribution = kernel.reverse(jnp.asarray(gain), jnp.asarray(1.0), t)
        variance = float(distribution.loc) ** 2 * variance + float(distribution.variance)
    return variance


@pytest.mark.parametrize("num_steps", [1, 2, 20])
def test_every_trajectory_weighs_the_evidence_when_the_reverse_chain_is_the_exact_posterior(num_steps):
    with enable_x64(True):
        kernel = GaussianKernel(schedules.log_snr(num_steps, 0.1, 1e4), variance="upper")
        transition = Transition(matched_network, None, (2,))
        x_0 = jax.random.normal(jax.random.key(0), (7, 2))
        estimate = ImportanceWeighted(1)(jax.random.key(1), ReverseChain(kernel, transition), x_0)
        evidence = dist.Normal(jnp.zeros(2), 1).to_event(1).log_prob(x_0)
        # The only difference is the signal that is left at T: sqrt(abar_T) = 1e-4.
        np.testing.assert_allclose(estimate, evidence, atol=2e-3)
        # So is the bound, whose terms are expectations: each x^0 several times, each time with other draws.
        draws = jnp.broadcast_to(x_0, (32, *x_0.shape))
        bound = AllSteps(200)(jax.random.key(2), ReverseChain(kernel, transition), draws)
        wider = dist.Normal(jnp.zeros(2), 1.1).to_event(1).log_prob(x_0)
        check(of_independent(bound - evidence), np.zeros(7), refused=wider - evidence)


def test_importance_weights_average_to_the_linear_gaussian_evidence():
    with enable_x64(True):
        kernel = GaussianKernel(schedules.log_snr(4, 0.3, 50.0), variance="upper")
        gain = 0.15
        transition = Transition(shrunk_network, jnp.asarray(gain), ())
        variance = linear_gaussian_evidence(kernel, gain)
        for x_0 in (-1.5, 0.2):
            values = ImportanceWeighted(1)(jax.random.key(5), ReverseChain(kernel, transition), jnp.full(40_000, x_0))
            weights = np.exp(np.asarray(values))
            evidence = np.exp(dist.Normal(0.0, np.sqrt(variance)).log_prob(x_0))
            assert abs(weights.mean() - evidence) < 5 * weights.std() / 200


def test_draws_have_the_linear_gaussian_variance():
    kernel = GaussianKernel(schedules.log_snr(4, 0.3, 50.0), variance="upper")
    draws = Diffusion(kernel, Transition(shrunk_network, jnp.asarray(0.15), ())).sample(jax.random.key(6), (100_000,))
    variance = linear_gaussian_evidence(kernel, 0.15)
    assert abs(draws.var() / variance - 1) < 5 * np.sqrt(2 / 100_000)


def test_bound_for_a_gaussian_chain_equals_gauss_hermite_quadrature():
    """All steps, any network: x^t is one normal variable, so each expectation is an integral on the line."""
    with enable_x64(True):
        kernel = GaussianKernel(schedules.log_snr(3, 0.3, 20.0))
        transition = Transition(wavy_network, jnp.asarray(0.7), ())
        x_0, nodes = 0.4, np.polynomial.hermite_e.hermegauss(60)
        weights = nodes[1] / np.sqrt(2 * np.pi)
        exact = float(prior_term(ReverseChain(kernel, transition), jnp.asarray(x_0)))
        for t in range(1, 4):
            marginal = kernel.marginal(jnp.asarray(x_0), t)
            x_t = marginal.loc + marginal.scale * nodes[0]
            distribution = kernel.reverse(wavy_network(0.7, x_t, jnp.asarray(t), None), x_t, t)
            exact += float((weights * kernel.bound_term(distribution, x_t, x_0, t)).sum())
        values = AllSteps(20_000)(jax.random.key(7), ReverseChain(kernel, transition), jnp.full((40,), x_0))
        assert abs(values.mean() - exact) < 5 * values.std() / np.sqrt(40)
        values = RandomStep()(jax.random.key(8), ReverseChain(kernel, transition), jnp.full((400_000,), x_0))
        assert abs(values.mean() - exact) < 5 * values.std() / np.sqrt(400_000)


def wavy_network(params, x_t, t, context):
    return params * jnp.sin(x_t), 0.3 * x_t


def test_papers_form_of_the_bound_equals_the_exact_one_for_normalised_data():
    """Eq. 14 is Eq. 13 with p(x^0 | x^1) = N(sqrt(1 - b_1) x^1, b_1), for second moments that match pi."""
    with enable_x64(True):
        kernel = GaussianKernel(schedules.log_snr(4, 0.2, 30.0))
        transition = Transition(wavy_network, jnp.asarray(0.7), ())
        x_0 = jnp.asarray([1.0, -1.0])  # mean 0, variance 1
        key = jax.random.key(9)
        x_0_drawn = jnp.broadcast_to(x_0, (200_000, 2))
        paper = paper_bound(key, ReverseChain(kernel, transition), x_0_drawn).mean()
        x_1 = kernel.marginal(x_0_drawn, 1).sample(jax.random.key(10))
        beta = float(kernel.schedule.beta[1])
        edge = dist.Normal(np.sqrt(1 - beta) * x_1, np.sqrt(beta)).log_prob(x_0_drawn)
        steps = sum_of_step_terms(key, ReverseChain(kernel, transition), x_0_drawn, first=2)
        exact = prior_term(ReverseChain(kernel, transition), x_0) + (steps + edge).mean(0)
        np.testing.assert_allclose(paper, exact.mean(), atol=5 * edge.std() / np.sqrt(400_000))


def test_papers_form_for_bits_equals_the_exact_one_when_the_mean_is_the_rate():
    with enable_x64(True):
        kernel = BernoulliKernel(schedules.constant_fraction(3), rate=0.5)
        transition = Transition(bits_network, jnp.asarray(0.8), (2,))
        x_0 = jnp.asarray(all_binary(2))
        keys = jax.random.split(jax.random.key(0), 4000)
        paper = jax.vmap(lambda key: paper_bound(key, ReverseChain(kernel, transition), x_0))(keys).mean()
        # Average over the data of E_q[log q(x^1 -> x^0)], by enumeration.
        beta = float(kernel.schedule.beta[1])
        stay = (1 - beta) + beta * 0.5
        edge = 2 * (stay * np.log(stay) + (1 - stay) * np.log(1 - stay))
        steps = jax.vmap(lambda key: sum_of_step_terms(key, ReverseChain(kernel, transition), x_0, first=2))(
            keys
        ).mean()
        exact = steps + edge + prior_term(ReverseChain(kernel, transition), x_0).mean()
        np.testing.assert_allclose(paper, exact, rtol=1e-9)


def test_random_steps_of_a_batch_visit_every_step_equally():
    """A batch of T examples is a stratified sample of the T steps."""
    kernel = GaussianKernel(schedules.log_snr(10))
    seen = []

    def record(params, x_t, t, context):
        seen.append(t)
        return 0 * x_t, 0 * x_t

    RandomStep()(jax.random.key(0), ReverseChain(kernel, Transition(record, None, (1,))), jnp.zeros((10, 1)))
    assert sorted(np.ravel(seen[0]).tolist()) == list(range(1, 11))
    seen.clear()
    RandomStep(5)(jax.random.key(0), ReverseChain(kernel, Transition(record, None, (1,))), jnp.zeros((2, 1)))
    assert sorted(np.ravel(seen[0]).tolist()) == list(range(1, 11))
    # The five steps of one example are spread over the whole chain.
    assert np.ptp(np.asarray(seen[0])[:, 0]) >= 6


@pytest.mark.parametrize("estimator", [RandomStep, AllSteps, ImportanceWeighted])
def test_a_count_of_zero_is_refused(estimator):
    with pytest.raises(ValueError, match="integer >= 1; got 0"):
        estimator(0)


@pytest.mark.optimised
def test_forty_thousand_rows_agree_with_float64_numpy():
    """A compiled batch above 32,768 rows: jaxlib 0.10.2 gets such products wrong on the CPU without a word."""
    kernel = GaussianKernel(schedules.log_snr(4, 0.2, 30.0), variance="upper")
    matrix = np.random.default_rng(0).normal(size=(3, 3)) / 3
    transition = Transition(linear_network, jnp.asarray(matrix, jnp.float32), (3,))
    x = np.random.default_rng(1).normal(size=(40_000, 5, 3)).astype(np.float32)
    # What the other tests turn off for speed is turned on; a version of XLA without the flag has it always on.
    options = {"xla_cpu_use_fusion_emitters": True} if xla_flags.QUICK in os.environ["XLA_FLAGS"] else None
    compiled = jax.jit(ReverseChain(kernel, transition).log_prob, compiler_options=options)(x)
    wide = x.astype(np.float64)
    total = -0.5 * (wide[:, 4] ** 2 + np.log(2 * np.pi)).sum(-1)
    for t in range(1, 5):
        with enable_x64(True):
            distribution = kernel.reverse(wide[:, t] @ matrix.T, wide[:, t], t)
            scale, loc = np.asarray(distribution.scale), np.asarray(distribution.loc)
        total += (-0.5 * ((wide[:, t - 1] - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)).sum(-1)
    np.testing.assert_allclose(compiled, total, rtol=2e-4)


def linear_network(params, x_t, t, context):
    return x_t @ params.T
