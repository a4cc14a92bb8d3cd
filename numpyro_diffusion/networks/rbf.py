"""The paper's network for the swiss roll: normalised radial basis functions."""

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp

from .._typing import Array
from .common import flatten_event, split_outputs, step_readout

__all__ = ["RBF"]


@dataclasses.dataclass(frozen=True)
class RBF:
    """One hidden layer of normalised radial basis functions shared over time, a separate readout for each step.

    Unit k responds with exp(-|x - c_k|^2 / 2 w_k^2), divided by the sum over units; centres and widths are learned.

    Args:
        num_steps: T, ``kernel.num_steps``.
        num_outputs: ``kernel.num_outputs``.
        num_units: the paper has 16.
        event_dim: how many trailing dimensions of x are one event (flattened inside).

    >>> init = hk.transform(RBF(num_steps=40)).init
    >>> params = jax.eval_shape(init, jax.random.key(0), jnp.ones(2), jnp.array(1))
    >>> params["~"]["centres"].shape, params["~"]["readout_w"].shape
    ((16, 2), (40, 16, 4))

    References: Sohl-Dickstein et al. 2015, Appendix D.1.1.
    """

    num_steps: int
    num_outputs: int = 2
    num_units: int = 16
    event_dim: int = 1

    def __call__(self, x_t: Array, t: Array) -> Array | tuple[Array, ...]:
        """The output for x_t of shape (batch..., event...)."""
        flat, event_shape = flatten_event(x_t, self.event_dim)
        size = flat.shape[-1]
        centres = hk.get_parameter("centres", (self.num_units, size), flat.dtype, hk.initializers.RandomNormal(1.0))
        # Widths start at half the data's unit scale: sixteen units then tile the plane with some overlap.
        log_widths = hk.get_parameter("log_widths", (self.num_units,), flat.dtype, hk.initializers.Constant(-0.7))
        distance = ((flat[..., None, :] - centres) ** 2).sum(-1)
        response = jax.nn.softmax(-0.5 * distance * jnp.exp(-2 * log_widths), axis=-1)
        output = step_readout(response, t, self.num_steps, self.num_outputs * size)
        return split_outputs(output, self.num_outputs, event_shape)
