r"""Networks that were trained elsewhere, in another parameterisation, as diffusions.

The chain x^t = sqrt(abar_t) x^0 + sqrt(v_t) n has other faces, which differ by a factor known at each step:

    variance exploding     x^0 + sigma_t n = x^t / sqrt(abar_t),       sigma_t^2 = v_t / abar_t = 1 / abar_t - 1
                           x^t = sqrt(abar_t) x_sigma,  abar_t = 1 / (1 + sigma_t^2),  log SNR = -2 log sigma_t

A network of x_sigma and sigma is called with these, and what it returns is given to the Gaussian kernel:

    "x0"       D(x_sigma, sigma) = E[x^0 | x_sigma]
    "noise"    eps(x_sigma, sigma) = E[n | x_sigma], the same n in both faces
    "score"    the gradient of log q(x_sigma) = -E[n | x_sigma] / sigma; that of x^t is sqrt(1 + sigma^2) times it

EDM writes the denoiser by a network F of which all inputs and outputs have unit variance, S = ``sigma_data``:

    D = c_skip x_sigma + c_out F(c_in x_sigma, c_noise)
    c_skip = S^2 / (sigma^2 + S^2),  c_out = sigma S / sqrt(sigma^2 + S^2),
    c_in = 1 / sqrt(sigma^2 + S^2),  c_noise = log(sigma) / 4

DDPM is the chain itself; only its steps are counted from 0: the network's index is t - 1.

A network here is ``(params, x, level, context) -> output``, as a transition's function is, with the noise level in
place of t. It always sees one batch axis, x (n, event...) and the level (n,), whatever the chain's batch is: a port of
a PyTorch network needs no other case.

Not assumed: that the network is right. The chain of it is a model of its own, with T steps and the reverse variance
that is named; for Gaussian data of standard deviation ``data_scale`` and the exact denoiser it is exact.

References: Song et al. 2021, Section 3.4; Karras et al. 2022, Table 1; Ho et al. 2020; Salimans and Ho 2022.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from ._checks import check_choice, check_shape, expected
from ._typing import Array, ArrayLike, PyTree, Shape, TransitionFunction
from .diffusion import Diffusion
from .kernels import GaussianKernel
from .schedules import Schedule, from_sigmas
from .transition import Transition, check_call

__all__ = ["EDM", "from_ddpm", "from_denoiser"]

Exploding = Literal["x0", "noise", "score"]
Preserving = Literal["noise", "x0", "v", "score"]
Fixed = Literal["lower", "upper"]

_CURE = "Write it as network(params, x, level, context) of x (n, event...) and level (n,); leave dropout out."


@dataclasses.dataclass(frozen=True)
class EDM:
    """The denoiser of an EDM network F, by its preconditioning.

    Args:
        network: F, called as ``network(params, c_in * x, c_noise, context)`` with c_noise = log(sigma) / 4 of shape
            (n,).
        sigma_data: S of the training, > 0; the authors' is 0.5.

    Raises:
        ValueError: unless ``sigma_data`` > 0.

    References: Karras et al. 2022, Table 1.
    """

    network: TransitionFunction
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < np.inf:
            raise ValueError(expected("sigma_data > 0", self.sigma_data, "Pass that of the network's training."))

    def __call__(self, params: PyTree, x: Array, sigma: Array, context: Array | None) -> Array:
        """D(x, sigma), of x's shape."""
        level = sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim))
        scale = self.sigma_data
        total = level**2 + scale**2
        output = self.network(params, x / jnp.sqrt(total), jnp.log(sigma) / 4, context)
        return scale**2 / total * x + level * scale / jnp.sqrt(total) * output


@dataclasses.dataclass(frozen=True)
class _Exploding:
    """The function of a chain whose network knows x^0 + sigma n; its state is the table of sigma_0..sigma_T."""

    network: TransitionFunction
    output: str
    event_dim: int

    def __call__(self, params: PyTree, x_t: Array, t: Array, context: Array | None) -> Array:
        params, state = params
        sigma = jnp.asarray(state["sigmas"], x_t.dtype)[t]
        rise = jnp.sqrt(1 + sigma**2)
        rise = rise.reshape(rise.shape + (1,) * self.event_dim)
        output = _on_one_axis(self.network, self.event_dim, params, x_t * rise, sigma, context)
        return rise * output if self.output == "score" else output


@dataclasses.dataclass(frozen=True)
class _FromZero:
    """The function of a chain whose network counts its steps from 0."""

    network: TransitionFunction
    event_dim: int

    def __call__(self, params: PyTree, x_t: Array, t: Array, context: Array | None) -> Array:
        return _on_one_axis(self.network, self.event_dim, params, x_t, t - 1, context)


def from_denoiser(
    network: TransitionFunction,
    params: PyTree,
    sigmas: ArrayLike | Sequence[float],
    *,
    event_shape: Shape,
    context: ArrayLike | None = None,
    context_shape: Shape | None = None,
    output: Exploding = "x0",
    variance: Fixed = "upper",
    data_scale: float = 1.0,
) -> Diffusion:
    """A network of x^0 + sigma n and sigma as a diffusion with the steps of a table of sigmas.

    Args:
        network: called as ``network(params, x, sigma, context)`` with x of shape (n, event...), in units of the data
            it was trained on, and sigma of shape (n,); a stable object. :class:`EDM` makes one of an EDM network.
        params: its parameters.
        sigmas: sigma_1..sigma_T, rising, shape (T,): the steps of the chain. Take sigma_T at 10 times the data's scale
            or more, sigma_1 as the finest scale that matters.
        event_shape: the shape of one x.
        context: of a conditional network: shape (batch..., context...), as for a :class:`~numpyro_diffusion.Diffusion`.
        context_shape: the shape of one context.
        output: what the network returns: ``"x0"``, a denoiser; ``"noise"``; or ``"score"``.
        variance: the reverse variance, see :class:`~numpyro_diffusion.GaussianKernel`.
        data_scale: the data's standard deviation per coordinate, > 0; enters ``"upper"``. EDM's ``sigma_data``.

    Returns:
        The diffusion, without a named estimate; its draws are in the units of the training data.

    Raises:
        ValueError: for a table that does not rise from above 0, or an output of the wrong shape.
        TypeError: if the network cannot be called so, or for an output of another dtype than x.

    >>> import jax
    >>> def denoiser(params, x, sigma, context):  # of standard normal data
    ...     return x / (1 + sigma[:, None] ** 2)
    >>> prior = from_denoiser(denoiser, None, np.geomspace(0.01, 100, 20), event_shape=(2,))
    >>> prior.sample(jax.random.key(0), (3,)).shape
    (3, 2)
    """
    check_choice("output", output, Exploding)
    schedule = from_sigmas(sigmas)
    table = np.concatenate([[0.0], np.asarray(sigmas, np.float64)])
    function = _Exploding(network, output, _event_dim(event_shape))
    transition = Transition(function, params, event_shape, context_shape, {"sigmas": table})
    return _diffusion(schedule, transition, context, output, variance, data_scale)


def from_ddpm(
    network: TransitionFunction,
    params: PyTree,
    schedule: Schedule,
    *,
    event_shape: Shape,
    context: ArrayLike | None = None,
    context_shape: Shape | None = None,
    output: Preserving = "noise",
    variance: Fixed = "upper",
    data_scale: float = 1.0,
) -> Diffusion:
    """A network of DDPM's steps 0..T-1 as a diffusion, T as in its training.

    Of a scheduler of diffusers, the schedule is ``Schedule.from_beta(scheduler.betas.numpy())``, and ``output`` its
    ``prediction_type``: "epsilon" is ``"noise"``, "v_prediction" ``"v"``, "sample" ``"x0"``. Fewer steps are made of
    the chain after that, with ``respaced``: the network still sees its own indices.

    Args:
        network: called as ``network(params, x, index, context)`` with x of shape (n, event...) and the index t - 1 of
            shape (n,), an integer; a stable object.
        params: its parameters.
        schedule: b_1..b_T of its training.
        event_shape: the shape of one x.
        context: of a conditional network: shape (batch..., context...), as for a :class:`~numpyro_diffusion.Diffusion`.
        context_shape: the shape of one context.
        output: what the network returns: ``"noise"``, ``"x0"``, ``"v"`` or ``"score"``.
        variance: the reverse variance; DDPM's two choices are ``"upper"`` (b_t, with ``data_scale`` 1) and ``"lower"``.
        data_scale: the data's standard deviation per coordinate, > 0; enters ``"upper"``.

    Returns:
        The diffusion, without a named estimate.

    Raises:
        TypeError, ValueError: if the network cannot be called so, or returns the wrong shape or dtype.
    """
    check_choice("output", output, Preserving)
    transition = Transition(_FromZero(network, _event_dim(event_shape)), params, event_shape, context_shape)
    return _diffusion(schedule, transition, context, output, variance, data_scale)


def _diffusion(
    schedule: Schedule,
    transition: Transition,
    context: ArrayLike | None,
    output: Preserving,
    variance: Fixed,
    data_scale: float,
) -> Diffusion:
    check_choice("variance", variance, Fixed)
    kernel = GaussianKernel(schedule, parameterization=output, variance=variance, data_scale=data_scale)
    check_call(kernel, transition, "a network", _CURE)
    return Diffusion(kernel, transition, context=context)


def _event_dim(event_shape: Shape) -> int:
    return len(check_shape("event_shape", event_shape, "It is the shape of one data point."))


def _on_one_axis(network: Any, event_dim: int, params: PyTree, x: Array, level: Array, context: Array | None) -> Array:
    """The network's output at x (batch..., event...), whose batch axes it sees as one."""
    split = x.ndim - event_dim
    batch, event = x.shape[:split], x.shape[split:]
    size = int(np.prod(batch, dtype=int))
    context = None if context is None else context.reshape((size, *context.shape[split:]))
    output = network(params, x.reshape((size, *event)), jnp.broadcast_to(level, batch).reshape(size), context)
    # An output of a wrong shape is left for the check that names it.
    return output.reshape(x.shape) if output.shape == (size, *event) else output
