r"""A look at what a run left: the draws of chains, or the losses of a training.

Of chains, for every number of every site, its noises left out where the diffusion site itself was kept:

    R-hat               split, at most 1.01
    effective size      at least 100 for each chain
    acceptance          a site that changes in fewer than one draw of 20 stands still; so does a kernel whose mean
                        acceptance is below 1/20
    divergences         where ``extra_fields`` kept them
    programs            how often ``MCMC`` has compiled its kernel: once for each set of arguments

The first two limits are those of Vehtari et al., who compare chains by ranks; here it is by values.

Of a training: whether the loss fell at all, and what a loss below 0 means.

References: Vehtari, Gelman, Simpson, Carpenter and Burkner 2021, Section 4.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC

from .._checks import expected
from .._compat.numpyro import model_arguments, num_compiled
from ..model.trace import trace_model
from ..training.losses import Losses
from ..training.result import FitResult
from .checklist import Checklist, Finding

__all__ = ["check_chains", "check_training"]

_MOST_R_HAT = 1.01
_LEAST_SIZE = 100  # of each chain
_LEAST_MOVES = 0.05  # of draws
_FEWEST_DRAWS = 4  # halves of which have a variance
_AT_ONCE = 2**22  # numbers that are transformed together: 32 MiB in double precision


def check_chains(mcmc: MCMC) -> Checklist:
    """What the draws of a finished run say of it.

    Raises:
        ValueError: before a run.
    """
    if mcmc.last_state is None:
        raise ValueError(expected("an MCMC that has run", "one that has not", "Call mcmc.run(rng_key, ...) first."))
    samples = {name: np.asarray(draws) for name, draws in mcmc.get_samples(group_by_chain=True).items()}
    real = {name: draws for name, draws in samples.items() if np.issubdtype(draws.dtype, np.floating) and draws.size}
    kept = {name: draws for name, draws in real.items() if name.removesuffix("_noise") not in real.keys() - {name}}
    findings = [*_finite(real)]
    if findings[0].passed is not False:
        findings += [*_moves(mcmc, kept), *_mixing(kept)]
    findings += [*_divergences(mcmc), *_programs(mcmc)]
    return Checklist(tuple(findings), is_of_run=True)


def check_training(fitted: FitResult) -> Checklist:
    """What the losses of a training say of it."""
    held_out = np.asarray(fitted.validation_losses, float)
    losses = Losses(np.asarray(fitted.losses, float).tolist(), fitted.validation_steps.tolist(), held_out.tolist())
    findings = []
    if len(losses.steps) >= losses.fewest_to_judge:
        first, last = losses.first_and_last()
        told = f"from {first:.4g} to {last:.4g} nats per row, medians of the first and of the last steps"
        cure = (
            "Nothing was learned, or all of it in the first few steps. Raise the learning rate tenfold, look for "
            "inputs that the network does not see, and look at infer.check(model, *arguments) with the prior in a "
            "model: 'reverse steps fit' says whether it undoes the noise."
        )
        findings.append(Finding("loss falls", not losses.is_flat(), told, cure))
    else:
        findings.append(Finding("loss falls", None, f"{len(losses.steps)} steps are too few to tell"))
    end = losses.end()
    if end < 0:
        told = (
            f"{end:.4g} nats per row is no fault: a density may be above 1, and is in small units. Only differences of "
            "losses on the same data in the same units say anything. One that falls for ever has data without noise."
        )
        findings.append(Finding("loss below 0", None, told))
    return Checklist(tuple(findings), is_of_run=True)


def _finite(real: dict[str, np.ndarray]) -> Iterator[Finding]:
    broken = {name: int((~np.isfinite(draws)).sum()) for name, draws in real.items() if not np.isfinite(draws).all()}
    told = ", ".join(f"{count} of {real[name].size} NaN or infinite in {name!r}" for name, count in broken.items())
    cure = "Run infer.check(model, *arguments): it names data, likelihoods and gradients that are no number."
    yield Finding("finite draws", not broken, told or "all of them", cure)


def _moves(mcmc: MCMC, kept: dict[str, np.ndarray]) -> Iterator[Finding]:
    """How often sites change, and the acceptance that the kernel itself tells."""
    fixed = _computed(mcmc)
    moved = {
        name: float((draws[:, 1:] != draws[:, :-1]).reshape(*draws[:, 1:].shape[:2], -1).any(-1).mean(1).min())
        for name, draws in kept.items()
        if name not in fixed and draws.shape[1] > 1
    }
    accepts = getattr(mcmc.last_state, "mean_accept_prob", None)
    least = math.inf if accepts is None else float(np.min(np.asarray(accepts)))
    if not moved:
        return
    worst = min(moved, key=lambda name: moved[name])
    told = f"{worst!r} changes in {moved[worst]:.0%} of the draws of one chain"
    told += f"; mean acceptance {least:.2g}" if math.isfinite(least) else ""
    cure = (
        "The chain stands still. Adapt longer (num_warmup), begin with a smaller step_size, start elsewhere "
        "(init_params); of DiffusionGibbs take more particles. Draws that repeat each other say nothing."
    )
    yield Finding("acceptance", min(moved[worst], least) >= _LEAST_MOVES, told, cure)


def _mixing(kept: dict[str, np.ndarray]) -> Iterator[Finding]:
    if not kept:
        return
    chains, draws = next(iter(kept.values())).shape[:2]
    if draws < _FEWEST_DRAWS:
        yield Finding("R-hat", None, f"{draws} draws are too few to tell")
        return
    r_hat, size = ({name: _by_number(f, of) for name, of in kept.items()} for f in (_r_hat, _size))
    name, index = _worst(r_hat, np.argmax)
    value = r_hat[name][index]
    means = ", ".join(f"{mean:.3g}" for mean in kept[name].reshape(chains, draws, -1)[:, :, index].mean(1)[:8])
    where = _number(name, index, kept[name].shape[2:])
    told = f"{value:.3g}, of {where}" + (
        f"; means of chains there: {means}" if chains > 1 else ", of one chain's halves"
    )
    cure = (
        "Longer chains: num_warmup, num_samples. If their means are of two or more kinds however long they are, "
        "modes lie far apart: TwistedSMC (few coordinates), TemperedSMC, DiffusionGibbs(independence=True)."
    )
    yield Finding("R-hat", bool(value <= _MOST_R_HAT), told, cure)
    name, index = _worst(size, np.argmin)
    value, where = size[name][index], _number(name, index, kept[name].shape[2:])
    cure = (
        f"{_LEAST_SIZE} of each chain are the least for means and standard deviations. Draw more, or take the engine "
        "that infer.check(model, *arguments) recommends."
    )
    yield Finding(
        "effective size",
        bool(value >= _LEAST_SIZE * chains),
        f"{value:.0f} of {chains * draws} draws, of {where}",
        cure,
    )


def _divergences(mcmc: MCMC) -> Iterator[Finding]:
    diverging = {name: of for name, of in mcmc.get_extra_fields().items() if name.endswith("diverging")}
    for of in diverging.values():
        count = int(np.sum(of))
        cure = "Reparameterise the other sites, or raise target_accept_prob to .95."
        yield Finding("divergences", not count, f"{count} of {np.size(of)} draws", cure)


def _programs(mcmc: MCMC) -> Iterator[Finding]:
    count = num_compiled(mcmc)
    cure = (
        "MCMC takes its arguments for constants, and compiles again for new data: MCMC(..., jit_model_args=True), "
        "with its progress bar on, runs data of the same shapes again at once."
    )
    told = f"compiled for {count} sets of arguments" if count > 1 else "compiled once"
    yield Finding("programs", count <= 1, told, cure)


def _computed(mcmc: MCMC) -> set[str]:
    """Deterministic sites, which may rightly be constant; of those that are diffusions the noises are known."""
    model = getattr(mcmc.sampler, "model", None)
    args, kwargs = model_arguments(mcmc)
    if model is None:
        return set()
    return {name for name, site in trace_model(model, args, kwargs).items() if site["type"] == "deterministic"}


def _by_number(function: Any, draws: np.ndarray) -> np.ndarray:
    """A statistic of (chains, draws) for each number of a site; NaN of one that is the same everywhere."""
    flat = draws.reshape(*draws.shape[:2], -1)
    width = max(1, _AT_ONCE // (flat.shape[0] * flat.shape[1]))
    parts = [function(flat[:, :, i : i + width].astype(np.float64)) for i in range(0, flat.shape[2], width)]
    is_constant = np.ptp(flat, axis=(0, 1)) == 0
    return np.where(is_constant, np.nan, np.concatenate(parts))


def _r_hat(draws: np.ndarray) -> np.ndarray:
    """Infinite where chains stand still in different places."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(split_gelman_rubin(draws))


def _size(draws: np.ndarray) -> np.ndarray:
    """0 where chains stand still."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.asarray(effective_sample_size(draws))
    return np.where(np.isfinite(found), found, 0.0)


def _worst(values: dict[str, np.ndarray], which: Any) -> tuple[str, int]:
    """Site and flat index of the largest or smallest number; of constants, if there is nothing else."""
    worst = np.inf if which is np.argmin else -np.inf
    clean = {name: np.where(np.isnan(of), worst, of) for name, of in values.items()}
    ends = {name: of[which(of)] for name, of in clean.items()}
    name = list(ends)[int(which(np.asarray(list(ends.values()))))]
    return name, int(which(clean[name]))


def _number(name: str, index: int, shape: tuple[int, ...]) -> str:
    return f"{name!r}" + (str(list(map(int, np.unravel_index(index, shape)))) if shape else "")
