"""One run of a NumPyro model, seen as its sites: whoever asks for the sites of a user's model asks here."""

from collections.abc import Callable, Mapping
from typing import Any

from jax.typing import ArrayLike
from numpyro.handlers import block, seed, substitute, trace

__all__ = ["trace_model"]


def trace_model(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any] | None = None,
    *,
    rng_key: ArrayLike | None = 0,
    fill: Callable[[dict], Any] = lambda site: None,
) -> dict[str, dict]:
    """The sites of one run, by name. Handlers around the caller, which may be another model, see nothing of it.

    Args:
        model: a NumPyro model.
        args: its arguments.
        kwargs: its keyword arguments.
        rng_key: a key, or a number for one; None where NumPyro is to see none.
        fill: called with each site before it is drawn; gives its value, or None.
    """
    with block():
        return trace(substitute(seed(model, rng_key), substitute_fn=fill)).get_trace(*args, **(kwargs or {}))
