r"""Train by NumPyro's SVI on minibatches: compiled once, run in chunks, nothing read back at each step.

Step i draws a batch of rows by a key that depends on i alone (:mod:`.sources`) and calls ``svi.update``. Its loss is
that of :class:`numpyro.infer.SVI` for ``model(batch, size)``,

    loss = -(size / batch_size) sum over the batch of log p(row) / size        in nats per row,

for a model of one observed diffusion, whose ``log p(row)`` is the estimate of ``Diffusion``: itself a bound, so that
such a model needs no guide. Any other model and guide will do, if :mod:`.checks` finds nothing wrong with them.

``plate(subsample_size=...)`` that indexes the data shuffles all of it at every step, and ``svi.run`` compiles
at every call; hence batches of our own, and compiled chunks of about half a second.

On the CPU, XLA's gradients of convolutions are many times slower inside of a loop (jax-ml/jax #12868). There a step
that has convolutions is dispatched by itself; the losses are still read once in a chunk.

What a step computes depends on its number and on the key, not on how steps are divided into chunks: a run that was
killed and resumed ends with the same bits as one that was not.
"""

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.infer import SVI, Trace_ELBO

from .._checks import check_integer_at_least, expected
from .._compat.jax import has_primitive
from .._placement import Placement
from .._typing import Array, PyTree
from .arrays import Arrays, as_arrays
from .checkpoints import Checkpoints
from .checks import ModelChecks
from .losses import Losses
from .result import DivergenceError, FitResult
from .sources import Source, as_source, is_stream
from .unmoved import share_moved, warn_unmoved
from .validation import Validation, make_validation_loss
from .warm_start import check_init_params

__all__ = ["fit"]

_LONGEST_CHUNK = 1000
_SECONDS_PER_CHUNK = 0.5
_DIVERGED_CURE = (
    "Lower the learning rate, clip gradients with optax.clip_by_global_norm, and look at the data's scale; what was "
    "reached is error.result."
)
_LIBRARIES = ("numpyro-diffusion", "jax", "jaxlib", "numpyro", "optax")


class _Caller(NamedTuple):
    """The user's function between chunks."""

    function: Callable[[int, np.ndarray, dict[str, PyTree]], bool | None] | None
    every: int | None

    def is_due(self, step: int, is_last: bool) -> bool:
        """Whether it is called after that many steps, which may be the last."""
        return self.function is not None and (self.every is None or step % self.every == 0 or is_last)

    def wants_to_stop(self, step: int, losses: np.ndarray, params: dict[str, PyTree]) -> bool:
        """Call it."""
        answer = self.function(step, losses, params) if self.function is not None else None
        if answer is not None and not isinstance(answer, (bool, np.bool_)):
            cure = "True stops the training; return nothing to go on."
            raise TypeError(expected("True, False or None from the callback", repr(answer), cure))
        return bool(answer)


class _State(NamedTuple):
    """What a step changes, and what a checkpoint holds."""

    svi: Any
    average: PyTree  # of parameters; None without ema_decay
    best: PyTree  # param and mutable values with the best validation loss; None without validation


def fit(
    model: Callable[..., Any],
    data: Any,
    *,
    optimizer: Any,
    num_steps: int,
    batch_size: int,
    rng_key: jax.Array,
    guide: Callable[..., Any] | None = None,
    loss: Any = None,
    ema_decay: float | None = None,
    checkpoint_dir: str | os.PathLike | None = None,
    checkpoint_every: int = 1000,
    resume: bool = False,
    validation: Any = None,
    progress_bar: bool = True,
    mesh: jax.sharding.Mesh | None = None,
    size: int | None = None,
    init_params: Mapping[str, PyTree] | None = None,
    callback: Callable[[int, np.ndarray, dict[str, PyTree]], bool | None] | None = None,
    callback_every: int | None = None,
) -> FitResult:
    """Train all ``param`` sites of a model by SVI on random minibatches.

    Args:
        model: called as ``model(batch, size)``: the batch with ``batch_size`` rows, and the number of rows of all
            the data, for ``numpyro.plate("data", size, subsample_size=batch_size)``.
        data: an array or a pytree of arrays with equal first dimensions, the rows; such arrays memory-mapped by
            ``numpy.load(path, mmap_mode="r")``; tables of numbers (pandas, polars: what has ``to_numpy``) and lists of
            rows in their place; or an iterator, or a loader that can be iterated again, of batches. All arrays are
            looked at before the first step.
        optimizer: an optax optimiser, or one of NumPyro's.
        num_steps: how many.
        batch_size: rows in a batch, drawn with replacement; all rows, in order, if it is their number. A loader keeps
            its own order.
        rng_key: JAX random key; the same key gives the same parameters.
        guide: called as the model is; none for a model without latent sites. What it says of a row must be a function
            of the batch.
        loss: a NumPyro ELBO; ``Trace_ELBO()`` by default.
        ema_decay: in (0, 1): return an exponential moving average of the parameters with this decay.
        checkpoint_dir: where to write checkpoints (by orbax-checkpoint): parameters, optimiser, averages, losses. One
            run writes to a directory at a time.
        checkpoint_every: steps between two checkpoints; the last step is always written.
        resume: go on from the last checkpoint, to the same bits as without interruption on the same machine with
            the same versions; from the start if there is none. A loader's order must be repeatable: one with
            ``get_state`` and ``set_state`` (grain) is set, any other is iterated up to the step.
        validation: held-out data, or a :class:`Validation` of them, which also says when to stop: then the parameters
            with the best validation loss are returned.
        progress_bar: show steps and the loss in bits per row.
        mesh: divide every batch among the devices of a mesh, which may belong to several processes.
        size: the rows of all the data of an iterator.
        init_params: what parameters begin with, by name, in the place of what the model draws: ``params`` of an earlier
            result, to go on with the same network on new data. Its ``mutable_state`` may be among them. Parameters that
            are not named begin as the model says; optimiser and averages begin anew. A run that is resumed has its own.
        callback: called between chunks of steps as ``callback(step, losses, params)``: how many steps are done, the
            losses of the steps since the last call in nats per row, and the parameters that would be returned now
            without validation. It stops the training by returning True; it goes on for None or False. An exception
            propagates, with what was trained as its attribute ``result``, and after a checkpoint if there is a
            ``checkpoint_dir``. Of several processes all must return the same.
        callback_every: steps between two calls, which are then also called after the last step; by default a call comes
            about twice a second.

    Returns:
        The trained parameters and the losses. A loss that is flat while the parameters hardly moved is a warning; so is
        one that ends above its best.

    Raises:
        ValueError: for empty data, rows that do not match, a batch larger than the data, a decay outside (0, 1), a
            loader whose batches are not as they should be, or a checkpoint of another model, schedule or run; for
            ``init_params`` of other names or shapes; for observed values that are not finite, with site, row and
            column; for a model that would be trained wrongly: a latent diffusion that no guide covers, a guide with
            parameters for each row, an observed site that does not stand for all rows.
        DivergenceError: a FloatingPointError, when the loss is no longer finite, or ends far above where it was: more
            than 10 (r + |m| + 1) nats above m, the least median of 100 steps, whose losses spread over r; or more than
            10^4 times the first loss; before the end, when each of the last 500 losses was so. It names the step and
            has what was reached as ``error.result``. A checkpoint of parameters at such a loss is not written, so that
            the last good one stays.
        TypeError: for tables, lists or arrays of anything but numbers, with their columns, and for a path.
        FileExistsError: for a directory with checkpoints, without ``resume``.
        RuntimeError: for a directory that another run is writing to.
        OSError: for one that cannot be written. A disk that is full later on is a warning, and training goes on.

        What else stops a run after its first steps (Ctrl-C, a loader that fails) propagates, and has what was trained
        as its attribute ``result``.
    """
    check_integer_at_least("num_steps", num_steps, 1, "Pass the number of SVI steps.")
    check_integer_at_least("batch_size", batch_size, 1, "Pass the number of rows in a batch.")
    check_integer_at_least("checkpoint_every", checkpoint_every, 1, "It counts steps between checkpoints.")
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ValueError(expected("ema_decay in (0, 1)", ema_decay, "0.999 averages about the last 1000 steps."))
    if resume and checkpoint_dir is None:
        raise ValueError(expected("checkpoint_dir=, the directory to resume from", "None", "Pass it."))
    if callback_every is not None:
        check_integer_at_least("callback_every", callback_every, 1, "It counts steps between calls.")
    rows = Arrays(data, {}) if is_stream(data) else as_arrays("data", data)
    if validation is not None and not isinstance(validation, Validation):
        validation = Validation(validation)
    place = Placement(mesh)
    place.check_divisible("a batch_size", batch_size)
    source = as_source(rows.tree, batch_size, size, place)
    svi = SVI(model, guide or _empty_guide, optimizer, loss or Trace_ELBO())
    run = _Run(svi, source, place, rng_key, ema_decay, validation)
    facts = {
        "batch_size": batch_size,
        "size": source.size,
        "rng_key": np.asarray(jax.random.key_data(rng_key)).tolist(),
        "ema_decay": ema_decay,
        "data": source.signature(),
        "validation_every": None if validation is None else validation.every,
        "versions": {name: version(name) for name in _LIBRARIES},
    }
    writes = jax.process_index() == 0
    if not writes:
        place.wait()  # until the writer has the directory, and whatever it wrote before is there to be read
    with Checkpoints(checkpoint_dir, writes=writes) as checkpoints:
        if writes:
            place.wait()
        losses = Losses([], [], [])
        state = run.start(init_params or {})
        checks = _check(model, guide, run, state, rows, is_new=checkpoints.last_step is None)
        facts["schedules"] = checks.schedules()
        if not resume:
            checkpoints.check_unused()
        elif checkpoints.last_step is not None:
            restored, kept, position = checkpoints.restore(state, facts)
            losses = Losses(*(kept[name].tolist() if name in kept else [] for name in Losses._fields))
            source.restore(position, len(losses.steps))
            state = restored
        state = place.replicate(jax.tree.map(jnp.asarray, state) if mesh is None else state)
        caller = _Caller(callback, callback_every)
        values, trouble = _train(
            run, state, losses, num_steps, checkpoints, checkpoint_every, facts, caller, progress_bar
        )
    params, mutable = place.fetch(values)
    arrays = losses.arrays()
    result = FitResult(
        params=params,
        losses=arrays["steps"],
        mutable_state=mutable,
        model=model,
        example=jax.tree.map(lambda rows: jnp.asarray(rows[:1]), run.example),
        size=source.size,
        validation_steps=arrays["validation_steps"],
        validation_losses=arrays["validation"],
    )
    if isinstance(trouble, BaseException):
        with contextlib.suppress(AttributeError):  # of an exception that takes no attributes
            trouble.result = result  # type: ignore[attr-defined]
            trouble.add_note("What was trained until then is the attribute 'result' of this exception.")
        raise trouble
    if trouble:
        raise DivergenceError(trouble, result)
    return result


class _Run:
    """The compiled parts of one training run."""

    def __init__(
        self,
        svi: SVI,
        source: Source,
        place: Placement,
        key: Array,
        ema_decay: float | None,
        validation: Validation | None,
    ) -> None:
        self.svi, self.source, self.validation = svi, source, validation
        self._place, self._ema_decay = place, ema_decay
        self._key_init, key_steps = jax.random.split(key)
        self.key_steps = place.replicate(key_steps)
        self._key_validation = place.replicate(jax.random.fold_in(key, 2))  # split has taken 0 and 1
        self.example = source.example()
        self._chunk = place.compile(self._steps, donate=0)
        self._single = place.compile(self._step, donate=0)
        self._step_by_step: bool | None = None
        self._validate: Any = None

    def start(self, init_params: Mapping[str, PyTree]) -> _State:
        """The state before the first step, with the given values of some parameters."""
        # A NaN in the first batch is named by our checks, with its index: NumPyro's validation would say less.
        is_clean = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(self.example) if leaf.dtype.kind == "f")
        with contextlib.nullcontext() if is_clean else numpyro.validation_enabled(False):
            svi_state = self.svi.init(self._key_init, self.example, self.source.size)
            params, mutable = self.svi.get_params(svi_state), svi_state.mutable_state or {}
            given = check_init_params(init_params, {**params, **mutable})
            if given:
                values = {name: value for name, value in given.items() if name in params}
                svi_state = self.svi.init(self._key_init, self.example, self.source.size, init_params=values)
                kept = {name: given.get(name, value) for name, value in mutable.items()}
                svi_state = svi_state._replace(mutable_state=kept or None)
        params = self.svi.get_params(svi_state)
        average = params if self._ema_decay is not None else None
        best = (params, svi_state.mutable_state) if self.validation is not None else None
        # Copies: buffers that are given away must not be the same.
        return jax.tree.map(jnp.copy, _State(svi_state, average, best))

    def fetch(self, values: PyTree) -> PyTree:
        """Values as arrays of this process alone."""
        return self._place.fetch(values)

    def values(self, state: _State) -> tuple[PyTree, PyTree]:
        """The values of ``param`` and of ``mutable`` sites."""
        params = self.svi.get_params(state.svi) if self._ema_decay is None else state.average
        return params, state.svi.mutable_state

    def chunk(self, state: _State, prepared: PyTree, start: int, stop: int) -> tuple[_State, Array]:
        """Steps start..stop - 1, and their losses, in the first places of an array."""
        if self._step_by_step is None:
            self._step_by_step = self._has_slow_loops(state, prepared)
        first = np.int32(start)
        if not self._step_by_step:
            return self._chunk(state, prepared, self.key_steps, first, np.int32(stop))
        losses = []
        for index in range(start, stop):
            state, value = self._single(state, prepared, self.key_steps, first, np.int32(index))
            losses.append(value)
        return state, jnp.stack(losses)

    def validation_loss(self, state: _State, data: PyTree) -> float:
        """The loss per row of held-out data."""
        if self._validate is None:
            rows = len(jax.tree.leaves(self.example)[0])
            self._validate = make_validation_loss(self.svi, self._place.replicate(data), rows)
        params, mutable = self.values(state)
        return float(self._validate({**params, **(mutable or {})}, self._key_validation))

    def _has_slow_loops(self, state: _State, prepared: PyTree) -> bool:
        if jax.default_backend() != "cpu":
            return False
        arguments = state, prepared, self.key_steps, np.int32(0), np.int32(0)
        return has_primitive(self._step, "conv_general_dilated", *arguments)

    def _step(self, state: _State, prepared: PyTree, key: Array, start: Array, index: Array) -> tuple[_State, Array]:
        """One step, and its loss per row."""
        batch = self.source.batch(prepared, index - start, jax.random.fold_in(key, index))
        svi_state, value = self.svi.update(state.svi, batch, self.source.size)
        average = state.average
        if self._ema_decay is not None:
            import optax  # as slow to import as a tenth of this package

            # The early average forgets its start: weight 1 on the first step, then the usual decay.
            weight = jnp.maximum(1 - self._ema_decay, 9 / (10.0 + index))
            average = optax.incremental_update(self.svi.get_params(svi_state), average, weight)
        return _State(svi_state, average, state.best), (value / self.source.size).astype(float)

    def _steps(self, state: _State, prepared: PyTree, key: Array, start: Array, stop: Array) -> tuple[_State, Array]:
        """Steps start..stop - 1."""

        def body(index: Array, carry: tuple[_State, Array]) -> tuple[_State, Array]:
            state, losses = carry
            state, value = self._step(state, prepared, key, start, index)
            return state, losses.at[index - start].set(value)

        return jax.lax.fori_loop(start, stop, body, (state, jnp.zeros(_LONGEST_CHUNK)))


def _train(
    run: _Run,
    state: _State,
    losses: Losses,
    num_steps: int,
    checkpoints: Checkpoints,
    checkpoint_every: int,
    facts: dict[str, Any],
    caller: _Caller,
    progress_bar: bool,
) -> tuple[PyTree, str | BaseException]:
    """Walk to ``num_steps``, or to where validation or the user stops. The values to return, and what went wrong."""
    validation = run.validation
    pace = 10  # steps in the next chunk, so that it takes about half a second
    seconds_are_known = False
    step = len(losses.steps)
    reached = run.values(state)
    # Copies on the host: the chunk takes what it is given. A run that goes on has no beginning.
    begun = jax.tree.map(np.array, run.fetch(run.svi.get_params(state.svi))) if step == 0 else None
    best = jax.tree.map(jnp.copy, state.best)  # of its own: a chunk that is interrupted has taken the state
    trouble, warned, told = "", False, step
    held_out_stops = lambda: bool(validation and validation.should_stop(np.asarray(losses.validation)))  # noqa: E731
    is_stopped = held_out_stops()
    try:
        with _progress(num_steps, step, progress_bar) as bar:
            while step < num_steps and not is_stopped:
                ends = [num_steps, step + min(pace, run.source.limit or _LONGEST_CHUNK)]
                if caller.every is not None:
                    ends.append(_next_multiple(step, caller.every))
                if checkpoints.is_active:
                    ends.append(_next_multiple(step, checkpoint_every))
                if validation is not None:
                    ends.append(_next_multiple(step, validation.every))
                stop = min(ends)
                prepared = run.source.prepare(step, stop - step, run.key_steps)
                reached = jax.tree.map(jnp.copy, reached)  # the chunk takes the state's own
                began = time.perf_counter()
                state, values = run.chunk(state, prepared, step, stop)
                found = np.asarray(values)[: stop - step]
                seconds = time.perf_counter() - began
                is_finite = np.isfinite(found)
                if not is_finite.all():
                    index = int(np.argmin(is_finite))
                    losses.steps.extend(found[:index].tolist())
                    trouble = expected("a finite loss", f"{found[index]} at step {step + index}", _DIVERGED_CURE)
                    break
                losses.steps.extend(found.tolist())
                reached = run.values(state)
                if seconds_are_known:  # the first chunk is also compiled
                    pace = int(np.clip(_SECONDS_PER_CHUNK * (stop - step) / seconds, 1, min(2 * pace, _LONGEST_CHUNK)))
                seconds_are_known = True
                bar.update(stop - step)
                step = stop
                shown = f"loss {found.mean() / np.log(2):.3f} bits"
                if validation is not None and step % validation.every == 0:
                    held_out = run.validation_loss(state, validation.data)
                    if not np.isfinite(held_out):
                        trouble = expected(
                            "a finite loss of the validation data", f"{held_out} at step {step}", _DIVERGED_CURE
                        )
                        break
                    losses.validation.append(held_out)
                    losses.validation_steps.append(step)
                    if int(np.argmin(losses.validation)) == len(losses.validation) - 1:
                        state = state._replace(best=jax.tree.map(jnp.copy, reached))
                        best = jax.tree.map(jnp.copy, reached)
                if losses.validation:
                    shown += f", held out {losses.validation[-1] / np.log(2):.3f}"
                bar.set_postfix_str(shown)
                if checkpoints.is_active and step % checkpoint_every == 0:
                    if not losses.has_diverged():
                        checkpoints.save(step, state, losses.arrays(), facts, run.source.state())
                    elif not warned:  # it may recover; if not, the last good checkpoint must stay
                        warned = True
                        _warn_apart(losses, f"No checkpoint is written.{checkpoints.describe()}")
                is_stopped = losses.is_lost() or held_out_stops()
                if caller.is_due(step, is_stopped or step == num_steps):
                    recent, told = np.asarray(losses.steps[told:], np.float32), step
                    reached = jax.tree.map(jnp.copy, reached)
                    try:
                        is_stopped = caller.wants_to_stop(step, recent, run.fetch(reached)[0]) or is_stopped
                    except BaseException:
                        if not losses.has_diverged():
                            checkpoints.save(step, state, losses.arrays(), facts, run.source.state())
                        raise
    except BaseException as error:  # Ctrl-C, a loader or a callback that fails, memory that is full
        if not losses.steps:
            raise
        return (best if losses.validation else reached), error
    if not trouble and losses.has_diverged():
        trouble = expected(
            f"a loss near its best, {losses.best():.3g} nats per row",
            f"{losses.end():.3g} at step {step - 1}",
            _DIVERGED_CURE,
        )
    if not trouble:
        checkpoints.save(step, state, losses.arrays(), facts, run.source.state())
        if losses.is_suspicious():
            _warn_apart(losses, "Look at the losses of the result; lower the learning rate, or pass validation=.")
        if begun is not None and losses.is_flat():
            warn_unmoved(losses, share_moved(begun, run.fetch(run.svi.get_params(state.svi))))
    return state.best if losses.validation else reached, trouble and trouble + checkpoints.describe()


def _warn_apart(losses: Losses, cure: str) -> None:
    wanted = f"a loss near its best, {losses.best():.3g} nats per row"
    warnings.warn(expected(wanted, f"{losses.end():.3g} at step {len(losses.steps) - 1}", cure), stacklevel=4)


def _next_multiple(step: int, every: int) -> int:
    return (step // every + 1) * every


def _empty_guide(*args: Any, **kwargs: Any) -> None:
    """The guide of a model whose sites are all observed."""


def _check(
    model: Callable[..., Any], guide: Callable[..., Any] | None, run: _Run, state: _State, data: Arrays, *, is_new: bool
) -> ModelChecks:
    """Refuse what would be trained wrongly."""
    params, mutable = run.svi.get_params(state.svi), state.svi.mutable_state or {}
    rows, size, validation = len(jax.tree.leaves(run.example)[0]), run.source.size, run.validation
    checks = ModelChecks(model, guide, {**params, **mutable}, run.example, size)
    checks.check_scale()
    if rows < size or validation is not None:
        checks.check_pairs()
    if is_new:  # a run that goes on was looked at when it began
        checks.check_finite("the data", None if is_stream(data.tree) else data)
        checks.check_erased()
        if not is_stream(data.tree):
            checks.check_seen(data)
    if is_new and validation is not None:
        checks.check_finite("the validation data", Arrays(validation.data, {}))
    return checks


def _progress(num_steps: int, done: int, visible: bool) -> Any:
    from tqdm.auto import tqdm  # NumPyro's own dependency; slow to import

    return tqdm(total=num_steps, initial=done, disable=not visible, desc="SVI", unit="step")
