"""The tables for those who come from elsewhere name what is there, and link to pages that are."""

import functools
import re
from pathlib import Path

import numpyro
import numpyro.distributions
import pytest

import numpyro_diffusion as nd

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "coming_from.md").read_text()
RIGHT = [row.split("|")[2] for row in PAGE.splitlines() if re.match(r"\| [^|]+\|[^|]+\|$", row)]


def resolved(name):
    root, *rest = name.split(".")
    return functools.reduce(getattr, rest, {"nd": nd, "numpyro": numpyro, "dist": numpyro.distributions}[root])


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\b(?:nd|numpyro|dist)(?:\.\w+)+", "\n".join(RIGHT)))))
def test_a_name_on_the_right_exists(name):
    assert resolved(name) is not None


def test_the_tables_are_read():
    assert len(RIGHT) > 40
    with pytest.raises(AttributeError):
        resolved("nd.no_such_name")


def test_links_lead_to_pages():
    links = re.findall(r"\{doc\}`([\w/]+)`", PAGE)
    assert len(links) > 4
    assert [link for link in links if not (DOCS / f"{link}.md").exists()] == []
