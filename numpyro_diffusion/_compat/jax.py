"""Names of JAX that are bound to its version."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
from jax.interpreters import partial_eval

__all__ = [
    "Origin",
    "device_memory",
    "evaluate_jaxpr",
    "has_primitive",
    "is_tracer",
    "num_operations",
    "origins",
    "scan_parts",
    "used_inputs",
]


def is_tracer(value: Any) -> bool:
    """Whether a value stands for an array of a program that is being traced."""
    return isinstance(value, jax.core.Tracer)


class Origin(NamedTuple):
    """What one result of a function is computed from."""

    inputs: list[bool]  # each array among the function's arguments
    tracers: bool  # arrays that are being traced outside of the function, by which it is closed over


def origins(function: Callable[..., Any], *arguments: Any) -> list[Origin]:
    """For each array of ``function(*arguments)``, what it is computed from, whatever the arguments' values.

    Inside of ``jax.jit`` every result is a tracer, also ``jnp.ones(3)``: what tells the two apart is the program that
    makes it.
    """
    program = jax.make_jaxpr(function)(*arguments)
    shapes = [jax.ShapeDtypeStruct(jnp.shape(const), jnp.result_type(const)) for const in program.consts]
    # Again, with what the function is closed over as inputs.
    jaxpr = jax.make_jaxpr(partial(evaluate_jaxpr, program.jaxpr))(shapes, jax.tree.leaves(arguments)).jaxpr
    is_outer = [is_tracer(const) for const in program.consts]
    found = []
    for index in range(len(jaxpr.outvars)):
        used = used_inputs(jaxpr, {index})
        outer = any(is_used and is_one for is_used, is_one in zip(used, is_outer, strict=False))
        found.append(Origin(used[len(is_outer) :], outer))
    return found


def evaluate_jaxpr(jaxpr: Any, consts: list[Any], leaves: list[Any]) -> list[Any]:
    """The results of a program, given the arrays that it closed over and its inputs."""
    return jax.extend.core.jaxpr_as_fun(jax.extend.core.ClosedJaxpr(jaxpr, consts))(*leaves)


def used_inputs(jaxpr: Any, outputs: set[int]) -> list[bool]:
    """For each input of a program, whether one of its outputs of these indices is computed from it."""
    return partial_eval.dce_jaxpr(jaxpr, [index in outputs for index in range(len(jaxpr.outvars))])[1]


def scan_parts(equation: Any) -> tuple[int, int]:
    """How many of the inputs of a ``scan`` are constants, and how many are carried; the rest are rows."""
    params = equation.params
    if "num_consts" in params:  # before JAX 0.12
        return params["num_consts"], params["num_carry"]
    constants, carry, _ = params["ft_in"].unpack()
    return len(constants), len(carry)


def has_primitive(function: Callable[..., Any], name: str, *args: Any) -> bool:
    """Whether the program of ``function(*args)`` calls a primitive, inside of loops and calls too."""
    return name in str(jax.make_jaxpr(function)(*args))


def num_operations(jaxpr: Any) -> int:
    """How many operations a program has, those of its loops, branches and calls each counted once."""
    return sum(1 + sum(map(num_operations, _inner(equation))) for equation in jaxpr.eqns)


def _inner(equation: Any) -> Iterator[Any]:
    for leaf in jax.tree.leaves(
        equation.params, is_leaf=lambda value: hasattr(value, "jaxpr") or hasattr(value, "eqns")
    ):
        jaxpr = getattr(leaf, "jaxpr", leaf)
        if hasattr(jaxpr, "eqns"):
            yield jaxpr


def device_memory() -> int | None:
    """Bytes of memory of the first device, of this machine where the device is its CPU; None where nobody says."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system
        return None
