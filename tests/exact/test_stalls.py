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


def row_of(stalled):
    warn_of_stalls(stalled, jnp.zeros((), int), jnp.ones(()), 16)


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
        warn_of_stalls(stalled, jnp.zeros(2, int), jnp.ones(2), 16)
        return stalled

    messages = told(lambda: jax.lax.fori_loop(0, 300, draw, jnp.zeros(2, int)))
    assert ["in 1 of 2 chains" in message for message in messages] == [True, True]


def test_a_vmap_around_the_kernel_is_told_once_of_all_rows_that_stall():
    def row(stalled):
        warn_of_stalls(stalled, jnp.zeros((), int), jnp.ones(()), 16)
        return stalled

    messages = told(jax.vmap(jax.vmap(row)), jnp.array([[[STALL, 0], [0, 3]], [[7, STALL + 1], [STALL, STALL]]]))
    assert len(messages) == 1
    assert "in 3 of 8 chains" in messages[0]


def test_a_vmap_does_not_call_back_where_nothing_stalls(monkeypatch):
    """A mapped ``cond`` runs both branches: ten thousand rows would be ten thousand calls of Python at every draw."""
    calls = []
    monkeypatch.setattr(stalls, "_warn", lambda *values: calls.append(values))
    told(jax.vmap(row_of), jnp.arange(50))
    assert not calls
    told(jax.vmap(row_of), jnp.arange(STALL + 1))
    assert len(calls) == 1


def scaled(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    x = numpyro.sample("x", NORMAL)
    numpyro.sample("y", dist.Normal(x, scale), obs=y)


def test_an_inner_kernel_that_stands_still_is_told_with_the_cure():
    """A step of 1e6 ends where nothing is possible: every draw of the scale is the first, with sd 0."""
    inner = NUTS(scaled, step_size=1e6, adapt_step_size=False, adapt_mass_matrix=False, max_tree_depth=2)
    mcmc = MCMC(DiffusionGibbs(inner, num_particles=2), num_warmup=0, num_samples=STALL + 5, progress_bar=False)
    said = f"inner kernel has not changed the other sites for {STALL} draws, in 1 of 1 chains.*Start elsewhere"
    with pytest.warns(UserWarning, match=said) as caught:
        mcmc.run(jax.random.key(0), 0.3)
        jax.effects_barrier()
    assert len(caught) == 1
    assert jnp.unique(mcmc.get_samples()["scale"]).size == 1
    assert mcmc.last_state.inner_stalled == STALL + 5


def test_a_discrete_site_may_be_certain():
    real, whole = {"scale": jnp.ones(2)}, {"class": jnp.ones((), int)}
    assert stalls.has_moved(whole, whole)
    assert not stalls.has_moved({**real, **whole}, {"scale": jnp.ones(2), "class": jnp.zeros((), int)})
    assert stalls.has_moved({**real, **whole}, {"scale": jnp.array([1.0, 2.0]), **whole})
