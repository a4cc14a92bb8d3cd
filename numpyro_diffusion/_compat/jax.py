"""Names of JAX that are bound to its version."""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend
from jax.interpreters import partial_eval

__all__ = ["depends_on_tracers", "evaluate_jaxpr", "has_primitive", "is_tracer", "scan_parts", "used_inputs"]


def is_tracer(value: Any) -> bool:
    """Whether a value stands for an array of a program that is being traced."""
    return isinstance(value, jax.core.Tracer)


def depends_on_tracers(function: Callable[[], Any]) -> bool:
    """Whether a result of ``function()`` is computed from arrays that are being traced outside of it.

    Inside of ``jax.jit`` every result is a tracer, also ``jnp.ones(3)``: what tells the two apart is the program that
    makes it. A call inside of the program is taken as a whole: each of its results depends on each of its arguments.
    """
    program = jax.make_jaxpr(function)()
    constants = zip(program.jaxpr.constvars, program.consts, strict=True)
    reached = {id(variable) for variable, value in constants if is_tracer(value)}
    for equation in program.jaxpr.eqns:
        if any(id(variable) in reached for variable in equation.invars):
            reached.update(id(variable) for variable in equation.outvars)
    return any(id(variable) in reached for variable in program.jaxpr.outvars)


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
