"""Every way in which NumPyro wraps a distribution, applied to a diffusion over numbers."""

import jax.numpy as jnp
import numpyro.distributions as dist
from closed_forms import affine_prior
from numpyro.distributions.transforms import AbsTransform, AffineTransform, ExpTransform, Transform

import numpyro_diffusion as nd

SCHEDULE = nd.schedules.log_snr(3, 0.3, 10.0)
PRIOR = affine_prior(SCHEDULE, [0.5])  # of (1,)
NUMBER = nd.Diffusion(PRIOR.kernel, nd.Transition(lambda params, x_t, t, context: 0 * x_t, None, ()))  # of ()
HALVES = dist.Categorical(jnp.ones(2) / 2)


class NoInverse(Transform):
    """A user's: x squared, and no word of how to go back."""

    def tree_flatten(self):
        return (), ((), {})

    def __call__(self, x):
        return x**2


# Seen through by the engines: these change shapes alone.
SHAPES = {
    "bare": lambda: PRIOR,
    "expand": lambda: PRIOR.expand((2,)),
    "ExpandedDistribution": lambda: dist.ExpandedDistribution(PRIOR, (2,)),
    "expand_by": lambda: PRIOR.expand_by((2,)),
    "Independent": lambda: PRIOR.expand((2,)).to_event(1),
    "Independent of ExpandedDistribution": lambda: dist.Independent(dist.ExpandedDistribution(PRIOR, (2,)), 1),
}

# Seen through as well: a function of the chain's state.
TRANSFORMED = {
    "TransformedDistribution": lambda: dist.TransformedDistribution(PRIOR, AffineTransform(100.0, 5.0)),
    "TransformedDistribution twice": lambda: dist.TransformedDistribution(
        dist.TransformedDistribution(PRIOR, AffineTransform(0.0, 2.0)), ExpTransform()
    ),
    "Independent of TransformedDistribution": lambda: dist.TransformedDistribution(
        PRIOR.expand((2,)), AffineTransform(100.0, 5.0)
    ).to_event(1),
    "TransformedDistribution of Independent": lambda: dist.TransformedDistribution(
        PRIOR.expand((2,)).to_event(1), AffineTransform(100.0, 5.0)
    ),
    "expand of TransformedDistribution": lambda: dist.TransformedDistribution(
        PRIOR.to_event(0), AffineTransform(100.0, 5.0)
    ).expand((2,)),
    "an affine transform of rows": lambda: dist.TransformedDistribution(
        PRIOR, AffineTransform(jnp.asarray([[100.0], [200.0]]), 5.0)
    ),
}

# These change the distribution, and are named in the refusal.
OTHERS = {
    "MaskedDistribution": lambda: PRIOR.mask(jnp.ones((), bool)),
    "MaskedDistribution of True": lambda: dist.MaskedDistribution(PRIOR, True),
    "MaskedDistribution in a transform": lambda: dist.TransformedDistribution(
        PRIOR.mask(jnp.ones((), bool)), ExpTransform()
    ),
    "AbsTransform of FoldedDistribution": lambda: dist.FoldedDistribution(NUMBER),
    "MixtureSameFamily": lambda: dist.MixtureSameFamily(HALVES, PRIOR.expand((2,))),
    "MixtureGeneral": lambda: dist.MixtureGeneral(HALVES, [dist.Normal(jnp.zeros(1), 1.0).to_event(1), PRIOR]),
    "MixtureGeneral in ExpandedDistribution": lambda: dist.MixtureGeneral(
        HALVES, [PRIOR, dist.TransformedDistribution(PRIOR, AffineTransform(1.0, 2.0))]
    ).expand((2,)),
}

# NumPyro itself knows no density of these.
WITHOUT_INVERSE = {
    "AbsTransform": lambda: dist.TransformedDistribution(PRIOR, AbsTransform()),
    "AffineTransform with a scale of 0": lambda: dist.TransformedDistribution(PRIOR, AffineTransform(100.0, 0.0)),
    "NoInverse": lambda: dist.TransformedDistribution(PRIOR, [AffineTransform(100.0, 5.0), NoInverse()]),
}
