"""What a run of islands found, in NumPy, and what its user must be told."""

import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

from .._checks import expected
from .sites import SplitModel

__all__ = ["Islands", "check_weights", "report", "warn"]


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
        log_weights = self.log_evidence_by_island()
        weights = np.exp(log_weights - log_weights.max())
        return weights / weights.sum()


def check_weights(result: Islands) -> None:
    """Refuse a run in which all particles of all islands had weight zero, for some element.

    Raises:
        ValueError: with the level and what it means.
    """
    cloud = result.cloud
    if np.isnan(result.shared).any():
        raise ValueError(
            expected("a finite log density of the sites that no diffusion enters", "NaN", "Check their laws and data.")
        )
    with_others = result.log_evidence_by_island()[:, None] if result.islands_differ else cloud.log_evidence
    if np.all(np.isfinite(with_others.max(axis=0))):
        return
    dead = ~np.isfinite(cloud.log_means)
    level = int(max(np.argwhere(dead.reshape(*dead.shape[:2], -1).any(axis=(0, 2)))[:, 0], default=0))
    undefined = int(np.sum(cloud.num_undefined))
    if level:
        cure = "The network or the twist gave no finite number there; look at its output."
    elif undefined:
        cure = f"Level 0 is where particles meet the data: the likelihood is NaN at {undefined} of them; mend it."
    else:
        cure = (
            "Level 0 is where particles meet the data: the likelihood is zero at every one. The data are impossible "
            "under the model, or so far from the prior that no particle comes near; check units and scale."
        )
    raise ValueError(
        expected(
            "a particle with a positive weight at every level",
            f"all weights zero at level {level} of {result.split.num_steps}",
            cure,
        )
    )


def warn(result: Islands, log_evidence_error: float) -> None:
    """Warn of what makes the draws unreliable."""
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
        carried = 1 / (result.weights**2).sum()
        if carried < 10:
            messages.append(
                f"Other latent sites {sorted(result.others)} were drawn from their prior, and {carried:.1f} of "
                f"{len(result.shared)} islands carry the weight. Take more islands, or DiffusionGibbs."
            )
    elif log_evidence_error > 1:
        messages.append(
            f"The islands disagree on the evidence: its standard error is {log_evidence_error:.1f} nats. Take more "
            "particles or a closer twist."
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
