"""The page on the architecture names files that exist, and its picture is that of the import contract."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "numpyro_diffusion"
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def drawing():
    spec = importlib.util.spec_from_file_location("draw_rooms", ROOT / "docs" / "draw_rooms.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exists(name):
    """A file or a room, which may become a file."""
    return (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists() or (ROOT / name).exists()


def test_every_file_that_is_named_exists():
    named = set(re.findall(r"`((?:\w+/)*\w+\.py|(?:\w+/)+)`", PAGE))
    assert len(named) > 40
    assert sorted(name for name in named if not exists(name)) == []


def test_every_room_has_a_row_or_a_word():
    rooms = [path.name for path in PACKAGE.iterdir() if path.is_dir() and not path.name.startswith("_")]
    assert [room for room in rooms if f"`{room}/" not in PAGE and f"`{room}`" not in PAGE] == []


@pytest.mark.parametrize(
    ("title", "first", "last"),
    [
        ("From `TwistedSMC.run` to the weights", "infer/smc.py", "particles/steps.py"),
        ("From `fit` to the loss", "training/fit.py", "kernels/gaussian.py"),
        ("From `DiffusionGibbs.sample` to a new x", "infer/gibbs.py", "particles/steps.py"),
    ],
)
def test_ways_through_the_code_open_six_files(title, first, last):
    steps = re.findall(r"^\d\. `([\w/]+\.py)`", PAGE.split(f"**{title}**")[1].split("Passed through")[0], re.MULTILINE)
    assert (steps[0], steps[-1]) == (first, last)
    assert len(steps) <= 6


def test_the_picture_is_that_of_the_contract():
    """Else run python docs/draw_rooms.py."""
    module = drawing()
    assert module.PICTURE.read_text() == module.draw(module.layers())


def test_every_layer_that_is_no_helper_has_words():
    module = drawing()
    names = {name for layer in module.layers() for name in layer if not name.startswith("_")}
    assert names - set(module.WORDS) == set()
