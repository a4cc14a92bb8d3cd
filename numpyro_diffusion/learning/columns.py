r"""What a look at all rows finds, column by column, before anything is learned.

A column is *constant*, *binary* (0 and 1), on a *grid* or *real*. It is on a grid if it has ties, or nothing but
integers, and its distinct values are multiples of one step apart that is coarser than a hundredth of its standard
deviation: finer steps are beyond what a chain resolves. A density has no points of mass, so that on a grid a model can
be as good as it likes by learning the grid; uniform noise as wide as a step makes a density of it (Theis et al. 2016).

    skewness m_3 / m_2^{3/2},  excess kurtosis m_4 / m_2^2 - 3,  with m_k the central moments

References: Theis, van den Oord and Bethge 2016 (uniform dequantisation).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from .._checks import expected, first_index

__all__ = ["FINEST", "Column", "check_finite_rows", "check_support", "look", "supports_of"]

Kind = Literal["real", "grid", "binary", "constant"]

# Of a standard deviation: the least noise of a chain, and so the finest structure that it tells from a point.
FINEST = 0.01
# A share of equal values from which on a column that is on no grid is said to have a point of mass.
_POINT_MASS = 0.05
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


def check_finite_rows(values: np.ndarray, names: tuple[str, ...]) -> None:
    """Every cell must be a finite number.

    Raises:
        ValueError: with the count, and the first row and column.
    """
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    rows = bad.reshape(len(bad), -1).any(1)
    if names:
        empty = [name for name, column in zip(names, bad.T, strict=True) if column.all()]
        if empty:
            cure = "Leave these columns out."
            raise ValueError(expected("numbers in every column", f"no finite value in {', '.join(empty)}", cure))
    first = first_index(bad)
    where = f"row {first[0]}, column {names[first[1]]!r}" if names else f"index {first}"
    raise ValueError(
        expected(
            "finite values in all rows",
            f"{values[first]} in {where} ({int(rows.sum())} of {len(rows)} rows have NaN or infinite values)",
            "Pass missing='drop' to leave such rows out, or impute them first.",
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


def check_support(values: np.ndarray, names: tuple[str, ...], supports: tuple[str, ...]) -> None:
    """Every value must be in its column's support, borders excluded.

    Raises:
        ValueError: with the support, and the first row and column.
    """
    for index, (name, support) in enumerate(zip(names, supports, strict=True)):
        column = values[:, index]
        inside = {
            "real": column == column,
            "positive": column > 0,
            "unit_interval": (column > 0) & (column < 1),
            "simplex": (column > 0) & (column < 1),
        }[support]
        if not inside.all():
            row = int(np.argmin(inside))
            words = {"positive": "values > 0"}.get(support, "values in (0, 1)")
            raise ValueError(
                expected(
                    f"{words} in column {name!r}, support={support!r}",
                    f"{column[row]} in row {row} ({int((~inside).sum())} of {len(inside)} rows)",
                    "Move values off the border, leave such rows out, or take support='real'.",
                )
            )
    if "simplex" in supports:
        total = values.sum(1)
        # Shares in percent with one decimal may miss 1 by a few thousandths.
        wrong = np.abs(total - 1) > 0.01
        if wrong.any():
            row = int(np.argmax(wrong))
            cure = "Divide every row by its sum."
            raise ValueError(expected("rows that sum to 1, support='simplex'", f"{total[row]} in row {row}", cure))


def look(values: np.ndarray, names: tuple[str, ...], supports: tuple[str, ...]) -> tuple[Column, ...]:
    """What every column is like, shape (n, columns)."""
    columns = zip(names, supports, values.T, strict=True)
    return tuple(_look_at(name, support, column) for name, support, column in columns)


def _look_at(name: str, support: str, column: np.ndarray) -> Column:
    distinct, counts = np.unique(column, return_counts=True)
    mean, scale = float(column.mean()), float(column.std())
    notes: list[str] = []
    kind: Kind = "real"
    step = 0.0
    if len(distinct) == 1:
        kind, scale = "constant", 0.0
        notes.append(f"constant: always {distinct[0]:g} in the distribution")
    elif set(distinct.tolist()) == {0.0, 1.0}:
        kind, step = "binary", 1.0
    else:
        step = _grid_step(distinct, counts)
        # On a bounded support noise could step over the border.
        if step > FINEST * scale and support in ("real", "positive"):
            kind = "grid"
        else:
            step = 0.0
        share = float(counts.max()) / len(column)
        if kind == "real" and len(column) > 20 and share > _POINT_MASS:
            value = distinct[int(counts.argmax())]
            notes.append(f"{value:g} in {share:.0%} of the rows: a density has no point of mass")
    standard = (column - mean) / scale if scale > 0 else np.zeros(1)
    return Column(
        name=name,
        kind=kind,
        support=support,
        mean=mean,
        scale=scale,
        skewness=float((standard**3).mean()),
        kurtosis=float((standard**4).mean()) - 3 if scale > 0 else 0.0,
        step=step,
        notes=tuple(notes),
    )


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
