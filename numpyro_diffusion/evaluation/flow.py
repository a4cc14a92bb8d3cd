r"""The probability-flow likelihood of a Gaussian diffusion: an ordinary differential equation through its denoiser.

With x^t = sqrt(abar) x^0 + sqrt(v) eps and u = log sqrt(v / abar), minus half the log signal-to-noise ratio,

    dx/du = sqrt(abar) (sqrt(abar) x - D(x, u)),      D(x, u) = E[x^0 | x^t = x],   abar = sigmoid(-2u),
    log p_1(x(u_1)) = log pi(x(u_T)) + integral over u_1..u_T of div(dx/du) du

carries the distribution of x^T to that of x^1. The network knows D at the integer steps only. Between them D is
interpolated in u at fixed x, by the cubic through the four nearest steps. At fixed x, D is smooth in u: for data of any
scale it changes over about one unit of u, which the usual schedules divide into many steps. It stays bounded where the
noise and the score, its other faces, go like 1 / sigma. The error falls with the fourth power of the distance of the
steps. A schedule must end at b_T < 1, so that u_T is finite.

x^0 itself is not on the flow. It is joined by the last reverse step, with x^1 drawn from q(x^1 | x^0):

    log p(x^0) >= E_q[log p_1(x^1) + log p(x^0 | x^1) - log q(x^1 | x^0)]

a lower bound on the flow model's log density, without noise where p(x^0 | x^1) is the true posterior. So x^0 has the
same smallest scale, that of b_1, as in the bound K. The flow model is another one than the reverse chain, with the same
network: for a network that is not exact, K of the chain may lie above or below it.

The divergence is exact for few dimensions (as many directional derivatives) and else the mean of ``num_probes``
Hutchinson estimates, unbiased, with their Monte Carlo error.

Draws of the flow (``flow_sample``) take its equation by Euler's rule in sqrt(v / abar), which is DDIM.

References: Song et al. 2021, Section 4.3 and Appendix D; Grathwohl et al. 2019 (Hutchinson); Song, Meng, Ermon 2021
(DDIM).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_integer_at_least, expected, is_concrete
from .._typing import Array, ArrayLike
from ..chains import ReverseChain
from ..kernels import Kernel
from ..wrappers import wrapped_diffusion
from ._chunks import Chunk, Model, chunks, over_points, point_keys, states_of
from .results import LogLikelihood

__all__ = ["FlowLikelihood", "ProbabilityFlow", "flow_sample", "probability_flow"]

_STENCIL = 4  # a cubic


@dataclasses.dataclass(frozen=True)
class ProbabilityFlow:
    """The probability-flow likelihood as an estimator of ``Diffusion``. Needs the extra ``flow`` (diffrax).

    Args:
        rtol: relative tolerance of the solver, for x and for the log density.
        atol: absolute tolerance, in nats for the log density.
        exact_dimension: up to so many dimensions the divergence is exact.
        num_probes: Hutchinson estimates in more dimensions, >= 2.
        max_steps: of the solver; more are an error.

    Raises:
        ValueError: for tolerances that are not positive or too few probes.
        TypeError: when called with a discrete kernel.

    >>> from numpyro_diffusion import Diffusion, GaussianKernel, Transition, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper")
    >>> standard_normal = Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(1,))
    >>> x = Diffusion(kernel, standard_normal, estimator=ProbabilityFlow(), rng_key=jax.random.key(0))
    >>> round(float(jax.jit(x.log_prob)(jnp.zeros(1))), 2)
    -0.92

    References: Song et al. 2021, Section 4.3.
    """

    rtol: float = 1e-4
    atol: float = 1e-4
    exact_dimension: int = 32
    num_probes: int = 8
    max_steps: int = 4096

    def __post_init__(self) -> None:
        if not (0 < self.rtol < math.inf and 0 < self.atol < math.inf):
            raise ValueError(expected("rtol > 0 and atol > 0", (self.rtol, self.atol), "Try 1e-4 in float32."))
        check_integer_at_least("exact_dimension", self.exact_dimension, 0, "0 is for Hutchinson always.")
        check_integer_at_least("num_probes", self.num_probes, 2, "Two or more tell their error.")
        check_integer_at_least("max_steps", self.max_steps, 1, "It bounds the solver's steps.")

    def __call__(self, rng_key: jax.Array, chain: ReverseChain, x_0: Array) -> Array:
        check_flow(chain.kernel)
        batch_shape = jnp.shape(x_0)[: jnp.ndim(x_0) - chain.state_dim]
        size = math.prod(batch_shape)
        points = x_0.reshape(size, *chain.state_shape)
        context = chain.context
        if context is not None:
            context_shape = chain.transition.context_shape or ()
            context = jnp.broadcast_to(context, batch_shape + context_shape).reshape(size, *context_shape)

        def of_point(context: Array | None, x_0: Array, rng_key: jax.Array) -> Array:
            return self.of_point(chain.with_context(context), x_0, rng_key)[0]

        return jax.vmap(of_point)(context, points, jax.random.split(rng_key, size)).reshape(batch_shape)

    def of_point(self, chain: ReverseChain, x_0: Array, rng_key: jax.Array) -> tuple[Array, Array]:
        """The estimate for one point with one draw of x^1, and the variance that the probes give it."""
        key_noise, key_probes = jax.random.split(rng_key)
        marginal = chain.kernel.marginal(x_0, 1)
        x_1 = marginal.sample(key_noise)
        last = chain.reverse(x_1, 1).log_prob(x_0) - marginal.log_prob(x_1)
        size = math.prod(x_0.shape)
        is_exact = size <= self.exact_dimension
        probes = jnp.eye(size, dtype=x_1.dtype)
        if not is_exact:
            probes = jax.random.rademacher(key_probes, (self.num_probes, size), x_1.dtype)
        x_top, divergence = self._solve(chain, x_1, probes.reshape(-1, *x_0.shape), is_exact)
        estimate = chain.kernel.stationary(x_0.shape).log_prob(x_top).sum() + divergence.mean() + last.sum()
        variance = jnp.zeros(()) if is_exact else divergence.var(ddof=1) / self.num_probes
        return estimate, variance

    def _solve(self, chain: ReverseChain, x_1: Array, probes: Array, is_exact: bool) -> tuple[Array, Array]:
        """x^T and the integral of the divergence: one number if exact, one for each probe if not."""
        import diffrax

        nodes = log_noise_to_signal(chain.kernel, x_1.dtype)
        divergence = jnp.zeros(1 if is_exact else len(probes), x_1.dtype)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(_exact_field if is_exact else _probed_field),
            diffrax.Tsit5(),
            t0=nodes[0],
            t1=nodes[-1],
            dt0=None,
            y0=(x_1, divergence),
            args=(chain, nodes, probes),
            stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol),
            max_steps=self.max_steps,
        )
        x_top, divergence = jax.tree.map(lambda path: path[0], solution.ys)
        return x_top, divergence


def flow_sample(
    rng_key: jax.Array, model: Model, num_steps: int | None = None, sample_shape: tuple[int, ...] = ()
) -> Array:
    """Draws of the flow in few network calls (DDIM): noise carried to data without more noise.

    *Not draws of the T-step model*, whose p(x^0) they only resemble: for pictures and starting points, never in place
    of ``model.sample`` where its distribution matters. One call of the network a step and none of diffrax.

    Args:
        rng_key: JAX random key.
        model: parameters bound; a diffusion of real states, alone or inside of transforms, or its chain.
        num_steps: K <= T levels, chosen as by ``Diffusion.respaced``; by default all.
        sample_shape: of the draws.

    Returns:
        Shape sample_shape + batch_shape + event_shape, in the model's units.

    Raises:
        TypeError: for a model of discrete states, or none.
        ValueError: for a number of steps out of 1..T.

    >>> from numpyro_diffusion import Diffusion, GaussianKernel, Transition, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(100), variance="upper")
    >>> prior = Diffusion(kernel, Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(2,)))
    >>> flow_sample(jax.random.key(0), prior, 10, (5,)).shape
    (5, 2)

    References: Song, Meng, Ermon 2021, Denoising diffusion implicit models.
    """
    wrapped = None if isinstance(model, ReverseChain) else wrapped_diffusion(model)
    if wrapped is None and type(model) is not ReverseChain:
        wanted = "a Diffusion, alone or inside of transforms, or a ReverseChain"
        raise TypeError(expected(wanted, repr(model), "Pass fit.distribution(name)."))
    chain: Any = model if wrapped is None else wrapped.chain
    chain = chain if num_steps is None else chain.respaced(num_steps)
    shape = tuple(sample_shape) + chain.batch_shape + chain.state_shape
    state = chain.flow(chain.kernel.stationary(shape).sample(rng_key))
    return state if wrapped is None else wrapped.value(state)


def check_flow(kernel: Kernel) -> None:
    """The kernel has a probability flow whose denoiser can be interpolated.

    Raises:
        TypeError: for a discrete kernel.
        ValueError: for fewer than four steps, b_T = 1, or a kernel that does not keep the variance, a_t^2 + n_t = 1.
    """
    if kernel.is_discrete:
        raise TypeError(
            expected(
                "a kernel of real states for the probability flow",
                type(kernel).__name__,
                "Bits do not flow; use bound or importance_weighted.",
            )
        )
    if kernel.num_steps < _STENCIL:
        raise ValueError(expected("4 or more steps", kernel.num_steps, "The denoiser is interpolated between them."))
    signal, noise = kernel.signal_and_noise(np.arange(1, kernel.num_steps + 1), jnp.zeros(()))
    if not is_concrete((signal, noise)):
        return
    if float(signal[-1]) == 0:
        raise ValueError(
            expected("b_T < 1 for the probability flow", "b_T = 1", "Use a schedule such as log_snr or cosine.")
        )
    total = np.asarray(signal) ** 2 + np.asarray(noise)
    if not np.allclose(total, 1, atol=1e-4):
        raise ValueError(
            expected(
                "a kernel that keeps the variance, a_t^2 + n_t = 1, for the probability flow",
                f"{float(total[np.argmax(np.abs(total - 1))]):.4g}",
                "Use importance_weighted, which takes any kernel.",
            )
        )


def log_noise_to_signal(kernel: Kernel, dtype: Any) -> Array:
    """The nodes u_1..u_T of the flow, shape (T,), rising."""
    signal, noise = kernel.signal_and_noise(np.arange(1, kernel.num_steps + 1), jnp.zeros((), dtype))
    return 0.5 * jnp.log(noise) - jnp.log(signal)


def interpolated_denoiser(chain: ReverseChain, x: Array, u: Array, nodes: Array) -> Array:
    """D(x, u) for one x: the cubic in u through the estimates of x^0 at the four nearest steps.

    Args:
        chain: of a kernel that :func:`check_flow` takes.
        x: shape (event...).
        u: a number in ``nodes[0] .. nodes[-1]``.
        nodes: from :func:`log_noise_to_signal`.

    Returns:
        Shape (event...).
    """
    first = jnp.clip(jnp.searchsorted(nodes, u) - _STENCIL // 2, 0, len(nodes) - _STENCIL)
    index = first + jnp.arange(_STENCIL)
    near, t = nodes[index], index + 1
    copies = jnp.broadcast_to(x, (_STENCIL, *x.shape))
    denoised = chain.denoised(copies, t)
    others = ~jnp.eye(_STENCIL, dtype=bool)
    ratios = (u - near) / jnp.where(others, near[:, None] - near, 1)
    return jnp.tensordot(jnp.where(others, ratios, 1).prod(1), denoised, 1)


def _field(u: Array, state: tuple[Array, Array], args: Any) -> tuple[Array, Array]:
    """The drift dx/du, and the product of every probe with its directional derivative along that probe."""
    chain, nodes, probes = args
    u = jnp.asarray(u, nodes.dtype)
    power = jax.nn.sigmoid(-2 * u)

    def drift(x: Array) -> Array:
        denoised = interpolated_denoiser(chain, x, u, nodes)
        return power * x - jnp.sqrt(power) * denoised

    velocity, along = jax.linearize(drift, state[0])
    products = probes * jax.vmap(along)(probes)
    return velocity, products.sum(tuple(range(1, products.ndim)))


def _exact_field(u: Array, state: tuple[Array, Array], args: Any) -> tuple[Array, Array]:
    velocity, diagonal = _field(u, state, args)
    return velocity, diagonal.sum(keepdims=True)


def _probed_field(u: Array, state: tuple[Array, Array], args: Any) -> tuple[Array, Array]:
    return _field(u, state, args)


@dataclasses.dataclass(frozen=True, eq=False)
class FlowLikelihood(LogLikelihood):
    """The probability-flow likelihood over data.

    Attributes:
        per_point: mean over the draws of x^1, shape (n,), nats.
        num_dimensions: numbers in one data point.
        divergence_standard_errors: of each point, from the Hutchinson probes, shape (n,), nats; 0 where the divergence
            is exact.
    """

    divergence_standard_errors: np.ndarray

    @property
    def divergence_standard_error(self) -> float:
        """The part of ``standard_error`` that comes from the probes, nats."""
        return float(np.sqrt((self.divergence_standard_errors**2).sum()) / len(self.per_point))


def probability_flow(
    rng_key: jax.Array,
    model: Model,
    x: ArrayLike,
    *,
    estimator: ProbabilityFlow = ProbabilityFlow(),
    num_draws: int = 1,
    chunk_size: int = 256,
) -> FlowLikelihood:
    """The probability-flow likelihood of data under a Gaussian model. Needs the extra ``flow`` (diffrax).

    Args:
        rng_key: JAX random key, of x^1 and of the probes.
        model: parameters bound; a context for all points or one for each. Of a ``TransformedDistribution`` of a
            diffusion the nats are those of the data, Jacobian included. An event of several states (``to_event``) has
            the sum of theirs.
        x: data, shape (n, event...).
        estimator: tolerances and how the divergence is found.
        num_draws: draws of x^1 for each point; their estimates are averaged, so that the mean stays a lower bound.
        chunk_size: points that are in memory at once.

    Raises:
        TypeError: for a Bernoulli model.
        ValueError: for b_T = 1, fewer than four steps, data that do not match.
        RuntimeError: when the solver needs more than ``max_steps``.

    References: Song et al. 2021, Section 4.3.
    """
    points = states_of(model, x)
    check_flow(points.model.kernel)
    check_integer_at_least("num_draws", num_draws, 1, "Take 1 or more draws of x^1.")
    values, variances = [], []
    for chunk in chunks(points, chunk_size):
        found = jax.device_get(_chunk(chunk, rng_key, estimator, num_draws))
        values.append(found[0][: chunk.size])
        variances.append(found[1][: chunk.size])
    return FlowLikelihood(
        per_point=points.of_points(np.concatenate(values)) + points.log_det,
        num_dimensions=points.num_dimensions,
        divergence_standard_errors=np.sqrt(points.of_points(np.concatenate(variances))),
    )


@functools.partial(jax.jit, static_argnames=("estimator", "num_draws"))
def _chunk(chunk: Chunk, key: jax.Array, estimator: ProbabilityFlow, num_draws: int) -> tuple[Array, Array]:
    """Estimates and the variances from the probes, both (size,)."""
    values, variances = over_points(estimator.of_point, chunk, point_keys(key, chunk, num_draws))
    return values.mean(1), variances.mean(1) / num_draws
