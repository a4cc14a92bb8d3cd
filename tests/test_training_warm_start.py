"""fit with init_params: the same network goes on with new data; what does not fit is refused by name."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import numpyro_diffusion as nd

KERNEL = nd.GaussianKernel(nd.schedules.log_snr(4))
NETWORK = nd.networks.MLP(4, 2, width=4, depth=1)
DATA = np.asarray(jax.random.normal(jax.random.key(0), (20, 1)))


def model(x, size):
    transition = nd.haiku_module("net", NETWORK, kernel=KERNEL, event_shape=(1,))
    with numpyro.plate("data", size, subsample_size=len(x)):
        numpyro.sample("x", nd.Diffusion(KERNEL, transition), obs=x)


def train(model=model, num_steps=3, **changes):
    settings = {"optimizer": optax.sgd(0.0), "batch_size": 5, "rng_key": jax.random.key(1), "progress_bar": False}
    return nd.fit(model, DATA, num_steps=num_steps, **{**settings, **changes})


@pytest.fixture(scope="module", name="first")
def _first():
    return train(optimizer=optax.adam(1e-2), rng_key=jax.random.key(7))


@pytest.mark.optimised  # two programs give the same bits only as users compile them
def test_a_run_begins_where_another_ended(first):
    kept = jax.tree.map(np.array, first.params)
    for changes in ({}, {"ema_decay": 0.9}, {"validation": DATA[:6]}):
        again = train(init_params=first.params, **changes)
        jax.tree.map(np.testing.assert_array_equal, again.params, kept)
    jax.tree.map(np.testing.assert_array_equal, first.params, kept)  # not taken by the training
    assert train(num_steps=1, init_params=first.params).losses[0] != train(num_steps=1).losses[0]


def test_constrained_parameters_begin_in_their_own_units_and_others_as_the_model_says():
    def two(x, size):
        loc = numpyro.param("loc", 0.5)
        scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", dist.Normal(loc, scale), obs=x[:, 0])

    found = train(two, init_params={"scale": 3})
    assert (float(found.params["loc"]), float(found.params["scale"])) == pytest.approx((0.5, 3.0))


def test_the_state_of_a_network_may_be_given_too():
    def counting(x, size):
        def scaled(x_t, t):
            scale = hk.get_state("scale", (), init=jnp.ones)
            hk.set_state("scale", 0.5 * scale)
            return hk.Linear(1)(x_t) * scale, 0 * x_t

        transition = nd.haiku_module("net", scaled, kernel=KERNEL, event_shape=(1,))
        nd.update_state("net", transition, x, 2)
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", nd.Diffusion(KERNEL, transition), obs=x)

    first = train(counting, num_steps=2)
    again = train(counting, num_steps=2, init_params={**first.params, **first.mutable_state})
    before, after = (jax.tree.leaves(run.mutable_state)[0] for run in (first, again))
    np.testing.assert_allclose(after, 0.25 * before, rtol=1e-6)


def wrong(params, change):
    params = jax.tree.map(np.array, params)
    layer = next(iter(params["net$params"]))
    change(params, layer)
    return params


BAD = {
    "name": (lambda p, layer: p.update(other=1.0), r"init_params of parameters .*\['net\$params'\]; got 'other'"),
    "shape": (
        lambda p, layer: p["net$params"][layer].update(b=np.zeros(7)),
        r"init_params with shape \(\d+,\) at 'net\$params'\[.*\]\['b'\]; got shape \(7,\)\. Pass the params of a fit",
    ),
    "missing": (lambda p, layer: p["net$params"].pop(layer), r"init_params with shape .* at 'net\$params'.*; got none"),
    "nan": (
        lambda p, layer: p["net$params"][layer]["b"].fill(np.nan),
        r"finite init_params at 'net\$params'\[.*\]\['b'\]; got NaN or infinite values",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_by_name(first, name):
    change, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        train(init_params=wrong(first.params, change))


@pytest.mark.usefixtures("no_type_checks")
def test_a_whole_result_is_no_mapping(first):
    with pytest.raises(TypeError, match=r"init_params as values by name; got FitResult\. Pass the params"):
        train(init_params=first)


def test_a_resumed_run_keeps_its_own(first, tmp_path):
    settings = {"optimizer": optax.adam(1e-2), "checkpoint_dir": tmp_path}
    train(num_steps=2, **settings)
    resumed = train(num_steps=4, resume=True, init_params=first.params, **settings)
    np.testing.assert_array_equal(resumed.losses, train(num_steps=4, optimizer=optax.adam(1e-2)).losses)
