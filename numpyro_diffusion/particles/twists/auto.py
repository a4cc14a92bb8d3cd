"""The twist that is chosen for a model by what its likelihood is."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..._typing import Array
from ..steps import Step
from ..target import States, Target
from .base import Twist
from .linear_gaussian import LinearGaussian
from .tempered import Tempered

__all__ = ["Auto"]


@dataclasses.dataclass(frozen=True)
class Auto:
    """``"auto"``: the Gaussian twist where every site that depends on x is Normal, else the tempered one.

    The covariance of the Gaussian one is that of the networks' errors if every prior carries it
    (``prior.with_errors``), else by the secant, which asks for one pass back. States that are discrete take the
    tempered twist. Choosing looks at kinds and shapes alone, at no number.

    >>> Auto()  # TwistedSMC(model, twist="auto"); the summary says what was chosen
    Auto()
    """

    num_prior_draws = 64

    def chosen(self, target: Target) -> Twist:
        """The twist that this model gets."""
        if not _is_normal(target):
            return Tempered(self.num_prior_draws)
        carried = all(name in target.errors for name in target.chains)
        return LinearGaussian("errors" if carried else "secant", self.num_prior_draws)

    def num_passes_back(self, target: Target) -> int:
        return self.chosen(target).num_passes_back(target)

    def prepare(self, target: Target, prior_draws: States) -> Any:
        return self.chosen(target).prepare(target, prior_draws)

    def look(self, target: Target, constants: Any, x: States, step: Array) -> tuple[Array, Step]:
        return self.chosen(target).look(target, constants, x, step)


def _is_normal(target: Target) -> bool:
    """Whether every number that is seen is Normal given real states, and there is one."""
    if target.observe is None or any(target.is_discrete(name) for name in target.chains):
        return False
    x = {name: jax.ShapeDtypeStruct(shape, jnp.result_type(float)) for name, shape in target.shapes.items()}
    try:
        jax.eval_shape(target.observe, x)
    except (TypeError, ValueError):  # of another likelihood, or of none: what ``observe`` raises
        return False
    return True
