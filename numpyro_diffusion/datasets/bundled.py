"""Photographs and digits that two packages of the extra ``datasets`` carry inside them; nothing is downloaded.

Both are integer grey levels: :func:`~numpyro_diffusion.datasets.dequantise` comes next.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from .._checks import expected

_CURE = "Install the extra: python -m pip install 'numpyro-diffusion[datasets]'."
_TEXTURES = ("brick", "grass", "gravel")
# Every seventh digit is held out. The first digits are 0, 1, ... 9 over and over: a number with a factor in common
# with 10 would hold out some classes more than others. From the fourth on, 23 to 28 of each class are held out.
_HELD_OUT_EVERY = 7


class LabelledImages(NamedTuple):
    """Images and what they show.

    Attributes:
        images: integer grey levels, shape (images, height, width, channels).
        labels: integers, shape (images,).
    """

    images: np.ndarray
    labels: np.ndarray


def digits(*, held_out: bool = False) -> LabelledImages:
    """Handwritten digits, 8x8 pixels, grey levels 0 to 16: the set that scikit-learn carries.

    The split is fixed: every seventh image is held out. Both sides share their writers, so both have one distribution.

    Args:
        held_out: the 257 images held out rather than the 1540 others.

    Returns:
        Images of shape (n, 8, 8, 1), uint8 from 0 to 16 (17 levels), and labels 0 to 9.

    Raises:
        ImportError: without scikit-learn.

    References:
        Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits", UCI Machine Learning Repository.

    >>> digits().images.shape, digits(held_out=True).images.shape
    ((1540, 8, 8, 1), (257, 8, 8, 1))
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(expected("scikit-learn", "no such module", _CURE)) from error
    data = load_digits()
    chosen = (np.arange(len(data.target)) % _HELD_OUT_EVERY == 3) == bool(held_out)
    return LabelledImages(data.images[chosen, ..., None].astype(np.uint8), data.target[chosen].astype(np.int32))


def textures(name: str) -> np.ndarray:
    """A grey photograph of a surface, 512x512 pixels, from inside scikit-image; :func:`patches` cuts images out of it.

    Args:
        name: ``brick``, ``grass`` or ``gravel``.

    Returns:
        Shape (512, 512), uint8 (256 levels).

    Raises:
        ValueError: for another name.
        ImportError: without scikit-image.
        FileNotFoundError: if this scikit-image came without the photograph. It is not downloaded.

    >>> textures("gravel").shape
    (512, 512)
    """
    if name not in _TEXTURES:
        raise ValueError(expected(f"one of {', '.join(_TEXTURES)}", repr(name), "These are what scikit-image carries."))
    try:
        import skimage
        from skimage.io import imread
    except ImportError as error:
        raise ImportError(expected("scikit-image", "no such module", _CURE)) from error
    # Not skimage.data.grass(): that downloads a file that is missing.
    path = Path(skimage.__file__).parent / "data" / f"{name}.png"
    if not path.is_file():
        raise FileNotFoundError(
            expected(f"{name}.png inside scikit-image", "no such file", "Install it from its wheel.")
        )
    return np.asarray(imread(path))
