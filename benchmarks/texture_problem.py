"""A hole in a texture: the photograph divided, a prior learned from patches, and how far a filling is from the truth.

The prior is convolutional, so what was trained on small patches runs on the whole image. With blocks of b pixels at its
coarsest scale, a network of L multi-scale layers of 3 x 3 filters sees, from a block, L blocks in each direction and no
more; :func:`crop_around_hole` is the smallest piece whose inner part has the same reverse step as in the whole image.
"""

from pathlib import Path
from typing import Any, NamedTuple

import data as fetched
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax

import numpyro_diffusion as nd

SIDE, HOLE = 300, 100  # the paper's Figure 5
NUM_STEPS, SIGMA_MIN = 100, 0.05
PATCH, NUM_PATCHES = 64, 3000
STATISTIC_PATCH = 8
TEXTURES = ("gravel", "grass", "brick", "bark")

Box = tuple[slice, slice]


class Problem(NamedTuple):
    """Arrays in units of the training part's mean and scale.

    Attributes:
        strips: what may be learned from, each (height, width, 1).
        image: (300, 300, 1), of which training sees nothing.
        known: (300, 300, 1), False in the hole.
    """

    strips: list[jax.Array]
    image: jax.Array
    known: jax.Array


def hole() -> Box:
    """The middle of the image."""
    middle = slice((SIDE - HOLE) // 2, (SIDE + HOLE) // 2)
    return middle, middle


def divide(photograph: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Strips to learn from, and the problem's 300x300: the lower right corner, which the strips stop short of.

    The strips are what is left of it in all rows, and what is above it in its own columns.
    """
    row, column = (size - SIDE for size in photograph.shape[:2])
    return [photograph[:, :column], photograph[:row, column:]], photograph[row:, column:]


def load(texture: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Grey levels of the strips and of the 300x300. The bark's are from the upper and the lower part of one oak."""
    if texture == "bark":
        upper, lower = (photographs[0, ..., 0] for photographs in fetched.load("bark"))
        return [upper], lower[:SIDE, :SIDE]
    return divide(nd.datasets.textures(texture))


def problem(texture: str, seed: int) -> Problem:
    strips, image = load(texture)
    keys = jax.random.split(jax.random.key(seed), 1 + len(strips))
    *seen, whole = (
        nd.datasets.dequantise(key, part, num_levels=256)[..., None]
        for key, part in zip(keys, [*strips, image], strict=True)
    )
    _, scaling = nd.datasets.standardise(jnp.concatenate([strip.ravel() for strip in seen]))
    known = jnp.ones((SIDE, SIDE, 1), bool).at[hole()].set(False)
    return Problem([scaling.apply(strip) for strip in seen], scaling.apply(whole), known)


def patches(strips: list[Any], num_patches: int, size: int, key: jax.Array) -> jax.Array:
    """Crops of the strips, (num_patches, size, size, 1), every place equally likely."""
    places = np.array([(strip.shape[0] - size + 1) * (strip.shape[1] - size + 1) for strip in strips])
    ends = np.round(num_patches * np.cumsum(places) / places.sum()).astype(int)
    counts = np.diff(ends, prepend=0)
    keys = jax.random.split(key, len(strips))
    parts = zip(keys, strips, counts, strict=True)
    return jnp.concatenate([nd.datasets.patches(key, strip, int(count), size) for key, strip, count in parts])


def network(kernel: nd.GaussianKernel, **settings: Any) -> nd.networks.MultiScaleConv:
    """Four scales reach over a stone of the gravel; no dense pathway, which would fix the size."""
    settings = {"conv_layers": 4, "conv_width": 24, "num_scales": 4, "pixel_width": 32, **settings}
    return nd.networks.MultiScaleConv(kernel.num_steps, kernel.num_outputs, **settings)


def learn(strips: list[jax.Array], svi_steps: int, batch_size: int, seed: int, folder: Path | None) -> nd.Diffusion:
    """The distribution of patches."""
    key_patches, key_fit = jax.random.split(jax.random.key(seed))
    kernel = nd.GaussianKernel(nd.schedules.log_snr(NUM_STEPS, SIGMA_MIN, 100.0))
    convolutions = network(kernel)

    def model(x: jax.Array, size: int) -> None:
        transition = nd.haiku_module("net", convolutions, kernel=kernel, event_shape=(PATCH, PATCH, 1))
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", nd.Diffusion(kernel, transition), obs=x)

    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, svi_steps // 20, svi_steps)
    fitted = nd.fit(
        model,
        patches(strips, NUM_PATCHES, PATCH, key_patches),
        # The loss is of the whole data set: so is the gradient that is clipped.
        optimizer=optax.chain(optax.clip_by_global_norm(100.0 * NUM_PATCHES), optax.adam(rate)),
        num_steps=svi_steps,
        batch_size=batch_size,
        rng_key=key_fit,
        ema_decay=0.995,
        checkpoint_dir=folder,
        checkpoint_every=200,
        resume=folder is not None,
        progress_bar=False,
    )
    return fitted.distribution("x")


def resized(prior: nd.Diffusion, side: int) -> nd.Diffusion:
    """The same network and parameters on images of another size."""
    transition = nd.Transition(prior.transition.function, prior.transition.params, (side, side, 1))
    return nd.Diffusion(prior.kernel, transition)


def crop_around_hole(convolutions: nd.networks.MultiScaleConv, side: int, hole_side: int) -> slice:
    """The rows, and the columns, that the reverse step in the hole depends on.

    A layer averages over blocks of b = 2^(scales - 1) pixels from the image's corner on, and filters reach
    ``filter_size // 2`` blocks; all smaller scales stay within. So after L layers a block depends on L of its
    neighbours to each side, and a piece that begins at a multiple of b has the whole image's blocks.
    """
    block = 2 ** (convolutions.num_scales - 1)
    reach = convolutions.conv_layers * (convolutions.filter_size // 2) * block
    start, stop = (side - hole_side) // 2, (side + hole_side) // 2
    first = max(0, start // block * block - reach)
    last = min(side, -(-stop // block) * block + reach)
    return slice(first, last)


# How far is a filled hole from the true one, where neither need equal the other? --------------------------------


def all_patches(image: np.ndarray) -> np.ndarray:
    """Every 8x8 patch of (height, width), shape (count, 64)."""
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(image), (STATISTIC_PATCH, STATISTIC_PATCH))
    return windows.reshape(-1, STATISTIC_PATCH**2)


def gradients(image: np.ndarray) -> np.ndarray:
    """Differences to the pixels below and to the right, shape (count, 2)."""
    image = np.asarray(image)
    return np.stack([np.diff(image, axis=0)[:, :-1], np.diff(image, axis=1)[:-1]], axis=-1).reshape(-1, 2)


def border_jump(image: np.ndarray, box: Box) -> float:
    """The root mean square step across a box's border over the steps between its neighbours outside; 1 is no border.

    Outside are the steps from the border's first pixels to the next, in the same direction: contrast that changes
    from place to place cancels, and what is inside cannot excuse itself.
    """
    image = np.asarray(image)
    rows, columns = box
    steps = []
    for turned, along, across in ((image, columns, rows), (image.T, rows, columns)):
        inside = np.stack([turned[across.start, along], turned[across.stop - 1, along]])
        first = np.stack([turned[across.start - 1, along], turned[across.stop, along]])
        second = np.stack([turned[across.start - 2, along], turned[across.stop + 1, along]])
        steps.append((((inside - first) ** 2).ravel(), ((first - second) ** 2).ravel()))
    over, outside = (np.concatenate(parts).mean() for parts in zip(*steps, strict=True))
    return float(np.sqrt(over / outside))


def distances(filled: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Sliced Wasserstein distances of patches and of gradients, in standard deviations of the texture."""
    key = jax.random.key(0)  # of the directions: the same for all that are compared
    distance = nd.evaluation.sliced_wasserstein
    return {
        "patches": distance(key, all_patches(filled), all_patches(true), num_slices=200),
        "gradients": distance(key, gradients(filled), gradients(true), num_slices=50),
    }


def moved_boxes(box: Box, by: int) -> list[Box]:
    """The box moved by so many pixels, up, down, to the sides and across: eight pieces of true texture of its size."""
    moved = lambda part, by: slice(part.start + by, part.stop + by)  # noqa: E731
    return [(moved(box[0], i), moved(box[1], j)) for i in (-by, 0, by) for j in (-by, 0, by) if i or j]
