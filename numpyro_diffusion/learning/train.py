r"""Training until the validation rows stop improving, and never to something worse than the start.

The network's parameters are those with the least validation loss, averaged over the last steps. Its residual is then
multiplied by one of 0, 1/4, 1/2, 3/4, 1: the one with the largest bound K of the validation rows, all steps and the
same noise for each. With 0 the prior is the Gaussian that it started from.
"""

import warnings
from typing import Any, NamedTuple

import jax
import numpy as np
import numpyro

from .. import evaluation, networks
from .._typing import PyTree
from ..data_scale import check_data_erased
from ..diffusion import Diffusion
from ..modules import haiku_module
from ..training import DivergenceError, FitResult, Validation, fit
from ..transition import Transition
from .plan import Plan
from .stretches import spread

__all__ = ["OPTIMIZER_CODE", "Trained", "default_optimizer", "model_of", "repeats_of", "train"]

OPTIMIZER_CODE = "optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=1e-3))"

_FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Draws of a random step that a validation loss is of, at least: rows are repeated to have as many.
_VALIDATION_DRAWS = 2048
_IMAGE_DRAWS = 256
_BOUND_DRAWS = 4
_BOUND_IMAGES = 256  # one draw each: a bound is the mean of every step
_MOST_JUDGED = 10_000  # rows, of whether the last step erases them


class Trained(NamedTuple):
    """What came out.

    Attributes:
        prior: in whitened coordinates.
        result: of ``fit``.
        residual: the factor of the network's residual; 1 for a network that is none of :class:`~.networks.GaussianSkip`
            and :class:`~.networks.GaussianSkipUNet`.
        warnings: in words.
    """

    prior: Diffusion
    result: FitResult
    residual: float
    warnings: tuple[str, ...]


def default_optimizer() -> Any:
    """What ``OPTIMIZER_CODE`` says."""
    import optax  # slow to import

    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=1e-3))


def model_of(plan: Plan, event_shape: tuple[int, ...]) -> Any:
    """The model to train: rows of whitened coordinates, observed."""

    def model(batch: Any, size: int) -> None:
        transition = haiku_module("net", plan.network, kernel=plan.kernel, event_shape=event_shape)
        with numpyro.plate("rows", size, subsample_size=len(batch)):
            numpyro.sample("x", Diffusion(plan.kernel, transition), obs=batch)

    return model


def train(
    plan: Plan,
    rows: Any,
    validation: np.ndarray,
    *,
    rng_key: jax.Array,
    optimizer: Any,
    max_steps: int,
    batch_size: int,
    every: int,
    patience: int,
    ema_decay: float,
    progress_bar: bool,
) -> Trained:
    """Train a plan on rows in its kernel's units, shape (n, event...), an array or a reader."""
    told: list[str] = []
    event_shape = tuple(rows.shape[1:])
    check_data_erased(plan.kernel, rows[spread(len(rows), _MOST_JUDGED)])
    repeated = np.concatenate([validation] * repeats_of(len(validation), event_shape))
    key_fit, key_bound = jax.random.split(rng_key)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Expected sqrt\(abar_T\)")  # said above, of all rows
        try:
            result = fit(
                model_of(plan, event_shape),
                rows,
                optimizer=optimizer,
                num_steps=max_steps,
                batch_size=min(batch_size, len(rows)),
                rng_key=key_fit,
                ema_decay=ema_decay,
                validation=Validation(repeated, every=every, patience=patience),
                progress_bar=progress_bar,
            )
        except DivergenceError as error:
            result = error.result
            is_judged = bool(np.isfinite(result.validation_losses).any())
            if not (is_judged or _starts_somewhere(plan)):
                raise  # nothing was reached that could be a prior
            told.append(f"training diverged and was stopped: {error}")
    prior: Any = result.distribution("x")
    residual = 1.0
    if _starts_somewhere(plan):
        prior, residual = _with_best_residual(prior, validation, key_bound)
    return Trained(prior, result, residual, tuple(told))


def _starts_somewhere(plan: Plan) -> bool:
    """Whether the network is a Gaussian's denoiser and a residual."""
    return isinstance(plan.network, networks.GaussianSkip | networks.GaussianSkipUNet)


def repeats_of(count: int, event_shape: tuple[int, ...]) -> int:
    """How often validation rows are repeated."""
    return max(1, -(-(_VALIDATION_DRAWS if len(event_shape) == 1 else _IMAGE_DRAWS) // count))


def scaled(prior: Diffusion, factor: float) -> Diffusion:
    """A prior whose network's last layer is multiplied by a number."""
    params: PyTree = prior.transition.params
    last = jax.tree.map(lambda array: factor * array, params["output"])
    function, event_shape = prior.transition.function, prior.transition.event_shape
    return Diffusion(prior.kernel, Transition(function, {**params, "output": last}, event_shape))


def _with_best_residual(prior: Diffusion, validation: np.ndarray, key: jax.Array) -> tuple[Diffusion, float]:
    candidates = [scaled(prior, factor) for factor in _FACTORS]
    rows, draws = (validation, _BOUND_DRAWS) if validation.ndim == 2 else (validation[:_BOUND_IMAGES], 1)
    bounds = [evaluation.bound(key, one, rows, num_draws=draws).nats for one in candidates]
    best = int(np.argmax(bounds))
    return candidates[best], _FACTORS[best]
