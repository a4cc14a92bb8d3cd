"""Data as they come: every kind of table is read, and what cannot be learned is refused by row and column."""

import datetime

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
import xarray

from numpyro_diffusion.learning.columns import look
from numpyro_diffusion.learning.look import look_at
from numpyro_diffusion.learning.tables import read_table

ROWS = np.random.default_rng(0).normal(size=(12, 2))


class Draws:
    def __init__(self, posterior):
        self.posterior = posterior


def looked_at(data, **options):
    return look_at(data, options.pop("weights", None), options.pop("support", "real"), "refuse", None)


def test_arrays_lists_mappings_frames_and_xarray_are_the_same_table(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    columns = {"a": ROWS[:, 0], "b": ROWS[:, 1]}
    array = xarray.DataArray(ROWS, dims=("row", "column"), coords={"column": ["a", "b"]})
    named = [pd.DataFrame(columns), pl.DataFrame(columns), columns, array, array.to_dataset("column")]
    plain = [ROWS, ROWS.tolist(), tmp_path / "rows.npy", np.load(tmp_path / "rows.npy", mmap_mode="r")]
    plain += [iter(ROWS), iter([ROWS[:5], ROWS[5:]])]
    for names, tables in ((("a", "b"), named), (("column 0", "column 1"), plain)):
        for table in map(read_table, tables):
            np.testing.assert_array_equal(table.values, ROWS)
            assert table.names == names


@pytest.mark.parametrize("make", [pd.Series, pl.Series], ids=["pandas", "polars"])
def test_one_column_is_a_vector_of_one_number(make):
    assert read_table(ROWS[:, 0]).values.shape == (12, 1)
    column = read_table(pd.Series(ROWS[:, 0], name="depth") if make is pd.Series else pl.Series("depth", ROWS[:, 0]))
    np.testing.assert_array_equal(column.values, ROWS[:, :1])
    assert column.names == ("depth",)


def test_cells_of_polars_are_numbers_or_empty():
    """Whole numbers with gaps, decimals, fixed-length arrays, truth values."""
    frame = pl.DataFrame(
        {"count": [1, None, 3], "price": [1, 2, 3], "pair": [[1.0, 2.0]] * 3, "seen": [True, False, True]}
    )
    frame = frame.with_columns(pl.col("price").cast(pl.Decimal(10, 2)), pl.col("pair").cast(pl.Array(pl.Float64, 2)))
    found = read_table(frame)
    assert found.names == ("count", "price", "pair[0]", "pair[1]", "seen")
    np.testing.assert_array_equal(found.values, [[1, 1, 1, 2, 1], [np.nan, 2, 1, 2, 0], [3, 3, 1, 2, 1]])


def test_the_posterior_of_an_analysis_has_a_row_for_each_draw():
    posterior = xarray.Dataset(
        {
            "mu": (("chain", "draw"), np.arange(6.0).reshape(2, 3)),
            "b": (("draw", "chain", "k"), np.arange(12.0).reshape(3, 2, 2)),
        }
    )
    table = read_table(Draws(posterior))
    assert table.names == ("mu", "b[0]", "b[1]")
    np.testing.assert_array_equal(table.values[:, 0], np.arange(6.0))
    np.testing.assert_array_equal(table.values[1], [1.0, 4.0, 5.0])  # chain 0, draw 1


def test_arviz_itself():
    az = pytest.importorskip("arviz")
    draws = np.random.default_rng(1).normal(size=(2, 10))
    old = az.__version__.startswith("0.")  # ArviZ 1 has xarray's DataTree
    table = read_table(az.from_dict(posterior={"mu": draws}) if old else az.from_dict({"posterior": {"mu": draws}}))
    assert table.names == ("mu",)
    np.testing.assert_array_equal(table.values[:, 0], draws.reshape(-1))


def test_empty_cells_of_objects_are_nan():
    table = read_table({"a": np.array([1, None, 2.5], object)})
    np.testing.assert_array_equal(table.values[:, 0], [1.0, np.nan, 2.5])


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        (
            {"a": ROWS[:, 0], "who": np.array(["x"] * 12, object)},
            TypeError,
            "numbers in column 'who'; got 'x' in row 0",
        ),
        ({"who": np.array(["x", "y"])}, TypeError, "numbers in column 'who'"),
        ([[1.0, "x"], [2.0, "y"]], TypeError, "numbers in column 'column 0'"),
        ({"when": np.array(["2024-01-01"], "datetime64[D]")}, TypeError, "column 'when'; got dates"),
        ("rows.csv", TypeError, r"got 'rows.csv'. .*pandas.read_csv"),
        ([[1.0, 2.0], [3.0]], ValueError, "rows of equal length"),
        (np.zeros((0, 2)), ValueError, r"n >= 1; got shape \(0, 2\)"),
        (np.zeros((2, 3, 4)), ValueError, r"got shape \(2, 3, 4\)"),
        ({}, ValueError, "a table with columns; got one without"),
        ({"a": np.zeros(3), "b": np.zeros(2)}, ValueError, "columns with as many rows"),
        (pl.DataFrame({"a": []}), ValueError, "columns with as many rows, at least one; got {'a': 0}"),
        (pl.DataFrame({"a": [1.0]}).lazy(), TypeError, r"got a LazyFrame. Pass its .collect\(\)"),
        (pl.DataFrame({"who": ["x"]}), TypeError, "numbers in column 'who'; got 'x' in row 0"),
        (pl.DataFrame({"when": [datetime.date(2024, 1, 1)]}), TypeError, "column 'when'; got dates"),
        (pl.DataFrame({"many": [[1.0, 2.0], [3.0]]}), TypeError, "numbers in column 'many'"),
        ({"a": ["1.5", "2"]}, TypeError, "numbers in column 'a'; got '1.5' in row 0. .*numbers as text.*to_numeric"),
        ([{"a": 1.0}, {"a": 2.0}], TypeError, r"got {'a': 1.0} in row 0. Make columns of it: pandas.DataFrame"),
        ({"d": np.ones(3, "timedelta64[D]")}, TypeError, r"column 'd'; got durations, .*timedelta64\(1, 'D'\)"),
        (None, TypeError, "data that are a table; got None"),
        ({1.0, 2.0}, TypeError, "data that are a table; got set"),
        (scipy.sparse.csr_matrix(np.eye(3)), TypeError, r"got csr_matrix. Pass data.toarray\(\)"),
        (3.0, ValueError, r"n >= 1; got shape \(\)"),
        (iter([]), ValueError, "an iterator with at least one row; got none"),
        (iter([np.zeros(2), np.zeros(3)]), ValueError, "rows of one shape"),
    ],
)
def test_what_is_no_table_is_refused(data, error, match):
    with pytest.raises(error, match=match):
        read_table(data)


def test_a_memory_map_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "bad.npy").write_bytes(b"no numbers")
    with pytest.raises(ValueError, match=r"a .npy file that can be read, .*bad.npy"):
        read_table(tmp_path / "bad.npy")
    with pytest.raises(FileNotFoundError, match=r"a .npy file that can be read"):
        read_table(tmp_path / "none.npy")


def test_one_bad_cell_among_many_rows_is_found():
    rows = np.random.default_rng(2).normal(size=(200_000, 2))
    rows[163_000, 1] = np.nan
    with pytest.raises(ValueError, match=r"got nan in row 163000, column 'column 1' \(1 of 200000 rows"):
        looked_at(rows)
    rows[163_000, 1] = -np.inf
    with pytest.raises(ValueError, match="got -inf in row 163000"):
        looked_at(rows)


def test_rows_with_gaps_are_left_out_on_request_and_it_is_told():
    rows = ROWS.copy()
    rows[3, 0] = np.nan
    found = look_at(rows, None, "real", "drop", None)
    assert len(found.values) == 11
    assert "left out 1 of 12 rows" in found.did[0]


def test_an_empty_column_is_refused_by_name():
    with pytest.raises(ValueError, match="no finite value in b"):
        looked_at({"a": ROWS[:, 0], "b": np.full(12, np.nan)})


@pytest.mark.parametrize(
    ("support", "values", "match"),
    [
        ("positive", [1.0, 0.0, 2.0], "values > 0 in column 'b', support='positive'; got 0.0 in row 1"),
        ("unit_interval", [0.5, 0.2, 1.0], r"values in \(0, 1\) in column 'b', .*got 1.0 in row 2"),
    ],
)
def test_a_support_that_is_violated_names_the_row(support, values, match):
    with pytest.raises(ValueError, match=match):
        looked_at({"a": np.arange(12.0), "b": np.resize(values, 12)}, support={"b": support})


def test_rows_off_the_simplex_are_named():
    rows = np.full((12, 2), 0.5)
    rows[5] = 0.6, 0.5
    with pytest.raises(ValueError, match=r"rows that sum to 1, .*got 1.1 in row 5"):
        looked_at(rows, support="simplex")


@pytest.mark.parametrize(
    ("support", "match"),
    [
        ("reals", "support out of real, positive"),
        ({"c": "positive"}, r"support of columns out of \['column 0', 'column 1'\]; got \['c'\]"),
        ({"column 0": "simplex"}, "support='simplex' of all columns"),
    ],
)
def test_a_support_that_is_none_is_named(support, match):
    with pytest.raises(ValueError, match=match):
        looked_at(ROWS, support=support)


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (np.r_[-1.0, np.ones(11)], "weights >= 0; got -1.0 in row 0"),
        (np.zeros(12), "a weight > 0; got weights that are all zero"),
        (np.r_[np.ones(11), np.nan], "got nan in row 11"),
        (np.ones(3), r"weights of shape \(12,\); got shape \(3,\)"),
    ],
)
def test_weights_that_are_none_are_refused(weights, match):
    with pytest.raises(ValueError, match=match):
        looked_at(ROWS, weights=weights)


def test_weights_that_are_no_numbers_are_refused():
    with pytest.raises(TypeError, match=r"weights that are numbers; got 'age'. .*data\[name\]"):
        looked_at(ROWS, weights="age")
    weights = looked_at(ROWS, weights=pl.Series(np.arange(12.0))).weights
    np.testing.assert_allclose(weights, np.arange(1, 12) / 6)  # their mean is 1, and the row of weight 0 is left out


@pytest.mark.parametrize("scale", [1e300, 1e38, 1e-320, 1e-37])
def test_numbers_that_draws_could_not_have_are_refused(scale):
    with pytest.raises(
        ValueError, match=r"numbers of an ordinary size in column 'column 1'.*Take other units.*float32"
    ):
        looked_at(ROWS * [1.0, scale])
    assert looked_at(ROWS * [1e-30, 1e30]).columns[1].scale > 1e29


def test_a_look_tells_grids_constants_bits_and_reals():
    rng = np.random.default_rng(3)
    columns = {
        "real": rng.normal(size=300),
        "integer": rng.integers(0, 256, 300).astype(float),
        "decimal": rng.integers(0, 50, 300) / 10,
        "fives": 5.0 * rng.integers(0, 50, 300),
        "fine": np.round(rng.normal(size=300), 3),  # a step below a hundredth of the standard deviation
        "bit": rng.integers(0, 2, 300).astype(float),
        "constant": np.full(300, 7.0),
        "clipped": np.maximum(rng.normal(size=300), 0),
        "heavy": rng.standard_t(2, 300),
    }
    found = {c.name: c for c in look(np.stack(list(columns.values()), 1), tuple(columns), ("real",) * len(columns))}
    kinds = {name: column.kind for name, column in found.items()}
    grids = dict.fromkeys(("integer", "decimal", "fives"), "grid")
    reals = dict.fromkeys(("real", "fine", "clipped", "heavy"), "real")
    assert kinds == grids | reals | {"bit": "binary", "constant": "constant"}
    np.testing.assert_allclose([found[name].step for name in grids], [1.0, 0.1, 5.0])
    assert "always 7" in found["constant"].notes[0]
    assert "no point of mass" in found["clipped"].notes[0]
    assert found["heavy"].kurtosis > 5 > 1 > abs(found["real"].kurtosis)


def test_few_rows_and_columns_beyond_float32_are_told():
    with pytest.raises(ValueError, match="at least 10 rows; got 3"):
        looked_at(ROWS[:3])
    assert "fewer rows (12) than columns (20)" in looked_at(np.random.default_rng(4).normal(size=(12, 20))).warnings[0]
    assert "subtract the mean" in looked_at(ROWS + 1e8).warnings[0]
