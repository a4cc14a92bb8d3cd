"""Train by NumPyro's SVI on minibatches: compiled once, run in chunks, nothing read back at each step.

``plate(subsample_size=...)`` that indexes the data shuffles all of it at every step, and ``svi.run`` compiles
at every call. So :func:`fit` draws its own batches (indices with replacement, on the device) and hands them to
the model, and steps run in compiled chunks. Any model and guide will do; a model of one diffusion needs no
guide, because ``Diffusion.log_prob`` is itself a bound.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from numpyro.infer import SVI, Trace_ELBO

from ._checks import check_integer_at_least, expected
from ._typing import PyTree
from .diffusion import Diffusion

__all__ = ["FitResult", "fit"]

_CHUNK = 100  # steps between two looks at the loss: a few tenths of a second for small networks


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What :func:`fit` learned.

    Attributes:
        params: the values of all ``param`` sites by name (averaged, if ``ema_decay`` was given).
        losses: the loss of every step in nats per row of data, shape (num_steps,).
        mutable_state: the values of ``mutable`` sites, or None.
        model: the trained model.
        example: one row of data, to trace the model with.
        size: rows of data.
    """

    params: dict[str, PyTree]
    losses: np.ndarray
    mutable_state: PyTree
    model: Callable[..., Any]
    example: PyTree
    size: int

    def distribution(self, site: str, *, rng_key: jax.Array | None = None) -> Diffusion:
        """The trained diffusion at a sample site, parameters bound, free of plates: a prior for another model.

        Args:
            site: its name in the trained model.
            rng_key: for its ``log_prob``, the random estimate; key 0 by default, so that the number is repeatable.

        Raises:
            KeyError: if the model has no such site.
            TypeError: if the site is no diffusion, or a conditional one, whose context only the caller knows.
        """
        model = numpyro.handlers.substitute(self.model, data={**self.params, **(self.mutable_state or {})})
        sites = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace(self.example, self.size)
        names = [name for name, entry in sites.items() if entry["type"] == "sample"]
        if site not in names:
            raise KeyError(expected(f"a sample site of the model, one of {names}", repr(site), "Choose one of them."))
        law = sites[site]["fn"]
        while not isinstance(law, Diffusion) and hasattr(law, "base_dist"):
            law = law.base_dist
        if not isinstance(law, Diffusion) or law.context is not None:
            raise TypeError(
                expected(
                    f"an unconditional Diffusion at site {site!r}",
                    "a conditional one" if isinstance(law, Diffusion) else type(law).__name__,
                    "Build Diffusion(kernel, transition, context=...) with the parameters in .params.",
                )
            )
        key = jax.random.key(0) if rng_key is None else rng_key
        return Diffusion(law.kernel, law.transition, estimator=law.estimator, rng_key=key)


def fit(
    model: Callable[..., Any],
    data: PyTree,
    *,
    optimizer: Any,
    num_steps: int,
    batch_size: int,
    key: jax.Array,
    guide: Callable[..., Any] | None = None,
    loss: Any = None,
    ema_decay: float | None = None,
    progress_bar: bool = True,
) -> FitResult:
    """Train all ``param`` sites of a model by SVI on random minibatches.

    Args:
        model: called as ``model(batch, size)``: the batch with ``batch_size`` rows, and the number of rows of all
            the data, for ``numpyro.plate("data", size, subsample_size=batch_size)``.
        data: an array or a pytree of arrays with equal first dimensions, the rows.
        optimizer: an optax optimiser, or one of NumPyro's.
        num_steps: how many.
        batch_size: rows in a batch, drawn with replacement.
        key: JAX random key; the same key gives the same parameters.
        guide: called as the model is; none for a model without latent sites.
        loss: a NumPyro ELBO; ``Trace_ELBO()`` by default.
        ema_decay: in (0, 1): return an exponential moving average of the parameters with this decay.
        progress_bar: show steps and the loss in bits per row.

    Returns:
        The trained parameters and the losses.

    Raises:
        ValueError: for empty data, rows that do not match, a batch larger than the data, or a decay outside (0, 1).
        FloatingPointError: when the loss is no longer finite; names the step.
    """
    size = _check_data(data)
    check_integer_at_least("num_steps", num_steps, 1, "Pass the number of SVI steps.")
    check_integer_at_least("batch_size", batch_size, 1, "Pass the number of rows in a batch.")
    if batch_size > size:
        raise ValueError(expected(f"batch_size <= {size}, the rows of data", batch_size, "Lower it."))
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ValueError(expected("ema_decay in (0, 1)", ema_decay, "0.999 averages about the last 1000 steps."))
    svi = SVI(model, guide or _empty_guide, optimizer, loss or Trace_ELBO())
    key_init, key_steps = jax.random.split(key)
    data = jax.tree.map(jnp.asarray, data)
    state = svi.init(key_init, jax.tree.map(lambda rows: rows[:batch_size], data), size)
    carry = (state, svi.get_params(state))

    def step(carry: Any, index_and_key: Any, data: PyTree) -> tuple[Any, jax.Array]:
        state, average = carry
        index, key = index_and_key
        rows = jax.random.randint(key, (batch_size,), 0, size)
        state, value = svi.update(state, jax.tree.map(lambda array: array[rows], data), size)
        if ema_decay is not None:
            # The early average forgets its start: weight 1 on the first step, then the usual decay.
            weight = jnp.maximum(1 - ema_decay, 9 / (10.0 + index))
            average = optax.incremental_update(svi.get_params(state), average, weight)
        return (state, average), value / size

    @jax.jit
    def chunk(carry: Any, data: PyTree, start: jax.Array) -> tuple[Any, jax.Array]:
        index = start + jnp.arange(_CHUNK)
        keys = jax.vmap(lambda i: jax.random.fold_in(key_steps, i))(index)
        live = index < num_steps

        def guarded(carry: Any, xs: Any) -> tuple[Any, jax.Array]:
            is_live, *index_and_key = xs
            return jax.lax.cond(is_live, lambda c: step(c, index_and_key, data), lambda c: (c, jnp.zeros(())), carry)

        return jax.lax.scan(guarded, carry, (live, index, keys))

    losses: list[np.ndarray] = []
    with _progress(num_steps, progress_bar) as bar:
        for start in range(0, num_steps, _CHUNK):
            carry, values = chunk(carry, data, start)
            losses.append(np.asarray(values)[: num_steps - start])
            _check_losses(losses[-1], start)
            bar.update(len(losses[-1]))
            bar.set_postfix_str(f"loss {losses[-1].mean() / np.log(2):.3f} bits")
    state, average = carry
    params = svi.get_params(state) if ema_decay is None else average
    example = jax.tree.map(lambda rows: rows[:1], data)
    return FitResult(params, np.concatenate(losses), state.mutable_state, model, example, size)


def _empty_guide(*args: Any, **kwargs: Any) -> None:
    """The guide of a model whose sites are all observed."""


def _check_data(data: PyTree) -> int:
    """The number of rows."""
    shapes = {np.shape(leaf) for leaf in jax.tree.leaves(data)}
    if not shapes or any(len(shape) == 0 or 0 in shape for shape in shapes):
        raise ValueError(expected("data with at least one row", sorted(shapes), "Pass an array of rows, or a pytree."))
    sizes = {shape[0] for shape in shapes}
    if len(sizes) > 1:
        raise ValueError(expected("arrays with equal first dimensions", sorted(shapes), "The first axis counts rows."))
    return sizes.pop()


def _check_losses(losses: np.ndarray, start: int) -> None:
    if not np.isfinite(losses).all():
        index = int(np.argmin(np.isfinite(losses)))
        raise FloatingPointError(
            expected(
                "a finite loss",
                f"{losses[index]} at step {start + index}",
                "Check the data for NaN, lower the learning rate, or clip gradients with optax.clip_by_global_norm.",
            )
        )


def _progress(num_steps: int, visible: bool) -> Any:
    from tqdm.auto import tqdm  # NumPyro's own dependency; slow to import

    return tqdm(total=num_steps, disable=not visible, desc="SVI", unit="step")
