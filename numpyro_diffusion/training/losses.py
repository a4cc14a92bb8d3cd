r"""The losses of a run, and whether it diverged.

Let m be the median and r the range (largest less smallest) of the losses in a window of 100 steps, or of a quarter of
the run where that is fewer. The best window of a run is the one with the least m. A run

- has *diverged* when the median of its last 5 losses is more than 10 (r + |m| + 1) nats above the best m, or more than
  10^4 (|l_0| + 1) above its first loss l_0: ten times the noise of a batch and ten times the loss itself;
- is *suspicious* when it has at least 40 steps and its last window's m is more than 2 r + (|m| + 1) / 10 above the
  best.

A run is *lost* when it has diverged and each of its last 500 losses is more than 10^4 (|l_0| + 1) above l_0: it has had
time to come back. It is not gone on with.

- is *flat* when it has at least 40 steps, its first window's m is no more than r / 10 above the last one's, three
  standard errors of the difference of two medians of 100 normal losses, and the median of its first 5 losses no more
  than r / 2, as many of one of 5: what falls at once is not flat.

Where held-out data choose the parameters, their least loss stands for the last 5, and nothing is suspicious. Medians
do not see single large losses, which random estimates of a bound have. A run of fewer than 20 steps has no windows:
only its last loss is compared with its first.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["Losses"]

_WINDOW = 100
_LAST = 5
_LOST = 500  # steps; an excursion that comes back is shorter
_ABSURD = 1e4  # times the first loss
_FEWEST_STEPS = 20  # windows of 5
_FEWEST_TO_WARN = 40  # windows of 10, whose range is hardly ever small by chance


class _Windows(NamedTuple):
    best: float  # the least median
    range: float  # of that window
    first: float  # the first window's median
    last: float  # the last window's


class Losses(NamedTuple):
    """What is known of a run in numbers, all in nats per row.

    Attributes:
        steps: the loss of every step.
        validation_steps: after how many steps held-out data were looked at.
        validation: the loss of them.
    """

    steps: list[float]
    validation_steps: list[int]
    validation: list[float]

    def arrays(self) -> dict[str, np.ndarray]:
        """By name, for a checkpoint or a result."""
        return {
            "steps": np.asarray(self.steps, np.float32),
            "validation_steps": np.asarray(self.validation_steps, np.int64),
            "validation": np.asarray(self.validation, np.float64),
        }

    def end(self) -> float:
        """The loss of the parameters that would be returned now."""
        if self.validation:
            return min(self.validation)
        return self.steps[-1] if len(self.steps) < _FEWEST_STEPS else float(np.median(self.steps[-_LAST:]))

    def best(self) -> float:
        """The least median of a window, or the least loss where there are no windows."""
        return min(self.steps) if len(self.steps) < _FEWEST_STEPS else _windows(self.steps).best

    def has_diverged(self) -> bool:
        """Whether no sound run ends so."""
        end, first = self.end(), self.steps[0]
        if end - first > _ABSURD * (abs(first) + 1):
            return True
        if len(self.steps) < _FEWEST_STEPS:
            return False
        windows = _windows(self.steps)
        return end - windows.best > 10 * (windows.range + abs(windows.best) + 1)

    def is_lost(self) -> bool:
        """Whether the run has diverged for so long that it will not come back."""
        if len(self.steps) <= _LOST:
            return False
        first = self.steps[0]
        return min(self.steps[-_LOST:]) - first > _ABSURD * (abs(first) + 1) and self.has_diverged()

    def is_suspicious(self) -> bool:
        """Whether the run ends well above its best."""
        if self.validation or len(self.steps) < _FEWEST_TO_WARN:
            return False
        windows = _windows(self.steps)
        return windows.last - windows.best > 2 * windows.range + 0.1 * (abs(windows.best) + 1)

    @property
    def fewest_to_judge(self) -> int:
        """Steps, below which nothing is flat or suspicious."""
        return _FEWEST_TO_WARN

    def first_and_last(self) -> tuple[float, float]:
        """The medians of the first 5 losses and of the last window."""
        return float(np.median(self.steps[:_LAST])), _windows(self.steps).last

    def is_flat(self) -> bool:
        """Whether the loss did not fall, as far as its noise lets one see."""
        if len(self.steps) < _FEWEST_TO_WARN:
            return False
        windows, start = _windows(self.steps), float(np.median(self.steps[:_LAST]))
        return windows.first - windows.last <= 0.1 * windows.range and start - windows.last <= 0.5 * windows.range


def _windows(steps: list[float]) -> _Windows:
    width = min(_WINDOW, len(steps) // 4)
    windows = np.asarray(steps[len(steps) % width :], np.float64).reshape(-1, width)
    medians = np.median(windows, axis=1)
    best = int(np.argmin(medians))
    return _Windows(float(medians[best]), float(np.ptp(windows[best])), float(medians[0]), float(medians[-1]))
