"""Any engine's result as ArviZ reads it: named axes, diagnostics, pointwise log likelihood.

    posterior              draws of equal weight by chain; TwistedSMC, importance sampling and guides are one chain
    sample_stats           of MCMC the ``extra_fields`` under ArviZ's names, an inner kernel's among them; of TwistedSMC
                           effective_size (island, level), log_weight (island, particle), log_evidence and its error;
                           of importance sampling log_weight (guide_draw), log_evidence, pareto_k
    log_likelihood         of each observation, by ``numpyro.infer.log_likelihood``
    observed_data          from the model
    posterior_predictive, prior, prior_predictive       what is given

Plates give axes their names, and so does ``numpyro.sample(..., infer={"event_dims": [...]})``. Trajectories of
diffusion sites and their noises are left out unless asked for: they are T + 1 times as large and no one's question.

Run with ArviZ 0.23, which makes an ``InferenceData``, and with ArviZ 1.3 on Python 3.12, which makes a ``DataTree``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .._checks import expected
from .._compat.arviz import as_tree
from .model import Look, look_at, pointwise
from .runs import as_run, default_dims
from .tree import Variable, as_dataset

__all__ = ["to_arviz"]

Draws = Mapping[str, np.ndarray]


def to_arviz(
    result: Any,
    *,
    model: Callable | None = None,
    model_args: tuple | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    prior: Mapping[str, Any] | None = None,
    posterior_predictive: Mapping[str, Any] | None = None,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    log_likelihood: bool = True,
    trajectories: bool = False,
    num_samples: int | None = None,
    key: jax.Array | None = None,
) -> Any:
    """A result as ``arviz.InferenceData``, or from ArviZ 1 on ``xarray.DataTree``.

    Args:
        result: a finished ``MCMC`` with any kernel, a finished ``TwistedSMC``, an ``ImportanceResult``, or draws by
            site name, each (draws, site shape...), as from ``guide.sample_posterior``.
        model: the model of the draws, with ``numpyro.handlers.substitute(model, data=params)`` if it has parameters.
            MCMC and TwistedSMC know it; without one there are no plate names, observations and log likelihoods.
        model_args: its arguments; MCMC and TwistedSMC know them.
        model_kwargs: its keyword arguments, likewise.
        prior: draws by site name, (draws, site shape...), as from ``Predictive(model, num_samples=...)``. Sites that
            the posterior has go into the group ``prior``, others into ``prior_predictive``.
        posterior_predictive: draws by site name, as many as those of the posterior and in their order.
        coords: dimension name -> its coordinates; 0, 1, ... where none are given.
        dims: site name -> names of all its axes, plates included; of a path they are those of its site.
        log_likelihood: whether to compute it. Observed diffusion sites have none: their ``log_prob`` is a bound.
        trajectories: keep ``<site>_noise``, and ``<site>_path`` of engines that kept it
            (``TwistedSMC(keep_paths=True)``, ``DiffusionGibbs`` with ``extra_fields=("paths",)``); the path's first
            axis is ``<site>_time``, from data, 0, to noise, T.
        num_samples: how many draws of a weighted result; by default those of its ``get_samples``.
        key: for these draws.

    Raises:
        TypeError: for a result of no known engine.
        RuntimeError: for an engine that has not been run.
        ValueError: for names that nothing has, axes or coordinates that do not fit, draws that are not as many as the
            posterior's, a subsampled plate, or a model with a latent site without draws.
        ImportError: without ArviZ.

    >>> data = to_arviz({"x": np.zeros((100, 2))}, dims={"x": ["axis"]}, coords={"axis": ["east", "north"]})
    >>> dict(data["posterior"]["x"].sizes)
    {'chain': 1, 'draw': 100, 'axis': 2}
    """
    run = as_run(result, num_samples, key)
    model = run.model if model is None else model
    args = run.args if model_args is None else model_args
    kwargs = run.kwargs if model_kwargs is None else model_kwargs
    look = None if model is None else look_at(model, args, kwargs, run.draws)
    given = {
        "posterior": {**run.draws, **run.paths},
        "posterior_predictive": _by_chain(posterior_predictive or {}, run.draws),
        "prior": _one_chain({name: value for name, value in (prior or {}).items() if name in run.draws}),
        "prior_predictive": _one_chain({name: value for name, value in (prior or {}).items() if name not in run.draws}),
    }
    if not trajectories:
        given = {group: _without_trajectories(draws) for group, draws in given.items()}
    names = _axes(given, look, dims or {})
    groups = {group: {n: _variable(names, n, value) for n, value in draws.items()} for group, draws in given.items()}
    groups["sample_stats"] = run.sample_stats
    if model is not None and look is not None:
        groups["observed_data"] = {n: Variable(names[n], value) for n, value in look.observed.items()}
        if log_likelihood:
            values = pointwise(model, args, kwargs, run.draws, look)
            groups["log_likelihood"] = _log_likelihood(values, look, names)
    groups = {group: variables for group, variables in groups.items() if variables}
    _check_coords(coords or {}, groups)
    datasets = {group: as_dataset(variables, coords or {}) for group, variables in groups.items()}
    return as_tree(datasets, run.attributes)


def _axes(given: Mapping[str, Draws], look: Look | None, dims: Mapping[str, Sequence[str]]) -> dict[str, tuple]:
    """Names of the axes of every variable, chain and draw aside: the user's, the model's, ArviZ's."""
    ranks = {name: value.ndim - 2 for draws in given.values() for name, value in draws.items()}
    names = {name: default_dims(name, rank) for name, rank in ranks.items()}
    if look is not None:
        ranks_seen = {**{name: value.ndim for name, value in look.observed.items()}, **ranks}
        names |= {name: axes for name, axes in look.dims.items() if len(axes) == ranks_seen.get(name)}
    unknown = sorted(set(dims) - set(names))
    if unknown:
        raise ValueError(expected(f"dims of variables among {sorted(names)}", unknown, "Name sites of the model."))
    for name, wanted in dims.items():
        if isinstance(wanted, str) or len(wanted) != len(names[name]):
            cure = "Give the names of all axes in order, plates included, chain and draw left out."
            raise ValueError(expected(f"{len(names[name])} names of the axes of {name!r}", f"{wanted!r}", cure))
        names[name] = tuple(wanted)
    for name, rank in ranks.items():
        site = name.removesuffix("_path")
        if site != name and name not in dims and rank == len(names.get(site, ())) + 1:
            names[name] = (f"{site}_time", *names[site])
    return names


def _variable(names: Mapping[str, tuple[str, ...]], name: str, value: np.ndarray) -> Variable:
    return Variable(("chain", "draw", *names[name]), value)


def _log_likelihood(values: Draws, look: Look, names: Mapping[str, tuple[str, ...]]) -> dict[str, Variable]:
    """Log densities, whose axes are the first ones of the observation, or those of the law where it is broadcast."""
    variables = {}
    for name, value in values.items():
        rank = value.ndim - 2
        observed = look.observed[name].shape
        own = names[name][:rank] if value.shape[2:] == observed[:rank] else look.batch_dims[name]
        variables[name] = Variable(("chain", "draw", *own), value)
    return variables


def _by_chain(draws: Mapping[str, Any], posterior: Draws) -> dict[str, np.ndarray]:
    """Predictive draws as (chains, draws, ...), like the posterior's."""
    chains, count = next(iter(posterior.values())).shape[:2]
    result = {}
    for name, value in draws.items():
        array = np.asarray(value)
        if array.shape[:2] != (chains, count):
            if array.shape[:1] != (chains * count,):
                raise ValueError(
                    expected(
                        f"{chains * count} draws of {name!r}, or ({chains}, {count}) by chain",
                        f"shape {array.shape}",
                        "Run Predictive on the draws of this posterior: the same num_samples and key.",
                    )
                )
            array = array.reshape(chains, count, *array.shape[1:])
        result[name] = array
    return result


def _one_chain(draws: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value)[None] for name, value in draws.items()}


def _without_trajectories(draws: Draws) -> dict[str, np.ndarray]:
    """Without paths and noises: what is named as one, beside a site of one axis less."""

    def is_trajectory(name: str) -> bool:
        for suffix in ("_path", "_noise"):
            site = draws.get(name.removesuffix(suffix)) if name.endswith(suffix) else None
            shape = draws[name].shape
            if site is not None and any(shape[:i] + shape[i + 1 :] == site.shape for i in range(2, len(shape))):
                return True
        return False

    return {name: value for name, value in draws.items() if not is_trajectory(name)}


def _check_coords(coords: Mapping[str, Any], groups: Mapping[str, Mapping[str, Variable]]) -> None:
    """Coordinates of a dimension that nothing has are a misspelling."""
    known = {dim for variables in groups.values() for variable in variables.values() for dim in variable.dims}
    unknown = sorted(set(coords) - known)
    if unknown:
        raise ValueError(expected(f"coords of dimensions among {sorted(known)}", unknown, "Name axes by dims={...}."))
