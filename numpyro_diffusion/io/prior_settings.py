r"""A diffusion as settings and tensors, and back: what a file may say, and nothing else.

A setting is a JSON value that is checked against the one class it is for. A class is looked up in the tables below by
a name that is part of the format; no name out of a file is imported. What a file cannot hold, the code of a network or
kernel of the user's own, is handed in by the caller.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_shape, expected
from .._compat.numpyro import explicit_validation, is_prng_key
from .._typing import Shape
from ..analytic import _MixtureDenoiser
from ..chains import ReverseChain
from ..diffusion import Diffusion
from ..estimates import AllSteps, ImportanceWeighted, RandomStep
from ..kernels import BernoulliKernel, GaussianKernel, Kernel
from ..modules import HaikuFunction
from ..networks import MLP, RBF, MultiScaleConv, StepReadoutMLP, UNet
from ..schedules import Schedule
from ..transition import Transition
from .tensor_file import shown
from .tree_settings import decode, encode, wrong

__all__ = ["describe", "restore"]

# The kernels' settings are attributes and arguments of the same names; the dataclasses' are their fields.
KERNELS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "GaussianKernel": (GaussianKernel, ("parameterization", "variance", "data_scale")),
    "BernoulliKernel": (BernoulliKernel, ("rate", "parameterization")),
}
NETWORKS: dict[str, Any] = {cls.__name__: cls for cls in (MLP, RBF, MultiScaleConv, StepReadoutMLP, UNet)}
FUNCTIONS: dict[str, Any] = {"gaussian_mixture": _MixtureDenoiser}
ESTIMATORS: dict[str, Any] = {
    "RandomStep": RandomStep,
    "AllSteps": AllSteps,
    "ImportanceWeighted": ImportanceWeighted,
}

_SCHEDULE = ("beta", "alpha_bar", "noise_variance")
_TREES = ("params", "state", "context", "rng_key")
_FIELDS = (
    *("kernel", "schedule", "network", "is_haiku", "estimator", "event_shape", "context_shape", "batch_shape"),
    *("validate_args", *_TREES),
)
# Networks allocate in proportion to some of their settings before they look at a parameter.
_MAX_INTEGER = 2**20


def describe(prior: Diffusion) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and the settings of a prior.

    Raises:
        ValueError: for an estimator that is not the package's, and for arrays as ``encode`` raises.
    """
    tensors: dict[str, np.ndarray] = {}
    transition, schedule = prior.transition, prior.kernel.schedule
    is_haiku = isinstance(transition.function, HaikuFunction)
    network = transition.function.network if isinstance(transition.function, HaikuFunction) else transition.function
    if prior.estimator is not None and type(prior.estimator) not in ESTIMATORS.values():
        raise ValueError(
            expected(
                f"an estimator out of {', '.join(ESTIMATORS)}",
                repr(prior.estimator),
                "Save a Diffusion with one of these, and give yours to the one that is loaded.",
            )
        )
    settings = {
        "kernel": _describe_kernel(prior.kernel, tensors),
        "schedule": {name: encode(getattr(schedule, name), f"schedule/{name}", tensors) for name in _SCHEDULE},
        "network": _describe_dataclass(network, NETWORKS if is_haiku else FUNCTIONS),
        "is_haiku": is_haiku,
        "estimator": None if prior.estimator is None else _describe_dataclass(prior.estimator, ESTIMATORS),
        "event_shape": list(transition.event_shape),
        "context_shape": None if transition.context_shape is None else list(transition.context_shape),
        "batch_shape": list(prior.batch_shape),
        "validate_args": explicit_validation(prior),
        "params": encode(transition.params, "params", tensors),
        "state": encode(transition.state, "state", tensors),
        "context": encode(prior.context, "context", tensors),
        "rng_key": encode(prior.rng_key, "rng_key", tensors),
    }
    return tensors, settings


def restore(
    tensors: dict[str, np.ndarray],
    settings: Any,
    network: Callable[..., Any] | None,
    kernel: Kernel | Callable[[Schedule], Kernel] | None,
) -> Diffusion:
    """The prior of what :func:`describe` returned.

    Args:
        tensors: is emptied.
        settings: unchecked JSON values.
        network: the caller's own, or None.
        kernel: the caller's own, or what makes it from the schedule, or None.

    Raises:
        ValueError: for settings that no prior has, and for arguments that are missing or do not fit.
    """
    found = _fields("a prior", settings, _FIELDS)
    schedule = _restore_schedule(found["schedule"], tensors)
    kernel = _restore_kernel(found["kernel"], schedule, kernel, tensors)
    function = _restore_function(found["network"], found["is_haiku"], network)
    named = found["estimator"]
    estimator = None if named is None else _restore_dataclass("an estimator", named, ESTIMATORS)
    trees = {name: decode(found[name], tensors) for name in _TREES}
    if tensors:
        raise wrong("a place for every tensor", sorted(tensors))
    if found["validate_args"] not in (None, True, False):
        raise wrong("validate_args as null, true or false", found["validate_args"])
    if trees["rng_key"] is not None and not is_prng_key(trees["rng_key"]):
        raise wrong("a random key", trees["rng_key"])
    event_shape, batch_shape = _shape(found["event_shape"]), _shape(found["batch_shape"])
    context_shape = None if found["context_shape"] is None else _shape(found["context_shape"])
    transition = Transition(function, trees["params"], event_shape, context_shape, trees["state"])
    _check_network(kernel, transition)
    prior = Diffusion(
        kernel,
        transition,
        context=_array_or_none("context", trees["context"]),
        estimator=estimator,
        rng_key=trees["rng_key"],
        validate_args=found["validate_args"],
    )
    return prior.expand(batch_shape)


# Kernels and schedules -------------------------------------------------------------------------------


def _describe_kernel(kernel: Kernel, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    for name, (cls, fields) in KERNELS.items():
        if type(kernel) is cls:
            settings = {field: encode(getattr(kernel, field), f"kernel/{field}", tensors) for field in fields}
            return {"class": name, "settings": settings}
    return {"custom": _qualified_name(kernel)}


def _restore_kernel(
    node: Any,
    schedule: Schedule,
    own: Kernel | Callable[[Schedule], Kernel] | None,
    tensors: dict[str, np.ndarray],
) -> Kernel:
    name = _class_name("a kernel", node, KERNELS)
    if name is not None and own is not None:
        raise ValueError(
            expected(f"no kernel=..., the file's is a {name}", repr(own), "Leave it out: the file has it.")
        )
    if name is not None:
        cls, fields = KERNELS[name]
        values = {key: decode(child, tensors) for key, child in _fields(name, node["settings"], fields).items()}
        try:
            return cls(schedule, **values)
        except (TypeError, ValueError) as error:
            raise wrong(f"settings of {name}", str(error)) from error
    if own is None:
        raise _missing("kernel", node["custom"], "Pass it, or its class")
    kernel = own if isinstance(own, Kernel) else own(schedule)
    if not isinstance(kernel, Kernel) or not _same_schedule(kernel.schedule, schedule):
        raise ValueError(
            expected("kernel=... with the file's schedule", repr(kernel), "Pass its class, a function of the schedule.")
        )
    return kernel


def _restore_schedule(node: Any, tensors: dict[str, np.ndarray]) -> Schedule:
    nodes = _fields("a schedule", node, _SCHEDULE)
    arrays = {name: decode(nodes[name], tensors) for name in _SCHEDULE}
    shapes = {np.shape(array) for array in arrays.values()}
    for name, array in arrays.items():
        values = array if isinstance(array, (np.ndarray, jax.Array)) else np.zeros(())
        if values.ndim != 1 or len(values) < 2 or len(shapes) > 1 or not jnp.issubdtype(values.dtype, jnp.floating):
            raise wrong(f"{name} as T + 1 floating-point numbers", array)
        if not np.all((np.asarray(values) >= 0) & (np.asarray(values) <= 1)):
            raise wrong(f"{name} in [0, 1]", array)
    return Schedule(**arrays)


def _same_schedule(first: Schedule, second: Schedule) -> bool:
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in _SCHEDULE)


# Networks and estimators -----------------------------------------------------------------------------


def _describe_dataclass(instance: Any, classes: dict[str, Any]) -> dict[str, Any]:
    for name, cls in classes.items():
        if type(instance) is cls:
            values = {}
            for field in dataclasses.fields(instance):
                value = getattr(instance, field.name)
                if not _is_setting(field, value):
                    wanted = f"{field.name} of {name} to be {_kind(field)}"
                    raise ValueError(expected(wanted, repr(value), "Such a network cannot be loaded again."))
                values[field.name] = value if isinstance(value, bool) else int(value)
            return {"class": name, "settings": values}
    return {"custom": _qualified_name(instance)}


def _restore_dataclass(what: str, node: Any, classes: dict[str, Any]) -> Any:
    name = _class_name(what, node, classes)
    if name is None:
        raise wrong(f"{what} out of {', '.join(classes)}", node["custom"])
    cls = classes[name]
    fields = dataclasses.fields(cls)
    values = _fields(name, node["settings"], tuple(field.name for field in fields))
    for field in fields:
        if not _is_setting(field, values[field.name]):
            raise wrong(f"{field.name} of {name} as {_kind(field)}", values[field.name])
    try:
        return cls(**values)
    except ValueError as error:  # sizes that do not go together
        raise wrong(f"settings of {name}", str(error)) from error


def _is_setting(field: "dataclasses.Field[Any]", value: Any) -> bool:
    if field.type is bool:
        return isinstance(value, bool)
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 0 <= int(value) <= _MAX_INTEGER


def _kind(field: "dataclasses.Field[Any]") -> str:
    return "true or false" if field.type is bool else f"an integer from 0 to {_MAX_INTEGER}"


def _restore_function(node: Any, is_haiku: Any, network: Callable[..., Any] | None) -> Any:
    """The transition function: out of the tables, or the caller's, which a Haiku network's file wraps."""
    if type(is_haiku) is not bool:
        raise wrong("is_haiku as true or false", is_haiku)
    classes = NETWORKS if is_haiku else FUNCTIONS
    custom = _class_name("a network", node, classes) is None
    if custom and network is None:
        call = "the Haiku network" if is_haiku else "the function (params, x_t, t, context)"
        raise _missing("network", node["custom"], f"Pass {call} that was trained")
    own = network.network if isinstance(network, HaikuFunction) else network
    restored = own if custom else _restore_dataclass("a network", node, classes)
    if own is not None and own != restored:
        raise ValueError(
            expected(f"the file's own network, {restored}", repr(own), "Leave network=... out: the file has it.")
        )
    return HaikuFunction(restored) if is_haiku else restored


def _check_network(kernel: Kernel, transition: Transition) -> None:
    """Trace one reverse step on shapes alone: a parameter that is missing or of another shape stops it."""

    def step(params: Any, state: Any, x_t: Any, context: Any) -> None:
        bound = Transition(transition.function, params, transition.event_shape, transition.context_shape, state)
        ReverseChain(kernel, bound, context=context).reverse(x_t, jnp.ones((1,), int))

    def example() -> tuple[Any, Any]:
        context = None if transition.context_shape is None else jnp.zeros((1, *transition.context_shape))
        return kernel.stationary((1, *transition.event_shape)).sample(jax.random.key(0)), context

    network = getattr(transition.function, "network", transition.function)
    try:
        x_t, context = jax.eval_shape(example)
        jax.eval_shape(step, transition.params, transition.state, x_t, context)
    except Exception as error:  # the caller's network may raise anything
        raise ValueError(
            expected(
                f"a network that runs with the file's parameters on events of shape {transition.event_shape}",
                f"{shown(network)}, which raises {type(error).__name__}: {error}",
                "Pass the network with the settings it was trained with.",
            )
        ) from error
    if isinstance(transition.function, HaikuFunction):
        _check_nothing_left_over(kernel, transition, x_t, context)


def _check_nothing_left_over(kernel: Kernel, transition: Transition, x_t: Any, context: Any) -> None:
    """A smaller network than the trained one runs too, with some of the parameters."""
    function: Any = transition.function

    def initial(x_t: Any, context: Any) -> Any:
        return function.init(jax.random.key(0), kernel.encode(x_t), jnp.ones((1,), int), context)[0]

    try:
        shapes = jax.eval_shape(initial, x_t, context)
    except Exception:  # some networks can only be initialised with keywords that training knew
        return
    unknown = _paths(transition.params) - _paths(shapes)
    if unknown:
        raise ValueError(
            expected(
                f"only parameters that {shown(function.network)} has",
                f"also {shown(sorted(unknown))}",
                "Pass the network with the settings it was trained with.",
            )
        )


def _paths(params: Any) -> set[str]:
    return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]}


# What all share --------------------------------------------------------------------------------------


def _fields(what: str, node: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """A dict with exactly these keys."""
    if not isinstance(node, dict) or set(node) != set(names):
        found = set(node) if isinstance(node, dict) else set()
        missing, unknown = sorted(set(names) - found), sorted(found - set(names))
        raise wrong(f"settings {', '.join(names)} of {what}", f"missing {missing}, unknown {unknown}")
    return node


def _class_name(what: str, node: Any, classes: dict[str, Any]) -> str | None:
    """The name of a class in the table; None for one of the user's own."""
    if isinstance(node, dict) and set(node) == {"custom"} and isinstance(node["custom"], str):
        return None
    name = _fields(what, node, ("class", "settings"))["class"]
    if not isinstance(name, str) or name not in classes:
        raise wrong(f"{what} out of {', '.join(classes)}", name)
    return name


def _qualified_name(value: Any) -> str:
    """For people to read; nothing is ever looked up by it."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _missing(argument: str, name: str, cure: str) -> ValueError:
    got = f"a file whose {argument} is the custom {shown(name)}"
    return ValueError(expected(f"{argument}=...", got, f"{cure}: nd.load(path, {argument}=...)."))


def _array_or_none(name: str, value: Any) -> Any:
    if value is not None and not isinstance(value, (np.ndarray, jax.Array, int, float)):
        raise wrong(f"an array as {name}", value)
    return value


def _shape(node: Any) -> Shape:
    if not isinstance(node, list) or not all(type(size) is int and size < 2**31 for size in node):
        raise wrong("a shape", node)
    return check_shape("a shape in the file's settings", node, "The file was not written by numpyro_diffusion.save.")
