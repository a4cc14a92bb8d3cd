"""Haiku networks in NumPyro models: sites, identity, state, priors over weights, and what does not fit."""

import pickle

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import SVI, Predictive, Trace_ELBO

import numpyro_diffusion as nd
from numpyro_diffusion.modules import HaikuFunction

KERNEL = nd.GaussianKernel(nd.schedules.log_snr(4))
ONE_OUTPUT = nd.GaussianKernel(nd.schedules.log_snr(4), variance="upper")
NETWORK = nd.networks.MLP(4, 2, width=4, depth=1)


def plain(x_t, t):
    return hk.Linear(x_t.shape[-1])(x_t) + t[..., None].astype(x_t.dtype)


def conditional(x_t, t, context):
    return hk.Linear(x_t.shape[-1])(jnp.concatenate([x_t, context], -1))


def with_moving_average(x_t, t, is_training=False):
    normalise = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.5)
    return hk.Linear(x_t.shape[-1])(normalise(x_t, is_training=is_training))


def with_a_counter(x_t, t):
    hk.set_state("calls", hk.get_state("calls", (), int, hk.initializers.Constant(0)) + 1)
    return hk.Linear(x_t.shape[-1])(x_t)


def sites_of(model, *args):
    return trace(seed(model, 0)).get_trace(*args)


def test_parameters_are_one_param_site_and_reach_the_network():
    def model():
        return nd.haiku_module("net", plain, kernel=ONE_OUTPUT, event_shape=(3,))

    sites = sites_of(model)
    assert [name for name, site in sites.items() if site["type"] == "param"] == ["net$params"]
    params = sites["net$params"]["value"]
    transition = substitute(model, data={"net$params": params})()
    x = jnp.ones((2, 3))
    expected = x @ params["linear"]["w"] + params["linear"]["b"] + 2
    np.testing.assert_allclose(transition(x, jnp.full((2,), 2)), expected, rtol=1e-6)


def test_a_function_and_its_transform_give_the_same_transition():
    plainly, transformed = (
        seed(lambda network=network: nd.haiku_module("net", network, kernel=ONE_OUTPUT, event_shape=(3,)), 0)()
        for network in (plain, hk.transform(plain))
    )
    np.testing.assert_allclose(plainly(jnp.ones((1, 3)), 1), transformed(jnp.ones((1, 3)), 1))


def test_functions_of_equal_networks_are_equal_and_picklable():
    first, second = HaikuFunction(nd.networks.MLP(4, 2)), HaikuFunction(nd.networks.MLP(4, 2))
    assert first == second
    assert hash(first) == hash(second)
    assert first != HaikuFunction(nd.networks.MLP(5, 2))
    assert pickle.loads(pickle.dumps(first)) == first  # noqa: S301 - our own bytes


def test_conditional_network_gets_its_context_and_gradients_reach_it():
    transition = seed(
        lambda: nd.haiku_module("net", conditional, kernel=ONE_OUTPUT, event_shape=(2,), context_shape=(3,)), 0
    )()
    context = jnp.ones((5, 3))

    def loss(context):
        distribution = nd.Diffusion(
            ONE_OUTPUT, transition, context=context, estimator=nd.RandomStep(), rng_key=jax.random.key(0)
        )
        return distribution.log_prob(jnp.zeros((5, 2))).sum()

    gradient = jax.grad(loss)(context)
    assert gradient.shape == (5, 3)
    assert (jnp.abs(gradient).sum(-1) > 0).all()


def test_state_is_read_by_chains_and_changed_only_by_update_state():
    data = 3 + jax.random.normal(jax.random.key(0), (32, 2))

    def model(x):
        transition = nd.haiku_module(
            "net", with_moving_average, kernel=ONE_OUTPUT, event_shape=(2,), init_kwargs={"is_training": True}
        )
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", nd.Diffusion(ONE_OUTPUT, transition), obs=x)
        nd.update_state("net", transition, x, jnp.ones(len(x), int), is_training=True)

    svi = SVI(model, lambda x: None, optax.sgd(1e-4), Trace_ELBO())
    state = svi.init(jax.random.key(1), data)
    for _ in range(12):
        state, loss = jax.jit(svi.update)(state, data)
    assert jnp.isfinite(loss)
    averages = state.mutable_state["net$state"]["state"]
    average = averages["batch_norm/~/mean_ema"]["average"]
    np.testing.assert_allclose(average[0], data.mean(0), rtol=1e-3)


def test_updating_a_network_without_state_is_an_error():
    transition = seed(lambda: nd.haiku_module("net", plain, kernel=ONE_OUTPUT, event_shape=(2,)), 0)()
    with pytest.raises(ValueError, match="a network with state at 'net'"):
        nd.update_state("net", transition, jnp.zeros((1, 2)), 1)


def test_random_weights_are_sample_sites_with_their_priors():
    def model():
        return nd.random_haiku_module("net", plain, dist.Normal(0.0, 0.3), kernel=ONE_OUTPUT, event_shape=(2,))

    sites = sites_of(model)
    assert {name: site["value"].shape for name, site in sites.items()} == {
        "net/linear.w": (2, 2),
        "net/linear.b": (2,),
    }
    draws = Predictive(model, num_samples=4000)(jax.random.key(0))["net/linear.w"]
    assert float(draws.std()) == pytest.approx(0.3, rel=5 / np.sqrt(2 * draws.size))


def test_random_weights_of_a_network_with_state_keep_it_in_a_mutable_site():
    def model():
        return nd.random_haiku_module("net", with_a_counter, dist.Normal(), kernel=ONE_OUTPUT, event_shape=(2,))

    sites = sites_of(model)
    assert {name for name, site in sites.items() if site["type"] == "sample"} == {"net/linear.w", "net/linear.b"}
    assert jax.tree.leaves(sites["net$state"]["value"]) == [0]
    assert seed(model, 0)()(jnp.ones((1, 2)), 1).shape == (1, 2)


def test_random_weights_take_a_prior_for_each_name_or_a_function():
    by_name = {"linear.w": dist.Normal(0.0, 1.0).expand([2, 2]), "linear.b": dist.Cauchy()}
    sites = sites_of(lambda: nd.random_haiku_module("net", plain, by_name, kernel=ONE_OUTPUT, event_shape=(2,)))
    assert sites["net/linear.w"]["fn"].event_shape == (2, 2)
    sites = sites_of(
        lambda: nd.random_haiku_module(
            "net", plain, lambda name, shape: dist.Laplace(0.0, len(shape)), kernel=ONE_OUTPUT, event_shape=(2,)
        )
    )
    assert sites["net/linear.w"]["fn"].base_dist.base_dist.scale == 2


def test_learned_schedule_is_a_param_site_that_starts_even_in_log_snr():
    sites = sites_of(lambda: nd.learned_schedule("schedule", 5, beta_1=0.01, sigma_max=20.0))
    assert sites["schedule$steps"]["value"].shape == (4,)
    steps = np.diff(nd.schedules.learned(sites["schedule$steps"]["value"], beta_1=0.01).log_snr[1:])
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)


def takes_one(x_t):
    return x_t


def draws_in_apply(x_t, t):
    return hk.dropout(hk.next_rng_key(), 0.5, x_t)


def wrong_shape(x_t, t):
    return hk.Linear(7)(x_t)


def wrong_dtype(x_t, t):
    return hk.Linear(2)(x_t).astype(jnp.bfloat16)


def a_dictionary(x_t, t):
    return {"mean": x_t, "log_variance": x_t, "more": x_t}


@pytest.mark.parametrize(
    ("network", "kernel", "error", "message"),
    [
        (
            takes_one,
            ONE_OUTPUT,
            TypeError,
            r"can be called with \(x_t of shape \(1, 2\), t of shape \(1,\)\).*network\(x_t, t\)",
        ),
        (conditional, ONE_OUTPUT, TypeError, "together with context_shape"),
        (draws_in_apply, ONE_OUTPUT, TypeError, "no random key.*leave dropout out"),
        (wrong_shape, ONE_OUTPUT, ValueError, r"one array of shape \(1, 2\).*got shape \(1, 7\)"),
        (wrong_dtype, ONE_OUTPUT, TypeError, r"dtype float32; got dtype bfloat16.*astype\(float32\)"),
        (plain, KERNEL, TypeError, "a tuple of 2 arrays.*num_outputs=2"),
        (NETWORK, ONE_OUTPUT, TypeError, "one array.*num_outputs=1"),
        (a_dictionary, KERNEL, TypeError, "a tuple of 2 arrays"),
    ],
)
def test_what_does_not_fit_is_named_before_any_training(network, kernel, error, message):
    with pytest.raises(error, match=message):
        sites_of(lambda: nd.haiku_module("net", network, kernel=kernel, event_shape=(2,)))


def test_bad_event_shape_and_priors_are_named():
    with pytest.raises(ValueError, match="event_shape to be a tuple of positive integers; got"):
        sites_of(lambda: nd.haiku_module("net", plain, kernel=ONE_OUTPUT, event_shape=(0,)))
    with pytest.raises(KeyError, match=r"a prior for 'linear.b'"):
        sites_of(
            lambda: nd.random_haiku_module("n", plain, {"linear.w": dist.Normal()}, kernel=ONE_OUTPUT, event_shape=(2,))
        )
    with pytest.raises(ValueError, match=r"a prior of shape \(2,\) or \(\) for .linear.b."):
        sites_of(
            lambda: nd.random_haiku_module(
                "n", plain, dist.Normal(jnp.zeros(3), 1), kernel=ONE_OUTPUT, event_shape=(2,)
            )
        )
