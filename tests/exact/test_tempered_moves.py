"""Tempered particles of N(u; 0, I) w(u) on arrays: the integral, draws, temperatures, coordinates of single sites."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from measured_errors import check, of_independent
from numpyro.distributions import Normal
from precision import enable_x64

from numpyro_diffusion._weights import log_mean_and_error
from numpyro_diffusion.noise import tempered
from numpyro_diffusion.noise.hmc import MAX_ANGLE, over_coordinates
from numpyro_diffusion.noise.tempered import Settings, run_tempered

NUM_ISLANDS, NUM_PARTICLES = 16, 256
PAIR, NUMBER = {"a": jnp.zeros(2)}, {"a": jnp.zeros(())}


def islands(log_weight, like, num_islands=NUM_ISLANDS, num_particles=NUM_PARTICLES, whitened=(), **settings):
    """The first and the last states of independent islands, side by side, what happened, and how often."""
    run = jax.jit(
        jax.vmap(
            lambda key: run_tempered(key, log_weight, like, num_particles, Settings(**settings), whitened=whitened)
        )
    )
    return run(jax.random.split(jax.random.key(0), num_islands))


def check_evidence(end, wanted, refused):
    """By the spread of the islands."""
    value, error = log_mean_and_error(end.log_evidence)
    assert abs(value - wanted) < 5 * error, f"{value} +- {error}, {wanted} is exact"
    assert abs(refused - wanted) > 10 * error


def of_islands(values):
    """The mean over all particles of equal islands, its error from the islands' means."""
    return of_independent(np.asarray(values, float).reshape(NUM_ISLANDS, NUM_PARTICLES, -1).mean(1))


@functools.cache
def seen_sum():
    """y = 3 with noise .3 of the sum of both numbers: log p(y) = log N(3; 0, 2 + .09)."""
    return islands(lambda u: Normal(u["a"].sum(), 0.3).log_prob(3.0), PAIR)


def test_the_integral_and_the_moments_of_a_conjugate_posterior():
    _, end, _, _ = seen_sum()
    variance = 2 + 0.3**2
    check_evidence(end, float(Normal(0.0, np.sqrt(variance)).log_prob(3.0)), refused=0.0)
    mean, spread = 3 / variance, 1 - 1 / variance
    u = np.asarray(end.particles.u["a"], float)
    check(of_islands(u), np.full(2, mean), refused=np.zeros(2))
    check(of_islands((u[..., 0] - mean) ** 2), spread, refused=1.0)
    check(of_islands((u[..., 0] - mean) * (u[..., 1] - mean)), -1 / variance, refused=0.0)


def test_a_temperature_is_the_one_whose_weights_have_the_wanted_effective_size():
    _, end, info, count = seen_sum()
    assert (end.temperature == 1).all()
    for island in range(NUM_ISLANDS):
        needed = int(count[island])
        temperature, size = (np.asarray(values[island]) for values in (info.temperature, info.effective_size))
        assert (np.diff(temperature[:needed]) > 0).all()
        np.testing.assert_allclose(size[: needed - 1], 0.5 * NUM_PARTICLES, rtol=1e-2)
        assert size[needed - 1] >= 0.5 * NUM_PARTICLES
        assert np.isnan(temperature[needed:]).all()
        assert (np.asarray(info.num_gradients[island, needed:]) == 0).all()


def test_the_state_holds_the_weight_and_the_gradient_of_its_particles():
    _, end, _, _ = seen_sum()
    density = jax.value_and_grad(lambda u: Normal(u["a"].sum(), 0.3).log_prob(3.0))
    value, gradient = jax.vmap(jax.vmap(density))(end.particles.u)
    np.testing.assert_allclose(end.particles.log_weight, value, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(end.particles.gradient["a"], gradient["a"], rtol=1e-5, atol=1e-4)


def test_a_constant_weight_takes_one_temperature_and_is_the_integral():
    start, end, info, count = islands(lambda u: 0 * u["a"].sum() + 1.7, PAIR, num_islands=2)
    assert (count == 1).all()
    np.testing.assert_allclose(end.log_evidence, 1.7, rtol=1e-6)
    np.testing.assert_allclose(info.effective_size[:, 0], NUM_PARTICLES, rtol=1e-5)
    np.testing.assert_allclose(info.accept_prob[:, 0], 1.0, rtol=1e-6)
    assert not np.isclose(start.particles.u["a"], end.particles.u["a"]).any()


def test_weights_of_modes_eight_standard_deviations_apart():
    """N(u; 0, 1) w(u) = e^2 [.3 N(u; -2, 1/2) + .7 N(u; 2, 1/2)]: a particle that sits in one never sees the other."""

    def log_weight(u):
        u = u["a"]
        modes = jnp.log(jnp.array([0.3, 0.7])) + Normal(jnp.array([-2.0, 2.0]), 0.5).log_prob(u)
        return 2 + jax.nn.logsumexp(modes) - Normal(0.0, 1.0).log_prob(u)

    _, end, _, _ = islands(log_weight, NUMBER)
    check_evidence(end, 2.0, refused=0.0)
    weights = np.exp(np.asarray(end.log_evidence, float) - 2)[:, None]
    share = of_islands(weights * (np.asarray(end.particles.u["a"]) > 0))
    check(share, 0.7, refused=0.3)


def test_a_weight_of_zero_somewhere_is_a_region_that_is_left_out():
    """Also where a smaller share of particles is positive than the effective size that is wanted."""
    log_weight = lambda u: jnp.where(u["a"] > 1, 0.0, -jnp.inf)
    start, end, _, count = islands(log_weight, NUMBER)
    check_evidence(end, np.log(0.1586553), refused=0.0)
    assert (end.particles.u["a"] > 1).all()
    assert (count == 1).all()
    assert 0.1 < float((start.particles.log_weight > -jnp.inf).mean()) < 0.2


def test_a_weight_of_zero_everywhere_is_an_integral_of_zero():
    _, end, _, count = islands(lambda u: 0 * u["a"] - jnp.inf, NUMBER, num_islands=2)
    assert (end.log_evidence == -jnp.inf).all()
    assert (count == 1).all()


def test_temperatures_that_run_out_are_told():
    log_weight = lambda u: -0.5 * ((u["a"].sum() - 30) / 0.01) ** 2
    _, end, info, count = islands(log_weight, PAIR, num_islands=2, max_temperatures=3)
    assert (count == 3).all()
    assert (end.temperature < 1).all()
    np.testing.assert_array_equal(info.temperature[:, -1], end.temperature)


@pytest.mark.parametrize("whitened", [(), ("v",)])
def test_a_narrow_site_beside_wide_ones(whitened):
    """v ~ N(2, .05) beside untouched ones, in coordinates of its own or not: integral 1, moments, the step."""

    def log_weight(u):
        return Normal(2.0, 0.05).log_prob(u["v"]) - Normal(0.0, 1.0).log_prob(u["v"]) + 0 * u["a"].sum()

    _, end, _, _ = islands(log_weight, {**PAIR, "v": jnp.zeros(())}, whitened=whitened)
    check_evidence(end, 0.0, refused=-3.0)
    weights = np.exp(np.asarray(end.log_evidence, float))[:, None]
    v = np.asarray(end.particles.u["v"], float)
    check(of_islands(weights * (v - 2)), 0.0, refused=0.05)
    check(of_islands(weights * (v - 2) ** 2), 0.05**2, refused=2 * 0.05**2)
    assert sorted(end.spread) == list(whitened)
    assert (float(end.step_size.mean()) > 0.3) == bool(whitened)


def test_any_number_of_particles_at_once_is_the_same_walk():
    """And one program serves an island of its own."""
    log_weight = lambda u: Normal(u["a"].sum(), 0.3).log_prob(3.0)

    def run(batch_size):
        return run_tempered(jax.random.key(1), log_weight, PAIR, 50, Settings(batch_size=batch_size))

    whole, parts = jax.jit(run, static_argnums=0)(None), jax.jit(run, static_argnums=0)(7)
    np.testing.assert_allclose(whole[1].log_evidence, parts[1].log_evidence, rtol=1e-4)
    np.testing.assert_allclose(whole[1].particles.u["a"], parts[1].particles.u["a"], rtol=1e-3, atol=1e-3)


def test_gradients_are_counted():
    """One for each first particle, and one for each step of a trajectory."""
    calls = []

    def log_weight(u):
        jax.debug.callback(lambda _: calls.append(None), u["a"][0])
        return Normal(u["a"].sum(), 0.3).log_prob(3.0)

    _, _, info, _ = jax.jit(lambda key: run_tempered(key, log_weight, PAIR, 8, Settings()))(jax.random.key(0))
    jax.effects_barrier()
    assert len(calls) == 8 * (1 + int(info.num_gradients.sum()))


def test_steps_do_not_exceed_a_quarter_of_a_turn():
    _, end, _, _ = islands(lambda u: 0 * u["a"].sum(), PAIR, num_islands=2, step_size=1.5, num_moves=5)
    np.testing.assert_allclose(end.step_size, MAX_ANGLE, rtol=1e-6)


def test_one_step_is_compiled_once_for_all_temperatures():
    traces = []

    def log_weight(u):
        traces.append(None)
        return Normal(u["a"].sum(), 0.05).log_prob(3.0)

    settings = Settings()
    state = tempered.init(jax.random.key(0), log_weight, PAIR, 32, settings)
    step = jax.jit(lambda key, state: tempered.step(key, state, log_weight, settings))
    state, _ = step(jax.random.key(1), state)
    seen = len(traces)
    state, info = step(jax.random.key(2), state)
    assert len(traces) == seen
    assert info.temperature == state.temperature


def test_the_weight_in_other_coordinates_is_the_density_there():
    """Up to a constant, against the ratio of densities and its gradient by JAX, in double precision."""
    with enable_x64(True):
        centre, spread = {"v": jnp.asarray(3.0)}, {"v": jnp.asarray(0.2)}

        def log_weight(u):
            return -((u["v"] - 3) ** 4) + u["a"] * u["v"]

        def of_e(e):
            u = {"a": e["a"], "v": centre["v"] + spread["v"] * e["v"]}
            normal = Normal(0.0, 1.0)
            return log_weight(u) + sum(normal.log_prob(u[n]) - normal.log_prob(e[n]) for n in u)

        def ours(e):
            u = {"a": e["a"], "v": centre["v"] + spread["v"] * e["v"]}
            return over_coordinates(e, u, *jax.value_and_grad(log_weight)(u), spread)

        points = [{"a": jnp.asarray(0.3), "v": jnp.asarray(value)} for value in (-1.2, 0.7)]
        found = [ours(e) for e in points]
        np.testing.assert_allclose(found[0][0] - found[1][0], of_e(points[0]) - of_e(points[1]), rtol=1e-10)
        for (_, slope), e in zip(found, points, strict=True):
            wanted = jax.grad(of_e)(e)
            for name in e:
                np.testing.assert_allclose(slope[name], wanted[name], rtol=1e-10)
