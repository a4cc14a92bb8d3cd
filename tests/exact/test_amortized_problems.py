"""Problems of the field whose evidence and posterior are known by quadrature: a small network, corrected."""

import amortized_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from numpyro_diffusion import networks

# Thousands of steps of training: compiled as a user's. What weights of so short a training are worth is asserted.
pytestmark = [
    pytest.mark.optimised,
    pytest.mark.filterwarnings("ignore:Expected y like the simulated"),
    pytest.mark.filterwarnings("ignore:Expected Pareto k-hat"),
]


def assert_corrected(corrected, log_evidence, *, most_error=0.1, most_k=0.7):
    assert corrected.method == "importance"
    assert corrected.pareto_k < most_k
    assert corrected.log_evidence_error < most_error
    assert abs(corrected.log_evidence - log_evidence) < 5 * corrected.log_evidence_error


def weighted_mean(corrected, function):
    """The mean of a function of the draws, and its standard error."""
    weights = np.exp(np.asarray(corrected.importance.log_weights, np.float64) - corrected.log_evidence)
    weights /= weights.sum()
    values = np.asarray(function(corrected.importance.samples), np.float64)
    mean = weights @ values
    return mean, np.sqrt((weights**2) @ (values - mean) ** 2)


def assert_mean(corrected, function, truth):
    mean, error = weighted_mean(corrected, function)
    assert abs(mean - truth) < 5 * error


def mixture():
    """sbibm's gaussian_mixture: one centre, a wide and a narrow normal around it."""
    theta = numpyro.sample("theta", dist.Uniform(-10.0, 10.0).expand([2]).to_event(1))
    scales = jnp.array([1.0, 0.1])[:, None]
    parts = dist.Normal(theta, scales).to_event(1)
    numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), parts))


def test_gaussian_mixture():
    y = jnp.array([1.0, -2.0])
    amortized = cases.trained(mixture, 5000, 2500, num_steps=20, fit={"batch_size": 256, "every": 500})
    corrected = amortized.condition(y).correct(jax.random.key(1), "importance", num_samples=2000, num_paths=8)
    assert_corrected(corrected, -np.log(400))
    assert_mean(corrected, lambda draws: draws["theta"][:, 0], 1.0)
    assert_mean(corrected, lambda draws: (draws["theta"][:, 1] + 2.0) ** 2, (1 + 0.01) / 2)


class Moon(dist.Distribution):
    """A crescent around a point: angle uniform on the right half, radius N(0.1, 0.01^2)."""

    support = dist.constraints.real_vector
    pytree_data_fields = ("centre",)

    def __init__(self, centre):
        self.centre = centre
        super().__init__(jnp.shape(centre)[:-1], (2,))

    def sample(self, key, sample_shape=()):
        one, other = jax.random.split(key)
        angle = jnp.pi * (jax.random.uniform(one, sample_shape + self.batch_shape) - 0.5)
        radius = 0.1 + 0.01 * jax.random.normal(other, sample_shape + self.batch_shape)
        return self.centre + radius[..., None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)

    def log_prob(self, value):
        u = value - self.centre
        radius = jnp.linalg.norm(u, axis=-1)
        inside = dist.Normal(0.1, 0.01).log_prob(radius) - jnp.log(jnp.pi * radius)
        return jnp.where(u[..., 0] > 0, inside, -jnp.inf)


def two_moons():
    """sbibm's two_moons, with its likelihood."""
    theta = numpyro.sample("theta", dist.Uniform(-1.0, 1.0).expand([2]).to_event(1))
    shift = jnp.stack([-jnp.abs(theta[0] + theta[1]), theta[1] - theta[0]]) / jnp.sqrt(2.0)
    numpyro.sample("y", Moon(shift + jnp.array([0.25, 0.0])))


def test_two_moons():
    """At y = 0 both moons are inside of the prior: p(y) = 1/4 * 2, and each has half of the posterior."""
    amortized = cases.trained(two_moons, 5000, 2000, num_steps=20, fit={"batch_size": 256, "every": 500})
    corrected = amortized.condition(jnp.zeros(2)).correct(
        jax.random.key(1), "importance", num_samples=3000, num_paths=4
    )
    assert abs(corrected.log_evidence - np.log(0.5)) < max(5 * corrected.log_evidence_error, 0.02)
    assert_mean(corrected, lambda draws: draws["theta"].sum(1) > 0, 0.5)


DESIGN = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)


def glm():
    """Twenty bits of a logistic regression."""
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.5).expand([2]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=jnp.array(DESIGN) @ weights).to_event(1))


def test_bernoulli_glm():
    y = (DESIGN @ np.array([1.5, -0.5]) > np.linspace(-1, 1, 20)).astype(int)
    grid = np.linspace(-8, 8, 401)
    weights = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1)
    logits = weights @ DESIGN.T
    log_joint = stats.norm.logpdf(weights, 0, 1.5).sum(-1) + (logits * y - np.logaddexp(0, logits)).sum(-1)
    joint = np.exp(log_joint) * (grid[1] - grid[0]) ** 2
    amortized = cases.trained(glm, 3000, 500, num_steps=20)
    corrected = amortized.condition(jnp.asarray(y)).correct(jax.random.key(1), num_samples=2000, num_paths=4)
    assert_corrected(corrected, np.log(joint.sum()))
    assert_mean(corrected, lambda draws: draws["weights"][:, 0], (joint * weights[..., 0]).sum() / joint.sum())


def groups():
    """A plate of fixed size with unknown centre and width."""
    centre = numpyro.sample("centre", dist.Normal(0.0, 1.0))
    width = numpyro.sample("width", dist.HalfNormal(1.0))
    with numpyro.plate("groups", 4):
        level = numpyro.sample("level", dist.Normal(centre, width))
        numpyro.sample("y", dist.Normal(level, 0.5))


def test_a_hierarchy_with_a_plate():
    y = np.array([0.5, 1.5, -0.5, 1.0])
    centre, width = np.linspace(-5, 5, 401)[:, None], np.linspace(1e-3, 6, 600)[None]
    sd = np.sqrt(width**2 + 0.25)
    joint = stats.norm.pdf(centre) * 2 * stats.norm.pdf(width)
    for one in y:
        joint = joint * stats.norm.pdf(one, centre, sd)
    joint = joint * (10 / 400) * (6 - 1e-3) / 599
    amortized = cases.trained(groups, 5000, 1500, num_steps=25, fit={"every": 500})
    corrected = amortized.condition(jnp.asarray(y)).correct(
        jax.random.key(1), "importance", num_samples=3000, num_paths=8
    )
    # A funnel: where the width is small all levels are narrow, and a network of seconds has too few draws there.
    assert_corrected(corrected, np.log(joint.sum()), most_k=1.0)
    assert corrected.get_samples()["level"].shape == (3000, 4)
    assert_mean(corrected, lambda draws: draws["centre"], (joint * centre).sum() / joint.sum())
    assert_mean(corrected, lambda draws: draws["width"], (joint * width).sum() / joint.sum())


def spike():
    """Whether there is a level, and which."""
    is_there = numpyro.sample("is_there", dist.Bernoulli(0.4))
    level = numpyro.sample("level", dist.Normal(0.0, 2.0))
    numpyro.sample("y", dist.Normal(is_there * level, 0.7).expand([3]).to_event(1))


def test_a_bit_beside_a_real_number():
    y = np.array([0.8, 0.1, 0.9])
    without = 0.6 * stats.multivariate_normal.pdf(y, np.zeros(3), 0.49 * np.eye(3))
    with_level = 0.4 * stats.multivariate_normal.pdf(y, np.zeros(3), 0.49 * np.eye(3) + 4.0)
    amortized = cases.trained(spike, 4000, 800, num_steps=20)
    posterior = amortized.condition(jnp.asarray(y))
    drawn = np.asarray(posterior.sample(jax.random.key(2), 2000)["is_there"])
    assert set(np.unique(drawn)) == {0, 1}
    assert drawn.mean() == pytest.approx(with_level / (without + with_level), abs=0.15)
    corrected = posterior.correct(jax.random.key(1), num_samples=3000, num_paths=4)
    assert_corrected(corrected, np.log(without + with_level))
    assert_mean(corrected, lambda draws: draws["is_there"], with_level / (without + with_level))


def many():
    """Independent numbers of unknown centre and scale, of which the third is behind a mask."""
    centre = numpyro.sample("centre", dist.Normal(0.0, 2.0))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("rows", 6), numpyro.handlers.mask(mask=jnp.arange(6) != 2):
        numpyro.sample("y", dist.Normal(centre, scale))


def test_a_set_behind_a_mask():
    """In any order the same; what is masked may be NaN and changes nothing."""
    y = np.array([0.3, 1.2, np.nan, -0.4, 0.9, 0.1])
    centre, scale = np.linspace(-8, 8, 801)[:, None], np.exp(np.linspace(-3, 3, 601))[None]
    joint = stats.norm.pdf(centre, 0, 2) * stats.norm.pdf(np.log(scale), 0, 0.5)
    for one in y[np.isfinite(y)]:
        joint = joint * stats.norm.pdf(one, centre, scale)
    joint = joint * (16 / 800) * (6 / 600)
    embedding = networks.SetEmbedding(size=16, width=16, depth=1)
    amortized = cases.trained(many, 4000, 800, num_steps=20, embedding=embedding)
    posterior = amortized.condition(y)
    corrected = posterior.correct(jax.random.key(1), num_samples=2000, num_paths=4)
    assert_corrected(corrected, np.log(joint.sum()))
    assert_mean(corrected, lambda draws: draws["scale"], (joint * scale).sum() / joint.sum())
    draws, other = (
        np.asarray(amortized.condition(data).sample(jax.random.key(2), 50)["centre"])
        for data in (y, np.where(np.isnan(y), 1e6, y))
    )
    np.testing.assert_array_equal(draws, other)
    assert not np.isnan(draws).any()
