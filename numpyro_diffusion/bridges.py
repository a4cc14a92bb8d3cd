"""Networks of Flax NNX and of Equinox, trained already or to be trained, as transitions.

Such a module holds its numbers itself. A bridge takes it apart: the parameters become one dictionary of arrays by
name, which ``param`` sites, optimisers and files know; what is left is a function ``(params, x_t, t, context)`` that
compares equal to every other of the same module, so that nothing compiles twice.

    Flax NNX    called with a batch: ``module(x_t, t)``, or ``module(x_t, t, context)``, as a Haiku network is;
                parameters are the ``nnx.Param`` by their paths, "first.kernel"
    Equinox     called with one example, x_t of the event's shape and t of shape (), and mapped over the batch here;
                parameters are the floating-point arrays by their paths, "layers[0].weight"

Arrays that are no parameters (moving averages, tables of indices) are kept as they are and never changed. A module
must therefore be in evaluation mode: one that changes them, or wants a random key, is refused.

Flax and Equinox are imported when a module is handed in; the extra ``bridges`` installs them.
"""

import dataclasses
import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro

from ._checks import check_shape, expected
from ._typing import Array, PyTree, Shape
from .kernels import Kernel
from .transition import Transition, check_call, example_inputs

__all__ = ["eqx_module", "eqx_network", "nnx_module", "nnx_network"]

_NNX_CURE = (
    "Write it as module(x_t, t) on a batch, or module(x_t, t, context) together with context_shape, and call "
    "module.eval() before: chains hand on no random key and keep no state."
)
_EQX_CURE = (
    "Write it as module(x_t, t) on one example, or module(x_t, t, context) together with context_shape, and pass "
    "eqx.nn.inference_mode(module): chains hand on no random key and keep no state."
)


@dataclasses.dataclass(frozen=True)
class _NnxFunction:
    """A module of Flax NNX without its arrays; equal where the graphs and the names are."""

    graph: Any
    params: tuple[tuple[Any, ...], ...]
    rest: tuple[tuple[Any, ...], ...]

    def __call__(self, params: PyTree, x_t: Array, t: Array, context: Array | None) -> PyTree:
        return self.merged(params)(*_arguments(x_t, t, context))

    def merged(self, params: PyTree) -> Any:
        """The module with these parameters."""
        nnx = _imported("flax.nnx")
        params, rest = _split(params)
        named = _checked(params, [_nnx_name(path) for path in self.params])
        named |= _checked(rest, [_nnx_name(path) for path in self.rest])
        nested: dict[Any, Any] = {}
        for path in (*self.params, *self.rest):
            node = nested
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = named[_nnx_name(path)]
        return nnx.merge(self.graph, nested)

    def changes(self, params: PyTree, x_t: Array, t: Array, context: Array | None) -> list[str]:
        """The names of the arrays that one call changes."""
        nnx = _imported("flax.nnx")
        changed: list[str] = []

        def call(params: PyTree) -> None:
            module = self.merged(params)
            before = dict(_flat(nnx.to_pure_dict(nnx.state(module))))
            module(*_arguments(x_t, t, context))
            after = dict(_flat(nnx.to_pure_dict(nnx.state(module))))
            changed.extend(_nnx_name(path) for path in before if after.get(path) is not before[path])

        jax.eval_shape(call, params)
        return changed


@dataclasses.dataclass(frozen=True)
class _EqxFunction:
    """A module of Equinox without its arrays; equal where its structure, its other leaves and the names are."""

    structure: Any
    names: tuple[str, ...]
    # Of each leaf: None for a parameter, () for another array, (leaf,) for what is no array.
    leaves: tuple[tuple[Any, ...] | None, ...]
    event_dim: int

    def __call__(self, params: PyTree, x_t: Array, t: Array, context: Array | None) -> PyTree:
        params, rest = _split(params)
        kinds = dict(zip(self.names, self.leaves, strict=True))
        named = _checked(params, [name for name, leaf in kinds.items() if leaf is None])
        named |= _checked(rest, [name for name, leaf in kinds.items() if leaf == ()])
        module = self.structure.unflatten([leaf[0] if leaf else named[name] for name, leaf in kinds.items()])
        batch_shape = x_t.shape[: x_t.ndim - self.event_dim]
        if t.ndim:
            t = jnp.broadcast_to(t, batch_shape)
        arguments = _arguments(x_t, t, context)
        call = lambda *arguments: module(*arguments)  # noqa: E731 - a module is a tree, and is not mapped over
        for _ in batch_shape:
            # A t of shape () stays one number, so that its embedding is computed once.
            call = jax.vmap(call, in_axes=tuple(None if array is t and not t.ndim else 0 for array in arguments))
        return call(*arguments)


def nnx_network(module: Any) -> tuple[Any, PyTree]:
    """A module of Flax NNX as a pure function and its parameters.

    Args:
        module: an ``nnx.Module`` that is called with a batch, in evaluation mode. It is not changed.

    Returns:
        The function ``(params, x_t, t, context) -> output``, equal to that of any module of the same graph; and the
        parameters by name, or the pair of them and of the arrays that are no parameters.

    Raises:
        ImportError: without Flax.
        TypeError: for what is no module of NNX, or for one whose settings cannot be compared.

    >>> from flax import nnx
    >>> function, params = nnx_network(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    >>> sorted(params)
    ['bias', 'kernel']
    """
    nnx = _imported("flax.nnx")
    if not isinstance(module, nnx.Module):
        cure = "A network of Haiku goes to haiku_module, one of Equinox to eqx_module."
        raise TypeError(expected("a module of flax.nnx", f"a {type(module).__name__}", cure))
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    flat = [dict(_flat(nnx.to_pure_dict(state))) for state in (params, rest)]
    function = _NnxFunction(graph, *(tuple(paths) for paths in flat))
    return _comparable(function, module), _joined(
        *({_nnx_name(path): array for path, array in arrays.items()} for arrays in flat)
    )


def eqx_network(module: Any, *, event_dim: int = 1) -> tuple[Any, PyTree]:
    """A module of Equinox as a pure function of a batch and its parameters.

    Args:
        module: an ``eqx.Module`` that is called with one example, in inference mode.
        event_dim: the number of dimensions of one example's x_t: 1 for vectors, 3 for images with channels.

    Returns:
        The function ``(params, x_t, t, context) -> output``, equal to that of any module of the same structure; and
        the parameters by name, or the pair of them and of the arrays that are no parameters.

    Raises:
        ImportError: without Equinox.
        TypeError: for what is no module of Equinox, for one with an ``eqx.nn.State``, or for one whose settings
            cannot be compared.

    >>> import equinox as eqx
    >>> function, params = eqx_network(eqx.nn.Linear(2, 2, key=jax.random.key(0)))
    >>> sorted(params)
    ['bias', 'weight']
    """
    eqx = _imported("equinox")
    if not isinstance(module, eqx.Module):
        cure = "A network of Haiku goes to haiku_module, one of Flax NNX to nnx_module."
        raise TypeError(expected("a module of equinox", f"a {type(module).__name__}", cure))
    paths, structure = jax.tree_util.tree_flatten_with_path(module)
    is_index = lambda leaf: isinstance(leaf, eqx.nn.StateIndex)  # noqa: E731
    for path, leaf in jax.tree_util.tree_flatten_with_path(module, is_leaf=is_index)[0]:
        if is_index(leaf):
            name = jax.tree_util.keystr(path)[1:]
            cure = "Take GroupNorm or LayerNorm instead of BatchNorm: they keep no moving averages."
            raise TypeError(expected("a module of equinox without eqx.nn.State", f"one with {name}", cure))
    names = tuple(jax.tree_util.keystr(path)[1:] for path, _ in paths)
    kinds: list[tuple[Any, ...] | None] = []
    params, rest = {}, {}
    for name, (_, leaf) in zip(names, paths, strict=True):
        if eqx.is_inexact_array(leaf):
            params[name] = leaf
            kinds.append(None)
        elif isinstance(leaf, (jax.Array, np.ndarray)):
            rest[name] = leaf
            kinds.append(())
        else:
            kinds.append((leaf,))
    function = _EqxFunction(structure, names, tuple(kinds), event_dim)
    return _comparable(function, module), _joined(params, rest)


def nnx_module(
    name: str, module: Any, *, kernel: Kernel, event_shape: Shape, context_shape: Shape | None = None
) -> Transition:
    """A network of Flax NNX whose parameters are the ``param`` site ``"{name}$params"``.

    In a model, training begins with the module's own numbers. Outside of a model there are no sites, and the
    transition has them: so a trained network becomes a prior. Build the module outside of the model.

    Args:
        name: prefix of the site.
        module: an ``nnx.Module`` called with a batch, ``module(x_t, t)`` or ``module(x_t, t, context)``, in
            evaluation mode. It is not changed.
        kernel: whose reverse step the network serves.
        event_shape: the shape of one x.
        context_shape: the shape of one context, for a conditional network.

    Returns:
        The transition with its parameters bound; moving averages are its state, and stay what they are.

    Raises:
        ImportError: without Flax: install the extra ``bridges``.
        TypeError, ValueError: if the module cannot be called so, changes its state, or returns the wrong structure,
            shape or dtype.

    >>> import numpyro_diffusion as nd
    >>> from flax import nnx
    >>> class Network(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.linear = nnx.Linear(2, 2, rngs=rngs)
    ...     def __call__(self, x_t, t):
    ...         return self.linear(x_t)
    >>> kernel = nd.GaussianKernel(nd.schedules.log_snr(10), variance="upper")
    >>> transition = nd.nnx_module("net", Network(nnx.Rngs(0)), kernel=kernel, event_shape=(2,))
    >>> nd.Diffusion(kernel, transition).sample(jax.random.key(1)).shape
    (2,)
    """
    function, params = nnx_network(module)
    transition = _transition(function, params, event_shape, context_shape)
    wanted = "a module of flax.nnx"
    check_call(kernel, transition, wanted, _NNX_CURE)
    example = example_inputs(kernel, transition)
    changed = function.changes(params, *example)
    if changed:
        got = f"{type(module).__name__}, which changes {', '.join(changed)}"
        raise TypeError(expected(f"{wanted} in evaluation mode", got, "Call module.eval() before."))
    return _with_site(name, transition)


def eqx_module(
    name: str, module: Any, *, kernel: Kernel, event_shape: Shape, context_shape: Shape | None = None
) -> Transition:
    """A network of Equinox whose parameters are the ``param`` site ``"{name}$params"``.

    In a model, training begins with the module's own numbers. Outside of a model there are no sites, and the
    transition has them: so a trained network becomes a prior. Build the module outside of the model.

    Args:
        name: prefix of the site.
        module: an ``eqx.Module`` called with one example, ``module(x_t, t)`` or ``module(x_t, t, context)``, x_t of
            shape ``event_shape`` and t of shape (), in inference mode. It is mapped over the batch here.
        kernel: whose reverse step the network serves.
        event_shape: the shape of one x.
        context_shape: the shape of one context, for a conditional network.

    Returns:
        The transition with its parameters bound.

    Raises:
        ImportError: without Equinox: install the extra ``bridges``.
        TypeError, ValueError: if the module cannot be called so, has an ``eqx.nn.State``, or returns the wrong
            structure, shape or dtype.
    """
    event_dim = len(check_shape("event_shape", event_shape, "It is the shape of one data point."))
    function, params = eqx_network(module, event_dim=event_dim)
    transition = _transition(function, params, event_shape, context_shape)
    check_call(kernel, transition, "a module of equinox", _EQX_CURE)
    return _with_site(name, transition)


def _transition(function: Any, params: PyTree, event_shape: Shape, context_shape: Shape | None) -> Transition:
    params, rest = _split(params)
    return Transition(function, params, event_shape, context_shape, rest or None)


def _with_site(name: str, transition: Transition) -> Transition:
    params = numpyro.param(f"{name}$params", transition.params)
    return Transition(transition.function, params, transition.event_shape, transition.context_shape, transition.state)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        cure = "Install it with python -m pip install 'numpyro-diffusion[bridges]'."
        raise ImportError(expected(f"{package} to be installed", str(error), cure)) from error


def _comparable(function: Any, module: Any) -> Any:
    """The function, if it can be compared with another: JAX compiles once for all that are equal."""
    try:
        hash(function)
    except TypeError as error:
        cure = "Make arrays and lists of its settings tuples, or arrays of the module."
        got = f"{type(module).__name__}: {error}"
        raise TypeError(expected("a module whose settings are hashable", got, cure)) from error
    return function


def _arguments(x_t: Array, t: Array, context: Array | None) -> tuple[Array, ...]:
    return (x_t, t) if context is None else (x_t, t, context)


def _joined(params: dict[str, Any], rest: dict[str, Any]) -> PyTree:
    return (params, rest) if rest else params


def _split(params: PyTree) -> tuple[dict[str, Any], dict[str, Any]]:
    return params if isinstance(params, tuple) else (params, {})


def _checked(arrays: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """``arrays``, which have exactly these names."""
    if set(arrays) != set(names):
        cure = "Pass the parameters of a module of the same structure."
        raise ValueError(expected(f"parameters {sorted(names)}", sorted(arrays), cure))
    return dict(arrays)


def _flat(nested: Mapping[Any, Any], prefix: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    for part, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, (*prefix, part))
        else:
            yield (*prefix, part), value


def _nnx_name(path: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in path)
