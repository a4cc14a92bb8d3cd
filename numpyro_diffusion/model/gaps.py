"""Observed sites of which some numbers are missing: a likelihood of those that are seen.

The numbers of a site are independent given the unknowns where its distribution has scalar events, as it is or inside of
``to_event``: those that are missing are masked. An event of several numbers, such as a vector of a
``MultivariateNormal``, is seen whole or not at all.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from .._checks import expected
from .._compat.numpyro import Messenger
from .._typing import Array
from ..wrappers import unwrap

__all__ = ["OfSeen", "check_events_whole"]


class OfSeen(Messenger):
    """A handler that masks what is missing of each site.

    Args:
        fn: a model.
        seen: booleans of the shape of the site's value, by site.
    """

    def __init__(self, fn: Callable, seen: Mapping[str, Array]) -> None:
        super().__init__(fn)
        self.seen = seen

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and msg["name"] in self.seen:
            msg["fn"] = _of_seen(msg["fn"], self.seen[msg["name"]])


def check_events_whole(name: str, fn: dist.Distribution, seen: np.ndarray) -> None:
    """Refuse an event of several numbers of which a part is missing.

    Raises:
        ValueError: with the site.
    """
    fn, _ = unwrap(fn)
    axes = tuple(range(seen.ndim - fn.event_dim, seen.ndim))
    if (seen.any(axes) != seen.all(axes)).any():
        wanted = f"events of site {name!r}, {type(fn).__name__}, that are seen whole or not at all"
        cure = "Their parts have no likelihood of their own: use the amortised draws, or write independent numbers."
        raise ValueError(expected(wanted, "a part of one", cure))


def _of_seen(fn: dist.Distribution, seen: Array) -> dist.Distribution:
    if isinstance(fn, dist.Independent):
        return dist.Independent(_of_seen(fn.base_dist, seen), fn.reinterpreted_batch_ndims)
    whole = seen.all(tuple(range(seen.ndim - fn.event_dim, seen.ndim)))
    return fn.expand(jnp.shape(whole)).mask(whole)
