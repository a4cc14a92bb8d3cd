"""Docs and docstrings are read quickly: 18 words a sentence in the mean at most, and no page above 1,500 words."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import sentences

sys.path.pop(0)


def test_docs_and_docstrings_keep_to_the_lengths():
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "sentences.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_is_no_prose_is_left_out():
    page = "---\na: b\n---\n# A heading of words\n\nOne two three. Four `five.six` seven\neight.\n\n"
    page += "```python\nx = 1\n```\n| a | table of words |\n"
    page += "- An item of a list\n- Another item of it, see {py:func}`~package.name` [there](a.md)\n"
    assert sentences.sentences(sentences.prose(page)) == [
        "One two three.",
        "Four `five.six` seven eight.",
        "An item of a list",
        "Another item of it, see package.name there",
    ]


def test_docstrings_end_where_arguments_begin():
    text = "What it is for.\n\n    x = formula of words\n\nMore of it here.\n\nArgs:\n    x: not a sentence of it.\n"
    source = f'"""{text}"""\n'
    assert [sentences.sentences(text) for text in sentences.docstrings(source)] == [
        ["What it is for.", "More of it here."]
    ]


def test_long_sentences_and_pages_are_told(monkeypatch, tmp_path, capsys):
    long = "Word" + " word" * 39 + ". "
    (tmp_path / "page.md").write_text(long * 40)
    monkeypatch.setattr(sentences, "pages", lambda: [tmp_path / "page.md"])
    monkeypatch.setattr(sentences, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["sentences.py"])
    assert sentences.main() == 1
    assert "pages: 40 sentences, 40.0 words in the mean" in capsys.readouterr().out
