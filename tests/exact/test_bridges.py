"""Networks of Haiku, Flax NNX and Equinox with the same weights are the same prior; what does not fit is refused."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import nnx
from numpyro.infer import SVI, Trace_ELBO
from precision import enable_x64

import numpyro_diffusion as nd
from numpyro_diffusion.modules import HaikuFunction

KERNEL = nd.GaussianKernel(nd.schedules.log_snr(4, 0.1, 30.0), variance="upper")
SHAPE = {"kernel": KERNEL, "event_shape": (2,)}
WIDTHS = (3, 8, 2)


def weights(seed=0):
    """(in, out) matrices and vectors of two layers."""
    keys = jax.random.split(jax.random.key(seed), 4)
    pairs = zip(WIDTHS, WIDTHS[1:], keys[:2], keys[2:], strict=False)
    return [(0.5 * jax.random.normal(a, (i, o)), 0.1 * jax.random.normal(b, (o,))) for i, o, a, b in pairs]


def with_time(x_t, t):
    return jnp.concatenate([x_t, jnp.broadcast_to(t[..., None] / 4, (*x_t.shape[:-1], 1)).astype(x_t.dtype)], axis=-1)


def haiku_network(x_t, t):
    hidden = jax.nn.silu(hk.Linear(WIDTHS[1], name="first")(with_time(x_t, t)))
    return hk.Linear(WIDTHS[2], name="second")(hidden)


class NnxNetwork(nnx.Module):
    def __init__(self, rngs, layer=lambda rngs: jax.nn.silu):
        self.first = nnx.Linear(*WIDTHS[:2], rngs=rngs)
        self.second = nnx.Linear(*WIDTHS[1:], rngs=rngs)
        self.layer = layer(rngs)

    def __call__(self, x_t, t):
        return self.second(self.layer(self.first(with_time(x_t, t))))


class EqxNetwork(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear
    layer: object

    def __init__(self, key=None, layer=jax.nn.silu):
        first, second = jax.random.split(jax.random.key(0) if key is None else key)
        self.first, self.second = eqx.nn.Linear(*WIDTHS[:2], key=first), eqx.nn.Linear(*WIDTHS[1:], key=second)
        self.layer = layer

    def __call__(self, x_t, t):
        return self.second(self.layer(self.first(with_time(x_t, t))))


def haiku_transition(seed=0):
    names = ("first", "second")
    params = {name: {"w": w, "b": b} for name, (w, b) in zip(names, weights(seed), strict=True)}
    return nd.Transition(HaikuFunction(haiku_network), params, event_shape=(2,))


def nnx_network(seed=0):
    network = NnxNetwork(nnx.Rngs(0))
    for layer, (w, b) in zip((network.first, network.second), weights(seed), strict=True):
        layer.kernel, layer.bias = nnx.Param(w), nnx.Param(b)
    return network


def eqx_network(seed=0):
    (w, b), (v, c) = weights(seed)
    where = lambda n: (n.first.weight, n.first.bias, n.second.weight, n.second.bias)
    return eqx.tree_at(where, EqxNetwork(), (w.T, b, v.T, c))


def nnx_transition(seed=0):
    return nd.nnx_module("net", nnx_network(seed), **SHAPE)


def eqx_transition(seed=0):
    return nd.eqx_module("net", eqx_network(seed), **SHAPE)


TRANSITIONS = {"haiku": haiku_transition, "nnx": nnx_transition, "eqx": eqx_transition}
BRIDGES = {"nnx": nd.nnx_module, "eqx": nd.eqx_module}
MODULES = {"nnx": nnx_network, "eqx": eqx_network}
either = pytest.mark.parametrize("library", ["nnx", "eqx"])


@either
@pytest.mark.parametrize("t", [2, np.array([1, 2, 4]), np.array([[3], [1]])], ids=["number", "row", "column"])
def test_outputs_are_those_of_haiku_for_every_shape_of_t(library, t):
    x_t = jax.random.normal(jax.random.key(1), (2, 3, 2))
    expected = haiku_transition()(x_t, jnp.asarray(t) + jnp.zeros((2, 3), int))
    tolerance = 20 * jnp.finfo(x_t.dtype).eps
    np.testing.assert_allclose(TRANSITIONS[library]()(x_t, t), expected, rtol=tolerance, atol=tolerance)


@either
def test_draws_are_those_of_haiku(library):
    mine, haiku = (
        nd.Diffusion(KERNEL, TRANSITIONS[name]()).sample(jax.random.key(2), (50,)) for name in (library, "haiku")
    )
    np.testing.assert_allclose(mine, haiku, atol=200 * jnp.finfo(haiku.dtype).eps)
    other = nd.Diffusion(KERNEL, TRANSITIONS[library](1)).sample(jax.random.key(2), (50,))
    assert jnp.abs(other - haiku).max() > 0.1


@either
def test_a_prior_built_anew_compiles_once(library):
    traces = []

    @jax.jit
    def draw(prior, key):
        traces.append(prior)
        return prior.sample(key)

    for seed in range(3):
        draw(nd.Diffusion(KERNEL, TRANSITIONS[library](seed)), jax.random.key(seed))
    assert len(traces) == 1
    assert TRANSITIONS[library](0).function == TRANSITIONS[library](1).function


@either
def test_an_engine_run_again_compiles_nothing(library, monkeypatch):
    calls = []
    network = type(MODULES[library]())
    original = network.__call__

    def counted(self, x_t, t):
        calls.append(t)
        return original(self, x_t, t)

    monkeypatch.setattr(network, "__call__", counted)
    prior = nd.Diffusion(KERNEL, TRANSITIONS[library]())

    def model(y=None):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 2.0).to_event(1), obs=y)

    smc = nd.infer.TwistedSMC(model, 128, 2, "gaussian", progress_bar=False)
    smc.run(jax.random.key(0), y=jnp.zeros(2))
    before = len(calls)
    assert before > 0
    smc.run(jax.random.key(1), y=jnp.ones(2))
    assert len(calls) == before


@either
def test_a_step_of_svi_compiles_once(library):
    traces = []
    module = MODULES[library]()
    bridge = BRIDGES[library]

    def model(x):
        traces.append(x)
        prior = nd.Diffusion(
            KERNEL, bridge("net", module, **SHAPE), estimator=nd.RandomStep(), rng_key=numpyro.prng_key()
        )
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", prior, obs=x)

    svi = SVI(model, lambda x: None, optax.adam(1e-2), Trace_ELBO())
    x = jax.random.normal(jax.random.key(3), (8, 2))
    state = svi.init(jax.random.key(4), x)
    update = jax.jit(svi.update)
    state, _ = update(state, x)
    before = len(traces)
    for _ in range(2):
        state, _ = update(state, x)
    assert len(traces) == before


@either
def test_fit_trains_it_and_the_prior_is_saved_and_loaded(library, tmp_path):
    module = MODULES[library]()
    bridge = BRIDGES[library]

    def model(x, size):
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", nd.Diffusion(KERNEL, bridge("net", module, **SHAPE)), obs=x)

    data = 1.5 + 0.3 * jax.random.normal(jax.random.key(0), (400, 2))
    fitted = nd.fit(
        model,
        data,
        optimizer=optax.adam(3e-2),
        num_steps=150,
        batch_size=64,
        rng_key=jax.random.key(1),
        progress_bar=False,
    )
    start = {"nnx": nd.bridges.nnx_network, "eqx": nd.bridges.eqx_network}[library](module)[1]
    found = fitted.params["net$params"]
    assert set(found) == set(start)
    assert all(jnp.abs(found[name] - start[name]).max() > 0.01 for name in start)
    prior = fitted.distribution("x")
    draws = prior.sample(jax.random.key(2), (500,))
    assert jnp.abs(draws.mean(0) - 1.5).max() < 0.3

    nd.save(prior, tmp_path / "prior.safetensors")
    with pytest.raises(ValueError, match=r"Expected network=\.\.\.; got a file whose network is the custom"):
        nd.load(tmp_path / "prior.safetensors")
    loaded = nd.load(tmp_path / "prior.safetensors", network=TRANSITIONS[library](3).function)
    np.testing.assert_array_equal(loaded.sample(jax.random.key(2), (500,)), draws)


@either
def test_gradients_of_the_weights_are_those_of_haiku(library):
    x = jax.random.normal(jax.random.key(5), (6, 2))

    def loss(params, transition):
        bound = nd.Transition(transition.function, params, (2,))
        prior = nd.Diffusion(KERNEL, bound, estimator=nd.AllSteps(), rng_key=jax.random.key(0))
        return prior.log_prob(x).sum()

    mine, haiku = TRANSITIONS[library](), haiku_transition()
    found = jax.grad(loss)(mine.params, mine)
    expected = jax.grad(loss)(haiku.params, haiku)["first"]["w"]
    got = found["first.kernel"] if library == "nnx" else found["first.weight"].T
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


@either
def test_double_precision(library):
    with enable_x64():
        prior = nd.Diffusion(KERNEL, TRANSITIONS[library]())
        haiku = nd.Diffusion(KERNEL, haiku_transition())
        draws = [p.sample(jax.random.key(2), (5,)) for p in (prior, haiku)]
        assert draws[0].dtype == jnp.float64
        np.testing.assert_allclose(*draws, atol=1e-12)


# What modules hold beside parameters ---------------------------------------------------------------


def test_moving_averages_of_nnx_are_used_as_they_are():
    network = NnxNetwork(nnx.Rngs(0), lambda rngs: nnx.BatchNorm(8, use_running_average=True, rngs=rngs))
    network.layer.mean[...], network.layer.var[...] = jnp.full(8, 0.3), jnp.full(8, 4.0)
    transition = nd.nnx_module("net", network, **SHAPE)
    assert set(transition.state) == {"layer.mean", "layer.var"}
    x_t, t = jnp.ones((1, 2)), jnp.ones((1,), int)
    np.testing.assert_allclose(transition(x_t, t), network(x_t, t), rtol=1e-6)


def test_a_module_of_nnx_in_training_is_refused_by_what_it_changes():
    averages = NnxNetwork(nnx.Rngs(0), lambda rngs: nnx.BatchNorm(8, rngs=rngs))
    with pytest.raises(TypeError, match=r"changes layer\.mean, layer\.var\. Call module\.eval"):
        nd.nnx_module("net", averages, **SHAPE)
    dropout = NnxNetwork(nnx.Rngs(0), lambda rngs: nnx.Dropout(0.5, rngs=rngs))
    with pytest.raises(TypeError, match=r"in evaluation mode; got NnxNetwork, which changes layer\.rngs\.count"):
        nd.nnx_module("net", dropout, **SHAPE)
    dropout.eval()
    x_t, t = jnp.ones((1, 2)), jnp.ones((1,), int)
    found = nd.nnx_module("net", dropout, **SHAPE)(x_t, t)
    np.testing.assert_allclose(found, dropout(x_t, t), rtol=1e-6)


def test_a_module_of_equinox_in_training_is_refused():
    network = EqxNetwork(layer=eqx.nn.Dropout(0.5))
    with pytest.raises(TypeError, match=r"no random key; got RuntimeError: Dropout.*inference_mode\(module\)"):
        nd.eqx_module("net", network, **SHAPE)
    quiet = eqx.nn.inference_mode(network)
    x_t, t = jnp.ones((1, 2)), jnp.ones((1,), int)
    np.testing.assert_allclose(nd.eqx_module("net", quiet, **SHAPE)(x_t, t)[0], quiet(x_t[0], t[0]), rtol=1e-6)


def test_arrays_of_equinox_that_are_no_floats_are_no_parameters():
    class Permuted(eqx.Module):
        order: jax.Array
        linear: eqx.nn.Linear

        def __call__(self, x_t, t):
            return self.linear(x_t)[self.order]

    network = Permuted(jnp.array([1, 0]), eqx.nn.Linear(2, 2, key=jax.random.key(0)))
    transition = nd.eqx_module("net", network, **SHAPE)
    assert set(transition.state) == {"order"}
    assert set(transition.params) == {"linear.weight", "linear.bias"}
    x_t = jnp.ones((1, 2))
    np.testing.assert_allclose(transition(x_t, jnp.ones((1,), int))[0], network(x_t[0], 1), rtol=1e-6)


def test_state_of_equinox_is_refused():
    network = EqxNetwork(layer=eqx.nn.StateIndex(jnp.zeros(3)))
    with pytest.raises(TypeError, match=r"without eqx\.nn\.State; got one with layer\. Take GroupNorm"):
        nd.eqx_module("net", network, **SHAPE)


def test_contexts_reach_both():
    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(5, 2, rngs=rngs)

        def __call__(self, x_t, t, context):
            return self.linear(jnp.concatenate([x_t, context], axis=-1))

    class Eqx(eqx.Module):
        linear: eqx.nn.Linear

        def __call__(self, x_t, t, context):
            return self.linear(jnp.concatenate([x_t, context], axis=-1))

    module = Nnx(nnx.Rngs(0))
    linear = eqx.nn.Linear(5, 2, key=jax.random.key(0))
    linear = eqx.tree_at(lambda n: (n.weight, n.bias), linear, (module.linear.kernel[...].T, module.linear.bias[...]))
    context = jax.random.normal(jax.random.key(1), (4, 3))
    draws = [
        nd.Diffusion(KERNEL, transition, context=context).sample(jax.random.key(2))
        for transition in (
            nd.nnx_module("net", module, context_shape=(3,), **SHAPE),
            nd.eqx_module("net", Eqx(linear), context_shape=(3,), **SHAPE),
        )
    ]
    assert draws[0].shape == (4, 2)
    np.testing.assert_allclose(*draws, atol=1e-5)


# Bad input -----------------------------------------------------------------------------------------


class NnxCall(nnx.Module):
    def __init__(self, call):
        self.scale, self.call = nnx.Param(jnp.ones(())), call

    def __call__(self, x_t, t):
        return self.call(x_t)


class EqxCall(eqx.Module):
    call: object

    def __call__(self, x_t, t):
        return self.call(x_t)


@pytest.mark.parametrize(("bridge", "module"), [(nd.nnx_module, NnxCall), (nd.eqx_module, EqxCall)])
def test_a_wrong_output_is_refused(bridge, module):
    with pytest.raises(ValueError, match=r"of shape \(1, 2\) and dtype float32; got shape \(1, 1\)"):
        bridge("net", module(lambda x: x[..., :1]), **SHAPE)
    with pytest.raises(TypeError, match=r"got dtype float16\. End the network with \.astype\(float32\)"):
        bridge("net", module(lambda x: x.astype(jnp.float16)), **SHAPE)
    with pytest.raises(TypeError, match=r"one array .* got \[\(1, 2\), \(1, 2\)\]"):
        bridge("net", module(lambda x: [x, x]), **SHAPE)
    with pytest.raises(TypeError, match=r"x_t of shape \(1, 2\), t of shape \(1,\)\) and no random key; got TypeError"):
        bridge("net", module(lambda x: x @ jnp.ones((3, 2))), **SHAPE)


@either
def test_an_empty_event_is_refused(library):
    with pytest.raises(ValueError, match=r"Expected event_shape to be a tuple of positive integers; got \(0,\)"):
        BRIDGES[library]("net", MODULES[library](), kernel=KERNEL, event_shape=(0,))


def test_a_module_of_another_library_is_refused():
    with pytest.raises(TypeError, match=r"Expected a module of flax\.nnx; got a EqxNetwork.*eqx_module"):
        nd.nnx_module("net", EqxNetwork(), **SHAPE)
    with pytest.raises(TypeError, match=r"Expected a module of equinox; got a NnxNetwork.*nnx_module"):
        nd.eqx_module("net", nnx_network(), **SHAPE)


def test_settings_that_cannot_be_compared_are_refused():
    class Chosen(eqx.Module):
        columns: set

        def __call__(self, x_t, t):
            return x_t

    with pytest.raises(TypeError, match="Expected a module whose settings are hashable; got Chosen"):
        nd.eqx_module("net", Chosen({1}), **SHAPE)


@either
def test_parameters_of_another_structure_are_refused(library):
    transition = TRANSITIONS[library]()
    wrong = nd.Transition(transition.function, {"w": jnp.ones(2)}, (2,))
    with pytest.raises(ValueError, match=r"Expected parameters \['first\.bias', .* got \['w'\]"):
        wrong(jnp.ones((1, 2)), 1)


@pytest.mark.parametrize(("library", "package"), [("nnx", "flax"), ("eqx", "equinox")])
def test_a_missing_library_is_named_with_its_extra(library, package, monkeypatch):
    module = MODULES[library]()
    bridge = BRIDGES[library]

    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(nd.bridges.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=rf"Expected {package} to be installed; .*'numpyro-diffusion\[bridges\]'"):
        bridge("net", module, **SHAPE)
