"""Whether a joint density mixes an estimate of log p(x^0) with a latent site.

A bound in place of log p(x^0) leaves a posterior right as long as it is a constant of it. It is no constant where one
density is computed from a diffusion's answer and from a latent site: context or parameters that depend on the site, a
transform, the weight of a mixture. That is decided on the program of the density, in which the latent sites and the
answers are inputs, so it is the same for plain numbers and inside of ``jax.jit``.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp

from ._compat.jax import origins

__all__ = ["mixed_with_latent", "with_marked_answers"]

_Result = TypeVar("_Result")
_Sites: TypeAlias = Mapping[str, Mapping[str, Any]]


def mixed_with_latent(asked: str | None, run: Callable[[Mapping[str, Any]], _Sites]) -> str | None:
    """Which site's density mixes an answer with a latent site's value, in words; None if there is none.

    Args:
        asked: the site in question. None, or no site of the model's (a ``Reparam`` asks for it): the model itself calls
            ``log_prob``, and every site into which such an answer goes is in question.
        run: runs the model with values for some of its sites, and returns its sites.

    A model that asks for a latent site's value in Python (``if x > 0``) cannot be made a program: nothing is proved of
    it, and its sites count as mixed.
    """
    drawn = with_marked_answers(0.0, lambda: run({}))
    latent = {name: jnp.asarray(site["value"]) for name, site in _sampled(drawn) if not site["is_observed"]}
    if not latent:
        return None
    asked = asked if asked in dict(_sampled(drawn)) else None
    names: list[str] = []

    def densities(latent: dict[str, Any], in_model: Any, in_site: Any) -> list[Any]:
        sites = with_marked_answers(in_model, lambda: run(latent))
        wanted = {name: site for name, site in _sampled(sites) if asked in (None, name)}
        names[:] = wanted
        return with_marked_answers(in_site, lambda: [_log_density(site) for site in wanted.values()])

    try:
        of_densities = origins(densities, latent, 0.0, 0.0)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        return "no proof of it: the model asks for a latent site's value in Python"
    for name, origin in zip(names, of_densities, strict=True):
        *of_latent, in_model, in_site = origin.inputs
        is_answer = in_model if asked is None else in_site
        # An array that is traced outside of the model may be another block's site.
        if is_answer and (any(of_latent) or origin.tracers):
            return f"site {name!r}, computed from a latent site too"
    return None


def with_marked_answers(mark: Any, function: Callable[[], _Result]) -> _Result:
    """``function()``. Diffusions find this frame on the stack, answer whatever they depend on, and add ``mark``."""
    return function()


def _sampled(sites: _Sites) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, site) for name, site in sites.items() if site["type"] == "sample"]


def _log_density(site: Mapping[str, Any]) -> Any:
    scale = 1.0 if site["scale"] is None else site["scale"]
    return jnp.sum(scale * site["fn"].log_prob(site["value"]))
