"""Six of the public tasks of sbibm as NumPyro models, with sbibm's ten observations and 10,000 reference draws of each.

Lueckmann et al. 2021, "Benchmarking simulation-based inference" (their appendix T defines the tasks). Observations and
reference draws are files of the package ``sbibm`` 1.1.0 (``pip install --no-deps sbibm``), which is found, but never
imported: it would need PyTorch. Each model has its likelihood, so that draws can be corrected; an observation of four
pairs of numbers (slcp) or of sums of spikes (bernoulli_glm) is one site ``y``, the unknowns are one site ``theta``.
"""

import bz2
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.nn import sigmoid, softplus
from numpyro.distributions import constraints

NUM_OBSERVATIONS = 10


class Task(NamedTuple):
    """A model and its references.

    Attributes:
        model: draws ``theta`` and ``y``.
        observations: shape (10, y's shape...).
        draws: of the posteriors, shape (10, 10,000, d).
    """

    model: Callable[[], None]
    observations: np.ndarray
    draws: np.ndarray


class Crescent(dist.Distribution):
    """Two moons' y given theta, shape (2,): half a ring of radius .1 +- .01 about a point that theta sets.

    With the density of the plane, 1/r included.
    """

    arg_constraints = {"centre": constraints.real_vector}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(self, centre: jax.Array, *, validate_args: bool | None = None) -> None:
        self.centre = centre
        super().__init__(centre.shape[:-1], (2,), validate_args=validate_args)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        key_angle, key_radius = jax.random.split(key)
        shape = sample_shape + self.batch_shape
        angle = jax.random.uniform(key_angle, shape, minval=-jnp.pi / 2, maxval=jnp.pi / 2)
        radius = 0.1 + 0.01 * jax.random.normal(key_radius, shape)
        return self.centre + radius[..., None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)

    def log_prob(self, value: jax.Array) -> jax.Array:
        across, along = jnp.moveaxis(value - self.centre, -1, 0)
        radius = jnp.sqrt(across**2 + along**2)
        log_density = dist.Normal(0.1, 0.01).log_prob(radius) - jnp.log(jnp.pi * radius)
        return jnp.where(across > 0, log_density, -jnp.inf)


class SpikeSums(dist.Distribution):
    """Sufficient statistics X^T bits of independent bits with logits X theta, shape (10,).

    The density is with respect to the number of ways in which bits give the sums, which does not depend on theta: log
    evidence is that of the bits.
    """

    arg_constraints = {"weights": constraints.real_vector}  # noqa: RUF012
    support = constraints.real_vector
    pytree_data_fields = ("weights", "design")

    def __init__(self, weights: jax.Array, design: jax.Array, *, validate_args: bool | None = None) -> None:
        self.weights, self.design = weights, design
        super().__init__(weights.shape[:-1], (design.shape[1],), validate_args=validate_args)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        logits = self.weights @ self.design.T
        bits = jax.random.bernoulli(key, sigmoid(logits), sample_shape + logits.shape)
        return bits @ self.design

    def log_prob(self, value: jax.Array) -> jax.Array:
        return (self.weights * value).sum(-1) - softplus(self.weights @ self.design.T).sum(-1)


def two_moons() -> None:
    """Two crescents; d = 2."""
    theta = numpyro.sample("theta", dist.Uniform(-1.0, 1.0).expand([2]).to_event(1))
    shift = jnp.stack([-jnp.abs(theta[..., 0] + theta[..., 1]), theta[..., 1] - theta[..., 0]], -1) / math.sqrt(2)
    numpyro.sample("y", Crescent(shift + jnp.array([0.25, 0.0])))


def gaussian_linear() -> None:
    """A Gaussian mean with a Gaussian prior; d = 10."""
    scale = math.sqrt(0.1)
    theta = numpyro.sample("theta", dist.Normal(0.0, scale).expand([10]).to_event(1))
    numpyro.sample("y", dist.Normal(theta, scale).to_event(1))


def gaussian_linear_uniform() -> None:
    """A Gaussian mean in a box; d = 10."""
    theta = numpyro.sample("theta", dist.Uniform(-1.0, 1.0).expand([10]).to_event(1))
    numpyro.sample("y", dist.Normal(theta, math.sqrt(0.1)).to_event(1))


def gaussian_mixture() -> None:
    """The mean of a broad and a narrow Gaussian; d = 2."""
    theta = numpyro.sample("theta", dist.Uniform(-10.0, 10.0).expand([2]).to_event(1))
    components = dist.Normal(theta[..., None, :], jnp.array([[1.0], [0.1]])).to_event(1)
    numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(jnp.array([0.5, 0.5])), components))


def slcp() -> None:
    """Simple likelihood, complex posterior: four draws of a Gaussian of the plane; d = 5."""
    theta = numpyro.sample("theta", dist.Uniform(-3.0, 3.0).expand([5]).to_event(1))
    first, second, correlation = theta[..., 2] ** 2, theta[..., 3] ** 2, jnp.tanh(theta[..., 4])
    least, cross = 1e-6, correlation * first * second
    low = jnp.sqrt(first**2 + least)
    # (s1^2 + e)(s2^2 + e) - (r s1 s2)^2 without the cancellation that loses it in float32.
    determinant = (first * second) ** 2 * (1 - correlation**2) + least * (first**2 + second**2) + least**2
    factor = jnp.stack(
        [
            jnp.stack([low, jnp.zeros_like(low)], -1),
            jnp.stack([cross / low, jnp.sqrt(determinant) / low], -1),
        ],
        -2,
    )
    numpyro.sample("y", dist.MultivariateNormal(theta[..., :2], scale_tril=factor).expand([4]).to_event(1))


def bernoulli_glm(design: jax.Array) -> Callable[[], None]:
    """A filter of ten weights that makes spikes; d = 10. See :class:`SpikeSums`."""
    size = design.shape[1] - 1
    difference = np.eye(size) - np.eye(size, k=-1)
    smooth = difference @ difference + np.diag(np.sqrt(np.arange(size) / size))
    precision = np.zeros((size + 1, size + 1))
    precision[0, 0], precision[1:, 1:] = 0.5, smooth.T @ smooth
    covariance = jnp.asarray(np.linalg.inv(precision), jnp.float32)

    def model() -> None:
        theta = numpyro.sample("theta", dist.MultivariateNormal(jnp.zeros(size + 1), covariance))
        numpyro.sample("y", SpikeSums(theta, design))

    return model


MODELS: dict[str, Callable[..., Any]] = {
    "two_moons": two_moons,
    "gaussian_linear": gaussian_linear,
    "gaussian_mixture": gaussian_mixture,
    "slcp": slcp,
    "bernoulli_glm": bernoulli_glm,
    "gaussian_linear_uniform": gaussian_linear_uniform,
}


def load(name: str) -> Task:
    """A task with its references.

    Raises:
        ModuleNotFoundError: without the package sbibm.
    """
    found = importlib.util.find_spec("sbibm")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("Expected the package sbibm; got none. Run `pip install --no-deps sbibm`.")
    files = Path(next(iter(found.submodule_search_locations))) / "tasks" / name / "files"
    folders = [files / f"num_observation_{index + 1}" for index in range(NUM_OBSERVATIONS)]
    observations = np.stack([_table((folder / "observation.csv").read_text())[0] for folder in folders])
    draws = [
        _table(bz2.decompress((folder / "reference_posterior_samples.csv.bz2").read_bytes()).decode())
        for folder in folders
    ]
    model = MODELS[name]
    if name == "slcp":
        observations = observations.reshape(-1, 4, 2)
    if name == "bernoulli_glm":
        model = model(jnp.asarray(_design(files, observations)))
    return Task(model, observations.astype(np.float32), np.stack(draws))


def _table(text: str) -> np.ndarray:
    """The numbers of a file of comma-separated values below its header."""
    return np.atleast_2d(np.loadtxt(text.splitlines(), delimiter=",", skiprows=1))


def _design(files: Path, observations: np.ndarray) -> np.ndarray:
    """The design matrix, shape (100, 10): the last 4,000 bytes of a pickle that is not unpickled.

    Raises:
        ValueError: if it does not turn sbibm's raw observations into the summed ones.
    """
    content = (files / "design_matrix.pt").read_bytes()
    design = np.frombuffer(content[-4000:], "<f4").reshape(100, 10)
    folders = [files / f"num_observation_{index + 1}" for index in range(NUM_OBSERVATIONS)]
    raw = np.stack([_table((folder / "observation_raw.csv").read_text())[0] for folder in folders])
    error = np.abs(raw @ design - observations).max()
    if not error < 1e-4:
        raise ValueError(f"Expected a design matrix that gives the observations; got sums off by {error:.3g}.")
    return design
