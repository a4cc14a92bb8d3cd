r"""Calibration of an amortised posterior over data sets that its own model simulates, in one call.

The truths and the data sets are draws of the model, so that the ranks of the truths are uniform where the posterior is
right (:func:`~numpyro_diffusion.evaluation.sbc_ranks`). A network is right in this sense on average over the prior, not
for each data set. Corrected draws are those of the model's posterior; where the weights of a data set are not to be
trusted its ``pareto_k`` says so.
"""

import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

from .._checks import check_integer_at_least, expected
from .calibration import rank_uniformity, sbc_ranks

__all__ = ["SimulatedCalibration", "sbc"]


class SimulatedCalibration(NamedTuple):
    """What :func:`sbc` found.

    Attributes:
        ranks: site name -> integers in 0..num_draws, shape (data sets, site shape...).
        num_draws: posterior draws of each data set.
        pareto_k: of each data set, if draws were corrected; else None.
    """

    ranks: dict[str, np.ndarray]
    num_draws: int
    pareto_k: np.ndarray | None

    @property
    def p_values(self) -> dict[str, np.ndarray]:
        """Of uniform ranks, site name -> one for each number of the site, shape (site shape...)."""
        found = {}
        for name, ranks in self.ranks.items():
            flat = ranks.reshape(len(ranks), -1)
            divisors = _bins_of(self.num_draws)
            num_bins = max([bins for bins in divisors if len(ranks) >= 5 * bins], default=divisors[0])
            values = [rank_uniformity(column, self.num_draws, num_bins=num_bins) for column in flat.T]
            found[name] = np.reshape(values, ranks.shape[1:])
        return found


def sbc(
    rng_key: jax.Array,
    amortized: Any,
    *,
    num_data_sets: int = 300,
    num_draws: int = 63,
    corrected: bool = False,
    num_samples: int = 500,
    num_paths: int = 4,
    progress_bar: bool = True,
) -> SimulatedCalibration:
    """Ranks of simulated truths among draws of their posteriors.

    Args:
        rng_key: JAX random key.
        amortized: an :class:`~numpyro_diffusion.infer.AmortizedPosterior`, or what has its ``simulate``,
            ``condition_each`` and ``observed``. With ``missing`` the data sets lack numbers at random as those of the
            training do; simulations of your own that lack others are not imitated.
        num_data_sets: n, at least 10.
        num_draws: m of each; m + 1 has a divisor from 2 to 16, for equal bins of ranks.
        corrected: take draws that importance weights have corrected.
        num_samples: weighted draws of each data set, of which m are kept.
        num_paths: of each weight.
        progress_bar: show one, of corrections.

    Returns:
        Ranks by site, for ``plots.sbc_ranks``, and their p-values.

    Raises:
        ValueError: for numbers that are too small, ``num_draws`` without equal bins, or more of them than
            ``num_samples``, of which they would be copies.

    References: Talts et al. 2018.
    """
    for name, value, least in (("num_data_sets", num_data_sets, 10), ("num_draws", num_draws, 1)):
        check_integer_at_least(name, value, least, "Uniformity is seen in hundreds of data sets.")
    if not _bins_of(num_draws):
        cure = "Take 63, so that ranks fall into 16 equal bins."
        raise ValueError(expected("num_draws + 1 with a divisor from 2 to 16", num_draws + 1, cure))
    if corrected and check_integer_at_least("num_samples", num_samples, 2, "It counts weighted draws.") < num_draws:
        cure = "Copies of a draw have the same rank: weigh more draws, or keep fewer."
        raise ValueError(expected(f"num_samples >= num_draws = {num_draws}", num_samples, cure))
    key_truth, key_draws, key_ties = jax.random.split(rng_key, 3)
    simulated = amortized.simulate(key_truth, num_data_sets, gaps=True)
    posteriors = amortized.condition_each({name: simulated[name] for name in amortized.observed})
    shapes = None
    if corrected:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Expected importance weights of all")  # ``pareto_k`` has them
            found = posteriors.correct(
                key_draws, num_samples=num_samples, num_paths=num_paths, progress_bar=progress_bar
            )
        shapes, draws = (
            found.pareto_k,
            found.get_samples(num_draws, rng_key=jax.random.fold_in(key_draws, num_data_sets)),
        )
    else:
        draws = posteriors.sample(key_draws, num_draws)
    ranks = {name: sbc_ranks(simulated[name], values, rng_key=key_ties) for name, values in draws.items()}
    return SimulatedCalibration(ranks, num_draws, shapes)


def _bins_of(num_draws: int) -> list[int]:
    """Numbers of equal bins of the ranks 0..num_draws."""
    return [bins for bins in range(2, 17) if (num_draws + 1) % bins == 0]
