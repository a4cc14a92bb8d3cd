"""Types used in signatures. Shapes are checked at run time in the test run only (jaxtyping, beartype)."""

from typing import Any, Protocol, TypeAlias, runtime_checkable

from jax import Array
from jax.typing import ArrayLike

PyTree: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]

__all__ = ["Array", "ArrayLike", "PyTree", "Shape", "TransitionFunction"]


@runtime_checkable
class TransitionFunction(Protocol):
    """A pure function ``(params, x_t, t, context) -> output`` that compares equal to itself.

    JAX compiles once for each function *identity*: pass one module-level function, one bound method
    or one hashable object, never a lambda made anew at each call.
    """

    def __call__(self, params: PyTree, x_t: Array, t: Array, context: Array | None) -> PyTree: ...
