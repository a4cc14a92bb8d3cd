r"""From data to a prior in the data's units, in one call, with a report.

1. Look at all rows: cells that are no numbers, constants, grids, supports, tails. (:mod:`.tables`, :mod:`.columns`)
2. Part the rows: most train, some stop the training, some score the result. (:mod:`.rows`)
3. Find coordinates in which one Gaussian, with as much shrinkage as held-out rows ask for, is N(0, I).
   (:mod:`.coordinates`) Rows that score have no part in it.
4. Train a chain in these coordinates, whose network begins as that Gaussian's exact denoiser, until the validation rows
   stop improving; keep of the network's residual what they ask for. (:mod:`.plan`, :mod:`.train`)
5. Score it on rows that nothing has seen, beside simple densities of the same data. (:mod:`.baselines`)

Step 4 starts at the Gaussian of step 3 and keeps it where the network finds nothing better: the prior is as good as one
Gaussian, up to the chance in the choice of validation rows.

Not assumed: independent rows of a time series; rows are parted at random, and neighbours in time then share what the
score should not know. Pass such data with ``test=0`` and score a later stretch yourself.

Rows of a file (a ``.npy`` path, a memory map, an iterator's temporary file) stay there: looks at all of them go over
stretches of 2 MB, batches are read where they are drawn, and what is held in memory is an index of 8 bytes for each
row, and twice that for a moment. At most 100,000 rows fit the Gaussian.
"""

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import numpyro.distributions as dist

from .. import io
from .._checks import check_choice, check_integer_at_least, expected
from .._weights import host_generator
from ..kernels import Kernel
from ..training import FitResult
from .code import code_for
from .coordinates import MarginChoice
from .look import look_at, space_for
from .report import Report
from .rows import resample, split_rows
from .score import afterthoughts, score
from .stretches import thinned
from .tables import MOST_ROWS
from .train import OPTIMIZER_CODE, Trained, default_optimizer, train

__all__ = ["LearnedPrior", "learn_prior"]

Missing = Literal["refuse", "drop"]

_FEWEST_TO_TRAIN = 5
_MOST_FITTED = 100_000  # rows, for a Gaussian: it has then an error of a few thousandths of a standard deviation


@dataclasses.dataclass(frozen=True, eq=False)
class LearnedPrior:
    """What :func:`learn_prior` returns.

    Attributes:
        distribution: in the data's units, a ``TransformedDistribution`` of a ``Diffusion``, or the ``Diffusion`` alone.
        report: how good it is and what was done; print it.
        columns: names of the columns, in the order of the event; empty for images.
        fit: what training returned, in whitened coordinates.
    """

    distribution: dist.Distribution
    report: Report
    columns: tuple[str, ...]
    fit: FitResult

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the distribution to one file, see :func:`~numpyro_diffusion.save`."""
        io.save(self.distribution, path)


def learn_prior(
    data: Any,
    *,
    rng_key: jax.Array,
    weights: Any = None,
    support: str | Mapping[str, str] = "real",
    missing: Missing = "refuse",
    margins: MarginChoice = "auto",
    names: Sequence[str] | None = None,
    max_rows: int = MOST_ROWS,
    validation: float = 0.15,
    test: float = 0.15,
    kernel: Kernel | None = None,
    network: Any = None,
    optimizer: Any = None,
    num_steps: int = 6000,
    batch_size: int = 128,
    every: int = 100,
    patience: int = 8,
    ema_decay: float = 0.995,
    num_trajectories: int = 16,
    progress_bar: bool = True,
) -> LearnedPrior:
    """Learn the distribution of rows, in their own units.

    Args:
        data: rows: an array or lists, shape (n,), (n, columns), or (n, height, width, channels) for images; a table of
            pandas or polars; a mapping of names to columns; xarray; ArviZ draws, of which the posterior is taken, or
            their posterior itself; the path of a ``.npy`` file or its memory map, whose rows stay in the file; an
            iterator of rows or batches, whose rows go into a temporary file, because all are looked at before the first
            is learned.
        rng_key: JAX random key; the same key gives the same prior.
        weights: of the rows, >= 0, such as importance weights; shape (n,). Rows of weight 0 are left out.
        support: ``"real"``, ``"positive"``, ``"unit_interval"``, ``"simplex"`` (rows that sum to 1), or a mapping of
            columns to these names.
        missing: ``"refuse"``, or ``"drop"`` to leave out rows with NaN or infinite values.
        margins: ``"auto"``: columns whose skewness or kurtosis are no chance are transformed to nearly normal margins,
            if rows that were left out agree; ``"normal"``: all columns; ``"none"``.
        names: of the columns, for arrays.
        max_rows: of an iterator; one that goes on is refused.
        validation: share of the rows that stop the training; at most 5000 rows, or 1000 images.
        test: share of the rows that score the result, likewise; with 0, it is scored on the validation rows, which have
            had a part in it.
        kernel: of the chain, in whitened coordinates.
        network: a Haiku network for this kernel.
        optimizer: an optax optimiser; by default ``adamw`` with gradients clipped.
        num_steps: of training, at most.
        batch_size: rows in a batch.
        every: steps between two looks at the validation rows.
        patience: looks without a new best after which training stops.
        ema_decay: of the average of the parameters.
        num_trajectories: of the importance-weighted log likelihood of the scored rows.
        progress_bar: show steps and losses.

    Returns:
        The distribution, the report, names of columns.

    Raises:
        TypeError: for strings, dates and what is no table, by the column's name.
        ValueError: for values that are not finite or outside of the support, by row and column; for a column without
            values; for columns whose names are alike; for weights that are negative or all zero; for fewer than 10
            rows; for an iterator that goes on.
        OSError: for a file that cannot be read.
        DivergenceError: for a training that reaches nothing.

    >>> learn_prior({"age": [31.0, 54.0], "who": ["her", "him"]}, rng_key=jax.random.key(0))
    Traceback (most recent call last):
    TypeError: Expected numbers in column 'who'; got 'her' in row 0. Leave the column out, or code it by numbers ...
    """
    began = time.perf_counter()
    check_choice("missing", missing, Missing)
    check_choice("margins", margins, MarginChoice)
    for label, share in (("validation", validation), ("test", test)):
        if not 0 <= share < 0.5:
            raise ValueError(expected(f"{label} in [0, 0.5)", share, "It is a share of the rows."))
    if not validation > 0:
        raise ValueError(expected("validation > 0", validation, "Rows that were not trained on stop the training."))
    check_integer_at_least("num_trajectories", num_trajectories, 1, "An average needs 1 or more trajectories.")
    check_integer_at_least("max_rows", max_rows, 1, "It counts rows of an iterator.")
    key_rows, key_train, key_score = jax.random.split(rng_key, 3)
    rng = host_generator(key_rows)
    found = look_at(data, weights, support, missing, names, max_rows)
    split, repeats = split_rows(found.values, validation, test, rng=rng)
    if repeats:
        found.warnings.append(f"{repeats} rows repeat another; equal rows were kept in one part")
    wanted = [name for name, share in (("validation", validation), ("test", test)) if share > 0]
    if len(split["train"]) < _FEWEST_TO_TRAIN or not all(len(split[name]) for name in wanted):
        got = f"{len(found.values) - repeats} different rows of {len(found.values)}"
        raise ValueError(expected("enough different rows to train, validate and test", got, "Pass more data."))
    learned = [split["train"], split["validation"]]
    fitted = np.concatenate([thinned(rows, _MOST_FITTED) for rows in learned])
    space = space_for(found, fitted, learned, kernel, network, margins, rng, jax.random.fold_in(key_rows, 1))
    drawn = {name: resample(rows, found.weights, rng=rng) for name, rows in split.items() if len(rows)}
    trained = train(
        space.plan,
        space.to_train(drawn["train"]),
        np.asarray(space.to_train(drawn["validation"])),
        rng_key=key_train,
        optimizer=optimizer or default_optimizer(),
        max_steps=num_steps,
        batch_size=batch_size,
        every=every,
        patience=patience,
        ema_decay=ema_decay,
        progress_bar=progress_bar,
    )
    distribution: Any = trained.prior
    if space.transforms:
        distribution = dist.TransformedDistribution(distribution, list(space.transforms))
    settings = {
        "num_steps": num_steps,
        "batch_size": min(batch_size, len(drawn["train"])),
        "ema_decay": ema_decay,
        "every": every,
        "patience": patience,
        "optimizer": OPTIMIZER_CODE if optimizer is None else "...",
    }
    code = code_for(space, trained.prior.event_shape, len(drawn["validation"]), trained.residual, settings)
    scored_on = "test" if "test" in drawn else "validation"
    scored = score(key_score, found, space, trained, distribution, fitted, drawn[scored_on], num_trajectories, rng)
    report = Report(
        split=split,
        drawn=drawn,
        scored_on=scored_on,
        prior=scored.prior,
        baselines=scored.baselines,
        steps=len(trained.result.losses),
        best_step=_best_step(trained),
        residual=trained.residual,
        validation_losses=trained.result.validation_losses,
        integers=scored.integers,
        two_sample=scored.two_sample,
        tails=scored.tails,
        columns=found.columns,
        did=tuple(found.did),
        warnings=(*found.warnings, *trained.warnings, *afterthoughts(trained, scored, scored_on)),
        seconds=time.perf_counter() - began,
        code=code,
    )
    return LearnedPrior(distribution, report, found.names, trained.result)


def _best_step(trained: Trained) -> int:
    steps, losses = trained.result.validation_steps, trained.result.validation_losses
    return int(steps[int(np.argmin(losses))]) if len(losses) and trained.residual else 0
