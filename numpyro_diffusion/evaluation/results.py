"""What every estimate of a log likelihood over data has: nats, bits, bits per dimension, standard errors."""

import dataclasses
import math

import numpy as np

__all__ = ["LogLikelihood", "standard_error"]

_BIT = math.log(2)


@dataclasses.dataclass(frozen=True, eq=False)
class LogLikelihood:
    """An estimate of log p(x^0) for each data point, and its mean over them.

    Attributes:
        per_point: shape (n,), nats.
        num_dimensions: numbers in one data point.
    """

    per_point: np.ndarray
    num_dimensions: int

    @property
    def nats(self) -> float:
        """Mean over the data, nats."""
        return float(np.mean(self.per_point, dtype=np.float64))

    @property
    def bits(self) -> float:
        """Mean over the data, bits."""
        return self.nats / _BIT

    @property
    def bits_per_dimension(self) -> float:
        """Mean over the data, bits for each number of a data point."""
        return self.bits / self.num_dimensions

    @property
    def standard_error(self) -> float:
        """Of the mean, over data and draws together, nats; infinite for a single point."""
        return standard_error(self.per_point)

    @property
    def standard_error_bits(self) -> float:
        """Of the mean, over data and draws together, bits."""
        return self.standard_error / _BIT

    @property
    def standard_error_bits_per_dimension(self) -> float:
        """Of the mean, over data and draws together, bits for each number of a data point."""
        return self.standard_error_bits / self.num_dimensions


def standard_error(values: np.ndarray) -> float:
    """Of the mean of independent values; infinite for one value, which says nothing of its spread."""
    if len(values) < 2:
        return math.inf
    return float(np.std(values, ddof=1, dtype=np.float64) / math.sqrt(len(values)))
