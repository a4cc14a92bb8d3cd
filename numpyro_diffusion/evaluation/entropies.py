r"""The entropy bounds of every reverse step, from the forward chain alone, beside the model's own entropies.

    H_q(X^t | X^{t-1}) + H_q(X^{t-1} | X^0) - H_q(X^t | X^0) <= H_q(X^{t-1} | X^t) <= H_q(X^t | X^{t-1})     (Eq. 24)

The lower bound always holds: x^t knows no more of x^0 than x^{t-1} does. The upper bound needs that the forward chain
raises the entropy, H_q(X^t) >= H_q(X^{t-1}): so it does for data normalised as the paper's, whose pi has the largest
entropy that their moments allow, and need not for data that are wider than pi. At t = 1 the lower bound is
minus infinity for real numbers (x^0 given itself is a point) and finite for bits.

The model's entropy, of p(x^{t-1} | x^t) averaged over q(x^t), should lie between the two. It is a sum over coordinates
that are independent given x^t, so it may lie above the truth where the steps are few.

References: Sohl-Dickstein et al. 2015, Section 2.6, Eq. 24 and 36.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from .._typing import Array, ArrayLike
from ..chains import ReverseChain
from ._chunks import Chunk, Model, Moments, chunks, moments_over_points, over_points, point_keys, states_of

__all__ = ["EntropyBounds", "entropy_bounds"]


@dataclasses.dataclass(frozen=True, eq=False)
class EntropyBounds:
    """Entropies of each reverse step, all of shape (T,), step t at index t - 1, in nats for the whole event.

    Attributes:
        lower: of H_q(X^{t-1} | X^t).
        upper: of H_q(X^{t-1} | X^t).
        model: E_q of the entropy of p(x^{t-1} | x^t).
        model_standard_errors: of ``model``, over the data.
    """

    lower: np.ndarray
    upper: np.ndarray
    model: np.ndarray
    model_standard_errors: np.ndarray


def entropy_bounds(rng_key: jax.Array, model: Model, x: ArrayLike, *, chunk_size: int = 512) -> EntropyBounds:
    """The paper's bounds on the entropy of every reverse step, and the model's own entropies.

    The entropies are those of the chain's states. A transform of the model takes the data to their states.

    Args:
        rng_key: JAX random key, of x^{t-1} and x^t given x^0.
        model: a Diffusion, a TransformedDistribution of one, or a ReverseChain; a context for all points or one for
            each.
        x: data, shape (n, event...).
        chunk_size: points that are in memory at once.

    Raises:
        ValueError: for data that do not match or lie outside of the support.

    >>> from numpyro_diffusion import Diffusion, GaussianKernel, Transition, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper")
    >>> model = Diffusion(kernel, Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(1,)))
    >>> steps = entropy_bounds(jax.random.key(0), model, jnp.ones((3, 1)))
    >>> bool((steps.lower <= steps.upper).all())
    True

    References: Sohl-Dickstein et al. 2015, Eq. 24.
    """
    points = states_of(model, x)
    gathered = Moments()
    for chunk in chunks(points, chunk_size):
        gathered.add(chunk.size // points.group, *jax.device_get(_chunk(chunk, rng_key, points.group)))
    lower, upper, own = gathered.mean.T
    if not points.model.kernel.is_discrete:
        lower[0] = -np.inf  # H_q(X^0 | X^0), a point
    return EntropyBounds(lower, upper, own, gathered.standard_error[:, 2])


@functools.partial(jax.jit, static_argnames="group")
def _chunk(chunk: Chunk, key: jax.Array, group: int) -> tuple[Array, Array]:
    """Means and sums of squared deviations over the points of (lower, upper, model), each (T, 3)."""
    keys, kernel = point_keys(key, chunk, 1), chunk.chain.kernel

    def step(_: None, t: Array) -> tuple[None, tuple[Array, Array]]:
        def entropies(chain: ReverseChain, x_0: Array, key: jax.Array) -> Array:
            before, after = kernel.marginal(x_0, t - 1), kernel.marginal(x_0, t)
            key_before, key_after = jax.random.split(jax.random.fold_in(key, t))
            x_t = after.sample(key_after)
            forward = kernel.step(before.sample(key_before), t).entropy().sum()
            own = chain.reverse(x_t, t).entropy().sum()
            # H_q(X^0 | X^0) of real numbers is -inf, which has no variance: entropy_bounds sets it at the end.
            change = jnp.where(t == 1, 0.0, before.entropy().sum()) - after.entropy().sum()
            return jnp.stack([forward + change, forward, own])

        values = over_points(entropies, chunk, keys)[:, 0]
        return None, jax.vmap(lambda column: moments_over_points(column, chunk, group), in_axes=1)(values)

    _, (means, squares) = jax.lax.scan(step, None, jnp.arange(1, kernel.num_steps + 1))
    return means, squares
