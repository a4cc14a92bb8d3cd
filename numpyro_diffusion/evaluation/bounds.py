r"""The bound K of data, term by term.

    K = prior term + sum over t of the step terms,
    prior term        -KL(q(x^T | x^0) || pi)
    step term 1       E_q log p(x^0 | x^1)
    step term t       -E_q KL(q(x^{t-1} | x^t, x^0) || p(x^{t-1} | x^t)),   t = 2..T                     (Eq. 13)

Every step is visited, so that the only noise is that of x^t, ``num_draws`` of it at each step. The paper compares K
with L_null = E[log pi(x^0)]: the log density of the data under the distribution that the forward chain ends in, an
isotropic Gaussian or independent bits. For data normalised as the paper's this is minus the entropy of pi.

The paper's own form (Eq. 14) sets the last reverse step to the forward kernel with b_1 and drops cross entropies that
cancel if and only if E[-log pi(x^0)] is the entropy of pi. For other data it is wrong by

    (abar_1 - abar_T) (E[-log pi(x^0)] - H_pi)   nats,

which is measured on the data, and refused when it is not small.

References: Sohl-Dickstein et al. 2015, Eq. 12-14, Appendix B and Table 1.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_choice, check_integer_at_least, expected
from .._typing import Array, ArrayLike
from ..chains import ReverseChain
from ..data_scale import check_data_erased
from ..diffusion import Diffusion
from ..estimates.terms import draw_state, paper_end_terms, prior_term, score_step
from ..kernels import Kernel
from ._chunks import Chunk, Model, Moments, chunks, moments_over_points, over_points, point_keys, states_of
from .results import LogLikelihood, standard_error

__all__ = ["Bound", "bound"]

Form = Literal["exact", "paper"]
# What Eq. 14 may be wrong by through the data's moments, in nats for each dimension: a hundredth of a bit.
_TOLERANCE = 0.007


@dataclasses.dataclass(frozen=True, eq=False)
class Bound(LogLikelihood):
    """The bound K over data.

    Attributes:
        per_point: K of each point, mean over the draws, shape (n,), nats.
        num_dimensions: numbers in one data point.
        prior_term: mean of -KL(q(x^T | x^0) || pi), nats.
        step_terms: mean term of step t at index t - 1, shape (T,), nats.
        step_standard_errors: of the step terms, over data and draws, shape (T,), nats.
        draws_standard_error: the part of ``standard_error`` that more draws would remove, nats; infinite for one draw.
        null_per_point: log pi(x^0) of each point, shape (n,), nats.
        jacobian_term: mean of -log |det dx/ds| of a transformed model, nats: it is part of ``per_point`` and of
            ``null_per_point``. 0 without transforms. ``nats`` is it and the other terms.
    """

    prior_term: float
    step_terms: np.ndarray
    step_standard_errors: np.ndarray
    draws_standard_error: float
    null_per_point: np.ndarray
    jacobian_term: float = 0.0

    @property
    def null(self) -> LogLikelihood:
        """L_null: the data under the stationary distribution pi, an isotropic Gaussian or independent bits."""
        return LogLikelihood(self.null_per_point, self.num_dimensions)

    @property
    def above_null(self) -> LogLikelihood:
        """K - L_null, point by point."""
        return LogLikelihood(self.per_point - self.null_per_point, self.num_dimensions)


def bound(
    rng_key: jax.Array,
    model: Model,
    x: ArrayLike,
    *,
    num_draws: int = 2,
    form: Form = "exact",
    chunk_size: int = 512,
) -> Bound:
    """The bound K of data with every step: ``num_draws`` * T network calls a point.

    Memory does not grow with T or with the number of points.

    Args:
        rng_key: JAX random key.
        model: parameters bound; a context for all points or one for each. Of a ``TransformedDistribution`` of a
            diffusion the nats are those of the data, Jacobian included, and the terms those of its states. An event
            of several states (``to_event``) has the sum of theirs.
        x: data, shape (n, event...).
        num_draws: draws of x^t at each step; two or more tell the noise of the draws from that of the data.
        form: ``"exact"`` (Eq. 13, any data), or ``"paper"`` (Eq. 14, for normalised data; ``step_terms[0]`` is then
            -H_q(X^1 | X^0) and ``prior_term`` is H_q(X^T | X^0) - H_pi).
        chunk_size: draws that are in memory at once.

    Raises:
        ValueError: for data that do not match or lie outside of the support; for ``"paper"`` with data that are not
            normalised.

    Warns:
        UserWarning: where the kernel's last step still shows the data: K then is far below the evidence.

    >>> from numpyro_diffusion import GaussianKernel, Transition, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper")
    >>> model = Diffusion(kernel, Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(2,)))
    >>> K = bound(jax.random.key(0), model, jnp.ones((5, 2)))
    >>> K.step_terms.shape, K.bits > K.null.bits - 10
    ((20,), True)

    References: Sohl-Dickstein et al. 2015, Eq. 13 and 14.
    """
    points = states_of(model, x)
    inner, states = points.model, points.states
    check_integer_at_least("num_draws", num_draws, 1, "Take 1 or more draws of x^t at each step.")
    check_integer_at_least("chunk_size", chunk_size, 1, "It counts draws that are in memory.")
    check_choice("form", form, Form)
    check_data_erased(inner.kernel, states)
    if form == "paper":
        _check_normalised(inner, states)
    steps, prior = Moments(), Moments()
    totals, nulls = [], []
    for chunk in chunks(points, max(1, chunk_size // num_draws)):
        values = _chunk(chunk, rng_key, num_draws, form, points.group)
        total, null, prior_moments, step_moments = jax.device_get(values)
        totals.append(total[: chunk.size])
        nulls.append(null[: chunk.size])
        prior.add(chunk.size // points.group, *prior_moments)
        steps.add(chunk.size // points.group, *step_moments)
    total = points.of_points(np.concatenate(totals))
    noise = total.var(1, ddof=1) / num_draws if num_draws > 1 else np.full(len(total), np.inf)
    return Bound(
        per_point=total.mean(1) + points.log_det,
        num_dimensions=points.num_dimensions,
        prior_term=float(prior.mean),
        step_terms=steps.mean,
        step_standard_errors=steps.standard_error,
        draws_standard_error=float(np.sqrt(noise.sum()) / len(total)),
        null_per_point=points.of_points(np.concatenate(nulls)) + points.log_det,
        jacobian_term=float(points.log_det.mean()),
    )


@functools.partial(jax.jit, static_argnames=("num_draws", "form", "group"))
def _chunk(
    chunk: Chunk, key: jax.Array, num_draws: int, form: Form, group: int
) -> tuple[Array, Array, tuple[Array, Array], tuple[Array, Array]]:
    """K (size, draws), log pi(x^0) (size,), and over the points the moments of the prior term and of the steps (T,)."""
    keys = point_keys(key, chunk, num_draws)
    num_steps = chunk.chain.num_steps
    null = _log_stationary(chunk.chain.kernel, chunk.x)
    if form == "exact":
        prior, edge, first = prior_term(chunk.chain, chunk.x), None, 1
    else:
        prior, edge = paper_end_terms(chunk.chain, chunk.x)
        first = 2

    def draw(t: Array | int) -> Array:
        t = jnp.asarray(t)
        return over_points(lambda chain, x_0, key: draw_state(jax.random.fold_in(key, t), chain, x_0, t), chunk, keys)

    def step(carry: tuple[Array, Array], t: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        total, x_t = carry
        terms = over_points(lambda chain, x_0, x_t: score_step(chain, x_0, x_t, t), chunk, x_t)
        # Drawn one step ahead and carried, the noise is made once; else XLA makes it anew for each of the features
        # that the network's first layer takes of it.
        ahead = draw(jnp.minimum(t + 1, num_steps))
        return (total + terms, ahead), moments_over_points(terms.mean(1), chunk, group)

    start = jnp.zeros(keys.shape, prior.dtype) + prior[:, None]
    steps = jnp.arange(first, num_steps + 1)
    (total, _), moments = jax.lax.scan(step, (start, draw(min(first, num_steps))), steps)
    if edge is not None:
        total = total + edge[:, None]
        ends = moments_over_points(edge, chunk, group)
        moments = jax.tree.map(lambda end, rest: jnp.concatenate([end[None], rest]), ends, moments)
    return total, null, moments_over_points(prior, chunk, group), moments


def _log_stationary(kernel: Kernel, x: Array) -> Array:
    """Log pi(x), shape (n,)."""
    return kernel.stationary(jnp.shape(x)).log_prob(x).reshape(len(x), -1).sum(1)


def _check_normalised(model: Diffusion | ReverseChain, x: np.ndarray) -> None:
    """Refuse data for which Eq. 14 is not K, by more than chance among so many points allows."""
    log_pi = np.concatenate(
        [np.asarray(_log_stationary(model.kernel, jnp.asarray(x[i : i + 4096]))) for i in range(0, len(x), 4096)]
    )
    entropy = float(model.kernel.stationary(x.shape[1:]).entropy().sum())
    alpha_bar = np.asarray(model.kernel.schedule.alpha_bar)
    error = float(alpha_bar[1] - alpha_bar[-1]) * float(-np.mean(log_pi, dtype=np.float64) - entropy)
    allowed = _TOLERANCE * max(1, int(np.prod(x.shape[1:])))
    if len(x) > 1:
        allowed += 5 * standard_error(log_pi)
    if not abs(error) <= allowed:
        wanted = "a mean equal to the rate" if model.kernel.is_discrete else "mean 0 and variance 1"
        raise ValueError(
            expected(
                f"data with {wanted} for form='paper'",
                f"mean {x.mean():.3g}, variance {x.var():.3g}, with which Eq. 14 is wrong by {error:.3g} nats a point",
                "Use form='exact', whose terms hold for any data, or normalise the data.",
            )
        )
