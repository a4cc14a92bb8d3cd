"""The picture of a network's errors shows the numbers of their covariance, and refuses what has none."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from catalogue import affine, bernoulli
from matplotlib import pyplot as plt
from numpyro.distributions.transforms import AffineTransform

import numpyro_diffusion as nd
from numpyro_diffusion import plots
from numpyro_diffusion.guidance import ErrorCovariance

T, SIZE = 4, 6
FACTOR = np.random.default_rng(0).normal(size=(T, SIZE, 2))
DIAGONAL = np.random.default_rng(1).uniform(0.5, 2.0, size=(T, SIZE))
ERRORS = ErrorCovariance(jnp.asarray(FACTOR, jnp.float32), jnp.asarray(DIAGONAL, jnp.float32))
KERNEL = nd.GaussianKernel(nd.schedules.log_snr(T, 0.3, 10.0), parameterization="x0", variance="denoiser")
# Var[x^0 | x^t] is said to be .09 everywhere.
NETWORK = nd.Transition(lambda params, x_t, t, context: (0 * x_t, 0 * x_t + 0.09), None, (SIZE,))
PRIOR = nd.Diffusion(KERNEL, NETWORK).with_errors(ERRORS)
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _agg_and_no_figure_left():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def test_it_shows_sizes_shares_and_directions_of_the_covariance():
    axes = plots.error_covariance(KEY, PRIOR)
    matrices = FACTOR @ FACTOR.transpose(0, 2, 1) + np.eye(SIZE) * DIAGONAL[:, None]
    traces = np.trace(matrices, axis1=1, axis2=2)
    of_errors, of_steps = axes[0, 0].lines
    np.testing.assert_array_equal(of_errors.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(of_errors.get_ydata(), np.sqrt(traces / SIZE), rtol=1e-5)
    np.testing.assert_allclose(of_steps.get_ydata(), 0.3, rtol=1e-4)
    np.testing.assert_allclose(axes[0, 1].lines[0].get_ydata(), (FACTOR**2).sum((1, 2)) / traces, rtol=1e-5)
    for line, t, ax in zip(axes[0, 2].lines, (1, 2, 4), axes[1], strict=True):
        values, directions = np.linalg.eigh(FACTOR[t - 1] @ FACTOR[t - 1].T)
        np.testing.assert_allclose(line.get_ydata(), np.sqrt(values[[-1, -2]]), rtol=1e-4)
        heights = np.array([bar.get_height() for bar in ax.patches])
        np.testing.assert_allclose(np.abs(heights), np.abs(directions[:, -1]), atol=1e-4)
        assert heights[np.abs(heights).argmax()] > 0
    assert [ax.get_title() for ax in axes[1]] == ["$t = 1$", "$t = T/2$", "$t = T$"]
    axes[0, 0].figure.canvas.draw()


def test_directions_of_images_are_images_and_levels_can_be_chosen():
    _, given = plt.subplots(2, 3)
    axes = plots.error_covariance(KEY, PRIOR.chain, errors=ERRORS, t=[3], image_shape=(3, 2, 1), axes=given)
    assert axes[1, 0] is given[1, 0]
    (image,) = axes[1, 0].images
    assert image.get_array().shape == (3, 2)
    assert [ax.axison for ax in axes[1]] == [True, False, False]


def test_of_a_transformed_prior_it_shows_the_states():
    wrapped = dist.TransformedDistribution(PRIOR, AffineTransform(100.0, 5.0))
    found, wanted = (plots.error_covariance(KEY, prior)[0, 0].lines[1].get_ydata() for prior in (wrapped, PRIOR))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: plots.error_covariance(KEY, PRIOR.with_errors(None)),
            ValueError,
            "carries the covariance .*; got one without",
        ),
        (lambda: plots.error_covariance(KEY, PRIOR.chain), ValueError, "carries the covariance"),
        (lambda: plots.error_covariance(KEY, dist.Normal()), TypeError, "a Diffusion, alone or"),
        (
            lambda: plots.error_covariance(KEY, PRIOR.expand((2,))),
            ValueError,
            r"a model without a batch; got batch_shape \(2,\)",
        ),
        (
            lambda: plots.error_covariance(KEY, nd.Diffusion(bernoulli(), affine((2,)))),
            TypeError,
            "a kernel of real states for error_cov",
        ),
        (
            lambda: plots.error_covariance(KEY, PRIOR, errors=ErrorCovariance(ERRORS.factor[1:], ERRORS.diagonal[1:])),
            ValueError,
            "T = 4 steps and d = 6 coordinates; got T = 3 and d = 6",
        ),
        (lambda: plots.error_covariance(KEY, PRIOR, t=[0]), ValueError, r"integers in 1\.\.4; got \[0\]"),
        (lambda: plots.error_covariance(KEY, PRIOR, t=[1, 2, 3, 4]), ValueError, "up to three levels t"),
        (
            lambda: plots.error_covariance(KEY, PRIOR, image_shape=(2, 2)),
            ValueError,
            r"image_shape of 6 numbers; got \(2, 2\)",
        ),
        (lambda: plots.error_covariance(KEY, PRIOR, num_draws=1), ValueError, "num_draws to be an integer >= 2"),
        (lambda: plots.error_covariance(KEY, PRIOR, axes=np.empty((1, 3))), ValueError, r"axes of shape \(2, 3\)"),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_errors_say_what_was_wanted_and_what_came(call, error, match):
    with pytest.raises(error, match=match):
        call()
    assert not plt.get_fignums(), "a refused call leaves no empty figure"


def test_where_no_direction_stands_out_none_is_drawn():
    errors = ErrorCovariance(jnp.zeros_like(ERRORS.factor), ERRORS.diagonal)
    axes = plots.error_covariance(KEY, PRIOR.with_errors(errors), image_shape=(3, 2))
    assert not any(np.asarray(ax.images[0].get_array()).any() for ax in axes[1])
