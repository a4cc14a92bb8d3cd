r"""Whether a chain guided by linearised numbers is nearer to the posterior than the prior's own chain.

Where a likelihood bends (a ring, a magnitude), guidance made at one point can be worse than none. Both chains are
proposals for the same posterior, so that their importance-weighted bounds

    log  1/K sum_k  p(y | x_k, o) p(path_k) / q(path_k)          with K paths of q

have the same limit, the log evidence given o, from below: the one with the larger bound is the nearer. K is small, so
that what is compared is the bounds and not the evidence, and several sets of paths give their mean and its error.
Guidance goes where its bound is lower by more than two of these errors. It is decided once, with other latent sites
held where the model was linearised, over all elements of a plate together.

Reference: Burda, Grosse, Salakhutdinov 2016 (the bound).
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from .._typing import Array
from .._weights import log_mean_exp
from ..chains import ReverseChain
from ..guidance import Guidance, TiltedChain
from .independence import by_element
from .linearised import LinearisedSite
from .program import Values
from .split import SplitModel

__all__ = ["is_nearer"]

_NUM_PATHS, _NUM_SETS = 16, 16


def is_nearer(split: SplitModel, site: LinearisedSite, chain: ReverseChain, others: Values) -> Array:
    """Whether guidance of a site is kept, a boolean ().

    Args:
        split: the model.
        site: what guides.
        chain: of the site's prior.
        others: values of the other latent sites.
    """
    guided, own = (_bounds(split, guide, site, chain, others) for guide in (True, False))
    gain = guided - own
    is_better = gain.mean() >= -2 * gain.std(ddof=1) / math.sqrt(_NUM_SETS)
    return is_better | ~jnp.isfinite(own).all()


@partial(jax.jit, static_argnums=1)
def _bounds(split: SplitModel, is_guided: bool, site: LinearisedSite, chain: ReverseChain, others: Values) -> Array:
    """The importance-weighted bound in nats by each set of paths, summed over elements."""
    guidance: Guidance | None = site.guidance(split, others) if is_guided else None

    def log_weight(key: Array) -> Array:
        noise = jax.random.normal(key, (*chain.batch_shape, *chain.event_shape))
        if guidance is None:
            x, log_ratio = chain.from_noise(noise), jnp.zeros(chain.batch_shape)
        else:
            x, log_ratio = TiltedChain(chain, guidance).weighted_from_noise(noise)
        factor = split.log_factor({**site.states, site.name: x}, others)
        log_ratio = jnp.asarray(by_element(log_ratio, split.element_shape))  # x ends in the elements
        whole = factor.elements + log_ratio + (0.0 if split.element_shape else factor.shared)
        return jnp.where(jnp.isnan(whole), -jnp.inf, whole)

    def one_set(key: Array) -> Array:
        return log_mean_exp(jax.vmap(log_weight)(jax.random.split(key, _NUM_PATHS))).sum()

    return jax.lax.map(one_set, jax.random.split(jax.random.key(3), _NUM_SETS))
