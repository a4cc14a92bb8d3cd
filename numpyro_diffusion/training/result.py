"""What training returns."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpyro

from .._checks import expected
from .._typing import ArrayLike, PyTree
from ..diffusion import Diffusion

__all__ = ["FitResult"]


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
    ) -> Diffusion:
        """The trained diffusion at a sample site, parameters bound, free of plates: a prior for another model.

        Args:
            site: its name in the trained model.
            context: for a conditional diffusion, what it is to be conditioned on, shape (batch..., context...).
            rng_key: for its ``log_prob``, the random estimate; key 0 by default, so that the number is repeatable.

        Raises:
            KeyError: if the model has no such site.
            TypeError: if the site is no diffusion.
            ValueError: if a context is missing, not wanted, or of another shape than the transition's.
        """
        model = numpyro.handlers.substitute(self.model, data={**self.params, **(self.mutable_state or {})})
        with numpyro.handlers.block():  # the caller may be another model
            sites = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace(self.example, self.size)
        names = [name for name, entry in sites.items() if entry["type"] == "sample"]
        if site not in names:
            raise KeyError(expected(f"a sample site of the model, one of {names}", repr(site), "Choose one of them."))
        law = sites[site]["fn"]
        while not isinstance(law, Diffusion) and hasattr(law, "base_dist"):
            law = law.base_dist
        if not isinstance(law, Diffusion):
            raise TypeError(
                expected(
                    f"a Diffusion at site {site!r}", type(law).__name__, "Only diffusions are taken out of a model."
                )
            )
        key = jax.random.key(0) if rng_key is None else rng_key
        return Diffusion(law.kernel, law.transition, context=context, rng_key=key)
