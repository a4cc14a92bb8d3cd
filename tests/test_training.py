"""fit: batches, averages, repeatability, what it returns, what it refuses."""

import re
import sys

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer.autoguide import AutoNormal

import numpyro_diffusion as nd

KERNEL = nd.GaussianKernel(nd.schedules.log_snr(4))
NETWORK = nd.networks.MLP(4, 2, width=4, depth=1)
DATA = np.asarray(jax.random.normal(jax.random.key(0), (20, 1)))
SETTINGS = {"optimizer": optax.adam(1e-2), "num_steps": 7, "batch_size": 5, "progress_bar": False}


def model(x, size):
    transition = nd.haiku_module("net", NETWORK, kernel=KERNEL, event_shape=(1,))
    with numpyro.plate("data", size, subsample_size=len(x)):
        numpyro.sample("x", nd.Diffusion(KERNEL, transition), obs=x)


@pytest.fixture(scope="module", name="fitted")
def _fitted():
    return nd.fit(model, DATA, rng_key=jax.random.key(1), **SETTINGS)


def test_the_same_key_gives_the_same_parameters_and_another_key_others(fitted):
    again = nd.fit(model, DATA, rng_key=jax.random.key(1), **SETTINGS)
    jax.tree.map(np.testing.assert_array_equal, fitted.params, again.params)
    other = nd.fit(model, DATA, rng_key=jax.random.key(2), **SETTINGS)
    assert not np.array_equal(fitted.losses, other.losses)
    assert fitted.losses.shape == (7,)


def test_steps_do_not_depend_on_how_many_follow(fitted):
    shorter = nd.fit(model, DATA, rng_key=jax.random.key(1), **{**SETTINGS, "num_steps": 3})
    np.testing.assert_array_equal(shorter.losses, fitted.losses[:3])


def test_the_distribution_is_free_of_plates_and_keeps_the_parameters(fitted):
    prior = fitted.distribution("x")
    assert prior.batch_shape == ()
    jax.tree.map(np.testing.assert_array_equal, prior.transition.params, fitted.params["net$params"])
    assert prior.estimator is None


def test_the_distribution_can_be_asked_for_inside_of_another_model(fitted):
    def another():
        return numpyro.sample("x", fitted.distribution("x"))

    assert list(numpyro.handlers.trace(numpyro.handlers.seed(another, 0)).get_trace()) == ["x"]


def test_steps_with_convolutions_are_dispatched_one_by_one_to_the_same_end(monkeypatch):
    """On the CPU; a loop would be slow, and is the same but for rounding."""

    def convolution(x_t, t):
        return hk.Conv1D(1, 3)(x_t[..., None])[..., 0], 0 * x_t

    def convolving(x, size):
        transition = nd.haiku_module("net", convolution, kernel=KERNEL, event_shape=(5,))
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", nd.Diffusion(KERNEL, transition), obs=x)

    data = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    run = sys.modules["numpyro_diffusion.training.fit"]._Run
    was_slow, ask = [], run._has_slow_loops
    monkeypatch.setattr(run, "_has_slow_loops", lambda *args: was_slow.append(ask(*args)) or was_slow[-1])
    one_by_one = nd.fit(convolving, data, rng_key=jax.random.key(1), ema_decay=0.9, **SETTINGS)
    monkeypatch.setattr(run, "_has_slow_loops", lambda *args: False)
    in_a_loop = nd.fit(convolving, data, rng_key=jax.random.key(1), ema_decay=0.9, **SETTINGS)
    assert was_slow == [jax.default_backend() == "cpu"]
    np.testing.assert_allclose(one_by_one.losses, in_a_loop.losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), one_by_one.params, in_a_loop.params)


def test_the_average_of_parameters_lags_behind_them():
    def counting(x, size):
        numpyro.param("w", 0.0)
        numpyro.factor("pull", size * numpyro.param("w", 0.0))

    settings = {**SETTINGS, "optimizer": optax.sgd(0.1 / 20)}
    last = nd.fit(counting, DATA, rng_key=jax.random.key(0), **settings).params["w"]
    average = nd.fit(counting, DATA, rng_key=jax.random.key(0), ema_decay=0.5, **settings).params["w"]
    assert last == pytest.approx(0.7, rel=1e-5)
    expected = 0.0
    for index in range(7):
        weight = max(0.5, 9 / (10 + index))
        expected += weight * (0.1 * (index + 1) - expected)
    assert average == pytest.approx(expected, rel=1e-5)


def test_a_prior_trains_jointly_with_other_latents_and_a_guide():
    def joint(x, size):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", nd.Diffusion(KERNEL, pairs((1,))), obs=x / scale)

    fitted = nd.fit(joint, DATA, guide=AutoNormal(joint), rng_key=jax.random.key(3), **SETTINGS)
    assert {"shift", "scale_auto_loc", "scale_auto_scale"} <= set(fitted.params)


def test_rows_may_be_a_pytree():
    def paired(batch, size):
        transition = pairs((1,), context_shape=(1,))
        with numpyro.plate("data", size, subsample_size=len(batch["x"])):
            numpyro.sample("x", nd.Diffusion(KERNEL, transition, context=batch["c"]), obs=batch["x"])

    fitted = nd.fit(paired, {"x": DATA, "c": 2 * DATA}, rng_key=jax.random.key(0), **SETTINGS)
    distributions = fitted.distribution("x", context=jnp.zeros((3, 1)))
    assert (distributions.batch_shape, distributions.event_shape) == ((3,), (1,))
    assert jax.eval_shape(lambda key: distributions.sample(key, (2,)), jax.random.key(1)).shape == (2, 3, 1)
    with pytest.raises(ValueError, match=r"a context of trailing shape \(1,\); got None"):
        fitted.distribution("x")


def test_the_progress_bar_shows_bits_and_can_be_turned_off(capfd):
    def light(x, size):
        numpyro.factor("pull", -size * (numpyro.param("w", 0.0) - x.mean()) ** 2)

    nd.fit(light, DATA, rng_key=jax.random.key(1), **{**SETTINGS, "progress_bar": True})
    assert "bits" in capfd.readouterr().err
    nd.fit(light, DATA, rng_key=jax.random.key(1), **SETTINGS)
    # XLA logs for itself, as where it loads a program that another worker compiled.
    assert [line for line in capfd.readouterr().err.splitlines() if not re.match(r"[EWI]\d{4} ", line)] == []


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        (np.zeros((0, 1)), {}, "data with at least one row"),
        ((), {}, "data with at least one row"),
        (DATA, {"batch_size": 21}, "batch_size <= 20, the rows of data; got 21"),
        (DATA, {"batch_size": 0}, "batch_size to be an integer >= 1"),
        (DATA, {"num_steps": 0}, "num_steps to be an integer >= 1"),
        (DATA, {"ema_decay": 1.0}, r"ema_decay in \(0, 1\); got 1.0"),
        ({"a": DATA, "b": DATA[:3]}, {}, "equal first dimensions"),
    ],
)
def test_bad_arguments_are_named(no_type_checks, data, changes, message):
    with pytest.raises(ValueError, match=message):
        nd.fit(model, data, rng_key=jax.random.key(0), **{**SETTINGS, **changes})


def test_a_loss_that_is_not_finite_stops_with_its_step():
    def lost(x, size):
        numpyro.factor("log", jnp.log(numpyro.param("w", -1.0)))

    with pytest.raises(FloatingPointError, match=r"a finite loss; got nan at step 0.*clip gradients"):
        nd.fit(lost, DATA, rng_key=jax.random.key(0), **SETTINGS)


def test_unknown_sites_are_named(fitted):
    with pytest.raises(KeyError, match="a sample site of the model, one of \\['x'\\]; got 'z'"):
        fitted.distribution("z")


# Transforms ---------------------------------------------------------------------------------------------

PAIRS = np.asarray([13.0, -4.0]) + np.asarray([2.0, 0.5]) * np.asarray(jax.random.normal(jax.random.key(5), (20, 2)))
UNITS = dist.transforms.AffineTransform(jnp.asarray([13.0, -4.0]), jnp.asarray([2.0, 0.5]))


def shifted(params, x_t, t, context):
    return x_t - params if context is None else x_t - context, 0 * x_t


def pairs(event_shape=(2,), **changes):
    return nd.Transition(shifted, numpyro.param("shift", 0.3 * jnp.ones(event_shape)), event_shape, **changes)


def diffusion():
    return nd.Diffusion(KERNEL, pairs())


def of_distribution(make):
    def model(x, size):
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", make(x), obs=x)

    return model


def trained(make, **changes):
    return nd.fit(of_distribution(make), PAIRS, rng_key=jax.random.key(1), **{**SETTINGS, "num_steps": 2, **changes})


def result_of(make, data=PAIRS):
    """As after a training that changed nothing."""
    return nd.training.FitResult(
        params={}, losses=np.zeros(1), mutable_state=None, model=of_distribution(make), example=data[:1], size=len(data)
    )


WRAPPED = {
    "affine": (lambda x: dist.TransformedDistribution(diffusion(), UNITS), PAIRS),
    "list": (
        lambda x: dist.TransformedDistribution(diffusion(), [UNITS, dist.transforms.ExpTransform()]),
        np.exp(PAIRS),
    ),
    "composed": (
        lambda x: dist.TransformedDistribution(
            diffusion(), dist.transforms.ComposeTransform([UNITS, dist.transforms.ExpTransform()])
        ),
        np.exp(PAIRS),
    ),
    "twice": (
        lambda x: dist.TransformedDistribution(
            dist.TransformedDistribution(diffusion(), UNITS), dist.transforms.ExpTransform()
        ),
        np.exp(PAIRS),
    ),
    "masked": (lambda x: dist.TransformedDistribution(diffusion(), UNITS).mask(x[:, 0] > 13), PAIRS),
    "repeated": (
        lambda x: dist.TransformedDistribution(diffusion(), UNITS).expand((len(x), 3)).to_event(1),
        np.stack([PAIRS] * 3, 1),
    ),
    "plain, repeated": (lambda x: diffusion().expand((len(x), 3)).to_event(1), np.stack([PAIRS / 13] * 3, 1)),
    "matrix": (
        lambda x: dist.TransformedDistribution(
            diffusion(), dist.transforms.LowerCholeskyAffine(jnp.ones(2), jnp.asarray([[2.0, 0.0], [1.0, 3.0]]))
        ),
        PAIRS,
    ),
    "units of a number": (
        lambda x: dist.TransformedDistribution(nd.Diffusion(KERNEL, pairs(())).expand((len(x), 2)), UNITS).to_event(1),
        PAIRS,
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_distribution_keeps_transforms_and_draws_in_the_units_of_the_data(name):
    make, data = WRAPPED[name]
    prior = result_of(make, data).distribution("x")
    assert (prior.batch_shape, prior.event_shape) == ((), data.shape[1:])
    both = jax.jit(lambda key: (prior.sample(key), make(jnp.asarray(data[:1])).sample(key)))
    drawn, wanted = both(jax.random.key(2))
    np.testing.assert_allclose(drawn, wanted.reshape(data.shape[1:]), rtol=1e-5)


def test_draws_after_training_have_mean_and_spread_of_the_data_and_not_of_standardised_ones():
    kernel = nd.GaussianKernel(nd.schedules.log_snr(20), variance="upper")

    def standard_normal(params, x_t, t, context):
        return params * x_t

    def make(x):
        transition = nd.Transition(standard_normal, numpyro.param("gain", 0.0), (2,))
        return dist.TransformedDistribution(nd.Diffusion(kernel, transition), UNITS)

    prior = trained(make, optimizer=optax.sgd(0.0)).distribution("x")
    draws = jax.jit(lambda key: prior.sample(key, (4000,)))(jax.random.key(2))
    assert (abs(draws.mean(0) - UNITS.loc) < 5 * UNITS.scale / np.sqrt(4000)).all()
    np.testing.assert_allclose(draws.std(0), UNITS.scale, rtol=5 / np.sqrt(8000))


def test_transforms_of_parameters_are_kept_with_the_trained_values():
    def make(x):
        return dist.TransformedDistribution(
            diffusion(), dist.transforms.AffineTransform(numpyro.param("loc", jnp.zeros(2)), 1.0)
        )

    fitted = trained(make)
    np.testing.assert_array_equal(fitted.distribution("x").transforms[0].loc, fitted.params["loc"])
    assert (fitted.params["loc"] != 0).all()


def test_a_conditional_distribution_keeps_its_transforms_for_every_context():
    def make(x):
        transition = pairs(context_shape=(2,))
        return dist.TransformedDistribution(nd.Diffusion(KERNEL, transition, context=x), UNITS)

    fitted = trained(make)
    prior = fitted.distribution("x", context=jnp.zeros((3, 2)))
    assert (prior.batch_shape, prior.event_shape) == ((3,), (2,))
    assert jax.eval_shape(lambda key: prior.sample(key, (4,)), jax.random.key(1)).shape == (4, 3, 2)


@pytest.mark.parametrize("contexts", [(3,), (5, 3)])
def test_to_event_over_contexts_makes_them_one_event(contexts):
    def make(x):
        context = jnp.zeros((len(x), 3, 2))
        base = nd.Diffusion(KERNEL, pairs(context_shape=(2,)), context=context)
        return dist.TransformedDistribution(base, UNITS).to_event(1)

    prior = result_of(make, np.zeros((20, 3, 2))).distribution("x", context=jnp.zeros((*contexts, 2)))
    assert (prior.batch_shape, prior.event_shape) == (contexts[:-1], (3, 2))
    assert jax.eval_shape(prior.sample, jax.random.key(1)).shape == (*contexts, 2)


def affine(loc):
    return lambda x: dist.TransformedDistribution(diffusion(), dist.transforms.AffineTransform(loc(x), 1.0))


def mixture(x):
    weights = dist.Categorical(jnp.ones(2) / 2)
    return dist.MixtureGeneral(weights, [diffusion(), diffusion()], support=dist.constraints.real_vector)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            affine(lambda x: x),
            ValueError,
            "transforms at site 'x' that are the same for all rows; got ones that depend",
        ),
        (affine(lambda x: x.mean(0)), ValueError, "transforms at site 'x' that are the same for all rows"),
        (
            affine(lambda x: jnp.ones((1, 2))),
            ValueError,
            r"transforms at site 'x' that keep batch shape \(\); got ones that make it \(1,\)\. Give their",
        ),
        (mixture, TypeError, "a Diffusion at site 'x', alone or transformed; got MixtureGeneral"),
        (lambda x: dist.Normal(0.0, 1.0).expand(x.shape).to_event(1), TypeError, "alone or transformed; got Normal"),
    ],
    ids=["rows", "statistics", "leading dimension", "mixture", "no diffusion"],
)
def test_what_is_not_the_distribution_of_one_row_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        result_of(make).distribution("x")


def test_no_transform_is_dropped_by_what_takes_only_a_diffusion(no_type_checks):
    prior = dist.TransformedDistribution(nd.Diffusion(KERNEL, nd.Transition(shifted, jnp.zeros(2), (2,))), UNITS)
    with pytest.raises(TypeError, match=r"a Diffusion or a ReverseChain; got .*TransformedDistribution"):
        nd.evaluation._chunks.points_of(prior, PAIRS)
