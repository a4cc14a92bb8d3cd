"""Distributions that hold other distributions: which diffusions are inside, and which wrappers can be seen through.

NumPyro builds distributions out of others: transformed, masked, mixed, truncated. ``expand`` and ``to_event`` change
shapes alone, so that a diffusion inside of them is still a chain. Any other wrapper changes the distribution.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from ._compat.numpyro import mask_of
from ._numerics import expand_right
from ._typing import Array, Shape
from .diffusion import Diffusion

__all__ = ["find_diffusions", "unmask", "unwrap"]


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


def find_diffusions(fn: Any) -> tuple[Diffusion, ...]:
    """Every Diffusion that a distribution is or holds, at any depth, in whatever attribute; each object once."""
    return tuple(_walk(fn, set()))


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
