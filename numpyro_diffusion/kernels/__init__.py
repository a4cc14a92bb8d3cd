"""One step of a diffusion: what is added and how it is taken back."""

from .base import Kernel
from .bernoulli import BernoulliKernel
from .categorical import CategoricalKernel
from .gaussian import GaussianKernel

__all__ = ["BernoulliKernel", "CategoricalKernel", "GaussianKernel", "Kernel"]
