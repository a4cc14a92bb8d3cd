"""How long the sentences of the docs and docstrings are, and how long the pages.

    python tools/sentences.py              means, and what exceeds them
    python tools/sentences.py --longest 10    the longest sentences of each kind

Code, tables, headings, formulas set apart, directives and the arguments' part of docstrings are left out; a list's item
is a sentence. Exit status 1 says that a mean is above 18 words, or a page that is no reference above 1,500.
"""

import argparse
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_WORDS, MOST_ON_A_PAGE = 18.0, 1500
_SECTIONS = re.compile(r"^\s*(Args|Attributes|Returns|Raises|Yields|References):", re.MULTILINE)
_END = re.compile(r"(?<=[.!?])[\"')`*_]*\s+(?=[\"'(`*_\[{]*[A-Z0-9`])|\n\s*\n")


def pages() -> list[Path]:
    """The pages of the docs and what stands beside them, without references and the changelog."""
    found = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("[!_]*/*.md")]
    return sorted([*(path for path in found if path.parent.name not in ("reference", "generated")), ROOT / "README.md"])


def prose(page: str) -> str:
    """A page of Markdown without what is no prose."""
    text = re.sub(r"\A---\n.*?\n---\n", "", page, flags=re.DOTALL)
    text = re.sub(r"```.*?```|<!--.*?-->|\$\$.*?\$\$", "\n\n", text, flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not re.match(r"\s*(\||#|!\[|:::|\([\w-]+\)=)", line)]
    text = "\n".join(re.sub(r"^\s*(?:[-*]|\d+\.)\s+", "\n\n", line) for line in lines)
    text = re.sub(r"\{[\w:]+\}`~?([^`<]*?)(?:<[^`>]*>)?`", r"\1", text)
    return re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)


def docstrings(source: str) -> list[str]:
    """What the docstrings of a module say before their sections of arguments and examples."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node) or ""
            text = re.split(r"\n\s*>>>", _SECTIONS.split(text)[0])[0]
            # A line set apart by four spaces is a formula or code.
            found.append(re.sub(r"^ {4,}.*$", "\n", text, flags=re.MULTILINE))
    return found


def sentences(text: str) -> list[str]:
    """Of three words and more."""
    parts = (" ".join(part.split()) for part in _END.split(text))
    return [part for part in parts if len(part.split()) >= 3]


def lengths(found: list[str]) -> list[int]:
    """Words of each sentence."""
    return [len(sentence.split()) for sentence in found]


def mean(numbers: list[int]) -> float:
    """Their mean."""
    return sum(numbers) / max(1, len(numbers))


def main() -> int:
    """Print; 1 if something is too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=int, default=0, help="sentences of each kind to show")
    count = parser.parse_args().longest
    texts = {path: prose(path.read_text()) for path in pages()}
    modules = sorted((ROOT / "numpyro_diffusion").rglob("*.py"))
    kinds = {
        "pages": [sentence for text in texts.values() for sentence in sentences(text)],
        "docstrings": [each for path in modules for text in docstrings(path.read_text()) for each in sentences(text)],
    }
    is_long = False
    for kind, found in kinds.items():
        numbers = lengths(found)
        is_long |= mean(numbers) > MOST_WORDS
        print(f"{kind}: {len(numbers)} sentences, {mean(numbers):.1f} words in the mean")
        for sentence in sorted(found, key=lambda each: -len(each.split()))[:count]:
            print(f"  {len(sentence.split())}: {sentence}")
    for path, text in texts.items():
        words = len(text.split())
        if words > MOST_ON_A_PAGE:
            is_long = True
            print(f"{path.relative_to(ROOT)}: {words} words")
    return int(is_long)


if __name__ == "__main__":
    sys.exit(main())
