"""Flags of XLA that may not exist: XLA ends a process that names one it does not know, and they come and go."""

import os
import subprocess
import sys

# XLA's older code generator for the CPU compiles in two thirds of the time; the tests compile thousands of programs.
QUICK = "--xla_cpu_use_fusion_emitters=false"
# Half the compile time, and programs that run nearly as fast: the pages of the documentation train, too.
PAGES = f"{QUICK} --xla_backend_optimization_level=1"


def is_known(flag: str) -> bool:
    """Whether this version of XLA starts with a flag: another process tries."""
    ask = [sys.executable, "-c", "import jax; jax.devices()"]
    environment = {**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(ask, env=environment, capture_output=True, check=False).returncode == 0
