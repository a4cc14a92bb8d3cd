"""fit calls the user between chunks of steps; who may look, stop and fail, and nothing that was trained is lost."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest

import numpyro_diffusion as nd

DATA = np.asarray(jax.random.normal(jax.random.key(0), (20, 1)))


def light(x, size):
    w = numpyro.param("w", jnp.zeros(3))
    numpyro.factor("pull", -size * ((w - x.mean()) ** 2).sum())


def train(num_steps=12, **changes):
    settings = {"optimizer": optax.adam(1e-2), "batch_size": 5, "rng_key": jax.random.key(1), "progress_bar": False}
    return nd.fit(light, DATA, num_steps=num_steps, **{**settings, **changes})


class Notes:
    def __init__(self, answer=lambda step: None):
        self.calls, self._answer = [], answer

    def __call__(self, *call):
        self.calls.append(call)
        return self._answer(call[0])


@pytest.fixture(scope="module", name="whole")
def _whole():
    return train()


def test_it_is_told_the_step_the_losses_since_the_last_call_and_the_parameters(whole):
    notes = Notes()
    fitted = train(callback=notes, callback_every=5)
    assert [step for step, *_ in notes.calls] == [5, 10, 12]
    assert [len(losses) for _, losses, _ in notes.calls] == [5, 5, 2]
    np.testing.assert_array_equal(np.concatenate([losses for _, losses, _ in notes.calls]), whole.losses)
    np.testing.assert_array_equal(fitted.params["w"], whole.params["w"])
    (_, _, params), _, (_, _, last) = notes.calls  # each of its step, and still there now
    np.testing.assert_array_equal(params["w"], train(5).params["w"])
    np.testing.assert_array_equal(last["w"], whole.params["w"])


def test_it_is_told_averages_where_averages_are_returned():
    notes = Notes()
    fitted = train(callback=notes, ema_decay=0.9)
    np.testing.assert_array_equal(notes.calls[-1][2]["w"], fitted.params["w"])
    assert sum(len(losses) for _, losses, _ in notes.calls) == 12


def test_true_stops_with_what_was_trained(tmp_path, whole):
    notes = Notes(lambda step: step >= 6)
    fitted = train(callback=notes, callback_every=3, checkpoint_dir=tmp_path)
    assert [step for step, *_ in notes.calls] == [3, 6]
    assert len(fitted.losses) == 6
    np.testing.assert_array_equal(fitted.params["w"], train(6).params["w"])
    # The same call goes on from there.
    np.testing.assert_array_equal(train(checkpoint_dir=tmp_path, resume=True).losses, whole.losses)


@pytest.mark.parametrize("kind", [KeyError, KeyboardInterrupt])
def test_what_it_raises_propagates_and_what_was_trained_is_kept(tmp_path, whole, kind):
    def fail(step):
        if step == 8:
            raise kind("of mine")

    with pytest.raises(kind, match="of mine") as caught:
        train(callback=Notes(fail), callback_every=4, checkpoint_dir=tmp_path)
    assert any("attribute 'result'" in note for note in caught.value.__notes__)
    result = caught.value.result
    np.testing.assert_array_equal(result.losses, whole.losses[:8])
    np.testing.assert_array_equal(result.params["w"], train(8).params["w"])
    resumed = train(checkpoint_dir=tmp_path, resume=True)
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    np.testing.assert_array_equal(resumed.params["w"], whole.params["w"])


def test_beside_validation_the_best_parameters_are_kept():
    def fail(step):
        if step == 8:
            raise KeyError

    with pytest.raises(KeyError) as caught:
        train(callback=Notes(fail), callback_every=4, validation=nd.Validation(DATA, every=2))
    best = 2 * (int(np.argmin(caught.value.result.validation_losses)) + 1)
    np.testing.assert_array_equal(caught.value.result.validation_steps, [2, 4, 6, 8])
    np.testing.assert_array_equal(caught.value.result.params["w"], train(best).params["w"])


def test_an_answer_that_means_nothing_is_refused():
    with pytest.raises(TypeError, match=r"True, False or None from the callback; got 0\.5\. True stops") as caught:
        train(callback=Notes(lambda step: 0.5), callback_every=4)
    assert len(caught.value.result.losses) == 4
    with pytest.raises(ValueError, match="callback_every to be an integer >= 1; got 0"):
        train(callback=Notes(), callback_every=0)
