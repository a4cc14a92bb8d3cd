"""Daily curves out of a package: read without importing it, split once, and refused in words where they are missing."""

import importlib.util
import sys

import numpy as np
import pytest

from numpyro_diffusion import datasets

HEADER = "#A comment, with a colon: here\n@problemName ItalyPowerDemand\n@classLabel true 1 2\n@data\n"


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A package of that name, of three files, that says so if it is imported."""
    folder = tmp_path / "sktime" / "datasets" / "data" / "ItalyPowerDemand"
    folder.mkdir(parents=True)
    (tmp_path / "sktime" / "__init__.py").write_text("raise AssertionError('imported')\n")
    rows = [f"{','.join(str(day + hour / 100) for hour in range(24))}:{day % 2 + 1}\n" for day in range(10)]
    (folder / "ItalyPowerDemand_TRAIN.ts").write_text(HEADER + "".join(rows[:4]))
    (folder / "ItalyPowerDemand_TEST.ts").write_text(HEADER + "".join(rows[4:]))
    monkeypatch.delitem(sys.modules, "sktime", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_days_are_read_without_an_import_and_every_seventh_is_held_out(package):
    train, held_out = datasets.power_demand(), datasets.power_demand(held_out=True)
    assert (train.shape, train.dtype, held_out.shape) == ((9, 24), np.float32, (1, 24))
    np.testing.assert_allclose(held_out[0], 3 + np.arange(24) / 100, rtol=1e-6)
    np.testing.assert_allclose(train[:, 0], [0, 1, 2, 4, 5, 6, 7, 8, 9])


def test_a_missing_file_is_not_downloaded(package):
    (package / "ItalyPowerDemand_TEST.ts").unlink()
    with pytest.raises(FileNotFoundError, match=r"ItalyPowerDemand_TEST\.ts inside sktime; got no such file\. Install"):
        datasets.power_demand()


def test_a_missing_package_is_named_with_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"sktime; got no such module.*numpyro-diffusion\[curves\]"):
        datasets.power_demand()


def test_the_days_of_the_package_are_standardised_one_by_one():
    if importlib.util.find_spec("sktime") is None:
        pytest.skip("without the extra 'curves'")
    train, held_out = datasets.power_demand(), datasets.power_demand(held_out=True)
    assert (train.shape, held_out.shape) == ((939, 24), (157, 24))
    days = np.concatenate([train, held_out])
    np.testing.assert_allclose(days.sum(1), 0, atol=1e-4)
    np.testing.assert_allclose(days.std(1, ddof=1), 1, rtol=1e-5)
