"""What ``learn_prior`` found and did, in numbers and in words."""

import dataclasses
import math

import numpy as np

from ..evaluation import LogLikelihood, TwoSampleTest
from .columns import Column

__all__ = ["Report", "Tails"]

_MOST_LINES = 40  # of columns that are printed


@dataclasses.dataclass(frozen=True, eq=False)
class Tails:
    """How often draws lie beyond the data's own 1% and 99% quantiles.

    Attributes:
        share: of draws beyond them, for each column, shape (columns,); 0.02 is right.
        names: of the columns.
    """

    share: np.ndarray
    names: tuple[str, ...]

    def __str__(self) -> str:
        worst = int(np.argmax(np.abs(self.share - 0.02)))
        which = f", furthest off in {self.names[worst]!r}: {self.share[worst]:.1%}" if self.names else ""
        return f"{self.share.mean():.1%} of draws beyond the data's 1% and 99% quantiles (2% is right){which}"


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """What ``learn_prior`` found and did. ``print(report)`` shows it.

    Attributes:
        split: indices of the rows by what they were used for: ``"train"``, ``"validation"``, ``"test"``.
        drawn: the same, drawn in proportion to the rows' weights; ``split`` itself where weights are equal.
        scored_on: ``"test"``, or ``"validation"`` where no rows were kept for a test.
        prior: log likelihood of the scored rows, importance weighted, nats in the data's units.
        baselines: the same for each baseline, by name; fitted to the train and validation rows.
        steps: of training.
        best_step: with the least validation loss; 0 for the start.
        residual: what the network's residual is multiplied by, chosen on the validation rows: 0 is the Gaussian start.
        validation_losses: nats per row in whitened coordinates.
        integers: where all columns are on grids, a bound on the log probability of the rows without noise; else None.
        two_sample: a classifier between scored rows and draws; None without scikit-learn or with few rows.
        tails: of draws.
        columns: what was found in every column, and what was done.
        did: what was done to all of the data, in words.
        warnings: what should be known before the prior is used.
        seconds: by the clock.
        code: the same by hand.
    """

    split: dict[str, np.ndarray]
    drawn: dict[str, np.ndarray]
    scored_on: str
    prior: LogLikelihood
    baselines: dict[str, LogLikelihood]
    steps: int
    best_step: int
    residual: float
    validation_losses: np.ndarray
    integers: LogLikelihood | None
    two_sample: TwoSampleTest | None
    tails: Tails
    columns: tuple[Column, ...]
    did: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float
    code: str

    def minus(self, baseline: str) -> LogLikelihood:
        """The prior's log likelihood less a baseline's, row by row, with the standard error of the mean difference.

        Args:
            baseline: a key of ``baselines``.
        """
        return LogLikelihood(self.prior.per_point - self.baselines[baseline].per_point, self.prior.num_dimensions)

    def __str__(self) -> str:
        counts = ", ".join(f"{len(rows)} {name}" for name, rows in self.split.items() if len(rows))
        lines = [
            f"A prior of {sum(map(len, self.split.values()))} rows ({counts}), learned in {self.seconds:.0f} s",
            f"  {self.steps} steps, the best after {self.best_step}; residual times {self.residual:g}",
            f"  {self.scored_on} rows, nats a row (standard error)",
            f"    {'prior':<28}{_number(self.prior)}",
        ]
        lines += [f"    {'minus ' + name:<28}{_number(self.minus(name))}" for name in self.baselines]
        if self.integers is not None:
            bits, error = -self.integers.bits_per_dimension, self.integers.standard_error_bits_per_dimension
            lines.append(f"    {'bits to name each number':<28}{bits:9.3f} ({error:.3f})")
        if self.two_sample is not None:
            test = self.two_sample
            lines.append(
                f"  a classifier tells draws from rows in {test.accuracy:.0%} of {test.num_held_out} cases "
                f"(p = {test.p_value:.2g}; 50% is by guessing)"
            )
        lines.append(f"  {self.tails}")
        lines += [f"  {words}" for words in self.did]
        told = [column for column in self.columns if column.notes]
        lines += [f"  column {column.name!r}: {'; '.join(column.notes)}" for column in told[:_MOST_LINES]]
        if len(told) > _MOST_LINES:
            lines.append(f"  and notes on {len(told) - _MOST_LINES} more columns, see .columns")
        lines += [f"  warning: {words}" for words in self.warnings]
        return "\n".join(lines)


def _number(estimate: LogLikelihood) -> str:
    error = estimate.standard_error
    return f"{estimate.nats:9.3f} ({error:.3f})" if math.isfinite(error) else f"{estimate.nats:9.3f}"
