r"""One site of a simulated model: how its values are seen as coordinates, and which values it can have.

Every real unknown is seen through the bijection u = T^{-1}(theta) of its support, flattened. Bits and classes are seen
as integers 0..K-1. A value is in the support if it comes back from its coordinates, up to rounding, which needs no
formula of the support.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import Transform

from .._checks import check_trailing_shape, expected
from .._typing import Array, Shape
from ..wrappers import is_masked, unmask

__all__ = ["LatentSite", "ObservedSite", "are_alike", "drawn_site", "latent_site", "mask_of_site", "observed_site"]


@dataclasses.dataclass(frozen=True, eq=False)
class LatentSite:
    """One unknown, or what is observed where that is drawn given the unknowns.

    Attributes:
        name: of the site.
        shape: of its value.
        size: of its coordinates: unconstrained numbers, or integers.
        transform: from unconstrained numbers to values; None for bits and classes.
        unconstrained_shape: what the transform takes.
        num_states: K of bits and classes; None for real numbers.
        first: the value that is state 0.
        dtype: of its value.
    """

    name: str
    shape: Shape
    size: int
    transform: Transform | None
    unconstrained_shape: Shape
    num_states: int | None
    first: int
    dtype: np.dtype

    def coordinates(self, value: Array) -> Array:
        """Of one value, shape (size,)."""
        if self.transform is None:
            return (jnp.asarray(value).astype(int) - self.first).reshape(-1)
        return jnp.asarray(self.transform.inv(value)).reshape(-1)

    def value_and_log_volume(self, coordinates: Array) -> tuple[Array, Array]:
        """The value of coordinates of shape (size,), and log |dT / du|, nats: 0 for bits and classes."""
        if self.transform is None:
            return (coordinates + self.first).reshape(self.shape).astype(self.dtype), jnp.zeros(())
        u = coordinates.reshape(self.unconstrained_shape)
        value = self.transform(u)
        return value, jnp.sum(self.transform.log_abs_det_jacobian(u, value))

    def contains(self, value: Array) -> Array:
        """Whether one value is in the support, or on its boundary."""
        coordinates = self.coordinates(value)
        if self.num_states is not None:
            is_state = (coordinates >= 0) & (coordinates < self.num_states)
            return (is_state & (jnp.asarray(value).reshape(-1) == coordinates + self.first)).all()
        back, _ = self.value_and_log_volume(coordinates)
        slack = math.sqrt(jnp.finfo(back.dtype).eps) * (1 + jnp.abs(value).max(initial=0))
        return ~jnp.isnan(coordinates).any() & (jnp.abs(back - value) <= slack).all()

    def given(self, values: Any) -> np.ndarray:
        """Coordinates of simulations that exist, shape (n, size); NaN or infinite where they are.

        Raises:
            ValueError: for values of another shape or outside of the support.
        """
        array = jnp.asarray(_rows(self.name, values, self.shape))
        is_number = jnp.isfinite(array).reshape((len(array), -1)).all(1)
        outside = np.asarray(is_number & ~jax.vmap(self.contains)(array))
        if outside.any():
            wanted = f"simulations of site {self.name!r} in its support"
            cure = "Give them in the units and the support of the model's own site."
            raise ValueError(expected(wanted, f"{int(outside.sum())} of {len(outside)} outside", cure))
        return np.asarray(jax.vmap(self.coordinates)(array))


@dataclasses.dataclass(frozen=True, eq=False)
class ObservedSite:
    """What will be observed at one site.

    Attributes:
        name: of the site.
        shape: of its value.
        dtype: of its value.
        seen: booleans of that shape, False behind a mask; None where all is seen.
        support: of each of its numbers; None where it depends on other sites or numbers, or nobody knows it.
    """

    name: str
    shape: Shape
    dtype: np.dtype
    seen: np.ndarray | None
    support: constraints.Constraint | None

    def hide(self, values: np.ndarray) -> np.ndarray:
        """Values of shape (..., shape) with 0 behind the mask, where they may be NaN."""
        return values if self.seen is None else np.where(self.seen, values, np.zeros((), values.dtype))

    def cast(self, values: np.ndarray) -> np.ndarray:
        """Values in the dtype of the site, which must hold them.

        Raises:
            ValueError: for an integer site's value that is none or too large, or a real one that overflows.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            found = values.astype(self.dtype)
        lost = np.isfinite(values) & ~np.isfinite(found) if found.dtype.kind == "f" else found != values
        if lost.any():
            cure = "Convert them to what the model draws."
            got = f"{int(lost.sum())} others, as {values[lost].reshape(-1)[0]}"
            raise ValueError(expected(f"values that {self.dtype} holds at site {self.name!r}", got, cure))
        return found

    def with_gaps(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values in the dtype of the site, 0 where they are NaN, and booleans where they are not.

        Raises:
            ValueError: as ``cast``.
        """
        seen = np.asarray(~np.isnan(values)) if values.dtype.kind == "f" else np.ones(values.shape, bool)
        return self.cast(np.where(seen, values, np.zeros((), values.dtype))), seen

    def given(self, values: Any, *, may_lack: bool = False) -> np.ndarray:
        """Simulations that exist, shape (n, shape); as real numbers if some may be missing, which are NaN.

        Raises:
            ValueError: for values of another shape or kind.
        """
        rows = self.hide(np.asarray(_rows(self.name, values, self.shape)))
        if not may_lack:
            return self.cast(rows)
        found, seen = self.with_gaps(rows)
        return np.where(seen, found, np.nan)

    def check_support(self, value: np.ndarray, seen: np.ndarray) -> None:
        """Refuse a data set of which the site cannot draw what is seen.

        Raises:
            ValueError: for numbers outside of the support.
        """
        if self.support is None:
            return
        outside = ~np.broadcast_to(np.asarray(self.support(jnp.asarray(value))), self.shape)
        outside &= seen if self.seen is None else self.seen & seen
        if outside.any():
            cure = "The model gives them probability 0: look at their units and codes."
            got = f"{int(outside.sum())} outside, as {value[outside].reshape(-1)[0]}"
            raise ValueError(expected(f"y in the support of site {self.name!r}", got, cure))


def latent_site(name: str, site: dict) -> LatentSite:
    """Of a traced site.

    Raises:
        ValueError: for a prior that is scaled or masked, or a support without a bijection.
        TypeError: for a discrete one without two ends.
    """
    fn, value = site["fn"], jnp.asarray(site["value"])
    if site["scale"] is not None or is_masked(fn):
        got = "a mask" if site["scale"] is None else f"scale {site['scale']}"
        cure = "Draws of the model would not be those of its density: weigh the likelihood, not the prior."
        raise ValueError(expected(f"a prior of latent site {name!r} as it is", got, cure))
    states = _states_of(name, _scalar(fn.support))
    if states is not None:
        return LatentSite(name, value.shape, value.size, None, value.shape, *states, value.dtype)
    return _real_site(name, fn.support, value)


def drawn_site(name: str, site: dict) -> LatentSite:
    """Of a traced site that is observed, in coordinates of its own.

    Raises:
        ValueError: for one behind a mask, or a support without a bijection.
        TypeError: for one that is not of real numbers.
    """
    value = jnp.asarray(site["value"])
    is_sampled = site["type"] == "sample"
    if is_sampled and is_masked(site["fn"]):
        cure = "Simulate all of y: what is not seen in a data set has a likelihood of its own."
        raise ValueError(expected(f"an observed site {name!r} without a mask", "a mask", cure))
    support = site["fn"].support if is_sampled else constraints.independent(constraints.real, value.ndim)
    if value.dtype.kind != "f" or support.is_discrete:
        cure = "Of bits, classes and counts write the likelihood, or learn the posterior."
        raise TypeError(expected(f"real numbers at site {name!r}", f"dtype {value.dtype}", cure))
    return _real_site(name, support, value)


def _real_site(name: str, support: Any, value: Array) -> LatentSite:
    try:
        transform = biject_to(support)
    except NotImplementedError as error:
        cure = "Draw unconstrained numbers, and make the value of them in the model."
        raise ValueError(expected(f"a support of site {name!r} with a bijection", f"{support}", cure)) from error
    unconstrained = jax.eval_shape(transform.inv, value).shape
    return LatentSite(name, value.shape, math.prod(unconstrained), transform, unconstrained, None, 0, value.dtype)


def observed_site(name: str, sites: Mapping[str, dict], *, is_fixed: bool) -> ObservedSite:
    """Of a trace.

    Args:
        name: of the site.
        sites: of the trace.
        is_fixed: whether its support depends on nothing.

    Raises:
        ValueError: for a site that does not exist, is observed already or scaled.
    """
    known = [n for n, site in sites.items() if site["type"] in ("sample", "deterministic")]
    if name not in known:
        raise ValueError(expected(f"an observed site of the model, one of {known}", repr(name), "Choose one of them."))
    site = sites[name]
    value, seen, support = jnp.asarray(site["value"]), None, None
    if site["type"] == "sample":
        if site["is_observed"]:
            cure = "Call the model without its data (y=None): they are given to condition(y)."
            raise ValueError(expected(f"site {name!r} to be drawn by the model", "one that is observed already", cure))
        if site["scale"] is not None:
            cure = "Draws of y do not know of a power of its density: drop the scale."
            raise ValueError(expected(f"an unscaled observed site {name!r}", f"scale {site['scale']}", cure))
        if is_masked(site["fn"]):
            seen = np.broadcast_to(np.asarray(unmask(site["fn"])[1]), value.shape)
        base = _scalar(site["fn"].support)
        support = base if is_fixed and base.event_dim == 0 else None
    return ObservedSite(name, value.shape, value.dtype, seen, support)


def mask_of_site(site: dict) -> list:
    """The mask of a traced site, if it has one."""
    masked = site["type"] == "sample" and is_masked(site["fn"])
    return [unmask(site["fn"])[1]] if masked else []


def are_alike(one: Any, other: Any) -> bool:
    """Whether two sites have the same coordinates, and see the same of y."""
    if type(one) is not type(other) or one.shape != other.shape:
        return False
    if isinstance(one, ObservedSite):
        everything = np.ones(one.shape, bool)
        seen, others = (everything if site.seen is None else site.seen for site in (one, other))
        return bool((seen == others).all())
    return (one.num_states, one.first) == (other.num_states, other.first) and bool(one.transform == other.transform)


def _scalar(support: Any) -> Any:
    """The support of one number of an array of independent ones."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _states_of(name: str, support: Any) -> tuple[int, int] | None:
    """How many states a discrete site has, and the first; None for a real one."""
    if not support.is_discrete:
        return None
    if support is constraints.boolean:
        return 2, 0
    bounds = [getattr(support, bound, None) for bound in ("lower_bound", "upper_bound")]
    if all(bound is not None and np.ndim(bound) == 0 and not isinstance(bound, jax.core.Tracer) for bound in bounds):
        low, high = (int(bound) for bound in bounds)  # type: ignore[arg-type]
        if high > low:
            return high - low + 1, low
    raise TypeError(
        expected(
            "latent sites that are real, bits, or classes of a known number",
            f"the discrete site {name!r} of support {support}",
            "Sum it out of the model, or give it a support with two ends.",
        )
    )


def _rows(name: str, values: Any, shape: Shape) -> np.ndarray:
    """As an array with draws in front."""
    array = np.asarray(values)
    leading = check_trailing_shape(f"simulations of site {name!r}", array, shape, "Draws go along the first axis.")
    if len(leading) != 1:
        got = f"shape {array.shape}"
        raise ValueError(expected(f"one axis of draws at site {name!r}", got, f"One draw has shape {shape}."))
    return array
