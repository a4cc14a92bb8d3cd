r"""One file of named tensors and JSON settings, read without trust: the safetensors format with a seal.

    8 bytes     the header's length, little-endian
    header      JSON: every tensor's dtype, shape and place; under "__metadata__" one string, our settings as JSON
    tensors     their bytes, without gaps

The settings begin with the format's version and a SHA-256 of the whole file in which its own 64 digits are zeros, so
that every flipped bit is noticed, in a name or a number. It is a seal against damage, not a signature: whoever writes
a file can write its seal too. Safety does not rest on it. Reading makes arrays, numbers, strings, lists and dicts,
nothing else; names in the file are never imported or called; and nothing is allocated on the word of a header: its
length is bounded, and all sizes are compared with the file's own before the tensors are read.

Not assumed: that the file is ours, whole, or well meant. The same tensors and settings give the same bytes.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from .._checks import expected

__all__ = ["DTYPES", "pack", "read", "shown", "unpack", "write"]

FORMAT = 1

# safetensors' name of each dtype that a file may hold. Complex numbers and the 8-bit floats are left out: not every
# version of safetensors has them, and no network here needs them.
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    **{f"{sign}{8 * size}": np.dtype(f"{sign.lower()}{size}") for sign in "IU" for size in (1, 2, 4, 8)},
    "BOOL": np.dtype(np.bool_),
}

_KEY = "numpyro_diffusion"
# One tensor takes about 100 bytes of the header and 100 of the settings: room for 20,000. Parsed, some tens of MiB.
_MAX_HEADER = 4 * 2**20
_MAX_DEPTH = 100
_ZEROS = "0" * 64
_SEAL = '\\"sha256\\":\\"{}\\"'  # as it stands in the header: JSON inside a JSON string
_DAMAGED = "The file is truncated or damaged: fetch or save it again."
_FOREIGN = "Only files that numpyro_diffusion.save wrote can be loaded."


def pack(tensors: dict[str, np.ndarray], settings: dict[str, Any]) -> bytes:
    """The file's bytes.

    Args:
        tensors: by name, of the dtypes in ``DTYPES``.
        settings: JSON values; ``"format"`` and ``"sha256"`` are added.

    Raises:
        ValueError: for more names or settings than a file may have.
    """
    text = json.dumps({"format": FORMAT, "sha256": _ZEROS, **settings}, allow_nan=False, separators=(",", ":"))
    # A contiguous copy would turn a number into a vector of one; asarray keeps the shape.
    native = {name: np.asarray(x, x.dtype.newbyteorder("="), order="C") for name, x in tensors.items()}
    data = bytearray(safetensors.numpy.save(native, {_KEY: text}))
    length = int.from_bytes(data[:8], "little")
    if length > _MAX_HEADER:
        wanted = f"names and settings of at most {_MAX_HEADER} bytes"
        raise ValueError(expected(wanted, f"{length} bytes for {len(tensors)} arrays", "Save fewer and larger arrays."))
    start, stop = _seal_position(data, _ZEROS)
    data[start:stop] = _digest(data, start, stop).encode()
    return bytes(data)


def unpack(stream: io.BufferedIOBase, size: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What :func:`pack` packed.

    Args:
        stream: at its start.
        size: how many bytes it has; at most about three times as many are allocated, and those of the header's parse.

    Raises:
        ValueError: for a file that is foreign, truncated, damaged or newer.
    """
    length = int.from_bytes(stream.read(8), "little")
    if size < 10 or length > size - 8 or length > _MAX_HEADER:
        wanted = f"a header of at most {max(min(size - 8, _MAX_HEADER), 0)} bytes"
        raise ValueError(expected(wanted, f"a file of {size} bytes that claims {length}", f"{_DAMAGED} {_FOREIGN}"))
    header = _parse_json("the file's header", stream.read(length))
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get(_KEY), str):
        raise ValueError(expected(f"{_KEY} settings in the file's header", "none", _FOREIGN))
    settings = _parse_json("the file's settings", metadata[_KEY].encode("utf-8", "surrogatepass"))
    _check_format(settings)
    end = 8 + length + _data_end(header)
    if end != size:
        raise ValueError(expected(f"a file of {end} bytes, by its header", f"{size} bytes", _DAMAGED))
    stream.seek(0)
    data = stream.read(size)
    _check_seal(data, settings.pop("sha256", None))
    try:
        found = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise ValueError(expected("tensors in the safetensors format", shown(str(error)), _DAMAGED)) from error
    return {name: _array(name, tensor) for name, tensor in found}, settings


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and the settings of a file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no regular file, and as :func:`unpack` raises.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise FileNotFoundError(
            error.errno, expected("a file to load", f"none at {str(path)!r}", "Check the path.")
        ) from error
    if not stat.S_ISREG(mode):  # opening a pipe would wait for its writer
        raise ValueError(
            expected("a regular file", f"{str(path)!r}, a directory or a device", "Pass the path of the file.")
        )
    with path.open("rb") as stream:
        return unpack(stream, os.fstat(stream.fileno()).st_size)


def write(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` whole or not at all: into a new file beside it, which then takes its place.

    Raises:
        ValueError: if the path is a directory.
        OSError: if the directory is missing, full or may not be written to. An old file is left as it was.
    """
    path = Path(os.path.realpath(path))  # through a link, whose target is replaced and not the link
    if path.is_dir():
        raise ValueError(expected("a file's path", f"the directory {str(path)!r}", "Add a file name."))
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        # Not through tempfile, whose files only their owner may read.
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        wanted = "a directory that exists, may be written to and has room"
        cure = "Choose another; what was at the path before is unchanged."
        raise OSError(error.errno, expected(wanted, f"{str(path.parent)!r}: {error.strerror}", cure)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def shown(value: Any) -> str:
    """A value out of a file for a message: escaped, and short whatever the file holds."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _sync_directory(path: Path) -> None:
    """Make the new name last through a power cut, where the system offers it."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems refuse
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _parse_json(what: str, text: bytes) -> dict[str, Any]:
    """A JSON object without duplicate keys, infinities or deep nesting."""
    try:
        decoded = text.decode()
        _check_depth(decoded)
        value = json.loads(decoded, object_pairs_hook=_unique, parse_constant=_refuse)
        if not isinstance(value, dict):
            raise ValueError(f"it is a {type(value).__name__}")
    except ValueError as error:
        raise ValueError(expected(f"a JSON object as {what}", shown(str(error)), f"{_DAMAGED} {_FOREIGN}")) from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _check_depth(text: str) -> None:
    """Before the parser, which recurses. Brackets inside strings do not count; the pattern never goes back."""
    depth = 0
    for token in re.finditer(r'"(?:[^"\\]|\\.?)*+"?|[][{}]', text, re.DOTALL):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested more than {_MAX_DEPTH} deep")


def _check_format(settings: dict[str, Any]) -> None:
    version = settings.pop("format", None)
    if type(version) is not int or version < 1:
        raise ValueError(expected("a format version >= 1", shown(version), _DAMAGED))
    if version > FORMAT:
        versions = settings.get("versions")
        writer = versions.get("numpyro-diffusion") if isinstance(versions, dict) else None
        raise ValueError(
            expected(
                f"format version {FORMAT} or older",
                f"{version}, written by numpyro-diffusion {shown(writer)}",
                "Upgrade numpyro-diffusion.",
            )
        )


def _data_end(header: dict[str, Any]) -> int:
    """Bytes of all tensors, by the header. Whether they follow on each other is safetensors' own check."""
    ends = [0]
    for name, entry in header.items():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not isinstance(offsets, list) or not all(type(offset) is int for offset in offsets):
            raise ValueError(expected(f"the place of tensor {shown(name)}", shown(entry), _DAMAGED))
        ends += offsets
    return max(ends)


def _check_seal(data: bytes, claimed: Any) -> None:
    if not isinstance(claimed, str) or not re.fullmatch("[0-9a-f]{64}", claimed):
        raise ValueError(expected("a SHA-256 in the file's settings", shown(claimed), _DAMAGED))
    digest = _digest(data, *_seal_position(data, claimed))
    if digest != claimed:
        raise ValueError(expected(f"contents with the SHA-256 {claimed}", digest, _DAMAGED))


def _seal_position(data: bytes | bytearray, digest: str) -> tuple[int, int]:
    """Where the digest's 64 digits are."""
    seal = _SEAL.format(digest).encode()
    position = data.find(seal, 0, 8 + _MAX_HEADER)
    if position < 0:
        raise ValueError(expected("a SHA-256 as this package writes it", "another spelling", _FOREIGN))
    start = position + seal.index(digest.encode())
    return start, start + len(digest)


def _digest(data: bytes | bytearray, start: int, stop: int) -> str:
    view = memoryview(data)
    sha = hashlib.sha256(view[:start])
    sha.update(_ZEROS.encode())
    sha.update(view[stop:])
    view.release()
    return sha.hexdigest()


def _array(name: str, tensor: dict[str, Any]) -> np.ndarray:
    if tensor["dtype"] not in DTYPES:
        raise ValueError(
            expected(f"a dtype out of {', '.join(DTYPES)} for {shown(name)}", shown(tensor["dtype"]), _FOREIGN)
        )
    dtype = DTYPES[tensor["dtype"]]
    if dtype == np.bool_ and np.frombuffer(tensor["data"], np.uint8).max(initial=0) > 1:
        raise ValueError(expected(f"only 0 and 1 for the booleans {shown(name)}", "another byte", _DAMAGED))
    return np.frombuffer(tensor["data"], dtype.newbyteorder("<")).astype(dtype).reshape(tensor["shape"])
