"""The amortised posterior of one data set: draws, named estimates of its density, and its correction."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ..._checks import check_choice, check_integer_at_least, check_trailing_shape, expected
from ..._typing import Array, ArrayLike
from ...estimates import Estimator, ImportanceWeighted
from ...model.simulator import Simulator
from .correction import Corrected, Method, Settings, correct
from .parts import Bound
from .targets import Targets
from .weights import Data, draw_values, estimate_log_prob

__all__ = ["CheckedData", "ConditionedPosterior", "checked_data", "checked_settings"]

CheckedData: TypeAlias = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]  # values by site, and what is seen


class ConditionedPosterior:
    """q(theta | y) for one y, from :meth:`AmortizedPosterior.condition`.

    Attributes:
        share_farther: the share of simulated data sets that lie farther from the others than y does; 0 says that y is
            like none of them.
    """

    def __init__(self, targets: Targets, bounds: tuple[Bound, ...], y: Data, share_farther: float) -> None:
        self._targets, self._bounds, self._y = targets, bounds, y
        self._simulator = targets.own.simulator
        self.share_farther = share_farther

    def sample(self, rng_key: jax.Array, num_samples: int = 1000) -> dict[str, Array]:
        """Draws of all latent sites, in their own supports.

        Args:
            rng_key: JAX random key.
            num_samples: how many.

        Returns:
            Site name -> (num_samples, site shape...). They are the network's: ``correct`` makes them the model's.
        """
        check_integer_at_least("num_samples", num_samples, 1, "It is the number of draws.")
        return draw_values(self._simulator, self._bounds, jax.random.split(rng_key, num_samples))

    def log_prob(
        self, values: Mapping[str, ArrayLike], *, rng_key: jax.Array, estimator: Estimator | None = None
    ) -> Array:
        """A named estimate of log q(theta | y), of the density in the sites' own supports.

        Args:
            values: site name -> (n, site shape...), of all latent sites.
            rng_key: the estimate's randomness.
            estimator: by default ``ImportanceWeighted(16)``, a lower bound in expectation; ``AllSteps()``.

        Returns:
            Shape (n,), nats; -inf outside of the support.

        Raises:
            ValueError: for other sites or shapes.
        """
        wanted = {site.name: site.shape for site in self._simulator.latent}
        if set(values) != set(wanted):
            cure = "A density is of all unknowns together."
            raise ValueError(expected(f"values of the sites {sorted(wanted)}", sorted(values), cure))
        leading = {
            check_trailing_shape(name, values[name], shape, "Draws go to the left.") for name, shape in wanted.items()
        }
        if len(leading) != 1 or len(next(iter(leading))) != 1:
            cure = "Give each site one axis of draws."
            raise ValueError(expected("one leading axis, the same of all sites", sorted(leading), cure))
        count = next(iter(leading))[0]
        arrays = {name: jnp.asarray(value) for name, value in values.items()}
        keys = jax.random.split(rng_key, count)
        return estimate_log_prob(self._simulator, self._bounds, arrays, keys, estimator or ImportanceWeighted(16))

    def correct(
        self,
        rng_key: jax.Array,
        method: Method = "auto",
        *,
        model: Callable | None = None,
        model_args: tuple | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        num_samples: int = 2000,
        num_paths: int = 8,
        num_warmup: int = 500,
        num_chains: int = 4,
        num_islands: int = 4,
        progress_bar: bool = True,
    ) -> Corrected:
        """Draws of the user's own posterior, for a model with a likelihood, whatever the network has learned.

        Args:
            rng_key: JAX random key.
            method: ``"importance"``, weights on whole paths; ``"hmc"`` or ``"tempered"``, moves in the noises of the
                amortised chain; ``"auto"``, weights, and ``"hmc"`` where they are not to be trusted.
            model: another model of the same sites, with another prior or likelihood, whose posterior is wanted.
            model_args: its arguments; by default those of the amortised model.
            model_kwargs: its keyword arguments, likewise.
            num_samples: draws.
            num_paths: K of :mod:`~numpyro_diffusion.infer.amortized.weights`: more make weights more even, for K
                times the network calls.
            num_warmup: draws that adapt a chain of ``"hmc"``.
            num_chains: of ``"hmc"``.
            num_islands: of ``"tempered"``.
            progress_bar: show one, of ``"hmc"`` and ``"tempered"``.

        Raises:
            ValueError: for a model without a likelihood, or of other sites; for ``"hmc"`` and ``"tempered"`` of
                discrete sites; for weights that are NaN or all zero; for a part of an event that is missing.
        """
        settings = checked_settings(method, num_samples, num_paths, num_warmup, num_chains, num_islands, progress_bar)
        target = self._targets.of(model, model_args, model_kwargs)
        return correct(target, self._bounds, self._y, rng_key, settings)


def checked_settings(
    method: Method,
    num_samples: int,
    num_paths: int,
    num_warmup: int,
    num_chains: int,
    num_islands: int,
    progress_bar: bool,
) -> Settings:
    """Settings of a correction.

    Raises:
        ValueError: for another method, or numbers that are too small.
    """
    check_choice("method", method, Method)
    for name, value, least in (
        ("num_samples", num_samples, 2),
        ("num_paths", num_paths, 1),
        ("num_warmup", num_warmup, 0),
        ("num_chains", num_chains, 1),
        ("num_islands", num_islands, 1),
    ):
        check_integer_at_least(name, value, least, "It is a number of draws, paths, chains or islands.")
    return Settings(method, num_samples, num_paths, num_warmup, num_chains, num_islands, progress_bar)


def checked_data(simulator: Simulator, y: Any, *, may_lack: bool) -> CheckedData:
    """The data by site, in the shapes and dtypes of the simulations, and booleans of what is seen.

    Args:
        simulator: of the model.
        y: an array, or arrays by site; what a mask hides may be NaN.
        may_lack: whether NaN says that a number is missing.

    Raises:
        ValueError: for other sites or shapes, or values that are not finite, or that the model cannot draw.
        TypeError: for another kind of numbers.
    """
    sites = {site.name: site for site in simulator.observed}
    given = dict(y) if isinstance(y, Mapping) else None
    if given is None and len(sites) == 1:
        given = {next(iter(sites)): y}
    if given is None or set(given) != set(sites):
        got = f"an {type(y).__name__}" if given is None else sorted(given)
        raise ValueError(expected(f"data of the sites {sorted(sites)}", got, "Pass a dictionary by site name."))
    found, seen = {}, {}
    for name, site in sites.items():
        array = np.asarray(given[name])
        if array.shape != site.shape:
            cure = "A network answers data of the shape that it has seen: simulate others by other model_args."
            raise ValueError(expected(f"y of shape {site.shape} at site {name!r}", f"shape {array.shape}", cure))
        kinds = {"f": "real numbers", "i": "integers", "u": "integers", "b": "booleans"}
        wanted, got = kinds.get(site.dtype.kind, str(site.dtype)), kinds.get(array.dtype.kind, str(array.dtype))
        if wanted != got and not (may_lack and got == kinds["f"]):  # which NaN makes of integers
            cure = f"The model draws {site.dtype}: convert y with .astype, if it is the same."
            raise TypeError(expected(f"{wanted} at site {name!r}", f"dtype {array.dtype}", cure))
        array = site.hide(array)
        is_bad = np.isinf(array) if may_lack else ~np.isfinite(array)
        if array.dtype.kind == "f" and is_bad.any():
            count = int(is_bad.sum())
            cure = "Say missing=0.5 of data sets that lack numbers, or give the model a mask and simulate with it."
            raise ValueError(expected(f"finite values at site {name!r}", f"{count} NaN or infinite", cure))
        found[name], seen[name] = site.with_gaps(array)
        site.check_support(found[name], seen[name])
    return found, seen
