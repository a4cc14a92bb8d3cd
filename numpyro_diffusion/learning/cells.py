"""Cells of a column as numbers, or an error that says what they are and what to do about it."""

import datetime
import decimal
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._checks import expected

__all__ = ["numbers_of"]

_EMPTY = ("NAType", "NaTType")
_OF_DATES = "Turn it into numbers: days since a first date, or the sine and cosine of the time of the year."
_OF_DURATIONS = "Turn it into numbers: divide it by numpy.timedelta64(1, 'D') to have days."


def numbers_of(what: str, values: np.ndarray, where: str = "") -> np.ndarray:
    """In float64, of the same shape; an empty cell of a column of objects is NaN.

    Args:
        what: the column, as an error shall call it.
        values: shape (n, ...).
        where: what an error shall add to the row's number.

    Raises:
        TypeError: for strings, dates, durations and objects, with the first row.
    """
    if values.dtype.kind in "biuf":
        return np.asarray(values, np.float64)
    if values.dtype.kind == "M":
        raise TypeError(expected(f"numbers in {what}", f"dates, dtype {values.dtype}", _OF_DATES))
    if values.dtype.kind == "m":
        raise TypeError(expected(f"numbers in {what}", f"durations, dtype {values.dtype}", _OF_DURATIONS))
    found = np.empty(values.shape)
    for index, value in np.ndenumerate(values):
        is_empty = value is None or type(value).__name__ in _EMPTY
        if not is_empty and not isinstance(value, numbers.Real | decimal.Decimal | np.bool_):
            shown = value.item() if isinstance(value, np.generic) else value
            raise TypeError(expected(f"numbers in {what}", f"{shown!r} in row {index[0]}{where}", _cure_of(shown)))
        found[index] = np.nan if is_empty else float(value)
    return found


def _cure_of(value: Any) -> str:
    if isinstance(value, Mapping):
        return "Make columns of it: pandas.DataFrame(data)."
    if isinstance(value, datetime.date) or type(value).__name__ == "Period":
        return _OF_DATES
    if isinstance(value, datetime.timedelta):
        return _OF_DURATIONS
    try:
        float(value)
    except (TypeError, ValueError):
        return "Leave the column out, or code it by numbers (one column of 0 and 1 for each category)."
    return "These are numbers as text: convert them, for example by pandas.to_numeric."
