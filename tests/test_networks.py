"""The networks: shapes for every way t can broadcast, one readout for each step, the formulas of the paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion.modules import HaikuFunction
from numpyro_diffusion.networks import MLP, RBF, StepReadoutMLP
from numpyro_diffusion.networks.common import fourier_features, time_features

NETWORKS = [
    MLP(5, 2, width=8, depth=1, num_frequencies=2),
    MLP(5, 1, width=8, depth=2),
    StepReadoutMLP(5, 1, width=6, depth=2),
    StepReadoutMLP(5, 2, width=6, depth=1),
    RBF(5, 2, num_units=4),
    RBF(5, 1, num_units=4),
]


@functools.cache
def compiled(network):
    """One program for each network and shape serves every test."""
    return jax.jit(HaikuFunction(network))


def initialised(network, event_shape=(3,), context=None):
    """Weights as after some training, none of them zero; only their names and shapes come from Haiku."""
    function = HaikuFunction(network)
    example = jnp.ones((1, *event_shape)), jnp.ones((1,), int), context
    shapes, _ = jax.eval_shape(function.init, jax.random.key(0), *example)
    random = np.random.default_rng(0)

    def trained(path, leaf):
        start = float(path[-1].key == "scale")  # of a norm
        return jnp.asarray(start + 0.3 * random.normal(size=leaf.shape), leaf.dtype)

    return compiled(network), jax.tree.map_with_path(trained, shapes)


@pytest.mark.parametrize("network", NETWORKS, ids=repr)
def test_time_broadcasts_from_a_scalar_to_the_full_batch(network):
    function, params = initialised(network)
    x = jax.random.normal(jax.random.key(2), (2, 4, 3))
    t = jnp.array([[1, 2, 3, 5], [5, 1, 1, 4]])
    full = function(params, x, t, None)
    assert isinstance(full, tuple) == (network.num_outputs > 1)
    for output in jax.tree.leaves(full):
        assert output.shape == x.shape
    by_row = [function(params, x[i, j], t[i, j], None) for i in range(2) for j in range(4)]
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows).reshape(x.shape), *by_row)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), full, stacked)
    same_t = function(params, x, t[0], None)  # shape (4,) broadcasts over the first axis
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b[0], rtol=1e-4, atol=1e-5), same_t, full)


@pytest.mark.parametrize("network", [NETWORKS[2], NETWORKS[4]], ids=repr)
def test_readouts_are_separate_for_every_step_and_layers_are_shared(network):
    function, params = initialised(network)
    x = jnp.ones((3,))

    def first_output(params, t):
        return jax.tree.leaves(function(params, x, jnp.asarray(t), None))[0].sum()

    gradient = jax.tree.leaves(jax.jit(jax.grad(first_output))(params, 2))
    readouts = [leaf for leaf in gradient if leaf.shape[:1] == (5,)]
    assert len(readouts) == 2
    for leaf in readouts:
        steps = jnp.abs(leaf).reshape(5, -1).sum(-1)
        assert steps[1] > 0
        assert (steps[jnp.array([0, 2, 3, 4])] == 0).all()
    shared = [leaf for leaf in gradient if leaf.shape[:1] != (5,)]
    assert shared
    assert all(jnp.abs(leaf).sum() > 0 for leaf in shared)


def test_rbf_is_the_normalised_radial_basis_formula():
    network = RBF(2, 1, num_units=3)
    function, params = initialised(network, event_shape=(2,))
    (values,) = params.values()
    x = np.array([0.3, -0.8])
    bumps = np.exp(-((x - values["centres"]) ** 2).sum(-1) / (2 * np.exp(values["log_widths"]) ** 2))
    expected = (bumps / bumps.sum()) @ values["readout_w"][1] + values["readout_b"][1]
    np.testing.assert_allclose(function(params, jnp.asarray(x, jnp.float32), jnp.asarray(2), None), expected, rtol=1e-4)


def test_mlp_starts_at_zero():
    function = HaikuFunction(MLP(5, 2, width=8, depth=1))
    example = jnp.ones((1, 3)), jnp.ones((1,), int), None
    for output in jax.jit(lambda key: function(function.init(key, *example)[0], *example))(jax.random.key(0)):
        assert (output == 0).all()


@pytest.mark.parametrize("event_shape", [(), (2, 3)])
def test_mlp_takes_events_of_any_rank(event_shape):
    network = MLP(5, 2, width=8, depth=1, event_dim=len(event_shape))
    function, params = initialised(network, event_shape)
    for output in function(params, jnp.ones((4, *event_shape)), jnp.ones((4,), int), None):
        assert output.shape == (4, *event_shape)


def test_mlp_uses_its_context():
    network = MLP(5, 1, width=8, depth=1, context_dim=2)
    function, params = initialised(network, context=jnp.zeros((1, 2, 2)))
    x, t = jnp.ones((4, 3)), jnp.asarray(1)
    context = jnp.zeros((4, 2, 2)).at[1].set(1.0)
    output = function(params, x, t, context)
    assert not np.allclose(output[1], output[0])
    np.testing.assert_allclose(output[2], output[0], rtol=1e-6)


def test_a_modulated_mlp_scales_and_shifts_each_layer_by_time_and_context():
    network = MLP(5, 1, width=6, depth=2, modulated=True)
    function, params = initialised(network, context=jnp.zeros((1, 2)))
    rng = np.random.default_rng(0)
    leaves, structure = jax.tree.flatten(params)
    params = structure.unflatten(jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves)
    x, t, context = rng.normal(size=(4, 3)), 2, rng.normal(size=(4, 2))

    def linear(name, value):
        return value @ np.asarray(params[name]["w"]) + np.asarray(params[name]["b"])

    def silu(value):
        return value / (1 + np.exp(-value))

    time = silu(linear("time", np.asarray(time_features(jnp.asarray(t), 5, 16))))
    told = silu(linear("told", context) + linear("told_time", time))
    hidden = linear("input", np.concatenate([x, context], axis=-1))
    for layer in range(2):
        inner = hidden * (1 + linear(f"factor_{layer}", told)) + linear(f"time_{layer}", told)
        hidden = hidden + linear(f"hidden_{layer}", silu(inner))
    expected = linear("output", silu(hidden))
    found = function(params, jnp.asarray(x, float), jnp.asarray(t), jnp.asarray(context, float))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_without_a_context_nothing_is_modulated():
    plain, modulated = (initialised(MLP(5, 2, width=8, depth=1, modulated=flag))[1] for flag in (False, True))
    assert jax.tree.structure(plain) == jax.tree.structure(modulated)


def test_features_have_their_documented_shapes_and_values():
    assert time_features(jnp.ones((3, 2), int), 10, 4).shape == (3, 2, 9)
    features = fourier_features(jnp.array([0.5]), 2)
    np.testing.assert_allclose(features, [0.5, np.sin(0.5), np.sin(1.0), np.cos(0.5), np.cos(1.0)], rtol=1e-6)
    assert fourier_features(jnp.ones((2, 3)), 0).shape == (2, 3)
