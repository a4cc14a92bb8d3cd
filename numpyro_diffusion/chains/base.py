"""What every distribution over a chain's states shares: shapes, checks, and NumPyro's handlers.

A subclass is written for values that are checked, broadcast and complete: it gives ``_log_prob(value, batch_shape)``
and ``_sample(key, batch_shape)``. This class does the rest, once:

- ``log_prob`` checks the value and broadcasts it against the batch; ``sample`` adds ``sample_shape``.
- ``expand`` stays in the class (no wrapper), so that plates inside NumPyro's ``scan`` need not reshape parameters.
- NumPyro's ``scan`` stacks every leaf of a site's distribution, network parameters too, on a new leading axis.
  Such a distribution remembers how many axes are stacked and maps over them.
- Leaves stand in one order in every process. NumPyro gathers the names of fields in sets, whose order changes with
  ``PYTHONHASHSEED``; processes that share arrays would pair them wrongly.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints

from .._checks import check_trailing_shape, expected
from .._compat.numpyro import explicit_validation, is_prng_key, promote_batch_shape
from .._typing import Array, ArrayLike, Shape
from ..kernels import Kernel
from ..transition import Transition

# An array whose values the kernel checks, because it knows what a state is.
ARRAY = constraints.dependent(is_discrete=False, event_dim=0)

__all__ = ["ARRAY", "ChainDistribution", "check_context", "check_kernel"]


class ChainDistribution(dist.Distribution):
    """Base of the distributions that a kernel and a transition make. Not for use by itself."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    pytree_data_fields: tuple[str, ...] = ("kernel",)
    pytree_aux_fields: tuple[str, ...] = ("_num_stacked",)

    kernel: Kernel
    _num_stacked: int = 0

    def __init__(
        self, kernel: Kernel, batch_shape: Shape, event_shape: Shape, *, validate_args: bool | None = None
    ) -> None:
        self.kernel = check_kernel(kernel)
        self._num_stacked = 0
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @classmethod
    def gather_pytree_data_fields(cls) -> tuple[str, ...]:
        return tuple(sorted(super().gather_pytree_data_fields()))

    @classmethod
    def gather_pytree_aux_fields(cls) -> tuple[str, ...]:
        return tuple(sorted(super().gather_pytree_aux_fields()))

    @property
    def has_rsample(self) -> bool:
        """Whether draws are differentiable functions of the parameters: true for real states, false for bits."""
        return not self.kernel.is_discrete

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.kernel.element_support, len(self.event_shape))

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        if key is None or not is_prng_key(key):
            raise TypeError(expected("a JAX random key", repr(key), "Pass jax.random.key(0) or a seed handler."))
        if self._num_stacked:
            keys = jax.random.split(key, self.batch_shape[0])
            draws = jax.vmap(lambda chain, key: chain.sample(key, sample_shape))(self._unstacked(), keys)
            return jnp.moveaxis(draws, 0, len(sample_shape))
        return self._sample(key, tuple(sample_shape) + self.batch_shape)

    def cdf(self, value: ArrayLike) -> Array:
        got = f"{type(self).__name__}, of which draws and no probabilities of a region are known"
        cure = (
            "Count draws; of a censored or truncated one make x a site of its own and write the rest as a likelihood."
        )
        raise NotImplementedError(expected("a distribution with a known cdf", got, cure))

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        if self._num_stacked:
            return self._over_stack(lambda chain, value: chain.log_prob(value), value)
        value_batch = check_trailing_shape(
            f"a value of {type(self).__name__}", value, self.event_shape, "Batch dimensions go to the left."
        )
        if explicit_validation(self) is not False:
            self.kernel.check_data(f"a value of {type(self).__name__}", value)
        batch_shape = jnp.broadcast_shapes(value_batch, self.batch_shape)
        value = jnp.broadcast_to(jnp.asarray(value), batch_shape + self.event_shape)
        log_prob = self._log_prob(value, batch_shape)
        if self._validate_args:
            # A traced value cannot raise: outside the support the density is 0, as everywhere in NumPyro.
            log_prob = jnp.where(self.support(value), log_prob, -jnp.inf)
        return log_prob

    def expand(self, batch_shape: Sequence[int]) -> "ChainDistribution":
        batch_shape = tuple(batch_shape)
        if batch_shape == self.batch_shape:
            return self
        matched = zip(reversed(self.batch_shape), reversed(batch_shape), strict=False)
        if len(batch_shape) < len(self.batch_shape) or any(old not in (1, new) for old, new in matched):
            raise ValueError(
                expected(
                    f"a batch shape that {self.batch_shape} broadcasts to",
                    batch_shape,
                    # The first words are NumPyro's own, which its users match.
                    f"Cannot broadcast distribution of shape {self.batch_shape} to shape {batch_shape}: sizes other "
                    "than 1 must stay.",
                )
            )
        expanded = copy.copy(self)
        expanded._batch_shape = batch_shape
        return expanded

    def _sample(self, key: jax.Array, batch_shape: Shape) -> Array:
        raise NotImplementedError

    def _log_prob(self, value: Array, batch_shape: Shape) -> Array:
        raise NotImplementedError

    def _unstacked(self) -> "ChainDistribution":
        """The same leaves as one distribution for each index of the stacked axis: to be mapped over axis 0."""
        chain = copy.copy(self)
        chain._num_stacked = self._num_stacked - 1
        chain._batch_shape = self.batch_shape[1:]
        return chain

    def _over_stack(self, method: Callable[[Any, Array], Array], value: ArrayLike) -> Array:
        """Apply a method to each stacked distribution with its own slice of the value."""
        value = jnp.asarray(value)
        axis = value.ndim - len(self.event_shape) - len(self.batch_shape)
        value = jnp.broadcast_to(value, jnp.shape(value)[: max(axis, 0)] + self.batch_shape + self.event_shape)
        return jax.vmap(method, in_axes=(0, max(axis, 0)), out_axes=max(axis, 0))(self._unstacked(), value)


@promote_batch_shape.register
def _(chain: ChainDistribution) -> ChainDistribution:
    """Called by NumPyro's ``scan`` after it stacked all leaves on a leading axis."""
    promoted = copy.copy(chain)
    promoted._batch_shape = (jnp.shape(chain.kernel.schedule.beta)[0], *chain.batch_shape)
    promoted._num_stacked = chain._num_stacked + 1
    return promoted


def check_kernel(kernel: Kernel) -> Kernel:
    """The kernel.

    Raises:
        TypeError: if it is none.
    """
    if not isinstance(kernel, Kernel):
        raise TypeError(expected("a Kernel", repr(kernel), "Build one with GaussianKernel or BernoulliKernel."))
    return kernel


def check_context(transition: Transition, context: ArrayLike | None) -> Shape:
    """The batch shape that a context brings.

    Raises:
        TypeError: for no transition.
        ValueError: if a context is missing, not wanted, or of another shape than the transition's.
    """
    if not isinstance(transition, Transition):
        raise TypeError(
            expected(
                "a Transition",
                repr(transition),
                "Wrap a pure function: Transition(function, params, event_shape), or use haiku_module.",
            )
        )
    if transition.context_shape is None:
        if context is not None:
            raise ValueError(
                expected(
                    "no context for an unconditional transition",
                    f"shape {jnp.shape(context)}",
                    "Give the transition a context_shape.",
                )
            )
        return ()
    if context is None:
        raise ValueError(
            expected(
                f"a context of trailing shape {transition.context_shape}",
                "None",
                "This transition is conditional: pass context=...",
            )
        )
    return check_trailing_shape("context", context, transition.context_shape, "Batch dimensions go to the left.")
