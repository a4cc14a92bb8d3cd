"""Where batches come from: arrays in memory and on disk, iterators and loaders, alone and resumed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest

import numpyro_diffusion as nd

DATA = np.asarray(jax.random.normal(jax.random.key(0), (20, 3)))


def model(x, size):
    """The loss tells which rows were in the batch, and in which order."""
    w = numpyro.param("w", jnp.zeros(3))
    weights = jnp.arange(1.0, len(x) + 1)[:, None]
    numpyro.factor("pull", -size * (weights * (w - x) ** 2).sum())


def train(data, num_steps=7, **changes):
    settings = {"optimizer": optax.adam(1e-2), "batch_size": 5, "rng_key": jax.random.key(1), "progress_bar": False}
    return nd.fit(model, data, num_steps=num_steps, **{**settings, **changes})


def batches(count, rows=5, start=0):
    return [DATA[np.arange(rows * i, rows * (i + 1)) % 20] for i in range(start, start + count)]


class Loader:
    """Iterated again for each epoch, like a torch DataLoader; ``epochs`` are lists of batches."""

    def __init__(self, *epochs):
        self._epochs = itertools.cycle(epochs)

    def __iter__(self):
        return iter(next(self._epochs))


class Grain:
    """An iterator that knows where it is."""

    def __init__(self, as_bytes):
        self.position, self.was_set, self._as_bytes = 0, False, as_bytes

    def __iter__(self):
        return self

    def __next__(self):
        self.position += 1
        return batches(1, start=self.position - 1)[0]

    def get_state(self):
        return str(self.position).encode() if self._as_bytes else {"position": self.position}

    def set_state(self, state):
        self.position = int(state) if self._as_bytes else state["position"]
        self.was_set = True


def test_rows_on_disk_are_the_rows_in_memory(tmp_path, in_memory):
    np.save(tmp_path / "x.npy", DATA)
    on_disk = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_allclose(train(on_disk).losses, in_memory, rtol=1e-6)
    found = nd.fit(
        lambda x, size: model(x["a"], size),
        {"a": on_disk},
        optimizer=optax.adam(1e-2),
        num_steps=3,
        batch_size=5,
        rng_key=jax.random.key(1),
        progress_bar=False,
    )
    np.testing.assert_allclose(found.losses, in_memory[:3], rtol=1e-6)


def test_rows_are_drawn_anew_for_every_step_and_never_all_the_data_is_shuffled():
    losses = train(DATA, 7, optimizer=optax.sgd(0.0)).losses
    assert len(set(losses.tolist())) == 7


def test_an_iterator_gives_its_batches_in_order():
    found = train(iter(batches(7)), size=20, optimizer=optax.sgd(0.0)).losses
    weights = np.arange(1.0, 6)[:, None]
    np.testing.assert_allclose(found, [(weights * batch**2).sum() for batch in batches(7)], rtol=1e-5)
    np.testing.assert_array_equal(found, train(Loader(batches(4)), size=20, optimizer=optax.sgd(0.0)).losses)
    np.testing.assert_array_equal(found, train(Grain(False), size=20, optimizer=optax.sgd(0.0)).losses)


def test_torch_tensors_and_lists_are_arrays(in_order):
    class Tensor:
        def __init__(self, values):
            self._values = values

        def __array__(self, dtype=None, copy=None):
            return self._values

    found = train(iter([Tensor(batch) for batch in batches(7)]), size=20)
    np.testing.assert_array_equal(found.losses, in_order[:7])


@pytest.fixture(scope="module", name="in_memory")
def _in_memory():
    return train(DATA).losses


@pytest.fixture(scope="module", name="in_order")
def _in_order():
    return train(iter(batches(11)), 11, size=20).losses


@pytest.mark.parametrize("make", [lambda: Loader(batches(4)), lambda: Grain(True), lambda: Grain(False)])
def test_a_loader_is_resumed_where_it_was(tmp_path, in_order, make):
    settings = {"size": 20, "checkpoint_dir": tmp_path, "resume": True}
    train(make(), 6, **settings)
    source = make()
    found = train(source, 11, **settings)
    np.testing.assert_array_equal(found.losses, in_order)
    assert not isinstance(source, Grain) or source.was_set


BAD = {
    "path": ("data.npy", {}, TypeError, r"arrays; got the path 'data\.npy'\. Pass numpy\.load"),
    "no-size": (iter(batches(7)), {}, ValueError, "size=, the rows of all the data, for an iterator; got None"),
    "size-of-arrays": (DATA, {"size": 19}, ValueError, "size=20, the rows of data, or none; got 19"),
    "too-short": (iter(batches(3)), {"size": 20}, ValueError, "lasts for num_steps batches; got its end after 15 rows"),
    "empty": (iter([]), {"size": 20}, ValueError, "lasts for num_steps batches; got its end after 0 rows"),
    "empty-loader": (Loader([]), {"size": 20}, ValueError, "data with at least one batch; got an iterator without any"),
    "last-batch": (
        Loader([*batches(3), DATA[:2]]),
        {"size": 17},
        ValueError,
        "batches of 5 rows; got one of 2. Every process.*drop a last, smaller batch",
    ),
    "length-changes": (Loader(batches(2), batches(3)), {"size": 12}, ValueError, "10 rows in every epoch; got 15"),
    "another-size": (Loader(batches(2)), {"size": 20}, ValueError, "size=10, the rows of an epoch; got 20"),
    "rows-differ": (iter([(DATA[:5], DATA[:4])]), {"size": 20}, ValueError, "a batch with equal first dimensions"),
}


@pytest.mark.parametrize("name", BAD)
def test_data_that_cannot_be_used_are_named(name):
    data, changes, error, message = BAD[name]
    with pytest.raises(error, match=message):
        train(data, **changes)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("validation", [None, nd.training.Validation(DATA[:5], every=4)], ids=["", "validation"])
def test_what_stops_a_loader_leaves_what_was_trained(kind, validation):
    def rows(count):
        yield from batches(count)
        raise kind("in the middle")

    with pytest.raises(kind, match="in the middle") as caught:
        train(rows(14), 40, size=20, validation=validation)
    result = caught.value.result
    steps = len(result.losses)
    assert 10 <= steps < 40
    whole = train(iter(batches(40)), steps, size=20, validation=validation)
    np.testing.assert_array_equal(result.losses, whole.losses)
    np.testing.assert_array_equal(result.params["w"], whole.params["w"])


def test_what_stops_a_loader_before_the_first_steps_is_raised_as_it_is():
    def rows():
        yield from batches(3)
        raise OSError("in the middle")

    with pytest.raises(OSError, match="in the middle") as caught:
        train(rows(), 40, size=20)
    assert not hasattr(caught.value, "result")
