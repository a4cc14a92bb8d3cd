"""Simulation-based calibration of the joint posterior, and that the test would notice a wrong one."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parent.parent / "examples" / "calibration.py"


@pytest.fixture(scope="module")
def calibration():
    spec = importlib.util.spec_from_file_location("calibration", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_ranks_of_the_truth_are_uniform(calibration):
    """Error budget: three quantities at p = 1e-3 each, one fixed seed that is not the example's."""
    for name, rank in calibration.ranks(200, seed=1).items():
        assert calibration.uniformity(rank) > 1e-3, name


@pytest.mark.slow
def test_a_noise_scale_wrong_by_half_is_noticed(calibration):
    assert calibration.uniformity(calibration.ranks(200, scale=1.5, seed=1)["sigma"]) < 1e-3
