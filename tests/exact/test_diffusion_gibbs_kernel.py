"""DiffusionGibbs as an MCMC kernel: chains of every kind, starts, resuming, and what it says of input that is wrong."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import HMC, MCMC, NUTS, SA

import numpyro_diffusion as nd
from numpyro_diffusion.infer import DiffusionGibbs


def zero_network(params, x_t, t, context):
    return 0 * x_t


KERNEL = nd.GaussianKernel(nd.schedules.log_snr(3, 0.1, 100.0), variance="upper")
NORMAL = nd.Diffusion(KERNEL, nd.Transition(zero_network, None, ()))
BITS = nd.Diffusion(nd.BernoulliKernel(nd.schedules.constant_fraction(2)), nd.Transition(zero_network, None, (2,)))
FIELDS = ("i", "moved", "effective_size", "refresh_acceptance", "inner_state.potential_energy")


def conjugate(y):
    x = numpyro.sample("x", NORMAL)
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def unknown_scale(y):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    x = numpyro.sample("x", NORMAL)
    numpyro.deterministic("ratio", x / sigma)
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(x, sigma), obs=y)


Y = jnp.array([1.2, 0.4, 2.1])


def with_hmc(model, num_particles=4, twist="none", **options):
    """Two leapfrog steps and no twist: what is said here holds for any, and others take longer to compile."""
    inner = HMC(model, num_steps=2, trajectory_length=None)
    return DiffusionGibbs(inner, num_particles=num_particles, twist=twist, **options)


def sampler(model, num_samples=6, num_chains=1, num_warmup=4, chain_method="vectorized", **kwargs):
    return MCMC(
        with_hmc(model),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=chain_method,
        progress_bar=False,
        **kwargs,
    )


@pytest.fixture(scope="module")
def vectorized():
    """Every second of twelve draws of two chains."""
    mcmc = sampler(unknown_scale, num_samples=12, num_chains=2, thinning=2)
    mcmc.run(jax.random.key(0), Y, extra_fields=FIELDS)
    return mcmc


# What MCMC offers ---------------------------------------------------------------------------------------


def test_samples_are_constrained_and_deterministic_sites_computed(vectorized):
    draws = vectorized.get_samples(group_by_chain=True)
    assert {name: value.shape for name, value in draws.items()} == {"x": (2, 6), "sigma": (2, 6), "ratio": (2, 6)}
    assert (draws["sigma"] > 0).all()
    np.testing.assert_allclose(draws["ratio"], draws["x"] / draws["sigma"], rtol=1e-5)
    assert len(np.unique(draws["sigma"])) > 6


def test_extra_fields_and_diagnostics(vectorized):
    fields = vectorized.get_extra_fields(group_by_chain=True)
    assert all(fields[name].shape == (2, 6) for name in FIELDS)
    assert fields["i"].tolist() == 2 * [[6, 8, 10, 12, 14, 16]]
    assert set(np.unique(fields["moved"])) <= {0.0, 1.0}
    assert ((fields["effective_size"] >= 1) & (fields["effective_size"] <= 4.001)).all()
    state = jax.tree.map(lambda leaf: leaf[0], vectorized.last_state)
    text = vectorized.sampler.get_diagnostics_str(state)
    assert text.startswith(f"x moved {state.moved:.2f}, refresh {state.refresh_acceptance:.2f}, ESS")
    assert "acc. prob" in text


def test_the_inner_potential_is_of_the_paths_in_the_state(vectorized):
    """Energy of sigma given x, unconstrained: nothing stale is kept."""
    state = vectorized.last_state
    z, x = state.z["sigma"], state.paths["x"][:, 0]
    sigma = jnp.exp(z)
    log_density = dist.HalfNormal(1.0).log_prob(sigma) + z + dist.Normal(x[:, None], sigma[:, None]).log_prob(Y).sum(-1)
    np.testing.assert_allclose(state.inner_state.potential_energy, -log_density, rtol=1e-4)


def test_arviz_and_summary_take_the_draws(vectorized, capsys):
    data = az.from_numpyro(vectorized, log_likelihood=True)
    assert set(data.posterior.data_vars) == {"x", "sigma", "ratio"}
    assert data.log_likelihood["y"].shape == (2, 6, 3)
    assert dict(data.sample_stats.sizes) == {"chain": 2, "draw": 6}
    vectorized.print_summary()
    assert "sigma" in capsys.readouterr().out


def test_sequential_chains_make_the_same_draws(vectorized):
    mcmc = sampler(unknown_scale, num_samples=12, num_chains=2, thinning=2, chain_method="sequential")
    mcmc.run(jax.random.key(0), Y)
    wanted = vectorized.get_samples(group_by_chain=True)
    for name, value in mcmc.get_samples(group_by_chain=True).items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-3, atol=1e-4)


PARALLEL = """
import sys
sys.path.append(sys.argv[1])
import jax
from test_diffusion_gibbs_kernel import Y, sampler, unknown_scale
assert jax.local_device_count() == 2
mcmc = sampler(unknown_scale, num_samples=12, num_chains=2, thinning=2, chain_method="parallel")
mcmc.run(jax.random.key(0), Y)
print(*mcmc.get_samples()["x"], *mcmc.get_samples()["sigma"])
"""


def test_parallel_chains_on_two_devices_make_the_same_draws(vectorized):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    quick = {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PARALLEL, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **quick}, check=True, timeout=300)
    wanted = vectorized.get_samples()
    found = np.array(done.stdout.split(), float)
    np.testing.assert_allclose(found, np.concatenate([wanted["x"], wanted["sigma"]]), rtol=1e-3, atol=1e-4)


def test_the_same_key_gives_the_same_draws_without_another_trace():
    traces = []

    def model(y):
        traces.append(1)
        conjugate(y)

    kernel = DiffusionGibbs(model, num_particles=4)
    y = jnp.asarray(3.0)
    step = jax.jit(lambda state: kernel.sample(state, (y,), {}))
    draws, counts = [], []
    for key in (0, 0, 1):
        state = step(step(kernel.init(jax.random.split(jax.random.key(key)), 0, None, (y,), {})))
        draws.append(np.asarray(state.z["x"]))
        counts.append(len(traces))
    assert counts[0] == counts[1] == counts[2] > 0
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.isclose(draws[0], draws[2]).any()
    # Other data of the same shape need no trace, and are not mistaken for those kept.
    keys = jax.random.split(jax.random.key(0))
    here, there = (kernel.init(keys, 0, None, (jnp.asarray(y),), {}).z["x"] for y in (3.0, -3.0))
    assert len(traces) == counts[2]
    assert (here != there).all()


@pytest.mark.slow
def test_a_copy_by_pickle_resumes_where_the_run_ended():
    """Ten draws at once are five, and five more by a copy."""
    whole, half = sampler(conjugate, num_samples=10), sampler(conjugate, num_samples=5)
    for mcmc in (whole, half):
        mcmc.run(jax.random.key(0), 3.0)
    copied = pickle.loads(pickle.dumps(half))  # noqa: S301
    copied.post_warmup_state = copied.last_state
    copied.run(copied.post_warmup_state.rng_key, 3.0, extra_fields=("i",))
    draws = np.concatenate([mcmc.get_samples()["x"] for mcmc in (half, copied)])
    np.testing.assert_array_equal(draws, whole.get_samples()["x"])
    assert copied.get_extra_fields()["i"].tolist() == list(range(10, 15))


def test_many_data_sets_at_once_under_vmap():
    """MCMC as a pure function of key and data: nothing traced stays in the kernel."""
    kernel = with_hmc(unknown_scale)

    def draws(key, y):
        mcmc = MCMC(kernel, num_warmup=4, num_samples=6, progress_bar=False)
        mcmc.run(key, y)
        return mcmc.get_samples()

    keys = jax.random.split(jax.random.key(0), 3)
    found = jax.jit(jax.vmap(draws))(keys, jnp.stack([Y, -Y, 10 + Y]))
    assert found["x"].shape == (3, 6)
    assert found["ratio"].shape == (3, 6)
    assert not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(vars(kernel)))
    pickle.dumps(kernel)


def test_states_are_of_the_default_float(x64):
    """With a key of the old and a batch of the new kind."""
    kernel = with_hmc(unknown_scale, num_particles=2, twist="tempered", independence=True)
    data = jnp.asarray(Y, float)
    for key in (jax.random.PRNGKey(0), jax.random.split(jax.random.key(0), 3)):
        start = jax.eval_shape(lambda key: kernel.init(key, 0, None, (data,), {}), key)
        state = jax.eval_shape(lambda start: kernel.sample(start, (data,), {}), start)
        assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, state)
        assert jax.tree.map(jnp.result_type, start[:-1]) == jax.tree.map(jnp.result_type, state[:-1])
        assert start.paths["x"].dtype == start.z["sigma"].dtype == start.effective_size.dtype == jnp.float64


# Starts -------------------------------------------------------------------------------------------------


def test_init_params_are_the_start(vectorized):
    """x^0 of the diffusion, sigma unconstrained; several chains with an axis of their own."""
    kernel = vectorized.sampler
    values = {"x": jnp.array([0.7, -0.3]), "sigma": jnp.array([-1.0, 0.5])}
    state = kernel.init(jax.random.split(jax.random.key(0)), 0, values, (Y,), {})
    for name, value in values.items():
        np.testing.assert_array_equal(state.z[name], value)
    assert state.paths["x"].shape == (2, 4)
    np.testing.assert_array_equal(state.paths["x"][:, 0], values["x"])
    assert len(np.unique(state.paths["x"])) == 8


def test_given_starts_of_two_sites_are_noised_by_different_noise():
    def model():
        x, w = numpyro.sample("x", NORMAL), numpyro.sample("w", NORMAL)
        numpyro.sample("y", dist.Normal(x + w, 1.0), obs=1.0)

    kernel = DiffusionGibbs(model, num_particles=2)
    state = kernel.init(jax.random.key(0), 0, {"x": jnp.asarray(0.1), "w": jnp.asarray(0.1)}, (), {})
    assert not np.isclose(state.paths["x"][1:], state.paths["w"][1:]).any()


def test_a_start_is_searched_where_the_likelihood_is_not_zero():
    """A likelihood of zero for x < 0.8, which no gradient tells of: four particles often find none."""

    def model():
        x = numpyro.sample("x", NORMAL)
        numpyro.factor("tail", jnp.where(x > 0.8, 0.0, -jnp.inf))

    kernel = DiffusionGibbs(model, num_particles=2)
    state = kernel.init(jax.random.split(jax.random.key(0), 20), 0, None, (), {})
    assert (state.z["x"] > 0.8).all()
    step = jax.jit(lambda state: kernel.sample(state, (), {}))
    for _ in range(5):
        state = step(state)
        assert (state.z["x"] > 0.8).all()


@pytest.mark.parametrize(("num_chains", "value"), [(1, -jnp.inf), (2, jnp.nan)])
def test_a_likelihood_of_zero_at_every_start_is_an_error(num_chains, value):
    def model():
        numpyro.sample("x", NORMAL)
        numpyro.factor("never", value)

    with pytest.raises(RuntimeError, match=r"likelihood that is finite and not 0.*got log r = .*init_params"):
        sampler(model, num_chains=num_chains).run(jax.random.key(0))


def test_a_start_of_zero_likelihood_is_an_error_in_any_chain():
    kernel = with_hmc(positive, num_particles=2)
    with pytest.raises(RuntimeError, match=r"log r = \[ *[-.0-9e]+ +-inf\]"):
        kernel.init(jax.random.split(jax.random.key(0)), 0, {"x": jnp.array([1.0, -1.0])}, (), {})


def positive():
    x = numpyro.sample("x", NORMAL)
    numpyro.sample("shift", dist.Normal(0.0, 1.0))
    numpyro.factor("positive", jnp.where(x > 0, 0.0, -jnp.inf))


def test_a_network_that_is_nan_somewhere_does_not_stop_the_chain():
    """A particle that goes there has no weight; the others move on. N = 64, so that one goes there in every sweep."""

    def nan_far_out(params, x_t, t, context):
        return jnp.where(jnp.abs(x_t) > 1.5, jnp.nan, 0 * x_t)

    def model():
        x = numpyro.sample("x", nd.Diffusion(KERNEL, nd.Transition(nan_far_out, None, ())))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=0.2)

    kernel = DiffusionGibbs(model, num_particles=64, refresh=False)
    mcmc = MCMC(kernel, num_warmup=0, num_samples=20, progress_bar=False)
    mcmc.run(jax.random.key(0), init_params={"x": jnp.asarray(0.1)})
    draws = np.asarray(mcmc.get_samples()["x"])
    assert np.isfinite(draws).all()
    assert len(set(draws.tolist())) > 10


# Bad input ----------------------------------------------------------------------------------------------


def run(model, *args, **kwargs):
    sampler(model, num_samples=1, num_warmup=0).run(jax.random.key(0), *args, **kwargs)


def no_diffusion():
    numpyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("what", ["m", 3.0, NUTS])
def test_something_that_is_no_model_or_kernel_is_named(no_type_checks, what):
    with pytest.raises(TypeError, match=r"an MCMC kernel built on the model; got .*NUTS\(model\)"):
        DiffusionGibbs(what)


def test_a_kernel_on_a_potential_function_is_named():
    with pytest.raises(TypeError, match=r"an MCMC kernel built on the model; got .*a potential function has no"):
        DiffusionGibbs(NUTS(potential_fn=lambda z: z**2))


def test_a_kernel_that_cannot_be_refreshed_is_named():
    with pytest.raises(TypeError, match=r"`refresh`\); got SA.*NUTS, HMC and Gibbs can"):
        DiffusionGibbs(SA(conjugate))


def test_one_particle_is_too_few():
    with pytest.raises(ValueError, match=r"num_particles to be an integer >= 2; got 1.*the path would never move"):
        DiffusionGibbs(NUTS(conjugate), num_particles=1)


def test_an_unknown_twist_and_way_of_elements_are_named():
    with pytest.raises(ValueError, match=r"a twist among .*; got 'nothing'"):
        DiffusionGibbs(NUTS(conjugate), twist="nothing")
    kernel = DiffusionGibbs(NUTS(conjugate), elements="some")
    with pytest.raises(ValueError, match="elements 'auto', 'independent' or 'joint'; got 'some'"):
        kernel.init(jax.random.key(0), 0, None, (3.0,), {})


def test_a_model_without_a_diffusion_site_is_named():
    with pytest.raises(ValueError, match=r"a latent Diffusion site; got latent sites \['z'\]"):
        run(no_diffusion)


def test_a_discrete_site_under_nuts_is_named_with_its_cure():
    def model():
        numpyro.sample("x", NORMAL)
        numpyro.sample("c", dist.Bernoulli(0.5))

    for kernel in (NUTS(model), HMC(model)):
        with pytest.raises(ValueError, match=r"got discrete \['c'\].*DiscreteGibbs"):
            DiffusionGibbs(kernel).init(jax.random.key(0), 0, None, (), {})


class Forgetful(NUTS):
    """Leaves site b alone, as kernels do that sum a site out."""

    def init(self, *args, **kwargs):
        state = super().init(*args, **kwargs)
        return state._replace(z={"a": state.z["a"]})


def test_a_site_that_the_inner_kernel_leaves_alone_is_named():
    def model():
        numpyro.sample("x", NORMAL)
        numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("b", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"moves the sites \['a', 'b'\]; got one that moves \['a'\]"):
        DiffusionGibbs(Forgetful(model), num_particles=2, twist="none").init(jax.random.key(0), 0, None, (), {})


def test_a_support_that_moves_with_x_is_named():
    """In the kernel's coordinates the site would move with x, unseen."""

    def model():
        x = numpyro.sample("x", NORMAL)
        low = numpyro.sample("low", dist.Normal(0.0, 1.0))
        numpyro.sample("above_low", dist.Uniform(low, low + 1.0))
        numpyro.sample("above_x", dist.Uniform(x, x + 1.0))

    with pytest.raises(ValueError, match=r"support depends on no diffusion site; got \['above_x'\].*fixed support"):
        run(model)


def test_an_observation_of_the_wrong_shape_is_named():
    def model(y):
        x = numpyro.sample("x", BITS)
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    with pytest.raises(ValueError, match=r"shape \(2,\) at site 'y'; got shape \(3,\)"):
        run(model, jnp.zeros(3))


def test_init_params_of_no_site_or_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"latent sites \['sigma', 'x'\]; got \['x_noise'\]"):
        run(unknown_scale, Y, init_params={"x_noise": jnp.zeros(4)})
    with pytest.raises(ValueError, match=r"init_params\['x'\] of shape \(\) for each chain; got shape \(2,\)"):
        run(unknown_scale, Y, init_params={"x": jnp.zeros(2)})
