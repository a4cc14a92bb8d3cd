"""Inference with diffusion sites, and by diffusion. What trains a network is imported when it is first asked for."""

import importlib
from typing import TYPE_CHECKING, Any

from ..model.observed_reparam import ObservedDiffusionReparam
from ..model.reparam import DiffusionReparam
from ..noise.importance import ImportanceResult
from ..particles.twists.base import NoTwist, Twist
from ..particles.twists.linear_gaussian import LinearGaussian
from ..particles.twists.tempered import Tempered
from .checklist import Checklist
from .checks import check
from .entries import observe_entries
from .gibbs import DiffusionGibbs, DiffusionGibbsState
from .guide import AutoDiffusionGuide
from .hmc import DiffusionHMC, DiffusionHMCState
from .slice import EllipticalSlice, EllipticalSliceState
from .smc import TwistedSMC
from .tempered import TemperedSMC

if TYPE_CHECKING:
    from .amortized import (
        AmortizedLikelihood,
        AmortizedPosterior,
        ConditionedPosterior,
        ConditionedPosteriors,
        Corrected,
        CorrectedPosteriors,
    )

__all__ = [
    "AmortizedLikelihood",
    "AmortizedPosterior",
    "AutoDiffusionGuide",
    "Checklist",
    "ConditionedPosterior",
    "ConditionedPosteriors",
    "Corrected",
    "CorrectedPosteriors",
    "DiffusionGibbs",
    "DiffusionGibbsState",
    "DiffusionHMC",
    "DiffusionHMCState",
    "DiffusionReparam",
    "EllipticalSlice",
    "EllipticalSliceState",
    "ImportanceResult",
    "LinearGaussian",
    "NoTwist",
    "ObservedDiffusionReparam",
    "Tempered",
    "TemperedSMC",
    "Twist",
    "TwistedSMC",
    "check",
    "observe_entries",
]

_NAMES_ON_REQUEST = (
    "AmortizedLikelihood",
    "AmortizedPosterior",
    "ConditionedPosterior",
    "ConditionedPosteriors",
    "Corrected",
    "CorrectedPosteriors",
)


def __getattr__(name: str) -> Any:
    if name not in _NAMES_ON_REQUEST:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(".amortized", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
