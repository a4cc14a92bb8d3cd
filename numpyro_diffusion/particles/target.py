r"""What a particle engine walks through: chains times a likelihood, for many particles at once.

States are dictionaries, site name -> (N, site shape...), where N counts particles and the site's shape begins with the
elements E that are filtered one by one. Numbers of an element are (N, E...): whatever is left of a site's shape is
summed.

Levels run from the longest chain's T down to 0. A chain with fewer steps rests at its x^T until its own levels come.

A twist relies on the network's x0hat(x^t). Training weighs the noisiest levels least. There a network's x0hat can be
far worse than the prior's mean; the first weights are then noise, and few particles survive. So x0hat is taken as

    mean + g_t (x0hat - mean),      g_t = Cov(x0hat, x^0) / Var(x0hat) over draws of the prior, noised to level t,

the regression of x^0 on x0hat; g_t = 1 for the exact E[x^0 | x^t]. Draws are few. Where 1 lies within five standard
errors of the estimate, g_t is 1, so that an exact denoiser is left as it is. Elsewhere g_t lies between 0 and 1.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._typing import Array, PyTree, Shape
from ..chains import ReverseChain
from ..guidance import ErrorCovariance

__all__ = ["Calibration", "States", "Target", "as_rows", "calibrate", "draw_prior"]

States = dict[str, Array]


class Calibration(NamedTuple):
    """How far a network's denoised estimate is believed.

    Attributes:
        mean: of the prior, the site's shape.
        gain: g_t by level, shape (T + 1,); 1 at level 0.
    """

    mean: Array
    gain: Array


class Target(NamedTuple):
    """p(x^{0:T}) r(x^0): chains by site, and log r as a function of one particle's x^0.

    Attributes:
        chains: by site.
        shapes: of one x by site, E first.
        element_shape: E.
        log_likelihood: from x^0 by site to log r, shape (E...), nats, up to what no site of these enters.
        observe: from x^0 by site to what is seen of it, ``residual (E..., m)``, ``covariance (E..., m, m)`` and
            ``seen (E..., m)``, for Normal observations; raises TypeError for others.
        calibration: of sites by name, from :func:`calibrate`; a site that is missing is believed as it is.
        errors: the covariance of a network's errors, of sites whose prior carries it.
    """

    chains: Mapping[str, ReverseChain]
    shapes: Mapping[str, Shape]
    element_shape: Shape
    log_likelihood: Callable[[States], Array]
    observe: Callable[[States], Any] | None = None
    calibration: Mapping[str, Calibration] = {}
    errors: Mapping[str, ErrorCovariance] = {}

    @property
    def num_steps(self) -> int:
        """The longest chain's T."""
        return max(chain.num_steps for chain in self.chains.values())

    def level(self, name: str, step: Array | int) -> Array:
        """The level t of one chain when the longest is at ``step``."""
        return jnp.minimum(step, self.chains[name].num_steps)

    def is_discrete(self, name: str) -> bool:
        """Whether a site's states are discrete."""
        return self.chains[name].kernel.is_discrete

    def start(self, key: jax.Array, num_particles: int) -> States:
        """Particles of pi, at every chain's own T."""
        keys = jax.random.split(key, len(self.shapes))
        return {
            name: self.chains[name].kernel.stationary((num_particles, *shape)).sample(key)
            for (name, shape), key in zip(self.shapes.items(), keys, strict=True)
        }

    def network(self, name: str, x_t: Array, step: Array) -> tuple[PyTree, Any]:
        """A network's output at x_t, and p(x^{t-1} | x^t) with all its arrays leading with x_t's shape."""
        chain, t = self.chains[name], self.level(name, step)
        output = chain.output(x_t, t)
        return output, as_rows(chain.reverse(x_t, t, output), jnp.shape(x_t))

    def denoised(self, name: str, output: PyTree, x_t: Array, step: Array) -> Array:
        """The estimate of x^0 that goes with a network's output, as far as it is believed; of x_t's shape."""
        level = self.level(name, step)
        x_0 = self.chains[name].denoised(x_t, level, output)
        if name not in self.calibration:
            return x_0
        mean, gain = self.calibration[name]
        return mean + gain[level] * (x_0 - mean)

    def denoised_variance(self, name: str, step: Array, power: Array) -> Array:
        """r_t^2, the variance of x^0 given x^t for Gaussian data of variance ``power``."""
        return self.chains[name].kernel.denoised_variance(self.level(name, step), power)

    def expected(self, name: str, output: PyTree, x_t: Array, step: Array) -> Array:
        """E[x^0 | x^t]: the denoised estimate of real states, the mean state of discrete ones."""
        kernel = self.chains[name].kernel
        if kernel.num_states is None:
            return self.denoised(name, output, x_t, step)
        probabilities = kernel.state_probabilities(output, x_t, self.level(name, step))
        return probabilities @ jnp.arange(kernel.num_states, dtype=probabilities.dtype)

    def advance(self, name: str, x_t: Array, x_previous: Array, step: Array) -> Array:
        """The new state, or the old one while a shorter chain rests."""
        num_steps = self.chains[name].num_steps
        return x_previous if num_steps == self.num_steps else jnp.where(step <= num_steps, x_previous, x_t)

    def moves(self, name: str, step: Array) -> Array:
        """Whether a chain moves in this step."""
        return jnp.asarray(step) <= self.chains[name].num_steps

    def log_factor(self, x_0: Mapping[str, Array]) -> Array:
        """Log r of every particle, shape (N, E...)."""
        return jax.vmap(self.log_likelihood)(dict(x_0))

    def by_element(self, values: Array) -> Array:
        """Sum to (N, E...)."""
        return values.sum(tuple(range(1 + len(self.element_shape), values.ndim)))


def as_rows(step: Any, shape: Shape) -> Any:
    """An elementwise distribution whose arrays lead with x_t's shape, so that resampling can gather them."""

    def broadcast(leaf: Array) -> Array:
        inner = jnp.ndim(leaf) - len(step.batch_shape)  # the states' axis of a categorical step
        return jnp.broadcast_to(leaf, shape + jnp.shape(leaf)[jnp.ndim(leaf) - inner :] if inner > 0 else shape)

    return jax.tree.map(broadcast, step)


def draw_prior(target: Target, key: jax.Array, num_draws: int) -> States:
    """Draws of the diffusion sites from their prior, (num_draws, site shape...); none for num_draws = 0."""
    if num_draws == 0:
        return {}
    draws = {}
    keys = jax.random.split(key, len(target.shapes))
    for (name, shape), site_key in zip(target.shapes.items(), keys, strict=True):
        draws[name] = target.chains[name].sample_last(site_key, (num_draws,)).reshape((num_draws, *shape))
    return draws


def calibrate(target: Target, draws: States, key: jax.Array) -> dict[str, Calibration]:
    """The gain g_t of the network of each Gaussian site, from draws of the prior: T calls on all of them.

    Args:
        target: not calibrated yet.
        draws: from :func:`draw_prior`; without draws there is no calibration.
        key: of the noise.
    """
    return {
        name: _calibrate_site(target, name, x_0, jax.random.fold_in(key, index))
        for index, (name, x_0) in enumerate(sorted(draws.items()))
        if not target.is_discrete(name)
    }


def _calibrate_site(target: Target, name: str, x_0: Array, key: jax.Array) -> Calibration:
    kernel = target.chains[name].kernel
    mean = x_0.mean(0)
    axes = tuple(range(1, x_0.ndim))

    def gain(t: Array) -> Array:
        x_t: Any = kernel.marginal(x_0, t).sample(jax.random.fold_in(key, t))
        denoised = target.denoised(name, target.network(name, x_t, t)[0], x_t, t)
        centred = denoised - denoised.mean(0)
        product, square = (centred * (x_0 - mean)).sum(axes), (centred**2).sum(axes)
        total = square.sum()
        slope = product.sum() / total
        error = jnp.sqrt(((product - slope * square) ** 2).sum()) / total  # draws are independent, coordinates are not
        is_wrong = jnp.isfinite(slope) & (slope + 5 * error < 1)
        return jnp.where(is_wrong, jnp.maximum(slope, 0.0), 1.0)

    gains = jax.lax.map(gain, jnp.arange(1, kernel.num_steps + 1))
    return Calibration(mean, jnp.concatenate([jnp.ones(1, gains.dtype), gains]))
