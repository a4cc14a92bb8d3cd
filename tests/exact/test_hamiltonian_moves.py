"""Hamiltonian moves against a standard normal: the energy, what they leave invariant, precision in many dimensions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from measured_errors import check, of_independent
from precision import enable_x64

from numpyro_diffusion.infer.adaptation import Moments, StepSearch
from numpyro_diffusion.noise import hmc
from numpyro_diffusion.noise.hmc import MAX_ANGLE, Point, hamiltonian_move, num_steps_of


def point_of(log_weight):
    density = jax.value_and_grad(log_weight)
    return lambda z: Point(z, *density(z))


def normal_weight(z):
    """y = 1.5 with noise .5 of the sum, and a second array that is not seen."""
    return -0.5 * ((1.5 - z["a"].sum()) / 0.5) ** 2


Z = {"a": jnp.array([0.3, -0.2]), "b": jnp.array(0.7)}


def move(log_weight, key, z, angle, num_steps):
    evaluate = point_of(log_weight)
    return hamiltonian_move(evaluate, key, evaluate(z), jnp.asarray(angle, float), jnp.asarray(num_steps))


@pytest.mark.parametrize("angle", [0.1, 1.0, MAX_ANGLE])
def test_any_step_is_accepted_where_the_weight_is_constant(angle):
    for seed in range(5):
        moved = move(lambda z: 0.0 * z["b"] + 3.0, jax.random.key(seed), Z, angle, 3)
        assert moved.accept_prob == 1
        assert moved.is_accepted
        assert abs(moved.energy_error) == 0


def test_a_quarter_of_a_turn_is_a_fresh_draw():
    """It does not depend on where it starts."""
    ends = [
        move(lambda z: 0.0 * z["b"], jax.random.key(1), z, MAX_ANGLE, 1).point.z
        for z in (Z, {k: v + 1.0 for k, v in Z.items()})
    ]
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), *ends)
    assert not np.allclose(ends[0]["a"], Z["a"])


def test_the_energy_error_is_that_of_the_hamiltonian():
    """Of a trajectory written out in NumPy, in double precision."""
    with enable_x64(True):
        z = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), Z)
        key, angle, num_steps = jax.random.key(3), 0.4, 4
        momentum_key, _ = jax.random.split(key)
        keys = jax.random.split(momentum_key, 2)
        names = zip(sorted(z), keys, strict=True)
        p = {name: np.asarray(jax.random.normal(k, z[name].shape, float)) for name, k in names}
        q = jax.tree.map(np.asarray, z)
        gradient = jax.grad(normal_weight)

        def energy(q, p):
            return sum(0.5 * (q[n] ** 2).sum() + 0.5 * (p[n] ** 2).sum() for n in q) - float(normal_weight(q))

        before = energy(q, p)
        for _ in range(num_steps):
            p = {n: p[n] + 0.5 * angle * np.asarray(gradient(q)[n]) for n in q}
            q, p = (
                {n: np.cos(angle) * q[n] + np.sin(angle) * p[n] for n in q},
                {n: np.cos(angle) * p[n] - np.sin(angle) * q[n] for n in q},
            )
            p = {n: p[n] + 0.5 * angle * np.asarray(gradient(q)[n]) for n in q}
        found = move(normal_weight, key, z, angle, num_steps)
        np.testing.assert_allclose(found.energy_error, energy(q, p) - before, rtol=1e-10)
        np.testing.assert_allclose(found.accept_prob, min(1.0, np.exp(before - energy(q, p))), rtol=1e-10)


def test_a_draw_of_the_target_stays_one():
    """The conjugate posterior of the sum; moved once by steps that are often refused."""
    count, variance = 20_000, 2 * 0.25 / (2 + 0.25)
    mean = 2 * 1.5 / (2 + 0.25)
    keys = jax.random.split(jax.random.key(0), count)

    def once(key):
        start_key, free_key, move_key = jax.random.split(key, 3)
        total = mean + jnp.sqrt(variance) * jax.random.normal(start_key)
        free = jax.random.normal(free_key, (2,))
        a = jnp.stack([total / 2 + free[0] / jnp.sqrt(2), total / 2 - free[0] / jnp.sqrt(2)])
        moved = move(normal_weight, move_key, {"a": a, "b": free[1]}, 0.67, 3)
        z = moved.point.z
        return z["a"].sum(), z["a"][0] - z["a"][1], z["b"], moved.accept_prob

    total, apart, free, accept = jax.jit(jax.vmap(once))(keys)
    assert 0.2 < accept.mean() < 0.9
    check(of_independent(total), mean, refused=0.0)
    check(of_independent((total - mean) ** 2), variance, refused=2.0)
    check(of_independent(apart**2), 2.0, refused=0.0)
    check(of_independent(free**2), 1.0, refused=0.0)


def test_a_force_that_is_no_gradient_leaves_the_target_too():
    def evaluate(z):
        return Point(z, -0.5 * ((z - 1.0) / 0.5) ** 2, jnp.clip(-2.0 * (z - 1.0), -1.0, 1.0))

    keys = jax.random.split(jax.random.key(1), 20_000)

    def once(key):
        start_key, move_key = jax.random.split(key)
        z = 0.8 + jnp.sqrt(0.2) * jax.random.normal(start_key)
        return hamiltonian_move(evaluate, move_key, evaluate(z), jnp.asarray(0.7), jnp.asarray(3)).point.z

    z = jax.jit(jax.vmap(once))(keys)
    check(of_independent(z), 0.8, refused=0.0)
    check(of_independent((z - 0.8) ** 2), 0.2, refused=1.0)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_an_end_that_is_impossible_or_no_number_is_refused(bad):
    log_weight = lambda z: jnp.where(jnp.abs(z - 0.5) < 1e-3, 0.0, bad) + 0.0 * z
    moved = move(log_weight, jax.random.key(2), jnp.asarray(0.5), 0.7, 2)
    assert not moved.is_accepted
    assert moved.accept_prob == 0
    assert moved.point.z == 0.5


def test_a_start_of_density_zero_is_left():
    log_weight = lambda z: jnp.where(z < 0.0, -jnp.inf, 0.0 * z)
    ends = [move(log_weight, jax.random.key(seed), jnp.asarray(-0.5), MAX_ANGLE, 1) for seed in range(10)]
    assert {bool(end.is_accepted) == bool(end.point.z >= 0) for end in ends} == {True}
    assert any(end.is_accepted for end in ends)


def test_single_precision_accepts_as_double_does_in_400_000_dimensions(monkeypatch):
    """The same trajectories in both; the energies themselves are of the order of 400,000 nats."""
    draw = hmc._standard_normal
    in_single = lambda key, like: draw(key, like.astype(jnp.float32)).astype(like.dtype)
    monkeypatch.setattr(hmc, "_standard_normal", in_single)

    def accept(key):
        z = jax.random.normal(key, (400_000,), jnp.float32).astype(float)
        return move(lambda z: -0.05 * (jnp.cos(z) ** 2).sum(), key, z, 0.6, 5).accept_prob

    keys = jax.random.split(jax.random.key(5), 6)
    single = np.asarray(jax.lax.map(accept, keys))
    with enable_x64(True):
        double = np.asarray(jax.lax.map(accept, keys))
    assert single.dtype == np.float32
    assert double.dtype == np.float64
    assert ((double > 0.02) & (double < 0.98)).any()
    np.testing.assert_allclose(single, double, atol=0.02)


def test_the_number_of_steps_is_random_and_about_a_quarter_of_a_turn():
    keys = jax.random.split(jax.random.key(0), 4000)
    counts = np.asarray(jax.vmap(lambda key: num_steps_of(key, jnp.asarray(0.2), 32))(keys))
    assert counts.min() == 1
    assert counts.max() == 15  # 2 ceil(pi / 0.4) - 1
    check(of_independent(counts), 8.0, refused=4.0)
    assert np.asarray(jax.vmap(lambda key: num_steps_of(key, jnp.asarray(1e-3), 5))(keys)).max() == 9


def test_moments_are_those_of_the_draws():
    draws = np.random.default_rng(0).normal(3.0, [0.1, 10.0], (50, 2))
    moments = Moments.start(jnp.zeros(2))
    for draw in draws:
        moments = moments.after(jnp.asarray(draw, jnp.float32))
    np.testing.assert_allclose(moments.mean, draws.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.standard_deviation(), draws.std(0, ddof=1), rtol=1e-4)
    assert Moments.start(jnp.zeros(2)).after(jnp.ones(2)).standard_deviation().tolist() == [0, 0]


def test_the_step_search_meets_the_wanted_acceptance_where_single_ones_are_noisy():
    """At the mean log step the acceptance is the wanted one. Steps that swing with every draw end at a smaller one."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(20):
        search = StepSearch.start(0.5)
        for _ in range(100):
            accept = np.clip(np.exp(-(float(jnp.exp(search.log_step)) ** 2)) + rng.normal(scale=0.25), 0, 1)
            search = search.after(jnp.asarray(accept, jnp.float32), 0.8)
        found.append(float(jnp.exp(-(jnp.exp(search.log_mean) ** 2))))
    assert 0.75 < np.mean(found) < 0.86


def test_the_step_search_ends_at_the_wanted_acceptance():
    """Where the acceptance is exp(-step), 0.8 is that of -log 0.8."""
    search = StepSearch.start(0.9)
    for _ in range(2000):
        search = search.after(jnp.exp(-jnp.exp(search.log_step)), 0.8)
    np.testing.assert_allclose(jnp.exp(search.log_mean), -np.log(0.8), rtol=0.05)
