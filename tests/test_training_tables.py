"""Tables and lists as the data of fit: converted where they hold numbers, refused with the cure where they do not."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pandas as pd
import polars as pl
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.training.arrays import as_arrays

DATA = np.asarray(jax.random.normal(jax.random.key(0), (20, 2)))


def model(x, size):
    """The loss tells which rows were in the batch."""
    w = numpyro.param("w", jnp.zeros(2))
    numpyro.factor("pull", -size * ((w - x) ** 2).sum())


def train(data=DATA, **changes):
    settings = {"optimizer": optax.adam(1e-2), "batch_size": 5, "rng_key": jax.random.key(1), "progress_bar": False}
    return nd.fit(model, data, num_steps=3, **{**settings, **changes})


TABLES = {
    "pandas": lambda: pd.DataFrame(DATA, columns=["a", "b"]),
    "pandas with an index": lambda: pd.DataFrame(DATA, columns=["a", "b"], index=np.arange(20)[::-1]),
    "polars": lambda: pl.DataFrame({"a": DATA[:, 0], "b": DATA[:, 1]}),
    "list": lambda: DATA.tolist(),
    "list of tuples": lambda: [tuple(row) for row in DATA.tolist()],
}


@pytest.fixture(scope="module", name="of_arrays")
def _of_arrays():
    return train(validation=nd.Validation(DATA, every=3))


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_numbers_is_its_array(name, of_arrays):
    table = TABLES[name]()
    found = train(table, validation=nd.Validation(table, every=3))
    np.testing.assert_array_equal(found.losses, of_arrays.losses)
    np.testing.assert_array_equal(found.validation_losses, of_arrays.validation_losses)


def test_tables_in_a_tree_and_columns_of_integers_and_booleans_are_numbers():
    table = pd.DataFrame({"a": [1, 2, 3], "b": [True, False, True]})
    tree = as_arrays("data", {"x": table, "y": pd.Series([1.5, 2.5, 3.5]), "z": [1, 2, 3], "w": np.zeros(3)})
    assert {name: array.shape for name, array in tree.tree.items()} == {"x": (3, 2), "y": (3,), "z": (3,), "w": (3,)}
    assert tree.columns["['x']"] == ["a", "b"]


def test_batches_of_a_loader_may_be_tables():
    batches = [pd.DataFrame(DATA[5 * i : 5 * i + 5]) for i in range(3)]
    arrays = [batch.to_numpy() for batch in batches]
    np.testing.assert_array_equal(train(iter(batches), size=20).losses, train(iter(arrays), size=20).losses)


BAD = {
    "words": (
        lambda: pd.DataFrame({"a": DATA[:, 0], "kind": ["x"] * 20}),
        TypeError,
        r"data as a table of numbers; got columns 'kind' of (object|str)\. .*\.to_numpy\(float\)",
    ),
    "dates": (
        lambda: pd.DataFrame({"a": DATA[:, 0], "when": pd.date_range("2024-01-01", periods=20)}),
        TypeError,
        r"got columns 'when' of datetime64",
    ),
    "polars unread": (lambda: pl.DataFrame({"a": DATA[:, 0]}).lazy(), TypeError, r"got a LazyFrame. Pass its .collect"),
    "polars words": (lambda: pl.DataFrame({"a": DATA[:, 0], "b": ["x"] * 20}), TypeError, r"got columns 'b' of object"),
    "in a tree": (
        lambda: {"x": DATA, "y": ["x"] * 20},
        TypeError,
        r"data at \['y'\] as an array of numbers; got dtype <U1",
    ),
    "objects": (lambda: DATA.astype(object), TypeError, r"data as an array of numbers; got dtype object"),
    "ragged": (lambda: [[1.0, 2.0], [3.0]], ValueError, r"data as a list of rows of one length; got lengths \[1, 2\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_table_of_numbers_is_refused_with_its_columns(name):
    make, error, message = BAD[name]
    with pytest.raises(error, match=message):
        train(make())


def test_a_value_that_is_not_finite_is_named_by_its_column():
    def observed(x, size):
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", numpyro.distributions.Normal(numpyro.param("m", 0.0), 1.0), obs=x[:, 1])

    table = pd.DataFrame(DATA, columns=["age", "height"])
    table.loc[17, "height"] = np.inf
    settings = {"optimizer": optax.adam(1e-2), "batch_size": 5, "rng_key": jax.random.key(1), "progress_bar": False}
    with pytest.raises(ValueError, match=r"finite values at site 'x'; got inf at row 17, column 'height' of the data"):
        nd.fit(observed, table, num_steps=1, **settings)
