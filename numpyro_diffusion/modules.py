"""Where Haiku meets NumPyro: a network's parameters as ``param`` sites, as random variables, and its state.

NumPyro's own ``haiku_module`` is gone since 0.20.1. This one is for transitions: it returns a
:class:`~numpyro_diffusion.Transition` whose function compares equal from one trace of the model to the next, so that
nothing compiles twice, and it compares the network's output with what the kernel needs before any training.

A *network* is a Haiku function: any callable ``network(x_t, t)``, or ``network(x_t, t, context)``, that builds
Haiku modules, or what ``hk.transform`` or ``hk.transform_with_state`` made of one. The classes of
:mod:`numpyro_diffusion.networks` are such callables that also compare by value and can be pickled.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import haiku as hk
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from . import schedules
from ._checks import expected
from ._compat.numpyro import mutable
from ._typing import Array, ArrayLike, PyTree, Shape
from .kernels import Kernel
from .transition import Transition, call_refused, check_output, example_inputs

__all__ = ["HaikuFunction", "haiku_module", "learned_schedule", "random_haiku_module", "update_state"]

Network: TypeAlias = Callable[..., Any] | hk.Transformed | hk.TransformedWithState
Prior: TypeAlias = dist.Distribution | Mapping[str, dist.Distribution] | Callable[[str, Shape], dist.Distribution]


@dataclasses.dataclass(frozen=True)
class HaikuFunction:
    """A network as a transition function ``(params, x_t, t, context) -> output``, equal when its network is.

    Args:
        network: a Haiku function or what ``hk.transform`` made of one.
    """

    network: Network

    def init(self, key: jax.Array, x_t: Array, t: Array, context: Array | None, **kwargs: Any) -> tuple[PyTree, PyTree]:
        """Initial parameters and state."""
        return self._transformed().init(key, *self._arguments(x_t, t, context), **kwargs)

    def __call__(self, params: PyTree, x_t: Array, t: Array, context: Array | None) -> PyTree:
        """The output; ``params`` is the pair (parameters, state) for a network with state."""
        params, state = params if isinstance(params, tuple) else (params, {})
        return self._transformed().apply(params, state, None, *self._arguments(x_t, t, context))[0]

    def next_state(
        self, params: PyTree, state: PyTree, x_t: Array, t: Array, context: Array | None, **kwargs: Any
    ) -> PyTree:
        """The state after one call with ``kwargs``."""
        return self._transformed().apply(params, state, None, *self._arguments(x_t, t, context), **kwargs)[1]

    def _transformed(self) -> hk.TransformedWithState:
        # Cheap, and only at trace time: building it here keeps this object picklable and equal by value.
        if isinstance(self.network, hk.TransformedWithState):
            return self.network
        if isinstance(self.network, hk.Transformed):
            return hk.with_empty_state(self.network)
        return hk.transform_with_state(self.network)

    @staticmethod
    def _arguments(x_t: Array, t: Array, context: Array | None) -> tuple[Array, ...]:
        return (x_t, t) if context is None else (x_t, t, context)


def haiku_module(
    name: str,
    network: Network,
    *,
    kernel: Kernel,
    event_shape: Shape,
    context_shape: Shape | None = None,
    init_kwargs: Mapping[str, Any] | None = None,
) -> Transition:
    """A transition network whose parameters are the ``param`` site ``"{name}$params"``.

    Call it once in a model and share what it returns. A network with state (moving averages) gets a
    ``mutable`` site ``"{name}$state"``; chains read it and do not change it, see :func:`update_state`.

    Args:
        name: prefix of the sites.
        network: a Haiku function, see the module's text.
        kernel: whose reverse step the network serves.
        event_shape: the shape of one x.
        context_shape: the shape of one context, for a conditional network.
        init_kwargs: to the network when it is initialised, for example ``{"is_training": True}``, without which Haiku's
            batch normalisation has no averages.

    Returns:
        The transition with its parameters bound.

    Raises:
        TypeError, ValueError: if the network cannot be called so, or returns the wrong structure, shape or dtype.

    >>> import numpyro_diffusion as nd
    >>> kernel = nd.GaussianKernel(nd.schedules.log_snr(10))
    >>> network = nd.networks.MLP(kernel.num_steps, kernel.num_outputs, width=8, depth=1)
    >>> with numpyro.handlers.seed(rng_seed=0):
    ...     transition = nd.haiku_module("net", network, kernel=kernel, event_shape=(2,))
    >>> nd.Diffusion(kernel, transition).sample(jax.random.key(1)).shape
    (2,)
    """
    init_kwargs = dict(init_kwargs or {})
    function, example, shapes = _inspect(network, kernel, event_shape, context_shape, init_kwargs)
    # Compiled: operation by operation the initialisation of a deep network takes many seconds.
    initialise = jax.jit(functools.partial(function.init, **init_kwargs))
    params = numpyro.param(f"{name}$params", lambda key: initialise(key, *example)[0])
    state = _state_site(name, function, example, shapes[1], init_kwargs)
    return Transition(function, params, event_shape, context_shape, state)


def random_haiku_module(
    name: str,
    network: Network,
    prior: Prior,
    *,
    kernel: Kernel,
    event_shape: Shape,
    context_shape: Shape | None = None,
    init_kwargs: Mapping[str, Any] | None = None,
) -> Transition:
    """A transition network whose parameters are random: one ``sample`` site ``"{name}/{module}.{parameter}"`` each.

    Args:
        name: prefix of the sites.
        network: a Haiku function, see the module's text.
        prior: one distribution for every parameter, expanded to its shape; or a mapping from
            ``"{module}.{parameter}"`` to distributions; or a function of that name and the shape.
        kernel: whose reverse step the network serves.
        event_shape: the shape of one x.
        context_shape: the shape of one context, for a conditional network.
        init_kwargs: to the network when it is initialised. A network's state is a ``mutable`` site as in
            :func:`haiku_module`; it has no prior.

    Raises:
        KeyError: if a mapping lacks a parameter.
        ValueError: for a prior whose shape does not fit the parameter's.
    """
    init_kwargs = dict(init_kwargs or {})
    function, example, (shapes, state_shapes) = _inspect(network, kernel, event_shape, context_shape, init_kwargs)
    params = {
        module: {
            leaf: numpyro.sample(f"{name}/{module}.{leaf}", _prior_of(prior, f"{module}.{leaf}", array.shape))
            for leaf, array in leaves.items()
        }
        for module, leaves in shapes.items()
    }
    state = _state_site(name, function, example, state_shapes, init_kwargs)
    return Transition(function, params, event_shape, context_shape, state)


def update_state(
    name: str, transition: Transition, x_t: Array, t: ArrayLike, context: Array | None = None, **kwargs: Any
) -> None:
    """Run a network with state once more and keep the new state in the site ``"{name}$state"``.

    A distribution's log_prob is a pure function, so chains leave moving averages alone; in training, call this
    once in the model on noised data.

    Args:
        name: as given to :func:`haiku_module`.
        transition: what it returned.
        x_t: noised data, shape (batch..., event...).
        t: the steps.
        context: as for the transition.
        **kwargs: to the network, for example ``is_training=True``.

    Raises:
        ValueError: for a network without state.
    """
    if transition.state is None:
        raise ValueError(expected(f"a network with state at {name!r}", "one without", "There is nothing to update."))
    function: Any = transition.function
    state = function.next_state(transition.params, transition.state, x_t, transition.own_step(t), context, **kwargs)
    mutable(f"{name}$state", {"state": transition.state})["state"] = jax.lax.stop_gradient(state)


def learned_schedule(
    name: str, num_steps: int, *, beta_1: float = 1e-3, sigma_max: float = 100.0
) -> schedules.Schedule:
    """A schedule trained with the network: the ``param`` site ``"{name}$steps"``, b_1 fixed.

    Args:
        name: prefix of the site.
        num_steps: T.
        beta_1: the fixed first step, in (0, 1).
        sigma_max: noise-to-signal ratio at the last step, before training.

    References: Sohl-Dickstein et al. 2015, Section 2.4.1.
    """
    initial = jnp.asarray(schedules.learned_initial(num_steps, sigma_max, beta_1=beta_1), float)
    return schedules.learned(numpyro.param(f"{name}$steps", initial), beta_1=beta_1)


def _inspect(
    network: Network,
    kernel: Kernel,
    event_shape: Shape,
    context_shape: Shape | None,
    init_kwargs: Mapping[str, Any],
) -> tuple[HaikuFunction, tuple[Array, Array, Array | None], tuple[PyTree, PyTree]]:
    """The network as a function, inputs to initialise it, and the shapes of its parameters and state."""
    function = HaikuFunction(network)
    example = example_inputs(kernel, Transition(function, None, event_shape, context_shape))  # checks the shapes
    try:
        shapes = jax.eval_shape(lambda key: function.init(key, *example, **init_kwargs), jax.random.key(0))
        output = jax.eval_shape(lambda params, state: function((params, state), *example), *shapes)
    except (TypeError, ValueError) as error:
        cure = (
            "Write it as network(x_t, t), or network(x_t, t, context) together with context_shape; leave dropout out."
        )
        raise call_refused("a Haiku network", example, error, cure) from error
    check_output(kernel, output, example[0])
    return function, example, shapes


def _state_site(
    name: str, function: HaikuFunction, example: tuple[Any, ...], shapes: PyTree, init_kwargs: Mapping[str, Any]
) -> PyTree:
    """The value of the ``mutable`` site of a network's state; None, and no site, for a network without."""
    if not shapes:
        return None
    # The initial state of a Haiku network is a constant of its code (zeros, ones), whatever the key.
    initial = function.init(jax.random.key(0), *example, **init_kwargs)[1]
    return mutable(f"{name}$state", {"state": initial})["state"]


def _prior_of(prior: Prior, name: str, shape: Shape) -> dist.Distribution:
    """The prior of one parameter with the parameter's shape as its event."""
    if isinstance(prior, Mapping):
        if name not in prior:
            raise KeyError(expected(f"a prior for {name!r}", sorted(prior), "Add it, or pass one prior for all."))
        distribution = prior[name]
    elif isinstance(prior, dist.Distribution):
        distribution = prior
    else:
        distribution = prior(name, shape)
    if distribution.shape() != shape:
        if distribution.shape() != ():
            raise ValueError(
                expected(f"a prior of shape {shape} or () for {name!r}", distribution.shape(), "Use .expand(shape).")
            )
        distribution = distribution.expand(shape)
    return distribution.to_event(len(distribution.batch_shape))
