"""Twists believe a network's denoised estimate as far as draws of the prior bear it out."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from closed_forms import density_on_grid
from measured_errors import check, of_independent
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.infer import TwistedSMC
from numpyro_diffusion.infer.smc import target_of
from numpyro_diffusion.model.split import split_model
from numpyro_diffusion.particles.target import calibrate

SIZE = 16
SCHEDULE = nd.schedules.log_snr(8, 0.1, 100.0)
KERNEL = nd.GaussianKernel(SCHEDULE, parameterization="x0", variance="upper")
ROOT = jnp.asarray(np.sqrt(SCHEDULE.alpha_bar), float)


def exact(params, x_t, t, context):
    """E[x^0 | x^t] of x^0 ~ N(0, 1)."""
    return ROOT[t] * x_t


def overstated(params, x_t, t, context):
    return 2 * exact(params, x_t, t, context)


def careless(params, x_t, t, context):
    """Exact but at the three noisiest levels, where it is noise larger than the prior, of mean near 0.

    There the reverse step hardly depends on it: the distribution of x^0 is nearly that of the exact denoiser.
    """
    return jnp.where(t > 5, 3 * jnp.sin(5 * x_t), exact(params, x_t, t, context))


def model(y, network=exact):
    x = numpyro.sample("x", nd.Diffusion(KERNEL, nd.Transition(network, None, (SIZE,))))
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


def gains(network, num_draws=256):
    split = split_model(model, (jnp.ones(SIZE), network), {})
    draws = {"x": jax.random.normal(jax.random.key(0), (num_draws, SIZE))}
    return calibrate(target_of(split, {}), draws, jax.random.key(1))["x"]


def test_an_exact_denoiser_is_believed():
    assert gains(exact).gain.shape == (9,)
    np.testing.assert_array_equal(gains(exact).gain, 1.0)
    np.testing.assert_array_equal(gains(exact, 8).gain, 1.0)  # few draws take nothing from it


def test_an_overstated_estimate_is_halved():
    """At the levels where it varies enough to be found out in 256 draws."""
    target = target_of(split_model(model, (jnp.ones(SIZE), overstated), {}), {})

    def gain(key):
        return calibrate(target, {"x": jax.random.normal(key, (256, SIZE))}, jax.random.fold_in(key, 1))["x"].gain

    found = jax.vmap(gain)(jax.random.split(jax.random.key(0), 16))
    np.testing.assert_array_equal(found[:, 0], 1.0)
    for level in range(1, 6):
        check(of_independent(found[:, level]), 0.5, refused=1.0)


def test_an_estimate_that_is_noise_is_not_believed():
    found = gains(careless).gain
    assert (found[:6] > 0.98).all()
    assert (found[6:] < 0.1).all()


def test_the_estimate_is_drawn_to_the_mean_by_the_gain():
    split = split_model(model, (jnp.ones(SIZE), overstated), {})
    calibration = {"x": gains(overstated)}
    x_t = jax.random.normal(jax.random.key(2), (5, SIZE))
    plain, drawn = (
        target.denoised("x", target.network("x", x_t, jnp.asarray(3))[0], x_t, jnp.asarray(3))
        for target in (target_of(split, {}), target_of(split, {}, calibration))
    )
    mean, gain = calibration["x"]
    np.testing.assert_allclose(drawn, mean + gain[3] * (plain - mean), rtol=1e-5)


def test_noise_at_the_first_levels_no_longer_kills_particles():
    """The evidence of the careless chain itself."""
    y = 1.5 * jnp.cos(jnp.arange(SIZE))
    smc = TwistedSMC(model, num_particles=256, num_islands=8, progress_bar=False)
    smc.run(jax.random.key(3), y, careless)
    # Before: an effective size of 1 to 3 at the first level.
    assert smc.min_ess > 40
    # Coordinates are independent in the prior and in the likelihood: each has its evidence by quadrature.
    grid = np.linspace(-12, 12, 2401)
    one = nd.Diffusion(KERNEL, nd.Transition(careless, None, (1,)))
    density = density_on_grid(one, grid) * (grid[1] - grid[0])
    evidence = np.log(norm.pdf(np.asarray(y)[:, None], grid, 1.0) @ density).sum()
    assert abs(smc.log_evidence - evidence) < 5 * smc.log_evidence_error < 1
