"""Rows that stay in their file: the same prior as from memory, with a small share of their size in memory."""

import gc
import itertools
import os
import subprocess
import sys
import warnings
import weakref

import jax
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.learning.columns import look
from numpyro_diffusion.learning.look import look_at
from numpyro_diffusion.learning.tables import read_table
from numpyro_diffusion.training.disk import RowsOnDisk, from_memory_map

KERNEL = nd.GaussianKernel(nd.schedules.log_snr(4, 0.1, 20.0), parameterization="x0", variance="denoiser")
SMALL = {"kernel": KERNEL, "network": nd.networks.GaussianSkip(KERNEL.schedule.log_snr[1:], width=8, depth=1)}
QUICK = {"num_steps": 8, "every": 4, "batch_size": 16, "num_trajectories": 1, "progress_bar": False, **SMALL}


def rows():
    """Reals, integers, a constant; some rows twice."""
    rng = np.random.default_rng(0)
    found = np.stack([rng.normal(3, 2, 300), np.round(rng.normal(50, 20, 300)), np.full(300, 7.0)], 1)
    found[200:220] = found[:20]
    return found.astype(np.float32)


def on_disk(tmp_path, array, name="rows.npy"):
    np.save(tmp_path / name, array)
    return np.load(tmp_path / name, mmap_mode="r")


def test_rows_of_a_file_are_read_by_number_slice_and_index(tmp_path):
    array = np.arange(60.0).reshape(20, 3)
    found = from_memory_map(on_disk(tmp_path, array))
    assert isinstance(found, RowsOnDisk)
    for index in (3, -1, slice(2, 9), slice(None), slice(5, 5), np.array([17, 0, 17]), np.array([4, 3, 5])):
        np.testing.assert_array_equal(found[index], array[index])
    np.testing.assert_array_equal(found[array[:, 0] > 30], array[array[:, 0] > 30])
    np.testing.assert_array_equal(np.asarray(found), array)
    with pytest.raises(IndexError, match=r"rows in 0..19; got \(20, 20\)"):
        found[np.array([20])]


def test_a_file_is_closed_with_its_last_reader_in_a_cycle_too(tmp_path):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cycle = [from_memory_map(on_disk(tmp_path, np.arange(60.0).reshape(20, 3)))]
        file = weakref.ref(cycle[0]._file)
        cycle.append(cycle)
        del cycle
        gc.collect()
    assert file() is None
    assert not told


def test_a_map_that_is_no_whole_file_stays_a_map(tmp_path):
    array = np.arange(60.0).reshape(20, 3)
    whole = on_disk(tmp_path, array)
    transposed = on_disk(tmp_path, np.asfortranarray(array), "columns.npy")
    changed = on_disk(tmp_path, array, "changed.npy")
    (tmp_path / "changed.npy").unlink()
    np.save(tmp_path / "changed.npy", array + 1)
    for one in (whole[5:], transposed, changed):
        assert from_memory_map(one) is one
        np.testing.assert_array_equal(read_table(one).values, one)


def test_a_file_that_became_shorter_is_named(tmp_path):
    found = from_memory_map(on_disk(tmp_path, np.arange(60.0).reshape(20, 3)))
    os.truncate(tmp_path / "rows.npy", 128 + 24 * 11)
    np.testing.assert_array_equal(found[10], [30.0, 31.0, 32.0])
    with pytest.raises(OSError, match=r"a file with 20 rows; got its end at row 11. It has become shorter"):
        found[:]


def test_a_prior_from_a_file_is_the_prior_from_memory(tmp_path):
    memory, file = (
        nd.learn_prior(data, rng_key=jax.random.key(0), **QUICK) for data in (rows(), on_disk(tmp_path, rows()))
    )
    np.testing.assert_allclose(file.fit.losses, memory.fit.losses, rtol=1e-4)
    np.testing.assert_allclose(file.report.prior.per_point, memory.report.prior.per_point, atol=1e-2)
    for one in (memory, file):
        assert "'column 1' (1)" in str(one.report)
        assert "20 rows repeat another" in str(one.report)


def test_rows_of_an_iterator_are_those_of_its_batches_and_it_is_told():
    found = look_at(iter(np.split(rows(), 6)), None, "real", "refuse", None)
    np.testing.assert_array_equal(found.values, rows())
    assert found.did[0] == "an iterator of 300 rows, kept in a temporary file"


def test_rows_with_gaps_in_a_file_are_named_or_left_out(tmp_path):
    bad = rows()
    bad[17, 1] = np.nan
    with pytest.raises(ValueError, match=r"got nan in row 17, column 'column 1' \(1 of 300 rows"):
        look_at(on_disk(tmp_path, bad), None, "real", "refuse", None)
    found = look_at(on_disk(tmp_path, bad), None, "real", "drop", None)
    np.testing.assert_array_equal(found.values, np.delete(bad, 17, 0))
    np.testing.assert_array_equal(found.values[np.array([16, 17])], bad[[16, 18]])


def test_a_look_in_stretches_is_a_look_at_once(monkeypatch):
    rng = np.random.default_rng(3)
    columns = {
        "real": rng.normal(1e3, 2, 900),
        "skew": np.exp(rng.normal(size=900)),
        "integer": rng.integers(0, 256, 900),
        "decimal": rng.integers(0, 50, 900) / 10,
        "bit": rng.integers(0, 2, 900),
        "constant": np.full(900, 0.1),
        "clipped": np.maximum(rng.normal(size=900), 0),
    }
    values = np.stack(list(columns.values()), 1).astype(float)
    names, supports = tuple(columns), ("real",) * len(columns)
    whole = look(values, names, supports)
    monkeypatch.setattr(sys.modules["numpyro_diffusion.learning.stretches"], "_NUMBERS", 130)
    for one, other in zip(whole, look(values, names, supports), strict=True):
        assert (one.kind, one.step, one.notes) == (other.kind, other.step, other.notes)
        moments = [[c.mean, c.scale, c.skewness, c.kurtosis] for c in (one, other)]
        np.testing.assert_allclose(*moments, rtol=1e-8, atol=1e-10)
    exact = values[:, 1]
    standard = (exact - exact.mean()) / exact.std()
    found = [whole[1].mean, whole[1].scale, whole[1].skewness, whole[1].kurtosis]
    np.testing.assert_allclose(found, [exact.mean(), exact.std(), (standard**3).mean(), (standard**4).mean() - 3])


def test_integers_and_points_of_mass_are_found_among_many_distinct_values(monkeypatch):
    monkeypatch.setattr(sys.modules["numpyro_diffusion.learning.columns"], "_MOST_DISTINCT", 200)
    monkeypatch.setattr(sys.modules["numpyro_diffusion.learning.columns"], "_MOST_FREQUENT", 20)
    monkeypatch.setattr(sys.modules["numpyro_diffusion.learning.stretches"], "_NUMBERS", 100)
    rng = np.random.default_rng(0)
    heavy = np.round(np.abs(rng.standard_cauchy(2000)) * 300)  # most of 2000 integers once, some of them far out
    rain = np.where(rng.uniform(size=2000) < 0.4, 0.0, rng.exponential(size=2000))
    (integers,) = look(np.clip(heavy, 0, 9000)[:, None], ("x",), ("real",))
    (real,) = look(rain[:, None], ("x",), ("real",))
    assert integers.kind == ("grid" if integers.scale < 100 else "real")
    (fine,) = look(heavy[:1000, None] % 500, ("x",), ("real",))
    assert (fine.kind, fine.step) == ("real" if fine.scale > 100 else "grid", 0.0 if fine.scale > 100 else 1.0)
    (short,) = look(np.round(rng.normal(size=(2000, 1)) * 90), ("x",), ("real",))
    assert (short.kind, short.step) == ("grid", 1.0)
    assert real.kind == "real"
    assert "0 in 4" in real.notes[0]


ITERATORS = {
    "rows": (lambda: iter(rows().tolist()), np.float64),
    "bytes": (lambda: iter([np.ones((3, 2), np.uint8)] * 5), np.uint8),
    "integers": (lambda: iter([np.ones((3, 2), int), np.full((3, 2), 0.5)]), np.float64),
    "images": (lambda: iter([np.ones((3, 4, 4, 1), np.float32)] * 5), np.float32),
}


@pytest.mark.parametrize("name", ITERATORS)
def test_an_iterator_is_written_to_a_file_in_its_own_type(name):
    make, dtype = ITERATORS[name]
    values = read_table(make()).values
    assert values._source.dtype == dtype
    whole = np.concatenate([np.asarray(part, float).reshape(-1, *values.shape[1:]) for part in make()])
    np.testing.assert_array_equal(values, whole)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (
            lambda: itertools.repeat(np.ones(3)),
            ValueError,
            r"an iterator that ends after max_rows=50 rows; got more. Pass itertools.islice",
        ),
        (lambda: iter([]), ValueError, "an iterator with at least one row; got none"),
        (lambda: iter([np.zeros(2), np.zeros(3)]), ValueError, r"rows of one shape; got \(2,\), and \(3,\) at row 1"),
        (
            lambda: iter([np.float32([1, 2]), np.array([0.1, 2])]),
            ValueError,
            "rows of one type; got float32, and float",
        ),
        (lambda: iter([{"a": 1.0}]), TypeError, r"numbers in the iterator's rows from 0 on; got {'a': 1.0}"),
        (lambda: iter([["x", "y"]]), TypeError, "numbers in the iterator's rows from 0 on; got 'x'"),
    ],
)
def test_an_iterator_that_is_no_table_is_refused(make, error, match):
    with pytest.raises(error, match=match):
        read_table(make(), max_rows=50)


def test_a_file_that_is_no_table_is_refused_in_words(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}, None], object))
    np.save(tmp_path / "words.npy", np.array([["a", "b"]]))
    np.save(tmp_path / "cube.npy", np.zeros((2, 3, 4)))
    np.save(tmp_path / "short.npy", np.zeros((20, 3)))
    np.savez(tmp_path / "several.npz", a=np.zeros(3))
    os.truncate(tmp_path / "short.npy", 200)
    (tmp_path / "folder.npy").mkdir()
    for name, error, match in (
        ("objects.npy", ValueError, "a .npy file that can be read, .*objects.npy; got ValueError: .*by numpy.save"),
        ("words.npy", TypeError, "numbers in column 'column 0'; got 'a' in row 0"),
        ("cube.npy", ValueError, r"got shape \(2, 3, 4\)"),
        ("short.npy", ValueError, "a .npy file that can be read, .*short.npy"),
        ("several.npz", TypeError, "the path of a .npy file; got .*several.npz"),
        ("folder.npy", IsADirectoryError, "a .npy file that can be read"),
    ):
        with pytest.raises(error, match=match):
            read_table(tmp_path / name)


def test_a_file_without_permission_is_refused_in_words(tmp_path, monkeypatch):
    np.save(tmp_path / "rows.npy", rows())

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied", "rows.npy")

    monkeypatch.setattr(np, "load", refuse)  # files have no permissions for the user that may do everything
    with pytest.raises(PermissionError, match=r"a .npy file that can be read, .*rows.npy; got PermissionError"):
        read_table(tmp_path / "rows.npy")


MEASURE = """
import resource, sys
import jax, numpy as np
from numpyro_diffusion.learning.look import look_at, space_for
from numpyro_diffusion.learning.rows import split_rows
from numpyro_diffusion.training.sources import rows_not_finite

peaks = []
for path in sys.argv[1:]:
    rng = np.random.default_rng(0)
    found = look_at(np.load(path, mmap_mode="r"), None, "real", "refuse", None)
    split, _ = split_rows(found.values, 0.2, 0.2, rng=rng)
    learned = [split["train"], split["validation"]]
    fitted = split["train"][:5000]
    space = space_for(found, fitted, learned, None, None, "none", rng, jax.random.key(0))
    rows = space.to_train(split["train"])
    assert not len(rows_not_finite(rows))  # the look of fit
    for _ in range(20):  # batches of 50 steps at a time
        rows[rng.integers(0, len(rows), 3200)]
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
print(peaks[1] - peaks[0], len(rows))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss has other units elsewhere")
def test_looks_and_batches_of_a_large_file_take_a_share_of_its_size_in_memory(tmp_path):
    """600,000 rows of 80 bytes against 40,000 of them, after which nothing that has a limit takes more."""
    values = np.random.default_rng(0).normal(size=(600_000, 20)).astype(np.float32)
    values[:, 0] = np.round(values[:, 0] * 3)  # a grid, so that noise is added
    np.save(tmp_path / "large.npy", values)
    np.save(tmp_path / "small.npy", values[:40_000])
    size = values[40_000:].nbytes
    del values
    paths = [str(tmp_path / name) for name in ("small.npy", "large.npy")]
    run = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=False)
    assert not run.returncode, run.stderr
    more, rows_to_train = map(float, run.stdout.split())
    assert rows_to_train == 590_000
    assert more < 0.6 * size  # 45 MB: an index of 8 bytes a row, and twice the hashes that part the rows
