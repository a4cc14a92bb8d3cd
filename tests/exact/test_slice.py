"""EllipticalSlice: the exact posterior of the T-step model, on plain NumPyro models, in everything that MCMC offers."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import HMC, MCMC, Gibbs
from numpyro.infer.util import potential_energy
from precision import enable_x64
from scipy.stats import norm, truncnorm
from slice_cases import (
    KERNEL,
    NORMAL,
    SCALED_DATA,
    STANDARD_NORMAL,
    STANDARD_NORMALS,
    conjugate,
    noncentred,
    sampler,
    unknown_scale,
    zero_network,
)

import numpyro_diffusion as nd
from numpyro_diffusion.infer.slice import EllipticalSlice, _slice_step
from numpyro_diffusion.model.reference import NormalReference


def z_score(values, wanted):
    """Of the mean of values, shape (chains, draws), with the standard error of their effective number."""
    values = np.asarray(values, float)
    return abs(values.mean() - wanted) / (values.std() / np.sqrt(effective_sample_size(values)))


# The target ---------------------------------------------------------------------------------------------


def test_log_likelihood_is_the_density_over_the_standard_normal():
    """In float64, on a model with a plate, a bounded site, a scaled site and a standard normal one."""

    def model(y):
        sigma = numpyro.sample("sigma", dist.Uniform(0.5, 3.0))
        shift = numpyro.sample("shift", NORMAL)
        with numpyro.handlers.scale(scale=0.5):
            power = numpyro.sample("power", NORMAL)
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", STANDARD_NORMALS)
            numpyro.sample("y", dist.Normal(x.sum(-1) + shift + power, sigma), obs=y)

    with enable_x64(True):
        y = jnp.asarray([0.3, -1.0, 2.0])
        reference = NormalReference(model, (y,), {})
        u = reference.prior_draw(jax.random.key(0))
        assert {name: value.shape for name, value in u.items()} == {
            "sigma": (),
            "shift": (),
            "power": (),
            "x_noise": (3, 6, 2),
        }
        density = -potential_energy(noncentred(model), (y,), {}, u)
        normal = sum(NORMAL.log_prob(value).sum() for value in u.values())
        np.testing.assert_allclose(reference.log_likelihood(u), density - normal, rtol=1e-12)


def test_log_likelihood_of_noises_is_the_likelihood_to_the_last_digit():
    """The prior of 6 x 2000 noises is about -17,000 nats: computed and subtracted it would cost 1e-3 of them."""
    prior = nd.Diffusion(KERNEL, nd.Transition(zero_network, None, (2000,)))

    def model():
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[0], 1.0), obs=0.25)

    noise = jax.random.normal(jax.random.key(0), (6, 2000))
    x = prior.chain.from_noise(noise)
    found = NormalReference(model, (), {}).log_likelihood({"x_noise": noise})
    assert found == pytest.approx(float(dist.Normal(x[0], 1.0).log_prob(0.25)), abs=1e-6)


# Posteriors ---------------------------------------------------------------------------------------------


def test_conjugate_posterior_of_new_data_by_jit_model_args():
    """x ~ N(0, 1), y ~ N(x, 1): mean y/2, variance 0.5."""
    mcmc = sampler(conjugate, num_samples=1000, num_chains=16, num_warmup=50, jit_model_args=True)
    for y in (3.0, -3.0):
        mcmc.run(jax.random.key(0), jnp.asarray(y))
        x = mcmc.get_samples(group_by_chain=True)["x"]
        assert effective_sample_size(np.asarray(x)) > 1000
        assert z_score(x, y / 2) < 5
        assert z_score((x - y / 2) ** 2, 0.5) < 5


def test_two_modes_have_their_weights():
    """Against importance sampling from the T-step model, exact for it, and the posterior of the data's distribution."""
    kernel = nd.GaussianKernel(nd.schedules.log_snr(20, 0.05, 50.0), parameterization="x0", variance="denoiser")
    means, weights, scale, slope, y = np.array([[-1.5, 0.0], [1.5, 0.5]]), np.array([0.3, 0.7]), 0.5, np.ones(2), -0.5
    prior = nd.Diffusion(kernel, nd.analytic.gaussian_mixture(kernel, means, scale, weights))

    def model():
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x @ jnp.asarray(slope, x.dtype), 1.0), obs=y)

    mcmc = sampler(model, num_samples=600, num_chains=16, num_warmup=50)
    mcmc.run(jax.random.key(1))
    is_right = np.asarray(mcmc.get_samples(group_by_chain=True)["x"][..., 0] > 0, float)
    size = effective_sample_size(is_right)
    assert size > 1500

    draws = np.asarray(jax.jit(lambda key: prior.sample(key, (100_000,)))(jax.random.key(2)), float)
    likelihood = norm.pdf(y, draws @ slope, 1.0)
    share = likelihood / likelihood.sum()
    wanted = share @ (draws[:, 0] > 0)
    error = np.sqrt(share**2 @ ((draws[:, 0] > 0) - wanted) ** 2)
    assert abs(is_right.mean() - wanted) < 5 * np.hypot(error, is_right.std() / np.sqrt(size))

    total = scale**2 * slope @ slope + 1
    evidence = weights * norm.pdf(y, means @ slope, np.sqrt(total))
    moved = means[:, 0] + scale**2 * slope[0] * (y - means @ slope) / total
    sd = scale * np.sqrt(1 - scale**2 * slope[0] ** 2 / total)
    data_law = evidence @ norm.sf(0, moved, sd) / evidence.sum()
    assert abs(is_right.mean() - data_law) < 0.03  # what 20 steps leave: 0.012, and five standard errors


def test_an_unknown_scale_is_drawn_with_x():
    """Both marginals against quadrature."""
    mcmc = sampler(unknown_scale, num_samples=1000, num_chains=16, num_warmup=50)
    mcmc.run(jax.random.key(3), SCALED_DATA)
    draws = mcmc.get_samples(group_by_chain=True)

    check_scale_posterior(draws["x"], draws["sigma"], prior_sd=1.0, least_size=1000)


def check_scale_posterior(x_draws, sigma_draws, prior_sd, least_size):
    """Means and variances of both marginals of ``unknown_scale``, where x ~ N(0, prior_sd^2)."""
    x, sigma = np.meshgrid(np.linspace(-6, 6, 801), np.linspace(0.005, 8, 1600), indexing="ij")
    log_density = norm.logpdf(x, 0, prior_sd) + norm.logpdf(sigma)
    log_density += norm.logpdf(SCALED_DATA[:, None, None], x, sigma).sum(0)
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    for draws, value in ((x_draws, x), (sigma_draws, sigma)):
        mean = (density * value).sum()
        assert effective_sample_size(np.asarray(draws)) > least_size
        assert z_score(draws, mean) < 5
        assert z_score((draws - mean) ** 2, (density * (value - mean) ** 2).sum()) < 5


def test_a_density_of_zero_or_nan_is_never_moved_to():
    """0 <= x <= 1 by a likelihood that is 0 below and NaN above: a truncated normal."""

    def model():
        x = numpyro.sample("x", STANDARD_NORMAL)
        numpyro.factor("inside", jnp.where(x < 0, -jnp.inf, jnp.where(x > 1, jnp.nan, 0.0)))

    mcmc = sampler(model, num_samples=500, num_chains=8)
    mcmc.run(jax.random.key(4))
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"], float)
    assert ((x >= 0) & (x <= 1)).all()
    assert z_score(x, truncnorm(0, 1).mean()) < 5


def test_a_state_of_zero_density_is_left_for_a_finite_one():
    """As a Gibbs sibling may leave it: the density is NaN at x = -3, and 0 or infinite in most other places."""

    def model():
        x = numpyro.sample("x", STANDARD_NORMAL)
        bad = jnp.where(x < -2, jnp.nan, jnp.where(x < -0.5, -jnp.inf, jnp.inf))
        numpyro.factor("inside", jnp.where((x > 0) & (x < 0.5), 0.0, bad))

    kernel = EllipticalSlice(model)
    noise = {"x_noise": jnp.zeros(6).at[0].set(-3 / KERNEL.reverse(0.0, 0.0, 1).scale)}
    state = kernel.init(jax.random.key(0), 0, {"x_noise": jnp.zeros(6).at[0].set(0.01)}, (), {})
    state = kernel.refresh(state._replace(z=noise), (), {})
    assert state.log_likelihood == -jnp.inf
    keys = jax.random.split(jax.random.key(1), 200)
    after = jax.jit(jax.vmap(lambda key: kernel.sample(state._replace(rng_key=key), (), {})))(keys)
    x = jax.vmap(STANDARD_NORMAL.chain.from_noise)(after.z["x_noise"])
    is_moved = after.log_likelihood == 0
    assert is_moved.sum() > 20
    assert ((x > 0) & (x < 0.5))[is_moved].all()
    assert (after.log_likelihood == -jnp.inf)[~is_moved].all()
    np.testing.assert_allclose(x[~is_moved], -3.0, rtol=1e-5)


def test_a_slice_that_is_never_found_leaves_the_state():
    """151 evaluations: the first angle and 150 shrinks."""
    state = EllipticalSlice(conjugate).init(jax.random.key(0), 0, None, (3.0,), {})
    state = state._replace(log_likelihood=jnp.asarray(1e3, float))
    after = _slice_step(NormalReference(conjugate, (3.0,), {}).log_likelihood, state)
    np.testing.assert_array_equal(after.z["x_noise"], state.z["x_noise"])
    assert after.log_likelihood == state.log_likelihood
    assert after.num_evaluations == 151


# What MCMC offers ---------------------------------------------------------------------------------------

FIELDS = ("~z.x_noise", "i", "num_evaluations", "log_likelihood")


def two_chains(num_samples=20, **options):
    return sampler(conjugate, num_samples, num_chains=2, num_warmup=0, **options)


@pytest.fixture(scope="module")
def vectorized():
    """Twenty draws of two chains."""
    mcmc = two_chains()
    mcmc.run(jax.random.key(0), 3.0, extra_fields=FIELDS)
    return mcmc


def test_samples_are_constrained_with_noises_and_deterministic_sites():
    """As NUTS returns them; a model reparameterised before gives the same draws."""
    start = {"x_noise": jnp.arange(6.0), "sigma": jnp.asarray(-1.0)}
    samplers = [sampler(unknown_scale), sampler(noncentred(unknown_scale))]
    for mcmc in samplers:
        mcmc.run(jax.random.key(0), SCALED_DATA, init_params=start)
    draws, before = (mcmc.get_samples() for mcmc in samplers)
    assert {name: value.shape for name, value in draws.items()} == {"x": (10,), "sigma": (10,), "x_noise": (10, 6)}
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), draws, before)
    np.testing.assert_allclose(draws["x"], STANDARD_NORMAL.chain.from_noise(draws["x_noise"]), rtol=1e-5, atol=1e-6)
    assert (draws["sigma"] > 0).all()


def test_sequential_chains_make_the_same_draws(vectorized):
    mcmc = two_chains(chain_method="sequential")
    mcmc.run(jax.random.key(0), 3.0, extra_fields=FIELDS)
    wanted = vectorized.get_samples(group_by_chain=True)["x"]
    assert wanted.shape == (2, 20)
    assert len(np.unique(wanted[:, -1])) == 2
    np.testing.assert_allclose(mcmc.get_samples(group_by_chain=True)["x"], wanted, rtol=1e-3, atol=1e-4)


PARALLEL = """
import sys
sys.path.extend(sys.argv[1:])
import jax
from test_slice import FIELDS, two_chains
assert jax.local_device_count() == 2
mcmc = two_chains(chain_method="parallel")
mcmc.run(jax.random.key(0), 3.0, extra_fields=FIELDS)
print(*mcmc.get_samples()["x"])
"""


def test_parallel_chains_on_two_devices_make_the_same_draws(vectorized):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    quick = {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true", "JAX_PLATFORMS": "cpu"}
    here = Path(__file__).parent
    command = [sys.executable, "-c", PARALLEL, str(here), str(here.parent)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **quick}, check=True, timeout=200)
    found = np.array(done.stdout.split(), float)
    np.testing.assert_allclose(found, vectorized.get_samples()["x"], rtol=1e-3, atol=1e-4)


def test_thinning_keeps_every_second_draw(vectorized):
    thinned = two_chains(thinning=2)
    thinned.run(jax.random.key(0), 3.0, extra_fields=FIELDS)
    wanted = vectorized.get_samples(group_by_chain=True)["x"][:, 1::2]
    np.testing.assert_array_equal(thinned.get_samples(group_by_chain=True)["x"], wanted)


def test_a_resumed_run_continues_the_draws_in_the_same_sampler_a_copy_by_pickle_and_another(vectorized):
    first = two_chains(10)
    first.run(jax.random.key(0), 3.0, extra_fields=FIELDS)
    copied = pickle.loads(pickle.dumps(first))  # noqa: S301
    state, before = first.last_state, first.get_samples(group_by_chain=True)["x"]
    for mcmc in (first, copied, two_chains(10)):
        mcmc.post_warmup_state = state
        mcmc.run(state.rng_key, 3.0, extra_fields=FIELDS)
        draws = np.concatenate([before, mcmc.get_samples(group_by_chain=True)["x"]], axis=1)
        np.testing.assert_array_equal(draws, vectorized.get_samples(group_by_chain=True)["x"])
        assert mcmc.get_extra_fields(group_by_chain=True)["i"][0].tolist() == list(range(11, 21))


def test_extra_fields_and_diagnostics_count_evaluations(vectorized):
    fields, draws = (get(group_by_chain=True) for get in (vectorized.get_extra_fields, vectorized.get_samples))
    assert set(draws) == {"x"}
    assert (fields["num_evaluations"] >= 1).all()
    means = fields["num_evaluations"].mean(1)
    np.testing.assert_allclose(vectorized.last_state.mean_num_evaluations, means, rtol=1e-5)
    np.testing.assert_allclose(fields["log_likelihood"], dist.Normal(draws["x"], 1.0).log_prob(3.0), rtol=1e-5)
    text = vectorized.sampler.get_diagnostics_str(jax.tree.map(lambda leaf: leaf[0], vectorized.last_state))
    assert text == f"{means[0]:.1f} likelihood evaluations a draw"


def test_each_angle_costs_one_evaluation_of_the_model():
    calls = []

    def model():
        x = numpyro.sample("x", STANDARD_NORMAL)
        jax.debug.callback(lambda: calls.append(1))
        numpyro.sample("y", dist.Normal(x, 0.01), obs=3.0)

    kernel = EllipticalSlice(model)
    state = kernel.init(jax.random.key(0), 0, None, (), {})
    step = jax.jit(lambda state: kernel.sample(state, (), {}))
    jax.effects_barrier()
    calls.clear()
    counts = []
    for _ in range(5):
        state = step(state)
        counts.append(int(state.num_evaluations))
    jax.effects_barrier()
    assert len(calls) == sum(counts) > 5


def test_states_are_of_the_default_float(x64):
    """Under strict promotion, with a key of the old and a batch of the new kind."""
    kernel = EllipticalSlice(unknown_scale)
    data = jnp.asarray(SCALED_DATA, float)
    with jax.numpy_dtype_promotion("strict"):
        for key in (jax.random.PRNGKey(0), jax.random.split(jax.random.key(0), 3)):
            start = jax.eval_shape(lambda key: kernel.init(key, 0, None, (data,), {}), key)
            state = jax.eval_shape(lambda start: kernel.sample(start, (data,), {}), start)
            assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, state)
            assert jax.tree.map(jnp.result_type, start[:-1]) == jax.tree.map(jnp.result_type, state[:-1])
            assert state.z["x_noise"].dtype == state.log_likelihood.dtype == jnp.float64


def test_a_second_run_traces_the_model_no_more():
    traces = []

    def model(y, flag):
        traces.append(flag)
        conjugate(y)

    mcmc = sampler(model, num_chains=2)
    y = jnp.asarray(3.0)
    mcmc.run(jax.random.key(0), y, flag="same")
    first = len(traces)
    mcmc.run(jax.random.key(1), y, flag="same")
    assert 0 < len(traces) == first
    mcmc.run(jax.random.key(1), jnp.asarray(-3.0), flag="same")
    assert len(traces) > first
    assert mcmc.get_samples()["x"].mean() < 0  # the new data, not what was kept


def test_data_changed_in_place_are_new_data():
    y = np.asarray(3.0)
    kernel = EllipticalSlice(conjugate)
    before = kernel.init(jax.random.key(0), 0, None, (y,), {})
    y[...] = -3.0
    after = kernel.init(jax.random.key(0), 0, None, (y,), {})
    assert before.log_likelihood != after.log_likelihood


def shifted(y):
    shift = numpyro.sample("shift", NORMAL)
    unknown_scale(y - shift)


def test_a_block_of_gibbs_draws_noises_and_scale_beside_hmc():
    """x + shift ~ N(0, 2): both marginals against quadrature."""
    model = noncentred(shifted)
    kernel = Gibbs([(EllipticalSlice(model), ["x_noise", "sigma"]), (HMC(model, trajectory_length=1.5), ["shift"])])
    mcmc = MCMC(kernel, num_warmup=200, num_samples=4000, progress_bar=False)
    mcmc.run(jax.random.key(0), SCALED_DATA, extra_fields=("block_states.0.num_evaluations",))
    assert (mcmc.get_extra_fields()["block_states.0.num_evaluations"] >= 1).all()
    draws = mcmc.get_samples(group_by_chain=True)
    check_scale_posterior(draws["x"] + draws["shift"], draws["sigma"], prior_sd=np.sqrt(2.0), least_size=300)


def test_gibbs_starts_where_it_is_told():
    """Gibbs hands over constrained values."""
    model = noncentred(shifted)
    kernel = Gibbs([(EllipticalSlice(model), ["x_noise", "sigma"]), (HMC(model, trajectory_length=1.5), ["shift"])])
    state = kernel.init(jax.random.key(0), 0, {"sigma": jnp.asarray(0.7)}, (SCALED_DATA,), {})
    np.testing.assert_allclose(state.z["sigma"], np.log(0.7), rtol=1e-6)


def test_init_params_are_the_start():
    values = {"x_noise": jnp.arange(6.0), "sigma": jnp.asarray(-1.0)}
    kernel = EllipticalSlice(unknown_scale)
    state = kernel.init(jax.random.key(0), 0, values, (SCALED_DATA,), {})
    for name, value in values.items():
        np.testing.assert_array_equal(state.z[name], value)
    stacked = jax.tree.map(lambda value: jnp.stack([value, 2 * value]), values)
    state = kernel.init(jax.random.split(jax.random.key(0)), 0, stacked, (SCALED_DATA,), {})
    np.testing.assert_array_equal(state.z["x_noise"], stacked["x_noise"])
    assert state.log_likelihood.shape == (2,)
