"""K and the importance-weighted estimate against enumeration, quadrature and their own definitions.

Random tests have fixed keys; an average passes when it lies within 5 standard errors (6e-7 a comparison).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import all_bits, bit_probabilities
from evaluation_cases import bits_model, enumerated_bits, point_key, wavy_model
from precision import enable_x64

import numpyro_diffusion as nd
from numpyro_diffusion.evaluation import bounds, importance_weighted

bound = nd.evaluation.bound
KEY = jax.random.key(0)


def enumerated_terms(model, x_0):
    """The prior term and the step terms of K, (T,), of one vector of bits."""
    kernel = model.kernel
    terms = []
    for t in range(1, kernel.num_steps + 1):
        x_t, probabilities = enumerated_bits(kernel.marginal(jnp.asarray(x_0), t))
        distribution = nd.ReverseChain(kernel, model.transition).reverse(x_t, t)
        terms.append(probabilities @ np.asarray(kernel.bound_term(distribution, x_t, x_0, t).sum(-1)))
    top, end = kernel.marginal(jnp.asarray(x_0), kernel.num_steps), kernel.stationary((2,))
    return -float(kernel.kl(top, end).sum()), np.array(terms)


def test_every_term_of_k_for_bits_has_the_enumerated_one_as_its_mean():
    model, x = bits_model(), np.array([[1, 0], [1, 1]])
    found = bound(KEY, model, np.repeat(x, 4000, axis=0), num_draws=3)
    priors, terms = zip(*(enumerated_terms(model, x_0) for x_0 in x), strict=True)
    assert found.prior_term == pytest.approx(np.mean(priors), abs=1e-5)
    assert (np.abs(found.step_terms - np.mean(terms, 0)) < 5 * found.step_standard_errors).all()
    assert (found.step_standard_errors < 0.02).all()
    assert abs(found.nats - np.mean(priors) - np.mean(terms, 0).sum()) < 5 * found.standard_error
    assert found.nats == pytest.approx(found.prior_term + found.step_terms.sum(), abs=1e-4)


def test_every_term_of_k_for_a_gaussian_chain_equals_quadrature():
    with enable_x64(True):
        model, x_0 = wavy_model(), np.array([0.4, -1.1])
        kernel, (nodes, weights) = model.kernel, np.polynomial.hermite_e.hermegauss(40)
        found = bound(KEY, model, np.broadcast_to(x_0, (20_000, 2)), num_draws=1)
        for t in range(1, 4):
            marginal = kernel.marginal(jnp.asarray(x_0), t)
            x_t = marginal.loc + marginal.scale * nodes[:, None]
            distribution = nd.ReverseChain(kernel, model.transition).reverse(x_t, t)
            exact = (weights / math.sqrt(2 * math.pi)) @ kernel.bound_term(distribution, x_t, x_0, t).sum(-1)
            assert abs(found.step_terms[t - 1] - exact) < 5 * found.step_standard_errors[t - 1]


@pytest.mark.parametrize("make", [bits_model, wavy_model])
def test_k_of_a_point_is_that_of_the_estimator_with_the_points_key(make):
    with enable_x64(True):
        model, x = make(), np.array([[1, 0], [0, 1], [1, 1]])
        x = x if model.kernel.is_discrete else x + 0.5
        found = bound(KEY, model, x, num_draws=2, chunk_size=2)
        for i, x_0 in enumerate(x):
            draws = [all_steps(model, jnp.asarray(x_0), point_key(KEY, i, draw)) for draw in range(2)]
            assert found.per_point[i] == pytest.approx(np.mean(draws), rel=1e-12)


@jax.jit
def all_steps(model, x_0, key):
    return nd.AllSteps()(key, model.chain, x_0)


def test_chunks_and_padding_change_nothing():
    with enable_x64(True):
        model, x = wavy_model(), np.random.default_rng(0).normal(size=(10, 2))
        whole = bound(KEY, model, x, num_draws=2, chunk_size=100)
        parts = bound(KEY, model, x, num_draws=2, chunk_size=6)  # 3 points
        for name in ("per_point", "step_terms", "step_standard_errors", "prior_term", "null_per_point"):
            np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12, err_msg=name)


def test_chunks_of_points_and_of_trajectories_change_nothing():
    with enable_x64(True):
        model, x = wavy_model(), np.random.default_rng(0).normal(size=(10, 2))
        whole = importance_weighted(KEY, model, x, num_trajectories=13)
        parts = importance_weighted(KEY, model, x, num_trajectories=13, chunk_size=4, trajectories_per_chunk=2)
        np.testing.assert_allclose(parts.per_point_by_size, whole.per_point_by_size, rtol=1e-12)
        np.testing.assert_allclose(parts.effective_sample_size, whole.effective_sample_size, rtol=1e-12)


def test_a_context_for_each_point_goes_with_its_point():
    contexts, x = jnp.arange(10.0).reshape(5, 2), np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)
    found = bound(KEY, wavy_model(context=contexts), x, chunk_size=4)
    for i in range(5):
        alone = bound(KEY, wavy_model(context=contexts[i]), x)
        np.testing.assert_allclose(found.per_point[i], alone.per_point[i], rtol=1e-5)
    assert abs(found.per_point[0] - bound(KEY, wavy_model(context=contexts[1]), x).per_point[0]) > 1e-3
    chain = nd.evaluation.bound(KEY, wavy_model(context=contexts).chain, x)
    np.testing.assert_allclose(chain.per_point, found.per_point, rtol=1e-5)


def test_the_error_of_the_draws_is_the_spread_over_keys():
    """40 keys give a standard deviation within 40 % of the truth at 3.5 standard errors."""
    model, x = wavy_model(), np.random.default_rng(2).normal(size=(8, 2)).astype(np.float32)
    found = [bound(jax.random.key(seed), model, x, num_draws=8) for seed in range(40)]
    stated = math.sqrt(np.mean([one.draws_standard_error**2 for one in found]))
    assert 0.6 < np.std([one.nats for one in found], ddof=1) / stated < 1.4
    assert bound(KEY, model, x, num_draws=1).draws_standard_error == math.inf
    assert bound(KEY, model, x[:1]).standard_error == math.inf


def test_units_and_the_null():
    x = np.array([[1, 0], [1, 1], [0, 0]])
    found = bound(KEY, bits_model(), x)
    null = (x * math.log(0.3) + (1 - x) * math.log(0.7)).sum(-1)
    np.testing.assert_allclose(found.null.per_point, null, rtol=1e-6)
    assert found.above_null.nats == pytest.approx(found.nats - null.mean(), rel=1e-6)
    assert found.bits == pytest.approx(found.nats / math.log(2))
    assert found.bits_per_dimension == pytest.approx(found.nats / math.log(2) / 2)
    assert found.standard_error_bits_per_dimension == pytest.approx(found.standard_error / math.log(2) / 2)
    assert found.standard_error == pytest.approx(found.per_point.std(ddof=1) / math.sqrt(3))


def test_the_null_of_normalised_data_is_minus_the_entropy_of_pi():
    x = np.array([[1.0, -1.0], [-1.0, 1.0]], np.float32)
    found = bound(KEY, wavy_model(), x)
    assert found.null.bits == pytest.approx(-math.log2(2 * math.pi * math.e), rel=1e-6)  # the paper's swiss roll: -4.1


def test_more_data_of_the_same_shape_compile_nothing():
    model, x = wavy_model(4), np.zeros((6, 2), np.float32)
    bound(KEY, model, x, chunk_size=4)
    compiled = bounds._chunk._cache_size()
    bound(jax.random.key(1), wavy_model(4), np.ones((90, 2), np.float32), chunk_size=4)
    assert bounds._chunk._cache_size() == compiled


def test_papers_form_is_the_shared_one_for_normalised_data():
    with enable_x64(True):
        model, x = wavy_model(), np.array([[1.0, -1.0], [-1.0, 1.0]])
        found = bound(KEY, model, x, num_draws=1, form="paper")
        for i, x_0 in enumerate(x):
            alone = nd.paper_bound(point_key(KEY, i, 0), model.chain, jnp.asarray(x_0))
            assert found.per_point[i] == pytest.approx(float(alone), rel=1e-12)
        assert found.nats == pytest.approx(found.prior_term + found.step_terms.sum(), rel=1e-12)
        assert found.step_terms.shape == (3,)


def test_papers_form_is_wrong_by_what_its_refusal_says():
    """E of Eq. 14 minus Eq. 13 with p(x^0 | x^1) of the forward kernel, for data of mean square 4."""
    kernel = wavy_model().kernel
    x = np.array([[2.0, -2.0]] * 50, np.float32)
    with pytest.raises(ValueError, match=r"mean 0 and variance 1.*variance 4.*form='exact'") as error:
        bound(KEY, wavy_model(), x, form="paper")
    alpha_bar, noise = kernel.schedule.alpha_bar, kernel.schedule.noise_variance
    cross = [0.5 * (alpha_bar[t] * 4 + noise[t]) * 2 for t in (1, 3)]  # E[-log pi(x^t)] but for its constant
    assert f"wrong by {cross[0] - cross[1]:.3g} nats" in str(error.value)


def test_papers_form_refuses_bits_of_another_rate():
    x = np.array([[1, 1]] * 40)
    with pytest.raises(ValueError, match="a mean equal to the rate"):
        bound(KEY, bits_model(), x, form="paper")
    bound(KEY, bits_model(rate=0.5), x, form="paper")  # at one half the cross entropy does not depend on the mean


@jax.jit
def log_weights(model, x_0, index):
    """Of 11 trajectories, each with its own key."""
    estimator = nd.ImportanceWeighted(1)
    keys = jax.vmap(lambda draw: point_key(KEY, index, draw))(jnp.arange(11))
    return jax.vmap(lambda key: estimator(key, model.chain, x_0))(keys)


def test_sizes_and_effective_sample_sizes_are_those_of_the_weights():
    with enable_x64(True):
        model, x = wavy_model(), np.random.default_rng(3).normal(size=(4, 2))
        found = importance_weighted(KEY, model, x, num_trajectories=11, chunk_size=3, trajectories_per_chunk=4)
        assert found.sizes.tolist() == [1, 2, 4, 8, 11]
        for i, x_0 in enumerate(x):
            logs = np.asarray(log_weights(model, x_0, i))
            for size, value in zip(found.sizes, found.per_point_by_size[i], strict=True):
                groups = np.exp(logs)[: 11 // size * size].reshape(-1, size)
                assert value == pytest.approx(np.log(groups.mean(1)).mean(), rel=1e-10)
            weights = np.exp(logs)
            assert found.effective_sample_size[i] == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-10)
        np.testing.assert_array_equal(found.per_point, found.per_point_by_size[:, -1])


def test_bounds_are_ordered_up_to_the_enumerated_log_likelihood():
    model = bits_model()
    probabilities = bit_probabilities(model)
    x = np.repeat(all_bits(2), 100, axis=0)
    weighted = importance_weighted(KEY, model, x, num_trajectories=64)
    # For every point and without exception, because groups are nested.
    assert (np.diff(weighted.per_point_by_size, axis=1) >= -1e-5).all()
    means = [one.nats for one in weighted.by_size]
    exact, found = np.log(probabilities).mean(), bound(KEY, model, x, num_draws=4)
    assert found.nats < means[2] < means[4] < means[-1]
    assert means[-1] < exact + 5 * weighted.standard_error
    assert abs(means[0] - found.nats) < 5 * math.hypot(found.draws_standard_error, weighted.by_size[0].standard_error)
    assert exact - means[-1] < 0.3 * (exact - found.nats)


def test_an_exact_chain_weighs_every_trajectory_alike():
    with enable_x64(True):
        kernel = nd.GaussianKernel(nd.schedules.log_snr(20, 0.1, 1e4), parameterization="x0", variance="denoiser")
        model = nd.Diffusion(kernel, nd.analytic.gaussian_mixture(kernel, jnp.zeros((1, 2)), 1.0, jnp.ones(1)))
        x = np.random.default_rng(4).normal(size=(5, 2))
        found = importance_weighted(KEY, model, x, num_trajectories=8)
        exact = -0.5 * (x**2).sum(-1) - math.log(2 * math.pi)
        np.testing.assert_allclose(found.per_point, exact, atol=2e-3)
        np.testing.assert_allclose(found.effective_sample_size, 8, rtol=1e-4)
