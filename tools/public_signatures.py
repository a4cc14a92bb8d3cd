"""The public names of the package with their signatures, as of the last release, and what has changed since.

    python tools/public_signatures.py            names that differ from tools/public_signatures.txt
    python tools/public_signatures.py --write    at a release: write the file anew

What is public is what the package and its public modules list in ``__all__``, and the methods of public classes whose
names have no underscore in front. A test holds that every name which differs from the file is in the changelog's
section "Unreleased".
"""

import argparse
import importlib
import inspect
import re
import sys
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RELEASED = ROOT / "tools" / "public_signatures.txt"
MODULES = (
    "",
    "analytic",
    "bridges",
    "datasets",
    "evaluation",
    "guidance",
    "infer",
    "networks",
    "plots",
    "pretrained",
    "schedules",
    "transforms",
)


def signatures() -> dict[str, str]:
    """Signatures by name, the package's own methods included."""
    found = {}
    for module_name in MODULES:
        module = importlib.import_module(".".join(filter(None, ("numpyro_diffusion", module_name))))
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, types.ModuleType):
                continue
            full = ".".join(filter(None, (module_name, name)))
            found[full] = _signature(value)
            if inspect.isclass(value):
                found |= {f"{full}.{method}": text for method, text in _methods(value).items()}
    return found


def read(text: str) -> dict[str, str]:
    """What :func:`written` wrote."""
    return dict(line.split("\t", 1) for line in text.splitlines() if line)


def written(found: dict[str, str]) -> str:
    """One line for each name, in order."""
    return "".join(f"{name}\t{text}\n" for name, text in sorted(found.items()))


def changed(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Names that are new, gone, or have another signature; a new or gone class stands for its methods."""
    names = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    owners = {name for name in names if name not in before or name not in now}
    return sorted(name for name in names if name.rpartition(".")[0] not in owners)


def untold(names: list[str], changelog: str) -> list[str]:
    """Those of the names whose last part no word of the section "Unreleased" is."""
    section = changelog.partition("## Unreleased")[2].partition("\n## ")[0]
    words = set(re.findall(r"\w+", section))
    return [name for name in names if name.rpartition(".")[2] not in words]


def _methods(owner: type) -> dict[str, str]:
    """Public methods that the package defines on a class or on its bases."""
    return {
        name: _signature(value)
        for name, value in inspect.getmembers(owner)
        if not name.startswith("_") and callable(value) and _is_ours(owner, name)
    }


def _is_ours(owner: type, name: str) -> bool:
    """Whether the package defines it, and not NumPyro or dataclasses."""
    return next(base for base in owner.__mro__ if name in base.__dict__).__module__.startswith("numpyro_diffusion")


def _signature(value: Any) -> str:
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return type(value).__name__
    plain = [each.replace(annotation=inspect.Parameter.empty) for each in parameters]
    text = ", ".join(re.sub(r" at 0x[0-9a-f]+", "", str(each)) for each in plain)
    return f"({text})"


def main() -> int:
    """Write, or list; 1 if something is not told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the file anew, at a release")
    if parser.parse_args().write:
        RELEASED.write_text(written(signatures()))
        return 0
    names = changed(read(RELEASED.read_text()), signatures())
    missing = untold(names, (ROOT / "CHANGELOG.md").read_text())
    for name in names:
        print(name, "(not in the changelog)" if name in missing else "")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
