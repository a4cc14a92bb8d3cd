r"""One protocol for every correction of a reverse step by the data.

Guidance looks at x^t, at what the network says of it (x0hat and its variance) and at the data, and returns

    q(x^{t-1} | x^t)     the corrected step, which can be sampled and scored in closed form
    log psi_t(x^t)       what x^t already knows of the data, an approximation to log p(y | x^t) in nats

The posterior's own reverse step is proportional to p(x^{t-1} | x^t) psi_{t-1}(x^{t-1}) with psi_{t-1} = p(y | x^{t-1}),
an integral that is not known. Every guidance approximates it in another way; none gives the posterior by itself. The
same object is a chain whose steps are corrected (:class:`~.TiltedChain`, a baseline with a density), and a twist and a
proposal of sequential Monte Carlo, whose weights correct it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from .._checks import expected
from .._typing import Array, ArrayLike, Shape
from ..chains import ReverseChain
from ..kernels import Kernel

__all__ = [
    "Guidance",
    "Guided",
    "as_numbers",
    "as_pytree_function",
    "check_normal",
    "check_real",
    "checked_log_r",
    "guide_step",
    "over_batch",
    "state_changes",
]


class Guided(NamedTuple):
    """A corrected reverse step, and what is known of the data before it is made.

    Attributes:
        step: q(x^{t-1} | x^t), elementwise, of batch_shape (batch..., event...).
        log_psi: log psi_t(x^t), shape (batch...), nats.
    """

    step: Any
    log_psi: Array


@runtime_checkable
class Guidance(Protocol):
    """A pure function of stable identity, or a pytree with such a method.

    ``x_t`` has shape (batch..., event...), ``t`` broadcasts with the batch shape. A function may return the step alone:
    then psi is 1. The step is Normal for a Gaussian kernel, Bernoulli for bits.
    """

    def __call__(self, chain: ReverseChain, x_t: Array, t: ArrayLike) -> Guided | dist.Distribution: ...


def guide_step(guidance: Guidance, chain: ReverseChain, x_t: Array, t: ArrayLike) -> Guided:
    """The corrected step, checked.

    Raises:
        ValueError: if the step has not the state's shape.
    """
    found = guidance(chain, x_t, t)
    batch_shape = jnp.shape(x_t)[: jnp.ndim(x_t) - chain.state_dim]
    guided = found if isinstance(found, Guided) else Guided(found, jnp.zeros(batch_shape))
    if guided.step.batch_shape != jnp.shape(x_t):
        raise ValueError(
            expected(
                f"guidance to return a step of batch_shape {jnp.shape(x_t)}",
                f"batch_shape {guided.step.batch_shape}",
                "It has one number for each of x_t's; for a batch of observations expand the chain.",
            )
        )
    return guided


def as_numbers(kernel: Kernel, x: Array) -> Array:
    """States as floating-point numbers, in their own shape: what a function log_r of one x sees."""
    return jnp.asarray(x, float) if kernel.is_discrete else x


def as_pytree_function(name: str, function: Any) -> Any:
    """A callable as a pytree: itself if it is one, else static inside a ``jax.tree_util.Partial``.

    Raises:
        TypeError: if it cannot be called.
    """
    if not callable(function):
        raise TypeError(
            expected(f"a function {name}", repr(function), "Pass a pure function; data go in by jax.tree_util.Partial.")
        )
    return jax.tree_util.Partial(function) if jax.tree_util.all_leaves([function]) else function


def checked_log_r(log_r: Callable[[Array], ArrayLike], event_shape: Shape, dtype: Any) -> Callable[[Array], Array]:
    """The function log_r of one event, known to return one real number.

    Raises:
        ValueError: if it returns anything else.
    """
    returned = jax.eval_shape(log_r, jax.ShapeDtypeStruct(event_shape, dtype))
    is_array = isinstance(returned, jax.ShapeDtypeStruct)
    if not is_array or returned.shape != () or not jnp.issubdtype(returned.dtype, jnp.floating):
        raise ValueError(
            expected(
                f"log_r of one x, of shape {event_shape}, to return one real number",
                f"shape {returned.shape} and dtype {returned.dtype}" if is_array else repr(returned),
                "Sum it over the event; the batch is mapped over for you.",
            )
        )
    return lambda event: jnp.asarray(log_r(event), dtype)


def over_batch(function: Callable[[Array], Any], num_batch_dims: int) -> Callable[[Array], Any]:
    """A function of one event, mapped over that many leading dimensions."""
    for _ in range(num_batch_dims):
        function = jax.vmap(function)
    return function


def state_changes(log_r: Callable[[Array], Array], x: Array, num_states: int, num_batch_dims: int) -> Array:
    """How much log r changes when one coordinate of discrete x becomes k, all others staying.

    A change between two states that are both impossible is 0.

    Args:
        log_r: of a whole batch of x, to shape (batch...).
        x: states 0..K-1, shape (batch..., event...).
        num_states: K.
        num_batch_dims: of x.

    Returns:
        Shape (batch..., event..., K), nats; 0 at the state that x has. It costs K - 1 evaluations of log_r for each
        coordinate, one after another.
    """
    event_shape = x.shape[num_batch_dims:]
    size = max(1, int(jnp.size(jnp.zeros(event_shape))))
    before = log_r(x)

    def moved(index: Array) -> Array:
        coordinate, by = index // (num_states - 1), 1 + index % (num_states - 1)
        mask = jax.nn.one_hot(coordinate, size, dtype=x.dtype).reshape(event_shape)
        return log_r((x + mask * by.astype(x.dtype)) % num_states) - before

    changes = jax.lax.map(moved, jnp.arange(size * (num_states - 1)))
    changes = jnp.moveaxis(changes.reshape(size, num_states - 1, *before.shape), (0, 1), (-2, -1))
    changes = jnp.where(jnp.isnan(changes), 0.0, changes).reshape(*x.shape, num_states - 1)
    by_distance = jnp.concatenate([jnp.zeros((*x.shape, 1), changes.dtype), changes], axis=-1)
    distance = (jnp.arange(num_states) - x[..., None].astype(int)) % num_states
    return jnp.take_along_axis(by_distance, distance, axis=-1)


def check_real(kernel: Kernel, name: str, cure: str) -> None:
    """Raise TypeError unless the kernel's states are real numbers."""
    if kernel.is_discrete:
        raise TypeError(expected(f"a kernel of real states for {name}", type(kernel).__name__, cure))


def check_normal(step: Any, name: str) -> Any:
    """The step's distribution.

    Raises:
        TypeError: if it is not Normal.
    """
    if not isinstance(step, dist.Normal):
        raise TypeError(expected(f"Normal reverse steps for {name}", type(step).__name__, "Use PaperTilt or no twist."))
    return step
