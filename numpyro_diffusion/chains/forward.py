r"""The forward chain: q(x^{1:T} | x^0) = prod_t q(x^t | x^{t-1})  (Eq. 1-3).

It is the proposal of the paper's likelihood (Eq. 9) and the guide of its training. It has no parameters but the
schedule's; draws of a Gaussian chain are differentiable in them and in x^0.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from .._checks import check_integer_at_least, check_trailing_shape
from .._numerics import expand_right
from .._typing import Array, ArrayLike, Shape
from ..kernels import Kernel
from .base import ARRAY, ChainDistribution, check_kernel
from .keys import key_from_context

__all__ = ["ForwardChain"]


class ForwardChain(ChainDistribution):
    """Distribution of the noised states x^1..x^T of given data.

    ``event_shape`` is (T, *event); index 0 of the time axis is x^1. ``batch_shape`` is that of ``x_0``.

    Args:
        kernel: one step.
        x_0: the data, shape (batch..., event...).
        event_dim: how many trailing dimensions of ``x_0`` are one event.
        rng_key: for the estimate of ``kl_divergence(ForwardChain, ReverseChain)`` only; drawn from the model's seed
            when there is one.

    >>> from numpyro_diffusion import GaussianKernel, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(5))
    >>> chain = ForwardChain(kernel, jnp.zeros((3, 2)))
    >>> chain.batch_shape, chain.event_shape
    ((3,), (5, 2))

    References: Sohl-Dickstein et al. 2015, Eq. 1-3.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"x_0": ARRAY}
    reparametrized_params: ClassVar[list[str]] = ["x_0"]
    pytree_data_fields: tuple[str, ...] = ("x_0", "rng_key")
    pytree_aux_fields = ("_data_dim",)

    def __init__(
        self,
        kernel: Kernel,
        x_0: ArrayLike,
        *,
        event_dim: int = 1,
        rng_key: jax.Array | None = None,
        validate_args: bool | None = None,
    ) -> None:
        check_kernel(kernel)
        shape = jnp.shape(x_0)
        check_integer_at_least("event_dim", event_dim, 0, "It counts the trailing dimensions of one x.")
        check_integer_at_least(f"the rank of x_0, of shape {shape},", len(shape), event_dim, "Lower event_dim.")
        self.x_0 = x_0
        self.rng_key = key_from_context(rng_key)
        self._data_dim = event_dim
        split = len(shape) - event_dim
        super().__init__(kernel, shape[:split], (kernel.num_steps, *shape[split:]), validate_args=validate_args)
        if validate_args is not False:
            kernel.check_data("x_0", x_0)

    def path_from_noise(self, noise: ArrayLike) -> Array:
        """The path that standard normal noises stand for, as :meth:`.ReverseChain.path_from_noise`, from x^0 up.

        Args:
            noise: shape (batch...,) + event_shape, time axis as in ``sample``; its batch is that of ``x_0``.

        Returns:
            Of the shape of ``sample``: index 0 of the time axis is x^1.

        Raises:
            TypeError: for a discrete kernel.
        """
        batch = check_trailing_shape("noise", noise, self.event_shape, "There is one for each coordinate and time.")
        noises = jnp.moveaxis(jnp.asarray(noise), len(batch), 0)

        def step(x_previous: Array, t_and_noise: tuple[Array, Array]) -> tuple[Array, Array]:
            t, eps = t_and_noise
            x_t = self.kernel.from_noise(self.kernel.step(x_previous, t), eps)
            return x_t, x_t

        start = jnp.broadcast_to(jnp.asarray(self.x_0), noises.shape[1:])
        return jnp.moveaxis(jax.lax.scan(step, start, (self._steps(), noises))[1], 0, len(batch))

    def _steps(self) -> Array:
        return jnp.arange(1, self.kernel.num_steps + 1)

    def _sample(self, key: jax.Array, batch_shape: Shape) -> Array:
        def step(x_previous: Array, t: Array) -> tuple[Array, Array]:
            x_t = self.kernel.step(x_previous, t).sample(jax.random.fold_in(key, t))
            return x_t, x_t

        dtype = jax.eval_shape(lambda x: self.kernel.step(x, 1).sample(jax.random.key(0)), self.x_0).dtype
        start = jnp.broadcast_to(jnp.asarray(self.x_0, dtype), batch_shape + self.event_shape[1:])
        _, path = jax.lax.scan(step, start, self._steps())
        return jnp.moveaxis(path, 0, len(batch_shape))

    def _log_prob(self, value: Array, batch_shape: Shape) -> Array:
        start = jnp.broadcast_to(jnp.asarray(self.x_0, value.dtype), batch_shape + self.event_shape[1:])
        axis = len(batch_shape)
        before = jnp.concatenate(
            [jnp.expand_dims(start, axis), jax.lax.slice_in_dim(value, 0, -1, axis=axis)], axis=axis
        )
        t = expand_right(self._steps(), self._data_dim)
        log_prob: Any = self.kernel.step(before, t).log_prob(value)
        return log_prob.sum(tuple(range(axis, value.ndim)))
