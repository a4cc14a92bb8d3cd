"""The Makefile gives each version of Python an environment of its own and never mixes them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
INHERITED = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "PYTHON")  # when ``make test`` runs this


@pytest.fixture
def checkout(tmp_path):
    """The Makefile, beside an interpreter that says it is Python 3.99."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    other = tmp_path / "python3.99"
    other.write_text("#!/bin/sh\necho 3.99\n")
    other.chmod(0o755)
    return tmp_path


def make(checkout, *arguments):
    """What ``make test`` would run, and its messages."""
    command = ["make", "--dry-run", "--no-print-directory", "test", *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in INHERITED}
    return subprocess.run(command, cwd=checkout, env=environment, check=False, capture_output=True, text=True)  # noqa: S603


def environment_of(checkout, version):
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").touch()
    (checkout / ".venv" / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {version}\n")


def test_the_first_environment_is_dot_venv_whatever_its_version(checkout):
    found = make(checkout, "PYTHON=./python3.99").stdout
    assert "./python3.99 -m venv .venv\n" in found
    assert "\n.venv/bin/python -m pytest" in found


def test_another_version_gets_its_own_environment(checkout):
    environment_of(checkout, "3.11.7")
    found = make(checkout, "PYTHON=./python3.99").stdout
    assert "./python3.99 -m venv .venv-3.99\n" in found
    assert "\n.venv-3.99/bin/python -m pytest" in found
    assert ".venv/" not in found


def test_the_same_version_takes_the_environment_that_is_there(checkout):
    environment_of(checkout, f"{sys.version_info.major}.{sys.version_info.minor}.0")
    found = make(checkout, f"PYTHON={sys.executable}").stdout
    assert "-m venv" not in found
    assert "\n.venv/bin/python -m pytest" in found


def test_without_a_wish_the_environment_that_is_there_serves(checkout):
    environment_of(checkout, "3.98.1")
    assert "\n.venv/bin/python -m pytest" in make(checkout).stdout


def test_an_interpreter_that_is_not_there_is_named(checkout):
    environment_of(checkout, "3.98.1")
    found = make(checkout, "PYTHON=./python4")
    assert found.returncode != 0
    assert "Expected PYTHON to be an interpreter; got ./python4" in found.stderr
