"""SVI in three ways: the losses and gradients agree in expectation and with enumeration and the evidence.

Averages over fixed keys pass within 5 standard errors (6e-7 a comparison).
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from exact.test_bounds import (
    NUM_BITS,
    NUM_STEPS,
    bits_network,
    exact_bits_bound,
    exact_bits_log_prob,
    linear_gaussian_evidence,
    matched_network,
)
from measured_errors import check, of_independent
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

import numpyro_diffusion as nd


def affine_network(params, x_t, t, context):
    return params["a"] * x_t + params["b"], 0 * x_t + params["c"]


PARAMS = {"a": jnp.asarray(0.3), "b": jnp.asarray(0.1), "c": jnp.asarray(-0.2)}
DATA = np.asarray(1.3 * jax.random.normal(jax.random.key(0), (6, 2)) + 0.4)


def build():
    kernel = nd.GaussianKernel(nd.learned_schedule("schedule", 4, beta_1=0.05, sigma_max=5.0))
    return kernel, nd.Transition(affine_network, numpyro.param("network", PARAMS), (2,))


def marginal_model(x):
    kernel, transition = build()
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", nd.Diffusion(kernel, transition), obs=x)


def empty_guide(x):
    pass


def trajectory_model(x):
    chain = nd.ReverseChain(*build(), stop=1)
    with numpyro.plate("data", len(x)):
        path = numpyro.sample("path", chain)
        numpyro.sample("x", chain.conditional(path[..., 0, :], 1), obs=x)


def forward_guide(x):
    kernel, _ = build()
    with numpyro.plate("data", len(x)):
        numpyro.sample("path", nd.ForwardChain(kernel, x))


WAYS = {
    "marginal": (marginal_model, empty_guide, Trace_ELBO()),
    "trajectory": (trajectory_model, forward_guide, Trace_ELBO()),
    "mean field": (trajectory_model, forward_guide, TraceMeanField_ELBO()),
    "importance weighted, 1": (trajectory_model, forward_guide, RenyiELBO(alpha=0, num_particles=1)),
    "importance weighted, 16": (trajectory_model, forward_guide, RenyiELBO(alpha=0, num_particles=16)),
}


def losses_and_gradients(way, num_keys=2000):
    model, guide, loss = WAYS[way]
    svi = SVI(model, guide, optax.sgd(0.0), loss)
    params = svi.get_params(svi.init(jax.random.key(1), DATA))
    assert set(params) == {"network", "schedule$steps"}

    def value(params, key):
        return loss.loss(key, params, model, guide, DATA)

    keys = jax.random.split(jax.random.key(2), num_keys)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(value), in_axes=(None, 0)))(params, keys)
    flat = np.concatenate([np.asarray(leaf).reshape(num_keys, -1).T for leaf in (values, *jax.tree.leaves(gradients))])
    return flat.mean(1), flat.std(1) / np.sqrt(num_keys)


@pytest.fixture(scope="module", name="reference")
def _reference():
    return losses_and_gradients("trajectory")


@pytest.mark.parametrize("way", ["marginal", "mean field", "importance weighted, 1"])
def test_the_ways_agree_in_loss_and_in_every_gradient_schedule_included(way, reference):
    mean, error = losses_and_gradients(way)
    assert (np.abs(mean - reference[0]) < 5 * np.hypot(error, reference[1])).all()
    assert (np.abs(mean) > 10 * error)[[0, 1]].all()  # the comparison has power: the loss and a gradient stand out


def test_several_trajectories_tighten_the_bound(reference):
    mean, error = losses_and_gradients("importance weighted, 16", num_keys=200)
    assert mean[0] < reference[0][0] - 5 * np.hypot(error[0], reference[1][0])


def bits_models():
    kernel = nd.BernoulliKernel(nd.schedules.constant_fraction(NUM_STEPS), rate=0.3)
    transition = nd.Transition(bits_network, jnp.asarray(0.8), (NUM_BITS,))

    def model(x):
        chain = nd.ReverseChain(kernel, transition, stop=1)
        path = numpyro.sample("path", chain)
        numpyro.sample("x", chain.conditional(path[0], 1), obs=x)

    def guide(x):
        numpyro.sample("path", nd.ForwardChain(kernel, x))

    def marginal(x):
        numpyro.sample("x", nd.Diffusion(kernel, transition), obs=x)

    return kernel, transition, model, guide, marginal


@pytest.mark.parametrize("way", ["marginal", "trajectory", "mean field"])
def test_the_loss_of_a_tiny_binary_model_is_the_enumerated_bound(way):
    kernel, transition, model, guide, marginal = bits_models()
    x = np.array([1, 0])
    loss = TraceMeanField_ELBO() if way == "mean field" else Trace_ELBO()
    pair = (marginal, lambda x: None) if way == "marginal" else (model, guide)
    values = jax.jit(jax.vmap(lambda key: loss.loss(key, {}, *pair, x)))(jax.random.split(jax.random.key(3), 20_000))
    assert abs(-values.mean() - exact_bits_bound(kernel, transition, x)) < 5 * values.std() / np.sqrt(20_000)


def test_the_renyi_bound_of_a_tiny_binary_model_reaches_the_enumerated_evidence():
    kernel, transition, model, guide, _ = bits_models()
    x = np.array([1, 0])
    loss = RenyiELBO(alpha=0, num_particles=20_000).loss(jax.random.key(4), {}, model, guide, x)
    assert abs(-loss - exact_bits_log_prob(kernel, transition, x)) < 0.02


def test_the_loss_of_the_matched_gaussian_model_is_minus_the_evidence():
    kernel = nd.GaussianKernel(nd.schedules.log_snr(10, 0.1, 1e3), variance="upper")
    chain = nd.ReverseChain(kernel, nd.Transition(matched_network, None, (2,)), stop=1)
    assert linear_gaussian_evidence(kernel, 0.0) == pytest.approx(1, abs=1e-5)

    def model(x):
        with numpyro.plate("data", len(x)):
            path = numpyro.sample("path", chain)
            numpyro.sample("x", chain.conditional(path[..., 0, :], 1), obs=x)

    def guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("path", nd.ForwardChain(kernel, x))

    # log p - log q of one trajectory is the evidence itself, with no noise to average.
    loss = Trace_ELBO().loss(jax.random.key(5), {}, model, guide, DATA)
    evidence = dist.Normal(0.0, 1.0).log_prob(DATA).sum()
    assert float(loss) == pytest.approx(-float(evidence), rel=1e-3)


def test_subsampling_by_scale_gives_the_full_data_loss_in_expectation():
    def model(x, size):
        kernel, transition = build()
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", nd.Diffusion(kernel, transition), obs=x)

    keys = jax.random.split(jax.random.key(6), 4000)
    steps = jnp.asarray(nd.schedules.learned_initial(4, 5.0, beta_1=0.05), jnp.float32)
    params = {"network": PARAMS, "schedule$steps": steps}

    @jax.jit
    def losses(x):
        return jax.vmap(lambda key: Trace_ELBO().loss(key, params, model, lambda *_: None, x, len(DATA)))(keys)

    full = losses(DATA)
    half = (losses(DATA[:3]) + losses(DATA[3:])) / 2
    assert abs(full.mean() - half.mean()) < 5 * np.hypot(full.std(), half.std()) / np.sqrt(4000)


def test_every_svi_step_draws_fresh_noise():
    svi = SVI(marginal_model, empty_guide, optax.sgd(0.0), Trace_ELBO())
    state = svi.init(jax.random.key(0), DATA)
    state, first = svi.update(state, DATA)
    state, second = svi.update(state, DATA)
    assert first != second


def test_training_recovers_a_gaussian():
    kernel = nd.GaussianKernel(nd.schedules.log_snr(10, 0.05, 30.0))
    data = 0.5 * jax.random.normal(jax.random.key(1), (128, 1)) - 0.3
    network = nd.networks.MLP(kernel.num_steps, kernel.num_outputs, width=16, depth=1)

    def model(x):
        transition = nd.haiku_module("net", network, kernel=kernel, event_shape=(1,))
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", nd.Diffusion(kernel, transition), obs=x)

    svi = SVI(model, empty_guide, optax.adam(optax.cosine_decay_schedule(1e-2, 1000)), Trace_ELBO())

    def draws(key):
        """Of a network that was trained from this key."""
        state, _ = jax.lax.scan(lambda s, _: svi.update(s, data), svi.init(key, data), length=1000)
        with numpyro.handlers.substitute(data=svi.get_params(state)):
            transition = nd.haiku_module("net", network, kernel=kernel, event_shape=(1,))
        return nd.Diffusion(kernel, transition).sample(jax.random.fold_in(key, 1), (4000,))

    found = np.asarray(jax.jit(jax.vmap(draws))(jax.random.split(jax.random.key(2), 4)))
    check(of_independent(found.mean((1, 2))), data.mean(), refused=0.0)
    check(of_independent(found.std((1, 2))), data.std(), refused=1.0)
