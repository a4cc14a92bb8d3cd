"""Models and data that have no bound: errors that name what was wanted and what came, from every entry point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluation_cases import bits_model, wavy_model

import numpyro_diffusion as nd
from numpyro_diffusion.evaluation import bound, entropy_bounds, importance_weighted, probability_flow

KEY = jax.random.key(0)
X = np.zeros((4, 2), np.float32)
EVERY = pytest.mark.parametrize("evaluate", [bound, importance_weighted, entropy_bounds, probability_flow])


@EVERY
@pytest.mark.parametrize("shape", [(2,), (0, 2), (4, 3), (2, 2, 2)])
def test_data_of_another_shape_are_refused(evaluate, shape):
    with pytest.raises(ValueError, match=r"trailing dimensions|data of shape"):
        evaluate(KEY, wavy_model(5), np.zeros(shape, np.float32))


@EVERY
def test_data_outside_of_the_support_are_refused(evaluate):
    with pytest.raises(ValueError, match="finite values for x"):
        evaluate(KEY, wavy_model(5), np.array([[0.0, np.nan]], np.float32))
    with pytest.raises(TypeError, match="floating-point values for x"):
        evaluate(KEY, wavy_model(5), np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="only 0 and 1 for x"):
        evaluate(KEY, bits_model(), np.array([[0, 2]]))


@EVERY
def test_models_of_another_law_are_refused(evaluate, no_type_checks):
    model = wavy_model(5)
    tilted = nd.TiltedChain(model.chain, nd.PaperTilt(zero_potential))
    for other in (tilted, model.kernel):
        with pytest.raises(TypeError, match="a Diffusion or a ReverseChain"):
            evaluate(KEY, other, X)
    early = nd.ReverseChain(model.kernel, model.transition, stop=1)
    with pytest.raises(ValueError, match="a chain down to x"):
        evaluate(KEY, early, X)


def zero_potential(x):
    return jnp.zeros(x.shape[:-1])


@EVERY
def test_contexts_of_another_count_are_refused(evaluate):
    with pytest.raises(ValueError, match="a context for each of the 4 points"):
        evaluate(KEY, wavy_model(5, jnp.zeros((3, 2))), X)


@EVERY
@pytest.mark.parametrize("chunk_size", [0, -3])
def test_chunks_of_nothing_are_refused(evaluate, chunk_size):
    with pytest.raises(ValueError, match="chunk_size to be an integer >= 1"):
        evaluate(KEY, wavy_model(5), X, chunk_size=chunk_size)


def test_counts_that_make_no_estimate_are_refused():
    with pytest.raises(ValueError, match="num_trajectories to be an integer >= 1; got 0"):
        importance_weighted(KEY, wavy_model(), X, num_trajectories=0)
    with pytest.raises(ValueError, match="trajectories_per_chunk a power of two; got 6"):
        importance_weighted(KEY, wavy_model(), X, trajectories_per_chunk=6)
    with pytest.raises(ValueError, match="num_draws to be an integer >= 1; got 0"):
        bound(KEY, wavy_model(), X, num_draws=0)
    with pytest.raises(ValueError, match="num_draws to be an integer >= 1; got 0"):
        probability_flow(KEY, wavy_model(5), X, num_draws=0)


def test_an_unknown_form_is_refused(no_type_checks):
    with pytest.raises(ValueError, match="form one of exact, paper; got 'papers'"):
        bound(KEY, wavy_model(), X, form="papers")
