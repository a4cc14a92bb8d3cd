"""How good a prior is on rows that it has not seen, beside simple densities of the same rows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..evaluation import LogLikelihood, TwoSampleTest, bound, classifier_two_sample_test, importance_weighted
from .baselines import baseline_log_densities
from .coordinates import log_volume
from .look import Data, Space
from .report import Tails
from .rows import resample
from .train import Trained

__all__ = ["Scores", "afterthoughts", "score"]

_DRAWS, _IMAGE_DRAWS = 1000, 64  # for the tails
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
    z = space.z[rows].astype(np.int32 if space.plan.kernel.is_discrete else jnp.result_type(float))
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
    tails = _tails(
        found, space.rows, draws.reshape(count, -1), resample(np.arange(len(found.values)), found.weights, rng=rng)
    )
    return Scores(prior, baselines, _two_sample(key_test, space.rows[rows], draws), tails, effective)


def _tails(found: Data, noisy: np.ndarray, draws: np.ndarray, rows: np.ndarray) -> Tails:
    values = noisy.reshape(len(noisy), -1)
    varies = np.ptp(values, axis=0) > 0
    low, high = np.quantile(values[rows], (0.01, 0.99), axis=0)
    beyond = ((draws < low) | (draws > high)).mean(0)
    return Tails(beyond[varies], tuple(name for name, moves in zip(found.names, varies, strict=False) if moves))


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
        rate = (found.weights[fitted] @ found.values[fitted] + 0.5) / (found.weights[fitted].sum() + 1)
        return {"independent product": np.log(np.where(found.values[rows] == 1, rate, 1 - rate)).sum(1)}
    if space.coordinates is None:
        flat = space.z.reshape(len(space.z), -1)
        loc, scale = flat[fitted].mean(0), np.maximum(flat[fitted].std(0), 0.01)
        normal = -0.5 * (((flat[rows] - loc) / scale) ** 2 + np.log(2 * np.pi)).sum(1) - np.log(scale).sum()
        return {"independent product": normal - volume}
    z = space.z[rows]
    start = -0.5 * (z**2 + np.log(2 * np.pi)).sum(1) - volume
    comparable, log_det = space.coordinates.comparable(space.rows)
    densities = baseline_log_densities(comparable[fitted], found.weights[fitted], comparable[rows], rng=rng)
    shifted = {name: values + log_det[rows] for name, values in densities.items()}
    return {"the Gaussian it starts from": start, **shifted}
