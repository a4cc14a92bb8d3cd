"""A bound taken for the density, because the user says so."""

import dataclasses

import jax

from .._typing import Array
from ..chains import ReverseChain
from .base import Estimator

__all__ = ["AsDensity"]


@dataclasses.dataclass(frozen=True)
class AsDensity:
    """An estimate whose exponential stands for the density p(x^0), wherever NumPyro wants one.

    A ``Diffusion`` refuses to be a latent site that NUTS moves by its ``log_prob``, and an observed site whose
    distribution depends on a latent one: its ``log_prob`` is a bound. With this estimator it does not refuse. What is
    sampled is then proportional to exp(estimate), not the posterior: as near to it as the bound is tight *everywhere*.
    Under MCMC the estimate's noise is frozen as well, for NumPyro gives such a model one constant key.

    Args:
        estimator: a named estimate of log p(x^0), for example ``ImportanceWeighted(64)``.

    >>> from numpyro_diffusion import Diffusion, GaussianKernel, ImportanceWeighted, Transition, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper")
    >>> standard_normal = Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=())
    >>> estimator = AsDensity(ImportanceWeighted(4))
    >>> x = Diffusion(kernel, standard_normal, estimator=estimator, rng_key=jax.random.key(0))
    >>> round(float(x.log_prob(0.0)), 3)
    -0.919
    """

    estimator: Estimator

    def __call__(self, rng_key: jax.Array, chain: ReverseChain, x_0: Array) -> Array:
        return self.estimator(rng_key, chain, x_0)
