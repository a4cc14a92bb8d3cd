"""Images to a prior in their units: grey levels, shapes that no U-Net halves, borders that never change, bits."""

import jax
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.learning.look import look_at, space_for
from numpyro_diffusion.learning.rows import split_rows

KERNEL = nd.GaussianKernel(nd.schedules.log_snr(6, 0.02, 20.0), parameterization="x0", variance="denoiser")
NETWORK = nd.networks.GaussianSkipUNet(KERNEL.schedule.log_snr[1:], width=4, num_levels=2, num_time_features=2)
QUICK = {"num_steps": 20, "every": 10, "batch_size": 16, "progress_bar": False, "rng_key": jax.random.key(0)}
DIGITS = nd.datasets.digits().images[:600]


@pytest.fixture(scope="module")
def learned():
    return nd.learn_prior(DIGITS, kernel=KERNEL, network=NETWORK, **QUICK)


def space_of(images, kernel=None, network=None):
    found = look_at(images, None, "real", "refuse", None)
    rng = np.random.default_rng(0)
    split, _ = split_rows(found.values, 0.2, 0.2, rng=rng)
    learned = [split["train"], split["validation"]]
    return found, space_for(found, np.concatenate(learned), learned, kernel, network, "auto", rng, jax.random.key(1))


def test_draws_have_the_shape_and_the_grey_levels_of_digits(learned):
    draws = np.asarray(learned.distribution.sample(jax.random.key(1), (100,)))
    assert draws.shape == (100, 8, 8, 1)
    np.testing.assert_allclose(draws.mean(), DIGITS.mean(), atol=1.5)
    np.testing.assert_allclose(draws.std(), DIGITS.std(), rtol=0.3)
    assert -25 < draws.min() < draws.max() < 41  # four standard deviations about the mean


def test_the_report_says_what_was_done_and_compares_by_a_test(learned):
    report = learned.report
    assert "'pixels' (1)" in str(report)
    assert "one shift and one scale for all" in str(report)
    assert report.two_sample is not None
    assert list(report.baselines) == ["the Gaussian it starts from", "one Gaussian", "independent product"]
    assert report.prior.num_dimensions == 64


def test_images_are_no_worse_than_the_gaussian_that_the_network_starts_from(learned):
    difference = learned.report.minus("the Gaussian it starts from")
    assert learned.report.residual in (0, 0.25, 0.5, 0.75, 1)
    assert difference.nats > -3 * difference.standard_error - 1e-2


def test_the_code_does_the_same_by_hand(learned):
    code = learned.report.code.replace("kernel = ...", "kernel = KERNEL").replace("network = ...", "network = NETWORK")
    names = {"data": DIGITS, "rng_key": jax.random.key(0), "report": learned.report}
    names |= {"KERNEL": KERNEL, "NETWORK": NETWORK}
    exec(code, names)  # noqa: S102
    np.testing.assert_allclose(names["result"].validation_losses, learned.fit.validation_losses, rtol=1e-3)
    ours, theirs = (np.asarray(one.sample(jax.random.key(2), (20,))) for one in (learned.distribution, names["prior"]))
    np.testing.assert_allclose(theirs, ours, atol=0.3)  # of 16 grey levels


def test_it_comes_back_from_a_file(learned, tmp_path):
    learned.save(tmp_path / "prior.nd")
    key = jax.random.key(3)
    np.testing.assert_array_equal(
        nd.load(tmp_path / "prior.nd").sample(key, (3,)), learned.distribution.sample(key, (3,))
    )


@pytest.mark.parametrize("shape", [(8, 8, 1), (16, 16, 1), (28, 28, 1), (7, 9, 3)])
def test_the_default_network_keeps_to_any_size(shape):
    """Traced, not trained: odd sizes are filled up where they are halved, and cut where they are doubled."""
    images = np.random.default_rng(0).integers(0, 256, (20, *shape)).astype(np.uint8)
    _, space = space_of(images)
    assert isinstance(space.plan.network, nd.networks.GaussianSkipUNet)
    function = nd.modules.HaikuFunction(space.plan.network)
    x_t, t = jax.ShapeDtypeStruct((2, *shape), "float32"), jax.ShapeDtypeStruct((2,), "int32")
    params, _ = jax.eval_shape(lambda x_t, t: function.init(jax.random.key(0), x_t, t, None), x_t, t)
    mean, variance = jax.eval_shape(lambda params, x_t, t: function(params, x_t, t, None), params, x_t, t)
    assert mean.shape == variance.shape == (2, *shape)
    z = space.z(np.arange(20))
    np.testing.assert_allclose([z.mean(), z.std()], [0, 1], atol=0.1)
    np.testing.assert_allclose(images, space.noisy(np.arange(20)), atol=0.5)


def test_binary_images_have_a_bernoulli_kernel_and_a_u_net():
    bits = (DIGITS[:100] > 7).astype(np.uint8)
    found, space = space_of(bits)
    assert isinstance(space.plan.kernel, nd.BernoulliKernel)
    assert isinstance(space.plan.network, nd.networks.UNet)
    assert np.shape(space.plan.kernel.rate) == (8, 8, 1)
    assert "Bernoulli" in str(found.did)
    kernel = nd.BernoulliKernel(nd.schedules.constant_fraction(3), rate=space.plan.kernel.rate)
    network = nd.networks.UNet(3, 1, width=4, num_levels=1, attention=False, num_time_features=2)
    learned = nd.learn_prior(bits, kernel=kernel, network=network, **{**QUICK, "num_steps": 4, "every": 2})
    draws = np.asarray(learned.distribution.sample(jax.random.key(1), (20,)))
    assert draws.shape == (20, 8, 8, 1)
    assert set(np.unique(draws)) <= {0, 1}
    assert np.isfinite(learned.report.minus("independent product").nats)


def test_pixels_that_are_the_same_in_all_images_are_told():
    digits, _ = space_of(DIGITS)
    constant = int((DIGITS.min(0) == DIGITS.max(0)).sum())
    assert constant > 0
    assert any(f"{constant} of 64 pixels are the same in all images: draws, rounded" in words for words in digits.did)
    padded = np.pad(np.random.default_rng(0).normal(size=(30, 5, 5, 1)), ((0, 0), (1, 1), (1, 1), (0, 0)))
    floats, space = space_of(padded)
    assert any("24 of 49 pixels are the same in all images, where no density exists" in w for w in floats.warnings)
    assert np.isfinite(space.z(np.arange(30))).all()
    with pytest.raises(ValueError, match="values that vary; got constant columns only"):
        space_of(np.full((20, 2, 2, 1), 3.0))


def test_channels_that_come_first_are_told():
    images = np.random.default_rng(0).normal(size=(20, 3, 8, 8))
    assert "if the channels come first, move them last" in look_at(images, None, "real", "refuse", None).warnings[0]
    moved = look_at(np.moveaxis(images, 1, 3), None, "real", "refuse", None)
    assert not moved.warnings


def test_what_is_no_set_of_images_is_refused():
    images = np.random.default_rng(0).normal(size=(20, 4, 4, 1))
    images[3, 1, 2, 0] = np.nan
    with pytest.raises(ValueError, match=r"got nan in index \(3, 1, 2, 0\) \(1 of 20 rows"):
        look_at(images, None, "real", "refuse", None)
    assert len(look_at(images, None, "real", "drop", None).values) == 19
    with pytest.raises(ValueError, match=r"got shape \(20, 4, 4\).*grey images by data\[..., None\]"):
        look_at(images[..., 0], None, "real", "refuse", None)
