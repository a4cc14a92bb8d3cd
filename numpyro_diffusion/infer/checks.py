r"""A look at a model before a run: what would fail, what would mislead, which engine, at what cost.

Each check is one that the engines have as well, or would suffer from in silence:

    runs, sites         the model is run once; its diffusion sites as the engines see them
    data                numbers that are seen and NaN; numbers that no draw of the model comes near
    signal erased       sqrt(abar_T) times the root mean square of draws
    reverse steps       -log p(x^{t-1} | x^t) on paths that the forward chain makes of draws, less its entropy: 0 where
                        the two chains agree, .1 where the squared errors of a Gaussian step are a fifth too large
    programs            how many operations are compiled, and whether they are the same at each run of the model
    memory              of gradients and draws of a run
    likelihood          finite at draws of the prior, with a finite gradient that is not 0
    log w               its standard deviation over the noises of the guided chain: below 2 nats weights alone do,
                        at tens of nats chains move by small steps

The recommendation is that of the page "which engine". Its cost is counted in network calls, a gradient of a chain as
three, and in seconds by timing one gradient.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.handlers import block
from numpyro.infer import MCMC

from .._checks import expected, first_index
from .._typing import Array
from ..chains import ReverseChain
from ..model.observations import check_observed
from ..model.reference import NormalReference
from ..model.sites import chain_of_one, latent_diffusion
from ..model.split import SplitModel, split_model
from ..model.trace import trace_model
from ..schedules import check_signal_erased
from ..training.result import FitResult
from ..wrappers import unmask
from .checklist import Checklist, Finding
from .checks_after import check_chains, check_training
from .checks_cost import gradient_of_chains, memory, program

__all__ = ["check"]

_NUM_PREDICTED = 100  # data sets of the prior, with which the data are compared
_MOST_OUTSIDE = 0.25  # of the numbers of a site, beyond all of them
_PATHS, _MOST_NUMBERS = (64, 1024), 16_384  # of the chain, least and most: so that means are known to a hundredth
_MOST_LEVELS = 16
_MOST_SURPRISE = 0.1  # nats of a coordinate and step
_NUM_STARTS = 16  # draws at which the likelihood is looked at
_NUM_WEIGHTS = 64
_FLAT = 2.0  # nats: importance weights work
_FEW_COORDINATES = 50
# Of the run whose cost is told.
_NUM_CHAINS, _NUM_TRANSITIONS, _NUM_LEAPS = 4, 1500, 8
_NUM_PARTICLES, _NUM_ISLANDS, _GIBBS_PARTICLES = 1000, 4, 16
_OF_GRADIENT = 3  # network calls that a gradient through one costs


def check(model: Callable | MCMC | FitResult, *args: Any, **kwargs: Any) -> Checklist:
    """Look at a model with its data before an engine runs: a list of what is right, what is wrong, and the cure.

    Of an ``MCMC`` that has run it looks at the draws, of what ``fit`` returned at the losses: see
    :mod:`.checks_after`.

    Nothing is changed, and no posterior is drawn. It takes seconds; more where the covariance of a prior's errors has
    to be computed first, as :class:`DiffusionHMC` would.

    Args:
        model: a NumPyro model with a latent :class:`Diffusion` site; or a finished run.
        args: the model's arguments, data among them.
        kwargs: the model's keyword arguments.

    Returns:
        The list; print it. ``.passed``, ``.failed`` and ``.engine`` are for programs.

    Raises:
        TypeError: for a model that cannot be called; for arguments beside a finished run.
        ValueError: for an ``MCMC`` that has not run.

    >>> import numpyro
    >>> import numpyro.distributions as dist
    >>> from numpyro_diffusion import Diffusion, GaussianKernel, Transition, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper", parameterization="x0")
    >>> def mean(params, x_t, t, context):
    ...     return jnp.sqrt(jnp.asarray(kernel.schedule.alpha_bar)[t])[..., None] * x_t
    >>> prior = Diffusion(kernel, Transition(mean, None, (2,)))
    >>> def model(y): numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), 1.0).to_event(1), obs=y)
    >>> found = check(model, jnp.array([1.0, jnp.nan]))
    >>> found.engine is None, found.failed[0].name
    (True, 'data')
    """
    if isinstance(model, MCMC | FitResult):
        if args or kwargs:
            raise TypeError(expected("a finished run alone", "arguments beside it", "It has its own."))
        return check_chains(model) if isinstance(model, MCMC) else check_training(model)
    if not callable(model) or isinstance(model, type):
        raise TypeError(expected("a NumPyro model", repr(model), "Pass the model function itself."))
    with block():  # handlers around the caller, which may be a model, see nothing of it
        return _check(model, args, kwargs)


def _check(model: Callable, args: tuple, kwargs: dict) -> Checklist:
    findings: list[Finding] = []
    for look in (_runs, _data, _sites):
        findings += look(model, args, kwargs)
        if any(finding.passed is False for finding in findings):
            return Checklist(tuple(findings))
    split, chains = split_model(model, args, kwargs), _chains(model, args, kwargs)
    findings.append(program(split, chains, _chains(model, args, kwargs)))
    if not findings[-1].passed:
        return Checklist(tuple(findings))  # what comes next would have to compile it
    findings += _within_reach(model, args, kwargs)
    for name, chain in chains.items():
        findings += _of_chain(name, chain)
    return _with_engine(findings, split, model, args, kwargs)


def _runs(model: Callable, args: tuple, kwargs: dict) -> Iterator[Finding]:
    try:
        trace_model(model, args, kwargs)
    except Exception as error:  # of any kind: it is the user's function
        yield Finding("the model runs", False, f"{type(error).__name__}: {error}", "Call it with the same arguments.")
    else:
        yield Finding("the model runs", True, "once, at a draw of its prior")


def _data(model: Callable, args: tuple, kwargs: dict) -> Iterator[Finding]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPyro's, of the NaN that is refused below
            check_observed(model, args, kwargs)
    except ValueError as error:
        yield Finding("data", False, str(error))
        return
    observed = _observed(model, args, kwargs)
    if not observed:
        cure = "Pass obs= at a sample site: without data the posterior is the prior."
        yield Finding("data", None, "no numbers are observed", cure)
    for name, (value, seen) in observed.items():
        if np.issubdtype(value.dtype, np.floating) and (bad := seen & np.isinf(value)).any():
            told = f"of site {name!r}: infinite at index {first_index(bad)}, {int(bad.sum())} of {value.size}"
            yield Finding("data", False, told, "Mend the file, or mask what was not measured.")
            continue
        hidden = f", {int((~seen).sum())} of them hidden by a mask" if not seen.all() else ""
        yield Finding("data", True, f"of site {name!r}: {value.size} numbers, shape {value.shape}{hidden}")


def _sites(model: Callable, args: tuple, kwargs: dict) -> Iterator[Finding]:
    try:
        split = split_model(model, args, kwargs)
    except (TypeError, ValueError) as error:
        yield Finding("sites", False, str(error))
        return
    for site in split.sites:
        states = "real" if site.num_states is None else f"of {site.num_states} states"
        told = f"{site.name!r} is a diffusion of {site.num_steps} steps, {states}, shape {site.shape}"
        told += f", in plates of shape {site.batch_shape}" if site.batch_shape else ""
        told += ", under a transform" if site.is_transformed else ""
        yield Finding("site", True, told)
    if split.others:
        discrete = f"; {_names(split.discrete_others)} discrete" if split.discrete_others else ""
        yield Finding("other unknowns", None, _names(split.others) + discrete)
    if any(site.batch_shape for site in split.sites):
        how = "independent of each other" if split.element_shape else "taken together"
        yield Finding("elements of the plate", None, f"{how}: {split.reason}")


def _within_reach(model: Callable, args: tuple, kwargs: dict) -> Iterator[Finding]:
    """Whether the data are like what the model draws: they are not, if one of the two is in other units."""
    observed = _observed(model, args, kwargs)

    def predict(key: Array) -> dict[str, Array]:
        key_model, key_data = jax.random.split(key)
        sites = trace_model(model, args, kwargs, rng_key=key_model)
        return {name: sites[name]["fn"].sample(key_data) for name in observed}

    try:
        drawn = jax.jit(lambda keys: jax.lax.map(predict, keys))(jax.random.split(jax.random.key(0), _NUM_PREDICTED))
    except (NotImplementedError, TypeError):  # a density that cannot be drawn from
        return
    for name, (value, seen) in observed.items():
        draws = np.broadcast_to(np.asarray(drawn[name]), (_NUM_PREDICTED, *value.shape))[:, seen]
        if not draws.size:
            continue
        numbers = value[seen]
        share = float(((numbers < draws.min(0)) | (numbers > draws.max(0))).mean())
        told = f"{share:.0%} of {name!r} beyond all of {_NUM_PREDICTED} data sets that the model draws"
        if share > _MOST_OUTSIDE:
            told += f"; the median is {np.median(numbers):.3g}, theirs {np.median(draws):.3g}"
        cure = (
            "Are prior and data in the same units? What learn_prior returns has those of its data; another prior gets "
            "them by TransformedDistribution."
        )
        yield Finding("data within the model's reach", share <= _MOST_OUTSIDE, told, cure)


def _of_chain(name: str, chain: ReverseChain) -> Iterator[Finding]:
    """What is to be said of a prior by itself: of its schedule, and of its network."""
    key_draws, key_paths = jax.random.split(jax.random.key(0))
    count = min(max(_PATHS[0], _MOST_NUMBERS // math.prod(chain.state_shape)), _PATHS[1])
    states = _draws(chain, jax.random.split(key_draws, count))
    if not chain.kernel.is_discrete:
        scale = float(jnp.sqrt(jnp.mean(states**2)))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            left = check_signal_erased(chain.kernel.schedule, scale)
        told = f"{left:.2g} of {name!r} is left at step {chain.num_steps}"
        cure = str(caught[0].message) + " A prior is trained with its schedule." if caught else ""
        yield Finding("signal erased", not caught, told, cure)
    levels = np.unique(np.linspace(1, chain.num_steps, min(_MOST_LEVELS, chain.num_steps)).round().astype(int))
    by_path = np.asarray(_surprise(chain, states, jnp.asarray(levels), key_paths), np.float64)
    surprise, error = by_path.mean(1), by_path.std(1) / math.sqrt(count)
    worst = int(np.abs(surprise).argmax())
    is_fit = bool(np.isfinite(surprise).all() and (np.abs(surprise) - 3 * error).max() <= _MOST_SURPRISE)
    told = (
        f"{surprise[worst]:+.3f} +- {error[worst]:.3f} nats of a coordinate of {name!r} at step {levels[worst]}, the "
        f"worst of {len(levels)} steps looked at"
    )
    cure = (
        "The steps do not undo the noise on the prior's own draws (above 0: too narrow, or off; below: too wide). "
        "Train longer, or let the variance be learned. Engines are exact for this prior all the same, and slower."
    )
    yield Finding("reverse steps fit", is_fit, told, cure)


@jax.jit
def _draws(chain: ReverseChain, keys: Array) -> Array:
    return jax.vmap(chain.sample_last)(keys)


@jax.jit
def _surprise(chain: ReverseChain, states: Array, levels: Array, key: Array) -> Array:
    """-log p(x^{t-1} | x^t) less its entropy, nats a coordinate, on paths of the forward chain: (levels, paths)."""

    def at(inputs: tuple[Array, Array]) -> Array:
        t, key = inputs
        key_noisy, key_before = jax.random.split(key)
        x_t = chain.kernel.marginal(states, t).sample(key_noisy)
        before = chain.kernel.bridge(x_t, states, t).sample(key_before)
        step = chain.reverse(x_t, t)
        return (-step.log_prob(before) - step.entropy()).reshape(len(states), -1).mean(1)

    return jax.lax.map(at, (levels, jax.random.split(key, len(levels))))


def _with_engine(findings: list[Finding], split: SplitModel, model: Callable, args: tuple, kwargs: dict) -> Checklist:
    """The likelihood, log w, and which engine."""
    steps = max(site.num_steps for site in split.sites)
    elements = math.prod(split.element_shape)
    size = sum(math.prod(site.shape) for site in split.sites) // max(elements, 1)
    if split.discrete_others or any(site.num_states is not None for site in split.sites):
        reason = "bits, classes or other discrete unknowns, of which no gradient is taken"
        return Checklist(tuple(findings), "DiffusionGibbs", reason, _gibbs_calls(steps))
    try:
        reference = NormalReference(model, args, kwargs, "auto")
        reference.prior_draw(jax.random.key(0))
    except (TypeError, ValueError) as error:
        cure = "DiffusionGibbs and TwistedSMC need no reference normal."
        findings.append(Finding("noises", False, str(error), cure))
        return Checklist(tuple(findings))
    gradient = gradient_of_chains(reference, _NUM_CHAINS)
    findings.append(memory(reference, gradient, _NUM_CHAINS, _NUM_TRANSITIONS))
    if findings[-1].passed is False:
        return Checklist(tuple(findings))
    likelihood, is_smooth = _likelihood(reference)
    findings.append(likelihood)
    if likelihood.passed is False and is_smooth:
        return Checklist(tuple(findings))
    if not is_smooth:
        reason = "a likelihood without a gradient"
        return Checklist(tuple(findings), "DiffusionGibbs", reason, _gibbs_calls(steps))
    spread = _log_weight_sd(reference)
    charts = "; ".join(f"{name!r} {chart}" for name, chart in reference.charts.items())
    findings.append(Finding("log w", None, f"standard deviation {spread:.1f} nats; {charts}"))
    seconds = _gradient_seconds(reference, gradient)
    hmc_calls = _NUM_CHAINS * _NUM_TRANSITIONS * _NUM_LEAPS * _OF_GRADIENT * steps
    hmc_seconds = _NUM_TRANSITIONS * _NUM_LEAPS * seconds
    if any("has others" in chart for chart in reference.charts.values()):
        engine, reason = "TemperedSMC", "the posterior has modes far apart, between which no chain moves"
        calls, told = hmc_calls, hmc_seconds
    elif size <= _FEW_COORDINATES and not split.others:
        engine, reason = "TwistedSMC", f"{size} coordinates, nothing else unknown: nothing to tune, and the evidence"
        calls = _NUM_ISLANDS * _NUM_PARTICLES * _OF_GRADIENT * steps
        told = seconds * calls / (_NUM_CHAINS * _OF_GRADIENT * steps)
    else:
        beside = f" beside {_names(split.others)}" if split.others else ""
        engine, reason = "DiffusionHMC", f"{size} coordinates{beside}, real and smooth"
        calls, told = hmc_calls, hmc_seconds
    return Checklist(tuple(findings), engine, reason, calls, told, spread)


def _likelihood(reference: NormalReference) -> tuple[Finding, bool]:
    """What was found at draws of the prior, and whether there is a gradient."""
    z = jax.vmap(reference.prior_draw)(jax.random.split(jax.random.key(1), _NUM_STARTS))
    terms, gradients = jax.jit(jax.vmap(reference.terms_and_gradient))(z)
    finite = np.isfinite(np.asarray(terms)).reshape(_NUM_STARTS, -1).all(1)
    if not finite.any():
        cure = "Look at the likelihood at draws of the prior: its support, its scale, NaN in a network."
        return Finding(
            "likelihood", False, f"0, infinite or NaN at all of {_NUM_STARTS} draws of the prior", cure
        ), True
    broken = sorted(name for name, leaf in gradients.items() if not np.isfinite(np.asarray(leaf)[finite]).all())
    if broken:
        cure = "Look at sqrt, log and norms at 0, and at the network; DiffusionGibbs needs no gradient."
        return Finding("likelihood", False, f"gradients that are NaN or infinite in {_names(broken)}", cure), True
    noises = reference.noises()
    flat = sorted(name for name in noises if not np.any(np.asarray(gradients[name])))
    varies = np.ptp(np.asarray(terms)[finite].reshape(int(finite.sum()), -1).sum(1)) > 0
    if flat and varies:
        cure = "DiffusionGibbs and EllipticalSlice need none."
        return Finding("likelihood", False, f"it changes, and has the gradient 0 in {_names(flat)}", cure), False
    told = f"finite at {int(finite.sum())} of {_NUM_STARTS} draws of the prior, with a gradient"
    return Finding("likelihood", True, told), True


def _log_weight_sd(reference: NormalReference) -> float:
    """Over draws of N(z; 0, I), and of the priors of other sites: nats."""
    z = jax.vmap(reference.prior_draw)(jax.random.split(jax.random.key(2), _NUM_WEIGHTS))
    log_weights = np.asarray(jax.jit(jax.vmap(lambda u: reference.log_prior_and_rest(u)[1]))(z), np.float64)
    log_weights = log_weights[np.isfinite(log_weights)]
    return float(log_weights.std(ddof=1)) if len(log_weights) > 1 else math.inf


def _gradient_seconds(reference: NormalReference, gradient: Callable) -> float:
    """Of one gradient of as many chains as a run has side by side."""
    z = jax.vmap(reference.prior_draw)(jax.random.split(jax.random.key(3), _NUM_CHAINS))
    jax.block_until_ready(gradient(z))
    took = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(gradient(z))
        took.append(time.perf_counter() - began)
    return min(took)


def _gibbs_calls(steps: int) -> int:
    return _NUM_CHAINS * _NUM_TRANSITIONS * _GIBBS_PARTICLES * steps


def _observed(model: Callable, args: tuple, kwargs: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Values by site, and which of them are seen; factors, which have none, left out."""
    found = {}
    for name, site in trace_model(model, args, kwargs).items():
        if site["type"] == "sample" and site["is_observed"] and np.size(site["value"]):
            value = np.asarray(site["value"])
            found[name] = value, np.broadcast_to(np.asarray(unmask(site["fn"])[1]), value.shape)
    return found


def _chains(model: Callable, args: tuple, kwargs: dict) -> dict[str, ReverseChain]:
    """Of one element of each latent diffusion site, with the first context."""
    found = {}
    for name, site in trace_model(model, args, kwargs).items():
        wrapped = latent_diffusion(site)
        if wrapped is not None:
            found[name] = chain_of_one(wrapped.diffusion)
    return found


def _names(names: Any) -> str:
    return ", ".join(map(repr, names))
