"""The covariance of a network's errors: how large they are at each level, and how much of it a low rank holds."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from .._checks import check_integer_at_least, expected
from .._typing import Shape
from ..chains import ReverseChain
from ..diffusion import Diffusion
from ..guidance import ErrorCovariance
from ..guidance.base import check_real
from ..wrappers import wrapped_diffusion
from . import _panels

__all__ = ["error_covariance"]

_COLOURS = (_panels.DATA, _panels.MODEL, _panels.INK)  # of up to three levels


def error_covariance(
    rng_key: jax.Array,
    model: dist.Distribution,
    *,
    errors: ErrorCovariance | None = None,
    t: Sequence[int] | None = None,
    image_shape: Shape | None = None,
    num_draws: int = 200,
    axes: Any = None,
) -> np.ndarray:
    """Whether the covariance C_t of a network's errors is one to guide by.

    First row, from the left: the errors' root mean square over coordinates at each level, beside what the model's own
    steps say of it, the root of the mean of Var[x^0 | x^t] over draws (far apart, the network misjudges its errors);
    the share of C_t that its leading directions hold (the rest is taken for uncorrelated, or for the same everywhere);
    the standard deviations along these directions at up to three levels. Second row: the first direction at these
    levels, as an image or as a bar for each coordinate. Units are those of the chain's states.

    Args:
        rng_key: of the draws of the model.
        model: a diffusion of real states, alone or inside of transforms, or its chain; without a batch.
        errors: C_t, from ``guidance.error_covariance``; by default those that the prior carries.
        t: up to three levels, integers in 1..T; by default the first, the middle and the last.
        image_shape: (height, width), or with a last axis of colours, which are averaged: of a direction as an image.
        num_draws: of the model.
        axes: shape (2, 3); by default those of a new figure.

    Returns:
        The axes, shape (2, 3).

    Raises:
        TypeError: for a model of discrete states, or no model.
        ValueError: for a model that carries no errors, where none are passed; for a batch, for levels that are not in
            1..T, for axes and images that do not fit.

    >>> import numpyro_diffusion as nd
    >>> from matplotlib.figure import Figure
    >>> kernel = nd.GaussianKernel(nd.schedules.log_snr(5), variance="upper", parameterization="x0")
    >>> prior = Diffusion(kernel, nd.Transition(lambda params, x_t, t, context: 0.5 * x_t, None, event_shape=(4,)))
    >>> prior = prior.with_errors(nd.guidance.error_covariance(jax.random.key(0), prior.chain, num_draws=50, rank=2))
    >>> axes = error_covariance(jax.random.key(1), prior, image_shape=(2, 2), axes=Figure().subplots(2, 3))
    >>> [ax.get_title() for ax in axes[1]]
    ['$t = 1$', '$t = 2$', '$t = T$']
    """
    chain, errors = _chain_and_errors(model, errors)
    num_steps, size = errors.diagonal.shape
    times = _panels.check_times(t, 1, num_steps)
    if len(times) > 3:
        raise ValueError(expected("up to three levels t", times, "Call again for others."))
    if image_shape is not None and int(np.prod(image_shape)) != size:
        raise ValueError(expected(f"image_shape of {size} numbers", image_shape, "It is that of one state."))
    check_integer_at_least("num_draws", num_draws, 2, "They show what the steps say.")
    factor = np.asarray(errors.directions(), float)
    held, total = (factor**2).sum((1, 2)), np.asarray(errors.variances(), float).sum(1)
    said = np.asarray(_variance_of_steps(rng_key, chain, num_draws))
    axes = _panels.row_or_grid(axes, (2, 3))
    steps = np.arange(1, num_steps + 1)
    sizes, shares, directions = axes[0]
    sizes.plot(steps, np.sqrt(total / size), color=_panels.DATA, linewidth=1.4, label="errors")
    sizes.plot(steps, np.sqrt(said), color=_panels.MODEL, linewidth=1.2, linestyle="--", label="steps")
    sizes.set(yscale="log", title="sd of the errors", xlabel="level $t$")
    sizes.legend(frameon=False, fontsize="small")
    shares.plot(steps, held / total, color=_panels.DATA, linewidth=1.4)
    shares.set(ylim=(0, 1.02), title="share of the directions", xlabel="level $t$")
    for ax in axes[1, len(times) :]:
        ax.set_axis_off()
    for time, colour, ax in zip(times, _COLOURS, axes[1], strict=False):
        vectors, spread, _ = np.linalg.svd(factor[time - 1], full_matrices=False)
        label = _panels.time_title(time, num_steps)
        directions.plot(np.arange(1, len(spread) + 1), spread, color=colour, marker="o", markersize=3, label=label)
        _direction(ax, vectors[:, 0] * (spread[0] > 0), image_shape, colour)  # nothing where none stands out
        ax.set_title(label)
    directions.set(title="sd along each", xlabel="direction", ylim=(0, None))
    directions.legend(frameon=False, fontsize="small")
    axes[1, 0].set_ylabel("first direction")
    for ax in axes[0]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.locator_params(axis="x", integer=True)
    return axes


def _direction(ax: Any, vector: np.ndarray, image_shape: Shape | None, colour: str) -> None:
    vector = vector * np.sign(vector[np.abs(vector).argmax()])  # of the two signs the one that is mostly up
    if image_shape is None:
        ax.bar(np.arange(len(vector)), vector, color=colour, width=0.8)
        ax.axhline(0.0, color=_panels.PALE, linewidth=0.8)
        ax.set_xlabel("coordinate")
        ax.locator_params(axis="x", integer=True)
    else:
        image = vector.reshape(*image_shape[:2], -1).mean(-1)
        limit = np.abs(image).max() or 1.0
        ax.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
    _panels.frame(ax)


@functools.partial(jax.jit, static_argnames=("num_draws",))
def _variance_of_steps(rng_key: jax.Array, chain: ReverseChain, num_draws: int) -> jax.Array:
    """Mean of Var[x^0 | x^t] as the steps have it, over draws and coordinates, shape (T,)."""
    path = chain.sample(rng_key, (num_draws,))

    def at(t: jax.Array) -> jax.Array:
        step = chain.reverse(path[:, t], jnp.full(num_draws, t))
        return chain.kernel.variance_left(step, chain.beside_state(jnp.full(num_draws, t))).mean()

    return jax.lax.map(at, jnp.arange(1, chain.num_steps + 1))


def _chain_and_errors(model: Any, errors: ErrorCovariance | None) -> tuple[ReverseChain, ErrorCovariance]:
    if isinstance(model, ReverseChain):
        model = Diffusion(model.kernel, model.transition, context=model.context)
    wrapped = wrapped_diffusion(model)
    if wrapped is None:
        wanted = "a Diffusion, alone or inside of transforms, or a ReverseChain"
        raise TypeError(expected(wanted, repr(model), "Pass the prior."))
    chain, prior = wrapped.chain, wrapped.diffusion
    check_real(chain.kernel, "error_covariance", "Bits have no covariance of this kind.")
    if chain.batch_shape:
        cure = "Pass the prior of one x, with one context."
        raise ValueError(expected("a model without a batch", f"batch_shape {chain.batch_shape}", cure))
    found = (prior if errors is None else prior.with_errors(errors)).errors
    if found is None:
        cure = "errors = guidance.error_covariance(rng_key, prior.chain), then prior.with_errors(errors), or errors=."
        raise ValueError(expected("a prior that carries the covariance of its errors", "one without", cure))
    return chain, found
