"""What is inside of NumPyro's wrappers: ``expand``, ``to_event``, ``mask``, transforms, mixtures, inflated counts.

A wrapper is any distribution with a distribution, or a list of them, among its attributes: so one that NumPyro adds
later is looked into as well.
"""

from collections.abc import Iterator
from typing import Any

from numpyro.distributions import Distribution

from .diffusion import Diffusion

__all__ = ["find_diffusions"]


def find_diffusions(fn: Distribution) -> tuple[Diffusion, ...]:
    """All diffusions that a distribution is made of, itself among them."""
    if isinstance(fn, Diffusion):
        return (fn,)
    return tuple(found for inner in _distributions(vars(fn).values()) for found in find_diffusions(inner))


def _distributions(values: Any) -> Iterator[Distribution]:
    for value in values:
        if isinstance(value, Distribution):
            yield value
        elif isinstance(value, list | tuple):
            yield from _distributions(value)
