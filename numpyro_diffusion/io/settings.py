r"""A prior as named tensors and JSON settings, and back: what a file may say, and nothing else.

    null, true, 3, 0.5, "v"                                    themselves
    {"dict": {key: node}}, {"list": [node]}, {"tuple": [node]}
    {"numpy": name}, {"jax": name}                             an array, named by its path, as in params/mlp/linear/w
    {"key": name, "impl": "threefry2x32"}                      a typed random key
    {"class": name, "settings": {...}}, {"custom": name}       an object of a class in the tables below, or the caller's

A class is looked up in the tables by a name that is part of the format; no name out of a file is imported. NumPy arrays
come back as NumPy arrays: schedules are computed in float64, where JAX has 32 bits.
"""

import dataclasses
import inspect
import itertools
import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.util import is_prng_key

from .. import estimates, kernels, networks
from .._checks import check_shape, expected, is_concrete
from ..analytic import _MixtureDenoiser
from ..chains import ReverseChain
from ..diffusion import Diffusion
from ..guidance import ErrorCovariance
from ..kernels import Kernel
from ..modules import HaikuFunction
from ..schedules import Schedule
from ..transition import Transition

__all__ = [
    *("EMBEDDINGS", "NETWORKS", "OPTIONAL", "Tensors", "decode", "describe", "describe_object", "encode", "fields"),
    *("require", "restore", "restore_object", "shown"),
]

Tensors: TypeAlias = dict[str, np.ndarray]

_KERNELS = {name: getattr(kernels, name) for name in kernels.__all__ if name != "Kernel"}
EMBEDDINGS = {name: getattr(networks, name) for name in networks.__all__ if name.endswith("Embedding")}
# ``Embedded`` holds two networks, each with settings of its own, and is the caller's.
NETWORKS = {name: getattr(networks, name) for name in networks.__all__ if name not in (*EMBEDDINGS, "Embedded")}
_FUNCTIONS = {"gaussian_mixture": _MixtureDenoiser}
# An estimate that is taken for a density is the user's decision, and is taken anew where the prior is loaded.
_ESTIMATORS = {
    name: getattr(estimates, name)
    for name in estimates.__all__
    if dataclasses.is_dataclass(getattr(estimates, name)) and name != "AsDensity"
}
_SCHEDULE = ("beta", "alpha_bar", "noise_variance")
# What a prior need not have, and files of older versions have not: such a file is of the newest format.
_ERRORS = ("factor", "diagonal", "scale", "axes")  # the last two where errors are taken as stationary
OPTIONAL = ("errors", "levels", "first_ratio")
_TREES = ("params", "state", "context", "rng_key")
_KEY_IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")
# Settings that classes have had since a later version: a file without one was written with this value.
_LATER = {"modulated": False}
# Networks allocate in proportion to some of their settings before they look at a parameter.
_MAX_INTEGER = 2**20
_FOREIGN = "The file was not written by numpyro_diffusion.save."


def require(holds: bool, wanted: str, got: Any, cure: str = _FOREIGN) -> None:
    """Raise a ValueError unless ``holds``."""
    if not holds:
        raise ValueError(expected(wanted, shown(got), cure))


def shown(value: Any) -> str:
    """A value out of a file for a message: short and of one line, whatever the file holds."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 300 else f"{text[:297]}..."


def describe(prior: Diffusion) -> tuple[Tensors, dict[str, Any]]:
    """The tensors and the settings of a prior.

    Raises:
        ValueError: for an estimator of the caller's own, and for what is no array, number or string in parameters.
    """
    tensors: Tensors = {}
    transition, schedule = prior.transition, prior.kernel.schedule
    is_haiku = isinstance(transition.function, HaikuFunction)
    network = transition.function.network if isinstance(transition.function, HaikuFunction) else transition.function
    wanted, cure = f"an estimator out of {', '.join(_ESTIMATORS)}", "Give yours to the Diffusion that is loaded."
    known = prior.estimator is None or type(prior.estimator) in _ESTIMATORS.values()
    require(known, wanted, prior.estimator, cure)
    trees = {"params": transition.params, "state": transition.state, "context": prior.context, "rng_key": prior.rng_key}
    settings = {
        "kernel": describe_object(prior.kernel, _KERNELS, "kernel", tensors),
        "schedule": {name: encode(getattr(schedule, name), f"schedule/{name}", tensors) for name in _SCHEDULE},
        "network": describe_object(network, NETWORKS if is_haiku else _FUNCTIONS, "network", tensors),
        "is_haiku": is_haiku,
        "estimator": None
        if prior.estimator is None
        else describe_object(prior.estimator, _ESTIMATORS, "estimator", tensors),
        "event_shape": list(transition.event_shape),
        "context_shape": None if transition.context_shape is None else list(transition.context_shape),
        "batch_shape": list(prior.batch_shape),
        "validate_args": prior.__dict__.get("_validate_args"),
        **{name: encode(tree, name, tensors) for name, tree in trees.items()},
    }
    if transition.levels is not None:
        settings["levels"] = list(transition.levels)
    if schedule.first_ratio is not None:
        settings["first_ratio"] = encode(schedule.first_ratio, "schedule/first_ratio", tensors)
    if prior.errors is not None:
        names = _ERRORS if prior.errors.axes else _ERRORS[:2]
        parts = {name: getattr(prior.errors, name) for name in names}
        settings["errors"] = encode(parts, "errors", tensors)
    return tensors, settings


def restore(tensors: Tensors, settings: Any, network: Any, kernel: Any) -> Diffusion:
    """The prior of what :func:`describe` returned, unchecked; arguments are those of ``load``.

    Raises:
        ValueError, TypeError, LookupError: for what no prior has; for arguments that are missing or do not fit.
    """
    names = ("kernel", "schedule", "network", "is_haiku", "estimator", "event_shape", "context_shape", "batch_shape")
    optional = [name for name in OPTIONAL if isinstance(settings, dict) and name in settings]
    found = fields(settings, *names, "validate_args", *_TREES, *optional)
    trees = {name: decode(found[name], tensors) for name in _TREES}
    arrays = [decode(node, tensors) for node in fields(found["schedule"], *_SCHEDULE).values()]
    shapes = {np.shape(array) for array in arrays}
    require(len(shapes) == 1 and len(shapes.pop()) == 1, "vectors of one length as a schedule", found["schedule"])
    ratio = decode(found.get("first_ratio"), tensors)
    is_number = isinstance(ratio, np.ndarray | jax.Array) and ratio.shape == ()
    require(
        ratio is None or (is_number and 0 < float(ratio) <= 1),
        "a number in (0, 1] as first_ratio",
        found.get("first_ratio"),
    )
    schedule = Schedule(*arrays, first_ratio=ratio)
    kernel = kernel(schedule) if kernel is not None and not isinstance(kernel, Kernel) else kernel
    kernel = restore_object("kernel", found["kernel"], _KERNELS, tensors, kernel, schedule)
    same = all(np.array_equal(getattr(kernel.schedule, name), getattr(schedule, name)) for name in _SCHEDULE)
    require(same, "kernel=... with the file's schedule", kernel, "Pass its class, a function of the schedule.")
    function = network.network if isinstance(network, HaikuFunction) else network
    function = restore_object(
        "network", found["network"], NETWORKS if found["is_haiku"] else _FUNCTIONS, tensors, function
    )
    transition = Transition(
        HaikuFunction(function) if found["is_haiku"] else function,
        trees["params"],
        tuple(found["event_shape"]),
        None if found["context_shape"] is None else tuple(found["context_shape"]),
        trees["state"],
    )
    if "levels" in found:
        levels = check_shape("levels", found["levels"], _FOREIGN)
        is_rising = len(levels) == kernel.num_steps and all(a < b for a, b in itertools.pairwise(levels))
        require(is_rising, f"{kernel.num_steps} rising levels", found["levels"])
        transition = transition.at_levels(levels)
    _check_network(kernel, transition)
    key = trees["rng_key"]
    require(key is None or is_prng_key(key), "a random key", key)
    prior = Diffusion(
        kernel,
        transition,
        context=trees["context"],
        estimator=None
        if found["estimator"] is None
        else restore_object("estimator", found["estimator"], _ESTIMATORS, tensors, None),
        rng_key=key,
        validate_args=found["validate_args"],
    )
    if "errors" in found:
        parts = decode(found["errors"], tensors)
        whole = isinstance(parts, dict) and "axes" in parts
        prior = prior.with_errors(ErrorCovariance(**fields(parts, *(_ERRORS if whole else _ERRORS[:2]))))
    return prior.expand(check_shape("batch_shape", found["batch_shape"], _FOREIGN))


def _check_network(kernel: Kernel, transition: Transition) -> None:
    """Trace one reverse step on shapes alone: what is missing, left over or of another shape stops it."""
    function: Any = transition.function

    def inputs() -> Any:
        context = None if transition.context_shape is None else jnp.zeros((1, *transition.context_shape))
        return kernel.stationary((1, *transition.event_shape)).sample(jax.random.key(0)), jnp.ones((1,), int), context

    def step(transition: Transition) -> Any:
        x_t, t, context = inputs()
        return ReverseChain(kernel, transition, context=context).reverse(x_t, t)

    def initial() -> Any:
        x_t, t, context = inputs()
        return function.init(jax.random.key(0), kernel.encode(x_t), t, context)[0]

    named = shown(getattr(function, "network", function))
    wanted = f"a network that runs with all the file's parameters on events of shape {transition.event_shape}"
    cure = "Pass the network with the settings it was trained with."
    try:
        jax.eval_shape(step, transition)
    except Exception as error:  # the caller's network may raise anything
        raise ValueError(expected(wanted, f"{named}, which raises {type(error).__name__}: {error}", cure)) from error
    try:
        shapes = jax.eval_shape(initial)
    except Exception:  # no Haiku network, or one that can only be initialised with keywords that training knew
        return
    unused = _paths(transition.params) - _paths(shapes)  # a smaller network runs too
    require(not unused, wanted, f"{named}, which does not use {sorted(unused)}", cure)


def _paths(params: Any) -> set[str]:
    return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]}


def describe_object(instance: Any, classes: dict[str, Any], name: str, tensors: Tensors) -> dict[str, Any]:
    """The node of an object of a class in a table, or of the caller's own."""
    cls = type(instance)
    if cls not in classes.values():
        named = instance if hasattr(instance, "__qualname__") else cls
        return {"custom": f"{named.__module__}.{named.__qualname__}"}  # for people to read
    values = {field: getattr(instance, field) for field in _settings(cls)}
    values = {field: value for field, value in values.items() if field not in _LATER or value != _LATER[field]}
    values = {field: value.item() if isinstance(value, np.generic) else value for field, value in values.items()}
    settings = {field: encode(value, f"{name}/{field}", tensors) for field, value in values.items()}
    return {"class": next(key for key, value in classes.items() if value is cls), "settings": settings}


def restore_object(what: str, node: Any, classes: dict[str, Any], tensors: Tensors, own: Any, *args: Any) -> Any:
    """An object of a class in the table, or the caller's own."""
    if isinstance(node, dict) and set(node) == {"custom"}:
        got = f"a file whose {what} is the custom {shown(node['custom'])}"
        require(own is not None, f"{what}=...", got, f"Pass what was trained: nd.load(path, {what}=...).")
        return own
    name, settings = fields(node, "class", "settings").values()
    require(isinstance(name, str) and name in classes, f"a {what} out of {', '.join(classes)}", name)
    types = _settings(classes[name])
    if isinstance(settings, dict):
        settings = {**{key: value for key, value in _LATER.items() if key in types}, **settings}
    values = {key: decode(child, tensors) for key, child in fields(settings, *types).items()}
    for key, value in values.items():
        limit = f" of at most {_MAX_INTEGER}" if types[key] in (int, bool) else ", finite"
        wanted = f"{key} of {name} as {types[key]}{limit}"
        require(_is_setting(types[key], value), wanted, shown(value))
    found = classes[name](*args, **values)
    require(own is None or own == found, f"no {what}=..., the file has {found}", own, "Leave it out.")
    return found


def _is_setting(kind: Any, value: Any) -> bool:
    """Whether a value of a file is of an annotated type; ``Any`` stands for a row of numbers.

    Of other types, and of arrays, it is for the class to judge.
    """
    if kind in (int, bool):
        return type(value) is kind and 0 <= value <= _MAX_INTEGER
    if kind not in (float, Any) or hasattr(value, "dtype"):
        return True
    numbers = [value] if kind is float else value
    if not isinstance(numbers, list | tuple) or len(numbers) > _MAX_INTEGER:
        return False
    return all(type(number) in (int, float) and math.isfinite(number) for number in numbers)


def _settings(cls: Any) -> dict[str, Any]:
    """The names and types of an object's settings: arguments and attributes of the same names."""
    parameters = inspect.signature(cls).parameters.values()
    return {parameter.name: parameter.annotation for parameter in parameters if parameter.name != "schedule"}


def fields(node: Any, *names: str) -> dict[str, Any]:
    """The values of a JSON object with exactly these keys, in their order."""
    keys = sorted(node) if isinstance(node, dict) else node
    require(isinstance(node, dict) and set(node) == set(names), f"settings {sorted(names)}", keys)
    return {name: node[name] for name in names}


def encode(tree: Any, name: str, tensors: Tensors) -> Any:
    """The node of a tree; its arrays are added to ``tensors``."""
    if tree is None or type(tree) in (bool, int, float, str):
        return tree
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return {"dict": {key: encode(child, f"{name}/{key}", tensors) for key, child in tree.items()}}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [encode(child, f"{name}/{i}", tensors) for i, child in enumerate(tree)]}
    is_array = isinstance(tree, (np.ndarray, np.generic, jax.Array)) and is_concrete(tree)
    wanted = f"concrete arrays in lists, tuples and dicts with string keys at {name!r}"
    cure = "Save outside of jax.jit; turn other containers into dicts, as dataclasses.asdict does."
    require(is_array, wanted, f"{type(tree).__name__} {tree!r}", cure)
    while name in tensors:  # keys may contain slashes, as Haiku's do, so two paths can read the same
        name += "'"
    node = {"jax" if isinstance(tree, jax.Array) else "numpy": name}
    if isinstance(tree, jax.Array) and jax.dtypes.issubdtype(tree.dtype, jax.dtypes.prng_key):
        node = {"key": name, "impl": str(jax.random.key_impl(tree))}
        tree = jax.random.key_data(tree)
    tensors[name] = np.asarray(tree)
    return node


def decode(node: Any, tensors: Tensors) -> Any:
    """The tree of a node."""
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    require(isinstance(node, dict) and len(node) in (1, 2), "a value", node)
    (kind, content), *rest = node.items()
    if kind == "dict" and isinstance(content, dict):
        return {key: decode(child, tensors) for key, child in content.items()}
    if kind in ("list", "tuple") and isinstance(content, list):
        children = [decode(child, tensors) for child in content]
        return children if kind == "list" else tuple(children)
    is_array = kind in ("numpy", "jax", "weak", "key") and isinstance(content, str)  # older files have "weak"
    require(is_array and content in tensors, "a dict, list, tuple or array of the file", node)
    values = tensors[content]
    if kind == "numpy":
        return values
    array = jnp.asarray(values)
    wanted = f"64-bit arrays to be enabled for {shown(content)}, of dtype {values.dtype}"
    cure = 'Call jax.config.update("jax_enable_x64", True) first, or save the prior with 32-bit parameters.'
    require(array.dtype == values.dtype, wanted, f"JAX in 32 bits, which would round it to {array.dtype}", cure)
    if kind != "key":
        return array
    implementation = dict(rest).get("impl")
    require(implementation in _KEY_IMPLEMENTATIONS, f"a key of {', '.join(_KEY_IMPLEMENTATIONS)}", implementation)
    return jax.random.wrap_key_data(array, impl=implementation)
