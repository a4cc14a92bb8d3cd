"""What a run of islands found, in NumPy, and what its user must be told."""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from .._checks import expected
from .._weights import effective_size, normalised
from ..model.split import SplitModel

__all__ = ["Islands", "check_weights", "report", "table", "warn"]

# The relative standard error of K values' mean is 1 when one of them is all: above 1/2 it says little of the mean.
_LARGE_ERROR = 0.5


class Islands(NamedTuple):
    """All islands of one run."""

    split: SplitModel
    arrays: list
    static: Any
    elements: str
    cloud: Any  # a filter.Cloud of NumPy arrays, each leading with K
    others: dict[str, np.ndarray]  # (K, site shape...)
    shared: np.ndarray  # (K,), log r's shared term less the density at which ``others`` were drawn
    key: jax.Array

    @property
    def islands_differ(self) -> bool:
        """Whether each island has its own draw of other sites."""
        return bool(self.others)

    def log_evidence_by_island(self) -> np.ndarray:
        """Of all elements together, shape (K,)."""
        log_evidence = np.asarray(self.cloud.log_evidence, np.float64)
        return log_evidence.reshape(len(log_evidence), -1).sum(1) + self.shared

    @property
    def num_particles(self) -> int:
        """N."""
        return self.cloud.log_weights.shape[1]

    @property
    def smallest(self) -> tuple[float, int]:
        """The smallest effective size among islands that carry weight, and its level."""
        sizes = self.cloud.effective_sizes[self.weights > 0.1 / len(self.shared)]
        return float(sizes.min()), int(np.argwhere(sizes == sizes.min())[0][1])

    @property
    def weights(self) -> np.ndarray:
        """The islands' weights, summing to one; equal where elements are pooled by themselves."""
        if not self.islands_differ:
            return np.full(len(self.shared), 1 / len(self.shared))
        return normalised(self.log_evidence_by_island())


def check_weights(result: Islands) -> None:
    """Refuse a run without an answer.

    Raises:
        ValueError: if a weight or a particle with a weight is NaN or infinite, or if for some element all particles of
            all islands have weight zero; with the level and what it means.
    """
    cloud, num_steps = result.cloud, result.split.num_steps
    if np.isnan(result.shared).any() or result.shared.max() == -np.inf:
        raise ValueError(
            expected(
                "a finite log density of the sites that no diffusion enters",
                result.shared.max(),
                "Check their laws and data.",
            )
        )
    undefined_levels = np.isnan(cloud.log_means) | (cloud.log_means == np.inf)
    if undefined_levels.any():
        level = _highest_level(undefined_levels)
        cure = (
            "The network or the twist gave no finite number there; look at its output."
            if level
            else "The likelihood is infinite at a particle, or the network's last step no finite number; look at both."
        )
        raise ValueError(expected("finite weights", f"NaN or infinite ones at level {level} of {num_steps}", cure))
    for name, x in cloud.x.items():
        has_weight = cloud.log_weights > -np.inf
        lost = has_weight & ~np.isfinite(x).reshape(*has_weight.shape, -1).all(-1)
        if lost.any():
            raise ValueError(
                expected(
                    f"finite draws of site {name!r}",
                    f"NaN or infinite ones at {int(lost.sum())} of {lost.size} particles",
                    "The network gave no finite number; look at its output.",
                )
            )
    log_evidence = result.log_evidence_by_island() if result.islands_differ else cloud.log_evidence
    dead = log_evidence.max(axis=0) == -np.inf
    if not dead.any():
        return
    level = _highest_level(cloud.log_means == -np.inf)
    undefined = int(np.sum(cloud.num_undefined))
    if level:
        cure = "The proposal moves every particle to where the chain never goes; mend it."
    elif undefined:
        cure = f"Level 0 is where particles meet the data: the likelihood is NaN at {undefined} of them; mend it."
    else:
        cure = (
            "Level 0 is where particles meet the data: the likelihood is zero at every one. The data are impossible "
            "under the model, or so far from the prior that no particle comes near; check units and scale."
        )
    where = f" for elements {np.argwhere(dead).tolist()}" if dead.ndim else ""
    raise ValueError(
        expected(
            "a particle with a positive weight at every level",
            f"all weights zero at level {level} of {num_steps}{where}",
            cure,
        )
    )


def _highest_level(levels: np.ndarray) -> int:
    """The level, of (K, T + 1, E...) booleans, that went wrong first."""
    return int(np.argwhere(levels)[:, 1].max())


def warn(result: Islands, log_evidence_error: float) -> None:
    """Warn of what makes the draws unreliable.

    Args:
        result: of the run.
        log_evidence_error: the largest of any element, in nats.
    """
    messages = []
    undefined = int(np.sum(result.cloud.num_undefined))
    if undefined:
        messages.append(
            f"The likelihood was NaN at {undefined} of {result.cloud.log_weights.size} particles; they were given "
            "weight zero. Mend the model's formula there, or the posterior lacks what it should have had."
        )
    size, level = result.smallest
    if size < max(2.0, 0.005 * result.num_particles):
        messages.append(
            f"The effective size fell to {size:.1f} of {result.num_particles} particles at level {level} of "
            f"{result.split.num_steps}: a few stand for all, and draws and evidence are unreliable. Take more "
            "particles, a closer twist ('gaussian' for Normal observations), or a schedule with more steps."
        )
    if result.islands_differ:
        carried = effective_size(result.log_evidence_by_island())
        if carried < 10:
            messages.append(
                f"Other latent sites {sorted(result.others)} were drawn from their prior, and {carried:.1f} of "
                f"{len(result.shared)} islands carry the weight. Take more islands, or DiffusionGibbs."
            )
    elif log_evidence_error > _LARGE_ERROR:
        messages.append(
            f"The islands disagree on the evidence: its standard error is {log_evidence_error:.2f} nats, and 1 is "
            "all that it can be, when one island has all the weight. Take more particles or a closer twist."
        )
    for message in messages:
        warnings.warn(message, stacklevel=4)


def report(result: Islands, log_evidence: float, log_evidence_error: float, elements: str) -> str:
    """The head of the summary."""
    size, level = result.smallest
    lines = [
        f"{len(result.shared)} islands of {result.num_particles} particles, T = {result.split.num_steps}",
        f"log evidence {log_evidence:.3f} +- {log_evidence_error:.3f} nats",
        f"smallest effective size {size:.0f} of {result.num_particles}, at level {level}",
        f"filtered {elements}",
    ]
    if result.islands_differ:
        lines.append(f"drawn from their prior, one draw for each island: {', '.join(sorted(result.others))}")
    return "\n".join(lines)


def table(samples: Mapping[str, Any]) -> str:
    """Mean, standard deviation and quantiles of every number of every site, a line each."""
    lines = [f"{'':>24} {'mean':>10} {'sd':>10} {'5%':>10} {'50%':>10} {'95%':>10}"]
    for site, draws in samples.items():
        values = np.asarray(draws, np.float64)
        moments = [values.mean(0), values.std(0), *np.quantile(values, (0.05, 0.5, 0.95), axis=0)]
        for index in np.ndindex(values.shape[1:]):
            label = f"{site}[{','.join(map(str, index))}]" if index else site
            lines.append(f"{label:>24} " + " ".join(f"{moment[index]:10.4g}" for moment in moments))
    return "\n".join(lines)
