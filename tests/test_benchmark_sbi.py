"""The tasks of simulation-based inference have the densities that they draw from, and their scores score."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.nn import sigmoid
from numpyro import handlers

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    import sbi as benchmark
    import sbi_tasks as tasks
finally:
    sys.path.remove(str(BENCHMARKS))


def likelihood_of(model, theta):
    """The distribution of ``y`` given ``theta``."""
    traced = handlers.trace(handlers.seed(handlers.substitute(model, {"theta": theta}), 0)).get_trace()
    return traced["y"]["fn"]


def test_density_of_a_crescent_is_that_of_its_polar_coordinates():
    radius, angle = jnp.meshgrid(jnp.linspace(0.05, 0.15, 401), jnp.linspace(-1.57, 1.57, 101), indexing="ij")
    points = jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)], -1)
    density = jnp.exp(tasks.Crescent(jnp.zeros(2)).log_prob(points))
    expected = jnp.exp(dist.Normal(0.1, 0.01).log_prob(radius)) / jnp.pi / radius
    np.testing.assert_allclose(density, expected, rtol=1e-4)
    assert tasks.Crescent(jnp.zeros(2)).log_prob(jnp.array([-0.1, 0.0])) == -jnp.inf


def test_draws_of_a_crescent_are_where_its_density_is():
    draws = tasks.Crescent(jnp.array([1.0, 2.0])).sample(jax.random.key(0), (4000,)) - jnp.array([1.0, 2.0])
    radius = jnp.linalg.norm(draws, axis=-1)
    assert abs(radius.mean() - 0.1) < 4 * 0.01 / np.sqrt(4000)
    assert (draws[:, 0] > 0).all()
    assert abs(draws[:, 0].mean() - 0.2 / np.pi) < 4 * 0.05 / np.sqrt(4000)


def test_two_moons_have_two_thetas_of_one_density():
    """y sees |theta_1 + theta_2| and theta_2 - theta_1: swapping and negating leaves both."""
    theta = jnp.array([0.3, -0.1])
    y = likelihood_of(tasks.two_moons, theta).sample(jax.random.key(0))
    other = -theta[::-1]
    first, second = (likelihood_of(tasks.two_moons, value).log_prob(y) for value in (theta, other))
    np.testing.assert_allclose(first, second, rtol=1e-4)
    assert jnp.isfinite(first)


def test_density_of_spike_sums_differs_from_that_of_bits_by_what_does_not_depend_on_theta():
    rng = np.random.default_rng(0)
    design = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    bits = jnp.asarray(rng.integers(0, 2, 6), jnp.float32)
    for theta in jnp.asarray(rng.normal(size=(3, 3)), jnp.float32):
        of_bits = dist.Bernoulli(logits=design @ theta).to_event(1).log_prob(bits)
        np.testing.assert_allclose(tasks.SpikeSums(theta, design).log_prob(bits @ design), of_bits, rtol=1e-4)


def test_spike_sums_have_the_mean_of_their_bits():
    design = jnp.asarray(np.random.default_rng(1).normal(size=(20, 3)), jnp.float32)
    theta = jnp.array([0.5, -1.0, 0.2])
    draws = tasks.SpikeSums(theta, design).sample(jax.random.key(0), (4000,))
    error = draws.std(0) / np.sqrt(4000)
    assert (abs(draws.mean(0) - sigmoid(design @ theta) @ design) < 4 * error).all()


@pytest.mark.parametrize("theta", [[0.5, -1.0, 1.2, -0.7, 0.9], [0.0, 0.0, 2.9, 0.05, -2.9]])
def test_covariance_of_slcp_is_the_published_one(theta):
    found = likelihood_of(tasks.slcp, jnp.asarray(theta)).base_dist.base_dist.covariance_matrix
    first, second, correlation = theta[2] ** 2, theta[3] ** 2, np.tanh(theta[4])
    cross = correlation * first * second
    wanted = np.array([[first**2 + 1e-6, cross], [cross, second**2 + 1e-6]])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)


def test_long_importance_run_gives_the_evidence_of_a_linear_gaussian_task():
    rng = np.random.default_rng(0)
    y = rng.normal(0, np.sqrt(0.2), 10)
    draws = y / 2 + rng.normal(0, np.sqrt(0.05), (2000, 10))
    task = tasks.Task(tasks.gaussian_linear, y[None].astype(np.float32), draws[None])
    found, error = benchmark.log_evidence(task, 0, seed=0)
    exact = dist.Normal(0.0, np.sqrt(0.2)).log_prob(y).sum()
    assert error < 0.02
    assert abs(found - exact) < 4 * error


def test_classifier_tells_what_differs_and_nothing_else():
    rng = np.random.default_rng(0)
    reference, alike, other = rng.normal(size=(3, 1000, 2))
    assert abs(benchmark.c2st(alike, reference) - 0.5) < 0.05
    assert benchmark.c2st(other + 1.5, reference) > 0.75


def test_references_are_asked_for_by_their_package(monkeypatch):
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"Expected the package sbibm; got none\. Run"):
        tasks.load("two_moons")


def test_design_matrix_that_does_not_give_the_observations_is_refused(tmp_path):
    for index in range(tasks.NUM_OBSERVATIONS):
        folder = tmp_path / f"num_observation_{index + 1}"
        folder.mkdir()
        bits = ",".join("1" for _ in range(100))
        (folder / "observation_raw.csv").write_text(",".join(f"data_{i}" for i in range(100)) + "\n" + bits + "\n")
    (tmp_path / "design_matrix.pt").write_bytes(np.ones((100, 10), "<f4").tobytes())
    with pytest.raises(ValueError, match="Expected a design matrix that gives the observations"):
        tasks._design(tmp_path, np.zeros((tasks.NUM_OBSERVATIONS, 10)))
    np.testing.assert_array_equal(
        tasks._design(tmp_path, np.full((tasks.NUM_OBSERVATIONS, 10), 100.0)), np.ones((100, 10))
    )
