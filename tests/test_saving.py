"""save and load: what is loaded is what was saved, to the last bit; what cannot be loaded again is not written."""

import dataclasses
import functools
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from catalogue import affine, bernoulli, draw, gaussian, log_prob
from numpyro.distributions import constraints, transforms
from precision import enable_x64

import numpyro_diffusion as nd
from numpyro_diffusion import networks
from numpyro_diffusion.io import settings as tables
from numpyro_diffusion.io.saving import unpack
from numpyro_diffusion.modules import HaikuFunction
from numpyro_diffusion.wrappers import wrapped_diffusion

T = 3
KEY = jax.random.key(7)
MLP = networks.MLP(T, num_outputs=2, width=4, depth=1, num_time_features=2, num_frequencies=1)


def weighted(function, event_shape=(2,), context_shape=None, init_kwargs=None):
    """A transition of a Haiku network with some weights and state; from Haiku only their names, shapes and dtypes."""
    x_t = jnp.zeros((1, *event_shape))
    context = None if context_shape is None else jnp.zeros((1, *context_shape))
    function = HaikuFunction(function)
    init = functools.partial(function.init, **(init_kwargs or {}))
    shapes = jax.eval_shape(init, jax.random.key(0), x_t, jnp.ones((1,), int), context)
    random = np.random.default_rng(0)
    params, state = jax.tree.map(lambda leaf: jnp.asarray(0.5 * random.normal(size=leaf.shape), leaf.dtype), shapes)
    state = jax.tree.map(jnp.abs, state)  # a variance is among it
    return nd.Transition(function, params, event_shape, context_shape, state or None)


def with_moving_average(x_t, t, is_training=False):
    x_t = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.5)(x_t, is_training=is_training)
    return hk.Linear(x_t.shape[-1])(x_t)


def with_a_second_layer(x_t, t, is_training=False):
    return hk.Linear(x_t.shape[-1], name="second")(with_moving_average(x_t, t, is_training))


def plain(params, x_t, t, context):
    return params["gain"] * x_t


class OwnKernel(nd.GaussianKernel):
    pass


def conditional(kernel, num_outputs):
    network = networks.MLP(T, num_outputs, width=4, depth=1, num_time_features=2)
    context = jnp.asarray([[0.3], [-0.5], [1.0]], float)
    transition = weighted(network, context_shape=(1,))
    return nd.Diffusion(kernel, transition, context=context, estimator=nd.RandomStep(), rng_key=KEY)


def diffusion(kernel, network, event_shape=(2,), **kwargs):
    return nd.Diffusion(kernel, weighted(network, event_shape), rng_key=KEY, **kwargs)


def mixture():
    kernel = gaussian(parameterization="x0", variance="denoiser")
    return nd.Diffusion(
        kernel, nd.analytic.gaussian_mixture(kernel, np.array([[-1.0], [2.0]]), 0.5, np.ones(2)), rng_key=KEY
    )


def learned_kernel():
    return nd.GaussianKernel(nd.schedules.learned(jnp.asarray([0.3, 1.1])), data_scale=1 / 3)


# What the package can build without help.
OWN = {
    "gaussian MLP": lambda: diffusion(gaussian(), MLP),
    "gaussian RBF": lambda: diffusion(gaussian(), networks.RBF(T, num_units=3)),
    "gaussian StepReadoutMLP": lambda: diffusion(gaussian(), networks.StepReadoutMLP(T, 2, width=3, depth=1)),
    "gaussian UNet": lambda: diffusion(
        gaussian(), networks.UNet(T, width=4, num_levels=1, attention=False, num_time_features=2), (2, 2, 1)
    ),
    "gaussian MultiScaleConv": lambda: diffusion(
        gaussian(parameterization="paper"),
        networks.MultiScaleConv(T, conv_layers=1, conv_width=2, pixel_layers=0, event_dim=2, bfloat16=True),
        (2, 2),
    ),
    "gaussian conditional": lambda: conditional(gaussian(), 2),
    "gaussian mixture": mixture,
    "gaussian learned schedule": lambda: diffusion(learned_kernel(), MLP, estimator=nd.ImportanceWeighted(2)),
    "bernoulli MLP": lambda: diffusion(
        bernoulli(rate=0.3), networks.MLP(T, 1, width=4, depth=1), estimator=nd.RandomStep()
    ),
    "bernoulli RBF": lambda: diffusion(bernoulli(rate=jnp.asarray([0.3, 0.6])), networks.RBF(T, 1, num_units=3)),
    "bernoulli StepReadoutMLP": lambda: diffusion(
        bernoulli(rate=np.asarray([1 / 3, 0.6]), parameterization="logits"),
        networks.StepReadoutMLP(T, width=3, depth=1),
        estimator=nd.AllSteps(2),
    ),
}


# One of each kernel and estimator: each costs a compilation.
ESTIMATED = ("gaussian learned schedule", "gaussian conditional", "bernoulli MLP", "bernoulli StepReadoutMLP")


@pytest.fixture(name="path")
def _path(tmp_path):
    return tmp_path / "prior.safetensors"


def again(prior, path, **kwargs):
    nd.save(prior, path)
    return nd.load(path, **kwargs)


def kind(leaf):
    """What decides a result: NumPy's or JAX's, dtype, shape and bytes."""
    if not isinstance(leaf, (np.ndarray, np.generic, jax.Array)):
        return type(leaf), leaf
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf.dtype, jax.random.key_data(leaf).tolist()
    return isinstance(leaf, jax.Array), leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()


def assert_equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert kind(one) == kind(other)


@pytest.mark.parametrize("name", OWN)
def test_draws_and_log_prob_are_the_same_to_the_last_bit(name, path):
    prior = OWN[name]()
    loaded = again(prior, path)
    assert_equal(prior, loaded)
    key = jax.random.key(1)
    compiled = draw._cache_size()
    draws = draw(prior, key, (2,))
    np.testing.assert_array_equal(draw(loaded, key, (2,)), draws)
    assert draw._cache_size() == compiled + 1  # equal to JAX too
    if name in ESTIMATED:
        np.testing.assert_array_equal(log_prob(loaded, draws), log_prob(prior, draws))


def test_settings_are_numbers_whose_range_is_checked():
    for classes in (tables.NETWORKS, tables._FUNCTIONS, tables._ESTIMATORS):
        kinds = {kind for cls in classes.values() for kind in tables._settings(cls).values()}
        assert kinds <= {int, bool, float, Any}
    for kind, right, wrong in (
        (int, (0, 7), (-1, 2**21, True, 1.0, "1")),
        (bool, (True,), (1, "x")),
        (float, (0.5, 2), (float("nan"), float("inf"), True, "1", None)),
        (Any, ((0.5, 1.0), [2]), ("ab", {"a": 1}, (None,), ((1.0,),), 3.0)),
    ):
        assert all(tables._is_setting(kind, value) for value in right)
        assert not any(tables._is_setting(kind, value) for value in wrong)


@pytest.mark.parametrize(
    ("parameterization", "variance"),
    [("v", "learned"), ("noise", "lower"), ("x0", "denoiser"), ("score", "upper"), ("paper", "learned")],
)
def test_every_setting_of_the_gaussian_kernel_comes_back(parameterization, variance, path):
    kernel = gaussian(parameterization=parameterization, variance=variance, data_scale=np.pi)
    prior = nd.Diffusion(kernel, affine((2,), kernel.num_outputs))
    assert_equal(prior, again(prior, path, network=prior.transition.function))


def test_another_process_draws_the_same(path):
    prior = OWN["gaussian MLP"]()
    nd.save(prior, path)
    code = (
        "import sys, jax, numpyro_diffusion as nd; prior = nd.load(sys.argv[1]);"
        "draws = jax.jit(lambda prior: prior.sample(jax.random.key(1), (2,)))(prior);"
        "named = nd.Diffusion(prior.kernel, prior.transition, estimator=nd.RandomStep(), rng_key=prior.rng_key);"
        "scores = jax.jit(lambda named, draws: named.log_prob(draws))(named, draws);"
        "print(draws.tobytes().hex(), scores.tobytes().hex())"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(nd.__file__).parent.parent), "PYTHONHASHSEED": "3"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # as here
    command = [sys.executable, "-W", "error", "-c", code, str(path)]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    draws = jax.jit(lambda prior: prior.sample(jax.random.key(1), (2,)))(prior)
    named = nd.Diffusion(prior.kernel, prior.transition, estimator=nd.RandomStep(), rng_key=prior.rng_key)
    scores = jax.jit(lambda named, draws: named.log_prob(draws))(named, draws)
    assert printed.stdout.split() == [np.asarray(x).tobytes().hex() for x in (draws, scores)]


def test_a_trained_distribution_is_saved_and_serves_as_a_prior(path):
    def model(x, size):
        transition = nd.haiku_module("net", MLP, kernel=gaussian(), event_shape=(2,))
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", nd.Diffusion(gaussian(), transition), obs=x)

    settings = {"num_steps": 2, "batch_size": 4, "rng_key": KEY, "progress_bar": False}
    fitted = nd.fit(model, np.zeros((8, 2), np.float32), optimizer=numpyro.optim.Adam(1e-2), **settings)
    loaded = again(fitted.distribution("x"), path)
    jax.tree.map(np.testing.assert_array_equal, loaded.transition.params, fitted.params["net$params"])


@pytest.mark.parametrize(
    "rng_key", [None, jax.random.key(3), jax.random.PRNGKey(3), jax.random.key(3, impl="rbg")], ids=str
)
def test_key_batch_shape_and_validation_come_back(rng_key, path):
    prior = nd.Diffusion(gaussian(), weighted(MLP), rng_key=rng_key, validate_args=True).expand((2, 3))
    loaded = again(prior, path)
    assert loaded.batch_shape == (2, 3)
    assert_equal(prior, loaded)
    assert loaded._validate_args is True


def test_parameters_of_any_structure_and_dtype_come_back(path):
    numbers = np.asarray([[0.1, -0.0, 1e-40], [np.inf, 3.0, 7.0]])
    params = {
        "gain": jnp.asarray(0.1),
        "linear/w": [numbers, numbers.T[::2], numbers.astype(">f4")[0].astype("<f4"), np.float64(1 / 3) * np.ones(())],
        "linear": {"w": (jnp.full((2,), 0.3), jnp.asarray([1, 2], jnp.uint8), None, jnp.zeros((0, 3)))},
        "": [jnp.asarray(numbers, dtype) for dtype in (jnp.bfloat16, jnp.float16, jnp.float32)],
        "é\n\x1f": {"a": np.arange(-2, 2), "b": jnp.asarray([True, False]), "c": jnp.asarray(3), "key": KEY},
        "empty": ({}, [], ()),
        "scalars": [0.1, 2, True, -(2**31)],
        "__metadata__": np.asarray(2**64 - 1, np.uint64),
    }
    prior = nd.Diffusion(gaussian(variance="lower"), nd.Transition(plain, params, (2,)))
    loaded = again(prior, path, network=plain)
    assert list(loaded.transition.params) == list(params)
    assert_equal(prior, loaded)
    assert type(loaded.transition.params["linear"]["w"]) is tuple
    assert loaded.transition.params["linear/w"][0].flags.writeable


def test_settings_may_be_integers_of_numpy(no_type_checks, path):
    loaded = again(diffusion(gaussian(), dataclasses.replace(MLP, width=np.int64(4))), path)
    assert loaded.transition.function.network == MLP


def test_other_byte_orders_are_saved_in_this_one(path):
    prior = nd.Diffusion(gaussian(variance="lower"), nd.Transition(plain, {"gain": np.asarray(0.3, ">f8")}, (2,)))
    gain = again(prior, path, network=plain).transition.params["gain"]
    assert gain == 0.3
    assert gain.dtype.isnative


def test_double_precision_comes_back_and_is_never_rounded_in_silence(path):
    with enable_x64(True):
        prior = diffusion(gaussian(), MLP)
        assert_equal(prior, again(prior, path))
        assert {leaf.dtype for leaf in jax.tree.leaves(prior.transition.params)} == {jnp.dtype("float64")}
    with pytest.raises(ValueError, match=r"64-bit arrays.*params/.*float64; got JAX in 32 bits.*jax_enable_x64"):
        nd.load(path)


def test_the_same_prior_gives_the_same_bytes(path):
    prior = OWN["bernoulli RBF"]()
    nd.save(prior, path)
    first = path.read_bytes()
    nd.save(nd.load(path), path)
    assert path.read_bytes() == first


# A network or a kernel of one's own -------------------------------------------------------------------


def test_a_network_of_ones_own_is_passed_as_it_was_to_haiku_module(path):
    prior = nd.Diffusion(
        gaussian(variance="upper"), weighted(with_moving_average, init_kwargs={"is_training": True}), rng_key=KEY
    )
    assert prior.transition.state is not None
    loaded = again(prior, path, network=with_moving_average)
    assert_equal(prior, loaded)
    np.testing.assert_array_equal(draw(prior, KEY, (2,)), draw(loaded, KEY, (2,)))
    assert_equal(prior, nd.load(path, network=HaikuFunction(with_moving_average)))
    with pytest.raises(
        ValueError, match=r"network=\.\.\.; got a file whose network is the custom .*moving_average. Pass"
    ):
        nd.load(path)
    with pytest.raises(ValueError, match=r"a network that runs with all the file's parameters.*second"):
        nd.load(path, network=with_a_second_layer)


def test_a_transition_function_of_ones_own_is_passed_as_it_is(path):
    prior = nd.Diffusion(gaussian(), affine((2,), 2), rng_key=KEY)
    assert_equal(prior, again(prior, path, network=prior.transition.function))
    with pytest.raises(ValueError, match=r"custom catalogue.Affine. Pass what was trained"):
        nd.load(path)
    with pytest.raises(
        ValueError, match=r"events of shape \(2,\); got <function plain.*TypeError: Expected the transition"
    ):
        nd.load(path, network=plain)  # one output, where the kernel needs two


def test_a_smaller_network_than_the_trained_one_is_refused(path):
    def linear(x_t, t):
        return hk.Linear(2, name="first")(x_t)

    def two(x_t, t):
        return hk.Linear(2, name="last")(linear(x_t, t))

    nd.save(nd.Diffusion(gaussian(variance="upper"), weighted(two)), path)
    with pytest.raises(ValueError, match=r"all the file's parameters .*linear.*, which does not use .*last"):
        nd.load(path, network=linear)


def test_a_network_that_the_file_has_is_not_replaced(path):
    prior = OWN["gaussian MLP"]()
    assert_equal(prior, again(prior, path, network=MLP))
    with pytest.raises(ValueError, match=r"no network=\.\.\., the file has MLP\(num_steps=3.*got MLP\(num_steps=4"):
        nd.load(path, network=dataclasses.replace(MLP, num_steps=4))


def test_a_kernel_of_ones_own_is_passed_or_made_from_the_schedule(path):
    prior = nd.Diffusion(OwnKernel(gaussian().schedule), weighted(MLP))
    nd.save(prior, path)
    for kernel in (OwnKernel, prior.kernel):
        loaded = nd.load(path, kernel=kernel)
        assert type(loaded.kernel) is OwnKernel
        np.testing.assert_array_equal(loaded.kernel.schedule.beta, prior.kernel.schedule.beta)
    with pytest.raises(
        ValueError, match=r"kernel=\.\.\.; got a file whose kernel is the custom .*OwnKernel. Pass what"
    ):
        nd.load(path)
    with pytest.raises(ValueError, match=r"kernel=\.\.\. with the file's schedule; got"):
        nd.load(path, kernel=OwnKernel(nd.schedules.log_snr(T)))
    nd.save(OWN["gaussian MLP"](), path)
    with pytest.raises(ValueError, match=r"no kernel=\.\.\., the file has .*GaussianKernel.*; got"):
        nd.load(path, kernel=OwnKernel)


# Wrappers ---------------------------------------------------------------------------------------------

WRAPPED = {
    "affine": lambda: transformed(transforms.AffineTransform(jnp.asarray([100.0, -3.0]), np.asarray([5.0, 0.1]))),
    "whitening, exp and to an interval": lambda: transformed(
        transforms.LowerCholeskyAffine(jnp.asarray([1.0, 2.0]), jnp.asarray([[2.0, 0.0], [0.3, 0.5]])),
        transforms.ComposeTransform([transforms.SigmoidTransform(), transforms.AffineTransform(-2.0, 10.0)]),
    ),
    "exp": lambda: transformed(transforms.ExpTransform(), transforms.AffineTransform(0.0, 2.0, constraints.positive)),
    "simplex": lambda: transformed(transforms.StickBreakingTransform()),
    "independent": lambda: transformed(transforms.IndependentTransform(transforms.SoftplusTransform(), 1)),
    "ordered": lambda: transformed(transforms.PermuteTransform(jnp.asarray([1, 0])), transforms.OrderedTransform()),
    "power of rows": lambda: (
        transformed(transforms.ExpTransform(), transforms.PowerTransform(0.5)).expand((4, 3)).to_event(1)
    ),
    "our own": lambda: transformed(
        nd.transforms.SinhArcsinh(jnp.asarray([0.0, 0.2]), jnp.asarray(0.7)),
        nd.transforms.BySupport(("real", "positive")),
        nd.transforms.InsertConstants((None, 3.0, None)),
    ),
    "expanded inside": lambda: dist.TransformedDistribution(
        with_params({"gain": 0.5}), transforms.AffineTransform(jnp.asarray([[0.0], [1.0], [2.0]]), 1.0)
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_transformed_prior_comes_back(name, path):
    """Its draws to the last bit, its support and its shapes."""
    prior = WRAPPED[name]()
    nd.save(prior, path)
    loaded = nd.load(path, network=plain)
    assert (loaded.batch_shape, loaded.event_shape) == (prior.batch_shape, prior.event_shape)
    assert type(loaded) is type(prior)
    assert repr(loaded.support) == repr(prior.support)
    x = draw(prior, KEY, (2,))
    assert np.array_equal(draw(loaded, KEY, (2,)), x)
    one, other = (wrapped_diffusion(distribution) for distribution in (loaded, prior))
    assert np.array_equal(one.state(x), other.state(x))


def test_a_diffusion_is_saved_as_older_versions_read_it(path):
    nd.save(with_params({"gain": 0.5}), path)
    assert unpack(path)[1]["format"] == 1
    nd.save(transformed(transforms.ExpTransform()), path)
    assert unpack(path)[1]["format"] == 2


# Writing ----------------------------------------------------------------------------------------------


def own_estimator(rng_key, chain, x_0):
    return jnp.zeros(())


def with_params(params):
    return nd.Diffusion(gaussian(variance="lower"), nd.Transition(plain, params, (2,)))


class OwnTransform(transforms.AffineTransform):
    pass


def transformed(*parts):
    return dist.TransformedDistribution(with_params({"gain": 0.5}), list(parts))


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (lambda: dist.Normal(), "a Diffusion, alone or .*; got Normal"),
        (lambda: OWN["gaussian MLP"]().chain, "a Diffusion, alone or .*; got ReverseChain"),
        (lambda: OWN["gaussian MLP"]().mask(False), "a Diffusion, alone or .*; got MaskedDistribution"),
        (lambda: transformed(transforms.AbsTransform()), "transforms with an inverse; got AbsTransform"),
        (
            lambda: transformed(transforms.AffineTransform(1.0, jnp.zeros(2))),
            "transforms with an inverse; got AffineTransform with a scale of 0",
        ),
        (
            lambda: transformed(OwnTransform(0.0, 1.0)),
            "a transform out of AffineTransform, .*; got OwnTransform. .*apply your transform to the one that is load",
        ),
        (
            lambda: transformed(transforms.HaarTransform()),
            "a transform out of .*; got HaarTransform",
        ),
        (
            lambda: transformed(transforms.AffineTransform(0.0, 1.0, domain=constraints.greater_than(3.0))),
            "a domain out of real, positive, unit_interval for AffineTransform",
        ),
        (
            lambda: nd.Diffusion(gaussian(), weighted(MLP), estimator=own_estimator),
            "an estimator out of .*RandomStep",
        ),
        (lambda: with_params({"gain": 0.1, 3: 0.2}), "dicts with string keys at 'params'; got .*3"),
        (lambda: with_params({"gain": 1.0, "own": stat}), "at 'params/own'; got module"),
        (lambda: with_params({"gain": 1j * np.ones(2)}), "a dtype out of .*at 'params/gain'; got .*complex128"),
        (lambda: with_params({"gain": np.asarray(["a"])}), "a dtype out of"),
        (lambda: with_params({}), "a network that runs with all the file's parameters .*KeyError: 'gain'"),
        (lambda: with_params({"gain": jnp.ones(3)}), "a network that runs with all the file's parameters"),
        (lambda: diffusion(gaussian(), dataclasses.replace(MLP, num_time_features=True)), "num_time_features of MLP"),
        (
            lambda: diffusion(gaussian(), networks.UNet(T, width=4, num_levels=1, attention=1), (2, 2, 1)),
            "attention of UNet as .*bool.*; got 1",
        ),
    ],
)
def test_what_could_not_be_loaded_again_is_not_written(no_type_checks, prior, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        nd.save(prior(), tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_saving_inside_jit_is_refused(path):
    with pytest.raises(
        ValueError, match=r"concrete arrays .* at 'params/gain'; got DynamicJaxprTracer.*Save outside of jax.jit"
    ):
        jax.jit(lambda gain: nd.save(with_params({"gain": gain}), path))(1.0)


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    nd.save(OWN["gaussian MLP"](), path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"exists, may be written to and has room; got .*No space left on device. Choose"):
        nd.save(OWN["gaussian RBF"](), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_places_that_cannot_be_written_to_are_named(tmp_path):
    prior = with_params({"gain": 1.0})
    with pytest.raises(FileNotFoundError, match=r"a directory that exists.*missing.*No such file"):
        nd.save(prior, tmp_path / "missing" / "file")
    with pytest.raises(IsADirectoryError, match=r"a file in a directory .*Is a directory"):
        nd.save(prior, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_link_is_followed_and_others_may_read_the_file(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    nd.save(with_params({"gain": 1.0}), str(link))
    assert link.is_symlink()
    assert nd.load(target, network=plain).transition.params == {"gain": 1.0}
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask
