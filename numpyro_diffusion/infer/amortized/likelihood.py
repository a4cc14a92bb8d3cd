r"""A likelihood that is learned from draws of a simulator: q(y | theta), a distribution to put into a model.

The roles of :mod:`.amortized` are turned. With u the coordinates of theta, v those of y (the bijection of its support),

    v = a + B f(u) + L x,     x ~ the chain given u,

so that q(y | theta) is a transformed ``Diffusion`` whose context, and a + B f(u) with it, are functions of theta. Any
prior may stand before it, and what is known of several data sets is a plate.

It draws exactly. A density that could be computed it has none, like any diffusion, and what a sampler may take in its
place is the user's choice:

    ObservedDiffusionReparam        exact for q, whatever was learned, by noises beside theta; also the evidence's
    AsDensity(ProbabilityFlow())    the density of the flow of the same network, another law than q, and a bound of it
    AsDensity(ImportanceWeighted)   a noisy bound, frozen

What no choice corrects is q itself: where q is not p, the posterior is that of q.

References: Papamakarios, Sterratt, Murray 2019 (a density learned in place of a likelihood).
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import transforms

from ..._checks import check_trailing_shape, expected, is_concrete
from ..._typing import Array, ArrayLike, Shape
from ...diffusion import Diffusion
from ...estimates import Estimator
from ...model.simulated_sites import LatentSite, ObservedSite
from ...model.simulator import Simulator
from .base import Amortized
from .coordinates import in_a_row
from .parts import told
from .train import Roles, Simulations

__all__ = ["AmortizedLikelihood"]


class AmortizedLikelihood(Amortized):
    """A likelihood that is learned from a simulator's own draws, for the observed site of any model.

    Args:
        model: a NumPyro model that draws theta and then y, as for :class:`AmortizedPosterior`. What its prior seldom
            draws is seldom learned.
        observed: the name of the site that will be observed: real numbers, of one site.
        model_args: of the model, data left out.
        model_kwargs: of the model, data left out.
        embedding: what the network sees of theta: ``networks.VectorEmbedding()``, by default, or a Haiku function of
            the standardised coordinates of theta, by site, with a leading axis of rows.
        num_steps: T of the chain.
        width: units of each layer of the network that draws.
        depth: its hidden layers.

    Raises:
        TypeError: for an observed site that is not of real numbers; as :class:`AmortizedPosterior`.
        ValueError: for several observed sites, one behind a mask or of a support that depends on theta.

    >>> import numpyro
    >>> from numpyro_diffusion.infer import AmortizedLikelihood, ObservedDiffusionReparam
    >>> def simulator():
    ...     theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    ...     noise = jax.random.gumbel(numpyro.prng_key(), (3,))
    ...     numpyro.deterministic("y", theta + 0.1 * noise)
    >>> amortized = AmortizedLikelihood(simulator, observed="y", num_steps=10, width=8, depth=1)
    >>> amortized = amortized.fit(jax.random.key(0), 1000, max_steps=20, progress_bar=False)
    >>> def model(y=None):
    ...     theta = numpyro.sample("theta", dist.Normal(0.0, 0.5))
    ...     numpyro.sample("y", amortized.likelihood(theta=theta), obs=y)
    >>> exact = numpyro.handlers.reparam(model, config={"y": ObservedDiffusionReparam()})
    >>> amortized.likelihood(theta=jnp.zeros(5)).shape()
    (5, 3)
    """

    def likelihood(
        self,
        values: Mapping[str, ArrayLike] | None = None,
        /,
        *,
        estimator: Estimator | None = None,
        rng_key: jax.Array | None = None,
        **sites: ArrayLike,
    ) -> dist.Distribution:
        """Q(y | theta), in the units of y.

        Args:
            values: by site; or as keywords.
            estimator: what its ``log_prob`` computes, see ``Diffusion``. None, by default: nothing.
            rng_key: of the estimate.
            **sites: values of all latent sites of the simulator, each of shape (batch..., site shape...).

        Returns:
            A transformed ``Diffusion`` with batch shape (batch...) and the event shape of y.

        Raises:
            RuntimeError: before ``fit``.
            ValueError: for sites that are missing, unknown or given twice, other shapes, or values outside of their
                supports.
        """
        plan, _ = self._trained()
        codes = self._codes(values, sites)
        (part,), (site,) = plan.parts, self._roles.drawn
        bound = part.bound_to(codes)
        diffusion = Diffusion(
            part.kernel, bound.part.transition, context=bound.embedded, estimator=estimator, rng_key=rng_key
        )
        affine: Any = part.affine
        offset = affine.apply(jnp.zeros((site.size,)), bound.features)
        steps: list[Any] = [transforms.LowerCholeskyAffine(offset, affine.scale_tril)]
        if site.unconstrained_shape != (site.size,):
            steps.append(transforms.ReshapeTransform(site.unconstrained_shape, (site.size,)))
        return dist.TransformedDistribution(diffusion, [*steps, site.transform])

    def share_farther(self, values: Mapping[str, ArrayLike] | None = None, /, **sites: ArrayLike) -> np.ndarray:
        """The share of simulations whose theta lies farther from the others than these, shape (batch...).

        A network knows nothing of what was not simulated: look at it for the draws of a posterior. Near 0 for many of
        them says that the simulator's prior has missed where the data point to.

        Args:
            values: by site; or as keywords.
            **sites: as for ``likelihood``.
        """
        _, neighbours = self._trained()
        return neighbours.share_farther(np.asarray(self._codes(values, sites)))

    def _roles_of(self, simulator: Simulator) -> Roles:
        if len(simulator.observed) != 1:
            cure = "Concatenate them to one site, or learn a likelihood of each."
            names = [site.name for site in simulator.observed]
            raise ValueError(expected("one observed site", names, cure))
        (y,) = simulator.observed_as_drawn()

        def of_simulations(simulations: Simulations) -> Simulations:
            unknowns, observed = simulations
            seen = {site.name: _seen(site, jnp.asarray(unknowns[site.name])) for site in simulator.latent}
            coordinates = jax.vmap(y.coordinates)(jnp.asarray(observed[y.name]))
            return jax.tree.map(np.asarray, ({y.name: coordinates}, seen))

        given = tuple(
            ObservedSite(site.name, _seen_shape(site), np.dtype(float), None, None) for site in simulator.latent
        )
        return Roles((y,), given, of_simulations)

    def _codes(self, theta: Mapping[str, ArrayLike] | None, more: Mapping[str, ArrayLike]) -> Array:
        """Of theta, shape (batch..., numbers)."""
        sites, values = self._simulator.latent, {**(theta or {}), **more}
        names = [site.name for site in sites]
        if sorted([*(theta or {}), *more]) != sorted(names):
            cure = "The likelihood is of all unknowns of the simulator together, each once."
            raise ValueError(expected(f"values of the sites {names}", sorted([*(theta or {}), *more]), cure))
        batches = [
            check_trailing_shape(f"site {site.name!r}", values[site.name], site.shape, "Batches go to the left.")
            for site in sites
        ]
        batch = jnp.broadcast_shapes(*batches)
        seen = {}
        for site in sites:
            value = jnp.broadcast_to(jnp.asarray(values[site.name]), batch + site.shape)
            flat = value.reshape((math.prod(batch), *site.shape))
            if is_concrete(flat) and not jax.vmap(site.contains)(flat).all():
                wanted, cure = f"values of site {site.name!r} in its support", "The simulator's prior excludes them."
                raise ValueError(expected(wanted, "others", cure))
            rows = jax.vmap(site.coordinates)(flat)
            seen[site.name] = _seen(site, rows).reshape((*batch, *_seen_shape(site)))
        return self._trained()[0].code(in_a_row(self._roles.given, seen))


def _seen(site: LatentSite, coordinates: Array) -> Array:
    """What the network sees of an unknown's coordinates, shape (rows, size): classes one-hot."""
    return coordinates if site.num_states is None else told(coordinates, site.num_states)


def _seen_shape(site: LatentSite) -> Shape:
    coordinates = jax.ShapeDtypeStruct((1, site.size), jnp.result_type(int if site.num_states else float))
    return jax.eval_shape(lambda u: _seen(site, u), coordinates).shape[1:]
