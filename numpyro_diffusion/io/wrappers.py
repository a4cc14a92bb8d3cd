r"""What is around a diffusion in a file: ``expand``, ``to_event`` and transforms out of a table, from the inside out.

A transform is saved by its name, NumPyro's or ours, and by its parameters, which are numbers, words and arrays; nothing
else of it can be in a file.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints, transforms

from .. import transforms as our_transforms
from .._checks import check_shape, expected
from .._compat.numpyro import explicit_validation
from ..diffusion import Diffusion
from ..wrappers import obstacle, without_inverse, wrapped_diffusion
from .settings import Tensors, decode, encode, fields, require, shown

__all__ = ["describe_wrappers", "restore_wrappers"]

_DOMAINS = {name: getattr(constraints, name) for name in ("real", "positive", "unit_interval")}
# Of each class its parameters, which are its attributes too.
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "AffineTransform": ("loc", "scale", "domain"),
    "ComposeTransform": ("parts",),
    "ExpTransform": ("domain",),
    "IdentityTransform": (),
    "IndependentTransform": ("base_transform", "reinterpreted_batch_ndims"),
    "LowerCholeskyAffine": ("loc", "scale_tril"),
    "OrderedTransform": (),
    "PermuteTransform": ("permutation",),
    "PowerTransform": ("exponent",),
    "SigmoidTransform": (),
    "SoftplusTransform": (),
    "StickBreakingTransform": (),
    "SinhArcsinh": ("skew", "tail"),
    "BySupport": ("supports",),
    "InsertConstants": ("constants",),
}
_CLASSES: dict[str, Any] = {
    name: getattr(our_transforms if name in our_transforms.__all__ else transforms, name) for name in _PARAMETERS
}
_WORDS = ("supports", "constants")  # parameters that are one word or number for each column
_LAYERS = ("expand", "to_event", "transforms")
_WHAT = "a Diffusion, alone or inside of expand, to_event and transforms with an inverse"
_OUT_OF = f"a transform out of {', '.join(_CLASSES)}"


def describe_wrappers(prior: Any) -> tuple[Diffusion, dict[str, Any], list[dict[str, Any]]]:
    """The diffusion inside of a prior, the arrays around it, and its wrappers from the inside out.

    Raises:
        ValueError: for one that is not seen through, and for a transform that is not in the table.
    """
    require(wrapped_diffusion(prior) is not None, _WHAT, obstacle(prior), "Save the Diffusion that is in it.")
    tensors: Tensors = {}
    layers: list[dict[str, Any]] = []
    while not isinstance(prior, Diffusion):
        if isinstance(prior, dist.TransformedDistribution):
            name = f"wrappers/{len(layers)}"
            parts = [_describe(part, f"{name}/{index}", tensors) for index, part in enumerate(prior.transforms)]
            layer: dict[str, Any] = {"transforms": parts, "validate_args": explicit_validation(prior)}
        elif isinstance(prior, dist.Independent):
            layer = {"to_event": prior.reinterpreted_batch_ndims}
        else:
            layer = {"expand": list(prior.batch_shape)}
        layers.append(layer)
        prior = prior.base_dist
    return prior, tensors, layers[::-1]


def restore_wrappers(prior: Any, tensors: Tensors, layers: Any) -> Any:
    """The prior with its wrappers again, unchecked otherwise.

    Raises:
        ValueError: for what no wrapper is, or one that does not fit the prior's shape.
    """
    require(isinstance(layers, list), "a list of wrappers", layers)
    for layer in layers:
        is_layer = isinstance(layer, dict) and len({*_LAYERS} & {*layer}) == 1
        require(is_layer, f"one of {', '.join(_LAYERS)}", layer)
        parts = [_restore(node, tensors) for node in layer.get("transforms", [])]
        missing = without_inverse(parts)
        require(not missing, "transforms with an inverse", missing)
        prior = _built(f"a wrapper for a prior of shape {prior.shape()}", layer, _wrap, prior, layer, parts)
    return prior


def _built(wanted: str, node: Any, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What ``make`` gives; NumPyro's own checks are assertions and errors of many kinds, here they are one."""
    try:
        return make(*args, **kwargs)
    except Exception as error:
        got = f"{shown(node)}, which raises {type(error).__name__}: {shown(str(error))}"
        raise ValueError(expected(wanted, got, "The file was not written by numpyro_diffusion.save.")) from error


def _wrap(prior: Any, layer: dict[str, Any], parts: list[Any]) -> Any:
    if "to_event" in layer:
        return prior.to_event(fields(layer, "to_event")["to_event"])
    if "expand" in layer:
        return prior.expand(check_shape("expand", fields(layer, "expand")["expand"], "Sizes are positive."))
    validate_args = fields(layer, "transforms", "validate_args")["validate_args"]
    wrapped = dist.TransformedDistribution(prior, parts, validate_args=validate_args)
    known: Any = wrapped_diffusion(wrapped)
    require(known.value_shape == wrapped.shape(), f"transforms to shape {wrapped.shape()}", known.value_shape)
    return wrapped


def _describe(transform: Any, name: str, tensors: Tensors) -> dict[str, Any]:
    cls = type(transform).__name__
    cure = "Save the Diffusion alone, its base_dist, and apply your transform to the one that is loaded."
    require(_CLASSES.get(cls) is type(transform), _OUT_OF, cls, cure)
    values = {parameter: getattr(transform, parameter) for parameter in _PARAMETERS[cls]}
    settings: dict[str, Any] = {}
    for parameter, value in values.items():
        if parameter == "domain":
            found = [key for key, domain in _DOMAINS.items() if type(domain) is type(value)]
            require(bool(found), f"a domain out of {', '.join(_DOMAINS)} for {cls}", value, cure)
            settings[parameter] = found[0]
        elif parameter == "parts":
            settings[parameter] = [_describe(part, f"{name}/{i}", tensors) for i, part in enumerate(value)]
        elif parameter == "base_transform":
            settings[parameter] = _describe(value, f"{name}/base", tensors)
        else:
            settings[parameter] = encode(value, f"{name}/{parameter}", tensors)
    return {"class": cls, "settings": settings}


def _restore(node: Any, tensors: Tensors) -> Any:
    name, settings = fields(node, "class", "settings").values()
    require(isinstance(name, str) and name in _CLASSES, _OUT_OF, name)
    values = fields(settings, *_PARAMETERS[name])
    for parameter, value in values.items():
        if parameter == "domain":
            require(isinstance(value, str) and value in _DOMAINS, f"a domain out of {', '.join(_DOMAINS)}", value)
            values[parameter] = _DOMAINS[value]
        elif parameter == "parts":
            require(isinstance(value, list), "a list of transforms", value)
            values[parameter] = [_restore(part, tensors) for part in value]
        elif parameter == "base_transform":
            values[parameter] = _restore(value, tensors)
        elif parameter in _WORDS:
            values[parameter] = decode(value, tensors)
            is_row = isinstance(values[parameter], tuple) and all(
                entry is None or type(entry) in (int, float, str) for entry in values[parameter]
            )
            require(is_row, f"a word or number for each column as {parameter} of {name}", value)
        else:
            values[parameter] = decode(value, tensors)
            is_number = type(values[parameter]) in (int, float) or hasattr(values[parameter], "dtype")
            require(is_number and jnp.ndim(values[parameter]) < 8, f"numbers as {parameter} of {name}", value)
    return _built(f"parameters of {name}", settings, _CLASSES[name], **values)
