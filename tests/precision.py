"""Double precision in a ``with`` block, on every supported JAX."""

import jax

try:
    enable_x64 = jax.enable_x64
except AttributeError:  # before it moved out of jax.experimental
    from jax.experimental import enable_x64

__all__ = ["enable_x64"]
