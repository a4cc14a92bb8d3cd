"""Images that packages carry, and what is done to images before a model sees them."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
from scipy import stats

from numpyro_diffusion import datasets

KEY = jax.random.key(0)


def test_digits_are_split_once_and_none_is_lost():
    train, held_out = datasets.digits(), datasets.digits(held_out=True)
    assert (train.images.dtype, train.images.max(), held_out.images.shape) == (np.uint8, 16, (257, 8, 8, 1))
    whole = sklearn.datasets.load_digits()
    rows = [np.c_[part.images.reshape(-1, 64), part.labels] for part in (train, held_out)]
    ours, theirs = np.concatenate(rows), np.c_[whole.images.reshape(-1, 64), whole.target]
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])
    np.testing.assert_array_equal(held_out.images[1, ..., 0], whole.images[10])
    assert np.bincount(held_out.labels).min() >= 20  # of 257; every class is held out about as often


@pytest.mark.parametrize("name", ["brick", "grass", "gravel"])
def test_textures_are_photographs(name):
    image = datasets.textures(name)
    assert (image.shape, image.dtype) == ((512, 512), np.uint8)
    neighbours = np.corrcoef(image[:, 1:].ravel(), image[:, :-1].ravel())[0, 1]
    assert len(np.unique(image)) > 100
    assert neighbours > 0.7


@pytest.mark.parametrize(
    ("module", "call", "message"),
    [
        ("sklearn.datasets", datasets.digits, r"scikit-learn; got no such module.*numpyro-diffusion\[datasets\]"),
        ("skimage.io", lambda: datasets.textures("grass"), r"scikit-image; got no such module.*-diffusion\[datasets\]"),
    ],
)
def test_a_missing_package_is_named_with_the_extra(monkeypatch, module, call, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=message):
        call()


def test_a_photograph_that_is_not_there_is_not_downloaded(monkeypatch, tmp_path):
    skimage = pytest.importorskip("skimage")
    monkeypatch.setattr(skimage, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(FileNotFoundError, match=r"grass\.png inside scikit-image; got no such file\. Install"):
        datasets.textures("grass")


@pytest.mark.parametrize("num_levels", [2, 17, 256, 2**16])
def test_dequantised_images_round_down_to_what_they_were(num_levels):
    levels = np.random.default_rng(0).integers(0, num_levels, (50, 20, 20, 1))
    levels[0] = num_levels - 1  # where rounding would carry over
    x = np.asarray(datasets.dequantise(KEY, levels, num_levels))
    np.testing.assert_array_equal(np.floor(x), levels)
    noise = (x - levels).ravel()
    finest = num_levels / 2**24
    assert abs(noise.mean() - 0.5) < 5 * np.sqrt(1 / 12 / noise.size) + finest
    assert stats.kstest(noise, "uniform").pvalue > 1e-5


def test_dequantise_takes_bytes_and_doubles(x64):
    x = datasets.dequantise(KEY, np.full((3, 2), 255, np.uint8), 256)
    assert x.dtype == np.float64
    assert (np.floor(x) == 255).all()


def test_standardised_images_have_one_mean_and_one_scale():
    x = np.random.default_rng(1).gamma(2.0, size=(1500, 3, 3, 2)).astype(np.float32) * 50 + 1000
    y, scaling = datasets.standardise(x)
    assert scaling.mean == pytest.approx(x.astype(np.float64).mean(), rel=1e-12)
    assert scaling.scale == pytest.approx(x.astype(np.float64).std(), rel=1e-12)
    np.testing.assert_allclose(y, (x - scaling.mean) / scaling.scale, atol=1e-5)
    np.testing.assert_array_equal(y, scaling.apply(x))
    np.testing.assert_allclose(scaling.invert(y), x, rtol=1e-6)
    held_out = scaling.apply(x[:1] + 70)  # its own mean would be taken off
    np.testing.assert_allclose(held_out - y[:1], 70 / scaling.scale, rtol=1e-3)


@pytest.mark.parametrize("channels", [(), (3,)])
def test_patches_are_crops_from_everywhere(channels):
    height, width, size, number = 7, 6, 3, 6000
    image = np.arange(height * width * int(np.prod(channels)), dtype=np.int32).reshape(height, width, *channels)
    x = np.asarray(datasets.patches(KEY, image, number, size))
    assert (x.shape, x.dtype) == ((number, size, size, *(channels or (1,))), image.dtype)
    row, column = np.divmod(x[:, 0, 0, 0] // x.shape[-1], width)
    for patch, i, j in zip(x[:200], row, column, strict=False):
        np.testing.assert_array_equal(patch, image[i : i + size, j : j + size].reshape(size, size, -1))
    counts = np.zeros((height - size + 1, width - size + 1))
    np.add.at(counts, (row, column), 1)  # a place outside is an index error
    assert stats.chisquare(counts.ravel()).pvalue > 1e-5


def test_a_patch_can_be_the_whole_image():
    image = np.arange(9.0, dtype=np.float32).reshape(3, 3)
    np.testing.assert_array_equal(datasets.patches(KEY, image, 2, 3)[..., 0], np.stack([image, image]))


GREY, FLAT = jnp.zeros((4, 4), int), jnp.ones((2, 3, 3, 1))
BAD = {
    "texture": (lambda: datasets.textures("sky"), ValueError, "one of brick, grass, gravel; got 'sky'. These"),
    "floats": (lambda: datasets.dequantise(KEY, FLAT, 256), TypeError, "integer grey levels.*got dtype float32. Deq"),
    "booleans": (lambda: datasets.dequantise(KEY, FLAT > 0, 2), TypeError, "integer grey levels.*got dtype bool"),
    "one-level": (lambda: datasets.dequantise(KEY, GREY, 1), ValueError, "num_levels to be an integer >= 2; got 1"),
    "many-levels": (lambda: datasets.dequantise(KEY, GREY, 2**17), ValueError, "num_levels <= 65536; got 131072"),
    "too-high": (lambda: datasets.dequantise(KEY, GREY + 4, 4), ValueError, "levels from 0 to 3; got 4 to 4. Pass"),
    "negative": (lambda: datasets.dequantise(KEY, GREY - 1, 4), ValueError, "levels from 0 to 3; got -1 to -1"),
    "integers": (
        lambda: datasets.standardise(GREY),
        TypeError,
        "floating-point values for images; got.*deq",
    ),
    "nan": (lambda: datasets.standardise(FLAT * jnp.nan), ValueError, "finite values for images; got 18 NaN"),
    "none": (lambda: datasets.standardise(FLAT[:0]), ValueError, r"at least one value in images; got shape \(0, 3"),
    "constant": (lambda: datasets.standardise(0.1 * FLAT), ValueError, "images that vary; got 0.1.* everywhere. A con"),
    "apply": (lambda: datasets.Scaling(0.0, 1.0).apply(GREY), TypeError, "floating-point values for images"),
    "invert": (lambda: datasets.Scaling(0.0, 1.0).invert(GREY), TypeError, "floating-point values for images.*apply"),
    "batch": (
        lambda: datasets.patches(KEY, FLAT, 1, 2),
        ValueError,
        r"\(height, width\).*got shape \(2, 3, 3, 1\)",
    ),
    "empty": (lambda: datasets.patches(KEY, GREY[:0], 1, 2), ValueError, r"got shape \(0, 4\). Pass one image"),
    "no-patches": (lambda: datasets.patches(KEY, GREY, 0, 2), ValueError, "num_patches to be an integer >= 1; got 0"),
    "no-size": (lambda: datasets.patches(KEY, GREY, 1, 0), ValueError, "size to be an integer >= 1; got 0"),
    "too-large": (
        lambda: datasets.patches(KEY, GREY[:3], 1, 4),
        ValueError,
        "size <= 3, the image's shorter.*got 4",
    ),
    "nan-image": (
        lambda: datasets.patches(KEY, jnp.nan * GREY, 1, 2),
        ValueError,
        "values for image; got 16 NaN",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(no_type_checks, name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
