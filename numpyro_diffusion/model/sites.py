"""Single sites of a traced model: which are latent diffusions, which are refused, the density of others."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist

from .._checks import expected
from .._typing import Array, Shape
from ..chains import ReverseChain
from ..diffusion import Diffusion, has_no_name
from ..estimates import AsDensity
from ..wrappers import WrappedDiffusion, find_diffusions, obstacle, unwrap, wrapped_diffusion

__all__ = [
    "DiffusionSite",
    "chain_of_one",
    "check_estimate_named",
    "check_outside_scan",
    "check_plate",
    "check_proper",
    "check_sample_shape",
    "check_trained",
    "diffusion_sites",
    "is_latent",
    "latent_diffusion",
    "refuse_unnamed",
    "site_log_prob",
]


class DiffusionSite(NamedTuple):
    """What is static about one latent diffusion site."""

    name: str
    batch_shape: Shape  # of the site: its plates
    shape: Shape  # of one state x^0 of the chain: plates, dimensions turned to events, event
    is_transformed: bool  # whether the site's value is a function of the state
    num_steps: int
    num_states: int | None  # K of discrete states


def is_latent(site: dict) -> bool:
    """Whether a site of a trace is a sample site that is not observed."""
    return site["type"] == "sample" and not site["is_observed"]


def latent_diffusion(site: dict) -> WrappedDiffusion | None:
    """The diffusion of a latent site, inside of ``expand``, ``to_event`` and transforms at most; None for other sites.

    Args:
        site: of a trace, or a handler's message.

    Raises:
        ValueError: for one inside of another wrapper, of a transform without an inverse, or of one of discrete states;
            for one drawn with a ``sample_shape``.
    """
    if not is_latent(site):
        return None
    name, fn = site["name"], site["fn"]
    wrapped = wrapped_diffusion(fn)
    if wrapped is not None:
        check_sample_shape(name, site["kwargs"].get("sample_shape", ()))
        _check_real_states(name, wrapped)
        return wrapped
    inside = find_diffusions(fn)
    if inside and isinstance(unwrap(fn)[0], dist.MaskedDistribution) and name.endswith("_unobserved"):
        # NumPyro's obs_mask makes two masked sites of one: <name>_observed and <name>_unobserved.
        raise ValueError(
            expected(
                f"no obs_mask at the diffusion site {name.removesuffix('_unobserved')!r}",
                "one",
                "Leave the site latent and observe what was seen of it by infer.observe_entries, with a small noise: "
                "engines then draw the rest.",
            )
        )
    if any(not isinstance(diffusion.estimator, AsDensity) for diffusion in inside):
        raise ValueError(
            expected(
                f"a Diffusion at latent site {name!r}, as it is or inside of expand, to_event and transforms with an "
                "inverse",
                f"one inside of {obstacle(fn)}",
                "Make the diffusion a site of its own and write the rest as a function of its value; mask or weigh the "
                "likelihood, not the prior.",
            )
        )
    return None


def chain_of_one(prior: Diffusion) -> ReverseChain:
    """The chain of one x; of several contexts, that of the first."""
    context, shape = prior.context, prior.transition.context_shape
    if context is not None:
        context = jnp.reshape(context, (-1, *(shape or ())))[0]
    return ReverseChain(prior.kernel, prior.transition, context=context)


def check_sample_shape(name: str, sample_shape: Shape) -> None:
    """Check that a latent diffusion site is repeated by plates alone.

    Raises:
        ValueError: for a ``sample_shape``, of which neither a chain nor a reparameterisation knows.
    """
    if sample_shape:
        raise ValueError(
            expected(
                f"no sample_shape at the diffusion site {name!r}",
                f"{tuple(sample_shape)}",
                "Draw it in a numpyro.plate, or from prior.expand(...).",
            )
        )


def check_outside_scan(name: str, is_inside: bool) -> None:
    """Check that a latent diffusion site has one chain, not one for each round of a loop.

    Raises:
        ValueError: for a site inside of ``numpyro.contrib.control_flow.scan``.
    """
    if is_inside:
        raise ValueError(
            expected(
                f"diffusion site {name!r} outside of scan",
                "one inside",
                "Draw it before, in a plate over the rounds, and hand its values to the scan.",
            )
        )


def check_proper(site: dict) -> None:
    """Check that a latent site beside a diffusion has a prior that can be drawn from: every engine starts there.

    Raises:
        ValueError: for ``ImproperUniform``.
    """
    if is_latent(site) and isinstance(unwrap(site["fn"])[0], dist.ImproperUniform):
        raise ValueError(
            expected(
                f"a prior that can be sampled at site {site['name']!r}",
                "ImproperUniform",
                "Give it a proper one, however wide: an improper prior has no evidence.",
            )
        )


def diffusion_sites(prototype: Mapping[str, dict]) -> tuple[DiffusionSite, ...]:
    """The latent diffusion sites of a trace.

    Raises:
        ValueError: if there is none, if one is scaled, wrapped or has a ``sample_shape``, or if a plate is subsampled.
    """
    sites = []
    for name, site in prototype.items():
        if site["type"] == "plate":
            check_plate(name, *site["args"][:2])
        wrapped = latent_diffusion(site)
        if wrapped is not None:
            _check_unscaled(name, site)
            check_outside_scan(name, wrapped.diffusion._num_stacked > 0)
            shapes = site["fn"].batch_shape, wrapped.state_shape
            kernel = wrapped.diffusion.kernel
            sites.append(DiffusionSite(name, *shapes, bool(wrapped.transforms), kernel.num_steps, kernel.num_states))
    if not sites:
        raise ValueError(
            expected(
                "a model with a latent Diffusion site",
                f"latent sites {[name for name, site in prototype.items() if is_latent(site)]}",
                "Give one a numpyro_diffusion.Diffusion; a model without one needs NUTS alone.",
            )
        )
    return tuple(sites)


def check_trained(site: dict) -> None:
    """Check that a parameter comes with its value.

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


def check_estimate_named(site: dict) -> None:
    """Check that an observed diffusion, a constant of the evidence, says which estimate of log p(x^0) that constant is.

    Raises:
        ValueError: for a site whose density is computed from a diffusion without an ``estimator``.
    """
    if site["type"] == "sample" and site["is_observed"]:
        answered: list[Diffusion] = []
        site_log_prob(site, answered)
        refuse_unnamed(site["name"], answered)


def refuse_unnamed(name: str, answered: Sequence[Diffusion]) -> None:
    """Refuse an observed site if a diffusion from which its density was computed names no estimate.

    Raises:
        ValueError: if there is one.
    """
    if any(diffusion.estimator is None for diffusion in answered):
        raise ValueError(has_no_name(f"the observed site {name!r}, a constant of the evidence"))


def site_log_prob(site: dict, answered: list | None = None) -> Array:
    """A site's log_prob with its scale.

    Args:
        site: of a trace.
        answered: where every diffusion whose estimate enters is noted, wherever the site's distribution holds it.

    Raises:
        ValueError: if the value does not fit the distribution's shape.
    """
    value, fn = site["value"], site["fn"]
    if not _fits(jnp.shape(value), fn):
        raise ValueError(
            expected(
                f"a value of shape {fn.shape()} at site {site['name']!r}",
                f"shape {jnp.shape(value)}",
                "Check the observation against the distribution that the model gives it.",
            )
        )
    intermediates = site["intermediates"]
    log_prob = fn.log_prob(value, intermediates) if intermediates else fn.log_prob(value)
    return log_prob if site["scale"] is None else site["scale"] * log_prob


def _fits(shape: Shape, fn: dist.Distribution) -> bool:
    """Whether a value has the distribution's event shape, and one of the two batch shapes broadcasts to the other."""
    split = len(shape) - fn.event_dim
    if split < 0 or shape[split:] != fn.event_shape:
        return False
    try:
        return jnp.broadcast_shapes(shape[:split], fn.batch_shape) in (shape[:split], fn.batch_shape)
    except ValueError:
        return False


def check_plate(name: str, size: int, subsample_size: int | None) -> None:
    """Check that a plate has all its data.

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


def _check_real_states(name: str, wrapped: WrappedDiffusion) -> None:
    if wrapped.transforms and wrapped.diffusion.kernel.is_discrete:
        raise ValueError(
            expected(
                f"real states inside of the transforms at latent site {name!r}",
                f"the discrete ones of {type(wrapped.diffusion.kernel).__name__}",
                "A transform's Jacobian is of densities: draw the diffusion as it is and write the rest as a function "
                "of its value.",
            )
        )


def _check_unscaled(name: str, site: dict) -> None:
    if site["scale"] is not None:
        raise ValueError(
            expected(
                f"an unscaled diffusion site {name!r}",
                f"scale {site['scale']}",
                "A power of a diffusion's density has no chain; scale the likelihood instead.",
            )
        )
