r"""The log likelihood of integers under a model of real numbers, by uniform noise that fills their bins.

Data k on a grid of width w, such as grey levels 0..255, were trained as x = k + u, u ~ U[low, low + w) in every number.
What the model says of the integers is the mass of their bins, and by Jensen's inequality

    log P(k) = log integral of p(k + u) over the bin  >=  E_u log p(k + u) + d log w

in nats, with d numbers in a data point. That bounds a probability, so that it is at most 0, and can be compared between
models of any units: with what a classifier of 256 levels, or a compressor, says of the same data. Papers print *minus*
the bits per dimension.

Assumed: that the noise here is that of the training.

References: Theis, van den Oord, Bethge 2016, Section 3.1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_integer_at_least, expected, first_index
from .._typing import ArrayLike
from ._chunks import Model
from .bounds import bound
from .results import LogLikelihood

__all__ = ["integer_log_likelihood"]

# A value that is this part of a bin off the grid is no integer; float32 keeps 255 to 1e-7 of it.
_OFF_GRID = 1e-3


def integer_log_likelihood(
    rng_key: jax.Array,
    model: Model,
    x: ArrayLike,
    *,
    width: float = 1.0,
    low: float = 0.0,
    estimate: Callable[..., LogLikelihood] = bound,
    num_noises: int = 4,
    **settings: Any,
) -> LogLikelihood:
    """A lower bound on the log probability of integer data: dequantised, and the bins' width accounted for.

    Args:
        rng_key: JAX random key.
        model: of the dequantised data in the data's units, a ``TransformedDistribution`` of a diffusion or a diffusion.
        x: integers, or multiples of ``width``, shape (n, event...).
        width: of a bin, w > 0: 1 for integers, 1/255 for grey levels that were divided by 255.
        low: where the noise begins: 0 if the training added U[0, w), -w/2 if it was centred.
        estimate: ``bound``, ``importance_weighted`` or ``probability_flow``.
        num_noises: draws of the noise for each point, over which the estimates are averaged.
        **settings: of ``estimate``.

    Returns:
        Of each point, in nats; ``-result.bits_per_dimension`` is what papers print.

    Raises:
        ValueError: for a width that is not positive, or data that are not on the grid, with the first.

    >>> import numpyro.distributions as dist
    >>> from numpyro_diffusion import Diffusion, GaussianKernel, Transition, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper")
    >>> standard_normal = Diffusion(kernel, Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(1,)))
    >>> grey = dist.TransformedDistribution(standard_normal, dist.transforms.AffineTransform(128.0, 40.0))
    >>> found = integer_log_likelihood(jax.random.key(0), grey, jnp.full((200, 1), 128))
    >>> bool(abs(-found.bits_per_dimension - 6.65) < 0.02)  # log2(40 sqrt(2 pi))
    True

    References: Theis, van den Oord, Bethge 2016, Section 3.1.
    """
    if not width > 0:
        raise ValueError(expected("width > 0", width, "It is the distance of two neighbouring values."))
    check_integer_at_least("num_noises", num_noises, 1, "Take 1 or more draws of the noise.")
    array = np.asarray(x)
    bins = array / width
    off = ~(np.abs(bins - np.round(bins)) < _OFF_GRID)  # so that NaN is off, too
    if off.any():
        first = first_index(off)
        raise ValueError(
            expected(
                f"multiples of width={width}",
                f"{array[first]} at index {first}, {int(off.sum())} of {array.size} off the grid",
                "Pass the data as they were before noise was added, and their own width.",
            )
        )
    key_noise, key_estimate = jax.random.split(rng_key)
    found = []
    for index in range(num_noises):
        noise = jax.random.uniform(jax.random.fold_in(key_noise, index), array.shape, float)
        values = jnp.asarray(array, float) + low + width * noise
        found.append(estimate(jax.random.fold_in(key_estimate, index), model, values, **settings))
    size = found[0].num_dimensions
    per_point = np.mean([one.per_point for one in found], axis=0) + size * np.log(width)
    return LogLikelihood(per_point, size)
