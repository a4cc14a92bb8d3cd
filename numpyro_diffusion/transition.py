"""The learned part: a pure function from (x^t, t) to what a kernel needs for its reverse step.

Any function ``(params, x_t, t, context) -> output`` will do: a Haiku network, a Flax one, an analytic denoiser
in a test. The chains see it only as a :class:`Transition`, which carries the function (static: one compiled
program for each), its parameters (arrays: gradients, ensembles, posterior draws) and the shape of one event.

Shapes. ``x_t`` is (batch..., event...), floating point; ``t`` is an integer array that broadcasts with the
batch shape, from () to the full one; ``context`` is None or (batch..., context event...). The output is
``kernel.num_outputs`` arrays of exactly x_t's shape and dtype: one array, or a tuple.
"""

import copy
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ._checks import check_shape, expected
from ._pytree import register_pytree
from ._typing import Array, ArrayLike, PyTree, Shape, TransitionFunction
from .kernels import Kernel

__all__ = ["Transition", "call_refused", "check_call", "check_output", "example_inputs"]


@register_pytree(data=("params", "state"), static=("function", "event_shape", "context_shape", "levels"))
class Transition:
    """A transition function with its parameters bound.

    Args:
        function: ``(params, x_t, t, context) -> output``, pure, with stable identity.
        params: any pytree of arrays.
        event_shape: the shape of one x.
        context_shape: the shape of one context; None for an unconditional transition.
        state: a network's non-trained state (moving averages), handed to the function with the parameters as
            ``(params, state)`` when it is not None.

    Attributes:
        levels: of a respaced chain of K steps, the network's own step t of each k = 1..K; None where they are the same.

    >>> unit_gaussian = Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(2,))
    >>> unit_gaussian.event_shape
    (2,)
    """

    function: TransitionFunction
    params: PyTree
    event_shape: Shape
    context_shape: Shape | None
    state: PyTree
    levels: tuple[int, ...] | None = None

    def __init__(
        self,
        function: TransitionFunction,
        params: PyTree,
        event_shape: Shape,
        context_shape: Shape | None = None,
        state: PyTree = None,
    ) -> None:
        if not callable(function):
            raise TypeError(
                expected("function(params, x_t, t, context)", repr(function), "Pass the network's pure apply function.")
            )
        self.function = function
        self.params = params
        self.state = state
        self.event_shape = check_shape("event_shape", event_shape, "It is the shape of one data point.")
        self.context_shape = (
            None
            if context_shape is None
            else check_shape("context_shape", context_shape, "It is the shape of one context, () for a number.")
        )

    @property
    def event_dim(self) -> int:
        """The number of trailing dimensions of one x."""
        return len(self.event_shape)

    def __call__(self, x_t: Array, t: ArrayLike, context: Array | None = None) -> PyTree:
        """The network's output at x_t and step t of the chain."""
        params = self.params if self.state is None else (self.params, self.state)
        return self.function(params, x_t, self.own_step(t), context)

    def own_step(self, t: ArrayLike) -> Array:
        """Step t of the chain as the network was trained to count it."""
        return jnp.asarray(t) if self.levels is None else jnp.asarray((0, *self.levels))[jnp.asarray(t)]

    def at_levels(self, levels: Sequence[int]) -> "Transition":
        """The same network for a chain whose step k is this one's step levels[k-1]."""
        own = (0, *self.levels) if self.levels is not None else range(levels[-1] + 1)
        kept = copy.copy(self)
        kept.levels = tuple(int(own[t]) for t in levels)
        return kept

    def __repr__(self) -> str:
        levels = "" if self.levels is None else f", levels={self.levels}"
        shapes = f"event_shape={self.event_shape}, context_shape={self.context_shape}"
        return f"Transition({self.function!r}, {shapes}{levels})"


def example_inputs(kernel: Kernel, transition: Transition) -> tuple[Array, Array, Array | None]:
    """x_t, t and context of a batch of one, as a chain of this kernel calls the transition."""
    context = None if transition.context_shape is None else jnp.zeros((1, *transition.context_shape))
    x_t = kernel.encode(kernel.stationary((1, *transition.event_shape)).sample(jax.random.key(0)))
    return x_t, jnp.ones((1,), int), context


def check_call(kernel: Kernel, transition: Transition, wanted: str, cure: str) -> None:
    """Call a transition on shapes alone, and compare its output with what the kernel needs.

    Args:
        kernel: whose reverse step the transition serves.
        transition: with its parameters bound.
        wanted: what was to be called, for the message.
        cure: what to do where the call fails.

    Raises:
        TypeError: if the call fails, or for a wrong structure or dtype of the output.
        ValueError: for a wrong shape of the output.
    """
    example = example_inputs(kernel, transition)
    try:
        output = jax.eval_shape(lambda bound: bound(*example), transition)
    except Exception as error:  # the caller's network may raise anything
        raise call_refused(wanted, example, error, cure) from error
    check_output(kernel, output, example[0])


def call_refused(wanted: str, example: tuple[Array | None, ...], error: Exception, cure: str) -> TypeError:
    """The error for a network that cannot be called with ``example``."""
    inputs = ", ".join(
        f"{label} of shape {jnp.shape(value)}"
        for label, value in zip(("x_t", "t", "context"), example, strict=True)
        if value is not None
    )
    got = f"{type(error).__name__}: {error}"
    return TypeError(expected(f"{wanted} that can be called with ({inputs}) and no random key", got, cure))


def check_output(kernel: Kernel, output: PyTree, x_t: Array) -> None:
    """Compare a transition's output with what the kernel needs, at trace time."""
    wanted = f"the transition to return {_describe(kernel.num_outputs, x_t)}"
    arrays = (output,) if kernel.num_outputs == 1 else output
    is_array = [hasattr(array, "shape") and hasattr(array, "dtype") for array in jax.tree.leaves(arrays)]
    if not isinstance(arrays, (tuple, list)) or len(arrays) != kernel.num_outputs or len(is_array) != len(arrays):
        raise TypeError(
            expected(
                wanted,
                jax.tree.map(jnp.shape, output) if all(is_array) else repr(output),
                f"Build the network with num_outputs={kernel.num_outputs}, or change the kernel's variance.",
            )
        )
    for array in arrays:
        if jnp.shape(array) != jnp.shape(x_t):
            raise ValueError(
                expected(wanted, f"shape {jnp.shape(array)}", "The output has one number for each of x_t's.")
            )
        if jnp.result_type(array) != x_t.dtype:
            raise TypeError(
                expected(wanted, f"dtype {jnp.result_type(array)}", f"End the network with .astype({x_t.dtype}).")
            )


def _describe(num_outputs: int, x_t: Array) -> str:
    one = f"of shape {jnp.shape(x_t)} and dtype {x_t.dtype}"
    return f"one array {one}" if num_outputs == 1 else f"a tuple of {num_outputs} arrays {one}"
