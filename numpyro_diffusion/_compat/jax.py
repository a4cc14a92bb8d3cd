"""Names of JAX that are bound to its version."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
from jax.interpreters import partial_eval

__all__ = ["Origin", "evaluate_jaxpr", "has_primitive", "is_tracer", "origins", "scan_parts", "used_inputs"]


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
