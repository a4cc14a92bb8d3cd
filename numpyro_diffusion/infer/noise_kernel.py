"""What MCMC kernels on the noises of a model share: the model, its arguments, starting points, results in its units.

The state of such a kernel has the unconstrained values of all latent sites in ``z``, diffusion sites as their noises,
and the log likelihood of :class:`~.reference.NormalReference` in ``log_likelihood``.
"""

import abc
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.mcmc import MCMCKernel

from .._checks import expected, is_concrete
from .._compat.numpyro import GIBBS_SITES_KWARG, is_prng_key, transform_fn
from .._typing import Array
from ..guidance import Guidance
from ..model.arguments import NEEDS_VALUES, Static, as_static, join, split_arguments, without_arrays
from ..model.automatic import AutoGuidance, ModelGuidance, checked_guidance
from ..model.observations import check_observed
from ..model.reference import NormalReference, Values
from .checklist import ADVICE

__all__ = ["NoiseKernel"]

_MAX_STARTS = 100  # draws from the prior that are tried as a starting point, as many as NumPyro tries


class _Program(NamedTuple):
    """What belongs to one set of model arguments, to be used again as long as they are the same."""

    arguments: Static
    reference: NormalReference
    start: Callable
    constrain: Callable


class NoiseKernel(MCMCKernel):
    """Base of the kernels; a subclass gives ``_first_state`` and ``_step`` of one chain.

    Args:
        model: a NumPyro model.
        guidance: of diffusion sites, by name; or ``"auto"``, made of the model.
    """

    sample_field = "z"

    def __init__(self, model: Callable, guidance: Mapping[str, Guidance] | Literal["auto"] | None = None) -> None:
        if not callable(model):
            raise TypeError(expected("a NumPyro model", repr(model), "Pass the function, with no potential."))
        self._model = model
        self._guidance = checked_guidance(guidance)
        self._auto: AutoGuidance | None = None
        self._program: _Program | None = None
        self._compiled_start: Any = None

    @property
    def model(self) -> Callable:
        """The user's model."""
        return self._model

    @property
    def charts(self) -> dict[str, str]:
        """What the noises of each diffusion site are those of, in words, for the data of the latest run.

        Raises:
            RuntimeError: before a run.
        """
        return self._latest().charts

    @property
    def log_evidence(self) -> float:
        """Draws of a chain give none.

        Raises:
            AttributeError: always.
        """
        cure = "Use TemperedSMC, or TwistedSMC where x has few coordinates."
        raise AttributeError(expected("an engine that gives the evidence", type(self).__name__, cure))

    @property
    def _sample_fn(self) -> Callable:
        """NumPyro's MCMC initialises a kernel, resumed or not, whose attribute of this name is None."""
        return self.sample

    def init(
        self, rng_key: Array, num_warmup: int, init_params: Any = None, model_args: tuple = (), model_kwargs: Any = None
    ) -> Any:
        """The first state, at ``init_params`` or at a draw from the prior: one key, or a batch for as many chains.

        Args:
            rng_key: one key, or a batch of them.
            num_warmup: how many draws adapt the kernel, if it adapts.
            init_params: unconstrained values of every latent site, with the keys' batch in front; from a Gibbs
                kernel, constrained values.
            model_args: the model's arguments.
            model_kwargs: the model's keyword arguments.

        Raises:
            RuntimeError: if the density there is 0, infinite or NaN. Inside ``pmap`` (``chain_method="parallel"``)
                nothing can be raised; the chain's ``log_likelihood`` is then -inf.
        """
        start = partial(self._prepare(model_args, model_kwargs).start, num_warmup)
        is_single = is_prng_key(rng_key)
        state = start(rng_key, init_params) if is_single else jax.vmap(start)(rng_key, init_params)
        if is_concrete(state.log_likelihood) and not np.isfinite(state.log_likelihood).all():
            source = f"{_MAX_STARTS} draws from the prior" if init_params is None else "init_params"
            raise RuntimeError(
                expected(
                    "a starting point of finite density",
                    f"0, infinity or NaN at {source}",
                    "Look at the likelihood at draws from the prior (numpyro.infer.Predictive), or pass other "
                    f"init_params, unconstrained values of every latent site. {ADVICE}",
                )
            )
        return state

    def sample(self, state: Any, model_args: tuple, model_kwargs: Any) -> Any:
        step = partial(self._step, self._reference(model_args, model_kwargs))
        return step(state) if is_prng_key(state.rng_key) else jax.vmap(step)(state)

    def postprocess_fn(self, model_args: tuple, model_kwargs: Any) -> Callable:
        return self._prepare(model_args, model_kwargs).constrain

    def wrap_model(self, wrapper: Callable) -> "NoiseKernel":
        wrapped = self.__class__.__new__(self.__class__)
        wrapped.__dict__.update({**self.__getstate__(), "_model": wrapper(self._model)})
        return wrapped

    def get_constrain_fn(self, model_args: tuple, model_kwargs: Any) -> Callable:
        return partial(transform_fn, self._reference(model_args, model_kwargs).transforms())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_program": None, "_auto": None, "_compiled_start": None}

    @abc.abstractmethod
    def _first_state(
        self, reference: NormalReference, num_warmup: int, z: dict[str, Array], log_likelihood: Array, rng_key: Array
    ) -> Any:
        """The state of one chain at its starting point."""

    @abc.abstractmethod
    def _step(self, reference: NormalReference, state: Any) -> Any:
        """One draw of one chain."""

    def _start_of(self, model_args: tuple, model_kwargs: Values, auto: ModelGuidance | None) -> Callable:
        """The first state of a chain at these arguments: others of their shapes are not compiled again."""
        if self._compiled_start is None:
            self._compiled_start = jax.jit(self._start, static_argnums=(0, 1))
        compiled = self._compiled_start
        arrays, static = split_arguments(model_args, model_kwargs)

        def start(num_warmup: int, rng_key: Array, init_params: Values | None) -> Any:
            try:
                return compiled(static, num_warmup, arrays, auto, rng_key, init_params)
            except NEEDS_VALUES:
                # The model asks for values (the largest of some group numbers, as the size of a plate).
                if not is_concrete(arrays):
                    raise
                none, whole = without_arrays(arrays, static)
                return compiled(whole, num_warmup, none, auto, rng_key, init_params)

        return start

    def _start(
        self, static: Static, num_warmup: int, arrays: list, auto: ModelGuidance | None, rng_key: Array,
        init_params: Values | None,
    ) -> Any:  # fmt: skip
        args, kwargs = join(arrays, static)
        reference = NormalReference(self._model, args, kwargs, self._guidance if auto is None else auto)
        rng_key, search_key = jax.random.split(rng_key)
        z, log_likelihood = _first_point(reference, search_key, init_params)
        return self._first_state(reference, num_warmup, z, log_likelihood, rng_key)

    def _prepare(self, model_args: tuple, model_kwargs: Values | None) -> _Program:
        """Compiled functions of these arguments: the ones kept, if nothing changed."""
        arguments = as_static(model_args, model_kwargs or {})
        program = self._program
        if program is not None and program.arguments == arguments:
            return program
        check_observed(self._model, model_args, model_kwargs or {})
        auto: ModelGuidance | None = None
        if isinstance(self._guidance, str):
            self._auto = self._auto or AutoGuidance(self._model)
            auto = self._auto.bind(model_args, model_kwargs or {})
        reference = NormalReference(
            self._model, model_args, model_kwargs or {}, self._guidance if auto is None else auto
        )
        start = self._start_of(model_args, model_kwargs or {}, auto)
        program = _Program(arguments, reference, start, jax.jit(reference.constrain))
        if is_concrete(arguments.leaves):
            self._program = program
        return program

    def _latest(self) -> NormalReference:
        if self._program is None:
            raise RuntimeError(
                expected("a kernel that has run", "one that has not", "What guides a chain depends on the data.")
            )
        return self._program.reference

    def _reference(self, model_args: tuple, model_kwargs: Values | None) -> NormalReference:
        return self._prepare(model_args, model_kwargs).reference


def _first_point(reference: NormalReference, key: Array, init_params: Values | None) -> tuple[dict[str, Array], Array]:
    """Where one chain starts, and the log likelihood there."""
    prototype = jax.eval_shape(reference.prior_draw, key)

    def is_searching(search: tuple) -> Array:
        tries, _, _, log_likelihood = search
        return (tries < _MAX_STARTS) & ~jnp.isfinite(log_likelihood)

    def attempt(search: tuple) -> tuple:
        tries, key, _, _ = search
        key, draw_key = jax.random.split(key)
        z = reference.prior_draw(draw_key)
        return tries + 1, key, z, reference.log_likelihood(z)

    if init_params is None:
        blank = jax.tree.map(lambda u: jnp.zeros(u.shape, u.dtype), prototype)
        start = (0, key, blank, jnp.asarray(-jnp.inf, float))
        _, _, z, log_likelihood = jax.lax.while_loop(is_searching, attempt, start)
        return z, log_likelihood
    if GIBBS_SITES_KWARG in reference.kwargs:
        init_params = transform_fn(reference.transforms(), init_params, invert=True)
    z = _check_init_params(init_params, prototype)
    return z, reference.log_likelihood(z)


def _check_init_params(init_params: Values, prototype: Values) -> dict[str, Array]:
    """Starting values in the dtypes of the sites.

    Raises:
        ValueError: if they are not of the model's latent sites and shapes.
    """
    found = {name: jnp.shape(value) for name, value in init_params.items()}
    wanted = {name: u.shape for name, u in prototype.items()}
    if found != wanted:
        raise ValueError(
            expected(
                f"init_params of shapes {wanted} for each chain",
                f"{found}",
                "A diffusion site 'x' is its noises 'x_noise'. In a Gibbs kernel give all blocks the model "
                "handlers.reparam(model, config={'x': DiffusionReparam()}) and name the site 'x_noise'.",
            )
        )
    return {name: jnp.asarray(init_params[name], u.dtype) for name, u in prototype.items()}
