r"""Reverse steps multiplied by a factor r: the paper's Section 2.5.

With r(x^0) > 0 (a likelihood, an observation) the wanted law is p(x^0) r(x^0). A *tilt* replaces every reverse step by

    q(x^{t-1} | x^t)  proportional to  p(x^{t-1} | x^t) r_{t-1}(x^{t-1}),

a law that can be drawn from and scored in closed form. The start pi(x^T) stays as it is. Two of them are here:

- :class:`PaperTilt`, any differentiable r, to first order at the step's mean; for bits by flipping one at a time;
- :class:`GaussianFactor`, r = N(value; x, scale^2) per coordinate: the exact product, from denoising (all
  coordinates noisy) to inpainting (some known exactly, some not at all).

The step's product is one thing, the posterior another: the posterior's own reverse step has
r_{t-1}(x^{t-1}) = E[r(x^0) | x^{t-1}], and no r_{t-1} below is that in general. So the law of x^0 is *not* the
posterior, however exact each product; it is a proposal, to be weighted (``TiltedChain.log_weight``) or resampled.

A tilt is any pure function of the form :class:`Tilt` with stable identity, or a pytree of that form; the identity is
:func:`~numpyro_diffusion.transition.reverse_step` itself.

References: Sohl-Dickstein et al. 2015, Section 2.5, Eq. 16-22 and Appendix C.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from .._checks import check_finite, expected, is_concrete
from .._numerics import expand_right, safe_sqrt
from .._pytree import register_pytree
from .._typing import Array, ArrayLike, Shape
from ..kernels import GaussianKernel, Kernel
from ..transition import Transition, reverse_step

__all__ = [
    "ClampedNormal",
    "GaussianFactor",
    "PaperTilt",
    "Tilt",
    "as_pytree_function",
    "check_gaussian",
    "checked_log_r",
    "over_batch",
]

Exponent = Literal["constant", "annealed"]


@runtime_checkable
class Tilt(Protocol):
    """The law of x^{t-1} given x^t that is used in place of p's.

    ``x_t`` has shape (batch..., event...), ``t`` broadcasts with the batch shape, ``context`` is the chain's. The
    result is elementwise, with ``batch_shape == x_t.shape``: a Normal for a Gaussian kernel, a Bernoulli for bits.
    """

    def __call__(
        self, kernel: Kernel, transition: Transition, x_t: Array, t: ArrayLike, context: Array | None
    ) -> Any: ...


@register_pytree(data=("log_r",), static=("exponent",))
class PaperTilt:
    """The step's mean moved up the slope of log r (approximate: a proposal, or a baseline; not the posterior).

    - Gaussian: N(m + s^2 g, s^2), with g the gradient of log r_{t-1} at the step's mean m.
    - Bernoulli: logit + log r_{t-1}(.., 1, ..) - log r_{t-1}(.., 0, ..), the other bits at the step's rounded mean; the
      exact product when r is a product over bits.

    with r_{t-1} = r, or r^((T-(t-1))/T), which leaves the start nearly untouched. The Gaussian one is an Euler step,
    unstable where s^2 times the curvature of log r exceeds 2. A bit at which r is 0 for both values is not tilted; one
    at which r is 0 for one value is set to the other at *every* step: such a chain does not reach all that p r does,
    and its weights say nothing. Bits cost (their number + 1) evaluations of log r at each step, all at once in memory.

    Args:
        log_r: function of one x, shape (event...), floating point (bits as 0. and 1.), to a number in nats. It must
            have stable identity; data go in as leaves of a ``jax.tree_util.Partial``.
        exponent: ``"constant"`` in t, as in the paper's experiments, or ``"annealed"``.

    Raises:
        TypeError: for a ``log_r`` that cannot be called.
        ValueError: for an unknown exponent; when used, for a ``log_r`` that does not return one real number.

    >>> from numpyro_diffusion import GaussianKernel, ReverseChain, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper")
    >>> standard_normal = Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(2,))
    >>> tilt = PaperTilt(lambda x: 0.5 * x.sum(), exponent="annealed")
    >>> tilt(kernel, standard_normal, jnp.zeros((3, 2)), 1, None).batch_shape
    (3, 2)

    References: Sohl-Dickstein et al. 2015, Table App. 1 and Section 2.5.
    """

    log_r: Callable[[Array], ArrayLike]
    exponent: Exponent

    def __init__(self, log_r: Callable[[Array], ArrayLike], exponent: Exponent = "constant") -> None:
        if exponent not in get_args(Exponent):
            raise ValueError(
                expected(
                    f"exponent one of {', '.join(get_args(Exponent))}",
                    repr(exponent),
                    "It says how r depends on t.",
                )
            )
        self.log_r = as_pytree_function("log_r(x)", log_r)
        self.exponent = exponent

    def __call__(self, kernel: Kernel, transition: Transition, x_t: Array, t: ArrayLike, context: Array | None) -> Any:
        law = reverse_step(kernel, transition, x_t, t, context)
        mean = law.mean
        log_r = checked_log_r(self.log_r, transition.event_shape, mean.dtype)
        slopes = _flip_slopes(log_r) if kernel.is_discrete else jax.grad(log_r)
        point = (mean > 0.5).astype(mean.dtype) if kernel.is_discrete else mean
        slope = over_batch(slopes, jnp.ndim(x_t) - transition.event_dim)(point)
        if self.exponent == "annealed":
            fraction = (kernel.num_steps + 1 - jnp.asarray(t)).astype(slope.dtype) / kernel.num_steps
            slope = slope * expand_right(fraction, transition.event_dim)
        return kernel.tilt(law, slope)


@register_pytree(data=("value", "scale"), static=("noised", "fixes"))
class GaussianFactor:
    """The exact product of every step with N(value; x, scale^2) per coordinate (approximate as a posterior).

    Each step is exact, p(x^{t-1} | x^t) N(value_{t-1}; x^{t-1}, scale_{t-1}^2) renormalised; the law of x^0 is a
    proposal or a baseline, not the posterior: only the last step has the factor that it should. A coordinate with scale

    - 0 < scale < inf was observed with noise (denoising);
    - 0 is known (inpainting): the step sets it to ``value``. It is then no random number, and the law's ``log_prob`` is
      the density of the *other* coordinates: a known one adds 0 at its value, and -inf elsewhere;
    - inf was not observed: its value may be anything, NaN too.

    ``noised=False`` uses the same factor at every t, as the paper does. With it, known coordinates make the chain
    singular to every target that fixes x^0 alone, so it has no importance weights (``TiltedChain.log_weight``).
    ``noised=True`` moves the observation to the noise level of x^{t-1}: value sqrt(abar_{t-1}) and variance
    abar_{t-1} scale^2 + v_{t-1}, so that only x^0 is ever fixed. That is the posterior's own factor where p(x^0) is
    flat on the scale of the noise, and too strong where the noise is wider than p(x^0).

    Args:
        value: what was observed; broadcasts with (batch..., event...).
        scale: standard deviations of the observation, >= 0; broadcasts like ``value``.
        noised: whether the factor follows the noise level.

    Attributes:
        fixes: whether a coordinate may be known: some scale is 0, or none can be looked at, being traced. Where it is
            False every step is a Normal, which :class:`~numpyro_diffusion.infer.TwistedSMC` takes as a ``proposal``.

    Raises:
        ValueError: for a scale that is negative or NaN, a value that is not finite where it was observed, or, when
            used, shapes that do not broadcast to the state's.
        TypeError: when used with a kernel that is not Gaussian.

    >>> missing = GaussianFactor(value=jnp.array([1.0, jnp.nan]), scale=jnp.array([0.0, jnp.inf]))
    >>> from numpyro_diffusion import GaussianKernel, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper")
    >>> standard_normal = Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(2,))
    >>> missing(kernel, standard_normal, jnp.zeros(2), 1, None).loc
    Array([1., 0.], dtype=float32)

    References: Sohl-Dickstein et al. 2015, Section 2.5 and Appendix C (denoising, inpainting).
    """

    value: ArrayLike
    scale: ArrayLike
    noised: bool
    fixes: bool

    def __init__(self, value: ArrayLike, scale: ArrayLike, *, noised: bool = False) -> None:
        if is_concrete(scale) and not np.all(np.asarray(scale) >= 0):
            raise ValueError(
                expected("scale >= 0", scale, "0 is for a coordinate that is known, inf for one that is not observed.")
            )
        if is_concrete((value, scale)):
            check_finite("value where scale < inf", np.where(np.isinf(scale), 0, value))
        self.value = value
        self.scale = scale
        self.noised = noised
        # Below this the variance may round to 0 beside the step's own.
        self.fixes = not (is_concrete(scale) and np.all(np.asarray(scale) > 1e-15))

    def __call__(
        self, kernel: Kernel, transition: Transition, x_t: Array, t: ArrayLike, context: Array | None
    ) -> dist.Normal:
        check_gaussian(kernel, "GaussianFactor", "For bits, PaperTilt is the exact product when r is one over bits.")
        law: Any = reverse_step(kernel, transition, x_t, t, context)
        dtype = law.loc.dtype
        value, scale = jnp.asarray(self.value, dtype), jnp.asarray(self.scale, dtype)
        _check_broadcasts(value.shape, scale.shape, x_t.shape)
        observed = jnp.isfinite(scale)
        value, variance = jnp.where(observed, value, 0), jnp.where(observed, scale, 1) ** 2
        if self.noised:
            previous = expand_right(jnp.asarray(t) - 1, transition.event_dim)
            alpha_bar = jnp.asarray(kernel.schedule.alpha_bar, dtype)[previous]
            value = safe_sqrt(alpha_bar) * value
            variance = alpha_bar * variance + jnp.asarray(kernel.schedule.noise_variance, dtype)[previous]
        prior_variance = law.scale**2
        total = prior_variance + variance
        kept = jnp.where(observed, variance / total, 1)
        loc = kept * law.loc + jnp.where(observed, prior_variance / total, 0) * value
        if not self.fixes:
            return dist.Normal(loc, law.scale * safe_sqrt(kept), validate_args=False)
        # kept = 0 is a known coordinate: exactly the value, or its density would not be recognised as the atom.
        return ClampedNormal(jnp.where(kept == 0, value, loc), law.scale * safe_sqrt(kept), validate_args=False)


class ClampedNormal(dist.Normal):
    """Normal with scale >= 0: where the scale is 0 a constant, whose log_prob is 0 at ``loc`` and -inf elsewhere.

    That is the density with respect to length for a scale > 0, and to counting at ``loc`` for a scale of 0.

    >>> ClampedNormal(jnp.ones(2), jnp.zeros(2)).log_prob(jnp.array([1.0, 1.1]))
    Array([  0., -inf], dtype=float32)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.nonnegative}

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        is_free = self.scale > 0
        free = dist.Normal(self.loc, jnp.where(is_free, self.scale, 1), validate_args=False).log_prob(value)
        return jnp.where(is_free, free, jnp.where(value == self.loc, 0, -jnp.inf))


def as_pytree_function(name: str, function: Any) -> Any:
    """A callable as a pytree: itself if it is one, else static inside a ``jax.tree_util.Partial``.

    Raises:
        TypeError: if it cannot be called.
    """
    if not callable(function):
        raise TypeError(
            expected(f"a function {name}", repr(function), "Pass a pure function; data go in by jax.tree_util.Partial.")
        )
    return jax.tree_util.Partial(function) if jax.tree_util.all_leaves([function]) else function


def checked_log_r(log_r: Callable[[Array], ArrayLike], event_shape: Shape, dtype: Any) -> Callable[[Array], Array]:
    """The function log_r of one event, known to return one real number.

    Raises:
        ValueError: if it returns anything else.
    """
    returned = jax.eval_shape(log_r, jax.ShapeDtypeStruct(event_shape, dtype))
    is_array = isinstance(returned, jax.ShapeDtypeStruct)
    if not is_array or returned.shape != () or not jnp.issubdtype(returned.dtype, jnp.floating):
        raise ValueError(
            expected(
                f"log_r of one x, of shape {event_shape}, to return one real number",
                f"shape {returned.shape} and dtype {returned.dtype}" if is_array else repr(returned),
                "Sum it over the event; the batch is mapped over for you.",
            )
        )
    return lambda event: jnp.asarray(log_r(event), dtype)


def over_batch(function: Callable[[Array], Any], num_batch_dims: int) -> Callable[[Array], Any]:
    """A function of one event, mapped over that many leading dimensions."""
    for _ in range(num_batch_dims):
        function = jax.vmap(function)
    return function


def check_gaussian(kernel: Kernel, name: str, cure: str) -> GaussianKernel:
    """The kernel.

    Raises:
        TypeError: if it is not a Gaussian one.
    """
    if not isinstance(kernel, GaussianKernel):
        raise TypeError(expected(f"a Gaussian kernel for {name}", type(kernel).__name__, cure))
    return kernel


def _flip_slopes(log_r: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """How much log r rises when a bit goes from 0 to 1, for each bit of an event, the others as they are."""

    def slopes(event: Array) -> Array:
        bits = event.reshape(-1)
        flipped = jnp.where(jnp.eye(bits.size, dtype=bool), 1 - bits, bits)
        log_kept, log_flipped = log_r(event), jax.vmap(lambda one: log_r(one.reshape(event.shape)))(flipped)
        says_nothing = (log_kept == -jnp.inf) & (log_flipped == -jnp.inf)
        rise = jnp.where(says_nothing, 0, log_flipped - jnp.where(says_nothing, 0, log_kept))
        return jnp.where(bits == 1, -rise, rise).reshape(event.shape)

    return slopes


def _check_broadcasts(value: Shape, scale: Shape, wanted: Shape) -> None:
    try:
        fits = jnp.broadcast_shapes(value, scale, wanted) == wanted
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            expected(
                f"value and scale to broadcast to the state's shape {wanted}",
                f"shapes {value} and {scale}",
                "They have the shape of one x, or of a batch of them: then expand the chain to that batch.",
            )
        )
