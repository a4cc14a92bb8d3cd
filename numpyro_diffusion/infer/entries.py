r"""Some entries of x are seen and others not, different ones in every row.

For values v with NaN where nothing was seen, and noise s,

    r(x) = prod over entries that were seen of N(v_i; x_i, s_i^2)

as an ordinary NumPyro site: a Normal whose mask leaves the missing entries out. So it composes with every engine.

Not assumed: anything of why entries are missing, except that the reason does not depend on what is missing.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from .._checks import check_integer_at_least, expected, first_index, is_concrete
from .._typing import Array, ArrayLike, Shape

__all__ = ["observe_entries"]

_EXACT_CURE = (
    "Say how far what was recorded may be off, such as half of its last digit: an entry that is known without any "
    "noise has no density to weigh draws by. NaN in values is for an entry that was not seen."
)


def observe_entries(name: str, x: ArrayLike, values: Any, scale: ArrayLike, *, event_dim: int = 1) -> Array:
    """A site that observes the entries of ``x`` that are not NaN in ``values``, each with its noise.

    Missing entries are left out exactly, by a mask, and need no wide noise in their place. Draws of ``x`` then have
    them imputed.

    Args:
        name: of the site.
        x: the value of a diffusion site, or a function of it, shape (plates..., event...).
        values: numbers, NaN where nothing was seen; an array, a list or a table with ``to_numpy``, that broadcasts to
            the shape of ``x``. None to draw them, as ``obs=None`` does.
        scale: standard deviations of the noise, in the units of ``x``; broadcasts to its shape. It may depend on latent
            sites. Where nothing was seen it may be anything.
        event_dim: dimensions of ``x`` on the right that are no plates: 1 for the rows of a table, 2 for pixels.

    Returns:
        The site's value: ``values`` of the shape of ``x``, or a draw.

    Raises:
        ValueError: for shapes that do not broadcast, infinite values, or noise that is not positive and finite where a
            number was seen; named with site and index.
        TypeError: for values that are no numbers.

    >>> from numpyro_diffusion import Diffusion, GaussianKernel, analytic, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), parameterization="x0", variance="denoiser")
    >>> prior = Diffusion(kernel, analytic.gaussian_mixture(kernel, jnp.zeros((1, 2)), 1.0, jnp.ones(1)))
    >>> table = np.array([[1.5, np.nan], [np.nan, -0.3], [0.2, 0.1]])
    >>> def model(table):
    ...     with numpyro.plate("rows", len(table)):
    ...         x = numpyro.sample("x", prior)
    ...         observe_entries("cells", x, table, 0.1)
    >>> site = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace(table)["cells"]
    >>> site["fn"].batch_shape, site["is_observed"]
    ((3,), True)
    """
    x = jnp.asarray(x) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else jnp.asarray(x, float)
    check_integer_at_least("event_dim", event_dim, 0, "It counts the dimensions of one x.")
    if event_dim > x.ndim:
        raise ValueError(expected(f"event_dim <= {x.ndim}, the dimensions of x", event_dim, "Lower it."))
    if values is None:
        return jnp.asarray(numpyro.sample(name, dist.Normal(x, scale).to_event(event_dim)))
    values = _numbers(name, values)
    _check_shapes(name, np.shape(values), np.shape(scale), x.shape)
    _check_values(name, values, scale)
    values = jnp.broadcast_to(jnp.asarray(values, x.dtype), x.shape)
    seen = ~jnp.isnan(values)
    likelihood = dist.Normal(x, jnp.where(seen, jnp.asarray(scale, x.dtype), 1)).mask(seen).to_event(event_dim)
    return jnp.asarray(numpyro.sample(name, likelihood, obs=values))


def _numbers(name: str, values: Any) -> ArrayLike:
    values = values.to_numpy() if hasattr(values, "to_numpy") else values
    if is_concrete(values):
        values = np.asarray(values)  # not yet JAX's: inside of a compiled model its values could no longer be looked at
        if values.dtype.kind not in "biuf":
            raise TypeError(
                expected(
                    f"numbers, NaN where missing, for the values of site {name!r}",
                    f"dtype {values.dtype}",
                    "Drop columns of words and dates, and convert the others: .to_numpy(float).",
                )
            )
    return values


def _check_shapes(name: str, values: Shape, scale: Shape, wanted: Shape) -> None:
    try:
        fits = jnp.broadcast_shapes(values, scale, wanted) == wanted
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            expected(
                f"values and scale of site {name!r} that broadcast to x's shape {wanted}",
                f"shapes {values} and {scale}",
                "Values have one number for each entry of x, NaN where nothing was seen.",
            )
        )


def _check_values(name: str, values: ArrayLike, scale: ArrayLike) -> None:
    if not is_concrete(values):
        return
    array = np.asarray(values, float)
    if np.isinf(array).any():
        first = first_index(np.isinf(array))
        raise ValueError(
            expected(
                f"values of site {name!r} that are finite or NaN",
                f"{array[first]} at index {first}",
                "NaN is for an entry that was not seen.",
            )
        )
    if not is_concrete(scale):
        return
    array, noise = np.broadcast_arrays(array, np.asarray(scale, float))
    bad = ~np.isnan(array) & ~((noise > 0) & np.isfinite(noise))
    if bad.any():
        first = first_index(bad)
        raise ValueError(
            expected(
                f"a finite scale > 0 of every entry that was seen at site {name!r}",
                f"{noise[first]} at index {first}",
                _EXACT_CURE,
            )
        )
