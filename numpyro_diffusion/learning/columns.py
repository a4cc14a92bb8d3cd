r"""What a look at all rows finds, column by column, before anything is learned.

A column is *constant*, *binary* (0 and 1), on a *grid* or *real*. It is on a grid if it has ties, or nothing but
integers, and its distinct values are multiples of one step apart that is coarser than a hundredth of its standard
deviation: finer steps are beyond what a chain resolves. A density has no points of mass, so that on a grid a model can
be as good as it likes by learning the grid; uniform noise as wide as a step makes a density of it (Theis et al. 2016).

    skewness m_3 / m_2^{3/2},  excess kurtosis m_4 / m_2^2 - 3,  with m_k the central moments

On a support with borders there is noise where it stays inside; else the column is real, and that is told.

Rows are looked at twice, a stretch at a time, so that they may be larger than memory: for range and distinct values,
then for the moments about the mean. Of a column with more than 16384 distinct values only the most frequent are kept:
it is on a grid if it has nothing but integers. A step coarser than a hundredth of a standard deviation would else span
more than 160 of them.

References: Theis, van den Oord and Bethge 2016 (uniform dequantisation).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np

from .._checks import expected, first_index
from .stretches import stretches

__all__ = ["FINEST", "Column", "check_finite_rows", "check_support", "look", "look_at_pieces", "supports_of"]

Kind = Literal["real", "grid", "binary", "constant"]

# Of a standard deviation: the least noise of a chain, and so the finest structure that it tells from a point.
FINEST = 0.01
# A share of equal values from which on a column that is on no grid is said to have a point of mass.
_POINT_MASS = 0.05
_MOST_DISTINCT = 16384
_MOST_FREQUENT = 1024  # values that are kept where there are more
_NAMES = ("real", "positive", "unit_interval", "simplex")


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the data.

    Attributes:
        name: of the column.
        kind: ``"real"``, ``"grid"``, ``"binary"`` or ``"constant"``.
        support: ``"real"``, ``"positive"``, ``"unit_interval"`` or ``"simplex"``.
        mean: over all rows.
        scale: standard deviation over all rows.
        skewness: 0 for a symmetric column.
        kurtosis: excess, 0 for a normal column.
        step: of the grid; 0 for none.
        notes: what was found and what was done, in words.
    """

    name: str
    kind: Kind
    support: str
    mean: float
    scale: float
    skewness: float
    kurtosis: float
    step: float
    notes: tuple[str, ...]


def check_finite_rows(values: Any, names: tuple[str, ...], places: np.ndarray | None = None) -> None:
    """Every cell must be a finite number.

    Args:
        values: shape (n, ...).
        names: of the columns; empty for images.
        places: of the rows in what the user gave, of which some were left out; None for all.

    Raises:
        ValueError: with the count, and the first row and column.
    """
    first: tuple[int, ...] = ()
    count, value, seen = 0, 0.0, np.zeros(values.shape[1:], bool)
    for start, rows in stretches(values):
        bad = ~np.isfinite(rows)
        seen |= ~bad.all(0)
        if bad.any():
            count += int(bad.reshape(len(bad), -1).any(1).sum())
            if not first:
                here = first_index(bad)
                first, value = (start + here[0], *here[1:]), rows[here]
    if not first:
        return
    if names and not seen.all():
        empty = [name for name, has_some in zip(names, seen, strict=True) if not has_some]
        cure = "Leave these columns out."
        raise ValueError(expected("numbers in every column", f"no finite value in {', '.join(empty)}", cure))
    first = (_place(first[0], places), *first[1:])
    where = f"row {first[0]}, column {names[first[1]]!r}" if names else f"index {first}"
    raise ValueError(
        expected(
            "finite values in all rows",
            f"{value} in {where} ({count} of {len(values)} rows have NaN or infinite values)",
            "Pass missing='drop' to leave such rows out, or impute them first."
            if count < len(values)
            else "Leave out the columns with the most gaps, or impute them first.",
        )
    )


def supports_of(support: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """The support of every column.

    Args:
        support: one name for all columns, or a mapping of columns to names; the others are real.
        names: of the columns.

    Raises:
        ValueError: for another name, for a column that is not there, for a simplex of some columns only.
    """
    if not isinstance(support, Mapping):
        found = (support,) * len(names)
    else:
        unknown = [name for name in support if name not in names]
        if unknown:
            raise ValueError(expected(f"support of columns out of {list(names)}", unknown, "Name columns of the data."))
        found = tuple(support.get(name, "real") for name in names)
    for one in found:
        if one not in _NAMES:
            raise ValueError(expected(f"support out of {', '.join(_NAMES)}", repr(one), "Choose one of these names."))
    if "simplex" in found and (set(found) != {"simplex"} or len(found) < 2):
        cure = "Learn the shares as a prior of their own."
        raise ValueError(expected("support='simplex' of all columns, two or more", found, cure))
    return found


def _place(row: int, places: np.ndarray | None) -> int:
    return row if places is None else int(places[row])


def check_support(
    values: Any, names: tuple[str, ...], supports: tuple[str, ...], places: np.ndarray | None = None
) -> None:
    """Every value must be in its column's support, borders excluded.

    Args:
        values: shape (n, columns).
        names: of the columns.
        supports: of the columns.
        places: as for :func:`check_finite_rows`.

    Raises:
        ValueError: with the support, and the first row and column.
    """
    outside = np.zeros(len(names), int)
    found: dict[int, tuple[int, float]] = {}  # by column
    for start, rows in stretches(values):
        for index, support in enumerate(supports):
            column = rows[:, index]
            inside = (column > 0) & ((column < 1) | (support == "positive")) | (support == "real")
            outside[index] += int((~inside).sum())
            if not inside.all():
                found.setdefault(index, (start + int(np.argmin(inside)), float(column[np.argmin(inside)])))
        if "simplex" in supports and not found:
            total = rows.sum(1)
            wrong = np.abs(total - 1) > 0.01  # shares in percent with one decimal may miss 1 by a few thousandths
            if wrong.any():
                row = int(np.argmax(wrong))
                got, cure = f"{total[row]} in row {_place(start + row, places)}", "Divide every row by its sum."
                raise ValueError(expected("rows that sum to 1, support='simplex'", got, cure))
    if found:
        index = min(found)
        name, support, (row, value) = names[index], supports[index], found[index]
        words = {"positive": "values > 0"}.get(support, "values in (0, 1)")
        raise ValueError(
            expected(
                f"{words} in column {name!r}, support={support!r}",
                f"{value} in row {_place(row, places)} ({outside[index]} of {len(values)} rows)",
                "Move values off the border, leave such rows out, or take support='real'.",
            )
        )


def look(values: Any, names: tuple[str, ...], supports: tuple[str, ...]) -> tuple[Column, ...]:
    """What every column is like, shape (n, columns)."""
    if not isinstance(values, np.ndarray):
        return look_at_pieces(partial(_rows_of, values), names, supports)
    # One column at a time where that costs no reading, so that its distinct values are sorted in long stretches.
    found: list[Column] = []
    for index, (name, support) in enumerate(zip(names, supports, strict=True)):
        column = values[:, index : index + 1]
        found += look_at_pieces(partial(_rows_of, column), (name,), (support,))
    return tuple(found)


def _rows_of(values: Any) -> Iterable[np.ndarray]:
    return (rows for _, rows in stretches(values))


def look_at_pieces(
    pieces: Callable[[], Iterable[np.ndarray]], names: tuple[str, ...], supports: tuple[str, ...]
) -> tuple[Column, ...]:
    """What every column is like, from rows that come in pieces (k, columns), twice."""
    seen = [_Seen() for _ in names]
    for rows in pieces():
        for one, column in zip(seen, rows.T, strict=True):
            one.add(column)
    mean = np.asarray([one.total / one.count for one in seen])
    width = np.asarray([one.high - one.low or 1.0 for one in seen])
    powers = np.zeros((3, len(names)))
    for rows in pieces():
        standard = (rows - mean) / width  # so that fourth powers do not overflow
        powers += [(standard**power).sum(0) for power in (2, 3, 4)]
    moments = (powers / seen[0].count).T
    each = zip(names, supports, seen, mean, width, moments, strict=True)
    return tuple(_column(*of_one) for of_one in each)


class _Seen:
    """What was met in a column so far."""

    def __init__(self) -> None:
        self.count, self.total, self.low, self.high = 0, 0.0, np.inf, -np.inf
        self.is_whole = True  # integers alone
        self.is_complete = True  # whether all distinct values are here, or the most frequent
        self.distinct, self.counts = np.zeros(0), np.zeros(0, int)

    def add(self, column: np.ndarray) -> None:
        values, counts = np.unique(column, return_counts=True)
        self.count += len(column)
        self.total += float(column.sum())
        self.low, self.high = min(self.low, float(values[0])), max(self.high, float(values[-1]))
        self.is_whole = self.is_whole and bool((values == np.round(values)).all())
        if not self.is_complete:  # what is frequent repeats in a stretch, too
            values, counts = values[counts > 1], counts[counts > 1]
        self.distinct, index = np.unique(np.concatenate([self.distinct, values]), return_inverse=True)
        self.counts = np.bincount(index, np.concatenate([self.counts, counts])).astype(int)
        if len(self.distinct) > _MOST_DISTINCT:
            self.is_complete = False
        if not self.is_complete and len(self.distinct) > _MOST_FREQUENT:
            kept = np.sort(np.argpartition(self.counts, -_MOST_FREQUENT)[-_MOST_FREQUENT:])
            self.distinct, self.counts = self.distinct[kept], self.counts[kept]

    def step(self) -> float:
        """Of the grid that all values are on; 0 for none."""
        if self.is_complete:
            return _grid_step(self.distinct, self.counts)
        return 1.0 if self.is_whole else 0.0


def _column(name: str, support: str, seen: _Seen, mean: float, width: float, moments: np.ndarray) -> Column:
    scale = float(width * np.sqrt(moments[0]))
    notes: list[str] = []
    kind: Kind = "real"
    step = 0.0
    if seen.low == seen.high:
        kind, mean, scale = "constant", seen.low, 0.0
        notes.append(f"constant: always {seen.low:g} in the distribution")
    elif seen.is_complete and set(seen.distinct.tolist()) == {0.0, 1.0}:
        kind, step = "binary", 1.0
    else:
        step = seen.step()
        if step <= FINEST * scale or support == "simplex":  # noise would leave the simplex
            step = 0.0
        elif _stays_inside(support, seen.low - step / 2, seen.high + step / 2):
            kind = "grid"
        else:
            notes.append(f"on a grid ({step:g}), without noise: it would leave the support, and a density has no grid")
            step = 0.0
        share = float(seen.counts.max()) / seen.count
        if kind == "real" and seen.count > 20 and share > _POINT_MASS:
            value = seen.distinct[int(seen.counts.argmax())]
            notes.append(f"{value:g} in {share:.0%} of the rows: a density has no point of mass")
    varies = moments[0] if scale > 0 else np.inf
    return Column(
        name=name,
        kind=kind,
        support=support,
        mean=float(mean),
        scale=scale,
        skewness=float(moments[1] / varies**1.5),
        kurtosis=float(moments[2] / varies**2) - 3 if scale > 0 else 0.0,
        step=step,
        notes=tuple(notes),
    )


def _stays_inside(support: str, low: float, high: float) -> bool:
    return support == "real" or (low > 0 and (support == "positive" or high < 1))


def _grid_step(distinct: np.ndarray, counts: np.ndarray) -> float:
    """The step of a grid that all values are on; 0 for none."""
    if len(distinct) == counts.sum() and not (distinct == np.round(distinct)).all():
        return 0.0
    gaps = np.diff(distinct)
    for parts in range(1, 11):  # the smallest gap may be of several steps
        ratio = gaps / (gaps.min() / parts)
        # Decimals that went through float32 are off by a few parts in 10^4 of a step.
        if np.abs(ratio - np.round(ratio)).max() < 1e-3:
            return float(gaps.min() / parts)
    return 0.0
