"""The Makefile gives each version of Python an environment of its own; the public workflow runs its targets."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
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
    return subprocess.run(command, cwd=checkout, env=environment, check=False, capture_output=True, text=True)


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


# The workflow ------------------------------------------------------------------------------------------------

WORKFLOW = (ROOT / ".github" / "workflows" / "test.yml").read_text()


def test_the_workflow_runs_targets_that_are_there_and_nothing_else():
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [re.sub(r" PYTHON=.*", "", command) for command in re.findall(r"run: (.*)", WORKFLOW)]
    called = {word for command in commands for word in command.split()[1:]}
    assert all(command.startswith("make ") for command in commands)
    assert {"lint", "types", "test", "test-lowest", "docs", "calibration"} <= called <= targets


def test_the_workflow_tests_every_version_that_the_package_declares():
    with (ROOT / "pyproject.toml").open("rb") as file:
        classifiers = tomllib.load(file)["project"]["classifiers"]
    declared = [name.rsplit(" ", 1)[1] for name in classifiers if re.fullmatch(r".* :: 3\.\d+", name)]
    assert re.findall(r"3\.\d+", re.search(r"python: (\[.*\])", WORKFLOW)[1]) == declared


def test_the_workflow_may_only_read_and_its_actions_have_versions():
    assert re.search(r"^permissions:\n  contents: read\n\n", WORKFLOW, re.MULTILINE)
    assert WORKFLOW.count("permissions:") == 1
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", name) for name in re.findall(r"uses: (.*)", WORKFLOW))
