"""What a learned density is compared with in ``density.py``: each takes training rows and answers for test rows.

Rows are standardised by the training rows' means and deviations before any of them sees them.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

__all__ = ["FLOWS", "Fitted", "TrainedFlow", "flow", "gaussian", "kernel_density", "mixture", "train_flow"]

_MAX_COMPONENTS = 8


class Fitted(NamedTuple):
    """Test rows' log densities in nats, and the seconds that training took."""

    log_density: np.ndarray
    seconds: float


def gaussian(train: np.ndarray, test: np.ndarray) -> Fitted:
    """One Gaussian, mean and covariance of the training rows."""
    start = time.perf_counter()
    factor = np.linalg.cholesky(np.cov(train.T, bias=True).reshape(train.shape[1], -1))
    noise = np.linalg.solve(factor, (test - train.mean(0)).T)
    log_density = -0.5 * (noise**2).sum(0) - np.log(np.diag(factor)).sum() - 0.5 * len(factor) * np.log(2 * np.pi)
    return Fitted(log_density, time.perf_counter() - start)


def mixture(train: np.ndarray, test: np.ndarray) -> Fitted:
    """Gaussians with full covariances, as many as the Bayesian information criterion says."""
    from sklearn.mixture import GaussianMixture

    start = time.perf_counter()
    largest = max(1, min(_MAX_COMPONENTS, len(train) // (2 * train.shape[1])))
    models = [GaussianMixture(k, n_init=3, random_state=0).fit(train) for k in range(1, largest + 1)]
    best = min(models, key=lambda model: model.bic(train))
    return Fitted(best.score_samples(test), time.perf_counter() - start)


def kernel_density(train: np.ndarray, test: np.ndarray) -> Fitted:
    """A Gaussian kernel in whitened coordinates, its width by five-fold cross-validation."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KernelDensity

    start = time.perf_counter()
    factor = np.linalg.cholesky(np.cov(train.T, bias=True).reshape(train.shape[1], -1))
    white_train, white_test = (np.linalg.solve(factor, rows.T).T for rows in (train, test))
    widths = {"bandwidth": np.geomspace(0.05, 2.0, 20)}
    model = GridSearchCV(KernelDensity(), widths, cv=5).fit(white_train).best_estimator_
    log_density = model.score_samples(white_test) - np.log(np.diag(factor)).sum()
    return Fitted(log_density, time.perf_counter() - start)


def _affine(key: Any, dim: int, dist: Any, flows: Any) -> Any:
    """Masked autoregressive flow."""
    return flows.masked_autoregressive_flow(key, base_dist=dist)


def _spline(key: Any, dim: int, dist: Any, flows: Any) -> Any:
    """Neural spline flow: rational quadratic splines in coupling layers, autoregressive for one column."""
    from flowjax.bijections import RationalQuadraticSpline

    spline = RationalQuadraticSpline(knots=8, interval=4)
    make = flows.masked_autoregressive_flow if dim == 1 else flows.coupling_flow
    return make(key, base_dist=dist, transformer=spline)


FLOWS: dict[str, Callable] = {"maf": _affine, "nsf": _spline}


class TrainedFlow(NamedTuple):
    """FlowJAX's distribution, and the seconds that training took."""

    model: Any
    seconds: float


def train_flow(name: str, train: np.ndarray, seed: int, seconds: float | None = None) -> TrainedFlow:
    """FlowJAX with its own settings: Adam at 5e-4, batches of 100, a tenth for validation, the best epoch returned.

    Args:
        name: of ``FLOWS``.
        train: rows.
        seed: of weights and batches.
        seconds: epochs until they are over, compiling included, whatever the validation loss says meanwhile; None for
            the end by its patience of five epochs.
    """
    import jax
    import jax.numpy as jnp
    from flowjax import flows
    from flowjax.distributions import Normal
    from flowjax.train import fit_to_data, loops

    key_init, key = jax.random.split(jax.random.key(seed))
    dim = train.shape[1]
    start_model = FLOWS[name](key_init, dim, Normal(jnp.zeros(dim)), flows)
    data = jnp.asarray(train, jnp.float32)

    start = time.perf_counter()

    def fruitless(losses: list[float]) -> float:
        """Epochs since the best one, as theirs, which compiles an argmin anew for every number of epochs."""
        if seconds is not None:
            return float("inf") if time.perf_counter() - start > seconds else 0
        return len(losses) - int(np.argmin(losses)) - 1

    with mock.patch.object(loops, "count_fruitless", fruitless):
        model, _ = fit_to_data(
            key,
            start_model,
            data,
            max_epochs=1000 if seconds is None else 10**6,
            max_patience=5,
            batch_size=min(100, int(0.9 * len(train))),
            show_progress=False,
        )
    return TrainedFlow(model, time.perf_counter() - start)


def flow(name: str, train: np.ndarray, test: np.ndarray, seed: int, seconds: float | None = None) -> Fitted:
    """Of test rows by a flow; arguments as for :func:`train_flow`."""
    import jax.numpy as jnp

    trained = train_flow(name, train, seed, seconds)
    return Fitted(np.asarray(trained.model.log_prob(jnp.asarray(test, jnp.float32)), float), trained.seconds)
