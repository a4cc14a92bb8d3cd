r"""A trained distribution as one file, which another person loads without trusting it.

The file holds all of a :class:`~numpyro_diffusion.Diffusion`: its parameters and state by name, the schedule's numbers,
the kernel, the network and the estimator by name and settings, the context and the random key. What is loaded draws the
same samples and gives the same ``log_prob``, bit for bit, on the same versions and hardware.

Loading runs no code out of the file and imports nothing by a name in it: the classes of this package are looked up
in a table, and a network or a kernel of your own is passed by you. Every setting is checked, and the network is
traced on shapes alone with the file's parameters before anything is returned. A truncated, damaged or foreign file is
an error. A file that was made to deceive can still hold a bad prior: look at its draws.

The format is that of safetensors, so other programs can read the arrays; the settings are JSON in its header.

Not kept: the model, optimiser and losses of the training; devices and sharding; the code of your own network.
"""

import importlib.metadata
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .._checks import expected
from ..diffusion import Diffusion
from ..kernels import Kernel
from ..schedules import Schedule
from .prior_settings import describe, restore
from .tensor_file import pack, read, unpack, write

__all__ = ["load", "save"]

_PACKAGES = ("numpyro-diffusion", "jax", "numpyro", "dm-haiku", "numpy", "safetensors")


def save(prior: Diffusion, path: str | os.PathLike[str]) -> None:
    """Write a trained distribution to one file.

    A conditional distribution is saved with the context that is bound to it. A network of your own is saved by its
    name and its parameters; so is a kernel of your own, by its name and its schedule. What could not be loaded
    again is not written, and an old file at ``path`` stays until the new one is whole.

    Args:
        prior: from ``fit(...).distribution(site)``, or a ``Diffusion`` built from parameters: dicts, lists and tuples
            of arrays, which hold floats of 16 to 64 bits (bfloat16 too), integers, booleans or random keys.
        path: of the file; ``.safetensors`` is the usual ending.

    Raises:
        ValueError: for what is no ``Diffusion``, for an estimator of your own, for parameters that are no arrays or are
            traced, and for a path that is a directory.
        OSError: if the file cannot be written.

    >>> import tempfile
    >>> import numpy as np
    >>> import numpyro_diffusion as nd
    >>> kernel = nd.GaussianKernel(nd.schedules.log_snr(10), parameterization="x0", variance="denoiser")
    >>> transition = nd.analytic.gaussian_mixture(kernel, np.array([[-2.0], [2.0]]), 0.5, np.ones(2))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     nd.save(nd.Diffusion(kernel, transition), f"{directory}/prior.safetensors")
    ...     nd.load(f"{directory}/prior.safetensors").event_shape
    (1,)
    """
    if type(prior) is not Diffusion or prior._num_stacked:
        raise ValueError(
            expected(
                "a Diffusion",
                "one stacked by scan" if isinstance(prior, Diffusion) else type(prior).__name__,
                "Pass what fit(...).distribution(site) returns; of a transformed one its base_dist, and apply the "
                "transforms to what is loaded.",
            )
        )
    tensors, settings = describe(prior)
    data = pack(tensors, {"versions": _versions(), "prior": settings})
    tensors, settings = unpack(io.BytesIO(data), len(data))
    own_kernel = prior.kernel if "custom" in settings["prior"]["kernel"] else None
    restore(tensors, settings["prior"], prior.transition.function, own_kernel)
    write(Path(path), data)


def load(
    path: str | os.PathLike[str],
    *,
    network: Callable[..., Any] | None = None,
    kernel: Kernel | Callable[[Schedule], Kernel] | None = None,
) -> Diffusion:
    """Read a distribution that :func:`save` wrote, without running anything out of the file.

    The estimator, random key and bound context are the saved ones; for others, build
    ``Diffusion(prior.kernel, prior.transition, context=..., estimator=..., rng_key=...)``. Whether two networks of the
    same shapes are the same function only you can know.

    Args:
        path: of the file.
        network: if it is your own, what the file's was: the Haiku network as it was given to ``haiku_module``, or the
            function ``(params, x_t, t, context)`` as it was given to ``Transition``. Which of the two, the file knows.
        kernel: if it is your own, the kernel, or a function that makes it from the file's schedule, such as its class.

    Returns:
        The distribution. Arrays have the dtypes they had when saved.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is truncated, damaged, foreign or of a newer format; for one that needs ``network``
            or ``kernel``; for ones that do not fit its parameters; for 64-bit jax arrays when JAX has 32.
    """
    tensors, settings = read(Path(path))
    return restore(tensors, settings.get("prior"), network, kernel)


def _versions() -> dict[str, str]:
    """Which versions wrote a file: for people to read, no reason to refuse it."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a checkout on the path, not installed
            versions[package] = "unknown"
    return versions
