r"""Checkpoints of a training run: written whole or not at all, numbered by step, arrays by name.

Orbax writes each step to a temporary directory and renames it, so a process that is killed leaves the steps before.
Arrays are stored under their path in the run's state ("state.optim_state[1][0]['net$params']..."), and what must
agree for a run to go on (the model's parameters, batch size, key, data) is compared before anything is
replaced.

Not assumed: that a write succeeds. A full disk costs the step that was to be written, with a warning, and training goes
on.
"""

import json
import os
import shutil
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import expected
from .._typing import Array, PyTree

__all__ = ["Checkpoints"]

_FORMAT = 1
_OTHER_DIRECTORY = "Resume with the call that began the run, or use another checkpoint_dir."


class Checkpoints:
    """A directory that one run writes to, as a context: entering takes the directory, leaving frees it.

    Args:
        directory: created where it is missing; None for no checkpoints.
        keep: how many of the latest steps stay.
        writes: whether this process writes; the others of a multi-process run only read.

    Raises:
        ImportError: if orbax-checkpoint is not installed.
        OSError: if the directory cannot be written.
        RuntimeError: if another run has the directory.
    """

    def __init__(self, directory: str | os.PathLike | None, *, keep: int = 3, writes: bool = True) -> None:
        self._directory = None if directory is None else Path(directory).absolute()
        self._keep, self._writes = keep, writes
        self._manager: Any = None
        self._lock: Any = None

    def __enter__(self) -> "Checkpoints":
        if self._directory is None:
            return self
        orbax = _import_orbax()
        if self._writes:
            self._lock = _take(self._directory)
            for leftover in self._directory.glob("*.orbax-checkpoint-tmp*"):  # of a run that was killed
                shutil.rmtree(leftover, ignore_errors=True)
        self._manager = orbax.CheckpointManager(
            self._directory,
            options=orbax.CheckpointManagerOptions(
                max_to_keep=self._keep,
                create=False,
                enable_async_checkpointing=False,
                multiprocessing_options=orbax.options.MultiprocessingOptions(
                    primary_host=jax.process_index(), active_processes={jax.process_index()}
                )
                if jax.process_count() > 1
                else orbax.options.MultiprocessingOptions(),
            ),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._manager is not None:
            self._manager.close()
        if self._lock is not None:
            self._lock.close()

    @property
    def is_active(self) -> bool:
        """Whether there is a directory."""
        return self._directory is not None

    @property
    def last_step(self) -> int | None:
        """The latest whole checkpoint's step."""
        return None if self._manager is None else self._manager.latest_step()

    def describe(self) -> str:
        """Where the last good parameters are, in words."""
        if not self.is_active:
            return ""
        if self.last_step is None:
            return f" No checkpoint was written to {self._directory} yet."
        return f" The last good checkpoint in {self._directory} is of step {self.last_step}."

    def check_unused(self) -> None:
        """Raise FileExistsError if there are checkpoints: nothing trained is overwritten."""
        if self.last_step is not None:
            raise FileExistsError(
                expected(
                    f"resume=True, or a checkpoint_dir without checkpoints; {self._directory}",
                    f"one with step {self.last_step}",
                    "Resume that run, or use another directory.",
                )
            )

    def save(
        self, step: int, state: PyTree, losses: dict[str, np.ndarray], facts: dict[str, Any], source: dict[str, Any]
    ) -> None:
        """Write a step; a failure is a warning.

        Args:
            step: how many steps are done.
            state: arrays and keys.
            losses: vectors by name.
            facts: what must agree on resuming, for JSON.
            source: where the data stand, for JSON.
        """
        if self._manager is None or not self._writes or self.last_step == step:
            return
        orbax = _import_orbax()
        arrays = {f"state{name}": value for name, value in _named(state).items()}
        arrays |= {f"losses/{name}": values for name, values in losses.items() if values.size}
        note = {"format": _FORMAT, "facts": facts, "source": source, "keys": _key_implementations(state)}
        try:
            self._manager.save(
                step,
                args=orbax.args.Composite(arrays=orbax.args.StandardSave(arrays), note=orbax.args.JsonSave(note)),
                force=True,
            )
        except Exception as error:  # of the operating system, or of the library that met it
            warnings.warn(
                expected(
                    f"to write checkpoint {step} to {self._directory}",
                    f"{type(error).__name__}: {str(error).splitlines()[0]}",
                    "Training goes on; free the disk for the next one." + self.describe(),
                ),
                stacklevel=4,
            )

    def restore(self, state: PyTree, facts: dict[str, Any]) -> tuple[PyTree, dict[str, np.ndarray], dict[str, Any]]:
        """The last step's state in the structure of ``state``, the losses, and where the data stood.

        Raises:
            ValueError: if the checkpoint is of another model or another run; names the first difference.
        """
        orbax = _import_orbax()
        step = self.last_step
        try:
            kept = self._manager.restore(
                step, args=orbax.args.Composite(arrays=orbax.args.StandardRestore(), note=orbax.args.JsonRestore())
            )
            note, arrays = kept["note"], {name: np.asarray(value) for name, value in kept["arrays"].items()}
            version, then, source, keys = (note[name] for name in ("format", "facts", "source", "keys"))
        except Exception as error:
            raise ValueError(
                expected(
                    f"a checkpoint of numpyro_diffusion.fit at step {step} of {self._directory}",
                    f"{type(error).__name__}: {str(error).splitlines()[0]}",
                    "Delete that step's directory to resume from the one before.",
                )
            ) from error
        if version != _FORMAT:
            raise ValueError(expected(f"checkpoint format {_FORMAT}", version, "Use the version that wrote it."))
        losses = {n.removeprefix("losses/"): value for n, value in arrays.items() if n.startswith("losses/")}
        arrays = {n.removeprefix("state"): value for n, value in arrays.items() if n.startswith("state")}
        _compare_arrays(arrays, _named(state))
        _compare_facts(then, facts)
        return _refill(state, arrays, keys), losses, source


def _import_orbax() -> Any:
    try:
        import orbax.checkpoint as orbax  # two seconds: only for those who ask
    except ImportError as error:
        raise ImportError(
            expected("orbax-checkpoint", "no such package", "pip install 'numpyro-diffusion[checkpoints]'.")
        ) from error
    return orbax


def _take(directory: Path) -> Any:
    """A lock that the operating system frees when its process ends, however it ends."""
    import fcntl

    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("w")
    except OSError as error:
        raise type(error)(
            error.errno,
            expected(
                f"a checkpoint_dir that can be written, {directory}",
                error.strerror or type(error).__name__,
                "Change its permissions, or use another.",
            ),
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise RuntimeError(
            expected(f"a checkpoint_dir of its own, {directory}", "one that another run is writing to", "Use another.")
        ) from error
    return lock


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)


def _named(tree: PyTree) -> dict[str, np.ndarray]:
    """Leaves by their path; keys as their data. Arrays without entries hold nothing, and Orbax stores none."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {
        jax.tree_util.keystr(path): np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        for path, leaf in leaves
    }
    return {name: array for name, array in arrays.items() if array.size}


def _key_implementations(tree: PyTree) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): str(jax.random.key_impl(leaf)) for path, leaf in leaves if _is_key(leaf)}


def _key(data: np.ndarray, implementation: str) -> Array:
    return jax.random.wrap_key_data(jnp.asarray(data), impl=implementation)


def _refill(tree: PyTree, arrays: dict[str, np.ndarray], keys: dict[str, str]) -> PyTree:
    def leaf(path: Any, empty: Any) -> Any:
        name = jax.tree_util.keystr(path)
        return _key(arrays[name], keys[name]) if name in keys else arrays.get(name, empty)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def _compare_arrays(then: dict[str, np.ndarray], now: dict[str, np.ndarray]) -> None:
    for name in sorted(then.keys() | now.keys()):
        found, wanted = ("none" if x is None else f"{x.dtype}{list(x.shape)}" for x in (then.get(name), now.get(name)))
        if found != wanted:
            raise ValueError(expected(f"a checkpoint of this model, with {wanted} at {name}", found, _OTHER_DIRECTORY))


def _compare_facts(then: dict[str, Any], now: dict[str, Any]) -> None:
    now = json.loads(json.dumps(now))
    for name, value in now.items():
        if name == "schedules":
            _compare_schedules(then.get(name, value), value)  # older checkpoints do not tell them
        elif name == "versions":
            if then.get(name) != value:
                warnings.warn(
                    expected(
                        f"the versions that wrote the checkpoint, {then.get(name)}",
                        value,
                        "The run goes on, but its numbers may differ in the last bits.",
                    ),
                    stacklevel=4,
                )
        elif then.get(name) != value:
            raise ValueError(
                expected(f"{name.replace('_', ' ')} {then.get(name)} as in the checkpoint", value, _OTHER_DIRECTORY)
            )


def _compare_schedules(then: dict[str, list], now: dict[str, list]) -> None:
    """Kernels by site: their settings, and numbers of their schedules, which may differ by rounding."""
    for site in sorted(then.keys() | now.keys()):
        before, after = then.get(site, []), now.get(site, [])
        if len(before) != len(after):
            raise ValueError(
                expected(
                    f"{len(before)} diffusions at site {site!r} as in the checkpoint", len(after), _OTHER_DIRECTORY
                )
            )
        for one, other in zip(before, after, strict=True):
            for name in [*one, *(name for name in other if name not in one)]:
                wanted, found = one.get(name), other.get(name)
                if not _agree(wanted, found):
                    what = f"{name} {wanted} of the kernel at site {site!r} as in the checkpoint"
                    raise ValueError(expected(what, found, _OTHER_DIRECTORY))


def _agree(then: Any, now: Any) -> bool:
    if isinstance(then, (list, float)) and isinstance(now, (list, float)):
        return np.shape(then) == np.shape(now) and bool(np.allclose(then, now, rtol=1e-4, atol=0))
    return bool(then == now)
