"""Single sites of a traced model: which are diffusions, what they must not be, and the density of the others."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist

from .._checks import expected
from .._typing import Array, Shape
from ..diffusion import Diffusion

__all__ = [
    "DiffusionSite",
    "SilentModel",
    "check_plate",
    "check_trained",
    "diffusion_sites",
    "is_latent",
    "site_log_prob",
    "unwrap_diffusion",
]


class DiffusionSite(NamedTuple):
    """What is static about one latent diffusion site."""

    name: str
    batch_shape: Shape  # of the site: its plates
    shape: Shape  # of one value: plates, dimensions turned to events, event
    num_steps: int
    num_states: int | None  # K of discrete states


def unwrap_diffusion(fn: dist.Distribution) -> tuple[dist.Distribution, Shape]:
    """What is inside of ``expand`` and ``to_event``, with the full batch shape that it has there."""
    shape = fn.shape()
    while isinstance(fn, (dist.Independent, dist.ExpandedDistribution)):
        fn = fn.base_dist
    return fn, shape[: len(shape) - fn.event_dim]


def is_latent(site: dict) -> bool:
    """Whether a site of a trace is a sample site that is not observed."""
    return site["type"] == "sample" and not site["is_observed"]


def diffusion_sites(prototype: Mapping[str, dict]) -> tuple[DiffusionSite, ...]:
    """The latent diffusion sites of a trace.

    Raises:
        ValueError: if there is none, if one is scaled or masked, or if a plate is subsampled.
    """
    sites = []
    for name, site in prototype.items():
        if site["type"] == "plate":
            check_plate(name, *site["args"][:2])
        elif is_latent(site):
            law, _ = unwrap_diffusion(site["fn"])
            if isinstance(law, Diffusion):
                _check_unscaled(name, site)
                shapes = site["fn"].batch_shape, site["fn"].shape()
                sites.append(DiffusionSite(name, *shapes, law.kernel.num_steps, law.kernel.num_states))
            elif isinstance(law, dist.MaskedDistribution) and isinstance(unwrap_diffusion(law.base_dist)[0], Diffusion):
                raise ValueError(
                    expected(
                        f"an unmasked diffusion site {name!r}",
                        "a masked one",
                        "Mask the likelihood; where a prior is masked out, leave the site away.",
                    )
                )
    if not sites:
        raise ValueError(
            expected(
                "a model with a latent Diffusion site",
                f"latent sites {[name for name, site in prototype.items() if is_latent(site)]}",
                "Give one a numpyro_diffusion.Diffusion law; without one, NUTS alone will do.",
            )
        )
    return tuple(sites)


def check_trained(site: dict) -> None:
    """A parameter must come with its value.

    Raises:
        ValueError: if it has only the function that draws its first one.
    """
    if site["type"] == "param" and site["value"] is None and not site["args"]:
        raise ValueError(
            expected(
                f"a value of parameter {site['name']!r}",
                "the function that draws its first one",
                "Pass numpyro.handlers.substitute(model, data=params) with trained parameters.",
            )
        )


class SilentModel:
    """A model whose latent diffusion sites an engine knows how to draw, without the warning of their bound.

    It equals the model, which NumPyro's Gibbs asks of its blocks.
    """

    def __init__(self, model: Callable) -> None:
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="A latent Diffusion site")
            return self.model(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return self.model == (other.model if isinstance(other, SilentModel) else other)

    def __hash__(self) -> int:
        return hash(self.model)


def site_log_prob(site: dict) -> Array:
    """A site's log_prob with its scale.

    Raises:
        ValueError: if the value does not fit the law's shape.
    """
    value, law = site["value"], site["fn"]
    if not _fits(jnp.shape(value), law):
        raise ValueError(
            expected(
                f"a value of shape {law.shape()} at site {site['name']!r}",
                f"shape {jnp.shape(value)}",
                "Check the observation against the law that the model gives it.",
            )
        )
    intermediates = site["intermediates"]
    log_prob = law.log_prob(value, intermediates) if intermediates else law.log_prob(value)
    return log_prob if site["scale"] is None else site["scale"] * log_prob


def _fits(shape: Shape, law: dist.Distribution) -> bool:
    """Whether a value has the law's event shape, and one of the two batch shapes broadcasts to the other."""
    split = len(shape) - law.event_dim
    if split < 0 or shape[split:] != law.event_shape:
        return False
    try:
        return jnp.broadcast_shapes(shape[:split], law.batch_shape) in (shape[:split], law.batch_shape)
    except ValueError:
        return False


def check_plate(name: str, size: int, subsample_size: int | None) -> None:
    """A plate has all its data.

    Raises:
        ValueError: if it is subsampled.
    """
    if subsample_size is not None and size > subsample_size:
        raise ValueError(
            expected(
                "a model with all its data",
                f"plate {name!r} with {subsample_size} of {size}",
                "Drop subsample_size: a posterior needs every datum.",
            )
        )


def _check_unscaled(name: str, site: dict) -> None:
    if site["scale"] is not None:
        raise ValueError(
            expected(
                f"an unscaled diffusion site {name!r}",
                f"scale {site['scale']}",
                "A power of a diffusion's law has no chain; scale the likelihood instead.",
            )
        )
