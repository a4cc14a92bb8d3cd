"""How good a prior is on rows that it has not seen, beside simple densities of the same rows."""

from typing import Any, NamedTuple

import jax
import numpy as np

from ..evaluation import LogLikelihood, TwoSampleTest, bound, classifier_two_sample_test, importance_weighted
from ..networks import GaussianSkipUNet
from .baselines import baseline_log_densities
from .columns import FINEST
from .coordinates import log_volume
from .look import Data, Space
from .report import Tails
from .rows import resample
from .stretches import spread
from .train import Trained

__all__ = ["Scores", "afterthoughts", "score"]

_DRAWS, _IMAGE_DRAWS = 1000, 128  # for the tails and the two-sample test
_MOST_ROWS = 100_000  # whose quantiles are taken
_FEWEST_TO_TEST = 80  # with fewer, scikit-learn has less than one batch


class Scores(NamedTuple):
    """What the report shows of the scored rows; ``effective`` is the mean effective number of paths."""

    prior: LogLikelihood
    baselines: dict[str, LogLikelihood]
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
    return Scores(prior, baselines, _two_sample(key_test, space.noisy(rows), draws), tails, effective)


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


def afterthoughts(found: Data, trained: Trained, scored: Scores, scored_on: str) -> list[str]:
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
        if difference.nats < -2 * difference.standard_error:
            told.append(f"worse than {name} by {-difference.nats:.3g} nats a row ({difference.standard_error:.2g})")
    if scored.effective < 2:
        told.append("log likelihoods rest on single paths: they are too low; raise num_trajectories")
    return told


def _baselines(
    found: Data, space: Space, fitted: np.ndarray, rows: np.ndarray, volume: np.ndarray, rng: Any
) -> dict[str, np.ndarray]:
    """Log densities of the scored rows by baseline."""
    if space.plan.kernel.is_discrete:
        ones, others = (found.values[some].reshape(len(some), -1) for some in (fitted, rows))
        rate = (found.weights[fitted] @ ones + 0.5) / (found.weights[fitted].sum() + 1)
        return {"independent product": np.log(np.where(others == 1, rate, 1 - rate)).sum(1)}
    z = space.z(rows).reshape(len(rows), -1)
    first = space.plan.network
    ends = (first.mean, first.scale) if isinstance(first, GaussianSkipUNet) else (0.0, 1.0)
    start = {"the Gaussian it starts from": _log_normal(z, *map(np.asarray, ends)) - volume}
    if space.coordinates is None:
        flat = space.z(fitted).reshape(len(fitted), -1)
        normal = _log_normal(z, flat.mean(0), np.maximum(flat.std(0), FINEST))
        return {**start, "independent product": normal - volume}
    (learned, _), (scored, log_det) = (space.coordinates.comparable(space.noisy(some)) for some in (fitted, rows))
    densities = baseline_log_densities(learned, found.weights[fitted], scored, rng=rng)
    return {**start, **{name: values + log_det for name, values in densities.items()}}


def _log_normal(z: np.ndarray, loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Under independent coordinates, shape (n,)."""
    return (-0.5 * (((z - loc) / scale) ** 2 + np.log(2 * np.pi)) - np.log(scale)).sum(1)
