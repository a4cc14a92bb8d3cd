r"""Twists of discrete states, 0..K-1 in each coordinate, which have no gradient.

At the likeliest x of p(x^0 | x^t), with f_i(k) the change of log r when coordinate i becomes k, all others staying,

    log psi_t = log r(x) + sum_i log E[exp(f_i(k_i))],   k_i ~ p(x^0_i | x^t)

and q is the reverse step with p(x^0 | x^t) multiplied by exp(f). Both are exact when r factorises over coordinates and
the network gives the distribution of x^0. When r couples coordinates, both are overconfident: two changes that each
help may together hurt, and a state that the f exclude is proposed seldom, with a weight above all others. Let e be the
mean error in nats of log r at one draw of the prior, predicted from another draw by its f. Then r is tempered by
1 / (1 + e), and psi_t is mixed with the average of r over the prior: (1 - d) psi_t + d E[r], d = (1 - exp(-e)) / 2.
Particles move by p with the probability of the second part, which bounds their weights.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ..._numerics import expand_right
from ..._typing import Array
from ..._weights import log_mean_exp
from ...guidance.base import state_changes
from ..target import States, Target

__all__ = ["coupling", "likeliest", "look_at_site", "site_changes"]

_LIMIT = 30.0  # nats: a state is never forbidden outright by an estimate


def likeliest(target: Target, name: str, output: Any, x_t: Array, step: Array) -> Array:
    """The likeliest state of every coordinate of x^0 given x^t."""
    probabilities = target.chains[name].kernel.state_probabilities(output, x_t, target.level(name, step))
    return jnp.argmax(probabilities, axis=-1).astype(x_t.dtype)


def site_changes(target: Target, x_0: States, name: str) -> Array:
    """The change of log r when one coordinate of a site becomes k, all others staying: (N, site shape..., K)."""
    leading = 1 + len(target.element_shape)
    num_states = target.chains[name].kernel.num_states or 0
    changes = state_changes(lambda x: target.log_factor({**x_0, name: x}), x_0[name], num_states, leading)
    return jnp.clip(changes, -_LIMIT, _LIMIT)


def look_at_site(
    target: Target, name: str, output: Any, x: States, x_0: States, step: Array, temper: Array
) -> tuple[Array, Any]:
    """What one site adds to log psi beyond r(x), (N, E...), and its guided step.

    Args:
        target: chains and likelihood.
        name: of the site.
        output: its network's at x^t.
        x: states.
        x_0: the likeliest states of all discrete sites, the denoised ones of others.
        step: level.
        temper: exponent of r, (E...) or ().
    """
    kernel, t = target.chains[name].kernel, target.level(name, step)
    changes = expand_right(temper, x[name].ndim - jnp.ndim(temper)) * site_changes(target, x_0, name)
    probabilities = kernel.state_probabilities(output, x[name], t)
    gained = jax.nn.logsumexp(changes, axis=-1, b=probabilities)
    return target.by_element(gained), kernel.reweighted(output, x[name], t, changes)


def coupling(target: Target, prior_draws: States) -> tuple[Array, Array]:
    """How much r couples discrete coordinates, and the log of its mean over prior draws, both (E...).

    The first is the mean error, in nats, of log r at the next draw's states as predicted by the changes at a draw; 0
    when r factorises. A draw of likelihood zero counts as the largest error.
    """
    names = [name for name in prior_draws if target.is_discrete(name)]
    log_r = target.log_factor(prior_draws)
    if not names:
        return jnp.zeros(target.element_shape), log_mean_exp(log_r)
    after = {**prior_draws, **{name: jnp.roll(prior_draws[name], -1, axis=0) for name in names}}

    def foretold(name: str) -> Array:
        there = after[name][..., None].astype(int)
        changes = jnp.take_along_axis(site_changes(target, prior_draws, name), there, axis=-1)
        return target.by_element(changes[..., 0])

    change = sum(foretold(name) for name in names)
    error = jnp.abs(target.log_factor(after) - log_r - change)
    error = jnp.minimum(jnp.where(jnp.isfinite(error), error, _LIMIT), _LIMIT)
    rounding = 100 * jnp.finfo(error.dtype).eps * (1 + jnp.abs(jnp.where(jnp.isfinite(log_r), log_r, 0.0)))
    return jnp.where(error > rounding, error, 0.0).mean(0), log_mean_exp(jnp.where(jnp.isnan(log_r), -jnp.inf, log_r))
