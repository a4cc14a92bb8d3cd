r"""The learned law of the data: the reverse chain's p(x^0) = integral of p(x^{0:T}) over x^{1:T}  (Eq. 6).

Draws are exact. The density has no closed form: ``log_prob`` is a *named estimate* of log p(x^0), the
``estimator``, whose randomness is a key that the distribution carries. As an observed site that is what
training needs: the ELBO of a bound is a bound. As a *latent* site under HMC or NUTS it is the wrong target,
exp(bound): such a site warns, and the engines of :mod:`numpyro_diffusion.infer` use the chain itself instead.
"""

import warnings
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from numpyro.distributions import biject_to, constraints

from ._typing import Array, ArrayLike, Shape
from .chains.base import ARRAY, ChainDistribution, check_context
from .chains.keys import key_from_context, require_key
from .chains.reverse import ReverseChain
from .estimates.bounds import Estimator, RandomStep
from .kernels import Kernel
from .transition import Transition

__all__ = ["Diffusion"]


class Diffusion(ChainDistribution):
    """A diffusion probabilistic model as a distribution over data.

    ``batch_shape`` is the context's, ``event_shape`` the transition's.

    Args:
        kernel: one step.
        transition: the learned network, from ``haiku_module`` or :class:`Transition`.
        context: None, or shape (batch..., context event...), for a conditional transition.
        estimator: what ``log_prob`` computes, in nats: ``RandomStep()`` (training), ``AllSteps()`` (the bound K),
            ``ImportanceWeighted(N)``; any hashable callable of the same form.
        rng_key: the estimate's randomness. By default drawn from the model's seed, fresh at every step of SVI.

    >>> from numpyro_diffusion import GaussianKernel, ImportanceWeighted, Transition, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper")
    >>> standard_normal = Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=())
    >>> x = Diffusion(kernel, standard_normal, estimator=ImportanceWeighted(4), rng_key=jax.random.key(0))
    >>> round(float(x.log_prob(0.0)), 3), x.sample(jax.random.key(1), (3,)).shape
    (-0.919, (3,))

    References: Sohl-Dickstein et al. 2015, Section 2.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"context": ARRAY}
    reparametrized_params: ClassVar[list[str]] = ["context"]
    pytree_data_fields: tuple[str, ...] = ("transition", "context", "rng_key")
    pytree_aux_fields = ("estimator",)

    def __init__(
        self,
        kernel: Kernel,
        transition: Transition,
        *,
        context: ArrayLike | None = None,
        estimator: Estimator = RandomStep(),  # noqa: B008 - frozen and stateless
        rng_key: jax.Array | None = None,
        validate_args: bool | None = None,
    ) -> None:
        batch_shape = check_context(transition, context)
        self.transition = transition
        self.context = context
        self.estimator = estimator
        self.rng_key = key_from_context(rng_key)
        super().__init__(kernel, batch_shape, transition.event_shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        element = self.kernel.element_support if self.kernel.is_discrete else _EstimatedReal()
        return constraints.independent(element, len(self.event_shape))

    @property
    def chain(self) -> ReverseChain:
        """The law of the whole trajectory x^{0:T}, exact density included."""
        chain = ReverseChain(self.kernel, self.transition, context=self.context)
        return chain.expand(self.batch_shape)

    def _sample(self, key: jax.Array, batch_shape: Shape) -> Array:
        return self.chain.expand(batch_shape).sample_last(key)

    def _log_prob(self, value: Array, batch_shape: Shape) -> Array:
        key = require_key(
            self.rng_key,
            f"log_prob of Diffusion, the random estimate {self.estimator}",
            "If the site is latent and this is MCMC, use infer.DiffusionReparam instead.",
        )
        context = None if self.context is None else jnp.asarray(self.context)
        return self.estimator(self.kernel, self.transition, value, key, context)


class _EstimatedReal(type(constraints.real)):  # type: ignore[misc]
    """The reals, asked for a bijection only by engines that move a latent site by its density.

    A constraint of the single number, because that is what ``to_event`` keeps of a support.
    """


@biject_to.register(_EstimatedReal)
def _warn_and_biject(_: Any) -> Any:
    warnings.warn(
        "A latent Diffusion site is about to be sampled or approximated by its log_prob, which is a random lower "
        "bound and not a density: HMC and NUTS would target exp(bound), not the posterior. Reparameterise the site "
        "with numpyro_diffusion.infer.DiffusionReparam, which samples the chain itself.",
        stacklevel=2,
    )
    return biject_to(constraints.real)
