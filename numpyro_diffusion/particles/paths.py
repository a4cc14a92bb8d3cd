r"""Whole paths x^{0:T} of diffusion sites: given to a model, drawn by noising.

A path has shape (T + 1, site shape...), time first, x^0 at index 0.

In a model whose diffusion sites have given paths they count as observed: with the path's exact density where another
site enters the chain's law, else with none, for a constant is of no use to a sampler of the other sites.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from .._compat.numpyro import Messenger
from .._typing import Array, Shape
from ..chains import ForwardChain, ReverseChain
from ..wrappers import unwrap
from .target import States

__all__ = ["PATHS", "GivenPaths", "noised", "time_before_event", "with_given_paths"]

PATHS = "_diffusion_paths"
"""The keyword argument of a model through which its paths travel."""


class GivenPaths:
    """Paths by site, and whether their density matters (static)."""

    def __init__(self, paths: States, matter: bool) -> None:
        self.paths = paths
        self.matter = matter


jax.tree_util.register_pytree_node(
    GivenPaths, lambda given: ((given.paths,), given.matter), lambda matter, children: GivenPaths(children[0], matter)
)


def with_given_paths(model: Callable) -> Callable:
    """The model, with paths from its keyword argument :data:`PATHS` in the place of diffusion sites."""
    return partial(_run_with_given_paths, model)


def noised(chain: ReverseChain, x_0: Array, key: jax.Array) -> Array:
    """A path of the forward chain from x_0, shape (T + 1, site shape...)."""
    event_dim = chain.transition.event_dim
    x_0 = jnp.asarray(x_0)
    above = ForwardChain(chain.kernel, x_0, event_dim=event_dim, rng_key=key, validate_args=False).sample(key)
    above = jnp.moveaxis(above, x_0.ndim - event_dim, 0)
    return jnp.concatenate([x_0[None].astype(above.dtype), above])


def time_before_event(chain: ReverseChain, path: Array) -> Array:
    """(T + 1, batch..., event...) as chains have it: (batch..., T + 1, event...)."""
    return jnp.moveaxis(path, 0, path.ndim - 1 - chain.transition.event_dim)


def _run_with_given_paths(model: Callable, *args: Any, **kwargs: Any) -> Any:
    """Module-level, so that kernels can be pickled."""
    given = kwargs.pop(PATHS, None)
    if given is None:
        return model(*args, **kwargs)
    with _Substitute(given):
        return model(*args, **kwargs)


class _Substitute(Messenger):
    """Puts given paths in the place of diffusion sites."""

    def __init__(self, given: GivenPaths) -> None:
        self.given = given
        super().__init__(None)

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "sample" and msg["name"] in self.given.paths:
            path, law = self.given.paths[msg["name"]], msg["fn"]
            chain = None
            if self.given.matter:
                base, batch_shape = unwrap(law)
                chain = base.chain.expand(batch_shape)
            msg["fn"] = _GivenPath(chain, path, law.batch_shape, law.event_shape)
            msg["value"] = path[0]
            msg["is_observed"] = True


class _GivenPath(dist.Distribution):
    """What an observed site's law must be: it has a log_prob, the path's."""

    pytree_data_fields = ("chain", "path")

    def __init__(self, chain: ReverseChain | None, path: Array, batch_shape: Shape, event_shape: Shape) -> None:
        self.chain = chain
        self.path = path
        super().__init__(batch_shape, event_shape, validate_args=False)

    def sample(self, key: jax.Array | None, sample_shape: Shape = ()) -> Array:
        return self.path[0]

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        if self.chain is None:
            return jnp.zeros(self.batch_shape)
        log_prob = self.chain.log_prob(time_before_event(self.chain, self.path))
        return log_prob.sum(tuple(range(len(self.batch_shape), log_prob.ndim)))
