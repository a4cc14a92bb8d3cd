"""The package sbi on the simulations that ``sbi.py --export`` wrote, in an environment of its own (PyTorch, no JAX).

    python -m venv sbi_environment && sbi_environment/bin/pip install sbi
    sbi_environment/bin/python benchmarks/peers/sbi_draws.py FOLDER --peers npe npse

NPE and NPSE with the package's own settings: every simulation file of the folder gets a file of draws beside it, 10,000
for each observation, with the seconds that training and drawing took.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sbi.inference import NPE, NPSE
from sbi.utils import BoxUniform
from torch.utils.tensorboard import SummaryWriter

NUM_DRAWS = 10_000
# The priors: boxes by half their side, Gaussians by their covariance.
BOXES = {"two_moons": (2, 1.0), "gaussian_mixture": (2, 10.0), "slcp": (5, 3.0), "gaussian_linear_uniform": (10, 1.0)}


def prior(name: str) -> torch.distributions.Distribution:
    """Of a task."""
    if name in BOXES:
        size, half = BOXES[name]
        return BoxUniform(-half * torch.ones(size), half * torch.ones(size))
    if name == "gaussian_linear":
        return torch.distributions.MultivariateNormal(torch.zeros(10), 0.1 * torch.eye(10))
    raise ValueError(f"Expected one of {sorted([*BOXES, 'gaussian_linear'])}; got {name!r}.")


def draw(peer: str, path: Path) -> None:
    """Train on one file of simulations, and write draws."""
    name, _, seed = path.stem.split(".")
    torch.manual_seed(int(seed))
    with np.load(path) as found:
        theta, y, observations = (
            torch.as_tensor(found[key], dtype=torch.float32) for key in ("theta", "y", "observations")
        )
    with tempfile.TemporaryDirectory() as logs:
        method = {"npe": NPE, "npse": NPSE}[peer]
        inference = method(prior(name), show_progress_bars=False, summary_writer=SummaryWriter(logs))
        began = time.perf_counter()
        estimator = inference.append_simulations(theta, y).train()
        fit_seconds = time.perf_counter() - began
    posterior = inference.build_posterior(estimator)
    began = time.perf_counter()
    draws = [
        posterior.sample((NUM_DRAWS,), x=observation, show_progress_bars=False).numpy() for observation in observations
    ]
    draw_seconds = (time.perf_counter() - began) / len(draws)
    target = path.with_name(f"{path.stem}.{peer}.npz")
    np.savez(target, draws=np.stack(draws), fit_seconds=fit_seconds, draw_seconds=draw_seconds)
    print(f"{target}: trained in {fit_seconds:.0f} s, {NUM_DRAWS} draws in {draw_seconds:.1f} s")


def main() -> None:
    """Run the peers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peers", nargs="+", choices=["npe", "npse"], default=["npe", "npse"])
    parser.add_argument("--tasks", nargs="+", default=None)
    arguments = parser.parse_args()
    paths = [path for path in sorted(arguments.folder.glob("*.npz")) if len(path.stem.split(".")) == 3]
    for path in paths:
        if arguments.tasks is None or path.stem.split(".")[0] in arguments.tasks:
            for peer in arguments.peers:
                draw(peer, path)


if __name__ == "__main__":
    main()
