"""What each engine found, in one form: draws by chain, diagnostics, and the model with its arguments."""

from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import Any, NamedTuple

import jax
import numpy as np
import numpyro
from numpyro.infer import MCMC

from .._checks import expected
from .._compat.numpyro import model_arguments
from ..infer.smc import TwistedSMC
from ..noise.importance import ImportanceResult
from .tree import Variable

__all__ = ["Run", "as_run", "default_dims"]

# ArviZ's names of what NumPyro's kernels call otherwise; its pictures look for them.
_ARVIZ_NAMES = {
    "potential_energy": "lp",
    "adapt_state.step_size": "step_size",
    "num_steps": "n_steps",
    "accept_prob": "acceptance_rate",
}


class Run(NamedTuple):
    """A finished run.

    Attributes:
        draws: of equal weight, each (chains, draws, site shape...).
        paths: x^{0:T} of diffusion sites where the engine kept it, each (chains, draws, T + 1, site shape...).
        sample_stats: diagnostics with their dimensions.
        attributes: of the whole.
        model: None if the result does not know it.
        args, kwargs: the model's.
    """

    draws: dict[str, np.ndarray]
    paths: dict[str, np.ndarray]
    sample_stats: dict[str, Variable]
    attributes: dict[str, Any]
    model: Callable | None = None
    args: tuple = ()
    kwargs: Mapping[str, Any] = {}


def default_dims(name: str, rank: int) -> tuple[str, ...]:
    """ArviZ's names of axes that no one named."""
    return tuple(f"{name}_dim_{axis}" for axis in range(rank))


@singledispatch
def as_run(result: Any, num_samples: int | None, key: jax.Array | None) -> Run:
    """The run of a result.

    Args:
        result: of an engine.
        num_samples: how many draws, where the result is weighted.
        key: for these draws.

    Raises:
        TypeError: for a result of no known engine, or MCMC of a potential instead of a model.
        RuntimeError: for an engine that has not been run.
        ValueError: for draws that differ in number, or ``num_samples`` where the draws are what they are.
    """
    raise TypeError(
        expected(
            "an MCMC, a TwistedSMC, an ImportanceResult or a dictionary of draws",
            type(result).__name__,
            "Of SVI pass guide.importance_weights(...), or guide.sample_posterior(...).",
        )
    )


@as_run.register(MCMC)
def _mcmc(result: MCMC, num_samples: int | None, key: jax.Array | None) -> Run:
    _check_not_resampled(num_samples, key)
    if result.last_state is None:
        raise RuntimeError(expected("a finished run", "none", "Call mcmc.run(key, *model_arguments) first."))
    draws = result.get_samples(group_by_chain=True)
    if not isinstance(draws, dict):
        raise TypeError(
            expected("draws by site name", type(draws).__name__, "Give the kernel a model, not a potential function.")
        )
    extra = dict(result.get_extra_fields(group_by_chain=True))
    kept = extra.pop("paths", {})
    paths = {f"{name}_path": np.asarray(path) for name, path in kept.items()}
    return Run(
        {name: np.asarray(value) for name, value in draws.items()},
        paths,
        _renamed(extra),
        {"inference_library": "numpyro", "inference_library_version": numpyro.__version__},
        getattr(result.sampler, "model", None),
        *model_arguments(result),
    )


@as_run.register(TwistedSMC)
def _smc(result: TwistedSMC, num_samples: int | None, key: jax.Array | None) -> Run:
    samples = {n: np.asarray(value)[None] for n, value in result.get_samples(key, num_samples).items()}
    _, log_weights = result.get_weighted_samples()
    sizes = result.effective_sizes
    elements = tuple(f"element_{axis}" for axis in range(sizes.ndim - 2))
    by_particle = np.reshape(log_weights, (result.num_islands, result.num_particles, *sizes.shape[2:]))
    diagnostics = {
        "log_evidence": result.log_evidence,
        "log_evidence_error": result.log_evidence_error,
        "min_ess": result.min_ess,
    }
    stats = {
        **_scalars(diagnostics),
        "effective_size": Variable(("island", "level", *elements), np.asarray(sizes)),
        "log_weight": Variable(("island", "particle", *elements), by_particle),
    }
    split = result.result.split
    paths = {f"{site.name}_path": samples.pop(f"{site.name}_path") for site in split.sites if result.keep_paths}
    attributes = {**_OURS, **diagnostics, "elements": result.elements_reason}
    return Run(samples, paths, stats, attributes, result.model, *split.arguments)


@as_run.register(ImportanceResult)
def _importance(result: ImportanceResult, num_samples: int | None, key: jax.Array | None) -> Run:
    diagnostics = {
        "log_evidence": float(result.log_evidence),
        "effective_sample_size": float(result.effective_sample_size),
        "pareto_k": float(result.pareto_k),
    }
    stats = {**_scalars(diagnostics), "log_weight": Variable(("guide_draw",), np.asarray(result.log_weights))}
    draws = result.get_samples(key, num_samples)
    attributes = {**_OURS, **diagnostics}
    return Run({name: np.asarray(value)[None] for name, value in draws.items()}, {}, stats, attributes)


@as_run.register(Mapping)
def _draws(result: Mapping[str, Any], num_samples: int | None, key: jax.Array | None) -> Run:
    _check_not_resampled(num_samples, key)
    draws = {name: np.asarray(value)[None] for name, value in result.items()}
    counts = {name: value.shape[1:2] for name, value in draws.items()}
    if len(set(counts.values())) != 1 or () in counts.values():
        raise ValueError(
            expected("draws of every site, as many of each", f"{counts}", "Draws are the leading axis of every array.")
        )
    return Run(draws, {}, {}, dict(_OURS))


_OURS = {"inference_library": "numpyro_diffusion"}


def _check_not_resampled(num_samples: int | None, key: jax.Array | None) -> None:
    if num_samples is not None or key is not None:
        raise ValueError(
            expected(
                "num_samples and key only for weighted results",
                f"num_samples={num_samples}",
                "These draws have equal weights already; thin them by mcmc's thinning or by indexing.",
            )
        )


def _scalars(values: Mapping[str, float]) -> dict[str, Variable]:
    return {name: Variable((), np.asarray(value)) for name, value in values.items()}


def _renamed(fields: Mapping[str, Any]) -> dict[str, Variable]:
    """Extra fields of MCMC under ArviZ's names; an inner kernel's as if it were alone. Trees of arrays are left out."""
    stats = {}
    for field, value in fields.items():
        if isinstance(value, (dict, tuple)):
            continue
        inner = field.removeprefix("inner_state.")
        inner = field if inner in fields and inner != field else inner
        name = _ARVIZ_NAMES.get(inner, inner)
        array = np.asarray(value)
        # ArviZ's lp is a log density, the potential its negative.
        stats[name] = _stat(name, -array if name == "lp" else array)
        if name == "n_steps":
            stats["tree_depth"] = _stat("tree_depth", np.log2(array).astype(int) + 1)
    return stats


def _stat(name: str, array: np.ndarray) -> Variable:
    return Variable(("chain", "draw", *default_dims(name, array.ndim - 2)), array)
