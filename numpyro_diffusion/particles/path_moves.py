r"""Moves of whole paths x^{0:T} that leave their posterior given the other sites invariant.

    conditional_smc     N particles walk from noise to data, one of them along the current path; one of the N paths
                        is chosen by weight. The joint distribution of the cloud and the choice is left invariant; the
                        path's posterior is a marginal of it.
    independent_paths   N fresh particles replace the cloud with probability min(1, Z_new / Z_cloud). Only right
                        where cloud and path come from the conditional SMC just before: Z_cloud is then that of the
                        state.
    refresh_paths       given x^0, x^{1:T} ~ q(x^{1:T} | x^0) by noising, accepted with probability
                        min(1, w_new / w_old), w = p(x^{0:T}) / q(x^{1:T} | x^0): the likelihood sees x^0 alone.

``walk`` is :func:`.filter.run_filter` with everything said but the key and the retained path.

References: Andrieu, Doucet and Holenstein 2010; Sohl-Dickstein et al. 2015, Eq. 9.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .._numerics import expand_right
from .._typing import Array
from ..chains import ForwardChain, ReverseChain
from ..estimates.importance import log_path_ratio
from .filter import Cloud, choose_path
from .target import States, Target

__all__ = ["conditional_smc", "first_paths", "independent_paths", "noised", "refresh_paths"]


def first_paths(target: Target, walk: Callable[..., Cloud], key: jax.Array) -> States:
    """Paths of one cloud, chosen by weight: a start near the posterior, not a draw of it."""
    key_walk, key_choice = jax.random.split(key)
    paths, _ = _choose(target, walk(key_walk), key_choice)
    return paths


def conditional_smc(
    target: Target, walk: Callable[..., Cloud], paths: States, key: jax.Array
) -> tuple[States, Cloud, Array]:
    """One move of conditional SMC.

    Returns:
        New paths; the cloud they are of; whether another particle than the retained one was chosen, (E...).
    """
    key_walk, key_choice = jax.random.split(key)
    cloud = walk(key_walk, retained=paths)
    paths, index = _choose(target, cloud, key_choice)
    return paths, cloud, index != 0


def independent_paths(
    target: Target, walk: Callable[..., Cloud], paths: States, log_evidence: Array, key: jax.Array
) -> tuple[States, Array]:
    """One independence move, for each element by itself.

    Args:
        target: chains and factor.
        walk: particles.
        paths: of the cloud whose ``log_evidence`` is given, (E...).
        log_evidence: of that cloud.
        key: randomness.

    Returns:
        New paths; whether they are fresh ones, (E...).
    """
    key_walk, key_choice, key_accept = jax.random.split(key, 3)
    cloud = walk(key_walk, independent=True)
    fresh, _ = _choose(target, cloud, key_choice)
    accept = _accepts(key_accept, cloud.log_evidence - log_evidence)
    return {name: _where(accept, fresh[name], old) for name, old in paths.items()}, accept


def refresh_paths(target: Target, paths: States, key: jax.Array) -> tuple[States, Array]:
    """One Metropolis move of x^{1:T} given x^0, for each path of a plate by itself.

    Returns:
        New paths, and the fraction accepted.
    """
    refreshed, accepted = {}, []
    for name, site_key in zip(sorted(paths), jax.random.split(key, len(paths)), strict=True):
        chain, old = target.chains[name], paths[name]
        key_path, key_accept = jax.random.split(site_key)
        new = noised(chain, old[0], key_path).astype(old.dtype)
        accept = _accepts(key_accept, log_path_ratio(chain, new) - log_path_ratio(chain, old))
        refreshed[name] = _where(accept, new, old)
        accepted.append(accept.mean(dtype=float))
    return refreshed, jnp.mean(jnp.stack(accepted))


def noised(chain: ReverseChain, x_0: Array, key: jax.Array) -> Array:
    """A path of the forward chain from x_0, shape (T + 1, site shape...), time first."""
    x_0 = jnp.asarray(x_0)
    forward = ForwardChain(chain.kernel, x_0, event_dim=chain.state_dim, rng_key=key, validate_args=False)
    above = jnp.moveaxis(forward.sample(key), x_0.ndim - chain.state_dim, 0)
    return jnp.concatenate([x_0[None].astype(above.dtype), above])


def _choose(target: Target, cloud: Cloud, key: jax.Array) -> tuple[States, Array]:
    log_weights = jnp.where(jnp.isnan(cloud.log_weights), -jnp.inf, cloud.log_weights)
    index = jax.random.categorical(key, log_weights, axis=0)
    return choose_path(target, cloud, index), index


def _accepts(key: jax.Array, log_ratio: Array) -> Array:
    """Metropolis' rule; a ratio that is NaN is refused."""
    return jnp.log(jax.random.uniform(key, log_ratio.shape, log_ratio.dtype)) < log_ratio


def _where(accept: Array, new: Array, old: Array) -> Array:
    """Whole paths (T + 1, shape...), by an ``accept`` whose shape the other begins with."""
    return jnp.where(expand_right(accept, new.ndim - 1 - accept.ndim), new, old)
