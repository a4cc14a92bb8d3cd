"""Arguments of a model: which a compiled function takes, and when two calls are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.infer import TwistedSMC
from numpyro_diffusion.model.arguments import as_static, join, split_arguments

KEY = jax.random.key(3)
KERNEL = nd.GaussianKernel(nd.schedules.log_snr(3, 0.1, 10.0), variance="upper")


def zero_network(params, x_t, t, context):
    return 0 * x_t


PRIOR = nd.Diffusion(KERNEL, nd.Transition(zero_network, None, ()), rng_key=KEY)


@pytest.mark.parametrize(
    "leaf", [KEY, jax.random.split(KEY), jnp.ones(2), np.ones(2), np.array([True]), jnp.zeros(2, int)]
)
def test_numbers_and_keys_are_arrays(leaf):
    arrays, static = split_arguments((leaf,), {})
    assert arrays[0] is leaf
    (args, kwargs) = join(arrays, static)
    assert args[0] is leaf
    assert not kwargs


@pytest.mark.parametrize("leaf", ["name", 1, 2.5, None, np.array(["a"]), np.array([None]), np.array(["2026"], "M8[Y]")])
def test_everything_else_is_static(leaf):
    arrays, _ = split_arguments((leaf,), {})
    assert not any(array is not None for array in arrays)


@pytest.mark.parametrize(
    ("first", "second", "other"),
    [
        (KEY, jax.random.key(3), jax.random.key(4)),
        (KEY, jax.random.key(3), jax.random.key(3, impl="rbg")),
        (np.array([1.0, np.nan]), np.array([1.0, np.nan]), np.array([np.nan, 1.0])),
        (np.ones(2), np.ones(2), np.ones(2, np.float32)),
        (np.array(["a"]), np.array(["a"]), np.array(["b"])),
        (1, 1, 1.0),
    ],
)
def test_calls_are_the_same_by_value(first, second, other):
    assert as_static((first,), {"y": 1}) == as_static((second,), {"y": 1})
    assert as_static((first,), {"y": 1}) != as_static((other,), {"y": 1})


def test_a_prior_with_a_key_is_an_argument_of_a_model():
    """As ``fit`` returns it."""

    def model(prior, y):
        numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), 1.0), obs=y)

    smc = TwistedSMC(model, 64, 4, progress_bar=False)
    smc.run(jax.random.key(0), PRIOR, 0.3)
    assert smc.get_samples()["x"].shape == (256,)
