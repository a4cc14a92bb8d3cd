"""expand, to_event and mask: what plates and handlers do to a distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from catalogue import CLASSES, FEW, STRUCTURES, close, draw, draws, over, scores

CHAINS = [case for case in STRUCTURES if case.is_chain]
FEW_BATCHED = [case for case in FEW if case.batch_shape]


@jax.jit
def scores_of_wrapped(distribution, value, mask):
    return {
        "expanded and joined": distribution.expand((2, *distribution.batch_shape)).to_event(1).log_prob(value),
        "masked": distribution.mask(mask).log_prob(value),
        "all masked": distribution.mask(False).log_prob(value),
    }


@over(FEW)
def test_expanding_joining_and_masking_score_as_the_law_itself(case):
    value = case.value(2)
    mask = jnp.arange(2 * max(1, len(case.batch_shape) * 3)).reshape(2, *case.batch_shape) % 2 == 0
    wrapped, plain = scores_of_wrapped(case.make(), value, mask), scores(case)
    close(wrapped["expanded and joined"], plain.sum(-1))
    close(wrapped["masked"], np.where(mask, plain, 0))
    assert (np.asarray(wrapped["masked"])[~mask] == 0).all()
    np.testing.assert_array_equal(wrapped["all masked"], np.zeros_like(plain))


@jax.jit
def scores_of_expanded(distribution, value):
    shape = (2, *distribution.batch_shape)
    return distribution.expand(shape).log_prob(value), dist.ExpandedDistribution(distribution, shape).log_prob(value)


@over([case for case in FEW if not case.is_estimate])
def test_expanding_scores_as_numpyro_s_wrapper_and_as_broadcasting(case):
    value = case.value(2)
    expanded, wrapped = scores_of_expanded(case.make(), value[0])
    close(expanded, wrapped)
    close(expanded, np.broadcast_to(scores(case)[:1], expanded.shape))


@over(FEW)
def test_expanded_dimensions_are_drawn_anew(case):
    # The same number of draws from the same key: expand is only another shape.
    wide = case.make().expand((2, *case.batch_shape))
    drawn = np.asarray(draw(wide, jax.random.key(1), (8,)))
    assert drawn.shape == (8, 2, *case.batch_shape, *case.event_shape)
    assert (drawn[:, 0] != drawn[:, 1]).any()
    # The same to rounding: another shape is another program.
    np.testing.assert_allclose(drawn.reshape(draws(case).shape), draws(case), rtol=1e-5, atol=1e-6)


@over(STRUCTURES)
def test_expanding_keeps_class_and_event(case):
    distribution = case.make()
    wide = distribution.expand((4, *case.batch_shape))
    assert wide.shape() == (4, *distribution.shape())
    assert wide.event_shape == distribution.event_shape
    assert distribution.shape() == case.batch_shape + case.event_shape, "expand changed the distribution itself"
    assert wide.expand((5, 4, *case.batch_shape)).shape() == (5, 4, *distribution.shape())
    assert distribution.expand_by((4,)).shape() == wide.shape()
    assert distribution.expand(distribution.batch_shape) is distribution
    assert type(wide) is type(distribution) or not case.is_chain
    assert jax.eval_shape(wide.log_prob, case.value()).shape == (4, *case.batch_shape)
    assert jax.eval_shape(wide.log_prob, case.value(2, 1)).shape == (2, 4, *case.batch_shape)


@over([case for case in FEW_BATCHED if not case.is_discrete])
def test_an_inner_dimension_of_size_one_expands(case):
    narrow = case.make()
    data = {"x_0", "context"} & set(vars(narrow))
    for name in data:
        setattr(narrow, name, getattr(narrow, name)[:1])
    narrow._batch_shape = (1,)
    drawn = np.asarray(draw(narrow.expand((2, 3)), jax.random.key(1)))
    assert drawn.shape == (2, 3, *case.event_shape)
    assert np.unique(drawn).size == drawn.size


@over(CHAINS)
def test_shrinking_by_expand_is_refused(case):
    wide = case.make().expand((4, *case.batch_shape))
    for shape in (case.batch_shape, (2, *case.batch_shape), (1, *case.batch_shape)):
        with pytest.raises(ValueError, match=r"Expected a batch shape that .* broadcasts to; got"):
            wide.expand(shape)


@over(STRUCTURES)
def test_a_refused_expansion_is_told_in_numpyro_s_words(case):
    """As NumPyro's users match it, whichever class they expand."""
    wide = case.make().expand((4, *case.batch_shape))
    with pytest.raises(ValueError, match=r"Cannot broadcast distribution of shape \(4.*\) to shape"):
        wide.expand((5, *case.batch_shape))


@over(STRUCTURES)
def test_to_event_moves_batch_dimensions_to_the_event(case):
    distribution = case.make().expand((4, *case.batch_shape))
    joined = distribution.to_event(1)
    assert joined.shape() == distribution.shape()
    assert joined.batch_shape == distribution.batch_shape[:-1]
    assert joined.event_shape == (distribution.batch_shape[-1], *case.event_shape)
    assert joined.support.event_dim == 1 + len(case.event_shape)
    assert joined.support.is_discrete == case.is_discrete
    assert joined.has_rsample == distribution.has_rsample
    assert distribution.to_event(0) is distribution
    assert distribution.to_event().batch_shape == ()
    with pytest.raises(ValueError, match="reinterpreted_batch_ndims"):
        distribution.to_event(3)


@over(CLASSES)
def test_wrapping_does_not_change_the_draws(case):
    distribution = case.make()

    @jax.jit
    def all_wrapped(distribution, key):
        return distribution.to_event(1).sample(key, (16,)), distribution.mask(jnp.zeros(3, bool)).sample(key, (16,))

    for drawn in all_wrapped(distribution, jax.random.key(1)):
        np.testing.assert_array_equal(drawn, draws(case))
