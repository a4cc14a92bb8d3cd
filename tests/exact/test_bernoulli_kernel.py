"""The Bernoulli kernel against enumeration of one bit, and its digits against float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from precision import enable_x64

from numpyro_diffusion import BernoulliKernel, schedules
from numpyro_diffusion.kernels.bernoulli import BernoulliLogits

RATES = (0.5, 0.2, 0.999)
BITS = np.array([0, 1])


def _matrix(kernel, t):
    """P(x^t = j | x^{t-1} = i) as a 2 x 2 array, from the definition."""
    beta = np.asarray(kernel.schedule.beta)[t]
    rate = kernel.rate
    return (1 - beta) * np.eye(2) + beta * np.array([[1 - rate, rate], [1 - rate, rate]])


@pytest.fixture(autouse=True)
def _x64():
    with enable_x64(True):
        yield


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_steps_marginals_and_bridges_are_those_of_the_two_state_chain(rate, num_steps):
    kernel = BernoulliKernel(schedules.constant_fraction(num_steps), rate=rate)
    power = np.eye(2)
    for t in range(1, num_steps + 1):
        step = _matrix(kernel, t)
        np.testing.assert_allclose(kernel.step(BITS, t).probs, step[:, 1], rtol=1e-12)
        before, power = power, power @ step
        np.testing.assert_allclose(kernel.marginal(BITS, t).probs, power[:, 1], rtol=1e-12)
        for x_0, x_t in itertools.product(BITS, BITS):
            if power[x_0, x_t] > 0:
                bayes = step[:, x_t] * before[x_0] / power[x_0, x_t]
                np.testing.assert_allclose(kernel.bridge(x_t, x_0, t).probs, bayes[1], rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("rate", RATES)
def test_x0_parameterisation_is_the_mixture_of_bridges(rate):
    kernel = BernoulliKernel(schedules.constant_fraction(4), rate=rate)
    logits = np.array([-3.0, 0.0, 2.0])
    prob = 1 / (1 + np.exp(-logits))
    for t, x_t in itertools.product(range(1, 5), BITS):
        wanted = prob * kernel.bridge(x_t, 1, t).probs + (1 - prob) * kernel.bridge(x_t, 0, t).probs
        np.testing.assert_allclose(kernel.reverse(logits, x_t, t).probs, wanted, rtol=1e-9)
    np.testing.assert_allclose(kernel.reverse(logits, 1, 1).logits, logits, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(kernel.denoised(logits, 1, 2), prob)


def test_logits_parameterisation_is_the_papers():
    kernel = BernoulliKernel(schedules.constant_fraction(3), parameterization="logits")
    np.testing.assert_allclose(kernel.reverse(jnp.asarray([0.3, -2.0]), BITS, 2).logits, [0.3, -2.0])
    with pytest.raises(ValueError, match="parameterization='x0'"):
        kernel.denoised(jnp.zeros(2), BITS, 2)


def test_kl_and_entropy_by_enumeration():
    kernel = BernoulliKernel(schedules.constant_fraction(3))
    p, q = np.array([0.1, 0.5, 0.99]), np.array([0.2, 0.4, 0.9])
    first, second = (BernoulliLogits(np.log(x / (1 - x))) for x in (p, q))
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    np.testing.assert_allclose(kernel.kl(first, second), kl, rtol=1e-12)
    np.testing.assert_allclose(first.entropy(), -p * np.log(p) - (1 - p) * np.log(1 - p), rtol=1e-12)


def test_tilt_multiplies_the_odds():
    kernel = BernoulliKernel(schedules.constant_fraction(3))
    prob, log_r = 0.3, np.array([0.2, -1.5])
    tilted = kernel.tilt(BernoulliLogits(np.log(prob / (1 - prob))), log_r[1] - log_r[0]).probs
    weights = np.array([1 - prob, prob]) * np.exp(log_r)
    np.testing.assert_allclose(tilted, weights[1] / weights.sum(), rtol=1e-12)


def test_long_chains_keep_their_digits_in_float32():
    """The sum of T = 2000 step KLs, each about 1e-7 nats, loses nothing that the bound could show."""

    def total(dtype):
        with enable_x64(dtype == jnp.float64):
            kernel = BernoulliKernel(schedules.constant_fraction(2000), rate=0.2)
            t = jnp.arange(2, 2001)
            output = jnp.full(t.shape, 4.0, dtype)
            terms = [kernel.bound_term(kernel.reverse(output, x_t, t), x_t, 1, t) for x_t in BITS]
            return np.asarray(terms, np.float64)

    single, double = total(jnp.float32), total(jnp.float64)
    np.testing.assert_allclose(single.sum(1), double.sum(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        single, double, atol=1e-7, rtol=1e-3
    )  # one step alone: rounding of its first-order terms


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("num_steps", [1, 2, 10_000])
def test_values_and_gradients_are_finite_at_both_ends_and_for_extreme_outputs(num_steps, x64):
    with enable_x64(x64):

        def value(beta, output, x_t, x_0, t):
            kernel = BernoulliKernel(schedules.Schedule.from_beta(beta), rate=0.2)
            return kernel.bound_term(kernel.reverse(output, x_t, t), x_t, x_0, t) + kernel.marginal(x_0, t).entropy()

        gradient = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))
        beta = jnp.asarray(schedules.constant_fraction(num_steps).beta[1:], float)
        for t, x_t, x_0 in itertools.product({1, min(2, num_steps), num_steps}, BITS, BITS):
            for output in (-80.0, 0.0, 80.0):
                result = gradient(beta, jnp.asarray(output), x_t, x_0, t)
                assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(result)), (t, x_t, x_0, output)


def test_log_prob_is_finite_and_exact_at_large_logits():
    distribution = BernoulliLogits(jnp.asarray([40.0, -40.0, 700.0]))
    np.testing.assert_allclose(distribution.log_prob(1), [-np.exp(-40.0), -40.0, -np.exp(-700.0)], rtol=1e-12)
    np.testing.assert_allclose(distribution.log_prob(jnp.asarray(0)), [-40.0, -np.exp(-40.0), -700.0], rtol=1e-12)


def test_stationary_law_broadcasts_a_rate_for_each_coordinate():
    kernel = BernoulliKernel(schedules.constant_fraction(3), rate=np.array([0.1, 0.7]))
    np.testing.assert_allclose(kernel.stationary((3, 2)).probs, np.tile([0.1, 0.7], (3, 1)), rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 0.0}, r"rate in \(0, 1\); got 0.0"),
        ({"rate": np.array([0.5, 1.0])}, r"rate in \(0, 1\)"),
        ({"rate": float("nan")}, r"rate in \(0, 1\); got nan"),
        ({"parameterization": "noise"}, "parameterization one of x0, logits"),
    ],
)
def test_bad_arguments_are_named(no_type_checks, arguments, message):
    with pytest.raises(ValueError, match=message):
        BernoulliKernel(schedules.constant_fraction(3), **arguments)
