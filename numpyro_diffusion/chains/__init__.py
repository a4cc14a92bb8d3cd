"""Many steps: the forward chain, and the reverse chain that everything else is built on."""

from .forward import ForwardChain
from .reverse import ReverseChain

__all__ = ["ForwardChain", "ReverseChain"]
