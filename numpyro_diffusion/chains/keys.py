"""Where a distribution with a randomised log_prob gets its key: given, or from the model it is built in."""

import jax
import numpyro

from .._checks import expected
from .._compat.numpyro import is_in_handler

__all__ = ["key_from_context", "require_key"]


def key_from_context(rng_key: jax.Array | None) -> jax.Array | None:
    """The given key, else a fresh one from the enclosing ``seed`` handler, else None.

    A NumPyro model under SVI is seeded anew at every step, so that a distribution built inside it estimates with fresh
    noise. One fixed key in training would let the network learn the noise by heart.
    """
    if rng_key is None and is_in_handler():  # outside a model numpyro.prng_key() would warn
        return numpyro.prng_key()
    return rng_key


def require_key(rng_key: jax.Array | None, what: str, hint: str = "") -> jax.Array:
    """The key, or an error that says how to give one.

    Raises:
        ValueError: if there is none.
    """
    if rng_key is None:
        raise ValueError(
            expected(
                f"a random key for {what}",
                "None",
                "Pass rng_key=jax.random.key(0) to the distribution, or build it inside a model under "
                f"numpyro.handlers.seed (SVI does so). {hint}".rstrip(),
            )
        )
    return rng_key
