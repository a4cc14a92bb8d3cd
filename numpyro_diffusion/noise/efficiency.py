r"""What importance weights are worth: their efficiency, and how little of it is known from draws.

    efficiency = (E w)^2 / E w^2,     ESS / n = (sum w / n)^2 / (sum w^2 / n)

The second estimates the first, and overstates it: the draws that would show a heavy tail are those that are missing. So
the interval sees beyond the draws. The largest weights' excesses over a threshold follow a generalised Pareto
distribution, whose shape k has a standard error of (1 + k) / sqrt(m) from m of them; with the mean excess held, a k two
errors off makes

    E w^2 = body + p (u^2 + 2 u e + 2 e^2 (1 - k) / (1 - 2 k)),     infinite for k >= 1/2.

The interval spans these values and two standard errors of the estimate. On log-normal weights of 0.3 to 2 nats, 500 and
2000 draws, it held the truth in 91 to 99 of 100 runs, where the estimate itself was too large in 50 to 97.

References: Vehtari, Simpson, Gelman, Yao, Gabry 2024, Pareto smoothed importance sampling (k, its tail of 3 sqrt(n)).
"""

import math

import numpy as np

from .._compat import arviz
from .._weights import normalised

__all__ = ["efficiency_interval", "pareto_k"]

_ERRORS = 1.96  # standard errors: an interval of 95%


def pareto_k(log_weights: np.ndarray) -> float:
    """Shape of a generalised Pareto distribution fitted to the largest weights; 0 if all nonzero weights are equal.

    References: Vehtari, Simpson, Gelman, Yao, Gabry 2024.
    """
    return 0.0 if _are_equal(log_weights) else arviz.pareto_k(log_weights.astype(np.float64))


def efficiency_interval(log_weights: np.ndarray) -> tuple[float, float]:
    """Where the efficiency of these weights may lie, each end in [0, 1]: 0 where their variance may be infinite.

    From 0 to 1 for weights so few that their tail has no shape.
    """
    finite = np.isfinite(log_weights)
    if _are_equal(log_weights):
        return (float(finite.mean()),) * 2
    count = len(log_weights)
    k = pareto_k(log_weights)
    if not math.isfinite(k):
        return 0.0, 1.0
    w = np.sort(normalised(np.asarray(log_weights, np.float64)) * count)
    size = math.ceil(min(count / 5, 3 * math.sqrt(count)))
    body, threshold, excess = w[:-size], w[-size - 1], (w[-size:] - w[-size - 1]).mean()
    share = size / count

    def efficiency(k: float) -> float:
        if k >= 0.5:
            return 0.0
        tail = threshold**2 + 2 * threshold * excess + 2 * excess**2 * (1 - k) / (1 - 2 * k)
        return 1 / ((1 - share) * (body**2).mean() + share * tail)

    found = 1 / (w**2).mean()
    error = found * (2 * w - found * w**2).std() / math.sqrt(count)
    off = _ERRORS * (1 + k) / math.sqrt(size)
    low = min(efficiency(k + off), found - _ERRORS * error)
    high = max(efficiency(k - off), found + _ERRORS * error)
    return float(max(low, 0.0)), float(min(high, 1.0))


def _are_equal(log_weights: np.ndarray) -> bool:
    """Whether all nonzero weights are, up to rounding of a sum of many log densities: what is left has no shape."""
    return bool(np.ptp(log_weights[np.isfinite(log_weights)]) < np.sqrt(np.finfo(log_weights.dtype).eps))
