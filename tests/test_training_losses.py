"""fit and its losses: a run that diverged is not returned as a result, and no sound run is taken for one."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.training import DivergenceError
from numpyro_diffusion.training.losses import Losses

SIZE = 20
DATA = np.zeros((SIZE, 1), np.float32)
LENGTHS = [1, 3, 19, 20, 39, 40, 150, 1000, 5000]


def losses_of(steps, validation=()):
    return Losses([float(value) for value in steps], list(range(len(validation))), list(validation))


def sound(num_steps, seed):
    """A fall from a start to a level, both of any size, with the noise of random estimates of a bound."""
    random = np.random.default_rng(seed)
    level, drop, pace = (
        random.normal() * 10 ** random.uniform(-1, 4),
        10 ** random.uniform(-1, 6),
        random.uniform(1, 3000),
    )
    noise = [random.standard_t(2, num_steps), random.gamma(0.3, size=num_steps), random.lognormal(0, 2, num_steps)]
    spread = 10 ** random.uniform(-3, 3)
    return level + drop * np.exp(-np.arange(num_steps) / pace) + spread * noise[seed % 3]


@pytest.mark.parametrize("num_steps", LENGTHS)
def test_no_sound_run_is_taken_for_another(num_steps):
    for seed in range(400):
        losses = losses_of(sound(num_steps, seed))
        assert not losses.has_diverged(), seed
        assert not losses.is_suspicious(), seed


@pytest.mark.parametrize("num_steps", [2, 19, 40, 150, 1000])
@pytest.mark.parametrize("when", [0.0, 0.5, 0.9])
def test_a_run_that_ends_at_an_absurd_loss_has_diverged_whenever_it_came_to_it(num_steps, when):
    for seed in range(30):
        steps = sound(num_steps, seed)
        steps[max(1, int(when * num_steps)) :] = 4.8e27
        assert losses_of(steps).has_diverged(), seed


def test_a_spike_and_an_excursion_that_recovers_are_no_divergence():
    steps = sound(1000, 1)
    steps[[20, 500, 999]] = 1e20
    steps[300:420] = 1e12
    assert not losses_of(steps).has_diverged()
    assert not losses_of(steps).is_suspicious()


@pytest.mark.parametrize("num_steps", LENGTHS)
def test_no_sound_run_is_lost_at_any_step(num_steps):
    for seed in range(20):
        steps = sound(num_steps, seed)
        assert not any(losses_of(steps[:stop]).is_lost() for stop in range(1, num_steps + 1, 1 + num_steps // 50))


def test_a_run_is_lost_when_it_has_been_absurd_for_500_steps():
    sane, absurd = [1.0] * 50, [3e4] * 500
    assert losses_of(sane + absurd).is_lost()
    assert not losses_of(sane + absurd[1:]).is_lost()
    assert not losses_of([*sane, *absurd[1:], 2.0]).is_lost()
    assert not losses_of([1.0] * 50 + [1.9e4] * 500).is_lost()
    assert not losses_of(sane + absurd, [1.2]).is_lost()  # the best of held-out data is returned


def test_a_run_that_climbs_without_bound_is_suspicious_before_it_has_diverged():
    random = np.random.default_rng(0)
    fallen = 2 + 0.1 * random.normal(size=400)
    risen = 2 + 0.1 * random.normal(size=400) + np.linspace(0, 5, 400)
    assert losses_of([*fallen, *risen]).is_suspicious()
    assert not losses_of([*fallen, *risen]).has_diverged()
    assert losses_of([*fallen, *(risen + 100)]).has_diverged()


def test_the_best_loss_of_held_out_data_stands_for_the_parameters():
    assert not losses_of([1.0] * 50 + [1e20] * 50, [1.2, 1e20]).has_diverged()
    assert losses_of([1.0] * 50 + [1e20] * 50, [1e20, 1e19]).has_diverged()


# fit ----------------------------------------------------------------------------------------------------


def bowl(x, size):
    """The loss is (w - 1)^2; sgd of rate c / size multiplies w - 1 by 1 - 2 c."""
    numpyro.factor("pull", -size * (numpyro.param("w", jnp.zeros(())) - 1.0) ** 2)


def train(rate, num_steps, **changes):
    settings = {"batch_size": 5, "rng_key": jax.random.key(0), "progress_bar": False, "num_steps": num_steps}
    rate = rate if callable(rate) else lambda step, rate=rate: rate
    return nd.fit(bowl, DATA, optimizer=optax.sgd(lambda step: rate(step) / SIZE), **{**settings, **changes})


def test_a_divergent_run_is_refused_with_what_it_reached():
    with pytest.raises(
        DivergenceError,
        match=r"a loss near its best, .* got 7\.74e\+25 at step 45\. Lower the learning rate.*error\.result",
    ) as caught:
        train(1.5, 46)
    assert isinstance(caught.value, FloatingPointError)
    np.testing.assert_allclose(caught.value.result.losses, 4.0 ** np.arange(46), rtol=1e-4)
    assert caught.value.result.params["w"] == pytest.approx(1 - 2.0**46, rel=1e-4)


def test_a_run_that_is_lost_stops_before_its_end():
    """w - 1 grows by a tenth at each step up to 300, where its square is 7e24, and stays."""
    with pytest.raises(
        DivergenceError, match=r"a loss near its best, .* Lower the learning rate.*error\.result"
    ) as caught:
        train(lambda step: jnp.where(step < 300, -0.05, 0.0), 100_000)
    assert 549 < len(caught.value.result.losses) < 5_000


def test_a_loss_that_is_not_finite_keeps_the_parameters_before_it():
    with pytest.raises(DivergenceError, match=r"a finite loss; got inf at step 62\. Lower the learning rate") as caught:
        train(1.5, 200)
    result = caught.value.result
    assert len(result.losses) == 62
    assert np.isfinite(result.losses).all()
    assert np.isfinite(result.params["w"])


def test_the_last_good_checkpoint_stays_and_can_be_gone_on_from_with_another_rate(tmp_path):
    settings = {"checkpoint_dir": tmp_path, "checkpoint_every": 5, "resume": True}
    with (
        pytest.warns(
            UserWarning,
            match=r"near its best, 1 nats per row; got 2.62e\+05 at step 9\. No checkpoint is written\..*step 5",
        ),
        pytest.raises(DivergenceError, match=r"last good checkpoint in .* is of step 5"),
    ):
        train(1.5, 46, **settings)
    assert train(0.25, 60, **settings).params["w"] == pytest.approx(1.0, abs=1e-5)


def test_a_loss_that_rises_a_little_is_a_warning():
    with pytest.warns(UserWarning, match=r"near its best, .* nats per row; got .*Look at the losses"):
        fitted = train(lambda step: jnp.select([step < 5, step < 60], [0.25, 0.001], -0.025), 140)
    assert len(fitted.losses) == 140


def test_the_best_parameters_on_held_out_data_are_returned_whatever_came_after():
    fitted = train(lambda step: jnp.where(step < 10, 0.25, 1.5), 60, validation=nd.Validation(DATA[:3], every=10))
    assert fitted.params["w"] == pytest.approx(1 - 0.5**10, rel=1e-5)
    assert fitted.losses[-1] > 1e20


def test_a_loss_of_held_out_data_that_is_not_finite_is_no_best():
    def of_large_only(x, size):
        numpyro.factor("pull", -size * ((numpyro.param("w", jnp.zeros(())) - 1.0) ** 2 + jnp.log(x).mean()))

    settings = {"batch_size": 5, "rng_key": jax.random.key(0), "progress_bar": False, "num_steps": 4}
    with pytest.raises(DivergenceError, match=r"a finite loss of the validation data; got -inf at step 2"):
        nd.fit(of_large_only, DATA + 1, optimizer=optax.sgd(1e-3), validation=nd.Validation(DATA, every=2), **settings)
