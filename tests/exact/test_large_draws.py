"""Many draws are made in stretches of bounded memory, and are those that would be made at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import affine, bernoulli, floats, gaussian

import numpyro_diffusion as nd
from numpyro_diffusion.chains import reverse
from numpyro_diffusion.modules import HaikuFunction


def network_prior(context_shape=None, width=8):
    kernel = gaussian()
    network = nd.networks.MLP(kernel.num_steps, kernel.num_outputs, width=width, depth=1)
    function = HaikuFunction(network)
    context = None if context_shape is None else jnp.ones((1, *context_shape))
    shapes, _ = jax.eval_shape(function.init, jax.random.key(0), jnp.ones((1, 2)), jnp.ones((1,), int), context)
    leaves, structure = jax.tree.flatten(shapes)
    params = structure.unflatten(0.3 * floats(*leaf.shape, seed=index) for index, leaf in enumerate(leaves))
    return kernel, nd.Transition(function, params, (2,), context_shape)


CASES = {
    "network": lambda: nd.Diffusion(*network_prior()),
    "network with a context for each of a batch": lambda: nd.Diffusion(*network_prior((3,)), context=floats(5, 3)),
    "matrices": lambda: nd.Diffusion(gaussian(variance="upper"), affine((2, 2))),
    "numbers": lambda: nd.Diffusion(gaussian(variance="upper"), affine(())),
    "bits": lambda: nd.Diffusion(bernoulli(), affine((2,))),
}


@pytest.mark.parametrize("name", CASES)
def test_draws_in_stretches_are_those_made_at_once(name, monkeypatch):
    prior, key = CASES[name](), jax.random.key(1)
    whole = prior.sample(key, (3, 7))
    path = prior.chain.sample(key, (3, 7))
    monkeypatch.setattr(reverse, "_NUMBERS_AT_ONCE", 8)  # 21 draws, and 4 vectors or 2 matrices at once
    for found, wanted in ((prior.sample(key, (3, 7)), whole), (prior.chain.sample(key, (3, 7)), path)):
        assert found.shape == wanted.shape
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_memory_of_a_program_that_draws_does_not_grow_as_its_layers_would():
    prior = nd.Diffusion(*network_prior(width=64))

    def temporary(draws):
        program = jax.jit(lambda prior, key: prior.sample(key, (draws,))).lower(prior, jax.random.key(0)).compile()
        return program.memory_analysis().temp_size_in_bytes

    few, many = 2**17, 2**20  # one stretch, and eight
    # States, outputs and noise are 4 bytes times two numbers each; one hidden layer would be 256 bytes a draw.
    assert temporary(many) - temporary(few) < 80 * (many - few)


def test_gradients_go_through_stretches(monkeypatch):
    kernel, transition = network_prior()

    def mean(params):
        prior = nd.Diffusion(kernel, nd.Transition(transition.function, params, (2,)))
        return prior.sample(jax.random.key(1), (21,)).mean()

    whole = jax.grad(mean)(transition.params)
    monkeypatch.setattr(reverse, "_NUMBERS_AT_ONCE", 8)
    for found, wanted in zip(jax.tree.leaves(jax.grad(mean)(transition.params)), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
