"""A distribution is a pytree: into compiled functions and out of them, mapped over, stored, compiled once."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from catalogue import (
    FEW,
    NUM_STEPS,
    STRUCTURES,
    affine,
    bernoulli,
    bits,
    close,
    draw,
    draws,
    estimated,
    floats,
    gaussian,
    log_prob,
    over,
    scores,
)
from numpyro.distributions.batch_util import vmap_over
from numpyro.infer import SVI, Trace_ELBO

from numpyro_diffusion import (
    AllSteps,
    Diffusion,
    ForwardChain,
    GaussianKernel,
    ReverseChain,
    haiku_module,
    learned_schedule,
    networks,
    schedules,
)


def check_same(case, distribution):
    """The distribution draws and scores as the case's, to the last bit."""
    np.testing.assert_array_equal(draw(distribution, jax.random.key(1), (16,)), draws(case))
    np.testing.assert_array_equal(log_prob(distribution, case.value(2)), scores(case))


@over(STRUCTURES)
def test_flattening_and_rebuilding_keeps_everything(case):
    distribution = case.make()
    leaves, structure = jax.tree.flatten(distribution)
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert type(rebuilt) is type(distribution)
    assert (rebuilt.batch_shape, rebuilt.event_shape) == (case.batch_shape, case.event_shape)
    assert jax.tree.structure(rebuilt) == structure
    assert all(one is other for one, other in zip(jax.tree.leaves(rebuilt), leaves, strict=True))
    assert {name for name, value in vars(distribution).items() if value is not None} <= set(vars(rebuilt))
    check_same(case, rebuilt)


@over(STRUCTURES)
def test_rebuilding_asks_nothing_of_the_leaves(case):
    distribution = case.make()
    leaves, structure = jax.tree.flatten(distribution)
    for placeholder in (object(), None, 0, jnp.zeros((7, 7))):
        assert jax.tree.unflatten(structure, [placeholder] * len(leaves)).shape() == distribution.shape()


@over(STRUCTURES)
def test_two_laws_built_alike_have_one_structure(case):
    assert jax.tree.structure(case.make()) == jax.tree.structure(case.make())
    assert hash(jax.tree.structure(case.make())) == hash(jax.tree.structure(case.make()))


@over(STRUCTURES)
def test_explicit_validation_survives_rebuilding(case):
    for validate_args in (True, False):
        distribution = jax.tree.map(lambda leaf: leaf, case.make(validate_args=validate_args))
        assert distribution._validate_args is validate_args


@over(STRUCTURES)
def test_a_law_built_anew_compiles_once(case):
    traces = []

    @jax.jit
    def size(distribution):
        traces.append(distribution)
        return jnp.zeros(distribution.shape()).sum()

    for _ in range(3):
        size(case.make())
    assert len(traces) == 1


@over(STRUCTURES)
def test_a_law_comes_out_of_a_compiled_function_as_it_went_in(case):
    distribution = case.make()
    returned = jax.jit(lambda distribution: distribution)(distribution)
    assert jax.tree.structure(returned) == jax.tree.structure(distribution)
    check_same(case, returned)


@over(FEW)
def test_a_law_built_inside_a_compiled_function_comes_out(case):
    built = jax.jit(case.make)()
    assert jax.tree.structure(built) == jax.tree.structure(case.make())
    close(draw(built, jax.random.key(1), (16,)), draws(case))
    close(log_prob(built, case.value(2)), scores(case))


@over(STRUCTURES)
def test_a_law_can_be_a_branch_and_a_carry(case):
    arrays = jax.tree.map(jnp.asarray, case.make())

    def both(arrays):
        chosen = jax.lax.cond(
            True,
            lambda distribution: distribution,
            lambda distribution: jax.tree.map(lambda leaf: leaf, distribution),
            arrays,
        )
        return jax.lax.scan(lambda distribution, _: (distribution, None), chosen, None, length=2)[0]

    assert jax.eval_shape(both, arrays).shape() == case.batch_shape + case.event_shape


@over(STRUCTURES)
def test_a_law_can_be_pickled(case):
    check_same(case, pickle.loads(pickle.dumps(case.make())))  # noqa: S301 - our own bytes


# vmap over one field equals a loop: (build it of one value, the field's name, the values, one value of its support)
STACK = 4
MAPPED = {
    "contexts": (
        lambda context: ReverseChain(gaussian(), affine((2,), 2, (2,)), context=context),
        "context",
        floats(STACK, 2),
        floats(NUM_STEPS + 1, 2),
    ),
    "contexts of bits": (
        lambda context: ReverseChain(bernoulli(), affine((2,), 1, (2,)), context=context),
        "context",
        floats(STACK, 2),
        bits(NUM_STEPS + 1, 2),
    ),
    "data": (lambda x_0: ForwardChain(gaussian(), x_0), "x_0", floats(STACK, 2), floats(NUM_STEPS, 2)),
    "networks": (
        lambda gain: ReverseChain(gaussian(), _scaled(affine((2,), 2), gain)),
        "transition",
        floats(STACK),
        floats(NUM_STEPS + 1, 2),
    ),
    "networks of a marginal": (
        lambda gain: estimated(gaussian(), _scaled(affine((2,), 2), gain), AllSteps()),
        "transition",
        floats(STACK),
        floats(2),
    ),
    "schedules": (
        lambda raw: ReverseChain(GaussianKernel(schedules.learned(raw, beta_1=0.1), variance="lower"), affine((2,))),
        "kernel",
        floats(STACK, NUM_STEPS - 1),
        floats(NUM_STEPS + 1, 2),
    ),
    "keys": (
        lambda key: Diffusion(gaussian(), affine((2,), 2), estimator=AllSteps(), rng_key=key),
        "rng_key",
        jax.random.split(jax.random.key(0), STACK),
        floats(2),
    ),
}


def _scaled(transition, gain):
    transition.params = {name: value * gain for name, value in transition.params.items()}
    return transition


@pytest.mark.parametrize("name", MAPPED)
def test_vmap_over_one_field_is_a_loop(name):
    make, field, values, value = MAPPED[name]
    axes = vmap_over(make(values[0]), **{field: 0})
    shapes = []

    def scored_and_drawn(distribution):
        return distribution.log_prob(value), distribution.sample(jax.random.key(0))

    @jax.jit
    def both(values):
        stacked = jax.vmap(make, out_axes=axes)(values)
        shapes.append(stacked.shape())
        mapped = jax.vmap(scored_and_drawn, in_axes=(axes,))(stacked)
        return mapped, jax.lax.map(lambda one: scored_and_drawn(make(one)), values)

    mapped, looped = both(values)
    assert shapes == [make(values[0]).shape()]
    for wanted, got in zip(looped, mapped, strict=True):
        close(got, wanted)
    assert np.unique(mapped[0]).size > 1 or field == "x_0"


@pytest.mark.parametrize("name", ["contexts", "contexts of bits", "data"])
def test_each_of_a_batch_has_its_own_argument(name):
    make, _, values, value = MAPPED[name]
    batched, looped = jax.jit(
        lambda values: (make(values).log_prob(value), jax.lax.map(lambda one: make(one).log_prob(value), values))
    )(values)
    close(batched, looped)
    assert np.unique(batched).size > 1


def test_svi_on_a_model_that_builds_everything_anew_compiles_once():
    traces = []

    def model(data):
        traces.append(data.shape)
        kernel = GaussianKernel(learned_schedule("schedule", NUM_STEPS, beta_1=0.1, sigma_max=5.0))
        network = networks.MLP(NUM_STEPS, kernel.num_outputs, width=4, depth=1, num_time_features=2)
        transition = haiku_module("net", network, kernel=kernel, event_shape=(2,))
        with numpyro.plate("data", data.shape[0]):
            numpyro.sample("x", Diffusion(kernel, transition), obs=data)

    svi = SVI(model, lambda data: None, optax.sgd(0.0), Trace_ELBO())  # standing still, so that only the noise differs
    data = floats(6, 2)
    state = svi.init(jax.random.key(0), data)
    step = jax.jit(svi.update)
    state, first = step(state, data)
    compiled = len(traces)
    losses = [float(first)]
    for _ in range(3):
        state, loss = step(state, data + 1)
        losses.append(float(loss))
    assert len(traces) == compiled
    assert np.isfinite(losses).all()
    assert len(set(losses)) == len(losses), "a step had the noise of another"
