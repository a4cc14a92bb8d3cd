"""Tables that packages carry, for ``density.py``: continuous columns, whole rows, fixed splits.

Numbers that were rounded lie on a grid, and a density on a grid can be raised without end. So each column gets uniform
noise of its own resolution, once, by a fixed seed; every method sees the same numbers.
"""

from collections.abc import Callable

import numpy as np

__all__ = ["TABLES", "TOYS", "off_the_grid", "read_csv", "split"]

_TEST_SHARE = 0.2


def off_the_grid(rows: np.ndarray) -> np.ndarray:
    """The rows with uniform noise of each column's resolution, the smallest distance of two of its values."""
    rng = np.random.default_rng(0)
    columns = []
    for column in rows.T.astype(float):
        values = np.unique(column.round(8))
        # A column with hardly a value twice is no grid.
        step = np.diff(values).min() if 1 < len(values) < 0.9 * len(column) else 0.0
        columns.append(column + step * (rng.uniform(size=len(column)) - 0.5))
    return np.stack(columns, axis=1)


def split(rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(train, test), a fifth for the test, by a fixed permutation of each seed."""
    order = np.random.default_rng(1000 + seed).permutation(len(rows))
    num_test = int(_TEST_SHARE * len(rows))
    return rows[order[num_test:]], rows[order[:num_test]]


def read_csv(path: str) -> np.ndarray:
    """The numeric columns of a file with more than ten values, whole rows only.

    Raises:
        ValueError: where no numeric column or fewer than 20 whole rows are left.
    """
    import pandas

    frame = pandas.read_csv(path).select_dtypes("number")
    frame = frame[[name for name in frame if frame[name].nunique() > 10]].dropna()
    if not frame.shape[1] or len(frame) < 20:
        raise ValueError(
            f"Expected 20 or more whole rows with a numeric column of more than ten values in {path}; "
            f"got shape {frame.shape}. Give a file with a header line and numbers."
        )
    return off_the_grid(frame.to_numpy(float))


def _sklearn(name: str, **options: object) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        import sklearn.datasets

        return np.asarray(getattr(sklearn.datasets, f"load_{name}")(**options).data)

    return load


def _diabetes() -> np.ndarray:
    rows = _sklearn("diabetes", scaled=False)()
    return np.delete(rows, 1, axis=1)  # sex


def _seattle_temps() -> np.ndarray:
    """One row for each whole day, its 24 hours."""
    from vega_datasets import local_data

    frame = local_data.seattle_temps()
    days = [day.to_numpy() for _, day in frame.groupby(frame["date"].dt.date)["temp"] if len(day) == 24]
    return np.stack(days)


def _vega(name: str, columns: list[str]) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        from vega_datasets import local_data

        return getattr(local_data, name)()[columns].dropna().to_numpy(float)

    return load


def _penguins() -> np.ndarray:
    from palmerpenguins import load_penguins

    columns = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
    return load_penguins()[columns].dropna().to_numpy(float)


def _statsmodels(name: str, drop: list[str] | None = None) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        import importlib

        module = importlib.import_module(f"statsmodels.datasets.{name}")
        return module.load_pandas().data.drop(columns=drop or []).to_numpy(float)

    return load


TABLES: dict[str, Callable[[], np.ndarray]] = {
    "diabetes": _diabetes,
    "breast_cancer": _sklearn("breast_cancer"),
    "wine": _sklearn("wine"),
    "seattle_temps": _seattle_temps,
    "seattle_weather": _vega("seattle_weather", ["precipitation", "temp_max", "temp_min", "wind"]),
    "cars": _vega("cars", ["Miles_per_Gallon", "Displacement", "Horsepower", "Weight_in_lbs", "Acceleration"]),
    "penguins": _penguins,
    "engel": _statsmodels("engel"),
    "elnino": _statsmodels("elnino", ["YEAR"]),
}


def _gaussian_toy(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated Gaussian in five dimensions."""
    factor = np.linalg.cholesky(0.9 ** np.abs(np.subtract.outer(np.arange(5), np.arange(5))))
    noise = rng.normal(size=(size, 5))
    log_density = -0.5 * (noise**2).sum(1) - 2.5 * np.log(2 * np.pi) - np.log(np.diag(factor)).sum()
    return noise @ factor.T, log_density


def _ring_toy(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Radius N(4, .2^2), uniform angle: the density in the plane is the radius's over 2 pi r."""
    radius, angle = 4 + 0.2 * rng.normal(size=size), rng.uniform(0, 2 * np.pi, size)
    rows = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    log_radius = -0.5 * ((radius - 4) / 0.2) ** 2 - 0.5 * np.log(2 * np.pi) - np.log(0.2)
    return rows, log_radius - np.log(2 * np.pi * radius)


def _modes_toy(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Eight Gaussians of scale .3 on a circle of radius 3."""
    angles = np.arange(8) * np.pi / 4
    centres = 3 * np.stack([np.cos(angles), np.sin(angles)], 1)
    rows = centres[rng.integers(8, size=size)] + 0.3 * rng.normal(size=(size, 2))
    squares = ((rows[:, None] - centres) ** 2).sum(-1) / 0.3**2
    log_density = np.log(np.exp(-0.5 * squares).mean(1)) - np.log(2 * np.pi * 0.3**2)
    return rows, log_density


# (rng, size) -> rows and their true log densities.
TOYS = {"toy_gaussian": _gaussian_toy, "toy_ring": _ring_toy, "toy_modes": _modes_toy}
