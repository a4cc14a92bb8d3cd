r"""Fewer steps from the same network: a chain that visits K of the T levels of noise.

With levels 0 = l_0 < l_1 < .. < l_K = T the chain of x^{l_0}, .., x^{l_K} has the whole chain's own forward steps
q(x^{l_k} | x^{l_{k-1}}), in closed form, and the reverse steps

    p(x^{l_{k-1}} | x^{l_k})      the kernel's, from x0hat(x^{l_k}), with the bridge q(x^{l_{k-1}} | x^{l_k}, x^0)

The network is asked at its own step l_k. The variance keeps its meaning between these levels: "lower" and "upper" are
those of the longer steps, "learned" keeps the fraction of the way between them, "denoiser" the variance of x^0. Where
level 1 is kept, p(x^0 | x^1) is that of the whole chain (``Schedule.first_ratio`` is what its lower value needs).

It is *another model*, with an exact density of its path and a bound of its own: a step of p is Gaussian, and
q(x^{l_{k-1}} | x^{l_k}) is less so the longer the step.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._checks import check_integer_at_least, expected, is_concrete
from ..schedules import Schedule

__all__ = ["chosen_levels"]


def chosen_levels(chain: Any, num_steps: int | None, levels: Sequence[int] | None) -> tuple[int, ...]:
    """The levels l_1..l_K that a chain, or the diffusion of one, keeps: as given, or by their number.

    Raises:
        ValueError: for both or none, a number or levels out of range, and a chain whose parameters are stacked.
    """
    if chain._num_stacked:
        raise ValueError(expected("a chain outside of scan to respace", "one stacked by scan", "Respace it before."))
    if (num_steps is None) == (levels is None):
        got = "neither" if levels is None else "both"
        raise ValueError(expected("num_steps or levels", got, "Pass the number of steps that are left."))
    schedule, top = chain.kernel.schedule, chain.kernel.num_steps
    if levels is None:
        num_steps = check_integer_at_least("num_steps", num_steps, 1, "It is the number of steps that are left.")
        if num_steps > top:
            cure = "The network knows no levels between its own."
            raise ValueError(expected(f"num_steps <= T = {top}", num_steps, cure))
        return _even(schedule, num_steps)
    is_row = isinstance(levels, Sequence | np.ndarray)
    whole = is_row and all(isinstance(level, int | np.integer) and not isinstance(level, bool) for level in levels)
    given = (0, *levels) if whole else ()
    if len(given) < 2 or given[-1] != top or any(low >= high for low, high in itertools.pairwise(given)):
        wanted = f"levels as rising integers out of 1..T = {top}, the last of them T"
        raise ValueError(expected(wanted, levels, "Every chain starts from the noise at T."))
    return tuple(int(level) for level in given[1:])


def _even(schedule: Schedule, num_steps: int) -> tuple[int, ...]:
    """Level 1, level T, and the levels nearest to even distances in log SNR, no two the same.

    Where b_T = 1 the log SNR of T is -inf: then T follows on the level below it.
    """
    top = schedule.num_steps
    if num_steps == top:
        return tuple(range(1, top + 1))
    if not is_concrete(schedule.alpha_bar):
        cure = "Pass levels=..., or respace outside of jax.jit."
        raise ValueError(expected("a schedule whose numbers are known", "a traced one", cure))
    if num_steps == 1:
        return (top,)
    # By NumPy: inside of a trace jax.numpy has no values, and a schedule that was made before it has.
    power, noise = np.asarray(schedule.alpha_bar, float), np.asarray(schedule.noise_variance, float)
    with np.errstate(divide="ignore"):
        log_snr = np.log(power) - np.log(noise)
    has_end = not np.isfinite(log_snr[top])
    last, count = (top - 1, num_steps - 1) if has_end else (top, num_steps)
    levels = [0]
    for k, wanted in enumerate(np.linspace(log_snr[1], log_snr[last], count), start=1):
        nearest = 1 + int(np.abs(log_snr[1 : last + 1] - wanted).argmin())
        levels.append(int(np.clip(nearest, levels[-1] + 1, last - (count - k))))
    return (*levels[1:], top) if has_end else tuple(levels[1:])
