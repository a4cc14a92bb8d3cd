r"""The map from whitened coordinates, in which a chain learns, to the data's columns, as NumPyro transforms.

    z --LowerCholeskyAffine--> w --SinhArcsinh, AffineTransform--> u --Exp, Sigmoid, StickBreaking--> y --constants--> x

Margins and supports are there only where columns ask for them. A table of real columns with light tails needs the first
map alone, which is linear. Data are taken back through the same transforms in float64.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints
from numpyro.distributions.transforms import (
    AffineTransform,
    ExpTransform,
    LowerCholeskyAffine,
    SigmoidTransform,
    StickBreakingTransform,
    Transform,
)

from .._typing import Array
from ..transforms import BySupport, InsertConstants, SinhArcsinh
from .columns import Column
from .gaussians import Gaussian, fit_gaussian
from .margins import Margins, fit_margins, is_far_from_normal

__all__ = ["Coordinates", "fit_coordinates", "log_volume"]

MarginChoice = Literal["auto", "normal", "none"]


class Coordinates(NamedTuple):
    """A map from whitened coordinates to rows, and how it came about.

    Attributes:
        constants: of every column; None for one that varies.
        supports: of the columns that vary.
        margins: of the columns that vary, without their support.
        is_bent: whether the margins are more than a shift and a scale.
        gaussian: of what is left.
    """

    constants: tuple[float | None, ...]
    supports: tuple[str, ...]
    margins: Margins
    is_bent: bool
    gaussian: Gaussian

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """In the order in which they are applied to whitened coordinates."""
        loc, scale, skew, tail = self.margins
        mean, scale_tril = self.gaussian.mean, self.gaussian.scale_tril
        if self.is_bent:
            found: list[Transform] = [
                LowerCholeskyAffine(_array(mean), _array(scale_tril)),
                SinhArcsinh(_array(skew), _array(tail)),
                AffineTransform(_array(loc), _array(scale), domain=constraints.real),
            ]
        else:
            found = [LowerCholeskyAffine(_array(loc + scale * mean), _array(scale[:, None] * scale_tril))]
        found += _support_transforms(self.supports)
        if any(number is not None for number in self.constants):
            found.append(InsertConstants(self.constants))
        return tuple(found)

    def whiten(self, rows: np.ndarray) -> np.ndarray:
        """Whitened coordinates of rows, shape (n, d), float64."""
        loc, scale, skew, tail = self.margins
        standard = (_unsupported(self.varying(rows), self.supports) - loc) / scale
        w = SinhArcsinh(skew, tail)._inverse(standard) if self.is_bent else standard
        return np.linalg.solve(self.gaussian.scale_tril, (w - self.gaussian.mean).T).T

    def varying(self, rows: np.ndarray) -> np.ndarray:
        """The columns that vary."""
        return rows[:, [number is None for number in self.constants]]

    def comparable(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows that have a density in as many dimensions as they have columns, and what to add to its logarithm.

        The columns that vary; of a simplex, its unconstrained coordinates.
        """
        y = self.varying(rows)
        if "simplex" not in self.supports:
            return y, np.zeros(len(y))
        u = _unsupported(y, self.supports)
        return u, -log_volume((StickBreakingTransform(),), u)


def fit_coordinates(
    rows: np.ndarray,
    weights: np.ndarray,
    columns: Sequence[Column],
    *,
    margins: MarginChoice,
    rng: np.random.Generator,
) -> Coordinates:
    """The map for a table.

    Args:
        rows: shape (n, columns), with noise on grids.
        weights: of rows, shape (n,).
        columns: what they are like.
        margins: ``"auto"``: transform the columns whose skewness and kurtosis are no chance, if the Gaussian of what
            comes out has the larger likelihood of rows that were left out; ``"normal"``: transform all; ``"none"``.
        rng: which rows are left out together.
    """
    varying = [column for column in columns if column.kind != "constant"]
    supports = tuple(column.support for column in varying)
    numbers = tuple(column.mean if column.kind == "constant" else None for column in columns)
    u = _unsupported(rows[:, [number is None for number in numbers]], supports)
    straight = Margins(u.mean(0), u.std(0), np.zeros(u.shape[1]), np.ones(u.shape[1]))
    plain = fit_gaussian((u - straight.loc) / straight.scale, weights, rng=rng)
    chosen = _chosen((u - straight.loc) / straight.scale, varying, margins)
    if not chosen.any():
        return Coordinates(numbers, supports, straight, False, plain)
    bent = fit_margins(u, chosen)
    standard = (u - bent.loc) / bent.scale
    transform = SinhArcsinh(bent.skew, bent.tail)
    w = transform._inverse(standard)
    gaussian = fit_gaussian(w, weights, rng=rng)
    slopes = weights @ transform.log_abs_det_jacobian(w, standard).sum(1) / weights.sum()
    gain = gaussian.held_out - plain.held_out - slopes + np.log(straight.scale / bent.scale).sum()
    # Skew and tail were fitted to all rows: two numbers a column, which Akaike's criterion charges for.
    if margins == "normal" or gain > 2 * chosen.sum() / len(u):
        return Coordinates(numbers, supports, bent, True, gaussian)
    return Coordinates(numbers, supports, straight, False, plain)


def log_volume(transforms: Sequence[Transform], z: np.ndarray) -> np.ndarray:
    """Log |dx / dz| for rows, nats, shape (n,): subtracted from log p(z), it leaves log p(x)."""
    total = np.zeros(len(z))
    value: Any = _array(z)
    for transform in transforms:
        after = transform(value)
        part = np.asarray(transform.log_abs_det_jacobian(value, after), np.float64)
        total += part.reshape(len(z), -1).sum(1) if transform.domain.event_dim == 0 else part
        value = after
    return total


def _chosen(standard: np.ndarray, columns: Sequence[Column], margins: MarginChoice) -> np.ndarray:
    """Which columns to transform: by the skewness and kurtosis that they have without their support."""
    if margins != "auto" or columns[0].support == "simplex":
        return np.full(standard.shape[1], margins == "normal")
    moments = zip(columns, (standard**3).mean(0), (standard**4).mean(0) - 3, strict=True)
    return np.asarray([c.kind != "binary" and is_far_from_normal(a, b, len(standard)) for c, a, b in moments])


def _support_transforms(supports: tuple[str, ...]) -> list[Transform]:
    kinds = set(supports)
    if kinds == {"real"}:
        return []
    if kinds == {"positive"}:
        return [ExpTransform()]
    if kinds == {"unit_interval"}:
        return [SigmoidTransform()]
    return [StickBreakingTransform()] if kinds == {"simplex"} else [BySupport(supports)]


def _unsupported(y: np.ndarray, supports: tuple[str, ...]) -> np.ndarray:
    """Columns without borders, in float64."""
    if "simplex" in supports:
        return np.asarray(StickBreakingTransform()._inverse(_array(y / y.sum(1, keepdims=True))), np.float64)
    return np.asarray(BySupport(supports)._inverse(y))


def _array(values: np.ndarray) -> Array:
    return jnp.asarray(values, float)
