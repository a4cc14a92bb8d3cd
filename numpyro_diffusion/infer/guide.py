r"""A variational guide: diffusion sites as reverse chains with learned corrections, other sites as in AutoNormal.

The guide approximates the posterior of the reparameterised model, in which a diffusion site is a function of its
standard normal noises (``DiffusionReparam``). Its distribution of the noises is that of
:mod:`numpyro_diffusion.noise.charts`. Every step, coordinate and element has a gain, an inflation, a shift and a scale
of its own, because observations may see one coordinate and not the next. Training maximises

    E_q[log p(y, eps, theta) - log q(eps) - log q(theta)] <= log p(y)

from the point where q(eps) is the prior. For a Gaussian prior, and a Gaussian likelihood that factorises over
coordinates, the posterior of the path is in the family and the bound is reached.

Not captured: the dependence of x on the other sites, and of coordinates on each other. Training minimises a reverse
KL, which *drops modes*: a guide can look converged and know one mode of several. Never report it without importance
weights,

    w = p(y, eps, theta) / (q(eps) q(theta)),     log p(y) = log E_q[w]

and their Pareto k-hat. A mode that no draw of the guide comes near is missed by these too.

References: Vehtari, Simpson, Gelman, Yao, Gabry 2024, Pareto smoothed importance sampling.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer import init_to_uniform
from numpyro.infer.autoguide import AutoNormal

from .._checks import check_integer_at_least, expected
from .._compat.numpyro import log_density, reparam_site_name
from .._typing import Array, ArrayLike, Shape
from ..chains import ReverseChain
from ..guidance import LearnedGuidance, StepCorrection
from ..model.arguments import Static, as_static, join
from ..model.observations import check_observed
from ..model.reparam import DiffusionReparam
from ..model.sites import check_estimate_named, check_outside_scan, check_proper, latent_diffusion
from ..model.trace import trace_model
from ..noise.charts import GuidedNoise
from ..noise.importance import ImportanceResult, importance_result
from ..wrappers import WrappedDiffusion, wrapped_diffusion

__all__ = ["AutoDiffusionGuide"]


_FACTORS = ("inflation", "scale")


class _Program(NamedTuple):
    """What is compiled for one set of model arguments, to be used again as long as they are the same."""

    call: Static
    run: Callable[..., tuple[dict[str, Array], Array]]


class _Path(NamedTuple):
    """What is static about the noises of one site."""

    noise_shape: Shape  # elements, T + 1, event
    noise_event_dim: int  # as NumPyro counts: elements that are dimensions of the event too
    time_axis: int  # negative

    def initial(self, kind: str) -> Array:
        """The value of a parameter with which the guide is the prior. x^T has a shift and a scale of its own."""
        shape = list(self.noise_shape)
        shape[self.time_axis] -= kind in ("gain", "inflation")
        return jnp.full(shape, 1.0 if kind in _FACTORS else 0.0)

    def split(self, values: dict[str, Array]) -> tuple[StepCorrection, tuple[Array, Array]]:
        """The steps' corrections, and mean and standard deviation of x^T."""
        num_steps = self.noise_shape[self.time_axis] - 1
        steps = {k: jax.lax.slice_in_dim(v, 0, num_steps, axis=self.time_axis) for k, v in values.items()}
        shift, scale = (
            jax.lax.index_in_dim(values[kind], num_steps, axis=self.time_axis, keepdims=False)
            for kind in ("shift", "scale")
        )
        return StepCorrection(**steps), (shift, scale)


class AutoDiffusionGuide(AutoNormal):
    """Guide whose diffusion sites are corrected reverse chains, and whose other sites are those of AutoNormal.

    Train it with ``SVI(guide.model, guide, optim, Trace_ELBO())``: ``guide.model`` is the user's model with
    ``DiffusionReparam`` on every latent diffusion site, so its latent sites are ``x_noise`` and the like. A step costs
    two runs of the chain, one in the guide and one in the model. Plates, several diffusion sites, subsampling, and
    chains that depend on other latent sites or on parameters (``haiku_module``) work.

    Training drops modes (reverse KL): see the module's text, and :meth:`importance_weights`.

    Args:
        model: a NumPyro model with at least one latent :class:`Diffusion` site of a Gaussian kernel.
        prefix: of the parameters: ``x_auto_gain``, ``x_auto_inflation``, ``x_auto_shift``, ``x_auto_scale``.
        init_loc_fn: starting points of the other sites.
        init_scale: starting scale of the other sites.
        create_plates: as AutoNormal's.
        path_gradient: leave out the part of the bound's gradient whose mean is 0. Training comes much nearer to the
            best guide (gap to it 1e-5 nats in place of .05 after 300 steps, Gaussian prior, T = 20, 16 particles); say
            True with ``Trace_ELBO``, False with ``RenyiELBO``, whose gradient needs that part.

    Attributes:
        model: the reparameterised model.

    Raises:
        TypeError: at the first call, for a latent diffusion site of a Bernoulli kernel.
        ValueError: at the first call, for a model without a latent diffusion site.

    >>> import optax
    >>> from numpyro.infer import SVI, Trace_ELBO
    >>> from numpyro_diffusion import Diffusion, GaussianKernel, Transition, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(5), variance="upper")
    >>> prior = Diffusion(kernel, Transition(lambda params, x_t, t, context: 0 * x_t, None, ()))
    >>> guide = AutoDiffusionGuide(lambda: numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), 1.0), obs=3.0))
    >>> svi = SVI(guide.model, guide, optax.adam(0.03), Trace_ELBO())
    >>> sorted(svi.get_params(svi.init(jax.random.key(0))))
    ['x_auto_gain', 'x_auto_inflation', 'x_auto_scale', 'x_auto_shift']
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        prefix: str = "auto",
        init_loc_fn: Callable[..., Any] = init_to_uniform,
        init_scale: float = 0.1,
        create_plates: Callable[..., Any] | None = None,
        path_gradient: bool = False,
    ) -> None:
        self._path_gradient = path_gradient
        self._user_model = model
        self._paths: dict[str, _Path] = {}
        self._arguments: tuple[tuple, dict[str, Any]] = ((), {})
        self._programs: dict[bool, _Program] = {}
        super().__init__(
            handlers.reparam(model, config=_reparam_latent),
            prefix=prefix,
            init_loc_fn=init_loc_fn,
            init_scale=init_scale,
            create_plates=create_plates,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        with handlers.trace() as ours:
            values = super().__call__(*args, **kwargs)
        plates = {name: site["value"] for name, site in ours.items() if site["type"] == "plate"}

        def draw_path(name: str, fn: dist.Distribution, value: Array | None) -> tuple[None, Array]:
            wrapped: Any = wrapped_diffusion(fn)
            noises = self._noise_distribution(name, wrapped.chain)
            values[f"{name}_noise"] = numpyro.sample(reparam_site_name(f"{name}_noise"), noises)
            return None, wrapped.value(wrapped.chain.from_noise(values[f"{name}_noise"]))

        def is_hidden(message: dict[str, Any]) -> bool:
            return message["type"] not in ("param", "mutable") and message.get("name") not in exposed

        # A chain may depend on other sites, on another chain and on parameters: the model itself says how.
        exposed = {*self._paths, *(f"{name}_noise" for name in self._paths)}
        model = handlers.reparam(self._user_model, config=dict.fromkeys(self._paths, draw_path))
        handlers.block(handlers.substitute(model, data={**values, **plates}), hide_fn=is_hidden)(*args, **kwargs)
        return values

    def sample_posterior(
        self, rng_key: jax.Array, params: dict[str, Any], *args: Any, sample_shape: Shape = (), **kwargs: Any
    ) -> dict[str, Array]:
        """Draws of the latent sites and of the deterministic ones, the diffusion sites themselves among these.

        Args:
            rng_key: a random key.
            params: from ``svi.get_params``.
            *args: the model's; without any, those of the first call are used.
            sample_shape: leading shape of every result.
            **kwargs: the model's.
        """
        if not args and not kwargs:
            args, kwargs = self._arguments
        draws, _ = self._draws(rng_key, math.prod(sample_shape), params, args, kwargs, weighted=False)
        return {name: value.reshape(sample_shape + value.shape[1:]) for name, value in draws.items()}

    def importance_weights(
        self, rng_key: jax.Array, params: dict[str, Any], num_samples: int, *args: Any, **kwargs: Any
    ) -> ImportanceResult:
        """Draws with the weights that make them draws of the exact posterior, and how far to trust these.

        Warns when Pareto k-hat is above 0.7.

        Args:
            rng_key: a random key.
            params: from ``svi.get_params``.
            num_samples: draws, at least 25: the tail must hold 5.
            *args: the model's, with all observations.
            **kwargs: the model's.

        Raises:
            ValueError: for fewer draws, an observation that is missing, a model that is subsampled or scaled, an
                observed diffusion without a named estimate, or weights that are NaN or all zero.
        """
        check_integer_at_least("num_samples", num_samples, 25, "Pareto k-hat needs the 5 largest weights of 25.")
        samples, log_weights = self._draws(rng_key, num_samples, params, args, kwargs, weighted=True)
        return importance_result(
            samples, log_weights, "take more SVI steps, or TwistedSMC with proposal=guide.proposals(params)"
        )

    def proposals(self, params: dict[str, Any]) -> dict[str, LearnedGuidance]:
        """The trained steps of each diffusion site: a proposal for particles, or guidance for Hamiltonian moves.

        ``TwistedSMC(model, proposal=guide.proposals(params))``, ``DiffusionHMC(model, guidance=...)`` of the same.
        The guide's distribution of x^T is not among them; particles start at N(0, I). Keep a twist. With
        ``twist="none"`` particles that follow the guide get no weight for it before the last step, and most are lost
        on the way.

        Args:
            params: from ``svi.get_params``.

        Raises:
            ValueError: for a guide that has not been run, or parameters of another model or prefix.
        """
        if not self._paths:
            raise ValueError(
                expected("a guide that has seen its model", "one that was never called", "Run svi.init or svi.run.")
            )
        missing = [n for name in self._paths for n in self._parameter_names(name).values() if n not in params]
        if missing:
            raise ValueError(
                expected(f"params to have {missing[0]!r}", sorted(params), "Pass svi.get_params(state) of this guide.")
            )
        tilts = {}
        for name, path in self._paths.items():
            values = {kind: params[full_name] for kind, full_name in self._parameter_names(name).items()}
            tilts[name] = LearnedGuidance(path.split(values)[0])
        return tilts

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_programs": {}}

    def median(self, params: dict[str, Any]) -> dict[str, Array]:
        """Not known for a path.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(expected("a distribution with known quantiles", "a chain's", "Use sample_posterior."))

    def quantiles(self, params: dict[str, Any], quantiles: ArrayLike) -> dict[str, Array]:
        """Not known for a path; raises as :meth:`median`."""
        return self.median(params)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        events = _latent_events(self._user_model, args, kwargs)
        check_observed(self.model, args, kwargs)
        super()._setup_prototype(*args, **kwargs)
        self._arguments = args, kwargs
        # From here on AutoNormal sees the other sites only.
        for name, event_dim in events.items():
            shape = jnp.shape(self._init_locs.pop(f"{name}_noise"))
            self._paths[name] = _Path(shape, self._event_dims.pop(f"{name}_noise"), -1 - event_dim)
            del self.prototype_trace[f"{name}_noise"]

    def _parameter_names(self, name: str) -> dict[str, str]:
        return {kind: f"{name}_{self.prefix}_{kind}" for kind in StepCorrection._fields}

    def _noise_distribution(self, name: str, chain: ReverseChain) -> dist.Distribution:
        """The guide's distribution of a site's noises, of the shape that DiffusionReparam gives them."""
        path = self._paths[name]
        values = {}
        for kind, full_name in self._parameter_names(name).items():
            constraint = constraints.positive if kind in _FACTORS else constraints.real
            values[kind] = numpyro.param(
                full_name, path.initial(kind), constraint=constraint, event_dim=path.noise_event_dim
            )
        noises = GuidedNoise(chain, *path.split(values), path_gradient=self._path_gradient)
        return noises.to_event(path.noise_event_dim - len(noises.event_shape))

    def _prepare(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Find the sites outside of any transformation, if no one has."""
        if self.prototype_trace is None:
            with handlers.seed(rng_seed=0):
                self._setup_prototype(*args, **kwargs)

    def _draws(
        self,
        rng_key: jax.Array,
        num_samples: int,
        params: dict[str, Any],
        args: tuple,
        kwargs: dict[str, Any],
        *,
        weighted: bool,
    ) -> tuple[dict[str, Array], Array]:
        """Values and log weights of draws, checked if they are to be weights; compiled once for the same arguments."""
        self._prepare(args, kwargs)
        call = as_static(args, kwargs)

        def one(key: jax.Array, params: dict[str, Any]) -> tuple[dict[str, Array], Array]:
            return self._draw(key, params, *join([None] * len(call.leaves), call), weighted)

        known = self._programs.get(weighted)
        if known is None or known.call != call:
            self._programs[weighted] = known = _Program(call, jax.jit(jax.vmap(one, in_axes=(0, None))))
        return known.run(jax.random.split(rng_key, num_samples), params)

    def _draw(
        self, key: jax.Array, params: dict[str, Any], args: tuple, kwargs: dict[str, Any], weighted: bool
    ) -> tuple[dict[str, Array], Array]:
        """Values of the latent and the deterministic sites, and the log weight; 0 where it is not wanted."""
        guide_key, model_key = jax.random.split(key)
        guide = handlers.seed(self, guide_key)
        ours = handlers.trace(handlers.substitute(guide, data=params)).get_trace(*args, **kwargs)
        model = handlers.replay(handlers.seed(self.model, model_key), ours)
        theirs = handlers.trace(handlers.substitute(model, data=params)).get_trace(*args, **kwargs)
        values = {
            name: site["value"]
            for name, site in theirs.items()
            if site["type"] == "deterministic" or (name in ours and site["type"] == "sample")
        }
        if not weighted:
            return values, jnp.zeros(())
        _check_traces(ours, theirs)
        (log_guide, _), (log_model, _) = (log_density(of, args, kwargs, params) for of in (guide, model))
        for site in theirs.values():
            check_estimate_named(site)
        return values, log_model - log_guide


def _latent_diffusion(site: dict[str, Any]) -> WrappedDiffusion | None:
    """What a site is, if it is a latent diffusion.

    Raises:
        TypeError: for one of bits.
        ValueError: for one inside of a wrapper.
    """
    wrapped = latent_diffusion(site)
    if wrapped is not None and wrapped.diffusion.kernel.is_discrete:
        raise TypeError(
            expected(
                f"a Gaussian kernel at the latent diffusion site {site['name']!r}",
                type(wrapped.diffusion.kernel).__name__,
                "Bits have no reparameterised path: use TwistedSMC or DiffusionGibbs.",
            )
        )
    return wrapped


def _reparam_latent(site: dict[str, Any]) -> DiffusionReparam | None:
    """Config of the ``reparam`` handler: every latent diffusion site."""
    return None if _latent_diffusion(site) is None else DiffusionReparam()


def _latent_events(model: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> dict[str, int]:
    """Name and number of event dimensions of each latent diffusion site.

    Raises:
        ValueError: if there is none, or one inside NumPyro's ``scan``.
    """
    events: dict[str, int] = {}
    others: list[str] = []

    def find(key: jax.Array | None) -> None:
        for name, site in trace_model(model, args, kwargs, rng_key=key, fill=check_proper).items():
            wrapped = _latent_diffusion(site)
            if wrapped is None:
                others.append(name)
            else:
                check_outside_scan(name, wrapped.diffusion._num_stacked > 0)
                events[name] = len(wrapped.diffusion.event_shape)

    jax.eval_shape(find, numpyro.prng_key())  # runs nothing: names and shapes are known without
    if not events:
        raise ValueError(
            expected("a model with a latent Diffusion site", f"only sites {others}", "Use AutoNormal for such a model.")
        )
    return events


def _check_traces(ours: dict[str, dict], theirs: dict[str, dict]) -> None:
    """The ratio of the two densities, the guide's and the model's, is a weight.

    Raises:
        ValueError: if the model has a site that the guide has not, or either is subsampled or scaled.
    """
    for name, site in theirs.items():
        if site["type"] == "sample" and not site["is_observed"] and name not in ours:
            raise ValueError(
                expected(
                    f"site {name!r} to be observed",
                    "a latent one that the guide has not seen",
                    "Pass the observations that the guide was trained on.",
                )
            )
        if site["type"] == "plate" and site["args"][1] not in (None, site["args"][0]):
            raise ValueError(
                expected(
                    "a model with all its data",
                    f"plate {name!r} with {site['args'][1]} of {site['args'][0]}",
                    "A subsampled density is no weight; pass the model's arguments for the whole data.",
                )
            )
    for name, site in ours.items():
        if site["type"] == "sample" and site["scale"] is not None:
            raise ValueError(
                expected(f"an unscaled latent site {name!r}", f"scale {site['scale']}", "Scale the likelihood instead.")
            )
