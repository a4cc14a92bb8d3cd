"""DiffusionGibbs says when its particles leave x^0 as it is; and says nothing where they move."""

import warnings

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS

import numpyro_diffusion as nd
from numpyro_diffusion.infer import DiffusionGibbs, stalls
from numpyro_diffusion.infer.stalls import STALL, count_stalled, warn_of_stalls


def zero_network(params, x_t, t, context):
    return 0 * x_t


KERNEL = nd.GaussianKernel(nd.schedules.log_snr(3, 0.1, 100.0), variance="upper")
NORMAL = nd.Diffusion(KERNEL, nd.Transition(zero_network, None, ()))


def model(y, scale):
    with numpyro.plate("n", len(y)):
        x = numpyro.sample("x", NORMAL)
        numpyro.sample("y", dist.Normal(x, scale), obs=y)


# Of the first element, which starts at its answer, so much is known that no bootstrap particle comes as near.
Y, SCALE = jnp.array([0.3, 0.0]), jnp.array([1e-5, 10.0])


def test_collapsed_weights_are_told_with_number_and_cure():
    kernel = DiffusionGibbs(NUTS(model), num_particles=2, twist="none", refresh=False, elements="independent")
    mcmc = MCMC(kernel, num_warmup=0, num_samples=STALL + 5, progress_bar=False)
    said = f"for {STALL} draws, in 1 of 2 chains and elements: .* size fell to 1.0 of 2 .*Take more particles"
    with pytest.warns(UserWarning, match=said) as caught:
        mcmc.run(jax.random.key(0), Y, SCALE, init_params={"x": Y})
        jax.effects_barrier()
    assert len(caught) == 1
    assert mcmc.last_state.stalled[0] == STALL + 5
    assert mcmc.last_state.stalled[1] < STALL


def told(function, *args):
    """The warnings of a compiled function."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jax.block_until_ready(jax.jit(function)(*args))
        jax.effects_barrier()
    return [str(warning.message) for warning in caught]


def test_every_stall_is_told_once_and_moves_never():
    """Of 300 draws chain 0 moves at the 0th and the 150th: two stalls, told when they have lasted."""

    def draw(i, stalled):
        stalled = count_stalled(stalled, jnp.array([i % 150 == 0, True]))
        warn_of_stalls(stalled, jnp.ones(2), 16)
        return stalled

    messages = told(lambda: jax.lax.fori_loop(0, 300, draw, jnp.zeros(2, int)))
    assert ["in 1 of 2 chains" in message for message in messages] == [True, True]


def test_a_vmap_around_the_kernel_is_told_once_of_all_rows_that_stall():
    def row(stalled):
        warn_of_stalls(stalled, jnp.ones(()), 16)
        return stalled

    messages = told(jax.vmap(jax.vmap(row)), jnp.array([[[STALL, 0], [0, 3]], [[7, STALL + 1], [STALL, STALL]]]))
    assert len(messages) == 1
    assert "in 3 of 8 chains" in messages[0]


def test_a_vmap_does_not_call_back_where_nothing_stalls(monkeypatch):
    """A mapped ``cond`` runs both branches: ten thousand rows would be ten thousand calls of Python at every draw."""
    calls = []
    monkeypatch.setattr(stalls, "_warn", lambda *values: calls.append(values))
    told(jax.vmap(lambda stalled: warn_of_stalls(stalled, jnp.ones(()), 16)), jnp.arange(50))
    assert not calls
    told(jax.vmap(lambda stalled: warn_of_stalls(stalled, jnp.ones(()), 16)), jnp.arange(STALL + 1))
    assert len(calls) == 1
