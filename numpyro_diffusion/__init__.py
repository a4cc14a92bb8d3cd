"""Diffusion probabilistic models as NumPyro distributions."""

from . import infer, schedules
from .chains import AllSteps, ForwardChain, ImportanceWeighted, RandomStep, ReverseChain, paper_bound
from .diffusion import Diffusion
from .kernels import BernoulliKernel, GaussianKernel, Kernel
from .transition import Transition
