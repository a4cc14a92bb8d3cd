"""Diffusion sites in the units and on the supports of data, with posteriors by quadrature over the chain's states."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from closed_forms import affine_prior, density_on_grid, gaussian_moments
from numpyro.distributions import transforms

import numpyro_diffusion as nd

SCHEDULE = nd.schedules.log_snr(3, 0.3, 10.0)
NUMBER = affine_prior(SCHEDULE, [0.5])
PAIR = affine_prior(SCHEDULE, [0.5, -0.3])
AFFINE = transforms.AffineTransform(100.0, 5.0)
EXP = [transforms.AffineTransform(1.0, 0.4), transforms.ExpTransform()]
MATRIX = np.array([[2.0, 0.0], [1.5, 0.5]])
WHITENING = transforms.LowerCholeskyAffine(jnp.array([100.0, -3.0]), jnp.asarray(MATRIX, float))
INTERVAL = [transforms.SigmoidTransform(), transforms.AffineTransform(-2.0, 10.0)]


class Case(NamedTuple):
    """A prior in the data's units, and a likelihood of one datum.

    Attributes:
        base: the diffusion of the states, of independent coordinates.
        prior: of x.
        likelihood: of the observation, from x.
        y: the observation.
    """

    base: nd.Diffusion
    prior: dist.Distribution
    likelihood: Any
    y: Any

    def model(self, y: Any = None) -> None:
        x = numpyro.sample("x", self.prior)
        numpyro.sample("y", self.likelihood(x), obs=y)

    def quadrature(self) -> tuple[float, np.ndarray, np.ndarray]:
        """Log evidence, and the means of :meth:`features` under the posterior and under the prior."""
        states, mass = states_and_mass(self.base)

        @jax.jit
        @jax.vmap
        def at(state: Any) -> tuple[Any, Any]:
            x = self.transform(state)
            return x, self.likelihood(x).log_prob(self.y)

        x, log_likelihood = at(states)
        joint = mass * np.exp(np.asarray(log_likelihood, float))
        values = self.features(x)
        return float(np.log(joint.sum())), joint @ values / joint.sum(), mass @ values

    def transform(self, state: Any) -> Any:
        for transform in self.prior.transforms:
            state = transform(state)
        return state

    @staticmethod
    def features(x: Any) -> np.ndarray:
        """X and its squares about no point in particular, (n, 2 d)."""
        x = np.asarray(x, float).reshape(-1, np.shape(x)[-1])
        return np.concatenate([x, x**2], axis=1)


@functools.cache
def states_and_mass(base: nd.Diffusion) -> tuple[Any, np.ndarray]:
    """A grid over all states (n, d) and what the prior has there, d = 1 or 2."""
    if base.event_shape == (1,):
        grid = np.linspace(-8.0, 8.0, 4001)
        return jnp.asarray(grid[:, None], float), density_on_grid(base, grid) * (grid[1] - grid[0])
    means, variances = (moments[0] for moments in gaussian_moments(base))
    axes = [np.linspace(m - 7 * np.sqrt(v), m + 7 * np.sqrt(v), 301) for m, v in zip(means, variances, strict=True)]
    masses = [np.exp(-0.5 * (x - m) ** 2 / v) for x, m, v in zip(axes, means, variances, strict=True)]
    states = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    mass = np.multiply.outer(*masses).ravel()
    return jnp.asarray(states, float), mass / mass.sum()


def case(base: nd.Diffusion, parts: Any, likelihood: Any, y: Any) -> Case:
    return Case(base, dist.TransformedDistribution(base, parts), likelihood, y)


CASES = {
    "affine": case(NUMBER, AFFINE, lambda x: dist.Normal(x[0], 4.0), 112.0),
    "exp": case(NUMBER, EXP, lambda x: dist.Normal(x[0], 1.0), 6.0),
    "whitening": case(PAIR, WHITENING, lambda x: dist.Normal(x[0] - x[1], 0.8), 106.0),
    "softplus": case(NUMBER, transforms.SoftplusTransform(), lambda x: dist.Normal(x[0], 0.4), 2.5),
    "interval": case(NUMBER, INTERVAL, lambda x: dist.Normal(x[0], 1.0), 6.5),
    "simplex": case(
        PAIR,
        transforms.StickBreakingTransform(),
        lambda x: dist.Multinomial(probs=x, total_count=12),
        jnp.array([2, 9, 1]),
    ),
}
