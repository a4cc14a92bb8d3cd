"""What must not grow with T: the memory of a draw of x^0, the program that is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.modules import HaikuFunction


def prior_of(num_steps):
    kernel = nd.GaussianKernel(nd.schedules.log_snr(num_steps))
    function = HaikuFunction(nd.networks.MLP(num_steps, 2, width=4, depth=1))
    params, _ = function.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.ones((1,), int), None)
    transition = nd.Transition(function, params, (2,))
    return nd.Diffusion(kernel, transition, estimator=nd.RandomStep(), rng_key=jax.random.key(1))


def through_the_chain(prior, x, checkpoint):
    noise = jnp.broadcast_to(x[:, None], (len(x), *prior.chain.event_shape))
    return prior.chain.from_noise(noise, checkpoint=checkpoint).sum()


def compiled(num_steps, task):
    tasks = {
        "draw": lambda prior, x: prior.sample(jax.random.key(0), (1000,)),
        "path": lambda prior, x: prior.chain.sample(jax.random.key(0), (1000,)),
        "bound": lambda prior, x: nd.AllSteps()(jax.random.key(0), prior.chain, x),
        "weights": lambda prior, x: nd.ImportanceWeighted(2)(jax.random.key(0), prior.chain, x),
        "gradient": lambda prior, x: jax.grad(lambda p: through_the_chain(p, x, False), allow_int=True)(prior),
        "checkpointed gradient": lambda prior, x: jax.grad(lambda p: through_the_chain(p, x, True), allow_int=True)(
            prior
        ),
        "training step": lambda prior, x: jax.grad(lambda p: p.log_prob(x).sum(), allow_int=True)(prior),
    }
    return jax.jit(tasks[task]).lower(prior_of(num_steps), jnp.zeros((1000, 2))).compile()


@pytest.mark.parametrize(
    ("task", "steps"),
    # With fewer steps than rows training takes less: the network computes what depends on time once for each step.
    [("draw", (10, 1000)), ("bound", (10, 1000)), ("weights", (10, 1000)), ("training step", (1000, 2000))],
    ids=["draw", "bound", "weights", "training step"],
)
def test_memory_and_program_do_not_grow_with_the_number_of_steps(task, steps):
    short, long = (compiled(num_steps, task) for num_steps in steps)
    # Only the schedule, a few vectors of T numbers, may grow; a state is 8 kB.
    grown = long.memory_analysis().temp_size_in_bytes - short.memory_analysis().temp_size_in_bytes
    assert grown < 64 * 1024
    assert len(long.as_text().splitlines()) < 1.1 * len(short.as_text().splitlines())


def test_a_whole_trajectory_does_take_memory_in_proportion():
    """The measure above has power: it sees a path of 1000 states."""
    size = [compiled(t, "path").memory_analysis() for t in (10, 1000)]
    total = [s.temp_size_in_bytes + s.output_size_in_bytes for s in size]
    assert total[1] - total[0] > 990 * 1000 * 2 * 4


def test_a_checkpointed_gradient_keeps_few_states_and_no_hidden_layers():
    """A step's hidden layers are some 25 numbers an example here; a state is 2, and the noise, which stays, as many."""
    memory = {
        task: [compiled(t, task).memory_analysis().temp_size_in_bytes for t in (100, 400)]
        for task in ("gradient", "checkpointed gradient")
    }
    grown = {task: (long - short) / (300 * 1000 * 4) for task, (short, long) in memory.items()}
    assert grown["checkpointed gradient"] < 3  # 2.25: the noise, and a state of every 20
    assert grown["gradient"] > 10 * grown["checkpointed gradient"]  # so that there is something to save


@pytest.mark.parametrize("num_steps", [1, 7, 10, 12])
@pytest.mark.parametrize("stop", [0, 1])
def test_a_checkpointed_gradient_is_the_same(num_steps, stop):
    prior = prior_of(num_steps)
    chain = nd.ReverseChain(prior.kernel, prior.transition, stop=stop)
    noise = jax.random.normal(jax.random.key(3), (5, *chain.event_shape))

    def squares(transition, noise, checkpoint):
        distribution = nd.ReverseChain(prior.kernel, transition, stop=stop)
        return (distribution.from_noise(noise, checkpoint=checkpoint) ** 2).sum()

    plain, again = (
        jax.grad(squares, argnums=(0, 1), allow_int=True)(prior.transition, noise, flag) for flag in (False, True)
    )
    assert jnp.abs(plain[1]).max() > 0
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        if one.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
