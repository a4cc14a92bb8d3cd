"""Any engine's result as ArviZ reads it: named axes, diagnostics, pointwise log likelihood.

    posterior              draws of equal weight by chain; TwistedSMC, TemperedSMC, importance sampling and guides are
                           one chain
    sample_stats           of MCMC the ``extra_fields`` under ArviZ's names, an inner kernel's among them; of TwistedSMC
                           effective_size (island, level), log_weight (island, particle), log_evidence and its error; of
                           TemperedSMC the same by temperature_step, with temperature and accept_prob;
                           of importance sampling log_weight (guide_draw), log_evidence, pareto_k
    log_likelihood         of each observation, by ``numpyro.infer.log_likelihood``
    observed_data          from the model
    posterior_predictive, prior, prior_predictive       what is given

Plates give axes their names, and so does ``numpyro.sample(..., infer={"event_dims": [...]})``. Trajectories of
diffusion sites and their noises are left out unless asked for: they are T + 1 times as large and no one's question.

Up to ArviZ 0.23 the result is an ``InferenceData``, from 1.0 on (Python 3.12 or newer) an ``xarray.DataTree``.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.handlers import block, seed
from numpyro.infer import MCMC
from numpyro.infer import log_likelihood as numpyro_log_likelihood

from ._checks import expected
from ._compat.arviz import as_tree
from ._compat.numpyro import model_arguments
from ._typing import Shape
from .diffusion import Diffusion
from .infer.amortized import Corrected
from .infer.engine import IslandEngine
from .infer.smc import TwistedSMC
from .infer.tempered import TemperedSMC
from .model.sites import check_plate, check_trained, is_latent
from .model.trace import trace_model
from .noise.importance import ImportanceResult
from .wrappers import unwrap

__all__ = ["to_arviz"]

Draws: TypeAlias = Mapping[str, np.ndarray]  # each (chains, draws, site shape...)
Dims: TypeAlias = tuple[str, ...]
Variable: TypeAlias = tuple[Dims, np.ndarray]

_OURS = {"inference_library": "numpyro_diffusion"}
# ArviZ's names of what NumPyro's kernels call otherwise; its pictures look for them.
_ARVIZ_NAMES = {
    "potential_energy": "lp",
    "adapt_state.step_size": "step_size",
    "num_steps": "n_steps",
    "accept_prob": "acceptance_rate",
}


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
    columns: Mapping[str, Sequence[str]] | None = None,
    log_likelihood: bool = True,
    trajectories: bool = False,
    num_samples: int | None = None,
    rng_key: jax.Array | None = None,
) -> Any:
    """A result as ``arviz.InferenceData``, or from ArviZ 1 on ``xarray.DataTree``.

    Args:
        result: a finished ``MCMC`` with any kernel, a finished ``TwistedSMC`` or ``TemperedSMC``, an
            ``ImportanceResult``, what ``correct`` of an amortised posterior returns, or draws by site name, each
            (draws, site shape...), as of ``guide.sample_posterior``.
        model: the model of the draws, with ``numpyro.handlers.substitute(model, data=params)`` if it has parameters.
            MCMC and engines of islands know it; without one there are no plate names, observations and log likelihoods.
        model_args: its arguments; MCMC and engines of islands know them.
        model_kwargs: its keyword arguments, likewise.
        prior: draws by site name, (draws, site shape...), as from ``Predictive(model, num_samples=...)``. Sites that
            the posterior has go into the group ``prior``, others into ``prior_predictive``.
        posterior_predictive: draws by site name, as many as those of the posterior and in their order.
        coords: dimension name -> its coordinates; 0, 1, ... where none are given.
        dims: site name -> names of all its axes, plates included; of a path they are those of its site.
        columns: site name -> names of the entries of its last axis, such as ``{"x": learned.columns}`` of what
            ``learn_prior`` returned. The axis is called ``<site>_column``, unless ``dims`` names it.
        log_likelihood: whether to compute it. Observed diffusion sites have none: their ``log_prob`` is a bound.
        trajectories: keep ``<site>_noise``, and ``<site>_path`` of engines that kept it
            (``TwistedSMC(keep_paths=True)``, ``DiffusionGibbs`` with ``extra_fields=("paths",)``); the path's first
            axis is ``<site>_time``, from data, 0, to noise, T.
        num_samples: how many draws of a weighted result; by default those of its ``get_samples``.
        rng_key: for these draws.

    Raises:
        TypeError: for a result of no known engine, or MCMC of a potential instead of a model.
        RuntimeError: for an engine that has not been run.
        ValueError: for names that nothing has, axes or coordinates that do not fit, draws that are not as many as the
            posterior's, a subsampled plate, or a model with a latent site without draws.
        ImportError: without ArviZ.

    >>> data = to_arviz({"x": np.zeros((100, 2))}, dims={"x": ["axis"]}, coords={"axis": ["east", "north"]})
    >>> dict(data["posterior"]["x"].sizes)
    {'chain': 1, 'draw': 100, 'axis': 2}
    >>> data = to_arviz({"x": np.zeros((100, 2))}, columns={"x": ["height", "weight"]})
    >>> data["posterior"]["x"].sel(x_column="weight").shape
    (1, 100)
    """
    is_weighted = isinstance(result, IslandEngine | ImportanceResult | Corrected)
    if not is_weighted and (num_samples is not None or rng_key is not None):
        cure = "These draws have equal weights already; thin them by mcmc's thinning or by indexing."
        raise ValueError(
            expected("num_samples and rng_key only for weighted results", f"num_samples={num_samples}", cure)
        )
    run = _run_of(result, num_samples, rng_key)
    model = run.model if model is None else model
    args = run.args if model_args is None else model_args
    kwargs = run.kwargs if model_kwargs is None else model_kwargs
    look = None if model is None else _look_at(model, args, kwargs, run.draws)
    one_chain = {name: np.asarray(value)[None] for name, value in (prior or {}).items()}
    given: dict[str, Draws] = {
        "posterior": run.draws,
        "posterior_predictive": _by_chain(posterior_predictive or {}, run.draws),
        "prior": {name: value for name, value in one_chain.items() if name in run.draws},
        "prior_predictive": {name: value for name, value in one_chain.items() if name not in run.draws},
    }
    if not trajectories:
        given = {group: _without_trajectories(draws) for group, draws in given.items()}
    names = _axes(given, look, dims or {})
    coords = {**_of_columns(given, names, columns or {}, dims or {}), **(coords or {})}
    groups: dict[str, dict[str, Variable]] = {
        group: {name: (("chain", "draw", *names[name]), value) for name, value in draws.items()}
        for group, draws in given.items()
    }
    groups["sample_stats"] = run.sample_stats
    if model is not None and look is not None:
        groups["observed_data"] = {name: (names[name], value) for name, value in look.observed.items()}
        if log_likelihood:
            groups["log_likelihood"] = _pointwise(model, args, kwargs, run.draws, look, names)
    return _as_tree({group: variables for group, variables in groups.items() if variables}, coords, run.attributes)


# What an engine found ---------------------------------------------------------------------------------


class _Run(NamedTuple):
    """Draws, diagnostics, attributes of the whole, and the model with its arguments, None if the result knows none."""

    draws: Draws  # of equal weight; paths of diffusion sites where the engine kept them, as <site>_path
    sample_stats: dict[str, Variable]
    attributes: dict[str, Any]
    model: Callable | None = None
    args: tuple = ()
    kwargs: Mapping[str, Any] = {}


def _run_of(result: Any, num_samples: int | None, rng_key: jax.Array | None) -> _Run:
    if isinstance(result, MCMC):
        return _run_of_chains(result)
    if isinstance(result, Corrected):
        return _run_of_corrected(result, num_samples, rng_key)
    if isinstance(result, Mapping):
        draws = {name: np.asarray(value)[None] for name, value in result.items()}
        counts = {name: value.shape[1:2] for name, value in draws.items()}
        if len(set(counts.values())) != 1 or () in counts.values():
            cure = "Draws are the leading axis of every array."
            raise ValueError(expected("draws of every site, as many of each", f"{counts}", cure))
        return _Run(draws, {}, _OURS)
    if not isinstance(result, IslandEngine | ImportanceResult):
        wanted = "an MCMC, a TwistedSMC, a TemperedSMC, an ImportanceResult, a Corrected or a dictionary of draws"
        cure = "Of SVI pass guide.importance_weights(...), or guide.sample_posterior(...)."
        raise TypeError(expected(wanted, type(result).__name__, cure))
    draws = {name: np.asarray(value)[None] for name, value in result.get_samples(rng_key, num_samples).items()}
    stats: dict[str, Variable]
    if isinstance(result, ImportanceResult):
        diagnostics = {n: float(getattr(result, n)) for n in ("log_evidence", "effective_sample_size", "pareto_k")}
        stats = {"log_weight": (("guide_draw",), np.asarray(result.log_weights))}
        known: tuple = ()
    else:
        diagnostics = {n: getattr(result, n) for n in ("log_evidence", "log_evidence_error", "min_ess")}
        sizes, (_, log_weights) = result.effective_sizes, result.get_weighted_samples()
        elements = tuple(f"element_{axis}" for axis in range(sizes.ndim - 2))
        by_particle = np.reshape(log_weights, (result.num_islands, result.num_particles, *sizes.shape[2:]))
        step = "temperature_step" if isinstance(result, TemperedSMC) else "level"
        stats = {
            "effective_size": (("island", step, *elements), np.asarray(sizes)),
            "log_weight": (("island", "particle", *elements), by_particle),
        }
        if isinstance(result, TemperedSMC):
            stats["temperature"] = (("island", step), result.result.temperatures)
            stats["accept_prob"] = (("island", step), result.result.accept_probs)
        known = (result.model, *result.arguments)
    stats |= {name: ((), np.asarray(value)) for name, value in diagnostics.items()}
    reason = {"elements": result.elements_reason} if isinstance(result, TwistedSMC) else {}
    return _Run(draws, stats, {**_OURS, **diagnostics, **reason}, *known)


def _run_of_corrected(result: Corrected, num_samples: int | None, rng_key: jax.Array | None) -> _Run:
    """Of what made the draws; its model is one of noises, and not the user's."""
    run = _run_of(result.importance if result.engine is None else result.engine, num_samples, rng_key)
    diagnostics = {"pareto_k": result.pareto_k}
    return _Run(
        {name: run.draws[name] for name in result.importance.samples},
        {**run.sample_stats, **{name: ((), np.asarray(value)) for name, value in diagnostics.items()}},
        {**run.attributes, **diagnostics, "method": result.method},
    )


def _run_of_chains(mcmc: MCMC) -> _Run:
    """Extra fields get ArviZ's names, an inner kernel's as if it were alone; trees of arrays are left out."""
    if mcmc.last_state is None:
        raise RuntimeError(expected("a finished run", "none", "Call mcmc.run(key, *model_arguments) first."))
    draws = mcmc.get_samples(group_by_chain=True)
    if not isinstance(draws, dict):
        cure = "Give the kernel a model, not a potential function."
        raise TypeError(expected("draws by site name", type(draws).__name__, cure))
    fields = dict(mcmc.get_extra_fields(group_by_chain=True))
    paths = {f"{name}_path": path for name, path in fields.pop("paths", {}).items()}
    stats: dict[str, np.ndarray] = {}
    for field, value in fields.items():
        if isinstance(value, (dict, tuple)):
            continue
        inner = field.removeprefix("inner_state.")
        inner = field if inner in fields else inner
        name = _ARVIZ_NAMES.get(inner, inner)
        stats[name] = -np.asarray(value) if name == "lp" else np.asarray(value)  # a density, not a potential
    if "n_steps" in stats:
        stats["tree_depth"] = np.log2(stats["n_steps"]).astype(int) + 1
    return _Run(
        {name: np.asarray(value) for name, value in {**draws, **paths}.items()},
        {name: (("chain", "draw", *_default_dims(name, value.ndim - 2)), value) for name, value in stats.items()},
        {"inference_library": "numpyro", "inference_library_version": numpyro.__version__},
        getattr(mcmc.sampler, "model", None),
        *model_arguments(mcmc),
    )


def _by_chain(draws: Mapping[str, Any], posterior: Draws) -> dict[str, np.ndarray]:
    """Predictive draws as (chains, draws, ...), like the posterior's."""
    chains, count = next(iter(posterior.values())).shape[:2]
    result = {}
    for name, value in draws.items():
        array = np.asarray(value)
        if array.shape[:2] != (chains, count):
            if array.shape[:1] != (chains * count,):
                wanted = f"{chains * count} draws of {name!r}, or ({chains}, {count}) by chain"
                cure = "Run Predictive on the draws of this posterior: the same num_samples and key."
                raise ValueError(expected(wanted, f"shape {array.shape}", cure))
            array = array.reshape(chains, count, *array.shape[1:])
        result[name] = array
    return result


def _without_trajectories(draws: Draws) -> Draws:
    """Without paths and noises: what is named as one, beside a site of one axis less."""

    def is_trajectory(name: str) -> bool:
        site = draws.get(name.removesuffix("_path").removesuffix("_noise"))
        shape = draws[name].shape
        if site is None or len(shape) != site.ndim + 1:
            return False
        without_time = [shape[:i] + shape[i + 1 :] for i in range(2, len(shape))]
        # A transform to a simplex gives a state's event one number more.
        return any(left[:-1] == site.shape[:-1] and site.shape[-1] - left[-1] in (0, 1) for left in without_time)

    return {name: value for name, value in draws.items() if not is_trajectory(name)}


# What the model says of it ----------------------------------------------------------------------------


class _Look(NamedTuple):
    """What a trace at the first draw tells: no distribution is asked for a draw, and no diffusion for its density."""

    dims: dict[str, Dims]  # of all axes of a site's value
    batch_dims: dict[str, Dims]  # of an observed site, those of its log density
    latent: list[str]
    observed: dict[str, np.ndarray]
    bounds: list[str]  # observed diffusion sites, whose log_prob is a bound and no density


def _look_at(model: Callable, args: tuple, kwargs: Mapping[str, Any], draws: Draws) -> _Look:
    look = _Look({}, {}, [], {}, [])

    def run(values: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
        def fill(site: dict) -> Any:
            check_trained(site)
            return None if site.get("is_observed") else values.get(site["name"])

        sites = trace_model(model, args, kwargs, rng_key=key, fill=fill)
        for name, site in sites.items():
            _note(look, name, site)
        return {name: jnp.asarray(sites[name]["value"]) for name in look.batch_dims}

    observed = jax.jit(run)({name: value[0, 0] for name, value in draws.items()}, jax.random.key(0))
    look.observed.update({name: np.asarray(value) for name, value in observed.items()})
    return look


def _note(look: _Look, name: str, site: dict) -> None:
    if site["type"] == "plate":
        check_plate(name, *site["args"][:2])
    elif site["type"] == "deterministic":
        # Its event is not known: plates are the leading axes, as far as sizes agree.
        frames = sorted(site["cond_indep_stack"], key=lambda frame: frame.dim)
        look.dims[name] = _named(name, jnp.shape(site["value"]), list(enumerate(frames)))
    elif site["type"] == "sample":
        shape, event_dim = jnp.shape(site["value"]), site["fn"].event_dim
        rank = len(shape) - event_dim
        event = tuple(site["infer"].get("event_dims", ()))
        event = event if len(event) == event_dim else _default_dims(name, len(shape))[rank:]
        of_value, of_density = (
            _named(name, batch, [(len(batch) + frame.dim, frame) for frame in site["cond_indep_stack"]])
            for batch in (shape[:rank], jnp.broadcast_shapes(shape[:rank], site["fn"].batch_shape))
        )
        look.dims[name] = of_value + event
        if is_latent(site):
            look.latent.append(name)
            return
        look.batch_dims[name] = of_density
        if isinstance(unwrap(site["fn"])[0], Diffusion):
            look.bounds.append(name)


def _named(name: str, shape: Shape, frames: list[tuple[int, Any]]) -> Dims:
    """The plates' names at their axes where the sizes agree, default names elsewhere."""
    dims = list(_default_dims(name, len(shape)))
    for axis, frame in frames:
        if 0 <= axis < len(shape) and shape[axis] == frame.size:
            dims[axis] = frame.name
    return tuple(dims)


def _default_dims(name: str, rank: int) -> Dims:
    """ArviZ's names of axes that no one named."""
    return tuple(f"{name}_dim_{axis}" for axis in range(rank))


def _pointwise(
    model: Callable, args: tuple, kwargs: Mapping[str, Any], draws: Draws, look: _Look, names: Mapping[str, Dims]
) -> dict[str, Variable]:
    """Log density of each observation that is no diffusion at each draw, in nats."""
    # A diffusion site's value stands for its noises: the chain from them to it is not run.
    missing = [name for name in look.latent if name not in draws and name.removesuffix("_noise") not in draws]
    if missing:
        cure = "Pass the model and the arguments that the draws are of, or log_likelihood=False."
        raise ValueError(expected("draws of every latent site", f"none of {missing}", cure))
    if not set(look.observed) - set(look.bounds):
        return {}
    # The seed is for sites that the draws replace, and for keys that a model asks for.
    model = block(seed(model, jax.random.key(0)), hide=look.bounds)
    variables = {}
    for name, density in numpyro_log_likelihood(model, dict(draws), *args, batch_ndims=2, **kwargs).items():
        shape = density.shape[2:]
        # Its axes are the first ones of the observation, or those of the distribution where it is broadcast.
        own = names[name][: len(shape)] if shape == look.observed[name].shape[: len(shape)] else look.batch_dims[name]
        variables[name] = (("chain", "draw", *own), np.asarray(density))
    return variables


# What ArviZ reads -------------------------------------------------------------------------------------


def _axes(given: Mapping[str, Draws], look: _Look | None, dims: Mapping[str, Sequence[str]]) -> dict[str, Dims]:
    """Names of the axes of every variable, chain and draw aside: the user's, the model's, ArviZ's."""
    ranks = {name: value.ndim - 2 for draws in given.values() for name, value in draws.items()}
    names = {name: _default_dims(name, rank) for name, rank in ranks.items()}
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


def _of_columns(
    given: Mapping[str, Draws],
    names: dict[str, Dims],
    columns: Mapping[str, Sequence[str]],
    dims: Mapping[str, Sequence[str]],
) -> dict[str, list[str]]:
    """Coordinates of the last axes of sites whose entries have names; these axes get theirs in ``names``."""
    shapes = {name: value.shape[2:] for draws in given.values() for name, value in draws.items()}
    coords = {}
    for site, wanted in columns.items():
        if site not in shapes:
            cure = "Name sites of the model."
            raise ValueError(expected(f"columns of variables among {sorted(shapes)}", repr(site), cure))
        size = shapes[site][-1] if shapes[site] else 0
        if isinstance(wanted, str) or len(wanted) != size:
            cure = "Give one name for each entry of the last axis."
            raise ValueError(expected(f"{size} names of the columns of {site!r}", f"{wanted!r}", cure))
        for name in (site, f"{site}_path"):
            if name in names and site not in dims:
                names[name] = (*names[name][:-1], f"{site}_column")
        coords[names[site][-1]] = list(wanted)
    return coords


def _as_tree(
    groups: Mapping[str, dict[str, Variable]], coords: Mapping[str, Any], attributes: Mapping[str, Any]
) -> Any:
    """The object of the installed ArviZ, which takes two seconds to import, as xarray does."""
    xarray = importlib.import_module("xarray")
    dims = {name: {dim for axes, _ in group.values() for dim in axes} for name, group in groups.items()}
    unknown = sorted(set(coords).difference(*dims.values()))
    if unknown:
        known = sorted(set().union(*dims.values()))
        raise ValueError(expected(f"coords of dimensions among {known}", unknown, "Name axes by dims={...}."))
    try:
        datasets = {name: xarray.Dataset(group) for name, group in groups.items()}
        # Every dimension has coordinates: those given, or 0, 1, ...
        datasets = {
            name: data.assign_coords({dim: coords.get(dim, np.arange(size)) for dim, size in data.sizes.items()})
            for name, data in datasets.items()
        }
    except ValueError as error:
        cure = "Give axes of different lengths different names by dims={...}, and one coordinate to each place."
        raise ValueError(expected("axes and coordinates that fit", str(error), cure)) from error
    return as_tree(datasets, attributes)
