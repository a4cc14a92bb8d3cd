"""The learned prior of a table's training rows, for ``density.py`` and ``missing.py``: it is trained once for both."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import numpyro.distributions as dist

import numpyro_diffusion as nd


class Prior(NamedTuple):
    """What ``nd.learn_prior`` chose and found, and the seconds that it took."""

    distribution: dist.Distribution
    seconds: float


def learned(train: np.ndarray, name: str, seed: int, directory: Path | None) -> Prior:
    """The prior of a table's training rows with ``learn_prior``'s own choices; kept in a directory, if there is one."""
    path = None if directory is None else directory / f"{name}.{seed}"
    if path is not None and path.exists():
        seconds = json.loads(path.with_suffix(f".{seed}.json").read_text())["seconds"]
        return Prior(nd.load(path), seconds)
    found = nd.learn_prior(train, rng_key=jax.random.key(seed), test=0, progress_bar=False)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        nd.save(found.distribution, path)
        path.with_suffix(f".{seed}.json").write_text(json.dumps({"seconds": found.report.seconds}))
    return Prior(found.distribution, found.report.seconds)
