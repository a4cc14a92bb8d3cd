"""Build sdist and wheel, and run the README's code from the wheel in clean environments, without a checkout.

    python tools/try_release.py --pythons python3.11 python3.13

Files are left in dist/. Each interpreter gets a new virtual environment in a temporary folder, in which the wheel is
installed with its dependencies alone and what the README's code says it needs. Every block of Python of the README, as
the wheel carries it in its metadata, is run there as it is, then ``infer.check``. Exit status 0 says that all passed.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
BACKEND = "import sys, setuptools.build_meta as backend; print(getattr(backend, sys.argv[1])(sys.argv[2]))"
# Run in the clean environment: nothing of it may come from the checkout.
PROGRAM = """
import importlib.metadata, json, pathlib, re, sys, time, warnings

began = time.perf_counter()
import numpyro_diffusion as nd
seconds = {"import": time.perf_counter() - began}
assert "site-packages" in nd.__file__, nd.__file__
readme = importlib.metadata.metadata("numpyro-diffusion").get_payload()
blocks = re.findall(r"```python\\n(.*?)```", readme, re.DOTALL)
assert blocks
names = {}
for number, block in enumerate(blocks):
    began = time.perf_counter()
    exec(compile(block, f"README block {number + 1}", "exec"), names)
    seconds[f"block {number + 1}"] = time.perf_counter() - began
began = time.perf_counter()
found = nd.infer.check(names["model"], names["y"])
assert found.passed, found
seconds["check"] = time.perf_counter() - began
print("SECONDS", json.dumps({key: round(value, 1) for key, value in seconds.items()}))
"""


def build() -> Path:
    """The wheel, built from the sdist as pip would; what each holds is compared with the checkout.

    Raises:
        AssertionError: for a module that one of them lacks.
    """
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "build"
        python = new_environment(sys.executable, environment)
        run([python, "-m", "pip", "install", "--quiet", "setuptools>=77", "wheel"])
        run([python, "-c", BACKEND, "build_sdist", str(DIST)], cwd=ROOT)
        sdist = next(DIST.glob("*.tar.gz"))
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
            inside = {Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()}
        source = Path(folder) / sdist.name.removesuffix(".tar.gz")
        run([python, "-c", BACKEND, "build_wheel", str(DIST)], cwd=source)
    wheel = next(DIST.glob("*.whl"))
    package = ROOT / "numpyro_diffusion"
    wanted = {path.relative_to(ROOT).as_posix() for path in package.rglob("*.py")} | {"numpyro_diffusion/py.typed"}
    with zipfile.ZipFile(wheel) as archive:
        missing = wanted - set(archive.namelist()), (wanted | {"README.md", "LICENSE"}) - inside
    if any(missing):
        raise AssertionError(f"Expected every file of the package in wheel and sdist; got none of {missing}.")
    return wheel


def new_environment(interpreter: str, folder: Path) -> str:
    """The Python of a new virtual environment."""
    run([interpreter, "-m", "venv", str(folder)])
    return str(folder / "bin" / "python")


def attempt(wheel: Path, interpreter: str) -> dict[str, float]:
    """Seconds of each part of the README in a clean environment."""
    with tempfile.TemporaryDirectory() as folder:
        python = new_environment(interpreter, Path(folder) / "environment")
        began = time.perf_counter()
        run([python, "-m", "pip", "install", "--quiet", f"{wheel}[examples]", "pandas"])
        installed = round(time.perf_counter() - began, 1)
        command = [python, "-I", "-c", PROGRAM]
        output = subprocess.run(command, cwd=folder, check=True, text=True, stdout=subprocess.PIPE).stdout  # noqa: S603
    last = next(line for line in output.splitlines() if line.startswith("SECONDS"))
    return {"install": installed, **json.loads(last.removeprefix("SECONDS"))}


def run(command: list[str], **settings: object) -> None:
    """A command that must pass."""
    subprocess.run(command, check=True, **settings)  # type: ignore[call-overload]  # noqa: S603


def main() -> None:
    """Build, and try on each interpreter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", nargs="*", default=[sys.executable], help="interpreters to try it on")
    arguments = parser.parse_args()
    wheel = build()
    print(wheel.name, f"{wheel.stat().st_size / 1e3:.0f} kB")
    for interpreter in arguments.pythons:
        print(interpreter, attempt(wheel, interpreter), flush=True)


if __name__ == "__main__":
    main()
