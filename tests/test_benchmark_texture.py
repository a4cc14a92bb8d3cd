"""The texture benchmark: what is held out stays unseen, pieces suffice, the statistics see what they should."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from measured_errors import Mean, check
from test_benchmark_problems import load

import numpyro_diffusion as nd

texture = load("texture_problem")
benchmark = load("texture_inpainting")


def test_patches_never_touch_the_held_out_image():
    numbers = np.arange(512 * 512, dtype=np.int32).reshape(512, 512)  # every pixel its own
    strips, image = texture.divide(numbers)
    assert image.shape == (texture.SIDE, texture.SIDE)
    assert sum(strip.size for strip in strips) + image.size == numbers.size
    drawn = np.unique(texture.patches(strips, 300, 64, jax.random.key(0)))
    assert not np.isin(drawn, image).any()
    assert len(drawn) > 0.9 * (numbers.size - image.size)


def test_patches_come_from_each_strip_as_often_as_it_has_places():
    strips = [jnp.zeros((20, 12)), jnp.ones((12, 44))]  # 13 * 5 = 65 places and 5 * 37 = 185
    drawn = texture.patches(strips, 250, 8, jax.random.key(0))
    assert drawn.shape == (250, 8, 8, 1)
    assert int(drawn[:, 0, 0, 0].sum()) == 185


@pytest.fixture(scope="module")
def small_network():
    """A network of two layers at three scales whose readout is not zero: blocks of 4 pixels, 8 pixels of reach."""
    kernel = nd.GaussianKernel(nd.schedules.log_snr(5))
    network = texture.network(kernel, conv_layers=2, conv_width=4, num_scales=3, pixel_layers=1, pixel_width=4)
    init = hk.transform(network).init
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((8, 8, 1)), jnp.array(1))
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * random.standard_normal(leaf.shape), leaf.dtype), shapes)
    return network, nd.Transition(nd.modules.HaikuFunction(network), params, (8, 8, 1))


def inside(transition, x, piece, hole):
    """The network's output in the hole, from a piece of x."""
    outputs = jax.jit(lambda x: transition(x, jnp.array(3)))(x[piece, piece])
    inner = slice(hole.start - piece.start, hole.stop - piece.start)
    return np.stack([np.asarray(output)[inner, inner] for output in outputs])


def test_the_piece_around_the_hole_gives_the_whole_images_reverse_step_in_it_and_no_smaller_piece_does(small_network):
    network, transition = small_network
    side, hole_side = 58, 14  # a hole from 22 to 36: its blocks begin at 20, the piece at 20 - 8 = 12
    hole, whole = slice(22, 36), slice(0, side)
    piece = texture.crop_around_hole(network, side, hole_side)
    assert (piece.start, piece.stop) == (12, 44)
    x = jax.random.normal(jax.random.key(2), (side, side, 1))
    wanted = inside(transition, x, whole, hole)
    np.testing.assert_allclose(inside(transition, x, piece, hole), wanted, rtol=1e-5, atol=1e-5)
    for smaller in (slice(piece.start + 4, piece.stop), slice(piece.start, piece.stop - 4)):
        assert np.abs(inside(transition, x, smaller, hole) - wanted).max() > 1e-3


def test_the_piece_of_the_benchmark_begins_at_a_block_and_has_a_border_on_every_side():
    network = texture.network(nd.GaussianKernel(nd.schedules.log_snr(5)))
    piece, (hole, _) = texture.crop_around_hole(network, texture.SIDE, texture.HOLE), texture.hole()
    assert piece.start % 8 == 0
    assert (piece.start, piece.stop) == (64, 232)
    assert piece.start <= hole.start - 32
    assert piece.stop >= hole.stop + 32


@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_the_border_jump_of_a_slope_is_one_and_an_offset_adds_in_squares(offset):
    slope = np.add.outer(np.arange(20.0), np.arange(20.0))  # every step is 1
    box = (slice(5, 12), slice(6, 15))
    slope[box] += offset
    assert texture.border_jump(slope, box) == pytest.approx(np.sqrt(1 + offset**2))


def test_moved_boxes_are_eight_others_of_one_size_that_do_not_overlap():
    image = np.arange(90 * 90).reshape(90, 90)
    box = (slice(30, 60), slice(30, 60))
    pieces = [image[other] for other in (box, *texture.moved_boxes(box, 30))]
    assert {piece.shape for piece in pieces} == {(30, 30)}
    assert len(np.unique(np.concatenate(pieces))) == image.size


def test_the_statistics_tell_shuffled_pixels_grey_and_blur_from_texture_but_not_texture_from_itself():
    image = np.asarray(texture.problem("gravel", 0).image)[..., 0]
    box = (slice(120, 180), slice(120, 180))
    truth = image[box]
    floors = [texture.distances(image[other], truth) for other in texture.moved_boxes(box, 60)[:4]]
    assert texture.distances(truth, truth) == {"patches": 0.0, "gradients": 0.0}
    shuffled = np.random.default_rng(0).permutation(truth.ravel()).reshape(truth.shape)
    blurred = (truth + np.roll(truth, 1, 0) + np.roll(truth, 1, 1) + np.roll(truth, (1, 1), (0, 1))) / 4
    for wrong in (shuffled, np.full_like(truth, truth.mean())):
        for statistic, value in texture.distances(wrong, truth).items():
            assert value > 1.25 * max(floor[statistic] for floor in floors), statistic
    assert texture.distances(blurred, truth)["gradients"] > 1.5 * max(floor["gradients"] for floor in floors)
    filled = image.copy()
    filled[box] = shuffled
    assert texture.border_jump(filled, box) > 1.5 > 1.25 > texture.border_jump(image, box)


def independent_pixels(params, x_t, t, context):
    """The reverse step for white noise of variance 1."""
    return jnp.zeros_like(x_t)


def test_the_exact_product_keeps_what_is_known_and_the_filter_finds_its_evidence(monkeypatch):
    monkeypatch.setattr(benchmark, "NOISE", 1.0)  # at .05 few of so few particles would be left
    kernel = nd.GaussianKernel(nd.schedules.log_snr(10), variance="upper")
    prior = nd.Diffusion(kernel, nd.Transition(independent_pixels, None, (8, 8, 1)))
    image = jnp.linspace(-1, 1, 9).reshape(3, 3, 1)
    known = jnp.ones((3, 3, 1), bool).at[1:, 1:].set(False)
    drawn = benchmark.exact_product(prior, image, known, 3, jax.random.key(0))
    assert (drawn[:, known] == image[known]).all()
    assert (drawn[:, ~known].std(0) > 0.1).all()

    key = jax.random.key(1)
    smc = benchmark.twisted_smc(prior, image, known, 1000, 8, key)
    y = image[known] + jax.random.normal(jax.random.split(key)[0], (5,))
    exact = dist.Normal(0, 2**0.5).log_prob(y).sum()  # seen are five pixels N(0, 1) with noise N(0, 1)
    whole = exact + 4 * dist.Normal(0, 2**0.5).log_prob(0.0)  # if the four pixels of the hole counted as seen
    check(Mean(np.asarray(smc.log_evidence), np.asarray(smc.log_evidence_error)), exact, refused=whole)
    entry = benchmark.filter_record(smc, 1.0, {"texture": "gravel"})
    assert 1 <= entry["value"] <= entry["baseline"] == 1000
