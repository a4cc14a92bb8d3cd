"""What training returns, and what it raises with it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from .._checks import expected
from .._compat.numpyro import eval_provenance
from .._typing import ArrayLike, PyTree
from ..chains.base import check_context
from ..diffusion import Diffusion
from ..model.trace import trace_model
from ..wrappers import find_diffusions

__all__ = ["DivergenceError", "FitResult"]


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What :func:`fit` learned.

    Attributes:
        params: the values of all ``param`` sites by name: averaged, if ``ema_decay`` was given; those with the best
            validation loss, if ``validation`` was.
        losses: the loss of every step in nats per row of data, shape (num_steps,), shorter after an early stop.
        mutable_state: the values of ``mutable`` sites, or None.
        model: the trained model.
        example: one row of data, to trace the model with.
        size: rows of data.
        validation_steps: after how many steps the validation loss was taken; empty without validation.
        validation_losses: in nats per row, one for each of them.
    """

    params: dict[str, PyTree]
    losses: np.ndarray
    mutable_state: PyTree
    model: Callable[..., Any]
    example: PyTree
    size: int
    validation_steps: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))
    validation_losses: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))

    def distribution(
        self, site: str, *, context: ArrayLike | None = None, rng_key: jax.Array | None = None
    ) -> dist.Distribution:
        """The trained diffusion at a sample site, parameters bound, free of plates: a prior for another model.

        Transforms around the diffusion stay, so that draws are in the units of the data. So does what ``to_event`` made
        one event. A mask goes: it belongs to the rows of training.

        Args:
            site: its name in the trained model.
            context: for a conditional diffusion, what it is to be conditioned on, shape (batch..., context...).
            rng_key: for its ``log_prob``, the random estimate; key 0 by default, so that the number is repeatable.

        Returns:
            A ``Diffusion``; or a ``TransformedDistribution`` or ``Independent`` around one, as in the trained model.

        Raises:
            KeyError: if the model has no such site.
            TypeError: if the site is no diffusion, or one among several in a mixture.
            ValueError: if a context is missing, not wanted, or of another shape than the transition's; if a transform
                is not the same for all rows.
        """
        sites = self._trace(self.example)
        names = [name for name, entry in sites.items() if entry["type"] == "sample"]
        if site not in names:
            raise KeyError(expected(f"a sample site of the model, one of {names}", repr(site), "Choose one of them."))
        varying = eval_provenance(lambda rows: _transforms(self._trace(rows)[site]["fn"]), rows=self.example)
        if any(jax.tree.leaves(varying, is_leaf=lambda leaf: isinstance(leaf, frozenset))):
            raise ValueError(
                expected(
                    f"transforms at site {site!r} that are the same for all rows",
                    "ones that depend on the batch",
                    "Compute their parameters from all data, outside of the model.",
                )
            )
        bound = _of_one_row(site, sites[site]["fn"], context, jax.random.key(0) if rng_key is None else rng_key)
        batch_shape = check_context(find_diffusions(bound)[0].transition, context)
        if bound.batch_shape != batch_shape[: len(bound.batch_shape)]:
            raise ValueError(
                expected(
                    f"transforms at site {site!r} that keep batch shape {batch_shape}",
                    f"ones that make it {bound.batch_shape}",
                    "Give their parameters no leading dimensions.",
                )
            )
        return bound

    def _trace(self, rows: PyTree) -> dict[str, dict]:
        model = numpyro.handlers.substitute(self.model, data={**self.params, **(self.mutable_state or {})})
        return trace_model(model, (rows, self.size))


class DivergenceError(FloatingPointError):
    """A run whose loss is not finite, or ends far above where it was.

    Attributes:
        result: what was reached, with all losses. Its parameters are those of the best validation loss, if there was
            one that is finite; else the last for which the loss was finite.
    """

    def __init__(self, message: str, result: FitResult) -> None:
        super().__init__(message)
        self.result = result


def _transforms(fn: dist.Distribution) -> list[Any]:
    """The parameters of all transforms around a distribution."""
    inner = getattr(fn, "base_dist", None)
    return [*jax.tree.leaves(getattr(fn, "transforms", [])), *(_transforms(inner) if inner is not None else [])]


def _of_one_row(site: str, fn: dist.Distribution, context: ArrayLike | None, key: jax.Array) -> dist.Distribution:
    """The distribution of one row of data, with a context of its own, from that of a batch."""
    if isinstance(fn, Diffusion):
        return Diffusion(fn.kernel, fn.transition, context=context, rng_key=key)
    if isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution):
        return _of_one_row(site, fn.base_dist, context, key)
    if isinstance(fn, dist.Independent):
        count = fn.reinterpreted_batch_ndims
        base = _of_one_row(site, fn.base_dist, context, key)
        repeated = fn.base_dist.batch_shape[len(fn.base_dist.batch_shape) - count :]
        return base.expand(jnp.broadcast_shapes(base.batch_shape, repeated)).to_event(count)
    if isinstance(fn, dist.TransformedDistribution):
        return dist.TransformedDistribution(_of_one_row(site, fn.base_dist, context, key), fn.transforms)
    raise TypeError(
        expected(
            f"a Diffusion at site {site!r}, alone or transformed",
            type(fn).__name__,
            "Only diffusions are taken out of a model.",
        )
    )
