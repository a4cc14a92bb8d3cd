r"""From simulations to trained chains.

The rows that are no numbers are dropped and counted. Of the others some stop the training. Coordinates, kernels and
networks are made of the rest (or, online, of the first simulations), and all parts are trained at once: the loss is
minus the sum of their bounds on log q(theta | y), nats per row.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro

from ... import networks
from ..._checks import expected
from ..._typing import Array, Shape
from ..._weights import host_generator
from ...diffusion import Diffusion
from ...kernels import BernoulliKernel, CategoricalKernel, GaussianKernel, Kernel
from ...learning.train import repeats_of
from ...model.simulated_sites import LatentSite, ObservedSite
from ...model.simulator import Simulator
from ...modules import HaikuFunction, haiku_module
from ...schedules import constant_fraction, log_snr
from ...training import FitResult, Validation, fit
from ...transition import Transition
from .coordinates import Affine, DataCode, fit_affine, fit_code, in_a_row
from .parts import Part, by_part, told

__all__ = ["Plan", "Roles", "Simulations", "clean", "make_plan", "online_batches", "rows_of", "train"]

Simulations = tuple[Mapping[str, Any], Mapping[str, Any]]  # coordinates of what is drawn, values of what is given

_FEWEST = 100  # simulations to learn from
_MOST_DROPPED = 0.5
_MOST_HELD_OUT = 2000
# Of a standard deviation of what the regression leaves: a posterior may be a thousand times narrower than the prior,
# and the last reverse step, of a width that is learned, is finer still.
_FINEST = 0.01
_LEAST_END = 20.0


class Roles(NamedTuple):
    """Which sites a chain draws, and which it is given: the unknowns given y, or y given the unknowns.

    Attributes:
        drawn: sites that it draws.
        given: sites that it sees.
        of_simulations: what a simulator returns, coordinates of unknowns and values of y, in these roles.
        missing: the largest share of the numbers that are given which a row may lack.
    """

    drawn: tuple[LatentSite, ...]
    given: tuple[ObservedSite, ...]
    of_simulations: Callable[[Simulations], Simulations]
    missing: float = 0.0

    @property
    def shapes(self) -> tuple[tuple[str, Shape], ...]:
        """Names and shapes of what an embedding sees: values, and whether they are there if some may not be."""
        values = tuple((site.name, site.shape) for site in self.given)
        told = tuple((f"{name}_seen", shape) for name, shape in values) if self.missing else ()
        return values + told

    def with_gaps(self, rng_key: Array, simulations: Simulations) -> Simulations:
        """Simulations of which each lacks a share of its own of what is given, from 0 to ``missing``."""
        drawn, given = simulations
        if not self.missing:
            return simulations
        rng = host_generator(rng_key)
        share = rng.uniform(0, self.missing, len(next(iter(drawn.values()))))
        lacking = {}
        for name, values in given.items():
            is_gap = rng.random(values.shape) < share.reshape((-1,) + (1,) * (values.ndim - 1))
            lacking[name] = np.where(is_gap, np.nan, values)
        return drawn, lacking


class Plan(NamedTuple):
    """What is to be trained.

    Attributes:
        code: of y.
        parts: kernels, networks and shapes; their transitions have no parameters yet.
    """

    code: DataCode
    parts: tuple[Part, ...]


def clean(simulations: Simulations, *, may_lack: bool = False) -> tuple[Simulations, int]:
    """The rows that are numbers, and how many are not.

    Args:
        simulations: in their roles.
        may_lack: whether NaN in what is given says that a number is missing, and is none of them.

    Raises:
        ValueError: if most are not, or too few are left.
    """
    drawn, given = (jax.tree.leaves(jax.tree.map(np.asarray, part)) for part in simulations)
    leaves = [
        *drawn,
        *(np.nan_to_num(leaf, nan=0.0, posinf=np.inf, neginf=-np.inf) if may_lack else leaf for leaf in given),
    ]
    is_number = np.ones(len(leaves[0]), bool)
    for leaf in leaves:
        if leaf.dtype.kind == "f":
            is_number &= np.isfinite(leaf).reshape(len(leaf), -1).all(1)
    dropped = int((~is_number).sum())
    if dropped > _MOST_DROPPED * len(is_number):
        cure = "Look at the simulator at draws of the prior, or give the prior a support on which it works."
        got = f"NaN or infinite values in {dropped} of {len(is_number)}"
        raise ValueError(expected("simulations that are numbers", got, cure))
    if is_number.sum() < _FEWEST:
        cure = "A network learns from thousands."
        raise ValueError(expected(f"at least {_FEWEST} simulations", int(is_number.sum()), cure))
    return jax.tree.map(lambda leaf: np.asarray(leaf)[is_number], simulations), dropped


def make_plan(
    roles: Roles,
    simulations: Simulations,
    *,
    embedding: Callable[[Any], Any],
    num_steps: int,
    width: int,
    depth: int,
    rng_key: jax.Array,
) -> Plan:
    """Coordinates, kernels and networks, of simulations in their roles.

    Raises:
        ValueError: for what is given or drawn and is the same in all simulations.
    """
    drawn, given = simulations
    rows = np.asarray(in_a_row(roles.given, given))
    code = fit_code(roles.given, rows, may_lack=roles.missing > 0)
    varies = (np.nanstd(rows, axis=0) > 0) & np.asarray(code.seen)
    if not varies.any():
        names = [site.name for site in roles.given]
        cure = "There is nothing to learn from them: look at the simulator, and at the mask."
        raise ValueError(expected(f"values of {names} that vary", f"the same in all {len(rows)} simulations", cure))
    codes = code(rows)
    shapes = roles.shapes
    rest = codes[:, :0]
    parts = []
    for name, num_states, sites in by_part(roles.drawn):
        values = np.concatenate([drawn[site.name] for site in sites], axis=-1)
        if num_states is None:
            _check_varies({site.name: drawn[site.name] for site in sites})
        size, context_shape = values.shape[1], (codes.shape[1] + rest.shape[1],)
        affine: Affine | None = None
        if num_states is None:
            features = networks.Embedded(None, embedding, shapes).features_of(codes)
            features = jnp.concatenate([features, rest], axis=-1)
            affine = fit_affine(values, np.asarray(features), rng=host_generator(rng_key))
            x = np.asarray(affine.inverse(jnp.asarray(values, float), features))
            high = float(np.ceil(max(_LEAST_END, np.abs(x).max())))
            schedule = log_snr(num_steps, _FINEST, high)
            kernel: Kernel = GaussianKernel(schedule, parameterization="x0", variance="denoiser")
            core: Any = networks.GaussianSkip(kernel.schedule.log_snr[1:], width=width, depth=depth, modulated=True)
        else:
            kernel = _discrete_kernel(num_steps, num_states, values)
            # Classes reach the network one-hot: one more axis.
            event_dim = 1 if num_states == 2 else 2
            sizes = {"width": width, "depth": depth, "event_dim": event_dim}
            core = networks.MLP(num_steps, kernel.num_outputs, modulated=True, **sizes)
        network = networks.Embedded(core, embedding, shapes)
        transition = Transition(HaikuFunction(network), None, (size,), context_shape)
        parts.append(Part(name, tuple((site.name, site.size) for site in sites), kernel, transition, affine))
        rest = jnp.concatenate([rest, told(jnp.asarray(values), num_states).astype(codes.dtype)], axis=-1)
    return Plan(code, tuple(parts))


def rows_of(plan: Plan, roles: Roles, simulations: Simulations) -> dict[str, Array]:
    """What the chains are trained on: codes of what is given, and the state x^0 of every part by its name."""
    drawn, given = simulations
    rows = {"codes": plan.code(in_a_row(roles.given, given))}
    rest = rows["codes"][:, :0]
    for part in plan.parts:
        values = jnp.concatenate([jnp.asarray(drawn[name]) for name, _ in part.sites], axis=-1)
        if part.affine is not None:
            function: Any = part.transition.function
            features = jnp.concatenate([function.network.features_of(rows["codes"]), rest], axis=-1)
            values = part.affine.inverse(values.astype(float), features)
        rows[part.name] = values
        rest = jnp.concatenate([rest, told(values, part.kernel.num_states).astype(rest.dtype)], axis=-1)
    return rows


def train(
    plan: Plan,
    data: Any,
    held_out: Mapping[str, Any],
    *,
    rng_key: jax.Array,
    every: int,
    patience: int | None,
    **settings: Any,
) -> tuple[tuple[Part, ...], FitResult]:
    """Train all parts on rows, an array or a stream.

    Args:
        plan: what to train.
        data: of ``rows_of``, or a stream of such batches.
        held_out: rows that stop the training.
        rng_key: randomness.
        every: steps between two looks at them.
        patience: looks without a new best after which training stops.
        **settings: of :func:`~numpyro_diffusion.fit`.
    """

    def model(batch: Any, size: int) -> None:
        context = batch["codes"]
        for part in plan.parts:
            function: Any = part.transition.function
            transition = haiku_module(
                part.name,
                function.network,
                kernel=part.kernel,
                event_shape=part.transition.event_shape,
                context_shape=part.transition.context_shape,
            )
            with numpyro.plate(f"{part.name}_rows", size, subsample_size=len(context)):
                numpyro.sample(part.name, Diffusion(part.kernel, transition, context=context), obs=batch[part.name])
            x = told(jnp.asarray(batch[part.name]), part.kernel.num_states).astype(context.dtype)
            context = jnp.concatenate([context, x], axis=-1)

    repeats = repeats_of(len(held_out["codes"]), (1,))
    repeated = jax.tree.map(lambda leaf: np.concatenate([leaf] * repeats), held_out)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Expected sqrt\(abar_T\)")  # of the first batch, not of all rows
        result = fit(
            model,
            data,
            rng_key=rng_key,
            validation=Validation(repeated, every=every, patience=patience),
            **settings,
        )
    return tuple(_trained(part, result.params[f"{part.name}$params"]) for part in plan.parts), result


def online_batches(
    simulator: Simulator, plan: Plan, roles: Roles, batch_size: int, rng_key: jax.Array, *, rows_at_once: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of simulations that are used once, without an end."""
    left: dict[str, np.ndarray] | None = None
    step = 0
    while True:
        key = jax.random.fold_in(rng_key, step)
        found, _ = clean(roles.of_simulations(simulator.draws(key, rows_at_once)))
        found = roles.with_gaps(jax.random.fold_in(key, 1), found)
        rows = jax.tree.map(np.asarray, rows_of(plan, roles, found))
        left = rows if left is None else jax.tree.map(lambda a, b: np.concatenate([a, b]), left, rows)
        whole = len(left["codes"]) // batch_size * batch_size
        for start in range(0, whole, batch_size):
            yield jax.tree.map(lambda leaf: leaf[start : start + batch_size], left)  # noqa: B023
        left = jax.tree.map(lambda leaf: leaf[whole:], left)  # noqa: B023
        step += 1


def _check_varies(drawn: Mapping[str, np.ndarray]) -> None:
    """Refuse real numbers that have one value alone: such a one has no density."""
    constant = [name for name, values in drawn.items() if (np.ptp(values, axis=0) == 0).any()]
    if constant:
        got = f"the same numbers of {constant} in all {len(drawn[constant[0]])} simulations"
        cure = "A known value is no unknown: hand it in as an argument, and leave the model without seed or substitute."
        raise ValueError(expected("numbers to be drawn that vary", got, cure))


def held_out_count(num_rows: int, share: float) -> int:
    """How many rows stop the training."""
    return max(1, min(_MOST_HELD_OUT, int(share * num_rows)))


def _trained(part: Part, params: Any) -> Part:
    function, shapes = part.transition.function, (part.transition.event_shape, part.transition.context_shape)
    return Part(part.name, part.sites, part.kernel, Transition(function, params, *shapes), part.affine)


def _discrete_kernel(num_steps: int, num_states: int, values: np.ndarray) -> Kernel:
    schedule = constant_fraction(num_steps)
    # A bit or class that no simulation has drawn has a chance all the same: one in n + 1 rows, shared (Krichevsky).
    if num_states == 2:
        return BernoulliKernel(schedule, rate=jnp.asarray((values.sum(0) + 0.5) / (len(values) + 1), float))
    counts = np.bincount(values.reshape(-1), minlength=num_states) + 0.5
    return CategoricalKernel(schedule, num_states, rates=jnp.asarray(counts / counts.sum(), float))
