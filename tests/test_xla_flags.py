"""The tests start under every version of XLA: none of its flags is set before it is known to exist."""

import re
from pathlib import Path

import xla_flags

ROOT = Path(__file__).parent.parent
ALWAYS_KNOWN = {"xla_force_host_platform_device_count", "xla_gpu_deterministic_ops"}


def test_a_flag_that_does_not_exist_is_found_out():
    assert xla_flags.is_known("--xla_force_host_platform_device_count=1")
    assert not xla_flags.is_known("--xla_no_such_flag=true")


def test_no_other_flag_is_named_anywhere():
    files = [ROOT / "Makefile", ROOT / ".ci" / "run", *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    files += [
        path
        for room in ("numpyro_diffusion", "tests", "examples", "benchmarks")
        for path in (ROOT / room).rglob("*.py")
    ]
    allowed = {ROOT / "tests" / "xla_flags.py", Path(__file__)}
    named = {path.name: set(re.findall(r"--(xla_\w+)", path.read_text())) for path in files if path not in allowed}
    assert {name: flags for name, flags in named.items() if flags - ALWAYS_KNOWN} == {}
