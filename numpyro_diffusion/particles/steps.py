r"""Distributions by which particles move to the next level, and the weight p/q that each move costs.

A step is a pytree whose leaves lead with (N, E...), so that resampling can gather it like the particles themselves.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from .._numerics import expand_right
from .._pytree import register_pytree
from .._small_matrices import cholesky, normal_log_density, solve
from .._typing import Array
from ..guidance.tilted_chain import log_ratio
from .target import States, Target

__all__ = ["ConditionedStep", "MixedStep", "Step", "TiltedStep"]


@runtime_checkable
class Step(Protocol):
    """How particles move down one level.

    Attributes:
        steps: p, by site.
    """

    @property
    def steps(self) -> dict[str, Any]: ...

    def sample(self, key: jax.Array) -> States:
        """Next states."""

    def log_ratio(self, target: Target, x_previous: States, step: Array) -> Array:
        """Log p(x^{t-1} | x^t) - log q(x^{t-1} | x^t), shape (N, E...)."""


@register_pytree(data=("steps", "tilted"), static=())
class TiltedStep:
    """Independent coordinates: q is another distribution of the same kind.

    Args:
        steps: p, by site.
        tilted: q, by site; a site that is missing moves by p.
    """

    steps: dict[str, Any]
    tilted: dict[str, Any]

    def __init__(self, steps: dict[str, Any], tilted: dict[str, Any]) -> None:
        self.steps = steps
        self.tilted = tilted

    def sample(self, key: jax.Array) -> States:
        keys = jax.random.split(key, len(self.steps))
        return {
            name: self.tilted.get(name, step).sample(key)
            for (name, step), key in zip(sorted(self.steps.items()), keys, strict=True)
        }

    def log_ratio(self, target: Target, x_previous: States, step: Array) -> Array:
        total: Array = jnp.zeros(())
        for name, tilted in self.tilted.items():
            difference = log_ratio(self.steps[name], tilted, x_previous[name])
            total = total + jnp.where(target.moves(name, step), target.by_element(difference), 0.0)
        return total


@register_pytree(data=("inner", "trust"), static=())
class MixedStep:
    """A whole particle moves by ``inner`` with probability ``trust``, and else by p.

    Args:
        inner: a step.
        trust: (N, E...), from 0 to 1.
    """

    inner: Step
    trust: Array

    def __init__(self, inner: Step, trust: Array) -> None:
        self.inner = inner
        self.trust = trust

    @property
    def steps(self) -> dict[str, Any]:
        return self.inner.steps

    def sample(self, key: jax.Array) -> States:
        key_choice, key_inner, key_plain = jax.random.split(key, 3)
        trusted = jax.random.uniform(key_choice, self.trust.shape) < self.trust
        moved, plain = self.inner.sample(key_inner), TiltedStep(self.steps, {}).sample(key_plain)
        return {n: jnp.where(expand_right(trusted, x.ndim - trusted.ndim), x, plain[n]) for n, x in moved.items()}

    def log_ratio(self, target: Target, x_previous: States, step: Array) -> Array:
        inner = self.inner.log_ratio(target, x_previous, step)
        return -jnp.logaddexp(jnp.log1p(-self.trust), jnp.log(self.trust) - inner)


@register_pytree(data=("steps", "slope", "residual", "remaining"), static=("sizes",))
class ConditionedStep:
    r"""Gaussian coordinates conditioned on m numbers that are taken to be linear in them.

    q(x) is proportional to N(x; mean, s^2) N(residual; slope (x - mean), remaining), normalised in closed form, drawn
    by conditioning a joint draw (Matheron's rule), in m x m matrices only:

        log p/q = log N(residual; 0, remaining + slope s^2 slope^T) - log N(residual - slope (x - mean); 0, remaining)

    Args:
        steps: p, Normal by site.
        slope: (N, E..., m, D), D the coordinates of all sites of one element.
        residual: (N, E..., m).
        remaining: (N, E..., m, m), positive definite.
        sizes: D of each site, in sorted order of names.
    """

    steps: dict[str, Any]
    slope: Array
    residual: Array
    remaining: Array
    sizes: tuple[int, ...]

    def __init__(
        self, steps: dict[str, Any], slope: Array, residual: Array, remaining: Array, sizes: tuple[int, ...]
    ) -> None:
        self.steps, self.slope, self.residual, self.remaining, self.sizes = steps, slope, residual, remaining, sizes

    def sample(self, key: jax.Array) -> States:
        key_x, key_y = jax.random.split(key)
        scale = self._flat({name: step.scale for name, step in self.steps.items()})
        deviation = scale * jax.random.normal(key_x, scale.shape, scale.dtype)
        noise = jax.random.normal(key_y, self.residual.shape, scale.dtype)
        seen = _apply(self.slope, deviation) + _apply(cholesky(self.remaining), noise)
        gain = jnp.einsum("...md,...d->...md", self.slope, scale**2)
        correction = solve(self._total(scale), self.residual - seen)
        deviation = deviation + jnp.einsum("...md,...m->...d", gain, correction)
        return {name: self.steps[name].loc + part for name, part in self._parts(deviation).items()}

    def log_ratio(self, target: Target, x_previous: States, step: Array) -> Array:
        scale = self._flat({name: step.scale for name, step in self.steps.items()})
        deviation = self._flat({name: x_previous[name] - step.loc for name, step in self.steps.items()})
        left = self.residual - _apply(self.slope, deviation)
        return normal_log_density(self.residual, self._total(scale)) - normal_log_density(left, self.remaining)

    def _total(self, scale: Array) -> Array:
        factor = cholesky(self.remaining)
        seen = jnp.einsum("...md,...d,...nd->...mn", self.slope, scale**2, self.slope)
        return factor @ jnp.swapaxes(factor, -1, -2) + seen

    def _flat(self, values: States) -> Array:
        return flatten(values, self.residual.ndim - 1)

    def _parts(self, flat: Array) -> States:
        parts, start = {}, 0
        for (name, step), size in zip(sorted(self.steps.items()), self.sizes, strict=True):
            parts[name] = flat[..., start : start + size].reshape(jnp.shape(step.loc))
            start += size
        return parts


def flatten(values: States, num_leading: int) -> Array:
    """All sites' coordinates behind ``num_leading`` axes as one vector, sites in sorted order."""
    flat = [values[name].reshape(values[name].shape[:num_leading] + (-1,)) for name in sorted(values)]
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=-1)


def _apply(matrix: Array, vector: Array) -> Array:
    return jnp.einsum("...mn,...n->...m", matrix, vector)
