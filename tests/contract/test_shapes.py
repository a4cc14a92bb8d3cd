"""Shapes, dtypes and keys: what NumPyro may assume of sample and log_prob."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import CASES, CLASSES, FEW, STRUCTURES, close, draw, draws, log_prob, over, scores

CHAINS = [case for case in STRUCTURES if case.is_chain]
BATCHED = [case for case in STRUCTURES if case.batch_shape == (3,)]


@over(CASES)
def test_batch_and_event_shape_are_those_of_the_arguments(case):
    distribution = case.make()
    assert distribution.batch_shape == case.batch_shape
    assert distribution.event_shape == case.event_shape
    assert distribution.event_dim == len(case.event_shape)
    assert distribution.shape((4,)) == (4, *case.batch_shape, *case.event_shape)


@over(CASES)
def test_a_draw_has_sample_then_batch_then_event_shape(case):
    distribution = case.make()
    for sample_shape in ((), (2,), (2, 3)):
        drawn = jax.eval_shape(lambda shape=sample_shape: distribution.sample(jax.random.key(0), shape))
        assert drawn.shape == sample_shape + case.batch_shape + case.event_shape
        assert jnp.issubdtype(drawn.dtype, jnp.integer if case.is_discrete else jnp.floating)


@over(STRUCTURES)
def test_a_law_is_called_as_numpyro_s_sample_primitive_does(case):
    distribution, shape = case.make(), (2, *case.batch_shape, *case.event_shape)
    call = {"rng_key": jax.random.key(0), "sample_shape": (2,)}
    drawn, (intermediate, nothing) = jax.eval_shape(
        lambda: (distribution(**call), distribution(**call, sample_intermediates=True))
    )
    assert drawn.shape == shape
    assert intermediate == drawn
    assert nothing == []


@over(STRUCTURES)
def test_draws_differ_along_every_sample_and_batch_axis(case):
    drawn = draws(case)
    assert drawn.shape == (16, *case.batch_shape, *case.event_shape)
    for axis in range(1 + len(case.batch_shape)):
        first, second = np.split(drawn, [drawn.shape[axis] // 2], axis)
        size = min(first.shape[axis], second.shape[axis])
        assert (np.take(first, range(size), axis) != np.take(second, range(size), axis)).any()
    if not case.is_discrete:
        assert np.unique(drawn).size == drawn.size


@over(STRUCTURES)
def test_the_same_key_draws_the_same_and_another_does_not(case):
    distribution, drawn = case.make(), draws(case)
    np.testing.assert_array_equal(draw(distribution, jax.random.key(1), (16,)), drawn)
    assert (np.asarray(draw(distribution, jax.random.key(2), (16,))) != drawn).any()


@over(CLASSES)
def test_legacy_and_typed_keys_draw_the_same(case):
    np.testing.assert_array_equal(draw(case.make(), jax.random.PRNGKey(1), (16,)), draws(case))


@over(CHAINS)
def test_what_is_no_key_is_refused(case):
    distribution = case.make()
    for not_a_key in (None, jnp.zeros(2), jnp.zeros((3, 2), jnp.uint32)):
        with pytest.raises(TypeError, match="Expected a JAX random key; got"):
            distribution.sample(not_a_key)


def test_a_number_is_no_key(no_type_checks):
    with pytest.raises(TypeError, match="Expected a JAX random key; got 0"):
        CHAINS[0].make().sample(0)


@over(CASES)
def test_log_prob_has_the_shape_of_the_value_without_its_event(case):
    distribution = case.make()
    for leading in ((), (4, 2)):
        scored = jax.eval_shape(distribution.log_prob, case.value(*leading))
        assert scored.shape == leading + case.batch_shape
        assert scored.dtype == jnp.zeros(()).dtype


@over(BATCHED)
def test_a_value_without_batch_dimensions_is_scored_for_each_of_the_batch(case):
    distribution = case.make()
    for value in (case.value()[0], case.value()[:1]):
        assert jax.eval_shape(distribution.log_prob, value).shape == (3,)
        assert jax.eval_shape(distribution.log_prob, value[None]).shape == (
            (1, 3) if value.ndim > distribution.event_dim else (3,)
        )


@over([case for case in FEW if case.batch_shape])
def test_a_value_that_broadcasts_scores_as_its_broadcast(case):
    value = case.value(2)[:, :1]
    close(scores(case, value), scores(case, jnp.broadcast_to(value, (2, 3, *case.event_shape))))


@over([case for case in CASES if not case.is_estimate])
def test_each_value_is_scored_by_itself(case):
    value = case.value(2)
    both = scores(case)
    np.testing.assert_array_equal(scores(case, value[::-1]), both[::-1])
    if not case.is_discrete:
        assert (both[0] != both[1]).all()


@over([case for case in FEW if not any(word in case.name for word in ("haiku", "random-step", "importance"))])
def test_log_prob_compiled_is_log_prob_eager(case):
    close(scores(case), case.make().log_prob(case.value(2)))


@over([case for case in CHAINS if case.event_shape])
def test_a_value_of_the_wrong_event_shape_is_refused(case):
    distribution = case.make()
    for wrong in (jnp.zeros((*distribution.shape()[:-1], distribution.shape()[-1] + 1)), jnp.zeros(())):
        with pytest.raises(ValueError, match=r"Expected trailing dimensions .* for a value of \w+; got shape"):
            distribution.log_prob(wrong)


@over(BATCHED)
def test_a_value_of_another_batch_size_is_refused(case):
    distribution, value = case.make(), case.value()
    with pytest.raises((ValueError, TypeError), match=r"(?i)broadcast|shapes"):
        jax.eval_shape(distribution.log_prob, jnp.concatenate([value, value]))


def test_log_prob_of_a_python_number_is_that_of_the_array():
    distribution = next(case for case in FEW if case.event_shape == ()).make()
    close(log_prob(distribution, 0.5), log_prob(distribution, jnp.asarray(0.5)))
