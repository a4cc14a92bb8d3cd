"""What was learned of a model as one file of arrays and settings, in the sealed format of :mod:`numpyro_diffusion.io`.

The model is not in it, nor an embedding of the user's own. Its sites, shapes and masks are, and one simulation of it
with the log density of each site, and are compared with those of the model that it is read for: another prior, another
support or other arguments have others.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ... import networks
from ..._checks import expected
from ...diffusion import Diffusion
from ...io.saving import pack, unpack, write
from ...io.settings import (
    EMBEDDINGS,
    NETWORKS,
    Tensors,
    decode,
    describe,
    describe_object,
    encode,
    fields,
    require,
    restore,
    restore_object,
    shown,
)
from ...model.simulator import Simulator
from .coordinates import Affine, DataCode
from .novelty import Neighbours
from .parts import Part, by_part
from .train import Plan, Roles

__all__ = ["Loaded", "load_amortized", "save_amortized"]

_SETTINGS = ("num_steps", "width", "depth")
_ROUNDING = 0.01  # nats, and relative: of sums of many log densities in float32, on another machine


class Loaded(NamedTuple):
    """What a file holds.

    Attributes:
        observed: names of sites.
        settings: of the networks.
        embedding: of y.
        neighbours: of the simulations.
        tensors: all of them.
        node: the settings of the file.
    """

    observed: list[str]
    settings: dict[str, Any]
    embedding: Callable[[Any], Any]
    neighbours: Neighbours
    tensors: Tensors
    node: dict[str, Any]

    def restore(self, simulator: Simulator, roles: Roles) -> Plan:
        """The plan, for a model of the same sites.

        Raises:
            ValueError: for one of others.
        """
        if self.node["sites"] != _sites(simulator):
            cure = "Pass the model with the arguments that it was trained for."
            raise ValueError(expected(f"a model of the sites {shown(self.node['sites'])}", _sites(simulator), cure))
        self._check_model(simulator)
        shapes = roles.shapes
        parts = []
        for (name, _, sites), found in zip(by_part(roles.drawn), self.node["parts"], strict=True):
            tensors = _under(name, self.tensors)
            core = restore_object("network", found["core"], NETWORKS, tensors, None)
            chain = restore(tensors, found["chain"], networks.Embedded(core, self.embedding, shapes), None)
            affine = decode(found["affine"], tensors)
            parts.append(
                Part(
                    name,
                    tuple((site.name, site.size) for site in sites),
                    chain.kernel,
                    chain.transition,
                    None if affine is None else Affine(**fields_of(affine, Affine)),
                )
            )
        code = DataCode(**fields_of(decode(self.node["code"], self.tensors), DataCode))
        return Plan(code, tuple(parts))

    def _check_model(self, simulator: Simulator) -> None:
        """Refuse a model that gives a simulation of the file's another density."""
        values = decode(self.node["simulation"], self.tensors)
        of_file, found = decode(self.node["log_densities"], self.tensors), _log_densities(simulator, values)
        pairs = {name: (of_file.get(name, np.inf), found[name]) for name in sorted(found)}
        differ = [n for n, pair in pairs.items() if not np.isclose(*pair, _ROUNDING, _ROUNDING, equal_nan=True)]
        if differ:
            wanted = "the model that the file was trained for"
            got = f"another density of {differ} at one of its simulations"
            cure = (
                "Load it for the old model, with its arguments; for the posterior of another pass that to "
                "correct(model=...)."
            )
            raise ValueError(expected(wanted, got, cure))


def save_amortized(
    path: str | os.PathLike[str],
    kind: str,
    simulator: Simulator,
    settings: dict[str, Any],
    missing: float,
    embedding: Callable[[Any], Any],
    plan: Plan,
    neighbours: Neighbours,
) -> None:
    """Write one file, of a posterior or a likelihood: the name of its class is the kind."""
    tensors: Tensors = {}
    parts = []
    for part in plan.parts:
        context = jnp.zeros(part.transition.context_shape or ())
        own, chain = describe(Diffusion(part.kernel, part.transition, context=context))
        function: Any = part.transition.function
        affine = None if part.affine is None else encode(part.affine._asdict(), "affine", own)
        core = describe_object(function.network.core, NETWORKS, "core", own)
        parts.append({"chain": chain, "core": core, "affine": affine})
        tensors |= {f"{part.name}/{name}": tensor for name, tensor in own.items()}
    simulation = simulator.simulate(jax.random.key(0), 1)
    simulation = {name: values[0] for name, values in simulation.items()}
    node = {
        **settings,
        "kind": kind,
        "missing": missing,
        "simulation": encode(simulation, "simulation", tensors),
        "log_densities": encode(_log_densities(simulator, simulation), "log_densities", tensors),
        "sites": _sites(simulator),
        "observed": [site.name for site in simulator.observed],
        "embedding": describe_object(embedding, EMBEDDINGS, "embedding", tensors),
        "code": encode(plan.code._asdict(), "code", tensors),
        "neighbours": encode(neighbours._asdict(), "neighbours", tensors),
        "parts": parts,
    }
    data = pack(tensors, {"versions": {"jax": jax.__version__}, "amortized": node})
    write(Path(os.path.realpath(path)), data)


def load_amortized(path: str | os.PathLike[str], kind: str, embedding: Callable[[Any], Any] | None) -> Loaded:
    """Read one file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a damaged or foreign file; for one whose embedding is the user's own, without it.
    """
    tensors, everything = unpack(Path(path))
    node = everything.get("amortized")
    cure = f"The file was not written by {kind}.save."
    require(isinstance(node, dict), f"the file of an {kind}", sorted(everything), cure)
    wanted = (
        *_SETTINGS,
        "kind",
        "missing",
        "sites",
        "simulation",
        "log_densities",
        "observed",
        "embedding",
        "code",
        "neighbours",
        "parts",
    )
    node = fields(node, *wanted)
    require(node["kind"] == kind, f"the file of an {kind}", node["kind"], cure)
    settings = {name: node[name] for name in _SETTINGS}
    if node["missing"]:
        settings["missing"] = node["missing"]
    own = restore_object("embedding", node["embedding"], EMBEDDINGS, tensors, embedding)
    neighbours = Neighbours(**fields_of(decode(node["neighbours"], tensors), Neighbours))
    return Loaded(node["observed"], settings, own, neighbours, tensors, node)


def fields_of(found: Any, cls: Any) -> dict[str, Any]:
    """The attributes of a named tuple, out of a file."""
    return fields(found, *cls._fields)


def _sites(simulator: Simulator) -> list[list[Any]]:
    """What is compared: names, shapes and kinds, as JSON has them."""
    latent = [[site.name, list(site.shape), site.size, site.num_states] for site in simulator.latent]
    observed = [
        [site.name, list(site.shape), str(site.dtype), None if site.seen is None else site.seen.tolist()]
        for site in simulator.observed
    ]
    return [*latent, *observed]


def _log_densities(simulator: Simulator, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in simulator.log_densities(values).items()}


def _under(name: str, tensors: Tensors) -> Tensors:
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
