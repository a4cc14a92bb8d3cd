"""Speed and memory of training and sampling: against hand-written JAX, against PyTorch with diffusers, against T.

    fit       nd.fit against a loop in JAX and optax, MLP and U-Net              speed_fit.py
    torch     training and sampling against PyTorch with diffusers, if installed  speed_vs_torch.py, speed_torch.py
    growth    time against T, draws, dimension, particles, batch                  speed_growth.py
    memory    training at T = 1000 over T = 10                                    speed_process.py
    import    seconds to import, seconds to the first draw                        speed_process.py

What is compared runs in turn, in an order that changes every round; a ratio is the median of those of neighbouring
runs. Let nothing else run meanwhile: PyTorch's threads wait for each other and suffer more from it than XLA's.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import speed_fit
import speed_growth
import speed_plot
import speed_process
import speed_vs_torch
from records import parser, print_table, write

GROUPS = ("fit", "torch", "growth", "memory", "import")


def run(group: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The records of one group."""
    seed, rounds = arguments.seed, arguments.rounds
    match group:
        case "fit":
            return speed_fit.run(seed, rounds)
        case "torch":
            return speed_vs_torch.run(seed, rounds, arguments.torch_python)
        case "growth":
            return speed_growth.run(seed, rounds)
        case "memory":
            return speed_process.memory(max(3, rounds // 3))
        case _:
            return speed_process.imports(max(7, rounds))


def main(arguments: argparse.Namespace) -> None:
    records = []
    for group in arguments.rows:
        found = run(group, arguments)
        print_table(found)  # each group takes minutes
        records += found
    write(records, arguments.json)
    if arguments.plot:
        speed_plot.plot(records, arguments.plot)


if __name__ == "__main__":
    options = parser(__doc__, "speed.json")
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("--rows", nargs="+", choices=GROUPS, default=list(GROUPS), help="groups to run")
    options.add_argument("--rounds", type=int, default=11, help="alternating runs of each; of long ones fewer")
    options.add_argument("--plot", type=Path, help="a PNG file for the picture")
    options.add_argument("--torch-python", default=sys.executable, help="an interpreter that has torch and diffusers")
    main(options.parse_args())
