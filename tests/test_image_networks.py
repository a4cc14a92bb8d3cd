"""Networks of images: the paper's formulas, any size, half precision, and memory given up for time."""

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from scipy.signal import correlate2d
from test_networks import initialised

import numpyro_diffusion as nd
from numpyro_diffusion.modules import HaikuFunction
from numpyro_diffusion.networks import MultiScaleConv, UNet
from numpyro_diffusion.networks.common import bump_features
from numpyro_diffusion.networks.images import GroupNorm, enlarge, from_patches, shrink, to_patches, to_rows

CONV = MultiScaleConv(5, 2, conv_layers=2, conv_width=3, num_scales=2, pixel_width=4, num_bumps=3)
UNET = UNet(5, 2, width=4, num_levels=2, num_time_features=2)
NETWORKS = {
    "convolutions": CONV,
    "dense": MultiScaleConv(5, 1, conv_layers=0, dense_layers=2, dense_width=5, pixel_width=4, num_bumps=3),
    "both, grey": dataclasses.replace(CONV, dense_layers=1, event_dim=2),
    "U-Net": UNET,
    "U-Net, grey": UNet(5, 1, width=4, num_levels=1, attention=False, num_time_features=2, event_dim=2),
    "U-Net of patches": dataclasses.replace(UNET, patch_size=2),
}


BATCH_OF_T = jnp.array([[1, 2, 5], [5, 1, 4]])


def trained_on_and_shape(network):
    """Networks of patches are trained on one size and run on another, which no power of two divides."""
    of_patches = not getattr(network, "dense_layers", 0)
    sizes = ((8, 8), (3, 5)) if of_patches else ((4, 6), (4, 6))
    return [(*size, 2) if network.event_dim == 3 else size for size in sizes]


def batch_and_params(network):
    trained_on, shape = trained_on_and_shape(network)
    function, params = initialised(network, trained_on)
    return function, params, jax.random.normal(jax.random.key(2), (*BATCH_OF_T.shape, *shape))


@pytest.mark.parametrize("name", NETWORKS)
def test_time_broadcasts_from_a_scalar_to_the_full_batch(name):
    """And a network of patches runs on another size than it has its parameters from."""
    network, t = NETWORKS[name], BATCH_OF_T
    function, params, x = batch_and_params(network)
    full = function(params, x, t, None)
    assert isinstance(full, tuple) == (network.num_outputs > 1)
    by_row = [function(params, x[i, j], t[i, j], None) for i in range(2) for j in range(3)]
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows).reshape(x.shape), *by_row)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), full, stacked)
    assert all(np.isfinite(output).all() for output in jax.tree.leaves(full))
    assert not np.allclose(
        jax.tree.leaves(full)[0][0, 0], jax.tree.leaves(function(params, x[0, 0], t[1, 0], None))[0]
    )  # the time matters


def test_rows_that_belong_to_images_broadcast_over_the_leading_axes():
    """For all networks of images: t and context come to them in this way alone."""
    t, batch_shape = jnp.array([1, 2, 5]), (2, 3)
    np.testing.assert_array_equal(to_rows(t, batch_shape), [1, 2, 5, 1, 2, 5])
    np.testing.assert_array_equal(to_rows(t[0], batch_shape), [1])
    context = jnp.arange(12).reshape(3, 2, 2)
    np.testing.assert_array_equal(to_rows(context, batch_shape, 2), np.tile(np.arange(12).reshape(3, 4), (2, 1)))
    np.testing.assert_array_equal(to_rows(context[0], batch_shape, 2), [[0, 1, 2, 3]])


def test_bumps_are_the_papers_formula():
    centres, width = np.array([0.0, 4.0, 8.0]), 4.0
    t = np.arange(1, 9)
    bumps = np.exp(-((t[:, None] - centres) ** 2) / (2 * width**2))
    np.testing.assert_allclose(bump_features(jnp.asarray(t), 8, 3), bumps / bumps.sum(-1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(bump_features(jnp.asarray(t), 8, 1), np.ones((8, 1)))


def test_convolutional_pathway_is_the_papers_formula():
    """Mean pool, convolve, upsample, sum, softplus; 1 x 1 tanh; readouts mixed by bumps: by hand, in NumPy."""
    network = dataclasses.replace(CONV, conv_layers=1, pixel_layers=1, num_outputs=1)
    function, params = initialised(network, (4, 6, 1))
    image = np.random.default_rng(0).normal(size=(4, 6))
    pooled = image.reshape(2, 2, 3, 2).mean((1, 3))
    total = 0.0
    for scale, source in enumerate((image, pooled)):
        layer = params[f"conv_0_scale_{scale}"]
        maps = [correlate2d(source, np.asarray(layer["w"])[:, :, 0, c], "same") + layer["b"][c] for c in range(3)]
        total = total + np.kron(np.stack(maps, -1), np.ones((2**scale, 2**scale, 1)))
    hidden = np.log1p(np.exp(total))
    hidden = np.tanh(hidden @ np.asarray(params["pixel_0"]["w"])[0, 0] + params["pixel_0"]["b"])
    readouts = np.einsum("hwf,jfo->hwjo", hidden, params["~"]["readout_w"]) + params["~"]["readout_b"]
    expected = np.einsum("hwjo,j->hwo", readouts, np.asarray(bump_features(jnp.asarray(4), 5, 3)))
    output = function(params, jnp.asarray(image[..., None], jnp.float32), jnp.asarray(4), None)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_dense_pathway_sees_the_whole_image_and_convolutions_only_a_neighbourhood():
    for network, reach in ((NETWORKS["dense"], True), (dataclasses.replace(CONV, conv_layers=1, num_scales=1), False)):
        function, params = initialised(network, (8, 8, 1))
        corner = lambda x: jax.tree.leaves(function(params, x, jnp.asarray(2), None))[0][0, 0, 0]  # noqa: B023
        gradient = jax.grad(corner)(jnp.ones((8, 8, 1)))
        assert (gradient[-1, -1, 0] != 0) == reach
        assert gradient[1, 1, 0] != 0


def test_inside_a_larger_image_convolutions_do_the_same():
    function, params = initialised(dataclasses.replace(CONV, conv_layers=1), (12, 12, 1))
    large = jax.random.normal(jax.random.key(3), (24, 24, 1))
    whole = function(params, large, jnp.asarray(2), None)[0]
    part = function(params, large[4:16, 4:16], jnp.asarray(2), None)[0]
    np.testing.assert_allclose(part[4:-4, 4:-4], whole[8:12, 8:12], rtol=1e-4, atol=1e-5)


def test_the_paper_kernel_starts_at_the_forward_variance():
    kernel = nd.GaussianKernel(nd.schedules.log_snr(5), parameterization="paper")
    function = HaikuFunction(dataclasses.replace(CONV, conv_layers=1, num_scales=1))
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 1))

    @jax.jit
    def variance(key):
        params, _ = function.init(key, x, jnp.ones((1,), int), None)
        return nd.ReverseChain(kernel, nd.Transition(function, params, (4, 4, 1))).reverse(x, jnp.asarray(3)).variance

    np.testing.assert_allclose(variance(jax.random.key(1)), np.full(x.shape, kernel.schedule.beta[3]), rtol=1e-5)


def test_unet_starts_at_zero_and_uses_its_context():
    network = dataclasses.replace(UNET, num_levels=1, attention=False)
    function = HaikuFunction(network)
    example = (jnp.ones((2, 4, 4, 1)), jnp.ones((2,), int), jnp.zeros((2, 3)))
    for output in jax.jit(lambda key: function(function.init(key, *example)[0], *example))(jax.random.key(0)):
        assert (output == 0).all()
    function, params = initialised(network, (4, 4, 1), jnp.zeros((1, 3)))
    x, t = jnp.ones((2, 2, 4, 4, 1)), jnp.asarray(1)
    context = jnp.zeros((2, 2, 3)).at[0, 1].set(1.0)
    output = function(params, x, t, context)[0]
    assert not np.allclose(output[0, 1], output[0, 0])
    np.testing.assert_allclose(output[1], output[[0, 0], [0, 0]], rtol=1e-5, atol=1e-6)


def test_attention_lets_every_pixel_see_all_others():
    for attention in (True, False):
        network = dataclasses.replace(UNET, attention=attention, num_levels=1)
        function, params = initialised(network, (12, 12, 1))
        if attention:
            params["attention_output"]["w"] *= 100  # so that its part is not small beside the rest
        x = jax.random.normal(jax.random.key(1), (12, 12, 1))
        # Group norm sees the whole image too, but by two numbers: a swap of two far pixels leaves these as they are.
        swapped = x.at[0, 0].set(x[0, 1]).at[0, 1].set(x[0, 0])
        outputs = [function(params, image, jnp.asarray(2), None)[0][-1, -1] for image in (x, swapped)]
        difference = float(jnp.abs(outputs[0] - outputs[1]).max())
        assert (difference > 1e-3) == attention


@pytest.mark.parametrize("name", ["both, grey", "U-Net"])
def test_half_precision_keeps_parameters_and_outputs_in_single(name):
    network = NETWORKS[name]
    function, params, x = batch_and_params(network)
    half, half_params, _ = batch_and_params(dataclasses.replace(network, bfloat16=True))
    jax.tree.map(np.testing.assert_array_equal, params, half_params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half_params)} == {"float32"}
    outputs, half_outputs = function(params, x, BATCH_OF_T, None), half(params, x, BATCH_OF_T, None)
    for exact, rounded in zip(outputs, half_outputs, strict=True):
        assert rounded.dtype == jnp.float32
        scale = float(jnp.abs(exact).max())
        # bfloat16 has 8 bits: some ten roundings of 2^-9, not none.
        assert 1e-5 * scale < float(jnp.abs(exact - rounded).max()) < 0.1 * scale


ONE_OF_EACH_LAYER = {
    "convolutions": dataclasses.replace(CONV, conv_layers=1),
    "U-Net": dataclasses.replace(UNET, num_levels=1, attention=False),
}


@pytest.mark.parametrize("name", ONE_OF_EACH_LAYER)
def test_checkpointing_keeps_less_for_the_same_gradient(name):
    network = ONE_OF_EACH_LAYER[name]
    _, params = initialised(network, (8, 8, 1))
    x, t = jax.random.normal(jax.random.key(2), (4, 8, 8, 1)), jnp.array([1, 3, 5, 2])

    def gradient_and_memory(network):
        @jax.jit
        def loss(params):
            return sum((output**2).sum() for output in HaikuFunction(network)(params, x, t, None))

        kept = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
        return jax.jit(jax.grad(loss))(params), sum(leaf.size for leaf in jax.tree.leaves(kept))

    gradient, memory = gradient_and_memory(network)
    same, less = gradient_and_memory(dataclasses.replace(network, checkpoint=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), gradient, same)
    assert less < 0.8 * memory


def test_group_norm_has_mean_zero_and_variance_one_in_groups_of_four():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 5, 6, 8))
    norm = hk.transform(lambda x: GroupNorm()(x))
    normed = jax.jit(lambda x: norm.apply(norm.init(jax.random.key(0), x), None, x))(x).reshape(2, 5, 6, 2, 4)
    np.testing.assert_allclose(normed.mean((1, 2, 4)), 0, atol=1e-5)
    np.testing.assert_allclose(normed.var((1, 2, 4)), 1, rtol=1e-4)


def test_shrinking_a_ragged_image_fills_its_edge_and_enlarging_cuts_it():
    image = jnp.arange(6.0).reshape(1, 2, 3, 1)
    small = shrink(image, 2)
    np.testing.assert_allclose(small[0, 0, :, 0], [2.0, 3.5])
    np.testing.assert_allclose(enlarge(small, 2, 2, 3)[0, :, :, 0], [[2.0, 2.0, 3.5]] * 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiScaleConv(5, conv_layers=0), "a pathway; got conv_layers=0 and dense_layers=0"),
        (lambda: MultiScaleConv(5, conv_width=0), "conv_width to be an integer >= 1; got 0"),
        (lambda: MultiScaleConv(5, num_bumps=0), "num_bumps to be an integer >= 1; got 0"),
        (lambda: UNet(5, width=6), "width to be a multiple of 4; got 6"),
        (lambda: UNet(5, num_levels=0), "num_levels to be an integer >= 1; got 0"),
        (lambda: UNet(0), "num_steps to be an integer >= 1; got 0"),
    ],
)
def test_settings_that_make_no_network_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("network", "event_shape", "message"),
    [
        (UNET, (4, 4), r"the batch shape \(\) of x_t; got shape \(1,\). Reshape the data to images, or set event_dim"),
        (dataclasses.replace(CONV, event_dim=1), (4, 4, 1), r"x_t of shape \(batch..., height, width, channels\)"),
    ],
)
def test_data_that_is_no_image_is_refused(network, event_shape, message):
    kernel = nd.GaussianKernel(nd.schedules.log_snr(5))
    with pytest.raises(TypeError, match=message), numpyro.handlers.seed(rng_seed=0):
        nd.haiku_module("net", network, kernel=kernel, event_shape=event_shape)


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_patches_are_squares_of_pixels_and_come_back(size):
    images = jax.random.normal(jax.random.key(0), (2, *size, 3))
    patches = to_patches(images, 2)
    np.testing.assert_array_equal(patches[:, 1, 2, :6], images[:, 2, 4:6].reshape(2, 6))
    np.testing.assert_array_equal(from_patches(patches, 2, *size), images)
    np.testing.assert_allclose(patches.reshape(*patches.shape[:3], 4, 3).mean(3), shrink(images, 2), rtol=1e-5)
