"""Diffusion probabilistic models as NumPyro distributions."""

from . import analytic, datasets, evaluation, infer, learning, networks, plots, schedules, transforms
from .arviz import to_arviz
from .chains import ForwardChain, ReverseChain
from .diffusion import Diffusion
from .estimates import AllSteps, AsDensity, ImportanceWeighted, RandomStep, paper_bound
from .guidance import GaussianFactor, MomentMatching, PaperTilt, ReconstructionGuidance, TiltedChain
from .io import load, save
from .kernels import BernoulliKernel, CategoricalKernel, GaussianKernel, Kernel
from .learning import learn_prior
from .modules import haiku_module, learned_schedule, random_haiku_module, update_state
from .schedules import Schedule
from .training import Validation, fit
from .transition import Transition

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
    "datasets",
    "evaluation",
    "fit",
    "haiku_module",
    "infer",
    "learn_prior",
    "learned_schedule",
    "learning",
    "load",
    "networks",
    "paper_bound",
    "plots",
    "random_haiku_module",
    "save",
    "schedules",
    "to_arviz",
    "transforms",
    "update_state",
]
