"""Names of NumPyro that are private, experimental or bound to its version.

:func:`asking` tells a distribution who asks for its density. NumPyro hands a distribution its value and nothing else:
neither the site's name nor whether it is observed. Both stand in the local variables of the function that asks, and
that function is on Python's stack whenever JAX traces the model, whatever wrapper is in between.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
from numpyro.distributions import MaskedDistribution
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.distributions.transforms import Transform
from numpyro.distributions.util import validate_sample
from numpyro.handlers import block, scope, seed, substitute, trace
from numpyro.infer import MCMC
from numpyro.infer.gibbs import GIBBS_SITES_KWARG, with_conditioning
from numpyro.infer.util import (
    _unconstrain_params,
    compute_log_probs,
    constrain_fn,
    get_importance_trace,
    log_density,
    potential_energy,
    transform_fn,
)
from numpyro.ops.provenance import eval_provenance
from numpyro.primitives import _PYRO_STACK, Messenger, mutable
from numpyro.util import is_prng_key

__all__ = [
    "GIBBS_SITES_KWARG",
    "Asker",
    "Messenger",
    "asking",
    "compiled_run",
    "compute_log_probs",
    "constrain_fn",
    "eval_provenance",
    "explicit_validation",
    "has_inverse",
    "is_in_handler",
    "is_in_scan",
    "is_prng_key",
    "log_density",
    "mask_of",
    "model_arguments",
    "mutable",
    "num_compiled",
    "potential_energy",
    "promote_batch_shape",
    "reparam_sample_shape",
    "reparam_site_name",
    "transform_fn",
    "unconstrained_log_probs",
    "validate_sample",
    "with_conditioning",
]

Purpose: TypeAlias = Literal["density", "elbo", "log_likelihood", "dependence", "engine"]

# Who asks a site's distribution for its log_prob: functions of these modules, with the site in a local variable.
_OURS = "numpyro_diffusion."
_DEPENDENCE = "with_marked_answers"  # a function of ours: it wants to know what a density is computed from
_OUR_MODEL_ROOM = "numpyro_diffusion.model."
_ASKERS = ("numpyro.infer.", "numpyro.contrib.", _OUR_MODEL_ROOM)
_SITE_VARIABLES = ("model_site", "site")
# A model runs inside of these: what is further out does not ask for this log_prob, the model's own code does.
_RUNS_A_MODEL = ("numpyro.primitives", "numpyro.handlers")
_VARIATIONAL = ("numpyro.infer.elbo", "numpyro.infer.autoguide", "numpyro.infer.svi", "numpyro.contrib.einstein")


class Asker(NamedTuple):
    """Who asks for a density.

    Attributes:
        purpose: a joint ``density`` (MCMC, ``log_density``, importance weights), an ``elbo`` (and what automatic
            guides do on the way to it), ``log_likelihood``, the ``dependence`` of sites on each other (nothing is
            computed), or a model split by an ``engine`` of this package.
        site: the site as in a trace; None where a model calls ``log_prob`` by itself.
        run_again: runs the model once more, with values for some of its sites, and returns its sites; None where who
            asks does not hold the model.
        mark: of ``dependence``, a number that is to be added to the answer, so that it is found again.
        answered: of an engine, which notes here each diffusion whose estimate enters the site's density.
    """

    purpose: Purpose
    site: Mapping[str, Any] | None
    run_again: Callable[[Mapping[str, Any]], Mapping[str, Mapping[str, Any]]] | None = None
    mark: Any = None
    answered: list[Any] | None = None


def asking() -> Asker | None:
    """The site whose density is wanted, and what for; None when nobody asks but the user.

    Call it from a distribution's ``log_prob``. It costs something only while a model is traced.
    """
    found: Asker | None = None
    is_inside_a_model = False
    for frame in _frames():
        module = frame.f_globals.get("__name__", "")
        if frame.f_code.co_name == _DEPENDENCE and module.startswith(_OURS):
            return Asker("dependence", None, mark=frame.f_locals["mark"])
        is_inside_a_model = is_inside_a_model or module in _RUNS_A_MODEL
        if found is None:
            if not is_inside_a_model:
                found = _asker_of(frame, module)
            elif _holds_a_model(frame, module):
                found = Asker("density", None, _runner(frame))
            elif module.startswith(_OUR_MODEL_ROOM):
                found = Asker("engine", None)
        elif found.run_again is None and _holds_a_model(frame, module):
            found = found._replace(run_again=_runner(frame))
        elif found.purpose == "density" and module.startswith(_VARIATIONAL):
            found = found._replace(purpose="elbo")
        elif found.purpose == "elbo" and module == "numpyro.infer.importance":  # a guide's weights, by way of an ELBO
            return found._replace(purpose="density")
    return found


def is_in_handler() -> bool:
    """Whether a handler of NumPyro is active, so that a primitive has someone to be handled by."""
    return bool(_PYRO_STACK)


def is_in_scan() -> bool:
    """Whether the calling handler runs in the body of NumPyro's ``scan``."""
    return any(frame.f_globals.get("__name__") == "numpyro.contrib.control_flow.scan" for frame in _frames())


def reparam_sample_shape() -> tuple[int, ...]:
    """``sample_shape`` of the site that the ``reparam`` handler hands to the calling ``Reparam``; () outside of it.

    The handler hands over name, distribution and value, and drops it.
    """
    handling = _reparam_handling()
    return () if handling is None else tuple(handling["msg"]["kwargs"].get("sample_shape", ()))


def reparam_site_name(name: str) -> str:
    """The name under which a ``Reparam`` is to make a site, so that the site is called ``name`` in the end.

    A site that a ``Reparam`` makes passes every active handler. Scopes inside of the ``reparam`` handler have named the
    old site already, and would do so twice.
    """
    handling = _reparam_handling()
    if handling is None:
        return name
    place = next(index for index, handler in enumerate(_PYRO_STACK) if handler is handling["self"])
    for handler in _PYRO_STACK[place + 1 :]:  # from the outside in, as their prefixes stand
        if isinstance(handler, scope) and "sample" not in handler.hide_types:
            name = name.removeprefix(f"{handler.prefix}{handler.divider}")
    return name


def explicit_validation(distribution: Any) -> bool | None:
    """``validate_args`` as it was passed to a distribution; None when it was left to NumPyro's default."""
    return distribution.__dict__.get("_validate_args")


def has_inverse(transform: Transform) -> bool:
    """Whether a transform says how it is undone: in ``_inverse``, or as the inverse of another."""
    cls = type(transform)
    return cls._inverse is not Transform._inverse or cls.inv is not Transform.inv


def model_arguments(mcmc: MCMC) -> tuple[tuple, dict[str, Any]]:
    """The arguments with which ``mcmc.run`` was called."""
    return mcmc._args, mcmc._kwargs


def num_compiled(mcmc: MCMC) -> int:
    """For how many sets of arguments ``mcmc.run`` has compiled its kernel."""
    return len(mcmc._cache)


def compiled_run(mcmc: MCMC) -> Callable[..., MCMC]:
    """``mcmc.run`` as one program that takes data as arguments; it returns a finished copy.

    NumPyro's own run without a progress bar compiles its loop anew each time, with ``jit_model_args``, too. Nothing is
    checked inside: ``mcmc.sampler.init`` checks a starting point.

    Args:
        mcmc: without a progress bar.

    Returns:
        A function of a random key, starting points, and the model's positional arguments.
    """

    @jax.jit
    def run(rng_key: jax.Array, init_params: Any, args: tuple) -> tuple[Any, Any]:
        running = copy.copy(mcmc)
        running.run(rng_key, *args, init_params=init_params)
        return running._states, running._last_state

    def run_a_copy(rng_key: jax.Array, init_params: Any, *args: Any) -> MCMC:
        finished = copy.copy(mcmc)
        finished._states, finished._last_state = run(rng_key, init_params, args)
        finished._args, finished._kwargs = args, {}
        return finished

    return run_a_copy


def _reparam_handling() -> Mapping[str, Any] | None:
    """The local variables of the ``reparam`` handler that has called, ``self`` and ``msg`` among them; else None."""
    for frame in _frames():
        if frame.f_globals.get("__name__") == "numpyro.handlers" and frame.f_code.co_name == "process_message":
            return frame.f_locals
    return None


def _frames() -> Iterator[FrameType]:
    """The callers of this function's caller, from the inside out."""
    frame = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back  # type: ignore[assignment]


def _asker_of(frame: FrameType, module: str) -> Asker | None:
    """Who asks, if a frame does, before anything is known of who called it."""
    if not module.startswith(_ASKERS):
        return None
    names = frame.f_locals
    site = _site_of(frame, module)
    if site is None:
        return None
    if module.startswith(_OUR_MODEL_ROOM):
        return Asker("engine", site, answered=names.get("answered"))
    if module == "numpyro.infer.inspect":
        return Asker("dependence", site)
    if frame.f_code.co_qualname.startswith("log_likelihood."):
        return Asker("log_likelihood", site)
    purpose: Purpose = "elbo" if module.startswith(_VARIATIONAL) else "density"
    return Asker(purpose, site, _runner(frame) if {"model", "model_args", "model_kwargs"} <= set(names) else None)


def _holds_a_model(frame: FrameType, module: str) -> bool:
    """Whether a function of NumPyro runs a model for its density, and has it and its arguments in local variables."""
    if frame.f_code in (compute_log_probs.__code__, get_importance_trace.__code__):
        return True
    return module == "numpyro.infer.elbo" and {"model", "args", "kwargs"} <= set(frame.f_locals)


def _runner(frame: FrameType) -> Callable[[Mapping[str, Any]], Mapping[str, Mapping[str, Any]]]:
    """Runs the model that a frame holds, see ``Asker.run_again``."""
    names = frame.f_locals
    model, (args, kwargs) = (
        names["model"],
        next(
            (names[one], names[other])
            for one, other in (("model_args", "model_kwargs"), ("args", "kwargs"))
            if {one, other} <= set(names)
        ),
    )

    def run_again(values: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        with block(), seed(rng_seed=0):
            return trace(substitute(model, data=values)).get_trace(*args, **kwargs)

    return run_again


def _site_of(frame: FrameType, module: str) -> Mapping[str, Any] | None:
    """The site that is a local variable of a frame."""
    names = frame.f_locals
    for name in _SITE_VARIABLES:
        if isinstance(names.get(name), Mapping) and names[name].get("type") == "sample":
            return names[name]
    if module == "numpyro.infer.reparam" and frame.f_code.co_name == "__call__" and {"name", "fn"} <= set(names):
        obs = names.get("obs")
        return {"name": names["name"], "fn": names["fn"], "value": obs, "is_observed": obs is not None, "scale": None}
    return None


def unconstrained_log_probs(model: Callable, args: tuple, kwargs: dict, params: Mapping[str, Any]) -> dict[str, Any]:
    """The summed log_prob of every sample site at unconstrained values: of a latent one with its log Jacobian."""
    found, _ = compute_log_probs(_unconstrain_params(model, dict(params)), args, kwargs, {})
    jacobians = {name: found.pop(made) for name in params if (made := f"_{name}_log_det") in found}
    return {name: value + jacobians.get(name, 0.0) for name, value in found.items()}


def mask_of(fn: MaskedDistribution) -> Any:
    """The mask of a masked distribution: a Python bool, or booleans of its batch shape."""
    return fn._mask
