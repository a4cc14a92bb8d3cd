"""The loss on data that were not trained on, and when to stop because of it."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import SVI

from .._checks import check_integer_at_least
from .._typing import Array, PyTree
from .arrays import as_arrays
from .sources import check_rows

__all__ = ["Validation", "make_validation_loss"]


@dataclasses.dataclass(frozen=True)
class Validation:
    """Held-out data for :func:`fit`: every so many steps the loss on all of them, each time with the same noise.

    Args:
        data: as the data of ``fit``, an array or a pytree of arrays.
        every: steps between two evaluations.
        patience: stop after so many evaluations without a new best; None for never.

    Raises:
        ValueError: for no rows, rows that do not match, or numbers smaller than 1.
    """

    data: PyTree
    every: int = 1000
    patience: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", as_arrays("validation data", self.data).tree)
        check_rows("validation data", self.data)
        check_integer_at_least("every", self.every, 1, "It counts steps between evaluations.")
        if self.patience is not None:
            check_integer_at_least("patience", self.patience, 1, "It counts evaluations; None is for never.")

    def should_stop(self, losses: np.ndarray) -> bool:
        """Whether the best of all losses so far was more than ``patience`` evaluations ago."""
        if self.patience is None or len(losses) == 0:
            return False
        return len(losses) - 1 - int(np.argmin(losses)) >= self.patience


def make_validation_loss(svi: SVI, data: PyTree, batch_size: int) -> Callable[[PyTree, Array], Array]:
    """A function of (values of param and mutable sites, key) to the loss in nats per row, averaged over all rows."""
    size = check_rows("validation data", data)
    batch_size = min(batch_size, size)
    num_whole = size // batch_size
    whole = jax.tree.map(
        lambda rows: jnp.asarray(rows[: num_whole * batch_size]).reshape(num_whole, batch_size, *np.shape(rows)[1:]),
        data,
    )
    rest = jax.tree.map(lambda rows: jnp.asarray(rows[num_whole * batch_size :]), data)

    def loss(values: PyTree, key: Array, batch: PyTree) -> Array:
        return svi.loss.loss(key, values, svi.model, svi.guide, batch, size, **svi.static_kwargs)

    @jax.jit
    def average(values: PyTree, key: Array, whole: PyTree, rest: PyTree) -> Array:
        # The model scales a batch up to all rows: the average over rows weighs each batch by its share of them.
        keys = jax.random.split(key, num_whole + 1)
        per_batch = jax.lax.map(lambda x: loss(values, *x), (keys[:-1], whole))
        total = per_batch.mean() * (num_whole * batch_size)
        if num_whole * batch_size < size:
            total = total + loss(values, keys[-1], rest) * (size - num_whole * batch_size)
        return total / size**2

    return lambda values, key: average(values, key, whole, rest)
