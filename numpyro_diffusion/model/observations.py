r"""What a model observes: numbers that are Normal given the diffusion sites, y = g(x) + N(0, R), and NaN, refused.

A masked number is not seen: it has no residual, and neither variance nor covariance with the others. Whoever takes a
density of all numbers gives it a variance of its own and takes the factor away again, which drops the number exactly; a
wide noise would not.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from .._checks import expected, first_index, is_concrete
from .._pytree import register_pytree
from .._typing import Array, Shape
from ..wrappers import unmask
from .sites import check_proper, site_log_prob
from .trace import trace_model

__all__ = [
    "NoiseUnit",
    "NormalSite",
    "Observation",
    "check_observed",
    "has_nan",
    "likelihood_name",
    "normal_site",
    "observation",
    "refuse_nan",
]


class Observation(NamedTuple):
    """What is seen of every element.

    Attributes:
        residual: y - g(x), shape (E..., m); 0 where it is not seen.
        covariance: R, shape (E..., m, m); rows and columns of 0 where it is not seen.
        seen: shape (E..., m), False behind a mask.
    """

    residual: Array
    covariance: Array
    seen: Array


@register_pytree(data=("residual", "spread", "seen"), static=("event_dim", "is_diagonal"))
class NormalSite:
    """A Normal or MultivariateNormal site.

    Attributes:
        residual: value less mean, shape (batch..., event...).
        spread: variances, of the residual's shape, or covariances with one more axis.
        seen: of the residual's shape, False behind a mask.
        event_dim: of the residual.
        is_diagonal: which of the two ``spread`` is.
    """

    def __init__(self, residual: Array, spread: Array, seen: Array, event_dim: int, is_diagonal: bool) -> None:
        self.residual, self.spread, self.seen = residual, spread, seen
        self.event_dim, self.is_diagonal = event_dim, is_diagonal

    def variances(self) -> Array:
        """Of each number, of the residual's shape."""
        return self.spread if self.is_diagonal else jnp.diagonal(self.spread, axis1=-2, axis2=-1)


@register_pytree(data=("root", "variance", "seen"), static=("event_dim", "is_diagonal"))
class NoiseUnit:
    """The noise of a Normal site somewhere, as a unit: in it residuals there have the covariance I.

    Attributes:
        root: R^{-1/2}, of the residual's shape, or the inverse of a lower Cholesky factor with one more axis.
        variance: of each number, of the residual's shape; 1 where it is not seen.
        seen, event_dim, is_diagonal: the site's.
    """

    def __init__(self, site: NormalSite) -> None:
        self.seen, self.event_dim, self.is_diagonal = site.seen, site.event_dim, site.is_diagonal
        self.variance = jnp.where(site.seen, site.variances(), 1.0)
        if site.is_diagonal:
            self.root = jnp.where(site.seen, 1 / jnp.sqrt(self.variance), 0.0)
        else:
            size = site.spread.shape[-1]
            unit = jnp.broadcast_to(jnp.eye(size, dtype=site.spread.dtype), site.spread.shape)
            factor = jnp.linalg.cholesky(jnp.where(site.seen[..., None], site.spread, unit))
            self.root = jax.scipy.linalg.solve_triangular(factor, unit, lower=True)

    def numbers(self, residual: Array, elements: Shape) -> Array:
        """Residuals, or changes of them, in this unit: shape (E..., m)."""
        white = residual * self.root if self.is_diagonal else jnp.einsum("...ij,...j->...i", self.root, residual)
        return _elements_first(white, elements, self.event_dim)

    def log_ratio(self, site: NormalSite, elements: Shape) -> tuple[Array, Array]:
        """The site's noise over this one, log of variances, shape (E..., m), and which of them count."""
        ratio = jnp.log(jnp.where(site.seen & self.seen, site.variances(), self.variance)) - jnp.log(self.variance)
        first = lambda values: _elements_first(values, elements, self.event_dim)  # noqa: E731
        return first(ratio), first(site.seen & self.seen)


def normal_site(site: dict) -> NormalSite | None:
    """A traced site as Normal numbers; None if it is scaled, or anything else."""
    inner, mask = unmask(site["fn"])
    if not isinstance(inner, (dist.Normal, dist.MultivariateNormal)) or site["scale"] is not None:
        return None
    value = jnp.asarray(site["value"])
    shape = jnp.broadcast_shapes(value.shape, site["fn"].shape())
    seen = jnp.broadcast_to(mask, shape)
    residual = jnp.where(seen, jnp.where(mask, value, 0) - inner.mean, 0)
    is_diagonal = isinstance(inner, dist.Normal)
    if is_diagonal:
        spread = jnp.where(seen, inner.variance, 0)
    else:
        spread = jnp.where(seen[..., None], inner.covariance_matrix, 0)  # a mask takes or leaves whole vectors
    return NormalSite(residual, spread, seen, site["fn"].event_dim, is_diagonal)


def likelihood_name(site: dict) -> str:
    """What a site's likelihood is, in a word."""
    return "a scaled one" if site["scale"] is not None else type(unmask(site["fn"])[0]).__name__


def observation(sites: dict[str, Any], elements: Shape) -> Observation:
    """All numbers that are seen of each element, in order of the sites.

    Raises:
        ValueError: if there is none.
    """
    residuals, covariances, seen = [], [], []
    for site in sites.values():
        residual = _elements_first(site.residual, elements, site.event_dim)
        size = residual.shape[-1]
        if site.is_diagonal:
            variance = _elements_first(site.spread, elements, site.event_dim)
            covariance = variance[..., None] * jnp.eye(size)
        else:
            event = site.spread.shape[-1]
            blocks = _elements_first(site.spread, elements, site.event_dim + 1)
            blocks = blocks.reshape((*elements, -1, event, event))
            covariance = jnp.einsum("...bij,bc->...bicj", blocks, jnp.eye(blocks.shape[-3]))
            covariance = covariance.reshape((*elements, size, size))
        seen.append(_elements_first(site.seen, elements, site.event_dim))
        residuals.append(residual)
        covariances.append(covariance)
    if not residuals:
        raise ValueError(
            expected(
                "an observed Normal site that depends on a diffusion site", "none", "Condition the model on data first."
            )
        )
    return Observation(
        jnp.concatenate(residuals, axis=-1), _block_diagonal(covariances), jnp.concatenate(seen, axis=-1)
    )


def has_nan(leaf: Any) -> bool:
    """Whether a concrete array of real numbers has a NaN."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and bool(np.isnan(np.asarray(leaf)).any())


def refuse_nan(
    observed: Mapping[str, Any], seen: Mapping[str, Any], log_probs: Mapping[str, Any], event_dims: Mapping[str, int]
) -> None:
    """Refuse an observed NaN that enters the likelihood: one behind a mask does not.

    Args:
        observed: values by site.
        seen: what the masks of these sites let through.
        log_probs: of these sites.
        event_dims: of these sites.

    Raises:
        ValueError: with the site and the first index.
    """
    for name, value in observed.items():
        if not has_nan(value):
            continue
        is_nan = np.isnan(np.asarray(value))
        if np.broadcast_shapes(is_nan.shape, np.shape(seen[name])) == is_nan.shape:
            is_nan = is_nan & seen[name]
        in_event = is_nan.any(tuple(range(is_nan.ndim - event_dims[name], is_nan.ndim)))
        # Where NumPyro validates values, their density is 0.
        if (in_event & ~np.isfinite(log_probs[name])).any():
            raise ValueError(
                expected(
                    f"observed values of site {name!r} that are numbers",
                    f"NaN at index {first_index(is_nan)}, {int(is_nan.sum())} of {is_nan.size}",
                    "Impute them as latent sites, or leave them out: by the distribution's mask(~jnp.isnan(y)), or by "
                    "infer.observe_entries.",
                )
            )


def check_observed(model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Refuse an observed NaN of a model that enters its likelihood; nothing is looked at where arguments are traced.

    Raises:
        ValueError: as :func:`refuse_nan`.
    """
    event_dims: dict[str, int] = {}

    def look(key: jax.Array) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
        sites = trace_model(model, args, kwargs, rng_key=key, fill=check_proper)
        observed = {n: site for n, site in sites.items() if site["type"] == "sample" and site["is_observed"]}
        event_dims.update({name: site["fn"].event_dim for name, site in observed.items()})
        values = {name: jnp.asarray(site["value"]) for name, site in observed.items()}
        seen = {name: unmask(site["fn"])[1] for name, site in observed.items()}
        return values, seen, {name: site_log_prob(site) for name, site in observed.items()}

    if not is_concrete((args, kwargs)):
        return
    consts = jax.make_jaxpr(look)(jax.random.key(0)).consts
    if is_concrete(consts) and any(has_nan(const) for const in consts):
        with jax.ensure_compile_time_eval():  # where another function is traced, too
            observed, seen, log_probs = jax.device_get(jax.jit(look)(jax.random.key(0)))
        refuse_nan(observed, seen, log_probs, event_dims)


def _elements_first(values: Array, elements: Shape, num_event_dims: int) -> Array:
    """(plates..., E..., event...) as (E..., rest); where E has a 1, a plate that it is not in is part of the rest."""
    start = values.ndim - num_event_dims - len(elements)
    axes = tuple(start + axis for axis, size in enumerate(elements) if size > 1)
    return jnp.moveaxis(values, axes, range(len(axes))).reshape((*elements, -1))


def _block_diagonal(blocks: list[Array]) -> Array:
    if len(blocks) == 1:
        return blocks[0]
    sizes = [block.shape[-1] for block in blocks]
    rows = [
        jnp.concatenate([block if i == j else jnp.zeros((*block.shape[:-1], size)) for j, size in enumerate(sizes)], -1)
        for i, block in enumerate(blocks)
    ]
    return jnp.concatenate(rows, axis=-2)
