r"""A model whose diffusion sites have given paths x^{0:T}.

A path has shape (T + 1, state shape...), time first, x^0 at index 0. The site's value is x^0, or of a transformed
diffusion the function T of x^0 that the model gives it there.

A diffusion site with a given path counts as observed. Where another site enters the chain's distribution, the site has
the path's exact density. Elsewhere it has none: that density is a constant to a sampler of the other sites.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from .._compat.numpyro import Messenger
from .._pytree import register_pytree
from .._typing import Array, Shape
from ..chains import ReverseChain
from ..wrappers import wrapped_diffusion

__all__ = ["PATHS", "GivenPaths", "with_given_paths"]

PATHS = "_diffusion_paths"
"""The keyword argument of a model through which its paths travel."""


@register_pytree(data=("paths", "values"), static=("matter",))
class GivenPaths:
    """Paths by site, the sites' values, and whether the paths' density matters (static)."""

    def __init__(self, paths: dict[str, Array], values: dict[str, Array], matter: bool) -> None:
        self.paths = paths
        self.values = values
        self.matter = matter


def with_given_paths(model: Callable) -> Callable:
    """The model, with paths from its keyword argument :data:`PATHS` in the place of diffusion sites."""
    return partial(_run_with_given_paths, model)


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
            path, fn = self.given.paths[msg["name"]], msg["fn"]
            wrapped: Any = wrapped_diffusion(fn)
            chain = wrapped.chain if self.given.matter else None
            msg["value"] = wrapped.value(path[0])
            msg["fn"] = _GivenPath(chain, path, msg["value"], fn.batch_shape, fn.event_shape)
            msg["is_observed"] = True


class _GivenPath(dist.Distribution):
    """The distribution of a diffusion site with a given path: its log_prob is the path's."""

    pytree_data_fields = ("chain", "path", "value")

    def __init__(
        self, chain: ReverseChain | None, path: Array, value: Array, batch_shape: Shape, event_shape: Shape
    ) -> None:
        self.chain = chain
        self.path = path
        self.value = value
        super().__init__(batch_shape, event_shape, validate_args=False)

    def sample(self, key: jax.Array | None, sample_shape: Shape = ()) -> Array:
        return self.value

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        if self.chain is None:
            return jnp.zeros(self.batch_shape)
        time_axis = self.path.ndim - 1 - self.chain.state_dim  # chains have time beside the state
        log_prob = self.chain.log_prob(jnp.moveaxis(self.path, 0, time_axis))
        return log_prob.sum(tuple(range(len(self.batch_shape), log_prob.ndim)))
