r"""A trained distribution as one file, which another person loads without trusting it.

The file holds all of a :class:`~numpyro_diffusion.Diffusion`: its parameters and state by name, the schedule's numbers,
the kernel, the network and the estimator by name and settings, the context and the random key, and the covariance of
the network's errors, if it carries one; and what is around it, ``expand``, ``to_event`` and transforms of NumPyro by
name and parameters. What is loaded draws the same samples and gives the same ``log_prob``, bit for bit, on the same
versions and hardware.

The format is that of safetensors, so other programs can read the arrays; the settings are JSON in its metadata, with a
SHA-256 of the file in which its own 64 digits are zeros: a seal against damage, not a signature. Loading runs no code
out of the file and imports nothing by a name in it: the classes of this package are looked up in a table, and a network
or a kernel of your own is passed by you. A file that was made to deceive can still hold a bad prior: look at its draws.

Not kept: the model, optimiser and losses of the training; devices and sharding; the code of your own network.
"""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import safetensors
import safetensors.numpy

from .._checks import expected
from ..diffusion import Diffusion
from ..kernels import Kernel
from ..schedules import Schedule
from .settings import OPTIONAL, describe, require, restore, shown
from .wrappers import describe_wrappers, restore_wrappers

__all__ = ["load", "pack", "save", "unpack", "write"]

_FORMAT = 3
_WITHOUT_OPTIONS = 2  # the format of a file without what a prior need not have, as older versions read it
_WITHOUT_WRAPPERS = 1  # and the one whose prior is a Diffusion
_KEY = "numpyro_diffusion"
_ZEROS = b"0" * 64
_DTYPES = {
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    **{f"{sign}{8 * size}": np.dtype(f"<{sign.lower()}{size}") for sign in "IU" for size in (1, 2, 4, 8)},
    "BF16": np.dtype(jnp.bfloat16),
    "BOOL": np.dtype(bool),
}
_DAMAGED = "The file is truncated, damaged or not of numpyro_diffusion.save: fetch or save it again."


def save(prior: dist.Distribution, path: str | os.PathLike[str]) -> None:
    """Write a trained distribution to one file.

    A conditional distribution is saved with the context that is bound to it. A network or kernel of your own is saved
    by its name and its parameters. What could not be loaded again is not written, and an old file at ``path`` stays
    until the new one is whole.

    Args:
        prior: from ``fit(...).distribution(site)``, or a ``Diffusion`` built from parameters: dicts, lists and tuples
            of arrays, which hold floats of 16 to 64 bits (bfloat16 too), integers, booleans or random keys. Around it
            may be ``expand``, ``to_event`` and transforms: affine, per coordinate or by a matrix, exp, softplus,
            sigmoid, power, to a simplex or to ordered numbers, permutations, and compositions of these.
        path: of the file; ``.safetensors`` is the usual ending.

    Raises:
        ValueError: for what is no ``Diffusion`` inside of these; for an estimator or a transform of your own, or one
            without an inverse; for parameters that are no arrays or are traced.
        OSError: if the file cannot be written.

    >>> import tempfile
    >>> import numpyro_diffusion as nd
    >>> kernel = nd.GaussianKernel(nd.schedules.log_snr(10), parameterization="x0", variance="denoiser")
    >>> transition = nd.analytic.gaussian_mixture(kernel, np.array([[-2.0], [2.0]]), 0.5, np.ones(2))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     nd.save(nd.Diffusion(kernel, transition), f"{directory}/prior.safetensors")
    ...     nd.load(f"{directory}/prior.safetensors").event_shape
    (1,)
    """
    diffusion, around, wrappers = describe_wrappers(prior)
    is_plain = type(diffusion) is Diffusion and not diffusion._num_stacked
    got = "one stacked by scan" if diffusion._num_stacked else type(diffusion).__name__
    require(is_plain, "a Diffusion", got, "Save the Diffusion itself.")
    tensors, settings = describe(diffusion)
    tensors |= around
    everything = {"versions": {"jax": jax.__version__}, "prior": settings}
    data = pack(tensors, {**everything, "wrappers": wrappers} if wrappers else everything)
    own_kernel = diffusion.kernel if "custom" in settings["kernel"] else None
    restored = restore(_tensors(data), settings, diffusion.transition.function, own_kernel)
    restore_wrappers(restored, _tensors(data), wrappers)
    write(Path(os.path.realpath(path)), data)


def load(
    path: str | os.PathLike[str],
    *,
    network: Callable[..., Any] | None = None,
    kernel: Kernel | Callable[[Schedule], Kernel] | None = None,
) -> dist.Distribution:
    """Read a distribution that :func:`save` wrote, without running anything out of the file.

    The estimator, random key and bound context of a ``Diffusion`` are the saved ones; for others, build
    ``Diffusion(prior.kernel, prior.transition, context=..., estimator=..., rng_key=...)``.

    Args:
        path: of the file.
        network: if it is your own, what the file's was: the Haiku network as it was given to ``haiku_module``, or the
            function ``(params, x_t, t, context)`` as it was given to ``Transition``. Whether two networks of the same
            shapes are the same function only you can know.
        kernel: if it is your own, the kernel, or a function that makes it from the file's schedule, such as its class.

    Returns:
        The distribution. Arrays have the dtypes they had when saved.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is truncated, damaged, foreign or of a newer format; for one that needs ``network``
            or ``kernel``; for ones that do not fit its parameters; for 64-bit jax arrays when JAX has 32.
    """
    tensors, settings = unpack(Path(path))
    try:
        prior = restore(tensors, settings["prior"], network, kernel)
        return restore_wrappers(prior, tensors, settings.get("wrappers", []))
    except (AttributeError, LookupError, OverflowError, RecursionError, TypeError) as error:
        got = f"{type(error).__name__}: {shown(str(error))}"
        raise ValueError(expected("the settings of a prior", got, _DAMAGED)) from error


def pack(tensors: dict[str, np.ndarray], settings: dict[str, Any]) -> bytes:
    """The file's bytes: the same for the same tensors and settings."""
    native = {name: np.asarray(x, x.dtype.newbyteorder("="), order="C") for name, x in tensors.items()}
    for name, x in native.items():
        require(x.dtype in _DTYPES.values(), f"a dtype out of {[*_DTYPES]} at {name!r}", x.dtype, "Convert it.")
    version = _WITHOUT_OPTIONS if "wrappers" in settings else _WITHOUT_WRAPPERS
    version = _FORMAT if {*OPTIONAL} & {*settings.get("prior", ())} else version
    text = json.dumps({"format": version, "sha256": _ZEROS.decode(), **settings}, separators=(",", ":"))
    data = safetensors.numpy.save(native, {_KEY: text})
    return data.replace(_ZEROS, hashlib.sha256(data).hexdigest().encode(), 1)


def unpack(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and the settings of a file, of which only the header is read before it says that it is ours."""
    require(path.is_file() or not path.exists(), "a regular file", str(path), "Pass the path of the file.")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
        settings = json.loads(metadata.get(_KEY, "null"))
    except (safetensors.SafetensorError, RecursionError, ValueError) as error:
        raise ValueError(expected("a safetensors file with JSON settings", shown(str(error)), _DAMAGED)) from error
    require(isinstance(settings, dict), f"{_KEY} settings in the file's metadata", sorted(metadata), _DAMAGED)
    version, digest = settings.get("format"), settings.get("sha256")
    require(type(version) is int and version >= 1, "a format version >= 1", version, _DAMAGED)
    require(version <= _FORMAT, f"a format version up to {_FORMAT}", version, "Upgrade numpyro-diffusion.")
    data = path.read_bytes()
    found = hashlib.sha256(data.replace(str(digest).encode(), _ZEROS, 1)).hexdigest()
    require(found == digest, f"contents with the SHA-256 {shown(digest)}", found, _DAMAGED)
    return _tensors(data), settings


def _tensors(data: bytes) -> dict[str, np.ndarray]:
    tensors = {}
    for name, tensor in safetensors.deserialize(data):
        require(tensor["dtype"] in _DTYPES, f"a dtype out of {[*_DTYPES]}", tensor["dtype"], _DAMAGED)
        dtype = _DTYPES[tensor["dtype"]]
        # A byte that is neither 0 nor 1 would be a boolean that is neither true nor false.
        values = np.frombuffer(tensor["data"], np.uint8 if tensor["dtype"] == "BOOL" else dtype)
        tensors[name] = values.astype(dtype).reshape(tensor["shape"])
    return tensors


def write(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` whole or not at all: into a new file beside it, which then takes its place."""
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        wanted = "a file in a directory that exists, may be written to and has room"
        cure = "Choose another; what was at the path before is unchanged."
        raise OSError(error.errno, expected(wanted, f"{str(path)!r}: {error.strerror}", cure)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
