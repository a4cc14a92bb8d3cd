"""The paper's tilt and the exact product: by closed forms, and for bits by enumeration of all trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.tree_util import Partial
from precision import enable_x64
from tilted_cases import (
    BITS,
    PATHS,
    bits_chain,
    coupled,
    draw,
    factorised,
    gaussian_prior,
    linear,
    log_prob,
    log_weight,
    moments,
    observed,
    quadratic,
    step_law,
)

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import GaussianFactor, PaperTilt, TiltedChain
from numpyro_diffusion.guidance.gaussian_factor import ClampedNormal

# The paper's tilt ----------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", ["constant", "annealed"])
def test_the_tilt_by_an_exponential_is_the_exact_product(exponent):
    """For log r = 0.7 sum x: log q - log p - exponent 0.7 x is the same number for every x^{t-1}."""
    chain, _ = gaussian_prior(4)
    tilted = TiltedChain(chain, PaperTilt(linear, exponent))
    x_t, t = jnp.array([0.4, -1.0]), jnp.array(3)
    x = jnp.array([[0.0, 0.0], [1.0, -1.0], [0.3, 2.0]])
    power = {"constant": 1.0, "annealed": (4 - 2) / 4}[exponent]
    distribution, product = step_law(chain, x_t, t), step_law(tilted, x_t, t)
    rest = (product.log_prob(x) - distribution.log_prob(x) - power * 0.7 * x).sum(-1)
    np.testing.assert_allclose(rest, rest[0], atol=1e-4)


def test_the_paper_s_tilt_moves_the_mean_up_the_slope_at_the_mean():
    chain, _ = gaussian_prior(4)
    x_t = jnp.array([0.4, -1.0])
    distribution, tilted = (step_law(one, x_t, 2) for one in (chain, TiltedChain(chain, PaperTilt(quadratic))))
    np.testing.assert_allclose(
        tilted.loc, distribution.loc + distribution.scale**2 * (1.0 - distribution.loc), rtol=1e-6
    )
    np.testing.assert_array_equal(tilted.scale, distribution.scale)


# The exact product ---------------------------------------------------------------------------------


@pytest.mark.parametrize("noised", [False, True])
def test_every_step_is_the_product_with_the_factor(noised):
    chain, _ = gaussian_prior(4)
    value, scale = jnp.array([1.3, -0.2]), jnp.array([0.6, jnp.inf])
    tilted = TiltedChain(chain, GaussianFactor(value, scale, noised=noised))
    x_t, x = jnp.array([0.4, -1.0]), jnp.array([[0.0, 0.0], [1.0, -1.0], [0.3, 2.0]])
    schedule = chain.kernel.schedule
    for t in (1, 2, 4):
        power = schedule.alpha_bar[t - 1] if noised else 1.0
        noise = schedule.noise_variance[t - 1] if noised else 0.0
        factor = dist.Normal(np.sqrt(power) * value[0], np.sqrt(power * scale[0] ** 2 + noise))
        rest = (step_law(tilted, x_t, t).log_prob(x) - step_law(chain, x_t, t).log_prob(x)).sum(-1)
        rest = rest - factor.log_prob(x[:, 0])
        np.testing.assert_allclose(rest, rest[0], atol=1e-4)


def test_what_was_not_observed_is_not_moved_and_may_be_missing():
    chain, _ = gaussian_prior(4)
    x_t = jnp.array([[0.4, -1.0], [2.0, 0.0]])
    distribution = step_law(chain, x_t, 2)
    tilted = TiltedChain(chain, GaussianFactor(jnp.array([jnp.nan, 3.0]), jnp.array([jnp.inf, 0.0])))
    product = step_law(tilted, x_t, 2)
    np.testing.assert_array_equal(product.loc[:, 0], distribution.loc[:, 0])
    np.testing.assert_array_equal(product.scale[:, 0], distribution.scale[:, 0])
    np.testing.assert_array_equal(product.loc[:, 1], 3.0)
    np.testing.assert_array_equal(product.scale[:, 1], 0.0)


@pytest.mark.parametrize("noised", [False, True])
def test_the_last_step_s_weight_depends_on_x_1_alone(noised):
    """There the factor is r itself, so the step is the exact p(x^0 | x^1, y) and what is left is p(y | x^1)."""
    chain, _ = gaussian_prior(4)
    tilted = TiltedChain(chain, GaussianFactor(1.3, 0.6, noised=noised))
    path = draw(tilted, jax.random.key(0))
    paths = jnp.stack([path.at[0].set(jnp.array(x_0)) for x_0 in ([0.0, 0.0], [2.0, -1.0], [1.0, 3.0])])
    weights = log_weight(tilted, paths, Partial(observed, jnp.eye(2), 1.3, 0.6))
    np.testing.assert_allclose(weights, weights[0], atol=1e-4)


def test_under_a_flat_prior_the_noised_factor_is_the_posterior_s_own():
    """Prior N(0, 1000^2), noise below 1: q(x^{t-1} | x^t) = p(x^{t-1} | x^t, y), of known mean and variance."""
    with enable_x64(True):
        kernel = nd.GaussianKernel(nd.schedules.log_snr(4, 0.1, 1.0), parameterization="x0", variance="denoiser")
        prior = nd.analytic.gaussian_mixture(kernel, jnp.zeros((1, 1)), 1000.0, jnp.ones(1))
        distribution = GaussianFactor(1.5, 0.7, noised=True)(nd.ReverseChain(kernel, prior), jnp.array([0.8]), 3).step
        power, noise = kernel.schedule.alpha_bar[3], kernel.schedule.noise_variance[3]
        # x^0 | x^3, y by precisions: of x^3 abar / v, of y 1 / 0.49, of the prior 1e-6.
        precision = power / noise + 1 / 0.49 + 1e-6
        mean = (np.sqrt(power) * 0.8 / noise + 1.5 / 0.49) / precision
        gain = kernel.bridge(jnp.zeros(1), jnp.ones(1), 3).mean
        bridge = kernel.bridge(jnp.array([0.8]), jnp.array([mean]), 3)
        np.testing.assert_allclose(distribution.mean, bridge.mean, rtol=1e-5)
        np.testing.assert_allclose(distribution.variance, bridge.variance + gain**2 / precision, rtol=1e-5)


def test_inpainting_by_the_noised_factor_weighs_to_the_conditional():
    """x_1 = 1.2 is known: the evidence is its marginal density, and x_2 follows by the prior's correlation."""
    chain, _ = gaussian_prior(4)
    mean, covariance = moments(chain)
    tilted = TiltedChain(chain, GaussianFactor(jnp.array([1.2, 0.0]), jnp.array([0.0, jnp.inf]), noised=True))
    path = draw(tilted, jax.random.key(0), (20_000,))
    assert (path[:, 0, 0] == jnp.float32(1.2)).all()
    assert (jnp.diff(jnp.sort(path[:, 1:, 0].reshape(-1))) > 0).mean() > 0.99  # before x^0 nothing is fixed
    evidence = dist.Normal(mean[0], np.sqrt(covariance[0, 0])).log_prob(1.2)
    weight = np.exp(np.asarray(log_weight(tilted, path) - evidence, np.float64))
    error = weight.std() / np.sqrt(weight.size)
    assert error < 0.02
    assert abs(weight.mean() - 1) < 5 * error
    terms = weight * (path[:, 0, 1] - (mean[1] + covariance[1, 0] / covariance[0, 0] * (1.2 - mean[0])))
    assert abs(terms.mean()) < 5 * terms.std() / np.sqrt(weight.size)
    # Unweighted the correlation is mostly lost.
    assert abs(path[:, 0, 1].mean() - mean[1]) < 0.6 * abs((weight * path[:, 0, 1]).mean() - mean[1])


def test_a_chain_fixed_at_every_step_has_no_weights():
    chain, _ = gaussian_prior(3)
    tilted = TiltedChain(chain, GaussianFactor(jnp.array([1.2, 0.0]), jnp.array([0.0, jnp.inf])))
    path = draw(tilted, jax.random.key(0), (4,))
    assert (path[:, :-1, 0] == jnp.float32(1.2)).all()
    assert jnp.isfinite(log_prob(tilted, path)).all()
    with pytest.raises(ValueError, match=r"Expected a tilt that fixes coordinates of x\^0 alone; got .*noised=True"):
        tilted.log_weight(path)
    np.testing.assert_array_equal(log_weight(tilted, path), -jnp.inf)


def test_gradients_of_a_factor_are_finite_at_its_edges():
    chain, _ = gaussian_prior(3)

    def loss(value, scale, key):
        tilted = TiltedChain(chain, GaussianFactor(value, scale, noised=True))
        path = tilted.sample(key)
        return tilted.log_prob(path) + path.sum() + tilted.log_weight(path, quadratic)

    value, scale = jnp.array([1.2, 0.0]), jnp.array([0.0, jnp.inf])
    for_value, for_scale = jax.jit(jax.grad(loss, argnums=(0, 1)))(value, scale, jax.random.key(0))
    assert jnp.isfinite(for_value).all()
    assert jnp.isfinite(for_scale).all()
    assert for_value[0] != 0
    assert for_value[1] == 0


def test_a_clamped_normal_is_normal_where_it_is_free():
    distribution = ClampedNormal(jnp.array([0.5, 1.0]), jnp.array([2.0, 0.0]), validate_args=True)
    wanted = dist.Normal(0.5, 2.0).log_prob(0.1)
    np.testing.assert_allclose(distribution.log_prob(jnp.array([0.1, 1.0])), [wanted, 0.0], rtol=1e-6)
    np.testing.assert_allclose(distribution.log_prob(jnp.array([0.1, 1.5])), [wanted, -jnp.inf], rtol=1e-6)
    assert distribution.sample(jax.random.key(0))[1] == 1.0


# Bits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", ["constant", "annealed"])
@pytest.mark.parametrize("log_r", [factorised, coupled])
def test_the_probabilities_of_all_trajectories_of_bits_add_to_one_and_their_weights_to_the_evidence(log_r, exponent):
    chain = bits_chain()
    tilted = TiltedChain(chain, PaperTilt(log_r, exponent))
    q = np.exp(np.asarray(log_prob(tilted, PATHS), np.float64))
    p = np.exp(np.asarray(log_prob(chain, PATHS), np.float64))
    r = np.exp(np.asarray(jax.vmap(log_r)(jnp.asarray(PATHS[:, 0], float)), np.float64))
    assert q.sum() == pytest.approx(1, abs=1e-5)
    assert abs(q - p).max() > 1e-3
    weight = np.exp(np.asarray(log_weight(tilted, PATHS, Partial(log_r)), np.float64))
    np.testing.assert_allclose(q * weight, p * r, rtol=1e-4)
    assert (q * weight).sum() == pytest.approx((p * r).sum(), rel=1e-5)


def last_step(chain, x_1):
    return np.exp(np.asarray(step_law(chain, x_1, 1).log_prob(jnp.asarray(BITS)).sum(-1), np.float64))


@pytest.mark.parametrize("exponent", ["constant", "annealed"])
def test_the_last_step_is_the_posterior_given_x_1_when_r_is_a_product_over_bits(exponent):
    chain = bits_chain()
    for x_1 in BITS:
        posterior = last_step(chain, x_1) * np.exp(np.asarray(jax.vmap(factorised)(jnp.asarray(BITS, float))))
        tilted = last_step(TiltedChain(chain, PaperTilt(factorised, exponent)), x_1)
        np.testing.assert_allclose(tilted, posterior / posterior.sum(), rtol=1e-5)


def test_a_coupled_r_is_flipped_one_bit_at_a_time_around_the_likeliest_bits():
    chain = bits_chain()
    x_1 = jnp.array([1, 0, 1])
    distribution, tilted = (step_law(c, x_1, 1) for c in (chain, TiltedChain(chain, PaperTilt(coupled))))
    centre = np.asarray(distribution.probs > 0.5, np.float32)
    for bit in range(3):
        low, high = centre.copy(), centre.copy()
        low[bit], high[bit] = 0, 1
        wanted = distribution.logits[bit] + coupled(jnp.asarray(high)) - coupled(jnp.asarray(low))
        assert tilted.logits[bit] == pytest.approx(float(wanted), abs=1e-5)
    posterior = last_step(chain, x_1) * np.exp(np.asarray(jax.vmap(coupled)(jnp.asarray(BITS, float))))
    off = last_step(TiltedChain(chain, PaperTilt(coupled)), x_1) - posterior / posterior.sum()
    assert 0.5 * abs(off).sum() > 0.02  # so the weights are needed


def test_a_known_bit_is_set_and_a_hopeless_one_left():
    known = PaperTilt(lambda x: jnp.where(x[0] == 1, 0.0, -jnp.inf))
    chain = bits_chain()
    x_1 = jnp.array([0, 1, 0])
    distribution, tilted = (step_law(c, x_1, 1) for c in (chain, TiltedChain(chain, known)))
    assert tilted.probs[0] == 1
    # With bit 0 at its likeliest value, 0, r is 0 whatever the other bits are: it says nothing of them.
    assert distribution.probs[0] < 0.5
    np.testing.assert_allclose(tilted.logits[1:], distribution.logits[1:], rtol=1e-6)
    drawn = draw(TiltedChain(chain, known), jax.random.key(0), (20,))
    assert (drawn[:, :-1, 0] == 1).all()
    assert jnp.isfinite(log_prob(TiltedChain(chain, known), drawn)).all()
