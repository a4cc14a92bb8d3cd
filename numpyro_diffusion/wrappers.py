"""Distributions that hold other distributions: which diffusions are inside, and which wrappers can be seen through.

NumPyro builds distributions out of others: transformed, masked, mixed, truncated. ``expand`` and ``to_event`` change
shapes alone, so that a diffusion inside of them is still a chain. ``TransformedDistribution`` makes it a chain of
*states* and a function of the state: x = T(s). That function has an inverse, or the wrapper is none of these. Any other
wrapper changes the distribution.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import transforms

from ._checks import expected, is_concrete
from ._compat.numpyro import has_inverse, mask_of
from ._numerics import expand_right
from ._typing import Array, ArrayLike, Shape
from .chains import ReverseChain
from .diffusion import Diffusion

__all__ = [
    "WrappedDiffusion",
    "find_diffusions",
    "obstacle",
    "unmask",
    "unwrap",
    "without_inverse",
    "wrapped_diffusion",
]


class WrappedDiffusion(NamedTuple):
    """A diffusion inside of ``expand``, ``to_event`` and transforms: x = T(s), s the state x^0 of the chain.

    Attributes:
        diffusion: the distribution of one state.
        batch_shape: in full, of the state: what ``to_event`` made an event is part of it.
        transforms: T, from the inside out; none of them for a bare diffusion.
    """

    diffusion: Diffusion
    batch_shape: Shape
    transforms: tuple[Any, ...]

    @property
    def chain(self) -> ReverseChain:
        """The chain of the states."""
        return self.diffusion.chain.expand(self.batch_shape)

    @property
    def state_shape(self) -> Shape:
        """Of all states together."""
        return self.batch_shape + self.diffusion.event_shape

    @property
    def value_shape(self) -> Shape:
        """Of T(s), as the transforms make it."""
        # JAX's own name of its float: Python's means 64 bits, of which newer versions warn where they are off.
        state = jax.ShapeDtypeStruct(self.state_shape, jnp.result_type(float))
        return jax.eval_shape(self.value, state).shape

    def value(self, state: Array) -> Array:
        """T(s), in the units of the data."""
        for transform in self.transforms:
            state = transform(state)
        return state

    def state(self, value: Array) -> Array:
        """The state s of a value: NaN or infinite outside of the support."""
        for transform in reversed(self.transforms):
            value = transform.inv(value)
        return value

    def states_of(self, points: ArrayLike) -> np.ndarray:
        """The states of data, shape (n, state event...).

        Raises:
            ValueError: for points outside of the transforms' support, with the first.
        """
        states = np.asarray(self.state(jnp.asarray(points, float)))
        outside = ~np.isfinite(states).reshape(len(states), -1).all(1)
        if outside.any():
            first = int(np.argmax(outside))
            raise ValueError(
                expected(
                    f"points in the support of {type(self.transforms[-1]).__name__}",
                    f"{np.asarray(points)[first]} at index {first}, {int(outside.sum())} of {len(outside)}",
                    "Check the data's units, and move values off the edges of the support.",
                )
            )
        return states

    def log_abs_det(self, state: Array, event_dim: int) -> Array:
        """Log |det dT/ds|, shape (batch...), nats: log p(x) is that of the state less this.

        Args:
            state: shape (batch..., state event...).
            event_dim: of the value.
        """
        path = [state]
        for transform in self.transforms:
            path.append(transform(path[-1]))
        total = jnp.zeros(())
        for transform, before, after in reversed(list(zip(self.transforms, path[:-1], path[1:], strict=True))):
            change = jnp.asarray(transform.log_abs_det_jacobian(before, after))
            beside = event_dim - transform.codomain.event_dim
            total = total + change.sum(tuple(range(change.ndim - beside, change.ndim)))
            event_dim = transform.domain.event_dim + beside
        return total


def wrapped_diffusion(fn: Any) -> WrappedDiffusion | None:
    """The diffusion that a distribution is, as it is or inside of wrappers that are seen through; else None."""
    if not isinstance(fn, dist.Distribution):
        return None
    shape, outside_in = fn.shape(), []
    while not isinstance(fn, Diffusion):
        if isinstance(fn, dist.TransformedDistribution):
            if without_inverse(fn.transforms):
                return None
            for transform in reversed(fn.transforms):
                outside_in.append(transform)
                shape = transform.inverse_shape(shape)
        elif not isinstance(fn, dist.Independent | dist.ExpandedDistribution):
            return None
        fn = fn.base_dist
    return WrappedDiffusion(fn, shape[: len(shape) - fn.event_dim], tuple(reversed(outside_in)))


def obstacle(fn: Any) -> str:
    """What hides a diffusion from :func:`wrapped_diffusion`, in words: a wrapper, or a transform without an inverse."""
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.TransformedDistribution):
        found = without_inverse(getattr(fn, "transforms", ()))
        if found:
            return found
        fn = fn.base_dist
    return type(fn).__name__


def without_inverse(parts: Any) -> str:
    """Which of some transforms has no inverse, in words; empty if all have one."""
    for part in parts:
        if isinstance(part, transforms.ComposeTransform):
            found = without_inverse(part.parts)
        elif isinstance(part, transforms.IndependentTransform):
            found = without_inverse([part.base_transform])
        elif _is_singular(part):
            found = f"{type(part).__name__} with a scale of 0"
        else:
            is_no_function = isinstance(part, transforms.AbsTransform | transforms.UnpackTransform)
            found = type(part).__name__ if is_no_function or not has_inverse(part) else ""
        if found:
            return found
    return ""


def unwrap(fn: dist.Distribution) -> tuple[dist.Distribution, Shape]:
    """What is inside of ``expand`` and ``to_event``, with the full batch shape that it has there."""
    shape = fn.shape()
    while isinstance(fn, (dist.Independent, dist.ExpandedDistribution)):
        fn = fn.base_dist
    return fn, shape[: len(shape) - fn.event_dim]


def unmask(fn: dist.Distribution) -> tuple[dist.Distribution, Array]:
    """What is inside of ``expand``, ``to_event`` and ``mask``, and what the masks let through.

    Returns:
        The distribution, and booleans that broadcast with ``fn``'s values, their event included.
    """
    seen = jnp.ones((), bool)
    while isinstance(fn, (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)):
        if isinstance(fn, dist.MaskedDistribution):
            seen = seen & expand_right(mask_of(fn), fn.event_dim)
        fn = fn.base_dist
    return fn, seen


def is_masked(fn: dist.Distribution) -> bool:
    """Whether there is a mask inside of ``expand``, ``to_event`` and ``mask``, whatever it lets through."""
    while isinstance(fn, (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)):
        if isinstance(fn, dist.MaskedDistribution):
            return True
        fn = fn.base_dist
    return False


def find_diffusions(fn: Any) -> tuple[Diffusion, ...]:
    """Every Diffusion that a distribution is or holds, at any depth, in whatever attribute; each object once."""
    return tuple(_walk(fn, set()))


def _is_singular(transform: Any) -> bool:
    """Whether an affine transform is known to lose a dimension."""
    if isinstance(transform, transforms.AffineTransform):
        scale = transform.scale
    elif isinstance(transform, transforms.LowerCholeskyAffine):
        scale = jnp.diagonal(transform.scale_tril) if is_concrete(transform.scale_tril) else transform.scale_tril
    else:
        return False
    return is_concrete(scale) and bool((np.asarray(scale) == 0).any())


def _walk(node: Any, seen: set[int]) -> Iterator[Diffusion]:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, Diffusion):
        yield node
        return
    if isinstance(node, dist.Distribution):
        children = tuple(vars(node).values())
    elif isinstance(node, Mapping):
        children = tuple(node.values())
    elif isinstance(node, (list, tuple)):
        children = tuple(node)
    else:
        return
    for child in children:
        yield from _walk(child, seen)
