r"""The learned distribution of the data: the reverse chain's p(x^0) = integral of p(x^{0:T}) over x^{1:T}  (Eq. 6).

A prior: it draws exactly and composes with any likelihood, but it has no density that could be computed. What there is
are *named estimates* of log p(x^0), the ``estimator``, whose randomness is a key that the distribution carries. The
answer depends on who asks for ``log_prob``:

    an ELBO, of an observed site        the estimate, ``RandomStep()`` unless another is named: a bound of a bound
    MCMC or a joint density             nothing for a latent site, nor for an observed one that may depend on a latent
                                        site: exp(bound) is another target than the posterior. A constant otherwise
    the user, ``log_likelihood``        the estimate that is named; without one, an error

It is decided when the model is traced, by who stands on Python's stack (:func:`._compat.numpyro.asking`), so that no
wrapper of NumPyro hides a diffusion. The engines of :mod:`numpyro_diffusion.infer` use the chain, and no density.

What was measured once of a prior's network, the covariance C_t of its errors, goes with the prior (``with_errors``)
into every model and file. Draws and estimates do not look at it.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpyro.distributions as dist

from ._checks import expected, is_concrete
from ._compat.numpyro import Asker, asking
from ._dependence import mixed_with_latent
from ._typing import Array, ArrayLike, Shape
from .chains.base import ARRAY, ChainDistribution, check_context
from .chains.keys import key_from_context, require_key
from .chains.respacing import chosen_levels
from .chains.reverse import ReverseChain
from .estimates import AsDensity, Estimator, RandomStep
from .guidance import ErrorCovariance
from .guidance.base import check_real
from .kernels import Kernel
from .transition import Transition

__all__ = ["Diffusion"]

_AS_DENSITY = "estimator=AsDensity(...) takes the bound for the density, and targets exp(bound)."


class Diffusion(ChainDistribution):
    """A diffusion probabilistic model as a distribution over data.

    ``batch_shape`` is the context's, ``event_shape`` the transition's.

    Args:
        kernel: one step.
        transition: the learned network, from ``haiku_module`` or :class:`Transition`.
        context: None, or shape (batch..., context event...), for a conditional transition.
        estimator: what ``log_prob`` computes, in nats: ``RandomStep()`` (training), ``AllSteps()`` (the bound K),
            ``ImportanceWeighted(N)``; any hashable callable of the same form. None: a prior, without ``log_prob`` but
            in training.
        rng_key: the estimate's randomness. By default drawn from the model's seed, fresh at every step of SVI.

    Raises:
        ValueError: by ``log_prob``, where it would be taken for a density, see the module's text; without an
            ``estimator``; without a key.

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
    pytree_data_fields: tuple[str, ...] = ("transition", "context", "rng_key", "errors")
    pytree_aux_fields = ("estimator",)

    errors: ErrorCovariance | None = None

    def __init__(
        self,
        kernel: Kernel,
        transition: Transition,
        *,
        context: ArrayLike | None = None,
        estimator: Estimator | None = None,
        rng_key: jax.Array | None = None,
        validate_args: bool | None = None,
    ) -> None:
        batch_shape = check_context(transition, context)
        self.transition = transition
        self.context = context
        self.estimator = estimator
        self.rng_key = key_from_context(rng_key)
        super().__init__(kernel, batch_shape, transition.event_shape, validate_args=validate_args)

    @property
    def chain(self) -> ReverseChain:
        """The distribution of the whole trajectory x^{0:T}, exact density included."""
        chain = ReverseChain(self.kernel, self.transition, context=self.context)
        return chain.expand(self.batch_shape)

    def with_errors(self, errors: ErrorCovariance | None) -> "Diffusion":
        """The same distribution, which carries the covariance C_t of its network's errors as ``errors``.

        The engines that guide by C_t find it there. Draws and estimates are those without it.

        Args:
            errors: from ``guidance.error_covariance(rng_key, prior.chain)``: T covariances of the d numbers of one
                state, in the units of the chain's states. None carries none.

        Raises:
            TypeError: for another object, or a kernel of discrete states.
            ValueError: for covariances of another number of steps or of coordinates.

        >>> import numpyro_diffusion as nd
        >>> kernel = nd.GaussianKernel(nd.schedules.log_snr(20), variance="upper", parameterization="x0")
        >>> prior = Diffusion(kernel, Transition(lambda params, x_t, t, context: 0.5 * x_t, None, event_shape=(2,)))
        >>> errors = nd.guidance.error_covariance(jax.random.key(0), prior.chain, num_draws=100)
        >>> prior.with_errors(errors).errors.diagonal.shape
        (20, 2)
        """
        if errors is not None:
            self._check_errors(errors)
        carrying = copy.copy(self)
        carrying.errors = errors
        return carrying

    def respaced(self, num_steps: int | None = None, *, levels: Sequence[int] | None = None) -> "Diffusion":
        """The prior of the same network that visits some of the levels of noise: fewer calls, another model.

        Its chain is that of :meth:`.ReverseChain.respaced`, and its bound is its own: compare ``evaluation.bound`` of
        both. The covariance of the network's errors goes along, each level's.

        Args:
            num_steps: K <= T.
            levels: in place of that, K rising integers out of 1..T, the last of them T.

        Raises:
            TypeError, ValueError: as :meth:`.ReverseChain.respaced`.

        >>> import numpyro_diffusion as nd
        >>> kernel = nd.GaussianKernel(nd.schedules.log_snr(100), variance="upper")
        >>> prior = Diffusion(kernel, Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(2,)))
        >>> prior.respaced(25).kernel.num_steps
        25
        """
        levels = chosen_levels(self, num_steps, levels)
        if len(levels) == self.kernel.num_steps:
            return self
        respaced = copy.copy(self)
        respaced.kernel, respaced.transition = self.kernel.at_levels(levels), self.transition.at_levels(levels)
        respaced.errors = None if self.errors is None else self.errors.at_levels(levels)
        return respaced

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        asker = asking()
        log_prob = ChainDistribution.log_prob(self._answering(asker, value), value)
        is_density = isinstance(self.estimator, AsDensity)
        return log_prob if asker is None or asker.mark is None or is_density else log_prob + asker.mark

    def _check_errors(self, errors: ErrorCovariance) -> None:
        check_real(self.kernel, "with_errors", "Bits have no covariance of this kind.")
        if not isinstance(errors, ErrorCovariance):
            raise TypeError(expected("an ErrorCovariance", repr(errors), "Use guidance.error_covariance."))
        size = math.prod(self.event_shape)
        if errors.diagonal.shape != (self.kernel.num_steps, size):
            wanted = f"covariances of T = {self.kernel.num_steps} steps and d = {size} coordinates"
            got = "T = {} and d = {}".format(*errors.diagonal.shape)
            raise ValueError(
                expected(wanted, got, "Compute them anew: guidance.error_covariance(rng_key, prior.chain).")
            )

    def _sample(self, key: jax.Array, batch_shape: Shape) -> Array:
        return self.chain.expand(batch_shape).sample_last(key)

    def _log_prob(self, value: Array, batch_shape: Shape) -> Array:
        key = require_key(self.rng_key, f"log_prob of Diffusion, the random estimate {self.estimator}")
        estimator: Any = self.estimator
        return estimator(key, self.chain, value)

    def _answering(self, asker: Asker | None, value: ArrayLike) -> "Diffusion":
        """The same diffusion with the estimate that is to be the answer.

        Raises:
            ValueError: if there must be none.
        """
        is_of_dependence = asker is not None and asker.purpose == "dependence"
        if isinstance(self.estimator, AsDensity) or is_of_dependence:
            return self._named(constant_key=is_of_dependence)
        if asker is None:
            return self._check_named()
        if asker.site is None:
            mixed = self._mixed(asker, value)
            if mixed is None:
                return self._check_named()
            required = "no log_prob of a Diffusion as a factor of a model with latent sites"
            raise ValueError(expected(required, mixed, f"It is a bound: make x a site of its own. {_AS_DENSITY}"))
        name = asker.site["name"]
        if not asker.site["is_observed"]:
            raise ValueError(
                expected(
                    f"a density at latent site {name!r}",
                    "a Diffusion, which has none: its log_prob is a random lower bound",
                    "Reparameterise the site with infer.DiffusionReparam, or draw it by infer.DiffusionHMC, "
                    f"TwistedSMC, DiffusionGibbs, EllipticalSlice or AutoDiffusionGuide. {_AS_DENSITY}",
                )
            )
        mixed = self._mixed(asker, value) if asker.purpose == "density" else None
        if mixed is not None:
            raise ValueError(depends_on_latent(name, mixed))
        if asker.purpose == "log_likelihood":
            return self._check_named()
        if asker.answered is not None:
            asker.answered.append(self)
        return self._named(some_key=asker.purpose != "elbo")

    def _mixed(self, asker: Asker, value: ArrayLike) -> str | None:
        """Which density may mix this estimate with a latent site, in words."""
        site: Any = asker.site or {}
        if asker.run_again is not None:
            return mixed_with_latent(site.get("name"), asker.run_again)
        is_known = is_concrete(_numbers([self, value, *(site.get(part) for part in ("fn", "value", "scale"))]))
        return None if is_known else "one made of traced arrays, which may be its values"

    def _named(self, *, some_key: bool = True, constant_key: bool = False) -> "Diffusion":
        """With the default estimate if there is none; with a key if it has none, where its number does not matter."""
        if self.estimator is not None and not constant_key:
            return self
        named = copy.copy(self)
        named.estimator = self.estimator or RandomStep()
        if constant_key or (some_key and self.rng_key is None):
            named.rng_key = jax.random.key(0)
        return named

    def _check_named(self) -> "Diffusion":
        if self.estimator is None:
            raise ValueError(has_no_name("log_prob of Diffusion"))
        return self


def has_no_name(what: str) -> str:
    """The error of a prior that is asked for its density."""
    return expected(
        f"a named estimate of log p(x^0) for {what}",
        "estimator=None, a prior: it draws and composes, and has no density",
        "Pass estimator=RandomStep(), AllSteps(), ImportanceWeighted(N) or evaluation.ProbabilityFlow(), and rng_key; "
        "or score data by evaluation.bound or evaluation.importance_weighted. An observed site in training needs none.",
    )


def depends_on_latent(name: str, got: str) -> str:
    """The error of an observed diffusion whose density would have to be that of a posterior."""
    return expected(
        f"an observed Diffusion at site {name!r} that depends on no latent site",
        got,
        "Its log_prob is a bound. Make the path a latent site instead, which is exact: for real states "
        f"reparam(model, config={{{name!r}: infer.ObservedDiffusionReparam()}}); for any chain = "
        "ReverseChain(kernel, transition, context=context, stop=1); path = numpyro.sample('path', chain); and observe "
        "chain.conditional(x_1, 1), x_1 being the path's first state. What depends on no latent site compute outside "
        f"of the model. {_AS_DENSITY}",
    )


def _numbers(tree: Any) -> list[Any]:
    """The arrays in a tree of distributions, keys of estimates aside: these carry no other site's value.

    All that a distribution holds, for one that is written by a user may declare no fields to JAX.
    """
    if isinstance(tree, Diffusion):
        tree = tree.kernel, tree.transition, tree.context
    elif isinstance(tree, dist.Distribution):
        tree = list(vars(tree).values())
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, dist.Distribution))
    nested = (_numbers(leaf) if isinstance(leaf, dist.Distribution) else [leaf] for leaf in leaves)
    return [number for numbers in nested for number in numbers if hasattr(number, "dtype")]
