r"""Draws of an approximation q, weighted to be draws of the target p, and a diagnosis of the weights.

    w = p(z, y) / q(z),     p(y) = E_q[w],     ESS = (sum of w)^2 / sum of w^2

The estimates converge slowly or not at all when w has a heavy tail. Pareto k-hat, the shape of a generalised Pareto
distribution fitted to the largest weights, shows it: up to 0.7 the estimates can be trusted, above they cannot,
whatever the ESS is. Neither sees a region that q never visits.

References: Vehtari, Simpson, Gelman, Yao, Gabry 2024, Pareto smoothed importance sampling.
"""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_integer_at_least, expected, on_host
from .._typing import Array
from .._weights import effective_size, host_generator, log_mean_and_error, log_mean_exp, systematic
from .efficiency import efficiency_interval, pareto_k

__all__ = ["TRUSTED", "ImportanceResult", "importance_result", "warn_of_weights"]

TRUSTED = 0.7


class ImportanceResult(NamedTuple):
    """Draws of a guide with what they are worth.

    Attributes:
        samples: latent and deterministic sites, each with a leading axis of draws.
        log_weights: log of the model's density over the guide's, in nats, shape (draws,).
        log_evidence: log of the mean weight: an estimate of log p(observations), in nats.
        effective_sample_size: (sum of weights)^2 / (sum of their squares), between 1 and the number of draws.
        pareto_k: shape of the weights' tail. Up to 0.7 the estimates can be trusted, above they cannot.
    """

    samples: dict[str, Array]
    log_weights: Array
    log_evidence: Array
    effective_sample_size: Array
    pareto_k: float

    @property
    def log_evidence_error(self) -> float:
        """The standard error of ``log_evidence``; an understatement where ``pareto_k`` is above 0.5."""
        return float(log_mean_and_error(on_host(self.log_weights))[1])

    @property
    def efficiency_interval(self) -> tuple[float, float]:
        """Where effective draws per draw may lie if many more were made, 95%; 0 where the variance may be infinite."""
        return efficiency_interval(on_host(self.log_weights))

    def get_samples(self, rng_key: jax.Array | None = None, num_samples: int | None = None) -> dict[str, Array]:
        """Draws of equal weight: resampled by weight, with copies of those that weigh much.

        Args:
            rng_key: for the resampling; by default ``jax.random.key(0)``, always the same draws.
            num_samples: how many; by default as many as the guide drew. No more than that is worth having.

        Returns:
            Site name -> (num_samples, site shape...).
        """
        log_weights = on_host(self.log_weights, np.float64)
        count = log_weights.size if num_samples is None else num_samples
        count = check_integer_at_least("num_samples", count, 1, "It is the number of draws.")
        rng = host_generator(jax.random.key(0) if rng_key is None else rng_key)
        chosen = rng.permutation(systematic(rng, log_weights, count))
        return {name: jnp.asarray(value)[chosen] for name, value in self.samples.items()}


def importance_result(samples: dict[str, Array], log_weights: Array, cure: str | None) -> ImportanceResult:
    """What follows from draws and their weights; warns when k-hat is above 0.7.

    Args:
        samples: values of sites, each with a leading axis of draws.
        log_weights: shape (draws,), in nats.
        cure: what the warning advises; None for no warning.

    Raises:
        ValueError: for weights that are NaN, infinite or all zero.
    """
    values = on_host(log_weights)
    _check_weights(values)
    result = ImportanceResult(
        samples, log_weights, log_mean_exp(log_weights), effective_size(log_weights), pareto_k(values)
    )
    if cure is not None:
        warn_of_weights(result, cure)
    return result


def warn_of_weights(result: ImportanceResult, cure: str) -> None:
    """Warn where k-hat is above 0.7."""
    if result.pareto_k > TRUSTED:
        warnings.warn(
            expected(
                f"Pareto k-hat <= {TRUSTED} of the importance weights",
                f"{result.pareto_k:.2f}, effective sample size {float(result.effective_sample_size):.1f} "
                f"of {result.log_weights.size}",
                f"The posterior has mass where draws are rare; trust none of these figures: {cure}.",
            ),
            stacklevel=4,
        )


def _check_weights(values: np.ndarray) -> None:
    """Raise for weights from which nothing follows."""
    if np.isnan(values).any() or np.isposinf(values).any():
        raise ValueError(
            expected(
                "log weights that are numbers",
                f"{int((np.isnan(values) | np.isposinf(values)).sum())} NaN or +inf of {values.size}",
                "Look for parameters that diverged in training, or a likelihood that is NaN at draws of the guide.",
            )
        )
    if np.isneginf(values).all():
        raise ValueError(
            expected(
                "a draw of the guide at which the model's density is not 0",
                f"none of {values.size}",
                "The likelihood excludes all of them: soften it, or train with another optimiser or start.",
            )
        )
