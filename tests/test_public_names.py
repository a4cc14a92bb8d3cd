"""Every public name has a docstring, a page of the reference, and an example somewhere that runs."""

import importlib
import inspect
import re
import types
from pathlib import Path

import pytest

import numpyro_diffusion as nd

ROOT = Path(__file__).parent.parent
MODULES = (
    "",
    "analytic",
    "bridges",
    "datasets",
    "evaluation",
    "infer",
    "networks",
    "plots",
    "pretrained",
    "schedules",
    "transforms",
)


def objects():
    for module_name in MODULES:
        module = importlib.import_module(".".join(filter(None, ("numpyro_diffusion", module_name))))
        for name in module.__all__:
            value = getattr(module, name)
            if not isinstance(value, types.ModuleType):
                yield module_name, name, value


def code_that_runs() -> str:
    """Doctests, the README's code, examples, and the cells of executed pages."""
    doctests = [
        line
        for path in (ROOT / "numpyro_diffusion").rglob("*.py")
        for line in path.read_text().splitlines()
        if line.lstrip().startswith((">>>", "..."))
    ]
    cells = [
        cell
        for path in [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("[!_]*/*.md"), ROOT / "README.md"]
        for cell in re.findall(r"```(?:python|\{code-cell\})[^\n]*\n(.*?)```", path.read_text(), re.DOTALL)
    ]
    examples = [path.read_text() for path in (ROOT / "examples").glob("*.py")]
    return "\n".join(doctests + cells + examples)


def results() -> set[type]:
    """Classes that a public function or method returns, and their bases: to show the function is to show them."""
    functions = []
    for *_, value in objects():
        functions += (
            [f for _, f in inspect.getmembers(value, inspect.isfunction)] if inspect.isclass(value) else [value]
        )
    returned = []
    for function in functions:
        annotation = inspect.signature(function).return_annotation
        names = inspect.unwrap(function).__globals__
        returned.append(names.get(annotation) if isinstance(annotation, str) else annotation)
    return {base for kind in returned if inspect.isclass(kind) for base in kind.__mro__}


CODE = code_that_runs()
REFERENCE = "\n".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))


CASES = [pytest.param(*entry, id=".".join(entry[:2]).lstrip(".")) for entry in objects()]


@pytest.mark.parametrize(("module_name", "name", "value"), CASES)
def test_a_public_name_is_documented_referenced_and_shown(module_name, name, value):
    assert len((value.__doc__ or "").split()) >= 4
    module = ".".join(filter(None, ("numpyro_diffusion", module_name)))
    # A name that two modules have is listed once.
    by_name = re.search(rf":: numpyro_diffusion(\.\w+)*\.{name}\b", REFERENCE)
    assert by_name or re.search(rf"automodule:: {re.escape(module)}\n(?: +:.*\n)* +:members:", REFERENCE)
    assert value in results() or re.search(rf"\b{name}\b", CODE)


def test_the_test_has_power():
    assert not re.search(r"\bno_such_public_name\b", CODE)
    assert len(CASES) > 60
    assert nd.evaluation.Bound in results()
    assert nd.ForwardChain not in results()
    assert nd.__all__ == sorted(nd.__all__)
