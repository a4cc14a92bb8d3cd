"""Dead leaves: covered, of the distribution they claim at every pixel, with the covariance of the closed form.

Error budget: 20,000 images from a fixed key, every statistic within 5 of its exact standard errors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from numpyro_diffusion import datasets
from numpyro_diffusion.datasets.dead_leaves import _expected_leaves, _radii

IMAGES, RADII = 20_000, {"min_radius": 1.5, "max_radius": 4.0, "exponent": 3.0}


@pytest.fixture(scope="module")
def images():
    return np.asarray(datasets.dead_leaves(jax.random.key(0), IMAGES, size=7, **RADII))[..., 0].astype(np.float64)


def mean_over_radii(function, radii):
    """Expectation under the density r^-exponent between the bounds, by quadrature."""
    low, high, exponent = radii.values()
    kinks = np.linspace(low, high, 20)[1:-1]  # of the area in common, near enough
    weighted, norm = (
        integrate.quad(lambda r, f=f: f(r) * r**-exponent, low, high, points=kinks)[0] for f in (function, np.ones_like)
    )
    return weighted / norm


def area_in_common(radius, distance):
    """Of a disc and of itself shifted."""
    half = min(distance / (2 * radius), 1)
    return 2 * radius**2 * (np.arccos(half) - half * np.sqrt(1 - half**2))


def probability_to_share(distance, radii=RADII):
    common, area = (mean_over_radii(lambda r, d=d: area_in_common(r, d), radii) for d in (distance, 0))
    return common / (2 * area - common)


def test_every_pixel_belongs_to_a_leaf_also_when_that_takes_many():
    x = np.asarray(datasets.dead_leaves(jax.random.key(1), 50, size=8, min_radius=0.6, max_radius=0.6))
    assert _expected_leaves(8, 0.6, 0.6, 3.0) > 300  # several blocks
    assert (x != 0).all()
    assert all(len(np.unique(image)) > 40 for image in x)  # discs of at most two pixels


def test_leaves_larger_than_the_image_leave_it_constant():
    x = np.asarray(datasets.dead_leaves(jax.random.key(2), 100, size=4, min_radius=1e5, max_radius=1e5))
    assert (x == x[:, :1, :1]).all()
    assert len(np.unique(x)) == 100


@pytest.mark.parametrize("pixel", [(0, 0), (3, 3), (6, 0), (2, 6)])
def test_every_pixel_is_uniform_with_mean_zero_and_variance_one(images, pixel):
    x = images[:, pixel[0], pixel[1]]
    assert abs(x.mean()) < 5 / np.sqrt(IMAGES)
    assert abs((x**2).mean() - 1) < 5 * np.sqrt(0.8 / IMAGES)  # E x^4 = 9 / 5
    assert stats.kstest(x, stats.uniform(-np.sqrt(3), 2 * np.sqrt(3)).cdf).pvalue > 1e-5


@pytest.mark.parametrize(
    ("pixel", "other"),
    [
        ((0, 0), (0, 1)),
        ((3, 3), (3, 4)),
        ((5, 6), (6, 6)),
        ((0, 0), (3, 0)),
        ((3, 2), (3, 5)),
        ((0, 0), (4, 3)),
        ((1, 6), (5, 3)),
        ((0, 0), (6, 6)),
    ],
)
def test_two_pixels_share_a_leaf_as_often_as_the_closed_form_says_everywhere(images, pixel, other):
    exact = probability_to_share(np.hypot(*np.subtract(pixel, other)))
    x, y = images[:, pixel[0], pixel[1]], images[:, other[0], other[1]]
    assert abs((x == y).mean() - exact) < 5 * np.sqrt(exact * (1 - exact) / IMAGES) + 1e-9
    # Var(x y) = E x^4 - exact^2 where they share, E x^2 E y^2 where they do not.
    assert abs((x * y).mean() - exact) < 5 * np.sqrt((1.8 * exact + (1 - exact) - exact**2) / IMAGES)


def test_what_is_covered_stays_when_more_leaves_come():
    radii = {"min_radius": 0.75, "max_radius": 20.0, "exponent": 3.0}
    assert _expected_leaves(2, *radii.values()) > 300  # several blocks
    x = np.asarray(datasets.dead_leaves(jax.random.key(5), IMAGES, size=2, **radii))[..., 0]
    exact = probability_to_share(1, radii)
    for pair in (x[:, 0], x[:, 1], x[:, :, 0], x[:, :, 1]):
        assert abs((pair[:, 0] == pair[:, 1]).mean() - exact) < 5 * np.sqrt(exact * (1 - exact) / IMAGES)


def test_pixels_further_apart_than_the_largest_leaf_share_none(images):
    assert probability_to_share(np.hypot(6, 6)) == 0
    assert probability_to_share(1) > 0.5
    assert not (images[:, 0, 0] == images[:, 6, 6]).any()


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.0 + 1e-7, 2.5, 3.0, 40.0])
def test_radii_have_the_power_law(exponent):
    u = np.linspace(0, 0.99, 12)
    radii = np.asarray(_radii(jnp.asarray(u), 1.5, 4.0, exponent))
    norm = integrate.quad(lambda r: (r / 1.5) ** -exponent, 1.5, 4)[0]
    cdf = [integrate.quad(lambda r: (r / 1.5) ** -exponent, 1.5, r)[0] / norm for r in radii]
    np.testing.assert_allclose(cdf, u, atol=4e-5)
    pixel_covered = np.pi * integrate.quad(lambda r: r**2 * (r / 1.5) ** -exponent, 1.5, 4)[0] / norm / 14**2
    assert _expected_leaves(7, 1.5, 4.0, exponent) == pytest.approx((1 + np.log(49)) / pixel_covered)


def test_noise_keeps_the_variance_and_lowers_the_covariance():
    settings = {"size": 2, "noise": 1.0, **RADII}
    x = np.asarray(datasets.dead_leaves(jax.random.key(3), IMAGES, **settings))[..., 0].astype(np.float64)
    error = 5 * np.sqrt(2 / IMAGES)  # of squares and of products: their variances are at most 2
    assert abs((x**2).mean(0) - 1).max() < error
    assert abs((x[:, 0, 0] * x[:, 0, 1]).mean() - probability_to_share(1) / 2) < error
    assert len(np.unique(x)) > 0.99 * x.size


def test_images_differ_and_the_same_key_gives_the_same_ones():
    x = datasets.dead_leaves(jax.random.key(4), 3, size=4, **RADII)
    assert x.shape == (3, 4, 4, 1)
    assert len(np.unique(x[:, 0, 0])) == 3
    np.testing.assert_array_equal(x, datasets.dead_leaves(jax.random.key(4), 3, size=4, **RADII))


def test_double_precision(x64):
    assert datasets.dead_leaves(jax.random.key(4), 1, size=2, **RADII).dtype == np.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_images": 0}, "num_images to be an integer >= 1; got 0. Pass the number"),
        ({"size": 8.0}, "size to be an integer >= 1; got 8.0. Pass the pixels"),
        ({"min_radius": 0.0}, "0 < min_radius <= max_radius; got min_radius=0.0"),
        ({"min_radius": 20.0}, "got min_radius=20.0 and max_radius=16.0. They are radii"),
        ({"max_radius": np.inf}, "max_radius=inf"),
        ({"min_radius": np.nan}, "min_radius=nan"),
        ({"exponent": -1.0}, "exponent >= 0; got -1.0. Radii have"),
        ({"exponent": np.nan}, "exponent >= 0; got nan"),
        ({"noise": -0.1}, "noise >= 0; got -0.1. It is"),
        ({"noise": np.nan}, "noise >= 0; got nan"),
        ({"min_radius": 0.01}, r"leaves of which 1e\+06 cover an image; got .*Raise min_radius"),
    ],
)
def test_bad_arguments_are_named(no_type_checks, changes, message):
    with pytest.raises(ValueError, match=message):
        datasets.dead_leaves(jax.random.key(0), **{"num_images": 2, **changes})
