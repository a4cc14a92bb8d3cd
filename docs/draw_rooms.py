"""The picture of the rooms, docs/images/rooms.svg, from import-linter's layers in pyproject.toml.

    python docs/draw_rooms.py

Boxes have their own background, so that the picture can be read on a light and on a dark page.
"""

import html
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "rooms.svg"
WIDTH, HEIGHT, GAP, LEFT = 900, 40, 8, 46

WORDS = {
    "arviz": "results of every engine, for ArviZ",
    "infer": "engines with NumPyro's faces: TwistedSMC, DiffusionGibbs, ...",
    "learning": "learn_prior: from data as they come to a prior in their units",
    "noise": "a chain as a map of normal noises",
    "particles": "sequential Monte Carlo on arrays; knows no user's model",
    "model": "the only room that traces a user's model",
    "training": "fit: SVI in chunks",
    "evaluation": "how good a model is",
    "plots": "pictures",
    "io": "save, load",
    "bridges": "networks of Flax NNX, Equinox",
    "modules": "where Haiku meets numpyro.param",
    "pretrained": "DDPM, EDM networks",
    "wrappers": "diffusions inside of other distributions",
    "diffusion": "p(x^0) as a NumPyro distribution",
    "guidance": "corrections of a reverse step by the data, one protocol",
    "estimates": "named estimates of log p(x^0)",
    "chains": "many steps: ForwardChain, ReverseChain",
    "analytic": "exact denoisers",
    "transition": "the learned function, as a chain sees it",
    "data_scale": "is the schedule made for these data",
    "kernels": "one step, forward and back, and all its algebra",
    "networks": "Haiku functions",
    "datasets": "toy data, images",
    "transforms": "maps of columns",
    "schedules": "b_1..b_T",
}


def layers() -> list[list[str]]:
    """Names by layer, from the top."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (found,) = [contract["layers"] for contract in contracts if contract["name"] == "Imports point down"]
    return [[name.strip() for name in layer.replace(":", "|").split("|")] for layer in found]


def draw(rows: list[list[str]]) -> str:
    """The picture as SVG."""
    height = len(rows) * (HEIGHT + GAP) + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" role="img">',
        "<title>The rooms of the package; each imports from those below it only</title>",
        f'<path d="M22 {GAP}V{height - 2 * GAP}m-7 -9l7 10l7 -10" fill="none" stroke="#808080" stroke-width="2"/>',
        f'<g transform="translate(13 {height // 2}) rotate(-90)">{_text(0, 0, "imports", 13, "#808080")}</g>',
    ]
    for index, names in enumerate(rows):
        y = GAP + index * (HEIGHT + GAP)
        width = (WIDTH - LEFT - GAP * len(names)) / len(names)
        for column, name in enumerate(names):
            x = LEFT + column * (width + GAP)
            middle = x + width / 2
            words = WORDS.get(name, "")
            fill = "#dbe7f3" if words else "#e6e6e6"
            lines.append(f'<rect x="{x:g}" y="{y}" width="{width:g}" height="{HEIGHT}" rx="5" fill="{fill}"/>')
            lines.append(_text(middle, y + (17 if words else 25), f"<tspan font-weight='bold'>{name}</tspan>", 14))
            if words:
                lines.append(_text(middle, y + 33, html.escape(words), 11.5))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _text(x: float, y: float, words: str, size: float, fill: str = "#1d2733") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="middle" font-size="{size:g}" fill="{fill}">{words}</text>'


if __name__ == "__main__":
    PICTURE.write_text(draw(layers()))
