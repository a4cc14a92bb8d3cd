"""The guidance family: what is exact for a Gaussian prior, what is biased, and that weights mend it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from precision import enable_x64
from tilted_cases import (
    COVARIANCE,
    MATRIX,
    MEAN,
    NOISE,
    VALUE,
    conjugate,
    draw,
    gaussian_prior,
    log_weight,
    moments,
    observed,
    quadratic,
    step_law,
    tilts_of,
)

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import GaussianFactor, MomentMatching, ReconstructionGuidance, TiltedChain


def test_reconstruction_guidance_adds_the_slope_through_the_network():
    chain, _ = gaussian_prior(4)
    x_t, t = jnp.array([0.4, -1.0]), 3
    distribution, guided = (
        step_law(c, x_t, t) for c in (chain, TiltedChain(chain, ReconstructionGuidance(quadratic, 0.5)))
    )
    slope = jax.grad(lambda x_t: quadratic(chain.transition(x_t, t)[0]))(x_t)
    np.testing.assert_allclose(guided.loc, distribution.loc + 0.5 * distribution.scale**2 * slope, rtol=1e-6)
    np.testing.assert_array_equal(guided.scale, distribution.scale)


@pytest.mark.parametrize(
    ("covariance", "prior"), [("jacobian", COVARIANCE), ("jacobian", np.eye(2)), ("scale", 1.69 * np.eye(2))]
)
@pytest.mark.parametrize("matrix", [MATRIX, np.array([[1.0, -0.5], [0.2, 2.0], [1.0, 1.0]])])
def test_moment_matching_has_the_posterior_s_mean_at_every_step_for_a_gaussian_prior(covariance, prior, matrix):
    """E[x^{t-1} | x^t, y] by the conjugate formula; for "scale" the prior must be N(., data_scale^2 I)."""
    with enable_x64(True):
        chain, posterior = gaussian_prior(5, covariance=prior, data_scale=1.3)
        value, noise = np.arange(1.0, 1.0 + len(matrix)), np.linspace(0.3, 0.5, len(matrix))
        tilt = MomentMatching(matrix, value, noise, covariance=covariance)
        x_t = jnp.array([0.4, -1.0])
        for t in range(1, 6):
            distribution = step_law(TiltedChain(chain, tilt), x_t, t)
            estimate = np.asarray(chain.transition(x_t, t)[0])
            spread = matrix @ posterior[t] @ matrix.T + np.diag(noise**2)
            moved = estimate + posterior[t] @ matrix.T @ np.linalg.solve(spread, value - matrix @ estimate)
            np.testing.assert_allclose(distribution.mean, chain.kernel.bridge(x_t, moved, t).mean, rtol=1e-7)
            np.testing.assert_array_equal(distribution.scale, step_law(chain, x_t, t).scale)


def indefinite_network(params, x_t, t, context):
    return x_t @ params


def test_where_the_jacobian_is_no_covariance_moment_matching_is_that_of_the_scale():
    """Raising one pivot after another of such a matrix multiplies errors: sixty rows once gave infinity."""
    jacobian = jax.random.normal(jax.random.key(0), (60, 60))
    kernel = nd.GaussianKernel(nd.schedules.log_snr(5), parameterization="x0", variance="upper")
    chain = nd.ReverseChain(kernel, nd.Transition(indefinite_network, jacobian + jacobian.T, (60,)))
    x_t = jax.random.normal(jax.random.key(1), (60,))
    tilts = [MomentMatching(jnp.eye(60), jnp.ones(60), 0.5, covariance=name) for name in ("jacobian", "scale")]
    for t in (1, 5):
        one, other = (step_law(TiltedChain(chain, tilt), x_t, t).mean for tilt in tilts)
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
    gradient = jax.grad(lambda x: step_law(TiltedChain(chain, tilts[0]), x, 5).mean.sum())(x_t)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("num_steps", [2, 6])
def test_by_the_jacobian_the_mean_of_x_0_is_the_posterior_s_for_any_T_and_what_was_seen_too_wide(num_steps):
    with enable_x64(True):
        chain, _ = gaussian_prior(num_steps)
        guided = TiltedChain(chain, MomentMatching(MATRIX, VALUE, NOISE))
        mean = conjugate(MEAN, COVARIANCE)[0]
        # From the mean of x^T given y; the chain's own start, N(0, 1), is off by the sqrt(abar_T) = 0.01.
        top = jnp.zeros(guided.event_shape).at[-1].set(np.sqrt(chain.kernel.schedule.alpha_bar[-1]) * mean)
        np.testing.assert_allclose(jax.jit(guided.from_noise)(top), mean, rtol=1e-7)
        spread, exact = (MATRIX @ c @ MATRIX.T for c in (moments(guided)[1], conjugate(*moments(chain))[1]))
        assert spread > 1.1 * exact


def test_reconstruction_guidance_misses_the_mean_even_of_a_gaussian_posterior():
    """It takes the reconstruction for the truth: the pull to y is too strong by far where the noise is small."""
    chain, _ = gaussian_prior(8)
    log_r = Partial(observed, jnp.asarray(MATRIX), jnp.asarray(VALUE), 0.3)
    mean, covariance, _ = conjugate(*moments(chain), noise=0.3)
    off = (moments(TiltedChain(chain, ReconstructionGuidance(log_r)))[0] - mean) / np.sqrt(np.diag(covariance))
    assert abs(off).max() > 0.2


@functools.cache
def mixture_draws(name):
    """Shares of draws of x^0 in 12 cells, plain and weighted, for .3 N(-1, .3^2) + .7 N(1, .3^2) seen at 0 +- 0.6."""
    log_r = Partial(observed, jnp.eye(1), jnp.zeros(1), 0.6)
    tilts = {"none": nd.ReverseChain.reverse, **tilts_of(log_r, np.eye(1), np.zeros(1), 0.6)}
    tilts["factor"] = GaussianFactor(0.0, 0.6)
    kernel = nd.GaussianKernel(nd.schedules.log_snr(20, 0.1, 50.0), parameterization="x0", variance="denoiser")
    means, weights = jnp.array([[-1.0], [1.0]]), jnp.array([0.3, 0.7])
    chain = nd.ReverseChain(kernel, nd.analytic.gaussian_mixture(kernel, means, 0.3, weights))

    tilted = TiltedChain(chain, tilts[name])
    path = draw(tilted, jax.random.key(0), (20_000,))
    cell = np.digitize(path[:, 0, 0], np.linspace(-2.0, 2.0, 11))
    weight = np.asarray(jax.nn.softmax(log_weight(tilted, path, log_r)))
    return np.bincount(cell, minlength=12) / cell.size, np.bincount(cell, weight, minlength=12), 1 / (weight**2).sum()


@pytest.mark.parametrize("name", ["paper annealed", "factor", "reconstruction", "moments by jacobian"])
def test_on_a_mixture_every_tilt_is_biased_and_weights_mend_it(name):
    """Against the untilted chain weighted by r, exact for this chain; total variation over 12 cells."""
    _, exact, size = mixture_draws("none")
    plain, weighted, effective = mixture_draws(name)
    # A share p is off by some sqrt(p / n); over 12 cells that makes a total variation of sqrt(12 / n) / 2 at the most.
    assert size > 10_000
    assert 0.5 * abs(plain - exact).sum() > 0.05
    if name.startswith(("reconstruction", "moments")):
        assert effective > 10_000
        assert 0.5 * abs(weighted - exact).sum() < 0.03
