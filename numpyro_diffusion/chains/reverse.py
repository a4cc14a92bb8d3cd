r"""The reverse chain: p(x^{0:T}) = pi(x^T) prod_t p(x^{t-1} | x^t)  (Eq. 4-5).

Samples and density of the path are exact: it is a distribution like any other, whose steps are made by a network.
The chain of x^{stop:T} is the same chain stopped early. With ``stop=1`` it is the latent part of the model whose
observed part is ``conditional(x^1, 1)``, the distribution of the data given x^1.

Whatever needs a kernel, a network and a context takes a ReverseChain. Its step is

    output(x^t, t)      what the network says, checked against the kernel
    reverse(x^t, t)     p(x^{t-1} | x^t), elementwise
    denoised(x^t, t)    the network's estimate of E[x^0 | x^t]
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from .._checks import check_integer_at_least, check_trailing_shape, expected
from .._compat.numpyro import explicit_validation
from .._numerics import expand_right
from .._typing import Array, ArrayLike, PyTree, Shape
from ..kernels import Kernel
from ..transition import Transition, check_output
from .base import ARRAY, ChainDistribution, check_context, check_kernel
from .respacing import chosen_levels

__all__ = ["ReverseChain"]

# Of states that a network sees at once where they are drawn: more in a row are no faster, and their layers fill memory.
_NUMBERS_AT_ONCE = 2**18


class ReverseChain(ChainDistribution):
    """Distribution of the path x^{stop:T} of the generative chain.

    ``event_shape`` is (T + 1 - stop, *event); index 0 of the time axis is x^stop. ``batch_shape`` is the context's.

    Args:
        kernel: one step.
        transition: the network.
        context: None, or shape (batch..., context event...), for a conditional transition.
        stop: the last state to draw, 0 <= stop <= T.

    >>> from numpyro_diffusion import GaussianKernel, Transition, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(5), variance="upper")
    >>> transition = Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(2,))
    >>> ReverseChain(kernel, transition).sample(jax.random.key(0), (3,)).shape
    (3, 6, 2)

    References: Sohl-Dickstein et al. 2015, Eq. 4-5.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"context": ARRAY}
    reparametrized_params: ClassVar[list[str]] = ["context"]
    pytree_data_fields: tuple[str, ...] = ("transition", "context")
    pytree_aux_fields = ("stop",)

    def __init__(
        self,
        kernel: Kernel,
        transition: Transition,
        *,
        context: ArrayLike | None = None,
        stop: int = 0,
        validate_args: bool | None = None,
    ) -> None:
        check_kernel(kernel)
        batch_shape = check_context(transition, context)
        self.transition = transition
        self.context = context
        self.stop = check_integer_at_least("stop", stop, 0, "It is the index of the last state to draw.")
        if stop > kernel.num_steps:
            raise ValueError(expected(f"stop <= T = {kernel.num_steps}", stop, "The chain starts at x^T."))
        event_shape = (kernel.num_steps + 1 - stop, *transition.event_shape)
        super().__init__(kernel, batch_shape, event_shape, validate_args=validate_args)

    @property
    def num_steps(self) -> int:
        """T."""
        return self.kernel.num_steps

    @property
    def state_shape(self) -> Shape:
        """The shape of one state, (event...)."""
        return self.transition.event_shape

    @property
    def state_dim(self) -> int:
        """The number of dimensions of one state."""
        return self.transition.event_dim

    def output(self, x_t: Array, t: ArrayLike) -> PyTree:
        """What the network says of x^t.

        Args:
            x_t: states, shape (batch..., event...).
            t: step, integers in 1..T that broadcast with the batch shape.

        Raises:
            TypeError, ValueError: if the output's structure, dtype or shape is not what the kernel needs.
        """
        context = self.context
        if context is not None:
            batch_shape = jnp.shape(x_t)[: jnp.ndim(x_t) - self.state_dim]
            context = jnp.broadcast_to(jnp.asarray(context), batch_shape + (self.transition.context_shape or ()))
        encoded = self.kernel.encode(x_t)
        output = self.transition(encoded, t, context)
        check_output(self.kernel, output, encoded)
        return output

    def reverse(self, x_t: Array, t: ArrayLike, output: PyTree = None) -> Any:
        """p(x^{t-1} | x^t) as an elementwise distribution, of batch_shape (batch..., event...).

        Args:
            x_t: states, shape (batch..., event...).
            t: step, integers in 1..T that broadcast with the batch shape.
            output: the network's at x_t, if it is known already.
        """
        output = self.output(x_t, t) if output is None else output
        return self.kernel.reverse(output, x_t, self.beside_state(t))

    def denoised(self, x_t: Array, t: ArrayLike, output: PyTree = None) -> Array:
        """The network's estimate of E[x^0 | x^t], in x_t's shape; arguments as for :meth:`reverse`."""
        output = self.output(x_t, t) if output is None else output
        return jnp.asarray(self.kernel.denoised(output, x_t, self.beside_state(t)))

    def with_context(self, context: ArrayLike | None) -> "ReverseChain":
        """The same chain for another context, whose batch shape it takes."""
        return ReverseChain(self.kernel, self.transition, context=context, stop=self.stop)

    def respaced(self, num_steps: int | None = None, *, levels: Sequence[int] | None = None) -> "ReverseChain":
        """The chain of the same network that visits some of the levels of noise: fewer calls, another model.

        Its path has an exact density, and its x^0 a bound, of its own: look at ``evaluation.bound`` of both. See
        :mod:`numpyro_diffusion.chains.respacing`.

        Args:
            num_steps: K <= T; the levels are then 1, T and others at even distances in log SNR.
            levels: in place of that, K rising integers out of 1..T, the last of them T. Without level 1 the last step
                is longer, and its Gaussian wider.

        Returns:
            A chain whose steps are 1..K; with all levels this one.

        Raises:
            TypeError: for a kernel that cannot, such as one with ``parameterization="paper"``.
            ValueError: for a number of steps or levels out of range; for a chain that stops at a level that is left
                out; inside of NumPyro's ``scan``.

        >>> import numpyro_diffusion as nd
        >>> kernel = nd.GaussianKernel(nd.schedules.log_snr(100), variance="upper")
        >>> chain = ReverseChain(kernel, nd.Transition(lambda params, x_t, t, context: 0 * x_t, None, (2,)))
        >>> short = chain.respaced(4)
        >>> short.sample(jax.random.key(0)).shape, short.transition.levels
        ((5, 2), (1, 34, 67, 100))
        """
        levels = chosen_levels(self, num_steps, levels)
        if len(levels) == self.num_steps:
            return self
        if self.stop and self.stop not in levels:
            wanted = f"levels among which stop = {self.stop} is"
            raise ValueError(expected(wanted, levels, "Respace the chain down to x^0."))
        kernel, transition = self.kernel.at_levels(levels), self.transition.at_levels(levels)
        stop, validate_args = (0, *levels).index(self.stop), explicit_validation(self)
        chain = ReverseChain(kernel, transition, context=self.context, stop=stop, validate_args=validate_args)
        chain._batch_shape = self.batch_shape
        return chain

    def flow(self, x_top: ArrayLike) -> Array:
        r"""The data that x^T leads to without noise: DDIM, a discretisation of the probability flow.

            x^{t-1} = a_{t-1} x0hat + sqrt(n_{t-1} / n_t) (x^t - a_t x0hat),     q(x^t | x^0) = N(a_t x^0, n_t)

        *Not a draw* of the chain's p(x^0), but one of the flow's model, of the same network.

        Args:
            x_top: x^T, shape (batch..., event...), for example standard normal.

        Returns:
            x^0, of that shape: the network's estimate of it at x^1.

        Raises:
            TypeError: for a kernel of discrete states.
            ValueError: for a chain with ``stop`` > 0.

        References: Song, Meng, Ermon 2021, Denoising diffusion implicit models, Eq. 12 with sigma = 0.
        """
        if self.kernel.is_discrete:
            cure = "Bits have no flow; draw them by respaced(num_steps).sample_last."
            raise TypeError(expected("a kernel of real states for the flow", type(self.kernel).__name__, cure))
        if self.stop:
            raise ValueError(expected("a chain down to x^0 for the flow", f"stop={self.stop}", "Build it with stop=0."))
        check_trailing_shape("x_top", x_top, self.state_shape, "Batch dimensions go to the left.")

        def step(x_t: Array, t: Array) -> tuple[Array, None]:
            x_0 = self.denoised(x_t, t)
            (signal, noise), (before, noise_before) = (self.kernel.signal_and_noise(u, x_t) for u in (t, t - 1))
            return before * x_0 + jnp.sqrt(noise_before / noise) * (x_t - signal * x_0), None

        return jax.lax.scan(step, jnp.asarray(x_top), self._steps(), reverse=True)[0]

    def beside_state(self, batched: ArrayLike) -> Array:
        """Numbers of the batch (steps, weights) shaped to broadcast against states."""
        return expand_right(batched, self.state_dim)

    def sum_state(self, values: Array) -> Array:
        """Values of every coordinate of a state summed to the batch's shape."""
        return values.sum(tuple(range(values.ndim - self.state_dim, values.ndim)))

    def conditional(self, x_t: ArrayLike, t: ArrayLike) -> dist.Distribution:
        """p(x^{t-1} | x^t) as a distribution over events.

        Args:
            x_t: shape (batch..., event...).
            t: step, integers in 1..T that broadcast with the batch shape.

        Returns:
            A distribution with ``event_shape`` (event...).
        """
        check_trailing_shape("x_t", x_t, self.state_shape, "Batch dimensions go to the left.")
        step = self.reverse(jnp.asarray(x_t), t)
        return dist.Independent(step, self.state_dim) if self.state_dim else step

    def sample_last(self, key: jax.Array, sample_shape: Shape = ()) -> Array:
        """Draw x^stop alone, in memory that does not grow with T; the same draw as ``sample``'s index 0.

        Returns:
            Shape sample_shape + batch_shape + (event...).
        """
        return self._walk(key, tuple(sample_shape) + self.batch_shape, keep_path=False)

    def from_noise(self, noise: ArrayLike, *, checkpoint: bool = False) -> Array:
        """The draw of x^stop that standard normal noises stand for: the non-centred form of the chain.

        x^T is ``noise[T]`` and x^{t-1} = mean + scale * ``noise[t-1]``; differentiable in the noise and in all
        parameters.

        Args:
            noise: shape (batch...,) + event_shape, time axis as in ``sample``.
            checkpoint: for gradients, keep one state in about sqrt(T) and on the way back compute the others again,
                and one step's hidden layers at a time: two more passes through the network, and memory for little
                more than the noise and its gradient. Best where T has a divisor near sqrt(T): not where it is prime.

        Returns:
            x^stop, shape (batch..., event...).

        Raises:
            TypeError: for a discrete kernel.
        """
        batch = check_trailing_shape("noise", noise, self.event_shape, "There is one for each coordinate and time.")
        noise, time_axis = jnp.asarray(noise), len(batch)
        top = jax.lax.index_in_dim(noise, -1, time_axis, keepdims=False)
        start = self.kernel.from_noise(self.kernel.stationary(top.shape), top)

        def step(x_t: Array, t_and_noise: tuple[Array, Array]) -> tuple[Array, None]:
            t, eps = t_and_noise
            return self.step_from_noise(self.reverse(x_t, t), eps), None

        # A scan keeps its iterations apart by itself: no barrier against common subexpressions is needed.
        again = partial(jax.checkpoint, prevent_cse=False) if checkpoint else lambda function: function

        def walk(x_t: Array, steps: Array) -> tuple[Array, None]:
            eps = jax.lax.dynamic_slice_in_dim(noise, steps[0] - 1 - self.stop, len(steps), time_axis)
            return jax.lax.scan(again(step), x_t, (steps, jnp.moveaxis(eps, time_axis, 0)), reverse=True)

        steps = self._steps()
        if not len(steps):
            return start
        if not checkpoint:
            return walk(start, steps)[0]
        size = max(n for n in range(1, math.isqrt(len(steps)) + 1) if len(steps) % n == 0)
        return jax.lax.scan(again(walk), start, steps.reshape(-1, size), reverse=True)[0]

    def path_from_noise(self, noise: ArrayLike) -> Array:
        """The path that standard normal noises stand for, every state of :meth:`from_noise`.

        The map has the Jacobian that makes the path's density that of the noises: log p(path) = log N(noise) less it.

        Args:
            noise: shape (batch...,) + event_shape, time axis as in ``sample``.

        Returns:
            Of the shape of ``sample``: index 0 of the time axis is x^stop.

        Raises:
            TypeError: for a discrete kernel.
        """
        batch = check_trailing_shape("noise", noise, self.event_shape, "There is one for each coordinate and time.")
        noises = jnp.moveaxis(jnp.asarray(noise), len(batch), 0)
        start = self.kernel.from_noise(self.kernel.stationary(noises.shape[1:]), noises[-1])

        def step(x_t: Array, t_and_noise: tuple[Array, Array]) -> tuple[Array, Array]:
            t, eps = t_and_noise
            x_previous = self.step_from_noise(self.reverse(x_t, t), eps)
            return x_previous, x_previous

        _, path = jax.lax.scan(step, start, (self._steps(), noises[:-1]), reverse=True)
        return jnp.moveaxis(jnp.concatenate([path, start[None]]), 0, len(batch))

    def step_from_noise(self, step: Any, noise: Array) -> Array:
        """The x^{t-1} of a reverse step that standard normal noise stands for."""
        return self.kernel.from_noise(step, noise)

    def _sample(self, key: jax.Array, batch_shape: Shape) -> Array:
        return self._walk(key, batch_shape, keep_path=True)

    def _walk(self, key: jax.Array, batch_shape: Shape, keep_path: bool) -> Array:
        """Run the chain down from pi: all states stacked after the batch, or only the last."""
        top = self.num_steps
        start = self.kernel.stationary(batch_shape + self.state_shape).sample(jax.random.fold_in(key, top))

        def step(x_t: Array, t: Array) -> tuple[Array, Array | None]:
            output = self._output_in_stretches(x_t, t)
            x_previous = self.reverse(x_t, t, output).sample(jax.random.fold_in(key, t - 1))
            return x_previous, x_previous if keep_path else None

        last, path = jax.lax.scan(step, start, self._steps(), reverse=True)
        if path is None:
            return last
        return jnp.moveaxis(jnp.concatenate([path, start[None]]), 0, len(batch_shape))

    def _output_in_stretches(self, x_t: Array, t: Array) -> PyTree:
        """What the network says of many states at one step: so many at once that its layers stay small."""
        batch_shape, rows = x_t.shape[: x_t.ndim - self.state_dim], x_t.reshape((-1, *self.state_shape))
        at_once = max(1, _NUMBERS_AT_ONCE // max(1, math.prod(self.state_shape)))
        if len(rows) <= at_once:
            return self.output(x_t, t)
        context = self.context
        if context is not None:
            shape = self.transition.context_shape or ()
            context = jnp.broadcast_to(jnp.asarray(context), batch_shape + shape).reshape((-1, *shape))

        def of_one(row: tuple[Array, Array | None]) -> PyTree:
            return self.with_context(row[1]).output(row[0], t)

        output = jax.lax.map(of_one, (rows, context), batch_size=at_once)
        return jax.tree.map(lambda leaf: leaf.reshape(batch_shape + leaf.shape[1:]), output)

    def _log_prob(self, value: Array, batch_shape: Shape) -> Array:
        path, t = self.time_first(value, batch_shape)
        log_prior: Any = self.kernel.stationary(path.shape[1:]).log_prob(path[-1])
        # All steps at once: given the path they are independent, and the time axis is one more batch axis.
        log_steps: Any = self.reverse(path[1:], t).log_prob(path[:-1])
        event_axes = tuple(range(len(batch_shape), log_prior.ndim))
        return log_prior.sum(event_axes) + log_steps.sum((0, *(axis + 1 for axis in event_axes)))

    def time_first(self, value: Array, batch_shape: Shape) -> tuple[Array, Array]:
        """The states with the time axis in front, and the steps t of ``path[1:]``, shaped to broadcast with its batch.

        In front, so that what belongs to the batch (a context, an observation) still broadcasts from the right.
        """
        return jnp.moveaxis(value, len(batch_shape), 0), expand_right(self._steps(), len(batch_shape))

    def _steps(self) -> Array:
        """The steps t = stop + 1 .. T."""
        return jnp.arange(self.stop + 1, self.num_steps + 1)
