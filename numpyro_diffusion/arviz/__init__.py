"""Results of any engine as ArviZ has them."""

from .convert import to_arviz

__all__ = ["to_arviz"]
