"""What needs a fresh process or none at all: memory of training against T, time to import, time to the first draw."""

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import optax
from numpyro.infer import SVI, Trace_ELBO
from records import record
from speed_problems import Problem

_BENCHMARKS = Path(__file__).parent
_LONG, _SHORT = 1000, 10

_TRAIN = """
import sys; sys.path.insert(0, {path!r})
import jax, optax, numpyro_diffusion as nd
from speed_process import peak_bytes
from speed_problems import Problem
problem = Problem("mlp", {num_steps}, rows={rows})
nd.fit(problem.model(), problem.data(0), optimizer=optax.adam(1e-3), num_steps=100, batch_size=problem.batch,
       rng_key=jax.random.key(0), progress_bar=False)
print(peak_bytes())
"""

_DRAW = """
import sys; sys.path.insert(0, {path!r})
import jax
from speed_problems import Problem
from speed_process import peak_bytes
problem = Problem("mlp", 40)
problem.prior(problem.params(0)).sample(jax.random.key(0), ({draws},)).block_until_ready()
print(peak_bytes())
"""

_IMPORT = "import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"

_FIRST_DRAW = """
import sys; sys.path.insert(0, {path!r})
import jax
import numpyro_diffusion as nd
from speed_problems import Problem
problem = Problem("mlp")
print(problem.prior(problem.params(0)).sample(jax.random.key(0), (1000,)).std())
"""


def fresh(code: str) -> float:
    """The number that this code prints in a process of its own, which finds the package where this process has it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"a fresh process failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def peak_bytes() -> int:
    """The most memory that this process has held.

    On Linux not ``ru_maxrss``: a new process inherits there what its parent had at its peak, and a ratio of two such
    numbers is 1 whatever the processes do.
    """
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def program_bytes(function: Any, *arguments: Any) -> int:
    """What a compiled program needs: arguments, results, memory in between; constants, as the schedule, not counted."""
    analysis = jax.jit(function).lower(*arguments).compile().memory_analysis()
    if analysis is None:
        raise RuntimeError("Expected this backend to report a program's memory; got None.")
    parts = (analysis.temp_size_in_bytes, analysis.argument_size_in_bytes, analysis.output_size_in_bytes)
    return sum(parts) - analysis.alias_size_in_bytes


def training_bytes(problem: Problem) -> int:
    """Of the program of one SVI step: parameters, the optimiser's state, one batch."""
    model = problem.model()
    svi = SVI(model, lambda *_: None, optax.adam(1e-3), Trace_ELBO())
    x = jnp.zeros((problem.batch, *problem.event_shape))
    state = svi.init(jax.random.key(0), x, problem.rows)
    return program_bytes(lambda state, x: svi.update(state, x, problem.rows), state, x)


def sampling_bytes(problem: Problem, draws: int = 10_000) -> int:
    return program_bytes(
        lambda prior, key: prior.sample(key, (draws,)), problem.prior(problem.params(0)), jax.random.key(0)
    )


def memory(rounds: int, rows: int = 20_000) -> list[dict[str, Any]]:
    """Ratios of memory at T = 1000 over T = 10: of compiled programs, and of whole processes that train."""
    start = time.perf_counter()
    measures = {"training_memory_ratio_T": training_bytes, "sampling_memory_ratio_T": sampling_bytes}
    records = []
    for name, measure in measures.items():
        long, short = (float(measure(Problem("mlp", num_steps))) for num_steps in (_LONG, _SHORT))
        limit = "<= 1.05" if name.startswith("training") else ""
        records.append(_memory_record(name, long, short, "compiled program", limit, time.perf_counter() - start))
    start = time.perf_counter()
    peaks: dict[int, list[float]] = {_LONG: [], _SHORT: []}
    for index in range(rounds):
        for num_steps in list(peaks) if index % 2 == 0 else list(peaks)[::-1]:
            peaks[num_steps].append(fresh(_TRAIN.format(path=str(_BENCHMARKS), num_steps=num_steps, rows=rows)))
    long, short = (statistics.median(peaks[num_steps]) for num_steps in (_LONG, _SHORT))
    name, what = "training_memory_ratio_T_process", "peak of a process that trains"
    records.append(_memory_record(name, long, short, what, "<= 1.05", time.perf_counter() - start))
    return [*records, draw_memory(rounds)]


def draw_memory(rounds: int) -> dict[str, Any]:
    """Peak of a process that draws a million points of the plane over that of one with a tenth of them, T = 40."""
    start = time.perf_counter()
    many, few = (
        statistics.median(fresh(_DRAW.format(path=str(_BENCHMARKS), draws=draws)) for _ in range(rounds))
        for draws in (1_000_000, 100_000)
    )
    return record(
        "sample_memory_ratio_draws",
        many / few,
        "ratio",
        baseline=few / 2**20,
        baseline_name="peak of a process that draws 100,000 points, MiB",
        ratio=many / few,
        limit="<= 1.2",
        seconds=time.perf_counter() - start,
        mebibytes_of_1e6=many / 2**20,
    )


def _memory_record(name: str, long: float, short: float, what: str, limit: str, seconds: float) -> dict[str, Any]:
    return record(
        name,
        long / short,
        "ratio",
        baseline=short / 2**20,
        baseline_name=f"{what} at T = {_SHORT}, MiB",
        ratio=long / short,
        limit=limit,
        seconds=seconds,
        mebibytes_at_T_1000=long / 2**20,
    )


def imports(rounds: int) -> list[dict[str, Any]]:
    """Seconds to import the package over those to import NumPyro, and of a whole process up to 1000 draws."""
    ours, theirs = (_IMPORT.format(module=module) for module in ("numpyro_diffusion", "numpyro"))
    fresh(ours), fresh(theirs)  # files into the system's cache, bytecode onto the disk
    start = time.perf_counter()
    times: dict[str, list[float]] = {ours: [], theirs: []}
    for index in range(rounds):
        for code in (ours, theirs) if index % 2 == 0 else (theirs, ours):
            times[code].append(fresh(code))
    ratios = [mine / other for mine, other in zip(times[ours], times[theirs], strict=True)]
    seconds = time.perf_counter() - start
    first = []
    for _ in range(rounds):
        begin = time.perf_counter()
        fresh(_FIRST_DRAW.format(path=str(_BENCHMARKS)))
        first.append(time.perf_counter() - begin)
    return [
        record(
            "import_time_ratio",
            statistics.median(ratios),
            "ratio",
            baseline=statistics.median(times[theirs]),
            baseline_name="import numpyro, seconds",
            ratio=statistics.median(ratios),
            limit="<= 1.3",
            seconds=seconds,
            ours_seconds=statistics.median(times[ours]),
            ratios=ratios,
            rounds=rounds,
            numpyro_version=numpyro.__version__,
        ),
        record(
            "time_to_first_sample",
            statistics.median(first),
            "seconds",
            seconds=sum(first),
            what="a new process: start, import, an untrained MLP prior, 1000 draws, T = 100",
            rounds=rounds,
        ),
    ]
