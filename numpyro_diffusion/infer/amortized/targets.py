"""Models whose posteriors an amortised one is corrected to, each with its engines.

They are kept, and take data and the network's parameters as arguments. Another data set, or the same network after
another training, meets programs that are compiled already.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpyro
from numpyro.infer import MCMC

from ..._compat.numpyro import compiled_run
from ..._typing import Array
from ...model.arguments import Static, as_static
from ...model.reparam import ChainNoise
from ...model.simulator import Simulator
from ..hmc import DiffusionHMC
from ..tempered import TemperedSMC
from .parts import Bound
from .weights import Data, log_weight_of_noise

__all__ = ["Target", "Targets"]

# The sites of a model of noises beside the user's, whose names are likely to be others: those of the noises of a chain.
_NOISE, _LOG_WEIGHT = "amortized/chain_noise", "amortized/log_weight"
_MOST = 16  # engines, and models, that are kept: each has a program of some megabytes


class Target:
    """The posterior of a model.

    Attributes:
        simulator: of the model.
    """

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self._model = partial(_noise_model, simulator)
        self._engines: dict[tuple, Any] = {}

    def hmc(self, bound: Bound, y: Data, rng_key: jax.Array, starts: Array, **settings: Any) -> MCMC:
        """Finished chains in the noises of the amortised chain.

        Args:
            bound: the chain given y.
            y: the data.
            rng_key: randomness.
            starts: noises, one for each chain.
            **settings: of ``MCMC``.
        """
        mcmc, run = self._kept(("hmc", *sorted(settings.items())), lambda: self._chains(**settings))
        init_params = {_NOISE: starts if mcmc.num_chains > 1 else starts[0]}
        if mcmc.progress_bar:
            mcmc.run(rng_key, bound, y, init_params=init_params)
            return copy.copy(mcmc)  # the next data set overwrites what the kept one has found
        keys = jax.random.split(rng_key, mcmc.num_chains) if mcmc.num_chains > 1 else rng_key
        mcmc.sampler.init(keys, mcmc.num_warmup, init_params, (bound, y), {})
        return run(rng_key, init_params, bound, y)

    def tempered(self, bound: Bound, y: Data, rng_key: jax.Array, **settings: Any) -> TemperedSMC:
        """Finished particles in the noises of the amortised chain.

        Args:
            bound: the chain given y.
            y: the data.
            rng_key: randomness.
            **settings: of ``TemperedSMC``.
        """
        smc = self._kept(
            ("tempered", *sorted(settings.items())), lambda: TemperedSMC(self._model, guidance=None, **settings)
        )
        finished = copy.copy(smc)
        finished.run(rng_key, bound, y)
        return finished

    def _chains(self, **settings: Any) -> tuple[MCMC, Callable[..., MCMC]]:
        kernel = DiffusionHMC(self._model, guidance=None)
        mcmc = MCMC(kernel, chain_method="vectorized", jit_model_args=True, **settings)
        return mcmc, compiled_run(mcmc)

    def _kept(self, key: tuple, make: Callable[[], Any]) -> Any:
        return _kept(self._engines, key, make)


class Targets:
    """The posterior of the model that was simulated, and those of others of the same sites.

    Args:
        simulator: of the model that was simulated.
    """

    def __init__(self, simulator: Simulator) -> None:
        self.own = Target(simulator)
        self._others: dict[Static, Target] = {}

    def of(self, model: Callable | None, args: tuple | None, kwargs: Mapping[str, Any] | None) -> Target:
        """That of a model with its arguments; what is None is as it was simulated.

        Raises:
            ValueError: for a model of other sites.
        """
        own = self.own.simulator
        if model is None and args is None and kwargs is None:
            return self.own
        model = model or own.model
        args, kwargs = own.args if args is None else args, own.kwargs if kwargs is None else kwargs

        def make() -> Target:
            other = Simulator(model, args, kwargs, [site.name for site in own.observed])
            own.check_alike(other)
            return Target(other)

        return _kept(self._others, as_static((model, *args), kwargs), make)


def _noise_model(simulator: Simulator, bound: Bound, y: Data) -> None:
    """The posterior as a model of noises, for the engines on noises."""
    shape = bound.chain(bound.embedded[:0]).event_shape
    noise = numpyro.sample(_NOISE, ChainNoise(0.0, 1.0).expand(shape).to_event(len(shape)))
    values, log_weight = log_weight_of_noise(simulator, bound, y, noise)
    for name, value in values.items():
        numpyro.deterministic(name, value)
    numpyro.factor(_LOG_WEIGHT, log_weight)


def _kept(those: dict, key: Any, make: Callable[[], Any]) -> Any:
    """What is kept under a key, made if it is not; the one that was asked for longest ago goes where there are many."""
    found = those.pop(key) if key in those else make()
    those[key] = found
    if len(those) > _MOST:
        del those[next(iter(those))]
    return found
