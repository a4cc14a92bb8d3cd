"""How good a prior is on rows that it has not seen, beside simple densities of the same rows."""

from typing import Any, NamedTuple

import jax
import numpy as np

from ..evaluation import LogLikelihood, TwoSampleTest, bound, classifier_two_sample_test, importance_weighted
from ..networks import GaussianSkipUNet
from .baselines import baseline_log_densities
from .columns import FINEST
from .coordinates import log_volume
from .gaussians import fit_gaussian
from .look import Data, Space
from .report import Tails
from .rows import resample
from .stretches import spread
from .train import Trained

__all__ = ["Scores", "afterthoughts", "score"]

_DRAWS, _IMAGE_DRAWS = 1000, 128  # for the tails and the two-sample test
_MOST_ROWS = 100_000  # whose quantiles are taken
_MOST_PIXELS = 256  # for a Gaussian with all of their correlations: its seconds grow with the cube
_SAME = 1e-3  # nats a row: less is the rounding of two sums
_FEWEST_TO_TEST = 80  # with fewer, scikit-learn has less than one batch


class Scores(NamedTuple):
    """What the report shows of the scored rows; ``effective`` is the mean effective number of paths."""

    prior: LogLikelihood
    baselines: dict[str, LogLikelihood]
    integers: LogLikelihood | None
    two_sample: TwoSampleTest | None
    tails: Tails
    effective: float


def score(
    key: jax.Array,
    found: Data,
    space: Space,
    trained: Trained,
    distribution: Any,
    fitted: np.ndarray,
    rows: np.ndarray,
    num_trajectories: int,
    rng: Any,
) -> Scores:
    """The scored rows under the prior and under the baselines, and draws beside them."""
    key_weights, key_draws, key_test = jax.random.split(key, 3)
    z = np.asarray(space.to_train(rows))
    volume = log_volume(space.transforms, z) if space.transforms else np.zeros(len(z))
    size = max(1, int(np.prod(distribution.event_shape)))
    effective = np.inf
    if z.ndim == 4:  # a bound: paths of images weigh too differently
        per_point = bound(key_weights, trained.prior, z, num_draws=1).per_point
    else:
        weighted = importance_weighted(key_weights, trained.prior, z, num_trajectories=num_trajectories)
        per_point, effective = weighted.per_point, float(weighted.effective_sample_size.mean())
    prior = LogLikelihood(per_point - volume, size)
    baselines = {
        name: LogLikelihood(v, size) for name, v in _baselines(found, space, fitted, rows, volume, rng).items()
    }
    count = _DRAWS if z.ndim == 2 else _IMAGE_DRAWS
    draws = np.asarray(jax.jit(lambda key: distribution.sample(key, (count,)))(key_draws), np.float64)
    some = resample(spread(len(found.values), _MOST_ROWS), found.weights, rng=rng)
    tails = _tails(found.names, space.noisy(some).reshape(len(some), -1), draws.reshape(count, -1))
    integers = _of_integers(prior, found, space)
    return Scores(prior, baselines, integers, _two_sample(key_test, space.noisy(rows), draws), tails, effective)


def _of_integers(prior: LogLikelihood, found: Data, space: Space) -> LogLikelihood | None:
    """Log P(k) >= log p(k + u) and the log of the bins' widths, with one draw of u that fills the bin."""
    if space.plan.kernel.is_discrete:
        return prior
    steps = [column.step for column in found.columns if column.kind != "constant"]
    if min(steps) <= 0:
        return None
    repeats = prior.num_dimensions if found.values.ndim == 4 else 1  # all pixels are one column
    return LogLikelihood(prior.per_point + repeats * np.log(steps).sum(), prior.num_dimensions)


def _tails(names: tuple[str, ...], values: np.ndarray, draws: np.ndarray) -> Tails:
    varies = np.ptp(values, axis=0) > 0
    low, high = np.quantile(values, (0.01, 0.99), axis=0)
    beyond = ((draws < low) | (draws > high)).mean(0)
    return Tails(beyond[varies], tuple(name for name, moves in zip(names, varies, strict=False) if moves))


def _two_sample(key: jax.Array, rows: np.ndarray, draws: np.ndarray) -> TwoSampleTest | None:
    if min(len(rows), len(draws)) < _FEWEST_TO_TEST:
        return None
    try:
        return classifier_two_sample_test(key, rows, draws)
    except ImportError:  # without scikit-learn
        return None


def afterthoughts(trained: Trained, scored: Scores, scored_on: str) -> list[str]:
    """What the run itself says."""
    told = []
    losses = trained.result.validation_losses
    if trained.residual == 0:
        told.append("the network found nothing on the validation rows that the Gaussian lacks: the Gaussian is kept")
    elif len(losses) > 1 and losses[-1] - losses.min() > 0.5:
        rise = losses[-1] - losses.min()
        told.append(f"too few rows for the network: it overfits; {rise:.2g} nats after the best step, which is kept")
    if scored_on == "validation":
        told.append("scored on the validation rows, which have had a part in the prior: pass test= for an honest score")
    for name, values in scored.baselines.items():
        difference = LogLikelihood(scored.prior.per_point - values.per_point, 1)
        if difference.nats < -max(2 * difference.standard_error, _SAME):
            told.append(f"worse than {name} by {-difference.nats:.3g} nats a row ({difference.standard_error:.2g})")
    if scored.effective < 2:
        told.append("log likelihoods rest on single paths: they are too low; raise num_trajectories")
    return told


def _baselines(
    found: Data, space: Space, fitted: np.ndarray, rows: np.ndarray, volume: np.ndarray, rng: Any
) -> dict[str, np.ndarray]:
    """Log densities of the scored rows by baseline."""
    weights = found.weights[fitted]
    if space.plan.kernel.is_discrete:
        states, others = (found.values[some].reshape(len(some), -1).astype(int) for some in (fitted, rows))
        return {"independent product": _log_frequencies(states, weights, others)}
    z = space.z(rows).reshape(len(rows), -1)
    first = space.plan.network
    ends = (first.mean, first.scale) if isinstance(first, GaussianSkipUNet) else (0.0, 1.0)
    start = {"the Gaussian it starts from": _log_normal(z, *map(np.asarray, ends)) - volume}
    if space.coordinates is None:
        flat = space.z(fitted).reshape(len(fitted), -1)
        mean = weights @ flat / weights.sum()
        scale = np.sqrt(weights @ (flat - mean) ** 2 / weights.sum())
        independent = _log_normal(z, mean, np.maximum(scale, FINEST))
        if z.shape[1] <= _MOST_PIXELS and (scale > 0).all():
            start["one Gaussian"] = fit_gaussian(flat, weights, rng=rng).log_prob(z) - volume
        return {**start, "independent product": independent - volume}
    (learned, _), (scored, log_det) = (space.coordinates.comparable(space.noisy(some)) for some in (fitted, rows))
    densities = baseline_log_densities(learned, weights, scored, rng=rng)
    return {**start, **{name: values + log_det for name, values in densities.items()}}


def _log_frequencies(states: np.ndarray, weights: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of independent states, each half a row more often than it was seen (Krichevsky), shape (n,)."""
    count = 1 + max(1, int(states.max()), int(others.max()))
    seen = np.stack([weights @ (states == state) for state in range(count)])
    share = (seen + 0.5) / (weights.sum() + 0.5 * count)
    return np.log(np.take_along_axis(share, others, axis=0)).sum(1)


def _log_normal(z: np.ndarray, loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Under independent coordinates, shape (n,)."""
    return (-0.5 * (((z - loc) / scale) ** 2 + np.log(2 * np.pi)) - np.log(scale)).sum(1)
