r"""What is learned once from a model's own draws (theta, y), whichever of the two is drawn given the other.

Simulations, coordinates, training, files: a conditional chain (:mod:`.parts`) in coordinates in which what it draws is
near standard normal (:mod:`.coordinates`) is trained on simulations (:mod:`.train`). Which sites it draws and which it
sees are its roles.
"""

import abc
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from ... import networks
from ..._checks import check_integer_at_least, expected
from ..._weights import host_generator
from ...model.simulator import Simulator
from ...training import FitResult
from .novelty import Neighbours, fit_neighbours
from .saving import load_amortized, save_amortized
from .train import Plan, Roles, clean, held_out_count, make_plan, online_batches, rows_of, train

__all__ = ["Amortized"]

_Learned = TypeVar("_Learned", bound="Amortized")

_BATCHES_AT_ONCE = 40  # of online simulations
_WEIGHT_DECAY = 0.1


class Amortized(abc.ABC):
    """A conditional chain of a model's sites; arguments are those of :class:`AmortizedPosterior`."""

    def __init__(
        self,
        model: Callable,
        *,
        observed: str | Sequence[str],
        model_args: tuple = (),
        model_kwargs: Mapping[str, Any] | None = None,
        embedding: Callable[[Any], Any] | None = None,
        num_steps: int = 40,
        width: int = 128,
        depth: int = 3,
    ) -> None:
        names = (observed,) if isinstance(observed, str) else tuple(observed)
        if not names or len(set(names)) != len(names) or not all(isinstance(name, str) for name in names):
            raise ValueError(expected("one or more names of sites, each once", repr(observed), "Pass observed='y'."))
        for name, value in (("num_steps", num_steps), ("width", width), ("depth", depth)):
            check_integer_at_least(name, value, 1, "It sizes the chain and its network.")
        embedding = networks.VectorEmbedding() if embedding is None else embedding
        if not callable(embedding):
            cure = "Pass one of nd.networks, or a Haiku function of y."
            raise TypeError(expected("an embedding that can be called", repr(embedding), cure))
        self._simulator = Simulator(model, model_args, model_kwargs or {}, names)
        self._roles = self._roles_of(self._simulator)
        self._settings = {"num_steps": num_steps, "width": width, "depth": depth}
        self._embedding = embedding
        self._plan: Plan | None = None
        self._neighbours: Neighbours | None = None
        self.fit_result: FitResult | None = None
        self.seconds: float | None = None  # of simulations and training; None where they were read from a file

    @abc.abstractmethod
    def _roles_of(self, simulator: Simulator) -> Roles:
        """Which sites are drawn given which."""

    @property
    def observed(self) -> tuple[str, ...]:
        """Names of the sites that are observed."""
        return tuple(site.name for site in self._simulator.observed)

    def simulate(self, rng_key: jax.Array, num_simulations: int) -> dict[str, np.ndarray]:
        """Draws of all latent sites and of what is observed, by site, each with the draws in front."""
        check_integer_at_least("num_simulations", num_simulations, 1, "It counts draws of the model.")
        return self._simulator.simulate(rng_key, num_simulations)

    def fit(
        self: _Learned,
        rng_key: jax.Array,
        num_simulations: int = 10_000,
        *,
        simulations: Mapping[str, Any] | None = None,
        online: bool = False,
        max_steps: int = 30_000,
        batch_size: int = 256,
        optimizer: Any = None,
        ema_decay: float = 0.995,
        validation: float = 0.1,
        every: int = 200,
        patience: int | None = 30,
        progress_bar: bool = True,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 1000,
        resume: bool = False,
    ) -> _Learned:
        """Simulate, train, and return itself; ``fit_result`` has the losses.

        Args:
            rng_key: JAX random key; the same key gives the same network.
            num_simulations: draws of the model.
            simulations: in place of these, draws that exist: all latent and observed sites by name, each with the draws
                in front, as of ``numpyro.infer.Predictive``.
            online: simulate anew for every batch: the first ``num_simulations`` make the coordinates and stop the
                training, and no network memorises what it sees once.
            max_steps: of training, at most; minutes for a few unknowns on two cores.
            batch_size: rows in a batch.
            optimizer: an optax optimiser; by default AdamW whose rate falls from 1e-3 to 0 along a cosine, gradients
                clipped, weights decayed by a tenth of the rate: simulations are few beside what a network can learn
                by heart.
            ema_decay: of the average of the parameters.
            validation: share of the simulations that stop the training, in (0, 0.5]; at most 2000.
            every: steps between two looks at them.
            patience: looks without a new best after which training stops; None for never.
            progress_bar: show steps and losses.
            checkpoint_dir: where to write checkpoints, see :func:`~numpyro_diffusion.fit`.
            checkpoint_every: steps between two.
            resume: go on from the last; the same key and settings make the same simulations again, those of ``online``
                up to where it stopped included.

        Raises:
            ValueError: for simulations of which most are NaN or infinite, too few, or without variation; for sites that
                are missing among those given.
            DivergenceError: if training diverges.
        """
        check_integer_at_least("num_simulations", num_simulations, 1, "It counts draws of the model.")
        if not 0 < validation <= 0.5:
            raise ValueError(expected("validation in (0, 0.5]", validation, "It is a share of the simulations."))
        began = time.perf_counter()
        key_simulate, key_plan, key_rows, key_fit, key_online = jax.random.split(rng_key, 5)
        key_gaps = jax.random.fold_in(key_simulate, 1)
        found = (
            self._simulator.given(simulations, may_lack=self._roles.missing > 0)
            if simulations is not None
            else self._simulator.draws(key_simulate, num_simulations)
        )
        roles = self._roles
        may_lack = simulations is not None and roles.missing > 0
        kept, dropped = clean(roles.of_simulations(found), may_lack=may_lack)
        if dropped:
            wanted = "simulations that are numbers"
            cure = "They were dropped, and what is learned is of a model which never makes them."
            got = f"NaN or infinite values in {dropped} of {dropped + len(next(iter(kept[0].values())))}"
            warnings.warn(expected(wanted, got, cure), stacklevel=2)
        kept = kept if may_lack else roles.with_gaps(key_gaps, kept)
        plan = make_plan(roles, kept, embedding=self._embedding, rng_key=key_plan, **self._settings)
        rows = jax.tree.map(np.asarray, rows_of(plan, roles, kept))
        order = host_generator(key_rows).permutation(len(rows["codes"]))
        split = held_out_count(len(order), validation)
        held_out, learned = (jax.tree.map(lambda leaf, at=at: leaf[at], rows) for at in (order[:split], order[split:]))
        batch_size = min(batch_size, len(learned["codes"]))
        data: Any = learned
        settings: dict[str, Any] = {}
        if online:
            rows_at_once = _BATCHES_AT_ONCE * batch_size
            data = online_batches(self._simulator, plan, roles, batch_size, key_online, rows_at_once=rows_at_once)
            settings = {"size": len(learned["codes"])}
        parts, self.fit_result = train(
            plan,
            data,
            held_out,
            rng_key=key_fit,
            every=every,
            patience=patience,
            optimizer=optimizer or _optimizer(max_steps),
            num_steps=max_steps,
            batch_size=batch_size,
            ema_decay=ema_decay,
            progress_bar=progress_bar,
            checkpoint_dir=checkpoint_dir,
            checkpoint_every=checkpoint_every,
            resume=resume,
            **settings,
        )
        self._plan = plan._replace(parts=parts)
        self._neighbours = fit_neighbours(learned["codes"], held_out["codes"], host_generator(key_plan))
        self.seconds = time.perf_counter() - began
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was learned to one file, in the format of :func:`~numpyro_diffusion.save`; the model is not in it.

        Raises:
            RuntimeError: before ``fit``.
            OSError: if it cannot be written.
        """
        plan, neighbours = self._trained()
        save_amortized(
            path,
            type(self).__name__,
            self._simulator,
            self._settings,
            self._roles.missing,
            self._embedding,
            plan,
            neighbours,
        )

    @classmethod
    def load(
        cls: type[_Learned],
        path: str | os.PathLike[str],
        model: Callable,
        *,
        model_args: tuple = (),
        model_kwargs: Mapping[str, Any] | None = None,
        embedding: Callable[[Any], Any] | None = None,
    ) -> _Learned:
        """Read what :meth:`save` wrote, for the model it was trained for.

        Args:
            path: of the file.
            model: the model; its sites are compared with the file's.
            model_args: its arguments.
            model_kwargs: its keyword arguments.
            embedding: if it is your own, what it was.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: for a damaged or foreign file, or another model: of other sites, or of other densities at a
                simulation that the file holds.
        """
        found = load_amortized(path, cls.__name__, embedding)
        amortized = cls(
            model,
            observed=found.observed,
            model_args=model_args,
            model_kwargs=model_kwargs,
            embedding=found.embedding,
            **found.settings,
        )
        amortized._plan, amortized._neighbours = found.restore(amortized._simulator, amortized._roles), found.neighbours
        return amortized

    def _trained(self) -> tuple[Plan, Neighbours]:
        if self._plan is None or self._neighbours is None:
            raise RuntimeError(
                expected(f"a trained {type(self).__name__}", "one that is not", "Call fit(rng_key) first.")
            )
        return self._plan, self._neighbours


def _optimizer(max_steps: int) -> Any:
    import optax  # slow to import

    rate = optax.cosine_decay_schedule(1e-3, max_steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=_WEIGHT_DECAY))
