"""Both forms of the errors' covariance: their products against matrices, and how each is found from draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from correlated_gaussian import correlated_chain

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import ErrorCovariance, error_covariance
from numpyro_diffusion.guidance.measured_errors import _standing_out
from numpyro_diffusion.guidance.spectrum import Spectrum
from numpyro_diffusion.io.settings import describe

T, GRID = 3, (3, 2, 2)
SIZE = 12
RNG = np.random.default_rng(0)
KERNEL = nd.GaussianKernel(nd.schedules.log_snr(10, 0.1, 30.0), parameterization="x0", variance="denoiser")


def orthogonal(size):
    return jnp.asarray(np.linalg.qr(RNG.normal(size=(size, size)))[0], float)


FACTOR, DIAGONAL = jnp.asarray(RNG.normal(size=(T, SIZE, 2)), float), jnp.asarray(RNG.uniform(0.2, 1, (T, SIZE)), float)
SCALE, AXES = jnp.asarray(RNG.uniform(0.5, 2, (T, SIZE)), float), tuple(orthogonal(size) for size in GRID)
FORMS = {
    "low rank": ErrorCovariance(FACTOR, DIAGONAL),
    "stationary": ErrorCovariance(FACTOR, DIAGONAL, SCALE, AXES),
}


def dense(errors):
    inner = errors.factor @ jnp.swapaxes(errors.factor, -1, -2) + jnp.eye(SIZE) * errors.diagonal[..., None, :]
    if not errors.axes:
        return np.asarray(inner, float)
    basis = np.kron(np.kron(AXES[0], AXES[1]), AXES[2])
    return np.asarray(SCALE[..., None] * (basis.T @ inner @ basis) * SCALE[:, None, :], float)


@pytest.mark.parametrize("form", FORMS)
def test_products_are_those_of_the_matrices(form):
    errors = FORMS[form]
    wanted = dense(errors)
    np.testing.assert_allclose(errors.matrices(), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(errors.variances(), np.diagonal(wanted, axis1=1, axis2=2), rtol=1e-4)
    np.testing.assert_allclose(errors.inflated(3.0).matrices(), 3 * wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(errors.at_levels([3]).matrices(), wanted[2:], rtol=1e-4, atol=1e-5)
    values, moment = RNG.normal(size=(5, SIZE)), RNG.normal(size=(SIZE, 30))
    moment = moment @ moment.T / 30
    for t in range(1, T + 1):
        level, covariance = errors.at(t), wanted[t - 1]
        inverse = np.linalg.inv(covariance)
        np.testing.assert_allclose(level.times(jnp.asarray(values)), values @ covariance, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            level.square(jnp.asarray(values)), np.einsum("ni,ij,nj->n", values, inverse, values), rtol=1e-3
        )
        nats = (np.linalg.slogdet(covariance)[1] + np.trace(inverse @ moment)) / 2
        np.testing.assert_allclose(level.nats(jnp.asarray(moment)), nats, rtol=1e-3)
    along = np.asarray(errors.directions())
    rest = np.linalg.eigvalsh(wanted - along @ np.swapaxes(along, -1, -2))
    assert (rest > 0).all()  # what is left is a covariance


@pytest.mark.parametrize("form", FORMS)
def test_the_moves_by_an_observation_are_those_of_the_matrices(form):
    errors, noise = FORMS[form], 0.3
    rows = jnp.asarray(RNG.normal(size=(5, 1, SIZE)))
    found, residual = Spectrum(errors, rows), RNG.normal(size=5)
    matrix, one = np.asarray(rows[:, 0], float), jnp.ones(())
    for t in range(1, T + 1):
        covariance = dense(errors)[t - 1]
        gain = covariance @ matrix.T @ np.linalg.inv(matrix @ covariance @ matrix.T + noise * np.eye(5))
        shift, share = found.at(t, jnp.asarray(residual), one, noise * one)
        np.testing.assert_allclose(shift, gain @ residual, rtol=1e-3, atol=1e-4)
        left = np.diag(covariance - gain @ matrix @ covariance) / np.diag(covariance)
        np.testing.assert_allclose(share, np.clip(left, 0.02, 1), rtol=1e-3)


def test_white_errors_have_no_direction():
    """Of 300 draws in 150 coordinates the largest eigenvalue of the sample is near 2.9: noise, all of it."""
    errors = np.random.default_rng(1).normal(size=(300, 150))
    sample = jnp.asarray(errors.T @ errors / 300, jnp.float32)
    assert np.linalg.eigvalsh(sample)[-1] > 2.5
    factor, diagonal = _standing_out(sample, 300, 20)
    assert not np.asarray(factor).any()
    np.testing.assert_allclose(diagonal, jnp.diagonal(sample), rtol=1e-5)


def test_directions_that_stand_out_are_found_and_their_share_is_not_overrated():
    """Three directions with eigenvalues 12, 8, 5 among 150 coordinates, of 600 draws; by the sample 12.3, 8.3, 5.3."""
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.normal(size=(150, 3)))[0]
    true = np.eye(150) + basis @ np.diag([11.0, 7.0, 4.0]) @ basis.T
    draws = rng.normal(size=(600, 150)) @ np.linalg.cholesky(true).T
    sample = jnp.asarray(draws.T @ draws / 600, jnp.float32)
    factor, diagonal = (np.asarray(part, float) for part in _standing_out(sample, 600, 20))
    assert (factor != 0).any(0).sum() == 3
    found = factor @ factor.T + np.diag(diagonal)

    def divergence(covariance):
        inner = np.linalg.solve(covariance, true)
        return (np.trace(inner) - 150 - np.linalg.slogdet(inner)[1]) / 2

    values, directions = np.linalg.eigh(np.asarray(sample, float))
    leading = directions[:, -20:] * np.sqrt(values[-20:])
    by_rank = leading @ leading.T
    by_rank += np.diag(np.diag(sample - by_rank))
    # The sample's 20 leading directions, of which 17 are noise, cost six times as many nats.
    assert divergence(found) < 0.2 * divergence(by_rank)
    assert divergence(found) < 0.1 * divergence(np.asarray(sample, float))


def test_no_more_coordinates_than_directions_keep_all_that_was_measured():
    sample = jnp.asarray(np.cov(np.random.default_rng(3).normal(size=(5, 40))), float)
    factor, diagonal = _standing_out(sample, 40, 5)
    np.testing.assert_allclose(factor @ factor.T, sample, rtol=1e-3, atol=1e-4)
    assert float((diagonal / jnp.diagonal(sample)).max()) < 1e-3


def picture(side):
    """A covariance whose correlations depend on distances alone."""
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    return np.exp(-np.square(places[:, None] - places).sum(-1) / 2 / 1.5**2) + 0.05 * np.eye(side**2)


@pytest.mark.parametrize(
    ("shape", "options", "is_stationary"),
    [
        ((8, 8), {}, True),
        ((64,), {}, False),
        ((64,), {"image_shape": (8, 8, 1)}, True),
        ((8, 8), {"image_shape": None}, False),
    ],
    ids=["picture", "row", "row that is a picture", "not asked"],
)
def test_stationary_errors_of_a_picture_are_found_to_be_stationary(shape, options, is_stationary):
    chain, covariances = correlated_chain(picture(8), KERNEL, shape)
    found = error_covariance(jax.random.key(0), chain, num_draws=1000, rank=8, progress_bar=False, **options)
    assert bool(found.axes) == is_stationary
    exact, matrix = covariances[4], np.asarray(found.matrices()[3], float)
    exact, matrix = (each / np.sqrt(np.outer(np.diag(each), np.diag(each))) for each in (exact, matrix))
    off = np.abs(matrix - exact).mean() / np.abs(exact).mean()
    # Draws of 10 steps are not quite N(0, S), and 8 directions of pixels in a row are far from enough.
    assert off < 0.4 if is_stationary else off > 0.5


def test_errors_that_are_correlated_in_pairs_keep_the_plain_form():
    """On one side of a picture neighbours belong together, on the other each pixel is alone."""
    spread = np.eye(64)
    left = np.arange(64).reshape(8, 8)[:, :4].reshape(-1, 2)
    spread[left[:, 0], left[:, 1]] = spread[left[:, 1], left[:, 0]] = 0.95
    chain, _ = correlated_chain(spread, KERNEL, (8, 8))
    assert not error_covariance(jax.random.key(0), chain, num_draws=2000, rank=32, progress_bar=False).axes


def test_colours_have_axes_of_their_own():
    colours = np.array([[1.0, 0.9], [0.9, 1.0]])
    chain, _ = correlated_chain(np.kron(picture(6), colours), KERNEL, (6, 6, 2))
    found = error_covariance(jax.random.key(0), chain, num_draws=1000, rank=8, progress_bar=False)
    np.testing.assert_allclose(np.abs(found.axes[2]), np.sqrt(0.5), atol=0.02)


def test_a_chain_that_is_traced_keeps_the_plain_form():
    chain, _ = correlated_chain(picture(3), KERNEL, (3, 3))
    found = jax.jit(lambda chain: error_covariance(jax.random.key(0), chain, num_draws=20))(chain)
    assert found.axes == ()
    assert found.factor.shape == (10, 9, 9)


@pytest.mark.parametrize(
    ("image_shape", "match"),
    [
        ((3, 2), r"image_shape of one to three axes and 9 numbers; got \(3, 2\)"),
        ((), "one to three axes"),
        ((3, 1, 3, 1), "one to three axes"),
        ("picture", "a shape, None or 'auto' as image_shape; got 'picture'"),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_a_grid_that_does_not_fit_is_refused(image_shape, match):
    chain, _ = correlated_chain(picture(3), KERNEL)
    with pytest.raises(ValueError, match=match):
        error_covariance(jax.random.key(0), chain, num_draws=4, image_shape=image_shape)


def test_a_prior_of_one_point_is_refused():
    point = nd.Transition(lambda params, x_t, t, context: (0.0 * x_t, 0.0 * x_t), None, (3,))
    with pytest.raises(ValueError, match="a network with errors at every t; got none in all draws at t = 1"):
        error_covariance(jax.random.key(0), nd.ReverseChain(KERNEL, point), num_draws=20)


def test_a_pixel_that_never_changes_has_almost_no_variance_and_guides_nothing():
    spread = picture(5)
    spread[5] = spread[:, 5] = 0.0
    spread[5, 5] = 1e-12
    chain, _ = correlated_chain(spread, KERNEL, (5, 5))
    found = error_covariance(jax.random.key(0), chain, num_draws=400, rank=8, progress_bar=False)
    variances = np.asarray(found.variances())
    assert np.isfinite(variances).all()
    assert (variances[:, 5] < 1e-4 * variances.mean(1)).all()


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ((FACTOR, DIAGONAL, None, AXES), r"a scale of shape \(3, 12\) with axes, None without; got None"),
        ((FACTOR, DIAGONAL, SCALE), "with axes, None without"),
        ((FACTOR, DIAGONAL, -SCALE, AXES), "scale > 0"),
        ((FACTOR, DIAGONAL, SCALE, AXES[:2]), "square axes whose sizes have the product 12"),
        ((FACTOR, DIAGONAL, SCALE, (jnp.ones((12, 2)),)), "square axes"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, match):
    with pytest.raises(ValueError, match=match):
        ErrorCovariance(*parts)


def test_the_stationary_form_is_saved_and_drawn(tmp_path):
    chain, _ = correlated_chain(picture(5), KERNEL, (5, 5))
    errors = error_covariance(jax.random.key(0), chain, num_draws=400, rank=4, progress_bar=False)
    assert errors.axes
    prior = nd.Diffusion(chain.kernel, chain.transition).with_errors(errors)
    assert describe(prior)
    nd.save(prior, tmp_path / "prior")
    found = nd.load(tmp_path / "prior", network=chain.transition.function).errors
    jax.tree.map(np.testing.assert_array_equal, found, errors)
    shares = nd.plots.error_covariance(jax.random.key(1), prior)[0, 1].lines[0].get_ydata()
    assert ((shares >= 0) & (shares <= 1)).all()
