"""fit with checkpoints: to the same bits after any interruption, and nothing trained is lost."""

import errno
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.training.checkpoints import Checkpoints

KERNEL = nd.GaussianKernel(nd.schedules.log_snr(4))
NETWORK = nd.networks.MLP(4, 2, width=4, depth=1)
DATA = np.asarray(jax.random.normal(jax.random.key(0), (20, 1)))


def model(x, size):
    transition = nd.haiku_module("net", NETWORK, kernel=KERNEL, event_shape=(1,))
    with numpyro.plate("data", size, subsample_size=len(x)):
        numpyro.sample("x", nd.Diffusion(KERNEL, transition), obs=x)


def light(x, size):
    """Compiles in no time: what is tested of the directory does not depend on the model."""
    w = numpyro.param("w", jnp.zeros(3))
    noise = jax.random.normal(numpyro.prng_key(), (3,))
    numpyro.factor("pull", -size * ((w - x.mean() + noise) ** 2).sum())


def train(directory, num_steps, model=light, data=DATA, **changes):
    settings = {
        "optimizer": optax.adam(1e-2),
        "batch_size": 5,
        "rng_key": jax.random.key(1),
        "progress_bar": False,
        "ema_decay": 0.9,
        "validation": nd.Validation(DATA[:7], every=4),
        "checkpoint_dir": directory,
        "checkpoint_every": 5,
    }
    return nd.fit(model, data, num_steps=num_steps, **{**settings, **changes})


def assert_same_bits(ours, theirs):
    jax.tree.map(
        np.testing.assert_array_equal, (ours.params, ours.mutable_state), (theirs.params, theirs.mutable_state)
    )
    for name in ("losses", "validation_steps", "validation_losses"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


@pytest.fixture(scope="module", name="uninterrupted")
def _uninterrupted():
    return train(None, 13)


def test_a_diffusion_trained_in_two_parts_ends_with_the_bits_of_one(tmp_path):
    settings = {"model": model, "validation": None}
    train(tmp_path, 7, **settings)
    assert_same_bits(train(tmp_path, 13, resume=True, **settings), train(None, 13, **settings))


@pytest.fixture(scope="module", name="written")
def _written(tmp_path_factory):
    """A directory with a checkpoint, which no refused run changes."""
    directory = tmp_path_factory.mktemp("written")
    train(directory, 1)
    return directory


@pytest.mark.parametrize("first", [2, 5, 12, 13])
def test_a_run_in_two_parts_ends_with_the_bits_of_one(tmp_path, uninterrupted, first):
    """Also one that was finished."""
    part = train(tmp_path, first, resume=True)
    np.testing.assert_array_equal(part.losses, uninterrupted.losses[:first])
    assert_same_bits(train(tmp_path, 13, resume=True), uninterrupted)
    np.testing.assert_array_equal(uninterrupted.validation_steps, [4, 8, 12])


def test_state_of_a_network_and_keys_of_any_kind_are_kept(tmp_path):
    def scaled(x_t, t):
        scale = hk.get_state("scale", (), init=jnp.ones)
        hk.set_state("scale", 0.9 * scale)
        return hk.Linear(1)(x_t) * scale, 0 * x_t

    def counting(x, size):
        transition = nd.haiku_module("net", scaled, kernel=KERNEL, event_shape=(1,))
        nd.update_state("net", transition, x, 2)
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", nd.Diffusion(KERNEL, transition), obs=x)

    settings = {"model": counting, "rng_key": jax.random.key(1, impl="rbg"), "validation": None, "ema_decay": None}
    whole = train(None, 6, **settings)
    train(tmp_path, 3, **settings)
    assert_same_bits(train(tmp_path, 6, resume=True, **settings), whole)
    # Changed at every step, and once when it was made.
    np.testing.assert_allclose(jax.tree.leaves(whole.mutable_state), [0.9**7], rtol=1e-5)


KILLED = Path(__file__).parents[1] / "benchmarks" / "kill.py"


def test_a_killed_process_is_resumed_to_the_same_bits(tmp_path):
    """kill -9 as soon as there is a checkpoint, whatever is being done just then."""
    command = [sys.executable, str(KILLED), "--train"]
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    run = functools.partial(subprocess.run, check=True, capture_output=True, env=environment)
    whole = run([*command, str(tmp_path / "whole")])
    process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.PIPE, env=environment)
    while not any(path.name.isdigit() for path in (tmp_path / "killed").glob("*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate()
    assert not out
    resumed = run([*command, str(tmp_path / "killed")])
    assert resumed.stdout == whole.stdout
    assert len(whole.stdout.split()) == 2  # a digest of the parameters, and of the losses


def test_training_stops_when_held_out_data_say_so_and_keeps_the_best():
    """Ascent after the fourth step: the best of the evaluations after 2, 4, 6, 8 is that after 4."""

    def away(x, size):
        numpyro.factor("pull", -size * ((numpyro.param("w", jnp.zeros(())) - 1.0) ** 2))

    optimizer = optax.sgd(lambda step: jnp.where(step < 4, 1.0, -1.0) * 0.1 / 20)
    stopping = nd.Validation(DATA[:7], every=2, patience=2)
    found = train(None, 50, model=away, optimizer=optimizer, ema_decay=None, validation=stopping)
    np.testing.assert_array_equal(found.validation_steps, [2, 4, 6, 8])
    assert len(found.losses) == 8
    np.testing.assert_allclose(found.params["w"], 1 - 0.8**4, rtol=1e-5)
    np.testing.assert_allclose(found.validation_losses[1], 0.8**8, rtol=1e-5)


# What is refused ----------------------------------------------------------------------------------------


def test_another_model_is_refused_by_its_first_difference(written):
    def wider(x, size):
        numpyro.param("w", jnp.zeros(4))

    with pytest.raises(
        ValueError, match=r"a checkpoint of this model, with float32\[4\] at .*\['w'\]; got float32\[3\]"
    ):
        train(written, 4, model=wider, resume=True)
    with pytest.raises(ValueError, match=r"a checkpoint of this model, with none at .*optim_state"):
        train(written, 4, optimizer=optax.sgd(1e-2), resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4}, r"batch size 5 as in the checkpoint; got 4"),
        ({"rng_key": jax.random.key(2)}, r"rng key \[0, 1\] as in the checkpoint; got \[0, 2\]"),
        ({"data": DATA + 1}, r"data .*checksum.* as in the checkpoint"),
        ({"data": DATA[:19]}, r"size 20 as in the checkpoint; got 19"),
        ({"ema_decay": 0.8}, r"ema decay 0\.9 as in the checkpoint; got 0\.8"),
        ({"validation": None}, r"with none at \.best"),
    ],
)
def test_another_run_is_refused(written, changes, message):
    with pytest.raises(ValueError, match=message):
        train(written, 2, resume=True, **changes)


def with_kernel(kernel):
    def model(x, size):
        network = numpyro.param("w", jnp.ones(()))
        transition = nd.Transition(lambda w, x_t, t, context: (w * x_t, 0 * x_t), network, (1,))
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", nd.Diffusion(kernel, transition), obs=x)

    return model


@pytest.fixture(scope="module", name="resumed")
def _resumed(tmp_path_factory):
    """A directory of a run that went on with an equal kernel, made anew."""
    directory = tmp_path_factory.mktemp("resumed")
    train(directory, 1, model=with_kernel(KERNEL), validation=None)
    equal = nd.GaussianKernel(nd.schedules.log_snr(4))
    train(directory, 2, model=with_kernel(equal), validation=None, resume=True)
    return directory


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (nd.GaussianKernel(nd.schedules.cosine(4)), r"schedule\.beta \[9\.999e-05, .* at site 'x' as .*; got \[0\.15"),
        (nd.GaussianKernel(nd.schedules.log_snr(5)), "num_steps 4 of the kernel at site 'x' .*; got 5"),
        (nd.GaussianKernel(nd.schedules.log_snr(4), variance="upper"), "variance learned of .*; got upper"),
    ],
)
def test_another_schedule_is_refused(resumed, kernel, message):
    with pytest.raises(ValueError, match=message):
        train(resumed, 3, model=with_kernel(kernel), validation=None, resume=True)


def test_checkpoints_are_not_overwritten(written):
    with pytest.raises(FileExistsError, match=r"resume=True, or a checkpoint_dir without.*got one with step 1"):
        train(written, 2)


def test_a_directory_has_one_run_at_a_time(tmp_path):
    with (
        Checkpoints(tmp_path),
        pytest.raises(RuntimeError, match=r"a checkpoint_dir of its own.*another run is writing to"),
    ):
        train(tmp_path, 1)
    train(tmp_path, 1)


def test_a_directory_that_cannot_be_made_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"a checkpoint_dir that can be written.*Change its permissions"):
        train(tmp_path / "file" / "runs", 1)


def test_resume_needs_a_directory():
    with pytest.raises(ValueError, match="checkpoint_dir=, the directory to resume from; got None"):
        train(None, 1, resume=True)


def test_a_directory_of_something_else_is_named(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "model.bin").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"a checkpoint of numpyro_diffusion\.fit at step 7 of .*; got"):
        train(tmp_path, 2, resume=True)


# What goes wrong later ----------------------------------------------------------------------------------


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path, uninterrupted, monkeypatch):
    import orbax.checkpoint as orbax

    save = orbax.CheckpointManager.save

    def full_at_ten(self, step, **kwargs):
        if step == 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, step, **kwargs)

    monkeypatch.setattr(orbax.CheckpointManager, "save", full_at_ten)
    with pytest.warns(UserWarning, match=r"checkpoint 10 to .*No space left on device.*last good.*is of step 5"):
        assert_same_bits(train(tmp_path, 13), uninterrupted)
    assert_same_bits(train(tmp_path, 13, resume=True), uninterrupted)


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(tmp_path):
    diverging = optax.sgd(lambda step: jnp.where(step < 7, 1e-4, jnp.inf))
    with pytest.raises(FloatingPointError, match=r"at step [89]\..*clip.*last good checkpoint in .* is of step 5"):
        train(tmp_path, 13, optimizer=diverging, validation=None)
    with pytest.raises(FloatingPointError, match=r"No checkpoint was written to .* yet"):
        train(tmp_path / "other", 13, optimizer=diverging, validation=None, checkpoint_every=100)


def test_other_versions_are_a_warning(tmp_path, monkeypatch):
    train(tmp_path, 1)
    monkeypatch.setattr(sys.modules["numpyro_diffusion.training.fit"], "version", lambda name: "0.0")
    with pytest.warns(UserWarning, match="versions that wrote the checkpoint"):
        train(tmp_path, 2, resume=True)
