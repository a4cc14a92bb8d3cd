"""Sequential Monte Carlo as pure steps: what a run does is init, step and finish, level by level."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from closed_forms import affine_prior

import numpyro_diffusion as nd
from numpyro_diffusion.infer.smc import target_of
from numpyro_diffusion.model.split import split_model
from numpyro_diffusion.particles.filter import finish, init, run_filter, step
from numpyro_diffusion.particles.twists.tempered import Tempered

PRIOR = affine_prior(nd.schedules.log_snr(3, 0.3, 10.0), [0.5, -0.3])
NUM_PARTICLES = 16


def model(y):
    with numpyro.plate("n", 2):
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def target():
    return target_of(split_model(model, (jnp.array([[1.0, 2.0], [0.0, -1.0]]),), {}), {})


def test_steps_one_by_one_are_a_run():
    goal, twist, key = target(), Tempered(), jax.random.key(0)
    draws = {"x": jax.random.normal(jax.random.key(1), (64, 2, 2))}
    constants = twist.prepare(goal, draws)
    key_start, key_steps = jax.random.split(key)
    state, sizes = init(key_start, goal, NUM_PARTICLES), []
    for level in (3, 2, 1):
        look = lambda x, level: twist.look(goal, constants, x, level)
        state, info = step(jax.random.fold_in(key_steps, level), state, jnp.asarray(level), goal, look)
        assert info.ancestors.shape == (NUM_PARTICLES, 2)
        sizes.append(info.effective_size)
    state, info, undefined = finish(state, goal)
    whole = run_filter(goal, twist, constants, key, NUM_PARTICLES)
    np.testing.assert_allclose(state.log_evidence, whole.log_evidence, rtol=1e-4)
    np.testing.assert_allclose(state.x["x"], whole.x["x"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(jnp.stack([info.effective_size, *sizes[::-1]]), whole.effective_sizes, rtol=1e-3)
    assert undefined == 0


def test_a_step_can_be_mapped_over_states():
    """Three islands at once are three islands."""
    goal, look = target(), lambda x, level: (jnp.zeros((NUM_PARTICLES, 2)), moves(x, level))

    def moves(x, level):
        from numpyro_diffusion.particles.steps import TiltedStep

        return TiltedStep({"x": goal.network("x", x["x"], level)[1]}, {})

    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.vmap(lambda key: init(key, goal, NUM_PARTICLES))(keys)
    together, _ = jax.vmap(lambda key, state: step(key, state, jnp.asarray(3), goal, look))(keys, states)
    one = jax.tree.map(lambda leaf: leaf[1], states)
    alone, _ = step(keys[1], one, jnp.asarray(3), goal, look)
    np.testing.assert_allclose(together.x["x"][1], alone.x["x"], rtol=1e-5, atol=1e-6)
