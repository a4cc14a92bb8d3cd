"""Errors, warnings and the summary of a run of ``TwistedSMC``. ``result`` is an :class:`~.SMCResult`."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._checks import expected
from .._weights import effective_size
from .checklist import ADVICE

__all__ = ["check_weights", "disagreement", "report", "table", "warn"]

# The relative standard error of K values' mean is 1 when one of them is all: above 1/2 it says little of the mean.
_LARGE_ERROR = 0.5


def check_weights(result: Any) -> None:
    """Raise where a run has no answer.

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
                "Check their distributions and data.",
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
    """The highest level at which one of (K, T + 1, E...) booleans is true: particles reach it first."""
    return int(np.argwhere(levels)[:, 1].max())


def warn(result: Any, log_evidence_error: float) -> None:
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
    else:
        messages += disagreement(log_evidence_error, "Take more particles or a closer twist.")
    for message in messages:
        warnings.warn(f"{message} {ADVICE}", stacklevel=4)


def disagreement(log_evidence_error: float, cure: str) -> list[str]:
    """What to warn of where the evidence's standard error, in nats, says little: a message or none."""
    if not log_evidence_error > _LARGE_ERROR:
        return []
    message = (
        f"The islands disagree on the evidence: its standard error is {log_evidence_error:.2f} nats, and 1 is all that "
        f"it can be, when one island has all the weight. {cure}"
    )
    return [message]


def report(result: Any) -> str:
    """The head of the summary."""
    size, level = result.smallest
    lines = [
        f"{len(result.shared)} islands of {result.num_particles} particles, T = {result.split.num_steps}",
        f"log evidence {result.log_evidence:.3f} +- {result.log_evidence_error:.3f} nats",
        f"smallest effective size {size:.0f} of {result.num_particles}, at level {level}",
        f"filtered {result.elements_reason}",
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
            label = f"{site}[{', '.join(map(str, index))}]" if index else site
            lines.append(f"{label:>24} " + " ".join(f"{moment[index]:10.4g}" for moment in moments))
    return "\n".join(lines)
