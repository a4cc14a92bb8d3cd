"""Log likelihoods of transformed diffusions are those of the data in their own units, Jacobian included."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import transforms
from unit_cases import EXP, INTERVAL, NUMBER, PAIR

import numpyro_diffusion as nd
from numpyro_diffusion import evaluation

KEY = jax.random.key(0)
WHITENING = transforms.LowerCholeskyAffine(jnp.array([100.0, -3.0]), jnp.array([[2.0, 0.0], [1.5, 0.2]]))
CASES = {
    "affine": (PAIR, transforms.AffineTransform(jnp.array([100.0, -3.0]), jnp.array([5.0, -0.1]))),
    "whitening": (PAIR, WHITENING),
    "exp": (NUMBER, EXP),
    "interval": (NUMBER, INTERVAL),
    "softplus": (NUMBER, transforms.SoftplusTransform()),
    "simplex": (PAIR, transforms.StickBreakingTransform()),
}


def case(name):
    """The diffusion, the transformed one, states, and the log densities' difference by automatic differentiation."""
    base, parts = CASES[name]
    model = dist.TransformedDistribution(base, parts)
    states = base.sample(jax.random.key(1), (6,))

    def value(state):
        for transform in model.transforms:
            state = transform(state)
        return state[: len(base.sample(KEY))]  # the last number of a simplex is not free

    jacobians = jax.vmap(jax.jacfwd(value))(states)
    change = -np.linalg.slogdet(np.asarray(jacobians, float))[1]
    x = states
    for transform in model.transforms:
        x = transform(x)
    return base, model, states, x, change


@pytest.mark.parametrize("name", CASES)
def test_the_bound_has_the_jacobian(name):
    base, model, states, x, change = case(name)
    of_states = evaluation.bound(KEY, base, states)
    found = evaluation.bound(KEY, model, x)
    np.testing.assert_allclose(found.per_point, of_states.per_point + change, atol=2e-2)
    np.testing.assert_allclose(found.above_null.per_point, of_states.above_null.per_point, atol=2e-2)
    assert found.num_dimensions == x.shape[1]
    total = found.prior_term + found.step_terms.sum() + found.jacobian_term
    assert total == pytest.approx(found.nats, abs=1e-4)
    assert abs(change).max() > 0.3


def test_other_estimates_have_the_jacobian():
    base, model, states, x, change = case("whitening")
    both = (base, states), (model, x)
    one, other = (evaluation.importance_weighted(KEY, *args, num_trajectories=4).per_point_by_size for args in both)
    np.testing.assert_allclose(other, one + change[:, None], atol=2e-2)
    kernel = nd.GaussianKernel(nd.schedules.log_snr(6, 0.3, 10.0), variance="upper")
    base = nd.Diffusion(kernel, nd.Transition(lambda params, x_t, t, context: 0 * x_t, None, (2,)))
    model = dist.TransformedDistribution(base, WHITENING)
    flow = [evaluation.probability_flow(KEY, *args).per_point for args in ((base, states), (model, x))]
    np.testing.assert_allclose(flow[1], flow[0] + change, atol=2e-2)


def test_contexts_and_transforms_of_rows_go_with_their_rows():
    """Of two rows that differ in nothing else the one with the wider scale has the smaller density."""
    wide = transforms.AffineTransform(0.0, jnp.array([[1.0], [8.0]]))
    found = evaluation.bound(KEY, dist.TransformedDistribution(NUMBER, wide), jnp.zeros((2, 1)), num_draws=64)
    assert found.per_point[0] - found.per_point[1] == pytest.approx(np.log(8.0), abs=0.3)


def test_a_point_outside_of_the_support_is_named():
    model = dist.TransformedDistribution(NUMBER, EXP)
    with pytest.raises(ValueError, match=r"points in the support of ExpTransform; got .*-1.* at index 1, 1 of 2"):
        evaluation.bound(KEY, model, jnp.array([[1.0], [-1.0]]))


@pytest.mark.parametrize("ask", [evaluation.bound, evaluation.importance_weighted, evaluation.probability_flow])
def test_what_has_no_density_in_the_data_s_units_is_refused(no_type_checks, ask):
    with pytest.raises(TypeError, match=r"a Diffusion or a ReverseChain; got .*TransformedDistribution"):
        ask(KEY, dist.TransformedDistribution(NUMBER, transforms.AbsTransform()), jnp.ones((2, 1)))
    kernel = nd.BernoulliKernel(nd.schedules.linear(2, 1.0, 4.0), rate=0.4)
    bits = nd.Diffusion(kernel, nd.Transition(lambda params, x_t, t, context: 0.0 * x_t, None, (1,)))
    with pytest.raises(TypeError, match="real states inside of the transforms; got BernoulliKernel"):
        ask(KEY, dist.TransformedDistribution(bits, transforms.AffineTransform(-1.0, 2.0)), jnp.ones((2, 1)))


# Several states in one event --------------------------------------------------------------------------

FLOWING = nd.Diffusion(
    nd.GaussianKernel(nd.schedules.log_snr(6, 0.3, 10.0), variance="upper"),
    nd.Transition(lambda params, x_t, t, context: 0.1 * x_t, None, (1,)),
)
SEVERAL = {
    "bare": (lambda prior: prior.expand([3]).to_event(1), False),
    "transformed outside": (lambda prior: dist.TransformedDistribution(prior.expand([3]).to_event(1), EXP), True),
    "transformed inside": (lambda prior: dist.TransformedDistribution(prior.expand([3]), EXP).to_event(1), True),
}
ESTIMATES = {
    "bound": evaluation.bound,
    "importance_weighted": lambda *args: evaluation.importance_weighted(*args, num_trajectories=4, chunk_size=4),
    "probability_flow": evaluation.probability_flow,
}


@pytest.mark.parametrize("estimate", ESTIMATES)
@pytest.mark.parametrize("name", SEVERAL)
def test_an_event_of_several_states_has_the_sum_of_their_log_likelihoods(name, estimate):
    make, is_transformed = SEVERAL[name]
    states = FLOWING.sample(jax.random.key(1), (5, 3))
    x = dist.transforms.ComposeTransform(EXP)(states) if is_transformed else states
    single = dist.TransformedDistribution(FLOWING, EXP) if is_transformed else FLOWING
    found = ESTIMATES[estimate](KEY, make(FLOWING), x)
    alone = ESTIMATES[estimate](KEY, single, x.reshape(15, 1))
    np.testing.assert_allclose(found.per_point, alone.per_point.reshape(5, 3).sum(1), rtol=1e-5)
    assert found.num_dimensions == 3
    assert found.standard_error == pytest.approx(found.per_point.std(ddof=1) / np.sqrt(5))


def test_terms_of_the_bound_are_those_of_events():
    """Chunks of two events of three states, and one left over."""
    x = FLOWING.sample(jax.random.key(1), (5, 3))
    model = FLOWING.expand([3]).to_event(1)
    found = evaluation.bound(KEY, model, x, chunk_size=14)
    np.testing.assert_allclose(found.per_point, evaluation.bound(KEY, model, x).per_point, rtol=1e-5)
    assert found.prior_term + found.step_terms.sum() == pytest.approx(found.nats, rel=1e-5)
    each = evaluation.bound(KEY, FLOWING, x.reshape(15, 1))
    np.testing.assert_allclose(found.step_terms, 3 * each.step_terms, rtol=1e-4)
    assert found.draws_standard_error == pytest.approx(3 * each.draws_standard_error, rel=0.5)
    entropies = [evaluation.entropy_bounds(KEY, *args).model for args in ((model, x), (FLOWING, x.reshape(15, 1)))]
    np.testing.assert_allclose(entropies[0], 3 * entropies[1], rtol=1e-4)


def test_states_of_one_event_keep_their_contexts():
    transition = nd.Transition(lambda params, x_t, t, context: 0.1 * x_t + context, None, (1,), (1,))
    context = jnp.array([[0.0], [2.0], [-1.0]])
    model = nd.Diffusion(FLOWING.kernel, transition, context=context)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 1)), jnp.float32)
    found = evaluation.bound(KEY, model.to_event(1), x)
    tiled = nd.Diffusion(FLOWING.kernel, transition, context=jnp.tile(context, (4, 1)))
    alone = evaluation.bound(KEY, tiled, x.reshape(12, 1)).per_point.reshape(4, 3)
    np.testing.assert_allclose(found.per_point, alone.sum(1), rtol=1e-5)
    assert np.abs(alone - alone.mean(1, keepdims=True)).max() > 0.5


def test_events_of_several_bits_are_summed_and_other_shapes_refused():
    kernel = nd.BernoulliKernel(nd.schedules.linear(2, 1.0, 4.0), rate=0.4)
    bits = nd.Diffusion(kernel, nd.Transition(lambda params, x_t, t, context: 0.3 * x_t, None, (1,)))
    x = jnp.array([[[0], [1]], [[1], [1]]])
    found = evaluation.bound(KEY, bits.expand([2]).to_event(1), x)
    alone = evaluation.bound(KEY, bits, x.reshape(4, 1)).per_point
    np.testing.assert_allclose(found.per_point, alone.reshape(2, 2).sum(1), rtol=1e-5)
    with pytest.raises(ValueError, match=r"trailing dimensions \(2, 1\) for x; got shape \(4, 1\)"):
        evaluation.bound(KEY, bits.expand([2]).to_event(1), x.reshape(4, 1))
    with pytest.raises(ValueError, match=r"a context for each of the 2 points.*batch_shape \(3,\)"):
        evaluation.bound(KEY, bits.expand([3, 2]).to_event(1), x)


# Integers ---------------------------------------------------------------------------------------------


def exact(rng_key, model, x):
    """An estimate without an error, of a Normal in the place of a model."""
    return evaluation.LogLikelihood(np.asarray(model.log_prob(x), float).sum(-1), x.shape[-1])


@pytest.mark.parametrize(("width", "low"), [(1.0, 0.0), (1.0, -0.5), (0.1, 0.0)])
def test_the_probability_of_integers_is_bounded_by_the_mass_of_their_bins(no_type_checks, width, low):
    """Two numbers of N(3 w, (2 w)^2). Jensen's inequality costs slope^2 / 24 nats each, by log p's slope in the bin."""
    distribution = dist.Normal(3 * width, 2 * width)
    k = np.array([[0, 2], [3, 3], [5, 1]])
    settings = {"width": width, "low": low * width, "num_noises": 2000, "estimate": exact}
    found = evaluation.integer_log_likelihood(KEY, distribution, k * width, **settings)
    edge = (k + low) * width
    mass = np.log(np.asarray(distribution.cdf(edge + width) - distribution.cdf(edge), float)).sum(1)
    slope = (k + low + 0.5 - 3) / 4
    # The noise moves log p by slope / sqrt(12): 2000 draws leave .005 at most.
    np.testing.assert_allclose(found.per_point, mass - (slope**2 / 24).sum(1), atol=0.02)
    assert found.bits_per_dimension == pytest.approx(found.per_point.mean() / np.log(2) / 2)


def test_the_estimate_is_given_its_settings_and_the_data_s_units():
    model = dist.TransformedDistribution(NUMBER, transforms.AffineTransform(3.0, 2.0))
    found = evaluation.integer_log_likelihood(KEY, model, np.array([[2], [4]]), num_noises=1, num_draws=3)
    key_noise, key_estimate = (jax.random.fold_in(key, 0) for key in jax.random.split(KEY))
    x = jnp.array([[2.0], [4.0]]) + jax.random.uniform(key_noise, (2, 1))
    np.testing.assert_allclose(found.per_point, evaluation.bound(key_estimate, model, x, num_draws=3).per_point)


def test_what_are_no_integers_is_refused():
    with pytest.raises(ValueError, match=r"multiples of width=1.0; got 0.5 at index \(1, 0\), 1 of 2 off the grid"):
        evaluation.integer_log_likelihood(KEY, NUMBER, np.array([[1.0], [0.5]]))
    with pytest.raises(ValueError, match=r"multiples of width=1.0; got nan"):
        evaluation.integer_log_likelihood(KEY, NUMBER, np.array([[np.nan]]))
    with pytest.raises(ValueError, match=r"width > 0; got 0.0"):
        evaluation.integer_log_likelihood(KEY, NUMBER, np.array([[1.0]]), width=0.0)
