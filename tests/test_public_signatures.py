"""What is public does not change without a word: names and signatures against those of the last release."""

import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

import numpyro_diffusion as nd

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import public_signatures
    finally:
        sys.path.pop(0)
    return public_signatures


def test_every_change_since_the_last_release_is_in_the_changelog(tool):
    names = tool.changed(tool.read(tool.RELEASED.read_text()), tool.signatures())
    missing = tool.untold(names, (ROOT / "CHANGELOG.md").read_text())
    assert not missing, f"Name {missing} in the changelog's section Unreleased; python tools/public_signatures.py"


def test_an_added_argument_a_lost_method_and_a_new_class_are_noticed(tool):
    now = tool.signatures()
    before = {**now, "fit": "(model)", "infer.DiffusionHMC.gone": "(self)"}
    del before["GaussianKernel"]
    names = ["GaussianKernel", "fit", "infer.DiffusionHMC.gone"]
    assert tool.changed(before, now) == names
    changelog = "# Changelog\n\n## Unreleased\n- `fit` takes more.\n\n## 0.1.0\n- `GaussianKernel`.\n"
    assert tool.untold(names, changelog) == ["GaussianKernel", "infer.DiffusionHMC.gone"]


def test_the_version_is_one_in_package_citation_and_changelog():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert re.search(
        rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert nd.__version__ == importlib.metadata.version("numpyro-diffusion")


def test_the_file_reads_as_it_was_written_and_names_no_address_in_memory(tool):
    now = tool.signatures()
    text = tool.written(now)
    assert tool.read(text) == now
    assert " at 0x" not in text
    assert "numpyro" not in tool.signatures()["fit"]
    assert {"fit", "infer.DiffusionHMC", "GaussianKernel.bridge", "infer.AmortizedPosterior.fit"} <= now.keys()
