r"""Guidance of a model's diffusion sites, made of the model itself: of the numbers whose distribution depends on them.

For a diffusion site x with a Gaussian kernel, of the sites whose density depends on x those guide that are numbers and
depend on no other diffusion site; numbers that are not Normal as the Normal ones nearest to them
(:mod:`.nearest_normal`). They are linearised once (:mod:`.linearised`): their mean in the chain's state, at 0 if it is
linear and the noise is the same for all x, else near the mode of the posterior (:mod:`.mode`), and kept if that leads
nearer to the posterior than the prior's chain (:mod:`.nearer`) and hides none of the modes that were found; their noise
and slope at the median of the other latent sites' prior. Where the mean is linear, and noise and slope are the same
whatever the other sites, steps have correlated coordinates (:mod:`~numpyro_diffusion.guidance.path_posterior`), if that
is worth half a nat. What of them depends on other latent sites is read off the model's program, and follows these
sites' current values. The covariance of the network's errors is the prior's own, the attribute ``errors`` of the
Diffusion, or else computed here, once for a prior, of fixed draws.

Guidance never changes the posterior: it is a function of the other latent sites, and the ratio of p and q corrects it
(:mod:`.reparam`). All that is chosen here is a choice of speed, as long as the guided chain comes near to every mode:
where searches from draws of the prior find one that it does not, it is not taken. A site for which nothing can be
linearised keeps the chain of its prior, and its entry in ``charts`` says why.

Assumed: real latent sites.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from numpyro.distributions import biject_to
from numpyro.handlers import seed, substitute
from numpyro.infer import init_to_sample

from .._checks import expected, is_concrete
from .._compat.numpyro import constrain_fn
from .._pytree import register_pytree
from .._typing import Array
from ..chains import ReverseChain
from ..diffusion import Diffusion
from ..guidance import ErrorCovariance, Guidance, error_covariance
from ..guidance.base import check_normal
from ..guidance.linearised import LinearisedGuidance
from ..guidance.seen_coordinates import numbers_held
from ..guidance.spectrum import conditioned_step
from ..wrappers import WrappedDiffusion
from .arguments import Static, as_static
from .linearised import Dependences, LinearisedSite, Slopes, dependences, numbers_that_guide, reduced, slopes
from .mode import is_hidden, posterior_modes
from .nearer import is_nearer
from .program import Values
from .sites import chain_of_one, latent_diffusion
from .split import Programs, SplitModel
from .trace import trace_model

__all__ = ["AutoGuidance", "ModelGuidance", "checked_guidance", "with_states"]

_NUM_DRAWS = 65  # of the prior, for medians and means: a place that is about right is enough
_NUM_STARTS = 8  # of them, from which modes are searched: a mode of half the prior is overlooked once in 256 times
_MOST_NUMBERS = 150_000_000  # of the matrices of one site: 600 MB in single precision


@register_pytree(data=("split", "sites", "others"), static=("charts", "reason"))
class ModelGuidance:
    """Guidance of the diffusion sites of a model with its arguments, as a function of its other latent sites.

    Attributes:
        split: the model; None where no site can be guided.
        sites: what guides each guided site.
        others: values of the other latent sites, where the model was linearised.
        charts: pairs of a diffusion site and what its noises are those of, in words.
        reason: why sites that ``charts`` does not name are not guided.
    """

    def __init__(
        self,
        split: SplitModel | None = None,
        sites: Mapping[str, LinearisedSite] | None = None,
        others: Values | None = None,
        charts: tuple[tuple[str, str], ...] = (),
        reason: str = "",
    ) -> None:
        self.split, self.sites, self.others = split, dict(sites or {}), dict(others or {})
        self.charts, self.reason = charts, reason

    @property
    def is_fixed(self) -> bool:
        """Whether the guidance is the same whatever the other latent sites."""
        return not any(site.follows for site in self.sites.values())

    def at(self, others: Values) -> dict[str, LinearisedGuidance]:
        """Guidance by site, at values of the other latent sites, in their supports."""
        return {} if self.split is None else {n: site.guidance(self.split, others) for n, site in self.sites.items()}


class AutoGuidance:
    """Guidance of one model for whatever arguments; what an engine holds.

    Args:
        model: a NumPyro model.
    """

    def __init__(self, model: Callable) -> None:
        self._model = model
        self._programs = Programs(model)
        self._errors: list[tuple[Static, ErrorCovariance]] = []  # of priors that came without

    def bind(self, args: tuple, kwargs: Values) -> ModelGuidance:
        """Guidance of the model with these arguments.

        Raises:
            ValueError: for a prior that is traced and brings no covariance of its errors.
        """
        if not is_concrete((args, kwargs)):
            return self._bind(args, kwargs)
        with jax.ensure_compile_time_eval():  # where another function is traced, too
            return self._bind(args, kwargs)

    def _bind(self, args: tuple, kwargs: Values) -> ModelGuidance:
        try:
            split = self._programs.bind(args, kwargs)
        except ValueError as refused:  # noises need less of a model than its split
            return ModelGuidance(reason=str(refused))
        if split.discrete_others:
            return ModelGuidance(reason=f"the sites {list(split.discrete_others)} are discrete")
        others = _some_others(split)
        priors = _diffusions(self._model, args, kwargs, others)
        sites, charts = {}, {}
        for name in priors:
            found = self._site(split, name, priors, others)
            if isinstance(found, str):
                charts[name] = f"the prior's: {found}"
            else:
                sites[name], charts[name] = found
        return ModelGuidance(split, sites, others, tuple(charts.items()))

    def _site(
        self, split: SplitModel, name: str, priors: Mapping[str, WrappedDiffusion], others: Values
    ) -> tuple[LinearisedSite, str] | str:
        """What guides a site, with a word about it; or why nothing does."""
        prior = priors[name]
        if not _has_normal_steps(prior.chain):
            return f"steps of {type(prior.diffusion.kernel).__name__} are not Normal"
        guide, left_out = numbers_that_guide(split, name)
        rest = "; ".join(f"{site!r} {why}" for site, why in left_out.items())
        if not guide:
            return rest or "no other site depends on it"
        states = {site: _some_state(each) for site, each in priors.items()}
        follows = dependences(split, name, guide, states, others)
        is_linear = name not in follows.slope | follows.noise
        if not is_linear:
            draws = prior.chain.sample_last(jax.random.key(1), (_NUM_DRAWS,))
            states[name] = draws.mean(0)
        found = slopes(split, name, guide, states, others)
        if trouble := found.trouble():
            return f"{_names(guide)}, at {'0' if is_linear else 'the mean of the prior'}: {trouble}"
        errors, source = self._error_covariance(name, prior.diffusion)
        if too_large := _too_large(found, split, errors, follows):
            return f"{_names(guide)}: {too_large}"
        if not is_linear:
            starts = jnp.concatenate([states[name][None], draws[:_NUM_STARTS]])
            modes, heights = posterior_modes(split, name, guide, states, others, errors, starts)
            states[name] = modes[0]
            found = slopes(split, name, guide, states, others)
        kernel = prior.chain.kernel if is_linear and _holds_path(found, split, errors, follows) else None
        site = LinearisedSite(split, name, found, errors, others, follows, kernel)
        if not is_linear:
            is_kept = is_nearer(split, site, prior.chain, others)
            if is_concrete(is_kept) and not is_kept:
                return f"{_names(guide)}, linearised near the mode: further from the posterior than the prior's chain"
            hides = is_hidden(split, name, found, others, modes, heights)
            if is_concrete(hides) and hides:
                return f"{_names(guide)}, linearised near a mode: the posterior has others, which guidance would hide"
            # The same noises where it is not known beforehand.
            site.spectrum = site.spectrum.kept_where(is_kept & ~hides)
        words = [f"guided by {_names(guide)}, {site.num_seen} numbers", *_followed(follows, split)]
        words += ["correlated steps"] if site.is_correlated else []
        words += [] if is_linear else ["linearised near the mode of the posterior"]
        return site, "; ".join([*words, source, *([f"left out: {rest}"] if rest else [])])

    def _error_covariance(self, name: str, prior: Diffusion) -> tuple[ErrorCovariance, str]:
        """The covariance of a prior's errors, and where it is from."""
        errors = getattr(prior, "errors", None)
        if errors is not None:
            return errors, "errors of the prior"
        chain = chain_of_one(prior)
        if not is_concrete(chain):
            raise ValueError(
                expected(
                    f"a prior at site {name!r} that brings the covariance of its errors, where it is traced",
                    "one that does not",
                    "Compute guidance.error_covariance beforehand and attach it to the prior, or pass guidance=None.",
                )
            )
        kept = as_static((chain,), {})
        source = "errors computed" + ("" if chain.context is None else " for the first context")
        for known, errors in self._errors:
            if known == kept:
                return errors, source
        with jax.ensure_compile_time_eval():
            errors = error_covariance(jax.random.key(0), chain)
        self._errors.append((kept, errors))
        return errors, source


def checked_guidance(
    guidance: Mapping[str, Guidance] | Literal["auto"] | None,
) -> dict[str, Guidance] | Literal["auto"]:
    """What an engine was told of guidance: by site, or made of the model.

    Raises:
        ValueError: for another word.
    """
    if isinstance(guidance, str) and guidance != "auto":
        cure = "Name sites, {'x': MomentMatching(...)}, or leave it to the model."
        raise ValueError(expected("guidance by site, 'auto' or None", repr(guidance), cure))
    return guidance if isinstance(guidance, str) else dict(guidance or {})


def with_states(model: Callable) -> Callable:
    """The model with its latent diffusion sites at some fixed states."""

    def fill(site: dict) -> Array | None:
        wrapped = latent_diffusion(site)
        return None if wrapped is None else wrapped.value(_some_state(wrapped))

    return substitute(model, substitute_fn=fill)


def _some_others(split: SplitModel) -> dict[str, Array]:
    """The median of the other latent sites' prior, of their unconstrained values."""
    if not split.others:
        return {}
    args, kwargs = split.arguments
    model = seed(with_states(split.program.model), jax.random.key(0))
    return constrain_fn(model, args, kwargs, _medians(split))


@jax.jit
def _medians(split: SplitModel) -> dict[str, Array]:
    args, kwargs = split.arguments
    model = with_states(split.program.model)

    def draw(key: Array) -> dict[str, Array]:
        sites = trace_model(model, args, kwargs, rng_key=key, fill=_initial_value)
        return {name: biject_to(sites[name]["fn"].support).inv(sites[name]["value"]) for name in split.others}

    draws = jax.vmap(draw)(jax.random.split(jax.random.key(0), _NUM_DRAWS))
    return {name: jnp.median(values, axis=0) for name, values in draws.items()}


def _diffusions(model: Callable, args: tuple, kwargs: Values, others: Values) -> dict[str, WrappedDiffusion]:
    """The latent diffusion sites, at values of the other latent ones."""
    sites = trace_model(with_states(model), args, kwargs, fill=lambda site: others.get(site["name"]))
    found = {name: latent_diffusion(site) for name, site in sites.items()}
    return {name: wrapped for name, wrapped in found.items() if wrapped is not None}


def _initial_value(site: dict) -> Array | None:
    return init_to_sample(site) if site["type"] == "sample" and site["value"] is None else None


def _some_state(prior: WrappedDiffusion) -> Array:
    kernel = prior.diffusion.kernel
    if kernel.is_discrete:
        return kernel.some_state(jax.random.key(0), prior.state_shape)
    return jnp.zeros(prior.state_shape, jnp.result_type(float))


def _has_normal_steps(chain: ReverseChain) -> bool:
    """Whether the kernel has the steps that guidance corrects, by the shapes alone."""
    if chain.kernel.is_discrete:
        return False
    state = jax.ShapeDtypeStruct(chain.batch_shape + chain.state_shape, jnp.result_type(float))

    def step(x: Array) -> Array:
        return conditioned_step(chain, check_normal(chain.reverse(x, 1), "guidance"), 1, x, x).loc

    try:
        jax.eval_shape(step, state)
    except (TypeError, NotImplementedError):
        return False
    return True


def _too_large(found: Slopes, split: SplitModel, errors: ErrorCovariance, follows: Dependences) -> str:
    """Whether the matrices of all steps are more than a device should hold, in words.

    Raises:
        ValueError: where they are traced, and may be if all elements have the same.
    """
    rows = errors.blocks(reduced(found.rows, len(split.element_shape))[1])
    numbers = numbers_held(errors, rows, is_fixed=follows.keeps_scale(split.others))
    if numbers <= _MOST_NUMBERS:
        return ""
    got = f"{numbers} numbers in the matrices of all steps, more than {_MOST_NUMBERS}"
    if not is_concrete(found.rows):
        raise ValueError(expected("few enough for guidance of a traced model", got, "Pass guidance=None."))
    return got


def _holds_path(found: Slopes, split: SplitModel, errors: ErrorCovariance, follows: Dependences) -> bool:
    """Whether steps can be those of the path's posterior: noise and slope are fixed, and its matrices not too large."""
    rows = reduced(found.rows, len(split.element_shape))[1]
    held = len(errors.diagonal) * rows.size * (1 + rows.shape[-2] / rows.shape[-1])
    return follows.keeps_scale(split.others) and held <= _MOST_NUMBERS


def _followed(follows: Dependences, split: SplitModel) -> list[str]:
    unknown, slope = frozenset(split.others), follows.slope
    parts = (("noise", follows.noise), ("slope", slope), ("offset", follows.offset - slope))
    return [f"its {what} follows {_names(sorted(names & unknown))}" for what, names in parts if names & unknown]


def _names(names: Any) -> str:
    return ", ".join(map(repr, names))
