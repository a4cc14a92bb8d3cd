"""Twists by name."""

from typing import Any

from ..._checks import expected
from .auto import Auto
from .base import NoTwist, Twist
from .custom import Custom
from .linear_gaussian import LinearGaussian
from .tempered import Tempered

__all__ = ["as_twist"]

_NAMED: dict[str, Twist] = {
    "auto": Auto(),
    "tempered": Tempered(),
    "gaussian": LinearGaussian(),
    "none": NoTwist(),
}


def as_twist(twist: Any) -> Twist:
    """A twist from its name, a function or itself.

    Raises:
        ValueError: for an unknown name.
        TypeError: for anything else.
    """
    if isinstance(twist, str):
        if twist not in _NAMED:
            raise ValueError(
                expected(f"a twist among {', '.join(_NAMED)}", repr(twist), "Choose one of these, or pass a function.")
            )
        return _NAMED[twist]
    if not isinstance(twist, type):  # a class has a Twist's attributes, and can be called
        if isinstance(twist, Twist):
            return twist
        if callable(twist):
            return Custom(twist)
    cure = "For example twist='tempered', or twist=Tempered(num_prior_draws=256): an object, not its class."
    raise TypeError(expected("a twist's name, a Twist or a function", repr(twist), cure))
