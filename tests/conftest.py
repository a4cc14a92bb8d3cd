"""What holds for every test: run-time type checks, global flags that stay as they were, slow tests on request, quick
compilation, and programs that are compiled once for all workers and unloaded before there are too many."""

import gc
import os
import pathlib
from collections.abc import Iterator

import xla_flags

# On some processors XLA logs an error for each program that one worker loads from another.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# ``make test-slow`` and the tests marked ``optimised`` compile as a user's program does. Workers inherit the answer.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = xla_flags.QUICK if xla_flags.is_known(xla_flags.QUICK) else ""

import jax
import jaxtyping
import pytest
from numpyro.distributions import Distribution
from precision import enable_x64

# Before anything imports the package: its annotations become checks, in the test run only.
jaxtyping.install_import_hook("numpyro_diffusion", "beartype.beartype")


# Each compiled program takes about ten mappings of memory, and a process that asks for more than 65,530 is ended. To
# count them takes 10 ms where they are many: one look for several hundred programs.
_MAPPINGS = pathlib.Path("/proc/self/maps")
_MANY_MAPPINGS = 20_000
_PROGRAMS_PER_LOOK = 250
_programs_since_look = 0

# Python looks for unreachable cycles whenever containers have grown by 700. Tracing makes many, and nearly all live or
# go by themselves: to look rarely saves a tenth of the time, and more where a process is old.
_CONTAINERS_PER_LOOK = (20_000, 10, 10)


def pytest_configure(config: pytest.Config) -> None:
    """What one worker compiled, in this run or an earlier one, the others and the processes that tests start load.
    ``pytest --cache-clear`` forgets it."""
    settings = {
        "jax_compilation_cache_dir": str(config.cache.mkdir("xla")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    jax.monitoring.register_event_duration_secs_listener(_count_programs)


def _count_programs(event: str, duration: float, **_: object) -> None:
    global _programs_since_look
    _programs_since_look += event == "/jax/core/compile/backend_compile_duration"


def pytest_collection_finish() -> None:
    """What was imported stays until the end: the collector of cycles need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_CONTAINERS_PER_LOOK)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--run-slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --run-slow"))
    # All tests of one catalogue row next to each other, so that one worker compiles its programs once for all of them.
    items.sort(key=_case_name)


def _case_name(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    return getattr(callspec.params.get("case"), "name", "") if callspec else ""


def _global_flags() -> dict[str, object]:
    return {
        "numpyro's default validate_args": Distribution._validate_args,
        "jax_enable_x64": jax.config.jax_enable_x64,
        "jax_numpy_dtype_promotion": jax.config.jax_numpy_dtype_promotion,
        "jax_debug_nans": jax.config.jax_debug_nans,
    }


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Half the compile time where programs are many and run for microseconds, fixtures included. No claim there
    depends on the optimiser; the engines as users compile them, the examples and the slow tests run with it."""
    as_usual = any(item.get_closest_marker(name) for name in ("slow", "optimised"))
    jax.config.update("jax_disable_most_optimizations", not as_usual)
    try:
        return (yield)
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def programs_are_unloaded() -> Iterator[None]:
    """Thousands of programs in one process are too many for the kernel; what is still in use stays."""
    global _programs_since_look
    yield
    if _programs_since_look < _PROGRAMS_PER_LOOK or not _MAPPINGS.exists():
        return
    _programs_since_look = 0
    if _MAPPINGS.read_bytes().count(b"\n") > _MANY_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def global_flags_stay() -> Iterator[None]:
    """Fails a test that leaves a global flag of NumPyro or JAX changed: later tests would prove something else."""
    before = _global_flags()
    yield
    after = _global_flags()
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    Distribution._validate_args = before["numpyro's default validate_args"]  # later tests keep their meaning
    assert not changed, f"left changed (before, after): {changed}"


@pytest.fixture
def no_type_checks() -> Iterator[None]:
    """The package as a user has it: wrong types reach the package's own messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision as the default float."""
    with enable_x64(True):
        yield
