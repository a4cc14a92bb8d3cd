"""Schedules: the closed forms agree with a long product of steps, and nothing is NaN at any edge."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from precision import enable_x64

from numpyro_diffusion import schedules
from numpyro_diffusion.schedules import Schedule

STEPS = (1, 2, 7, 10_000)
MAKERS = {
    "constant_fraction": schedules.constant_fraction,
    "linear": schedules.linear,
    "cosine": schedules.cosine,
    "log_snr": schedules.log_snr,
    "learned": lambda T: schedules.learned(schedules.learned_initial(T)),
}


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("name", MAKERS)
def test_alpha_bar_is_the_product_of_steps_and_noise_variance_its_complement(name, num_steps):
    with enable_x64(True):
        schedule = MAKERS[name](num_steps)
        beta, alpha_bar, noise = map(np.asarray, (schedule.beta, schedule.alpha_bar, schedule.noise_variance))
        assert beta.shape == alpha_bar.shape == noise.shape == (num_steps + 1,)
        assert schedule.num_steps == num_steps
        assert ((beta[1:] > 0) & (beta[1:] <= 1)).all()
        assert beta[0] == noise[0] == 0
        np.testing.assert_allclose(alpha_bar, np.cumprod(1 - beta), rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(alpha_bar + noise, 1, rtol=1e-12)
        assert (np.diff(noise) >= 0).all()
        recursion = [0.0]
        for b in beta[1:]:
            recursion.append((1 - b) * recursion[-1] + b)
        np.testing.assert_allclose(noise, recursion, rtol=1e-9)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("num_steps", STEPS)
def test_from_beta_traced_equals_concrete_and_its_gradients_are_finite_where_b_is_one(num_steps, x64):
    with enable_x64(x64):
        beta = schedules.constant_fraction(num_steps).beta[1:]
        concrete = Schedule.from_beta(beta)
        traced = jax.jit(Schedule.from_beta)(jnp.asarray(beta, float))
        tolerance = num_steps * float(jnp.finfo(jnp.zeros(()).dtype).eps)
        np.testing.assert_allclose(traced.alpha_bar, concrete.alpha_bar, rtol=4 * tolerance, atol=1e-30)
        np.testing.assert_allclose(traced.noise_variance, concrete.noise_variance, rtol=4 * tolerance)

        def total(beta):
            schedule = Schedule.from_beta(beta)
            return schedule.alpha_bar.sum() + schedule.noise_variance.sum()

        gradient = jax.grad(total)(jnp.asarray(beta, float))
        # alpha_bar + noise_variance = 1 whatever beta is.
        assert jnp.isfinite(gradient).all()
        np.testing.assert_allclose(gradient, 0, atol=100 * num_steps * tolerance)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("num_steps", STEPS)
def test_learned_schedule_and_its_gradient_are_finite_for_any_raw_value(num_steps, x64):
    with enable_x64(x64):
        for offset in (-20.0, 0.0, 20.0):
            raw = jnp.asarray(schedules.learned_initial(num_steps), float) + offset
            schedule = schedules.learned(raw, beta_1=1e-3)
            assert ((schedule.beta[1:] > 0) | (schedule.alpha_bar[1:] == 0) | (schedule.beta[1:] == 0)).all()
            gradient = jax.grad(lambda r: jnp.sum(schedules.learned(r, beta_1=1e-3).beta))(raw)
            assert jnp.isfinite(gradient).all()
            assert jnp.isfinite(schedule.beta).all()


def test_learned_schedule_starts_even_in_log_snr_and_keeps_b_1():
    with enable_x64(True):
        schedule = schedules.learned(schedules.learned_initial(6, 30.0, beta_1=0.01), beta_1=0.01)
        assert schedule.beta[1] == pytest.approx(0.01)
        steps = np.diff(schedule.log_snr[1:])
        np.testing.assert_allclose(steps, steps[0])
        np.testing.assert_allclose(schedule.log_snr[-1], -2 * np.log(30.0))


def test_values_of_the_published_schedules():
    assert schedules.constant_fraction(4).beta[1:].tolist() == pytest.approx([1 / 4, 1 / 3, 1 / 2, 1])
    linear = schedules.linear(1000)
    # DDPM: b_1 = 1e-4 and b_T = 0.02 at T = 1000; the continuous form has them to first order.
    assert linear.beta[1] == pytest.approx(1.1e-4, rel=0.01)
    assert linear.beta[-1] == pytest.approx(0.02, rel=0.02)
    cosine = schedules.cosine(50, offset=0.008)
    reference = np.cos((np.arange(51) / 50 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(cosine.alpha_bar[:-1], (reference / reference[0])[:-1], rtol=1e-12)
    assert cosine.beta[-1] == 0.999
    log_snr = schedules.log_snr(5, 0.1, 10.0)
    sigma = np.sqrt(log_snr.noise_variance[1:] / log_snr.alpha_bar[1:])
    np.testing.assert_allclose(sigma, np.geomspace(0.1, 10, 5))


def test_tiny_first_steps_keep_their_digits_in_float32():
    beta = jnp.full((100,), 1e-9)
    noise = jax.jit(Schedule.from_beta)(beta).noise_variance
    np.testing.assert_allclose(noise[1:], 1e-9 * np.arange(1, 101), rtol=1e-5)


def test_log_snr_is_infinite_only_at_the_ends():
    values = schedules.constant_fraction(3).log_snr
    assert values[0] == jnp.inf
    assert values[-1] == -jnp.inf
    assert jnp.isfinite(values[1:-1]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Schedule.from_beta([0.1, 1.5]), r"every b_t in \(0, 1\]; got b_2 = 1.5"),
        (lambda: Schedule.from_beta([0.0]), r"got b_1 = 0.0"),
        (lambda: Schedule.from_beta([0.1, float("nan")]), r"got b_2 = nan"),
        (lambda: Schedule.from_beta([]), r"T >= 1"),
        (lambda: Schedule.from_beta(0.5), r"shape \(T,\)"),
        (lambda: schedules.linear(0), r"num_steps to be an integer >= 1; got 0"),
        (lambda: schedules.cosine(2.5), r"num_steps to be an integer >= 1; got 2.5"),
        (lambda: schedules.constant_fraction(-3), r"got -3"),
        (lambda: schedules.log_snr(10, 2.0, 1.0), r"sigma_min < sigma_max"),
        (lambda: schedules.linear(10, beta_min=-1.0), r"beta_min"),
        (lambda: schedules.cosine(10, max_beta=2.0), r"max_beta"),
        (lambda: schedules.learned(jnp.zeros((2, 2))), r"shape \(T - 1,\)"),
        (lambda: schedules.learned(jnp.zeros(2), beta_1=0.0), r"beta_1 in \(0, 1\)"),
        (lambda: schedules.learned_initial(3, 1e-3), r"sigma_max"),
    ],
)
def test_bad_arguments_are_named(no_type_checks, call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_schedule_that_leaves_signal_warns_and_one_that_drowns_it_does_not():
    with pytest.warns(UserWarning, match="sqrt\\(abar_T\\) \\* data_scale <= 0.1; got"):
        schedules.check_signal_erased(schedules.log_snr(10, 0.01, 5.0), 1.0)
    with pytest.warns(UserWarning, match="sigma_max"):
        schedules.check_signal_erased(schedules.log_snr(10, 0.01, 100.0), 40.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert schedules.check_signal_erased(schedules.log_snr(10, 0.01, 100.0), 1.0) == pytest.approx(0.01, rel=1e-3)
        assert schedules.check_signal_erased(schedules.constant_fraction(3), 1e6) == 0.0
