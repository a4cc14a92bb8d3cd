"""Coordinates that are seen: their closed form against dense matrices, and beside the form for any observation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion import Diffusion, GaussianKernel, Transition, schedules
from numpyro_diffusion.guidance import CovarianceGuidance, ErrorCovariance
from numpyro_diffusion.guidance.seen_coordinates import SeenCoordinates, numbers_held, spectrum_of
from numpyro_diffusion.guidance.spectrum import Spectrum

T, SIZE, RANK = 3, 7, 2


def covariances(size=SIZE):
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(T, size, RANK))
    return ErrorCovariance(jnp.asarray(factor, float), jnp.asarray(rng.uniform(0.2, 1.0, (T, size)), float))


def shown(index, factors, size):
    """A of numbers that show coordinates, shape (E..., k, size)."""
    return np.asarray(factors)[..., None] * np.eye(size)[np.asarray(index)]


CASES = {
    "all": (range(SIZE), np.ones(SIZE), 1),
    "some, scaled, in another order": ([5, 0, 3, 2], np.array([0.5, 2.0, -1.0, 3.0]), 1),
    "one behind a mask": (range(SIZE), np.r_[np.ones(4), 0.0, np.ones(2)], 1),
    "elements with masks of their own": (range(SIZE), np.random.default_rng(1).integers(0, 2, (4, SIZE)), 1),
    "two blocks": (range(0, 2 * SIZE, 2), np.linspace(0.5, 2, SIZE), 2),
}


@pytest.mark.parametrize("noise", [1.0, 0.3])
@pytest.mark.parametrize("case", CASES)
def test_the_moves_are_those_of_the_covariance_matrix_and_of_the_other_form(case, noise):
    index, factors, blocks = CASES[case]
    errors = covariances()
    rows = shown(index, factors, blocks * SIZE)
    in_blocks = jnp.asarray(rows.reshape((*rows.shape[:-1], blocks, SIZE)), float)
    found = spectrum_of(errors, in_blocks, is_fixed=True, noise=noise)
    assert isinstance(found, SeenCoordinates)
    residual = jax.random.normal(jax.random.key(1), rows.shape[:-1])
    one = jnp.ones(rows.shape[:-2])
    other = Spectrum(errors, in_blocks)
    for t in range(1, T + 1):
        moves = found.at(t, residual, one, noise * one)
        for move, wanted in zip(moves, other.at(t, residual, one, noise * one), strict=True):
            np.testing.assert_allclose(move, wanted, rtol=2e-4, atol=2e-5)
        dense = np.kron(np.eye(blocks), errors.matrices()[t - 1])
        gain = np.swapaxes(rows, -1, -2) @ np.linalg.inv(
            rows @ dense @ np.swapaxes(rows, -1, -2) + noise * np.eye(rows.shape[-2])
        )
        wanted = np.einsum("dc,...ck,...k->...d", dense, gain, residual)
        np.testing.assert_allclose(moves[0], wanted, rtol=2e-4, atol=2e-5)


def test_a_batch_of_residuals_shares_what_is_known_beforehand():
    errors = covariances()
    found = spectrum_of(errors, jnp.eye(SIZE)[:, None], is_fixed=True)
    residual = jax.random.normal(jax.random.key(1), (6, SIZE))
    one = jnp.ones(())
    shift, share = found.at(2, residual, one, one)
    by_row = [found.at(2, row, one, one) for row in residual]
    np.testing.assert_allclose(shift, jnp.stack([row[0] for row in by_row]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(share, by_row[0][1], rtol=1e-5)
    at_levels = found.at(jnp.array([1, 1, 2, 2, 3, 3]), residual, one, one)[0]
    np.testing.assert_allclose(at_levels[2:4], shift[2:4], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "is_fixed"),
    [
        (jnp.eye(SIZE).at[0, 1].set(1e-3), True),
        (jnp.eye(SIZE)[jnp.array([0, 0, 1, 2])], True),
        (jnp.eye(SIZE)[:RANK], True),
        (jnp.eye(SIZE), False),
        (jnp.stack([jnp.eye(SIZE), jnp.eye(SIZE)[::-1]]), True),
    ],
    ids=["a number of two", "one twice", "few numbers", "another noise each time", "elements show different ones"],
)
def test_other_observations_keep_the_general_form(rows, is_fixed):
    errors = covariances()
    assert isinstance(spectrum_of(errors, rows[..., None, :], is_fixed=is_fixed), Spectrum)


def test_where_nothing_shall_move_nothing_does():
    errors = covariances()
    found = spectrum_of(errors, jnp.eye(SIZE)[:, None], is_fixed=True).kept_where(jnp.asarray(False))
    shift, share = found.at(1, jnp.ones(SIZE), jnp.ones(()), jnp.ones(()))
    np.testing.assert_array_equal(shift, 0)
    np.testing.assert_array_equal(share, 1)


def test_what_is_held_does_not_grow_with_the_square_of_the_pixels():
    for size in (100, 200):
        errors = covariances(size)
        rows = jnp.eye(size)[:, None]
        held = spectrum_of(errors, rows, is_fixed=True)
        counted = held.factor.size + held.diagonal.size + held.share.size
        assert counted == numbers_held(errors, rows, is_fixed=True) == T * size * (RANK + 2)
        assert numbers_held(errors, rows, is_fixed=False) == T * size * 2 * size


def test_guidance_of_all_pixels_by_the_errors_is_that_of_the_general_form():
    kernel = GaussianKernel(schedules.log_snr(T), variance="upper", parameterization="x0")
    prior = Diffusion(kernel, Transition(lambda params, x_t, t, context: 0.5 * x_t, None, (SIZE,)))
    errors = covariances()
    nearly = jnp.eye(SIZE).at[0, 1].set(1e-7)
    x_t = jax.random.normal(jax.random.key(0), (4, SIZE))
    mask = jnp.arange(SIZE) != 3
    guides = [
        CovarianceGuidance(rows, jnp.ones(SIZE), 0.4, errors=errors, mask=mask) for rows in (jnp.eye(SIZE), nearly)
    ]
    assert [type(guide.spectrum) for guide in guides] == [SeenCoordinates, Spectrum]
    steps = [guide(prior.chain, x_t, 2) for guide in guides]
    np.testing.assert_allclose(steps[0].loc, steps[1].loc, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(steps[0].scale, steps[1].scale, rtol=1e-4)
