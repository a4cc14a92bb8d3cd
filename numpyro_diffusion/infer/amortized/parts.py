r"""The amortised posterior as chains, one after the other: bits, classes by their number of states, then real numbers.

    q(theta | y) = q(bits | y) q(classes | bits, y) q(x | bits, classes, y),     u = a + B f(y, bits, classes) + L x

Each is a conditional reverse chain whose context holds y and the chains before it, so that nothing is assumed of how
sites depend on each other.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..._pytree import register_pytree
from ..._typing import Array
from ...chains import ReverseChain
from ...kernels import Kernel
from ...model.simulated_sites import LatentSite
from ...transition import Transition
from .coordinates import Affine

__all__ = ["Bound", "Part", "bind", "by_part", "split_by_site", "told"]


@register_pytree(data=("kernel", "transition", "affine"), static=("name", "sites"))
class Part:
    """One chain.

    Attributes:
        name: of its parameters.
        sites: names and numbers of coordinates of the sites it draws.
        kernel: of the chain.
        transition: whose network is a :class:`~.networks.Embedded`, and whose context is that of the module's text.
        affine: of real coordinates; None for bits and classes.
    """

    name: str
    sites: tuple[tuple[str, int], ...]
    kernel: Kernel
    transition: Transition
    affine: Affine | None

    def __init__(
        self,
        name: str,
        sites: tuple[tuple[str, int], ...],
        kernel: Kernel,
        transition: Transition,
        affine: Affine | None,
    ) -> None:
        self.name, self.sites, self.kernel, self.transition, self.affine = name, sites, kernel, transition, affine

    def bound_to(self, codes: Array) -> "Bound":
        """The part given y, shape (..., p): its embedding is computed here, once."""
        function: Any = self.transition.function
        network = function.network
        embedded = network.of_data(self.transition.params, codes)
        rest = (self.transition.context_shape or codes.shape[-1:])[0] - codes.shape[-1]
        core = Transition(
            type(function)(network.core),
            network.params_of_core(self.transition.params),
            self.transition.event_shape,
            (embedded.shape[-1] + rest,),
        )
        features = network.features_of(codes.reshape((-1, codes.shape[-1]))).reshape((*codes.shape[:-1], -1))
        return Bound(Part(self.name, self.sites, self.kernel, core, self.affine), embedded, features)


class Bound(NamedTuple):
    """A part given y.

    Attributes:
        part: whose transition is the core alone.
        embedded: of y, shape (..., size).
        features: of y, for the regression.
    """

    part: Part
    embedded: Array
    features: Array

    def at(self, index: Array) -> "Bound":
        """Of one data set, where y has several."""
        return self._replace(embedded=self.embedded[index], features=self.features[index])

    def chain(self, before: Array) -> ReverseChain:
        """Given what the parts before it drew, as numbers, shape (rest,)."""
        context = jnp.concatenate([self.embedded, before.astype(self.embedded.dtype)])
        return ReverseChain(self.part.kernel, self.part.transition, context=context)

    def coordinates(self, x: Array, before: Array) -> Array:
        """Of a chain's state x^0, shape (d,)."""
        if self.part.affine is None:
            return x
        return self.part.affine.apply(x, jnp.concatenate([self.features, before.astype(x.dtype)]))

    def state(self, coordinates: Array, before: Array) -> Array:
        """The state of coordinates."""
        if self.part.affine is None:
            return coordinates
        return self.part.affine.inverse(coordinates, jnp.concatenate([self.features, before.astype(coordinates.dtype)]))

    def log_volume(self) -> Array:
        """Log |du / dx|, nats."""
        return jnp.zeros(()) if self.part.affine is None else self.part.affine.log_volume()


@jax.jit
def bind(parts: tuple[Part, ...], codes: Array) -> tuple[Bound, ...]:
    """All parts given y, one data set or several."""
    return tuple(part.bound_to(codes) for part in parts)


def by_part(sites: Sequence[LatentSite]) -> list[tuple[str, int | None, tuple[LatentSite, ...]]]:
    """The sites of each part with the part's name and number of states: bits first, real numbers last."""
    kinds = sorted({site.num_states for site in sites if site.num_states is not None})
    named = [(f"classes_{kind}" if kind > 2 else "bits", kind) for kind in kinds]
    groups: list[tuple[str, int | None, tuple[LatentSite, ...]]] = [
        (name, kind, tuple(site for site in sites if site.num_states == kind)) for name, kind in named
    ]
    real = tuple(site for site in sites if site.num_states is None)
    return [*groups, ("real", None, real)] if real else groups


def told(x: Array, num_states: int | None) -> Array:
    """What a chain's x^0, shape (..., d), tells the chains after it: bits as they are, classes one-hot."""
    if num_states is None:
        return x[..., :0]
    if num_states == 2:
        return x.astype(float)
    return jax.nn.one_hot(x, num_states).reshape((*x.shape[:-1], -1))


def split_by_site(coordinates: Array, sites: Sequence[tuple[str, int]]) -> Mapping[str, Array]:
    """Coordinates of a part, shape (..., d), by site."""
    found, start = {}, 0
    for name, size in sites:
        found[name] = coordinates[..., start : start + size]
        start += size
    return found
