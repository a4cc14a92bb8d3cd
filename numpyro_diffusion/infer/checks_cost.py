"""What of a model makes programs that compile for ever, again and again, or need more memory than there is.

The number of operations is that of the traced program, a loop of JAX counted once: what XLA compiles, for which it
takes about 10 ms an operation on a CPU, gradients included. The U-Net of this package has 500. A Python loop is one
copy of its body for each round.

A transition's function is static: it belongs to a program's name. If two runs of the model make functions that are not
equal, whoever compiles the model compiles it each time.

Memory is what XLA says of the compiled gradients of the chains side by side, and the draws of a usual run, of which
the noises are nearly all.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax

from .._compat.jax import device_memory, num_operations
from ..chains import ReverseChain
from ..model.reference import NormalReference
from ..model.split import SplitModel
from .checklist import Finding

__all__ = ["gradient_of_chains", "memory", "program"]

_MOST_OPERATIONS = 5000  # a minute on one core
_UNITS = ("B", "kB", "MB", "GB", "TB")


def program(split: SplitModel, chains: Mapping[str, ReverseChain], again: Mapping[str, ReverseChain]) -> Finding:
    """How large the programs are, and whether a second run of the model makes the same.

    Args:
        split: the model.
        chains: its diffusion sites' by name.
        again: the same of another run.
    """
    of_model = num_operations(split.program.given.jaxpr)
    of_steps = {name: num_operations(jax.make_jaxpr(chain.sample_last)(_key()).jaxpr) for name, chain in chains.items()}
    told = f"{of_model} operations of the model" + "".join(
        f", {n} of a draw of {name!r}" for name, n in of_steps.items()
    )
    changed = [name for name, chain in chains.items() if _static(chain) != _static(again[name])]
    if max(of_model, *of_steps.values()) > _MOST_OPERATIONS:
        cure = (
            f"Above {_MOST_OPERATIONS} XLA compiles for minutes. Write Python loops as plates or arrays, in a network "
            "as jax.lax.scan; each round is compiled by itself."
        )
        return Finding("programs", False, told, cure)
    if changed:
        told = f"the function of {', '.join(map(repr, changed))} is another one at each run of the model"
        cure = "Each is compiled anew. Define the transition's function outside of the model: no lambda, no partial."
        return Finding("programs", False, told, cure)
    return Finding("programs", True, f"{told}; the same at each run")


def gradient_of_chains(reference: NormalReference, num_chains: int) -> Any:
    """The compiled gradients of chains side by side."""
    z = jax.eval_shape(jax.vmap(reference.prior_draw), jax.random.split(_key(), num_chains))
    return jax.jit(jax.vmap(reference.terms_and_gradient)).lower(z).compile()


def memory(reference: NormalReference, gradient: Any, num_chains: int, num_draws: int) -> Finding:
    """What the gradients need while they are computed, and the draws of a run that keeps the noises."""
    z = jax.eval_shape(reference.prior_draw, _key())
    of_one = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(z))
    kept = of_one * num_chains * num_draws
    analysis = gradient.memory_analysis()
    at_once = analysis.temp_size_in_bytes if analysis is not None else 0
    there_is = device_memory()
    told = (
        f"{_bytes(at_once)} for gradients of {num_chains} chains, {_bytes(kept)} for {num_chains} x {num_draws} draws"
    )
    told += f" with their noises, of {_bytes(there_is)}" if there_is else " with their noises"
    cure = (
        'Keep no noises, extra_fields=("~z.x_noise",), or every tenth draw, thinning=10; chain_method="sequential"; a '
        "chain of fewer steps, respaced; DiffusionReparam(checkpoint=True) and NUTS."
    )
    return Finding("memory", at_once + kept <= there_is if there_is else None, told, cure)


def _static(chain: ReverseChain) -> Any:
    """What JAX compares to know a program again."""
    return jax.tree.structure(chain)


def _key() -> jax.Array:
    """Of places at which nothing is evaluated."""
    return jax.random.key(0)


def _bytes(count: int) -> str:
    power = min(int(math.log10(max(count, 1)) // 3), len(_UNITS) - 1)
    return f"{count / 1000**power:.3g} {_UNITS[power]}"
