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
    rows = dist.TransformedDistribution(NUMBER.expand((3,)), EXP).to_event(1)
    with pytest.raises(ValueError, match=r"a data point is one state; got states of batch_shape \(3,\).*to_event"):
        ask(KEY, rows, jnp.ones((2, 3, 1)))
    kernel = nd.BernoulliKernel(nd.schedules.linear(2, 1.0, 4.0), rate=0.4)
    bits = nd.Diffusion(kernel, nd.Transition(lambda params, x_t, t, context: 0.0 * x_t, None, (1,)))
    with pytest.raises(TypeError, match="real states inside of the transforms; got BernoulliKernel"):
        ask(KEY, dist.TransformedDistribution(bits, transforms.AffineTransform(-1.0, 2.0)), jnp.ones((2, 1)))


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
