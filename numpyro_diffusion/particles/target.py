r"""The law that a particle engine walks through: chains times factor, for many particles at once.

States are dictionaries, site name -> (N, site shape...), where N counts particles and the site's shape begins with the
elements E that are filtered one by one (see :mod:`numpyro_diffusion.model.split`).
Numbers of an element are (N, E...): whatever is left of a site's shape is summed.

Levels run from the longest chain's T down to 0. A chain with fewer steps rests at its x^T until its own
levels come.

A twist believes the network's x0hat(x^t). Training weighs the noisiest levels least, and there a network's x0hat can be
far worse than the prior's mean: then the first weights are noise, and few particles survive it. So x0hat is taken as

    mean + g_t (x0hat - mean),      g_t = Cov(x0hat, x^0) / Var(x0hat) over draws of the prior, noised to level t,

the regression of x^0 on it; g_t = 1 for E[x^0 | x^t]. Draws are few, so where 1 is within five standard errors it is
1: an exact denoiser is left as it is. Elsewhere it is between 0 and 1.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._typing import Array, PyTree, Shape
from ..chains import ReverseChain
from ..model.split import SplitModel, Values
from ..transition import network_output

__all__ = ["Calibration", "States", "Target", "calibrate", "draw_prior"]

States = dict[str, Array]


class Calibration(NamedTuple):
    """How far a network's denoised estimate is believed.

    Attributes:
        mean: of the prior, the site's shape.
        gain: g_t by level, shape (T + 1,); 1 at level 0.
    """

    mean: Array
    gain: Array


class Target:
    """Chains and factor of a split model at given values of its other latent sites.

    Args:
        split: the model.
        others: values of its other latent sites.
        calibration: of sites by name, from :func:`calibrate`; a site that is missing is believed as it is.
    """

    def __init__(self, split: SplitModel, others: Values, calibration: Mapping[str, Calibration] | None = None) -> None:
        self.calibration = dict(calibration or {})
        self.split = split
        self.others = dict(others)
        self.chains: dict[str, ReverseChain] = split.chains(others)
        self.element_shape: Shape = split.element_shape
        self.num_steps = split.num_steps

    def level(self, name: str, step: Array | int) -> Array:
        """The level t of one chain when the longest is at ``step``."""
        return jnp.minimum(step, self.chains[name].kernel.num_steps)

    def is_discrete(self, name: str) -> bool:
        """Whether a site's states are bits."""
        return self.chains[name].kernel.is_discrete

    def start(self, key: jax.Array, num_particles: int) -> States:
        """Particles of pi, at every chain's own T."""
        keys = jax.random.split(key, len(self.split.sites))
        return {
            site.name: self.chains[site.name].kernel.stationary((num_particles, *site.shape)).sample(key)
            for site, key in zip(self.split.sites, keys, strict=True)
        }

    def network(self, name: str, x_t: Array, step: Array) -> tuple[PyTree, Any]:
        """A network's output at x_t, and the law of x^{t-1} with all its arrays of x_t's shape."""
        chain = self.chains[name]
        t = self.level(name, step)
        context = None if chain.context is None else jnp.asarray(chain.context)
        output = network_output(chain.kernel, chain.transition, x_t, t, context)
        law = chain.kernel.reverse(output, x_t, t)
        return output, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, jnp.shape(x_t)), law)

    def denoised(self, name: str, output: PyTree, x_t: Array, step: Array) -> Array:
        """The estimate of x^0 that goes with a network's output, as far as it is believed; of x_t's shape."""
        level = self.level(name, step)
        x_0 = jnp.asarray(self.chains[name].kernel.denoised(output, x_t, level))
        if name not in self.calibration:
            return x_0
        mean, gain = self.calibration[name]
        return mean + gain[level] * (x_0 - mean)

    def advance(self, name: str, x_t: Array, x_previous: Array, step: Array) -> Array:
        """The new state, or the old one while a shorter chain rests."""
        num_steps = self.chains[name].kernel.num_steps
        return x_previous if num_steps == self.num_steps else jnp.where(step <= num_steps, x_previous, x_t)

    def moves(self, name: str, step: Array) -> Array:
        """Whether a chain moves in this step."""
        return jnp.asarray(step) <= self.chains[name].kernel.num_steps

    def log_factor(self, x_0: Mapping[str, Array]) -> Array:
        """Log r without the shared term, shape (N, E...)."""
        return jax.vmap(lambda x: self.split.log_factor(x, self.others).elements)(dict(x_0))

    def shared_factor(self) -> Array:
        """The part of log r that depends on no diffusion site, ()."""
        x = {site.name: jnp.zeros(site.shape, int if site.is_discrete else float) for site in self.split.sites}
        return self.split.log_factor(x, self.others).shared if self.element_shape else jnp.zeros(())

    def by_element(self, values: Array) -> Array:
        """Sum to (N, E...)."""
        return values.sum(tuple(range(1 + len(self.element_shape), values.ndim)))


def draw_prior(target: Target, key: jax.Array, num_draws: int) -> States:
    """Draws of the diffusion sites from their prior, (num_draws, site shape...); none for num_draws = 0."""
    if num_draws == 0:
        return {}
    draws = {}
    keys = jax.random.split(key, len(target.split.sites))
    for site, site_key in zip(target.split.sites, keys, strict=True):
        x = target.chains[site.name].sample_last(site_key, (num_draws,))
        draws[site.name] = x.reshape((num_draws, *site.shape))
    return draws


def calibrate(target: Target, draws: States, key: jax.Array) -> dict[str, Calibration]:
    """How far to believe the network of each Gaussian site, from draws of the prior: T calls on all of them.

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
