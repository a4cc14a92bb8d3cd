"""The contract tests compile hundreds of small programs and run each for microseconds."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def compile_quickly() -> Iterator[None]:
    """Half the compile time. What is claimed here does not depend on the optimiser; the other suites run with it."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
