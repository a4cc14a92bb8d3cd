"""The toy data: moments, density and entropy against independent sums."""

import jax
import numpy as np
import pytest

from numpyro_diffusion import datasets


def test_swiss_roll_has_mean_zero_and_average_variance_one():
    x = np.asarray(datasets.swiss_roll(jax.random.key(0), 200_000))
    error = np.sqrt(2 / 200_000)
    assert (abs(x.mean(0)) < 5 / np.sqrt(200_000) * 1.1).all()
    assert abs(x.var(0).mean() - 1) < 5 * error


@pytest.mark.parametrize(("noise", "extra_noise"), [(0.5, 0.0), (0.0, 0.1), (2.0, 0.3)])
def test_swiss_roll_density_integrates_to_one_and_its_entropy_is_that_of_a_grid_sum(noise, extra_noise):
    side = np.linspace(-4.5, 4.5, 301)
    points = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    log_prob = datasets.swiss_roll_log_prob(points, noise=noise, extra_noise=extra_noise)
    weight = np.exp(log_prob) * (side[1] - side[0]) ** 2
    assert weight.sum() == pytest.approx(1, abs=2e-3)
    entropy = datasets.swiss_roll_entropy(noise=noise, extra_noise=extra_noise)
    assert entropy == pytest.approx(-(weight * np.where(weight > 0, log_prob, 0)).sum(), abs=5e-3)


def test_swiss_roll_entropy_is_converged_and_agrees_with_draws():
    coarse = datasets.swiss_roll_entropy()
    assert coarse == pytest.approx(datasets.swiss_roll_entropy(order=20, num_angles=400), abs=1e-6)
    log_prob = datasets.swiss_roll_log_prob(np.asarray(datasets.swiss_roll(jax.random.key(1), 4000)))
    assert abs(-log_prob.mean() - coarse) < 5 * log_prob.std() / np.sqrt(4000)


def test_heartbeats_are_five_sequences_drawn_evenly():
    x = np.asarray(datasets.heartbeat(jax.random.key(0), 10_000))
    assert x.shape == (10_000, 20)
    assert (x.sum(1) == 4).all()
    phase = x[:, :5].argmax(1)
    assert (x == (np.arange(20) % 5 == phase[:, None])).all()
    counts = np.bincount(phase, minlength=5)
    assert (abs(counts - 2000) < 5 * np.sqrt(2000 * 0.8)).all()
    assert datasets.heartbeat_entropy() == pytest.approx(np.log(5))


def test_the_same_key_gives_the_same_data():
    for make in (datasets.swiss_roll, datasets.heartbeat):
        np.testing.assert_array_equal(make(jax.random.key(3), 5), make(jax.random.key(3), 5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: datasets.swiss_roll(jax.random.key(0), 0), "num_points to be an integer >= 1; got 0"),
        (lambda: datasets.swiss_roll(jax.random.key(0), 3, noise=-1.0), "noise >= 0; got -1.0"),
        (lambda: datasets.heartbeat(jax.random.key(0), 0), "num_sequences"),
        (lambda: datasets.swiss_roll_log_prob(np.zeros((1, 2)), noise=0.0), "A curve has no density"),
    ],
)
def test_bad_arguments_are_named(no_type_checks, call, message):
    with pytest.raises(ValueError, match=message):
        call()
