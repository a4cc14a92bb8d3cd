"""EllipticalSlice: the exact posterior of the T-step model, on plain NumPyro models."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer.util import potential_energy
from precision import enable_x64
from scipy.stats import norm, truncnorm
from slice_cases import (
    KERNEL,
    NORMAL,
    SCALED_DATA,
    STANDARD_NORMAL,
    STANDARD_NORMALS,
    check_scale_posterior,
    conjugate,
    noncentred,
    sampler,
    unknown_scale,
    z_score,
    zero_network,
)

import numpyro_diffusion as nd
from numpyro_diffusion.infer.slice import EllipticalSlice, _slice_step
from numpyro_diffusion.model.reference import NormalReference

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


# What it tells ---------------------------------------------------------------------------------------

FIELDS = ("~z.x_noise", "i", "num_evaluations", "log_likelihood")


def two_chains(num_samples=20, **options):
    return sampler(conjugate, num_samples, num_chains=2, num_warmup=0, **options)


@pytest.fixture(scope="module")
def vectorized():
    """Twenty draws of two chains."""
    mcmc = two_chains()
    mcmc.run(jax.random.key(0), 3.0, extra_fields=FIELDS)
    return mcmc


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
