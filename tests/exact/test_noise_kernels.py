"""Kernels on noises, in everything that MCMC offers: chains, resuming, Gibbs, starts, no second trace."""

import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.infer import HMC, MCMC, Gibbs
from slice_cases import (
    KERNELS,
    NORMAL,
    SCALED_DATA,
    STANDARD_NORMAL,
    check_scale_posterior,
    conjugate,
    noncentred,
    sampler,
    unknown_scale,
)

from numpyro_diffusion.infer import EllipticalSlice

FIELDS = ("~z.x_noise", "i", "log_likelihood")


@pytest.fixture(params=KERNELS.values(), ids=KERNELS, name="kernel", scope="module")
def _kernel(request):
    return request.param


def two_chains(kernel, num_samples=20, **options):
    return sampler(conjugate, num_samples, num_chains=2, num_warmup=0, kernel=kernel, **options)


@pytest.fixture(scope="module", name="vectorized")
def _vectorized(kernel):
    """Twenty draws of two chains."""
    mcmc = two_chains(kernel)
    mcmc.run(jax.random.key(0), 3.0, extra_fields=FIELDS)
    return mcmc


def test_samples_are_constrained_with_noises_and_deterministic_sites(kernel):
    """As NUTS returns them; a model reparameterised before gives the same draws, in the noises of the prior's chain."""
    kernel = kernel if kernel is EllipticalSlice else partial(kernel, guidance=None)
    start = {"x_noise": jnp.arange(6.0), "sigma": jnp.asarray(-1.0)}
    samplers = [sampler(model, kernel=kernel) for model in (unknown_scale, noncentred(unknown_scale))]
    for mcmc in samplers:
        mcmc.run(jax.random.key(0), SCALED_DATA, init_params=start)
    draws, before = (mcmc.get_samples() for mcmc in samplers)
    assert {name: value.shape for name, value in draws.items()} == {"x": (10,), "sigma": (10,), "x_noise": (10, 6)}
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), draws, before)
    np.testing.assert_allclose(draws["x"], STANDARD_NORMAL.chain.from_noise(draws["x_noise"]), rtol=1e-5, atol=1e-6)
    assert (draws["sigma"] > 0).all()


def test_sequential_chains_make_the_same_draws(kernel, vectorized):
    mcmc = two_chains(kernel, chain_method="sequential")
    mcmc.run(jax.random.key(0), 3.0, extra_fields=FIELDS)
    wanted = vectorized.get_samples(group_by_chain=True)["x"]
    assert wanted.shape == (2, 20)
    assert len(np.unique(wanted[:, -1])) == 2
    np.testing.assert_allclose(mcmc.get_samples(group_by_chain=True)["x"], wanted, rtol=1e-3, atol=1e-4)


PARALLEL = """
import sys
name, *paths = sys.argv[1:]
sys.path.extend(paths)
import jax
from slice_cases import KERNELS
from test_noise_kernels import FIELDS, two_chains
assert jax.local_device_count() == 2
mcmc = two_chains(KERNELS[name], chain_method="parallel")
mcmc.run(jax.random.key(0), 3.0, extra_fields=FIELDS)
print(*mcmc.get_samples()["x"])
"""


def test_parallel_chains_on_two_devices_make_the_same_draws(kernel, vectorized):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    quick = {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true", "JAX_PLATFORMS": "cpu"}
    here = Path(__file__).parent
    command = [sys.executable, "-c", PARALLEL, kernel.__name__, str(here), str(here.parent)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **quick}, check=True, timeout=200)
    found = np.array(done.stdout.split(), float)
    np.testing.assert_allclose(found, vectorized.get_samples()["x"], rtol=1e-3, atol=1e-4)


def test_thinning_keeps_every_second_draw(kernel, vectorized):
    thinned = two_chains(kernel, thinning=2)
    thinned.run(jax.random.key(0), 3.0, extra_fields=FIELDS)
    wanted = vectorized.get_samples(group_by_chain=True)["x"][:, 1::2]
    np.testing.assert_array_equal(thinned.get_samples(group_by_chain=True)["x"], wanted)


def test_a_resumed_run_continues_the_draws_in_the_same_sampler_a_copy_by_pickle_and_another(kernel, vectorized):
    first = two_chains(kernel, 10)
    first.run(jax.random.key(0), 3.0, extra_fields=FIELDS)
    copied = pickle.loads(pickle.dumps(first))  # noqa: S301
    state, before = first.last_state, first.get_samples(group_by_chain=True)["x"]
    for mcmc in (first, copied, two_chains(kernel, 10)):
        mcmc.post_warmup_state = state
        mcmc.run(state.rng_key, 3.0, extra_fields=FIELDS)
        draws = np.concatenate([before, mcmc.get_samples(group_by_chain=True)["x"]], axis=1)
        np.testing.assert_array_equal(draws, vectorized.get_samples(group_by_chain=True)["x"])
        assert mcmc.get_extra_fields(group_by_chain=True)["i"][0].tolist() == list(range(11, 21))


def test_states_are_of_the_default_float(kernel, x64):
    """Under strict promotion, with a key of the old and a batch of the new kind."""
    kernel = kernel(unknown_scale)
    data = jnp.asarray(SCALED_DATA, float)
    with jax.numpy_dtype_promotion("strict"):
        for key in (jax.random.PRNGKey(0), jax.random.split(jax.random.key(0), 3)):
            start = jax.eval_shape(lambda key: kernel.init(key, 0, None, (data,), {}), key)
            state = jax.eval_shape(lambda start: kernel.sample(start, (data,), {}), start)
            assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, state)
            assert jax.tree.map(jnp.result_type, start[:-1]) == jax.tree.map(jnp.result_type, state[:-1])
            assert state.z["x_noise"].dtype == state.log_likelihood.dtype == jnp.float64


def test_a_second_run_traces_the_model_no_more(kernel):
    traces = []

    def model(y, flag):
        traces.append(flag)
        conjugate(y)

    mcmc = sampler(model, num_chains=2, kernel=kernel)
    y = jnp.asarray(3.0)
    mcmc.run(jax.random.key(0), y, flag="same")
    first = len(traces)
    mcmc.run(jax.random.key(1), y, flag="same")
    assert 0 < len(traces) == first
    mcmc.run(jax.random.key(1), jnp.asarray(-3.0), flag="same")
    assert len(traces) > first
    assert mcmc.get_samples()["x"].mean() < 0  # the new data, not what was kept


def test_data_changed_in_place_are_new_data(kernel):
    y = np.asarray(3.0)
    kernel = kernel(conjugate)
    before = kernel.init(jax.random.key(0), 0, None, (y,), {})
    y[...] = -3.0
    after = kernel.init(jax.random.key(0), 0, None, (y,), {})
    assert before.log_likelihood != after.log_likelihood


def shifted(y):
    shift = numpyro.sample("shift", NORMAL)
    unknown_scale(y - shift)


def in_gibbs(kernel):
    model = noncentred(shifted)
    return Gibbs([(kernel(model), ["x_noise", "sigma"]), (HMC(model, trajectory_length=1.5), ["shift"])])


def test_a_block_of_gibbs_draws_noises_and_scale_beside_hmc(kernel):
    """x + shift ~ N(0, 2): both marginals against quadrature."""
    mcmc = MCMC(in_gibbs(kernel), num_warmup=200, num_samples=4000, progress_bar=False)
    mcmc.run(jax.random.key(0), SCALED_DATA, extra_fields=("block_states.0.i",))
    assert mcmc.get_extra_fields()["block_states.0.i"][-1] == 4200
    draws = mcmc.get_samples(group_by_chain=True)
    check_scale_posterior(draws["x"] + draws["shift"], draws["sigma"], prior_sd=np.sqrt(2.0), least_size=300)


def test_gibbs_starts_where_it_is_told(kernel):
    """Gibbs hands over constrained values."""
    state = in_gibbs(kernel).init(jax.random.key(0), 0, {"sigma": jnp.asarray(0.7)}, (SCALED_DATA,), {})
    np.testing.assert_allclose(state.z["sigma"], np.log(0.7), rtol=1e-6)


def test_init_params_are_the_start(kernel):
    values = {"x_noise": jnp.arange(6.0), "sigma": jnp.asarray(-1.0)}
    kernel = kernel(unknown_scale)
    state = kernel.init(jax.random.key(0), 0, values, (SCALED_DATA,), {})
    for name, value in values.items():
        np.testing.assert_array_equal(state.z[name], value)
    stacked = jax.tree.map(lambda value: jnp.stack([value, 2 * value]), values)
    state = kernel.init(jax.random.split(jax.random.key(0)), 0, stacked, (SCALED_DATA,), {})
    np.testing.assert_array_equal(state.z["x_noise"], stacked["x_noise"])
    assert state.log_likelihood.shape == (2,)
