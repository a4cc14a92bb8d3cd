"""What a model says of its draws: names of axes, observations, pointwise log likelihood.

The model is traced at the first draw, so that no law is asked for a draw that it cannot give, and a diffusion site
never for its density.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.handlers import block, seed, substitute, trace
from numpyro.infer import log_likelihood

from .._checks import expected
from .._typing import Shape
from ..diffusion import Diffusion
from ..model.sites import check_plate, check_trained, is_latent
from ..wrappers import unwrap
from .runs import default_dims

__all__ = ["Look", "look_at", "pointwise"]


class Look(NamedTuple):
    """What a trace tells.

    Attributes:
        dims: names of all axes of a site's value.
        batch_dims: of an observed site, those of its log density.
        latent: names of the latent sites.
        deterministic: names of the deterministic sites.
        observed: observed sites and their values.
        bounds: names of the observed diffusion sites, whose ``log_prob`` is a bound and no density.
    """

    dims: dict[str, tuple[str, ...]]
    batch_dims: dict[str, tuple[str, ...]]
    latent: list[str]
    deterministic: list[str]
    observed: dict[str, np.ndarray]
    bounds: list[str]


def look_at(model: Callable, args: tuple, kwargs: Mapping[str, Any], draws: Mapping[str, np.ndarray]) -> Look:
    """Trace the model at the first draw.

    Raises:
        ValueError: for a subsampled plate, or a parameter without a value.
    """
    look = Look({}, {}, [], [], {}, [])

    def run(values: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
        def fill(site: dict) -> Any:
            check_trained(site)
            return None if site.get("is_observed") else values.get(site["name"])

        with block():
            sites = trace(substitute(seed(model, key), substitute_fn=fill)).get_trace(*args, **kwargs)
        for name, site in sites.items():
            _note(look, name, site)
        return {name: jnp.asarray(sites[name]["value"]) for name in look.batch_dims}

    first = {name: value[0, 0] for name, value in draws.items()}
    observed = jax.jit(run)(first, jax.random.key(0))
    look.observed.update({name: np.asarray(value) for name, value in observed.items()})
    return look


def pointwise(
    model: Callable, args: tuple, kwargs: Mapping[str, Any], draws: Mapping[str, np.ndarray], look: Look
) -> dict[str, np.ndarray]:
    """Log density of each observation at each draw, (chains, draws, batch shape...), in nats.

    Observed diffusion sites are left out.

    Raises:
        ValueError: if a latent site has no draws.
    """
    # A diffusion site's value stands for its noises: the chain from them to it is not run.
    given = {f"{name}_noise" for name in look.deterministic if name in draws} | set(draws)
    missing = [name for name in look.latent if name not in given]
    if missing:
        raise ValueError(
            expected(
                "draws of every latent site",
                f"none of {missing}",
                "Pass the model and the arguments that the draws are of, or log_likelihood=False.",
            )
        )
    if not set(look.observed) - set(look.bounds):
        return {}
    # The seed is for sites that the draws replace, and for keys that a model asks for.
    model = block(seed(model, jax.random.key(0)), hide=look.bounds)
    values = log_likelihood(model, dict(draws), *args, batch_ndims=2, **kwargs)
    return {name: np.asarray(value) for name, value in values.items()}


def _note(look: Look, name: str, site: dict) -> None:
    """Add one site."""
    if site["type"] == "plate":
        check_plate(name, *site["args"][:2])
    elif site["type"] == "deterministic":
        look.deterministic.append(name)
        shape = jnp.shape(site["value"])
        # Its event is not known: plates are the leading axes, as far as sizes agree.
        dims = list(default_dims(name, len(shape)))
        for axis, frame in enumerate(sorted(site["cond_indep_stack"], key=lambda frame: frame.dim)):
            if axis < len(shape) and shape[axis] == frame.size:
                dims[axis] = frame.name
        look.dims[name] = tuple(dims)
    elif site["type"] == "sample":
        law = site["fn"]
        shape = jnp.shape(site["value"])
        rank = len(shape) - law.event_dim
        batch = _batch_dims(name, site, shape[:rank])
        event = tuple(site["infer"].get("event_dims", ()))
        if len(event) != law.event_dim:
            event = default_dims(name, len(shape))[rank:]
        look.dims[name] = batch + event
        if is_latent(site):
            look.latent.append(name)
            return
        look.batch_dims[name] = _batch_dims(name, site, jnp.broadcast_shapes(shape[:rank], law.batch_shape))
        if isinstance(unwrap(law)[0], Diffusion):
            look.bounds.append(name)


def _batch_dims(name: str, site: dict, shape: Shape) -> tuple[str, ...]:
    """The plates' names where the plates are, default names between."""
    dims = list(default_dims(name, len(shape)))
    for frame in site["cond_indep_stack"]:
        axis = len(shape) + frame.dim
        if axis >= 0 and shape[axis] == frame.size:
            dims[axis] = frame.name
    return tuple(dims)
