"""Files of networks that have a setting which came later, and of those that do not use it."""

import jax
import jax.numpy as jnp
from catalogue import gaussian

import numpyro_diffusion as nd
from numpyro_diffusion.modules import HaikuFunction


def test_a_setting_that_came_later_is_in_a_file_only_where_it_is_not_what_it_was_before(tmp_path):
    path = tmp_path / "prior.safetensors"
    kernel = gaussian(variance="lower")
    for flag, is_there in ((False, False), (True, True)):
        network = nd.networks.MLP(kernel.num_steps, kernel.num_outputs, width=4, depth=1, modulated=flag)
        function = HaikuFunction(network)
        example = jnp.ones((1, 2)), jnp.ones((1,), int), jnp.ones((1, 3))
        params, _ = jax.jit(function.init)(jax.random.key(0), *example)
        transition = nd.Transition(function, params, (2,), (3,))
        nd.save(nd.Diffusion(kernel, transition, context=jnp.ones(3)), path)
        assert (b"modulated" in path.read_bytes()) == is_there
        assert nd.load(path).transition.function.network == network
