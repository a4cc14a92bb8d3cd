"""Diffusion probabilistic models as NumPyro distributions.

What a model in use needs is imported with the package; what is done before and after (data, evaluation, files,
pictures) when it is first asked for, which keeps the import short.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import analytic, bridges, infer, networks, pretrained, schedules, transforms
from .bridges import eqx_module, nnx_module
from .chains import ForwardChain, ReverseChain
from .diffusion import Diffusion
from .estimates import AllSteps, AsDensity, ImportanceWeighted, RandomStep, paper_bound
from .guidance import GaussianFactor, MomentMatching, PaperTilt, ReconstructionGuidance, TiltedChain
from .kernels import BernoulliKernel, CategoricalKernel, GaussianKernel, Kernel
from .modules import haiku_module, learned_schedule, random_haiku_module, update_state
from .schedules import Schedule
from .training import Validation, fit
from .transition import Transition

if TYPE_CHECKING:
    from . import datasets, evaluation, learning, plots
    from .arviz import to_arviz
    from .io import load, save
    from .learning import learn_prior

__all__ = [
    "AllSteps",
    "AsDensity",
    "BernoulliKernel",
    "CategoricalKernel",
    "Diffusion",
    "ForwardChain",
    "GaussianFactor",
    "GaussianKernel",
    "ImportanceWeighted",
    "Kernel",
    "MomentMatching",
    "PaperTilt",
    "RandomStep",
    "ReconstructionGuidance",
    "ReverseChain",
    "Schedule",
    "TiltedChain",
    "Transition",
    "Validation",
    "analytic",
    "bridges",
    "datasets",
    "eqx_module",
    "evaluation",
    "fit",
    "haiku_module",
    "infer",
    "learn_prior",
    "learned_schedule",
    "learning",
    "load",
    "networks",
    "nnx_module",
    "paper_bound",
    "plots",
    "pretrained",
    "random_haiku_module",
    "save",
    "schedules",
    "to_arviz",
    "transforms",
    "update_state",
]

_MODULES_ON_REQUEST = ("datasets", "evaluation", "learning", "plots")
_NAMES_ON_REQUEST = {"learn_prior": "learning", "load": "io", "save": "io", "to_arviz": "arviz"}


def __getattr__(name: str) -> Any:
    if name in _MODULES_ON_REQUEST:
        return importlib.import_module(f".{name}", __name__)
    if name in _NAMES_ON_REQUEST:
        globals()[name] = value = getattr(importlib.import_module(f".{_NAMES_ON_REQUEST[name]}", __name__), name)
        return value
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("numpyro-diffusion")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
