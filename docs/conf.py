"""Sphinx configuration: MyST pages, executed; reference from docstrings, complete or the build fails."""

import importlib
import importlib.metadata
import os
import pathlib
import re
import sys
import types
from typing import Any

from jax.typing import ArrayLike
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util.parallel import make_chunks
from sphinx.util.typing import stringify_annotation

ROOT = pathlib.Path(__file__).parent.parent

project = "numpyro-diffusion"
author = copyright = "The numpyro-diffusion contributors"  # noqa: A001 - Sphinx's name
release = version = importlib.metadata.version("numpyro-diffusion")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "numpyro-diffusion"

myst_heading_anchors = 3
# Every page runs anew when it is read: a cache is keyed on the page and would not see that the package changed.
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "warn"  # a page that shows a warning it did not mean to fails the build
# For the kernels that run the pages: no page shows a progress bar, compilation is quick, and what one page compiled
# another loads. While the first is still writing it, the other compiles it as well.
_IGNORED = ("IProgress not found", "Error reading persistent compilation cache entry")
os.environ["PYTHONWARNINGS"] = ",".join(f"ignore:{message}" for message in _IGNORED)
sys.path.insert(0, str(ROOT / "tests"))
xla_flags = importlib.import_module("xla_flags")
if "XLA_FLAGS" not in os.environ and xla_flags.is_known(xla_flags.PAGES):
    os.environ["XLA_FLAGS"] = xla_flags.PAGES
# On some processors XLA logs an error for each program that it loads from the cache.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # JAX, imported above, has set it to 1
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / "docs" / "_build" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.02")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# The modules whose ``__all__`` is public, beside the package itself.
PUBLIC_MODULES = ("analytic", "datasets", "evaluation", "infer", "networks", "plots", "schedules")
# Public, though not in an ``__all__`` of those: what other public names return or take.
PUBLIC_EXTRAS = (
    "estimates.Estimator",
    "guidance.Guidance",
    "guidance.Guided",
    "guidance.LearnedGuidance",
    "infer.result.SMCResult",
    "modules.HaikuFunction",
    "training.DivergenceError",
    "training.FitResult",
)


def public_names() -> set[str]:
    """Full names of all that is public, as the reference should list them."""
    package = importlib.import_module("numpyro_diffusion")
    names = {f"numpyro_diffusion.{extra}" for extra in PUBLIC_EXTRAS}
    for module in (package, *(importlib.import_module(f"numpyro_diffusion.{name}") for name in PUBLIC_MODULES)):
        for name in module.__all__:
            if not isinstance(getattr(module, name), types.ModuleType):
                names.add(f"{module.__name__}.{name}")
    return names - {"numpyro_diffusion.schedules.Schedule"}  # listed once, at the package


def check_reference(_: Sphinx, env: BuildEnvironment) -> None:
    """Fail if a public name has no entry in the reference.

    Raises:
        ExtensionError: with the names.
    """
    missing = sorted(public_names() - set(env.domaindata["py"]["objects"]))
    if missing:
        raise ExtensionError(f"Expected an entry in docs/reference for every public name; got none for {missing}.")


# Outside of ``literals``: a bar, and a star that unpacks.
_MARKUP = re.compile(r"(?:\||(?<=[ (])\*(?=\w+\)))(?=(?:[^`]*`[^`]*`)*[^`]*$)")


def mark_equations(*event: Any) -> None:
    """Show the indented equations and tables of a docstring as they are written; so ``|x|`` and ``(T, *event)``."""
    _, what, *_, lines = event
    marked: list[str] = []
    in_section = in_block = False
    for index, line in enumerate(lines):
        indented = line.startswith("    ")
        if line and not indented:
            following = lines[index + 1] if index + 1 < len(lines) else ""
            in_section = line.endswith(":") and following.startswith("    ")
            in_block = False
        if indented and not in_section and not in_block and (index == 0 or not lines[index - 1]):
            marked += [".. code-block:: text", ""]
            in_block = True
        is_code = in_block or line.lstrip().startswith((">>>", "..."))
        marked.append(line if is_code else _MARKUP.sub(r"\\\g<0>", line))
    # Napoleon reads "text: more" in a property's first line as "type: text"; so that line becomes an empty comment.
    lines[:] = ["..", "", *marked] if what == "property" else marked


def shorten_signature(*event: Any) -> tuple[str | None, ...]:
    """Write ArrayLike for the union of types that it stands for."""
    union = stringify_annotation(ArrayLike, "smart")
    return tuple(text and text.replace(union, "ArrayLike") for text in event[-2:])


def share_pages(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """With ``-j 2``, each of the two processes runs the cells of half of the pages."""
    runs = [name for name in docnames if "{code-cell}" in env.doc2path(name).read_text(encoding="utf-8")]
    others = [name for name in docnames if name not in runs]
    half = -(-len(runs) // 2)  # the how-to pages; then the tutorials, which take as long
    size = len(make_chunks(docnames, app.parallel)[0]) if docnames else 0
    fill = max(0, size - half)
    docnames[:] = runs[:half] + others[:fill] + runs[half:] + others[fill:]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", mark_equations, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("env-check-consistency", check_reference)
    app.connect("env-before-read-docs", share_pages)
