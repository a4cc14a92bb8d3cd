"""The covariance of a network's errors, and guidance by it: against the conjugate Gaussian, written out."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from closed_forms import affine_prior
from correlated_gaussian import SPREAD, correlated_chain, exact_errors
from numpyro.distributions.transforms import AffineTransform

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import CovarianceGuidance, ErrorCovariance, TiltedChain, error_covariance

SCHEDULE = nd.schedules.log_snr(4, 0.3, 20.0)
CHAIN = affine_prior(SCHEDULE, [0.4, -0.7]).chain


def test_the_errors_of_an_exact_denoiser_have_the_conditional_covariance():
    chain, covariances = correlated_chain()
    found = error_covariance(jax.random.key(0), chain, num_draws=20_000, rank=3, batch_size=5000).matrices()
    assert found.shape == (30, 3, 3)
    for t in (1, 10, 20, 30):
        exact = covariances[t]
        scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
        # Of 20,000 Gaussian errors: a relative error of sqrt(2 / n), .01; draws of 30 steps are not quite N(0, SPREAD).
        np.testing.assert_allclose(found[t - 1] / scale, exact / scale, atol=0.06)


ERRORS = ErrorCovariance(
    jnp.asarray([[[0.6], [0.3]], [[0.5], [-0.2]], [[0.9], [0.1]], [[1.0], [0.4]]], jnp.float32),
    jnp.asarray([[0.1, 0.2], [0.3, 0.1], [0.2, 0.2], [0.1, 0.4]], jnp.float32),
)
MATRIX, Y, NOISE = np.array([[1.0, 0.5], [0.0, 1.0]], np.float32), np.array([1.5, -0.3], np.float32), 0.4


@pytest.mark.parametrize("inflation", [1.0, 3.0])
def test_a_step_is_that_of_a_gaussian_x_0(inflation):
    """Written out in NumPy, step by step of t."""
    guidance = CovarianceGuidance(MATRIX, Y, NOISE, errors=ERRORS, inflation=inflation)
    x_t = jax.random.normal(jax.random.key(0), (3, 2))
    for t in range(1, 5):
        step, found = CHAIN.reverse(x_t, t), guidance(CHAIN, x_t, t)
        covariance = inflation * np.asarray(ERRORS.matrices()[t - 1], float)
        gain = covariance @ MATRIX.T @ np.linalg.inv(NOISE**2 * np.eye(2) + MATRIX @ covariance @ MATRIX.T)
        shift = (Y - np.asarray(CHAIN.denoised(x_t, t)) @ MATRIX.T) @ gain.T
        share = np.clip(1 - np.diag(gain @ MATRIX @ covariance) / np.diag(covariance), 0.02, 1.0)
        c, lower = (float(number) for number in CHAIN.kernel.bridge_terms(t, jnp.zeros(())))
        np.testing.assert_allclose(found.loc, step.loc + c * shift, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.scale**2, lower + (step.scale**2 - lower) * share, rtol=1e-4)


def test_a_number_that_was_not_seen_is_no_number():
    x_t = jax.random.normal(jax.random.key(0), (3, 2))
    hidden = CovarianceGuidance(MATRIX, np.array([1.5, np.nan]), NOISE, errors=ERRORS, mask=np.array([True, False]))
    left_out = CovarianceGuidance(MATRIX[:1], Y[:1], NOISE, errors=ERRORS)
    for t in (1, 4):
        for name in ("loc", "scale"):
            found, wanted = (getattr(each(CHAIN, x_t, t), name) for each in (hidden, left_out))
            np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_an_observation_in_units_is_one_of_the_states():
    shifted = np.asarray(MATRIX.sum(1) * 100)
    units = CovarianceGuidance(MATRIX, shifted + 5 * Y, 5 * NOISE, errors=ERRORS).in_states(
        [AffineTransform(100.0, 5.0)]
    )
    x_t, plain = jnp.ones((1, 2)), CovarianceGuidance(MATRIX, Y, NOISE, errors=ERRORS)
    np.testing.assert_allclose(units(CHAIN, x_t, 2).loc, plain(CHAIN, x_t, 2).loc, rtol=1e-4)


def test_guided_by_the_exact_covariance_the_weights_of_a_gaussian_are_nearly_flat():
    """And their mean is the evidence. A diagonal covariance leaves more."""
    chain, covariances = correlated_chain()
    matrix, y, noise = np.array([[1.0, 1.0, 0.0]], np.float32), np.array([2.0], np.float32), 0.2
    whole = exact_errors(covariances)
    diagonal = ErrorCovariance(
        jnp.zeros((30, 3, 1)), jnp.asarray(np.diagonal(covariances[1:], axis1=1, axis2=2), jnp.float32)
    )
    log_r = lambda x: dist.Normal(matrix @ x, noise).log_prob(y).sum()
    spreads = []
    for errors in (whole, diagonal):
        tilted = TiltedChain(chain, CovarianceGuidance(matrix, y, noise, errors=errors))
        weights = np.asarray(tilted.log_weight(tilted.sample(jax.random.key(1), (4000,)), log_r), float)
        spreads.append(weights.std())
        if errors is whole:
            total = float((matrix @ SPREAD @ matrix.T)[0, 0]) + noise**2
            evidence = -0.5 * (4 / total + np.log(2 * np.pi * total))
            found = np.log(np.mean(np.exp(weights - weights.max()))) + weights.max()
            error = np.exp(weights - found).std() / np.sqrt(len(weights))
            # The chain of 30 steps is not quite N(0, SPREAD).
            assert abs(found - evidence) < 5 * error + 0.05
    assert spreads[0] < 1.0
    assert spreads[0] < spreads[1]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"inflation": 0.0}, "inflation > 0; got 0.0"),
        ({"mask": np.ones((3, 2), bool), "value": np.zeros((3, 2))}, r"a mask of shape \(m,\); got shape \(3, 2\)"),
        ({"matrix": np.eye(3), "value": np.zeros(3)}, "rows of 3 numbers and errors of 2"),
        ({"value": np.array([np.nan, 1.0])}, "value"),
        ({"noise_scale": 0.0}, "noise_scale > 0"),
    ],
)
def test_what_does_not_fit_is_named(options, match):
    with pytest.raises(ValueError, match=match):
        CovarianceGuidance(**{"matrix": MATRIX, "value": Y, "noise_scale": NOISE, "errors": ERRORS, **options})


def test_a_chain_with_a_batch_and_bits_have_no_error_covariance():
    with pytest.raises(ValueError, match=r"a chain of one x; got batch_shape \(3,\)"):
        error_covariance(jax.random.key(0), CHAIN.expand((3,)))
    kernel = nd.BernoulliKernel(nd.schedules.constant_fraction(3))
    bits = nd.ReverseChain(kernel, nd.Transition(lambda params, x_t, t, context: 0.0 * x_t, None, (2,)))
    with pytest.raises(TypeError, match="a kernel of real states for error_covariance"):
        error_covariance(jax.random.key(0), bits)
    with pytest.raises(ValueError, match="rank to be an integer >= 1; got 0"):
        error_covariance(jax.random.key(0), CHAIN, rank=0)
    with pytest.raises(ValueError, match=r"factor \(T, d, q\) and diagonal \(T, d\)"):
        ErrorCovariance(jnp.zeros((4, 2, 1)), jnp.ones((4, 3)))


def test_a_long_computation_shows_a_bar_that_can_be_turned_off(monkeypatch, capsys):
    monkeypatch.setattr("numpyro_diffusion.guidance.measured_errors._SECONDS_BEFORE_BAR", 0.0)
    error_covariance(jax.random.key(0), CHAIN, num_draws=4, batch_size=2, progress_bar=False)
    assert capsys.readouterr().err == ""
    error_covariance(jax.random.key(0), CHAIN, num_draws=4, batch_size=2)
    assert "errors of the network" in capsys.readouterr().err
    monkeypatch.undo()
    error_covariance(jax.random.key(0), CHAIN, num_draws=4, batch_size=2)
    assert capsys.readouterr().err == ""
