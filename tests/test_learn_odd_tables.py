"""Tables of which a part could be lost or mixed up on the way in: it is read as it is meant, or refused by name."""

import datetime
import io

import jax
import numpy as np
import pandas as pd
import polars as pl
import pytest
import xarray

from numpyro_diffusion.learning.look import look_at, space_for
from numpyro_diffusion.learning.rows import split_rows
from numpyro_diffusion.learning.tables import read_table

ROWS = np.random.default_rng(0).normal(size=(60, 3))


def looked_at(data, support="real", weights=None, missing="refuse", names=None):
    return look_at(data, weights, support, missing, names)


def space_of(found):
    rng = np.random.default_rng(1)
    split, _ = split_rows(found.values, 0.15, 0.15, rng=rng)
    learned = [split["train"], split["validation"]]
    return space_for(found, np.concatenate(learned), learned, None, None, "auto", rng, jax.random.key(0))


# Names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
@pytest.mark.parametrize("name", ["posterior", "data_vars", "dims", "columns", "name"])
def test_columns_may_have_the_names_of_what_other_containers_have(frame, name):
    table = read_table(frame({name: ROWS[:, 0], "b": ROWS[:, 1]}))
    assert table.names == (name, "b")
    np.testing.assert_array_equal(table.values, ROWS[:, :2])


def test_columns_whose_names_are_alike_as_text_are_not_lost():
    with pytest.raises(ValueError, match=r"columns of different names; got '1' twice. Rename"):
        read_table(pd.DataFrame(ROWS[:, :2], columns=[1, "1"]))
    with pytest.raises(ValueError, match="columns of different names; got '1' twice"):
        read_table({1: ROWS[:, 0], "1": ROWS[:, 1]})
    with pytest.raises(ValueError, match=r"columns of different names; got 'a\[0\]' twice"):
        read_table({"a": ROWS[:, :2], "a[0]": ROWS[:, 1]})


def test_columns_of_one_name_are_numbered():
    table = read_table(pd.DataFrame(ROWS, columns=["a", "a", "b"]))
    assert table.names == ("a[0]", "a[1]", "b")
    np.testing.assert_array_equal(table.values, ROWS)


def test_given_names_are_one_for_each_column():
    with pytest.raises(ValueError, match=r"names that differ; got \['a', 'a', 'b'\]"):
        looked_at(ROWS, names=["a", "a", "b"])
    with pytest.raises(ValueError, match="names of 3 columns; got abc"):
        looked_at(ROWS, names="abc")
    with pytest.raises(ValueError, match="no names of columns for images; got"):
        looked_at(np.random.default_rng(0).normal(size=(20, 4, 4, 1)), names=["a"])


# Dates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dates",
    [
        pd.date_range("2024", periods=60, tz="UTC"),
        pd.period_range("2024-01", periods=60, freq="M"),
        [datetime.date(2024, 1, 1)] * 60,
        [None, *[datetime.datetime(2024, 1, 1)] * 59],
    ],
    ids=["zone", "period", "date", "gap"],
)
def test_dates_of_all_kinds_have_the_cure_of_dates(dates):
    with pytest.raises(TypeError, match=r"column 'when'.*days since a first date"):
        read_table(pd.DataFrame({"when": dates, "a": ROWS[:, 0]}))


# Dimensions ---------------------------------------------------------------------------------------------


def posterior(chains=12, draws=5):
    rng = np.random.default_rng(2)
    shape = ("chain", "draw")
    return xarray.Dataset(
        {"mu": (shape, rng.normal(size=(chains, draws))), "b": ((*shape, "k"), rng.normal(size=(chains, draws, 2)))}
    )


def test_the_group_of_draws_itself_has_a_row_for_each_draw():
    draws = posterior()
    flat = np.concatenate([draws["mu"].values.reshape(60, 1), draws["b"].values.reshape(60, 2)], 1)
    as_node = xarray.DataTree.from_dict({"posterior": draws})["posterior"]
    stacked = draws.stack(sample=("chain", "draw"))
    for data in (draws, draws.transpose("k", "draw", "chain"), as_node, stacked):
        table = read_table(data)
        assert table.names == ("mu", "b[0]", "b[1]")
        np.testing.assert_array_equal(table.values, flat)
    for array in (draws["mu"], draws["mu"].T, stacked["mu"]):
        np.testing.assert_array_equal(read_table(array).values, flat[:, :1])
    np.testing.assert_array_equal(read_table(draws["b"]).values, flat[:, 1:])


def test_columns_of_a_dataset_share_the_dimension_that_counts_rows():
    """In a square one the first axis alone would pair the rows of one column with the places of another."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=20), rng.normal(size=(20, 20))
    table = read_table(xarray.Dataset({"a": ("time", a), "b": (("place", "time"), b)}))
    np.testing.assert_array_equal(table.values, np.concatenate([a[:, None], b.T], 1))
    with pytest.raises(ValueError, match=r"one dimension of rows that all variables have; got {'a': \('time',\), 'c'"):
        read_table(xarray.Dataset({"a": ("time", a), "c": ("place", a)}))
    with pytest.raises(ValueError, match="one dimension of rows that all variables have"):
        read_table(xarray.Dataset({"a": (("time", "place"), b), "b": (("place", "time"), b)}))


# Iterators ----------------------------------------------------------------------------------------------


def chunks(*orders):
    parts = (pd.DataFrame(ROWS[20 * i : 20 * (i + 1)], columns=list("abc"))[list(o)] for i, o in enumerate(orders))
    return iter(list(parts))


def test_tables_in_pieces_keep_the_names_of_their_columns_and_their_order():
    text = pd.DataFrame(ROWS, columns=list("abc")).to_csv(index=False)
    with pd.read_csv(io.StringIO(text), chunksize=16) as reader:
        table = read_table(reader)
    assert table.names == ("a", "b", "c")
    np.testing.assert_allclose(np.asarray(table.values), ROWS)
    with pytest.raises(ValueError, match=r"columns a, b, c in every piece; got b, a, c at row 20"):
        read_table(chunks("abc", "bac"))
    with pytest.raises(TypeError, match="numbers in column 'who'; got 'x' in row 0 of the piece at row 0"):
        read_table(iter([pd.DataFrame({"who": ["x"]})]))


def test_an_iterator_of_numbers_is_one_column():
    np.testing.assert_array_equal(np.asarray(read_table(iter(ROWS[:, 0])).values), ROWS[:, :1])
    np.testing.assert_array_equal(np.asarray(read_table(iter(ROWS[:, 0].tolist())).values), ROWS[:, :1])


@pytest.mark.parametrize("pair", [(ROWS, ROWS), (ROWS, ROWS[:, 0]), [ROWS, ROWS[:, 0]]])
def test_pairs_of_arrays_are_no_rows(pair):
    """Two batches of equal shape would else be one image."""
    with pytest.raises(TypeError, match=r"rows or batches of rows; got a (tuple|list) of 2 arrays at row 0. Yield"):
        read_table(iter([pair] * 3))


# Weights ------------------------------------------------------------------------------------------------


def test_rows_without_weight_are_left_out_and_it_is_told():
    """They count nothing: not for the schedule, which would reach for them, nor for whether a column is constant."""
    rows = np.concatenate([ROWS, [[1e6, 0.0, 9.0], [0.0, 1.0, 8.0]]])
    rows[:60, 2] = 7.0
    weights = np.r_[np.ones(60), 0, 0]
    found = looked_at(rows, weights=weights)
    np.testing.assert_array_equal(found.values, rows[:60])
    assert "left out 2 of 62 rows of weight 0" in found.did
    assert found.columns[2].kind == "constant"
    assert space_of(found).plan.kernel.schedule.log_snr[-1] > -2 * np.log(25)
    rows[60, 1] = np.nan
    assert len(looked_at(rows, weights=weights).values) == 60
    rows[5, 1] = np.nan
    with pytest.raises(ValueError, match="got nan in row 5, column 'column 1'"):
        looked_at(rows, weights=weights)
    dropped = looked_at(rows, weights=weights, missing="drop")
    assert len(dropped.values) == 59
    assert "left out 1 of 62 rows with NaN or infinite values" in dropped.did


def test_a_row_is_named_as_the_data_count_it_although_rows_before_it_have_no_weight():
    rows = ROWS.copy()
    rows[5, 1] = np.nan
    with pytest.raises(ValueError, match="got nan in row 5, column 'column 1'"):
        looked_at(rows, weights=np.r_[0, 0, np.ones(58)])
    with pytest.raises(ValueError, match=r"values > 0 in column 'column 1', .* in row 5 "):
        looked_at(np.where(np.isnan(rows), -1.0, np.abs(rows)), "positive", weights=np.r_[0, 0, np.ones(58)])


# Grids, points, dependence --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("support", "values", "step"),
    [
        ("positive", 1.0 + 5.0 * np.arange(60), 0.0),  # noise of 2.5 would go below 0
        ("positive", 3.0 + 5.0 * np.arange(60), 5.0),
        ("unit_interval", np.arange(1, 61) / 100, 0.01),
        ("unit_interval", np.arange(1, 61) / 61, 1 / 61),
    ],
)
def test_noise_on_a_grid_stays_inside_of_the_support_or_there_is_none_and_it_is_told(support, values, step):
    rows = np.stack([np.random.default_rng(4).permutation(np.repeat(values, 2)), np.resize(ROWS[:, 0], 120)], 1)
    found = looked_at(rows, {"column 0": support})
    np.testing.assert_allclose(found.columns[0].step, step)
    assert bool(found.columns[0].notes) == (step == 0)
    if step == 0:
        assert "on a grid (5), without noise: it would leave the support" in found.columns[0].notes[0]
    assert np.isfinite(space_of(found).z(np.arange(120))).all()


def test_a_column_that_others_determine_is_told():
    celsius = ROWS[:, 0]
    found = looked_at({"C": celsius, "other": ROWS[:, 1], "F": 1.8 * celsius + 32})
    space_of(found)
    assert any("column 'F' is a linear function of columns before it: leave it out" in w for w in found.warnings)
    shares = np.exp(ROWS) / np.exp(ROWS).sum(1, keepdims=True)
    found = looked_at(shares)
    space_of(found)
    assert any("column 'column 2' is a linear function" in words for words in found.warnings)
    free = looked_at(ROWS)
    space_of(free)
    assert not free.warnings


def test_a_column_whose_few_other_values_are_all_kept_for_the_test_is_named():
    rows = np.stack([np.zeros(60), ROWS[:, 0]], 1)
    rows[[3, 7, 9], 0] = np.pi, np.e, -np.sqrt(2)
    found = looked_at(rows)
    learned = np.setdiff1d(np.arange(60), [3, 7, 9])
    with pytest.raises(ValueError, match=r"column 'column 0' to vary in the rows that are learned; got 0 in all"):
        space_for(found, learned, [learned], None, None, "auto", np.random.default_rng(0), jax.random.key(0))


def test_rows_that_all_have_gaps_are_not_asked_to_be_dropped_again():
    gaps = np.where(np.eye(3, dtype=bool)[np.arange(60) % 3], np.nan, ROWS)
    with pytest.raises(ValueError, match=r"\(60 of 60 rows have NaN .*\)\. Leave out the columns with the most gaps"):
        looked_at(gaps, missing="drop")
