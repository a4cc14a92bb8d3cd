r"""What a model sees of one diffusion site, linearised: the numbers that guide its chain.

With o the other latent sites, the sites that guide, Normal or taken as Normal (:mod:`.nearest_normal`), are

    y - g(x_0, o) = a(o) A_0 (x^0 - x_0) + N(0, s^2(o) I),      A_0 = dg/dx at x_0 and o_0,

in units in which the noise at o_0 is N(0, I). s^2 is the mean of log R / R(o_0) over the numbers, a is the component of
A along A_0, found by the images of a few fixed directions. Where elements of a plate are independent each has its own.

Where more numbers are seen than x has coordinates they are replaced by as many as it has: with A_0 = U K, U^T U = I,
those of U^T y, for nothing else of y moves x.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import is_concrete
from .._compat.jax import origins
from .._pytree import register_pytree
from .._typing import Array, Shape
from ..guidance import ErrorCovariance
from ..guidance.linearised import LinearisedGuidance
from ..guidance.path_posterior import PathPosterior
from ..guidance.seen_coordinates import spectrum_of
from ..kernels import Kernel
from .observations import NoiseUnit, NormalSite
from .program import Values
from .split import SplitModel

__all__ = ["Dependences", "LinearisedSite", "Slopes", "dependences", "numbers_that_guide", "slopes"]

_NUM_PROBES = 4  # directions along which the factor of a slope is found
# Of a path's log density. Where .1 and .2 were lost, for 8x8 digits, correlated steps gained no effective draws. Where
# 1 to 12 were, on pictures with a power law for spectrum, they made them 1.4 to 2.3 times as many.
_LEAST_NATS = 0.5
_LOG_LEAST, _LOG_MOST = -28.0, 60.0  # of the noise's factor: beyond, single precision tells no difference


class Dependences(NamedTuple):
    """On which latent sites something of the guiding numbers depends, by the program of the model.

    Attributes:
        noise: R.
        slope: dg/dx.
        offset: y - g.
    """

    noise: frozenset[str]
    slope: frozenset[str]
    offset: frozenset[str]

    def keeps_scale(self, unknown: Iterable[str]) -> bool:
        """Whether noise and slope are the same whatever the values of these sites."""
        return not (self.noise | self.slope) & frozenset(unknown)


class Slopes(NamedTuple):
    """A model linearised in one diffusion site.

    Attributes:
        states: of all diffusion sites, where it was.
        units: the noise there, by site.
        rows: A_0, shape (E..., m, d).
        residual: y - g there, shape (E..., m).
    """

    states: dict[str, Array]
    units: dict[str, NoiseUnit]
    rows: Array
    residual: Array

    def roots(self) -> list[Array]:
        """Of the noise's unit, by site."""
        return [unit.root for unit in self.units.values()]

    def trouble(self) -> str:
        """Why the numbers cannot guide, in words; empty if they can, or if nothing is known yet, being traced."""
        if not is_concrete((self.rows, self.roots())):
            return ""
        if not all(np.isfinite(root).all() for root in self.roots()):
            return "their noise is 0 or no number"
        if not np.isfinite(self.rows).all():
            return "their slope is no number"
        return "" if np.asarray(self.rows).any() else "their slope is 0"


@register_pytree(
    data=("spectrum", "basis", "units", "states", "residual", "probes", "images"),
    static=("name", "elements", "follows", "follows_slope"),
)
class LinearisedSite:
    """What guides one diffusion site, made once for a model with its arguments.

    Attributes:
        spectrum: of A_0, for k numbers of each element; without the elements' axes where all are the same.
        basis: U, shape (E..., m, k); None where all numbers are kept.
        units: the noise at o_0 by site.
        states: of all diffusion sites, where the model was linearised.
        residual: y - g(x_0, o_0), shape (E..., k).
        probes: directions in x, shape (n, shape of x).
        images: A_0 of them, shape (n, E..., k).
        name: of the diffusion site.
        elements: E.
        follows: the other latent sites whose values change the guidance.
        follows_slope: whether they change the slope.
    """

    def __init__(
        self,
        split: SplitModel,
        name: str,
        slopes: Slopes,
        errors: ErrorCovariance,
        others: Values,
        follows: Dependences,
        kernel: Kernel | None = None,
    ) -> None:
        """With its prior's kernel, for fixed noise and slope, steps are correlated where that is worth anything."""
        self.name, self.elements = name, split.element_shape
        self.units, self.states = slopes.units, slopes.states
        unknown = frozenset(split.others)
        self.follows, self.follows_slope = frozenset().union(*follows) & unknown, bool(follows.slope & unknown)
        # What cannot guide (see ``Slopes.trouble``) does not, where it is not known beforehand.
        is_known = jnp.all(jnp.stack([jnp.isfinite(part).all() for part in (slopes.rows, *slopes.roots())]))
        self.basis, rows = reduced(jnp.where(is_known, slopes.rows, 0.0), len(self.elements))
        is_fixed = follows.keeps_scale(unknown)
        rows = errors.blocks(rows)
        path = None if kernel is None else _worthwhile(PathPosterior(kernel, errors, rows))
        self.spectrum = spectrum_of(errors, rows, is_fixed=is_fixed) if path is None else path
        state = self.states[name]
        self.probes = jax.random.normal(jax.random.key(2), (_NUM_PROBES, *state.shape), state.dtype)
        self.residual = self.images = jnp.zeros(())
        self.residual, self.images = _at_reference(self, split, others)

    @property
    def is_correlated(self) -> bool:
        """Whether the coordinates of a guided step are correlated."""
        return isinstance(self.spectrum, PathPosterior)

    @property
    def num_seen(self) -> int:
        """How many numbers guide, over all elements; with those behind masks where these are traced."""
        seen = [unit.seen for unit in self.units.values()]
        return sum(int(np.sum(each)) for each in seen) if is_concrete(seen) else sum(each.size for each in seen)

    def guidance(self, split: SplitModel, others: Values) -> LinearisedGuidance:
        """At values of the other latent sites."""
        residual, noise = self.residual, jnp.ones(self.elements)
        amplitude = jnp.ones(self.elements)
        if self.follows:
            residual, noise = self._numbers(split, others)
        if self.follows_slope:
            found, wanted = self._images(split, others), self.images
            power = (wanted**2).sum((0, -1))
            amplitude = (found * wanted).sum((0, -1)) / jnp.where(power > 0, power, 1.0)
        point = self.states[self.name].reshape((*self.elements, -1))
        return LinearisedGuidance(self.spectrum, point, residual, amplitude, noise)

    def _numbers(self, split: SplitModel, others: Values) -> tuple[Array, Array]:
        """Residuals at x_0, shape (E..., k), and the factor of their variance, shape (E...)."""
        sites = _seen(split, self.units, self.states, others)
        ratios = [unit.log_ratio(sites[name], self.elements) for name, unit in self.units.items()]
        ratio, counts = (jnp.concatenate(parts, axis=-1) for parts in zip(*ratios, strict=True))
        mean = jnp.where(counts, ratio, 0.0).sum(-1) / jnp.maximum(jnp.where(counts, 1.0, 0.0).sum(-1), 1.0)
        residual = _white(sites, self.units, self.elements)
        residual = self._kept(jnp.where(jnp.isfinite(residual), residual, 0.0))
        return residual, jnp.exp(jnp.clip(mean, _LOG_LEAST, _LOG_MOST))

    def _images(self, split: SplitModel, others: Values) -> Array:
        change = partial(_change, split, self.name, self.units, self.states, others)
        return self._kept(jax.vmap(change)(self.probes))

    def _kept(self, numbers: Array) -> Array:
        return numbers if self.basis is None else jnp.einsum("...mk,...m->...k", self.basis, numbers)


def _worthwhile(path: PathPosterior) -> PathPosterior | None:
    """Itself, if steps with independent coordinates lose more than a little; None where that is not known."""
    nats = path.nats()
    return path if is_concrete(nats) and float(nats.max()) > _LEAST_NATS else None


@jax.jit
def _at_reference(site: LinearisedSite, split: SplitModel, others: Values) -> tuple[Array, Array]:
    return site._numbers(split, others)[0], site._images(split, others)


def numbers_that_guide(split: SplitModel, name: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """The sites that guide a diffusion site, sorted as JAX sorts them; of others that depend on it, why they do not."""
    diffusions = {site.name for site in split.sites}
    guide, left_out = [], {}
    normal = jax.eval_shape(lambda: split.nearly_normal(*_some(split)))
    for site, found in normal.items():
        above = split.program.depends[site] & diffusions
        if name not in above:
            continue
        if found is None:
            left_out[site] = f"is {split.program.likelihoods[site]}"
        elif len(above) > 1:
            left_out[site] = f"depends on {', '.join(map(repr, sorted(above - {name})))} too"
        else:
            guide.append(site)
    return tuple(sorted(guide)), left_out


def dependences(split: SplitModel, name: str, guide: tuple[str, ...], states: Values, others: Values) -> Dependences:
    """What the noise, the slope and the offset of the guiding sites depend on."""

    def look(x: Array, others: Values, direction: Array) -> tuple[list[Array], list[Array], list[Array]]:
        def at(x: Array) -> tuple[list[Array], list[Array]]:
            sites = _seen(split, guide, {**states, name: x}, others)
            return [site.residual for site in sites.values()], [site.spread for site in sites.values()]

        residuals, slopes, spreads = jax.jvp(at, (x,), (direction,), has_aux=True)
        return spreads, slopes, residuals

    found = origins(look, states[name], dict(others), states[name])
    inputs = [name, *sorted(others)]
    parts = []
    for start in range(0, len(found), len(guide)):
        used = [origin.inputs[: len(inputs)] for origin in found[start : start + len(guide)]]
        parts.append(frozenset(site for site, *uses in zip(inputs, *used, strict=True) if any(uses)))
    return Dependences(*parts)


@partial(jax.jit, static_argnums=(1, 2))
def slopes(split: SplitModel, name: str, guide: tuple[str, ...], states: Values, others: Values) -> Slopes:
    """The guiding sites linearised in one diffusion site, by as few derivatives as it takes."""
    units = {site: NoiseUnit(found) for site, found in _seen(split, guide, states, others).items()}
    elements, state = split.element_shape, states[name]
    rest = state.shape[len(elements) :]
    size = int(np.prod(rest))

    def numbers(x: Array) -> Array:
        return _white(_seen(split, guide, {**states, name: x}, others), units, elements)

    # No element's numbers depend on another's x: one direction serves all of them.
    each = lambda flat, shape: jnp.broadcast_to(flat.reshape(shape), (*elements, *shape))  # noqa: E731
    count = jax.eval_shape(numbers, state).shape[-1]
    if size <= count:
        change = partial(_change, split, name, units, states, others)
        rows = jax.vmap(lambda flat: change(each(flat, rest)))(jnp.eye(size))
        rows = jnp.moveaxis(rows, 0, -1)
    else:
        _, pull = jax.vjp(numbers, state)
        rows = -jax.vmap(lambda flat: pull(each(flat, (count,)))[0])(jnp.eye(count))
        rows = jnp.moveaxis(rows.reshape((count, *elements, size)), 0, -2)
    return Slopes(dict(states), units, rows, numbers(state))


def reduced(rows: Array, num_elements: int) -> tuple[Array | None, Array]:
    """U and K, of all elements together where they are the same; U is None where K would have no fewer rows than A."""
    if num_elements and is_concrete(rows):
        flat = np.asarray(rows).reshape((-1, *rows.shape[num_elements:]))
        rows = jnp.asarray(flat[0]) if (flat == flat[:1]).all() else rows
    if rows.shape[-2] <= rows.shape[-1]:
        return None, rows
    basis, kept = jnp.linalg.qr(rows)
    return basis, kept


def _some(split: SplitModel) -> tuple[Values, Values]:
    key = jax.random.key(0)
    return split.some_x(key), split.draw_others(key)[0]


def _seen(split: SplitModel, guide: tuple[str, ...] | Mapping, states: Values, others: Values) -> dict[str, NormalSite]:
    sites = split.nearly_normal(states, others)
    return {name: site for name in guide if (site := sites[name]) is not None}


def _white(sites: Mapping[str, NormalSite], units: Mapping[str, NoiseUnit], elements: Shape) -> Array:
    """Residuals in units of the noise, shape (E..., m)."""
    return jnp.concatenate([unit.numbers(sites[name].residual, elements) for name, unit in units.items()], axis=-1)


def _change(split: SplitModel, name: str, units: Mapping, states: Values, others: Values, direction: Array) -> Array:
    """The change of g along a direction in x, in units of the noise, shape (E..., m)."""

    def numbers(x: Array) -> Array:
        return _white(_seen(split, units, {**states, name: x}, others), units, split.element_shape)

    return -jax.jvp(numbers, (states[name],), (direction,))[1]
