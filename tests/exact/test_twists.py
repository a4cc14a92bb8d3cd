"""What a twist says and proposes at one level, against the T-step model in closed form: no particles run."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import affine_prior

import numpyro_diffusion as nd
from numpyro_diffusion.infer.linear_gaussian import _observe
from numpyro_diffusion.infer.sites import SplitModel

SCHEDULE = nd.schedules.log_snr(3, 0.3, 10.0)
NUMBER = affine_prior(SCHEDULE, [0.5])
Y = jnp.arange(6.0).reshape(2, 3)
X = jnp.array([10.0, 20.0, 30.0])


def inner_plate_first(y):
    with numpyro.plate("n", 3, dim=-1):
        x = numpyro.sample("x", NUMBER)
        with numpyro.plate("m", 2, dim=-2):
            numpyro.sample("y", dist.Normal(x[..., 0], jnp.array([1.0, 2.0, 3.0])), obs=y)


def inner_plate_last(y):
    with numpyro.plate("n", 3, dim=-2):
        x = numpyro.sample("x", NUMBER)
        with numpyro.plate("m", 2, dim=-1):
            numpyro.sample("y", dist.Normal(x[..., 0], jnp.array([[1.0], [2.0], [3.0]])), obs=y.T)


def vectors(y):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", NUMBER)
        covariance = jnp.array([1.0, 4.0, 9.0])[:, None, None] * jnp.eye(2)
        numpyro.sample("y", dist.MultivariateNormal(x + jnp.zeros(2), covariance), obs=y.T)


def vectors_in_two_plates(y):
    with numpyro.plate("n", 3, dim=-1):
        x = numpyro.sample("x", NUMBER)
        with numpyro.plate("m", 2, dim=-2):
            covariance = jnp.array([1.0, 4.0, 9.0])[:, None, None]
            numpyro.sample("y", dist.MultivariateNormal(x, covariance), obs=y[..., None])


@pytest.mark.parametrize("model", [inner_plate_first, inner_plate_last, vectors, vectors_in_two_plates])
def test_observations_go_to_their_elements(model):
    split = SplitModel(model, (Y,), {}, elements="independent")
    x = X.reshape((*split.element_shape, 1))
    found = _observe(split, {}, {"x": x})
    np.testing.assert_array_equal(found.residual.reshape(3, 2), (Y - X).T)
    np.testing.assert_allclose(
        found.covariance.reshape(3, 2, 2), np.array([1.0, 4.0, 9.0])[:, None, None] * np.eye(2), rtol=1e-6
    )
