r"""The user's MCMC kernel on the sites that are no diffusion, with the diffusions' paths given.

Its target is p(theta | x^{0:T}, y). That target changes whenever the paths do, so what the kernel keeps of it (its
potential energy, its gradient) is computed anew before each draw. NumPyro's own composite, ``Gibbs``, does not do so
for its blocks when the change comes from outside of it; here it is done for it.

The kernel's own coordinates are unconstrained. They must mean the same values whatever x is: a site whose support
depends on x would move, unseen, when x does.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
from numpyro.infer import Gibbs
from numpyro.infer.hmc import HMC
from numpyro.infer.mcmc import MCMCKernel

from .._checks import expected
from .._compat.numpyro import eval_provenance, with_conditioning
from .._typing import Array, PyTree
from ..model.given_paths import PATHS, GivenPaths, with_given_paths
from ..model.split import SplitModel

__all__ = ["InnerKernel"]


class InnerKernel:
    """A kernel bound to the model with given paths.

    Args:
        kernel: NUTS, HMC, Gibbs or another, built on a model.

    Raises:
        TypeError: for anything else, a kernel built on a potential function, or one that cannot be refreshed.
    """

    def __init__(self, kernel: Any) -> None:
        if not isinstance(kernel, MCMCKernel) or getattr(kernel, "model", None) is None:
            raise TypeError(
                expected(
                    "an MCMC kernel built on the model",
                    repr(kernel),
                    "For example DiffusionGibbs(NUTS(model)); a potential function has no diffusion sites.",
                )
            )
        if type(kernel).refresh is MCMCKernel.refresh:
            raise TypeError(
                expected(
                    "an inner kernel that can be told of new values of other sites (its `refresh`)",
                    type(kernel).__name__,
                    "NUTS, HMC and Gibbs can.",
                )
            )
        self.model = kernel.model
        self.kernel = kernel.wrap_model(with_given_paths)

    def check(self, split: SplitModel) -> None:
        """Refuse what this kernel cannot move beside the diffusion sites.

        Raises:
            ValueError: for discrete sites and a Hamiltonian kernel; for a Gibbs kernel, whose blocks are told the
                diffusion sites' values once for a sweep, and a transform that depends on a site which a block moves.
        """
        depending = {name: sorted(above) for name, above in split.program.transforms_depend.items() if above}
        if isinstance(self.kernel, Gibbs) and depending:
            name, above = next(iter(depending.items()))
            raise ValueError(
                expected(
                    f"a transform at diffusion site {name!r} that depends on no other latent site, beside Gibbs",
                    f"one that depends on {above}",
                    "Use NUTS for the other sites, or draw the diffusion as it is and transform it in the model.",
                )
            )
        if isinstance(self.kernel, HMC) and split.discrete_others:
            raise ValueError(
                expected(
                    "continuous sites beside the diffusion for a Hamiltonian inner kernel",
                    f"discrete {sorted(split.discrete_others)}",
                    "Sum them out by hand, or use numpyro.infer.Gibbs([(DiscreteGibbs(model), discrete_latent_sites), "
                    "(NUTS(model), None)]) as the inner kernel.",
                )
            )

    def init(
        self,
        key: jax.Array,
        num_warmup: int,
        init_params: Mapping[str, Array] | None,
        args: tuple,
        kwargs: Mapping[str, Any],
        given: GivenPaths,
        others: Collection[str],
    ) -> PyTree:
        """The kernel's first state, given paths.

        Raises:
            ValueError: if it moves not all of the sites ``others``, or the support of one depends on a diffusion site.
        """
        state = self.kernel.init(key, num_warmup, init_params, args, self._with(kwargs, given))
        z = self.unconstrained(state)
        if set(z) != set(others):
            raise ValueError(
                expected(
                    f"an inner kernel that moves the sites {sorted(others)}",
                    f"one that moves {sorted(z)}",
                    "Every site that is latent and no diffusion must be drawn: none may be summed out by the kernel.",
                )
            )

        def supports(**x_0: Array) -> dict[str, Array]:
            at = GivenPaths({name: x[None] for name, x in x_0.items()}, given.values, False)
            return self.constrained(z, args, kwargs, at)

        depends = eval_provenance(supports, **{name: path[0] for name, path in given.paths.items()})
        moved = sorted(name for name in z if depends[name])
        if moved:
            raise ValueError(
                expected(
                    "other sites whose support depends on no diffusion site",
                    f"{moved}",
                    "Write such a site as a function of x and of another site of fixed support, for example "
                    "x * Uniform(0, 1).",
                )
            )
        return state

    def move(self, state: PyTree, args: tuple, kwargs: Mapping[str, Any], given: GivenPaths) -> PyTree:
        """One draw of the other sites, given paths that may be new."""
        kwargs = self._with(kwargs, given)
        return self.kernel.sample(_refreshed(self.kernel, state, args, kwargs), args, kwargs)

    def unconstrained(self, state: PyTree) -> dict[str, Array]:
        """The other sites in the kernel's own coordinates."""
        return getattr(state, self.kernel.sample_field)

    def constrained(
        self, z: Mapping[str, Array], args: tuple, kwargs: Mapping[str, Any], given: GivenPaths
    ) -> dict[str, Array]:
        """The other sites' values; x^0 is needed by kernels that run the model for them."""
        values = self.kernel.get_constrain_fn(args, self._with(kwargs, given))(dict(z))
        return {name: values[name] for name in z}

    def _with(self, kwargs: Mapping[str, Any], given: GivenPaths) -> dict[str, Any]:
        with_paths = {**kwargs, PATHS: given}
        if not isinstance(self.kernel, Gibbs):
            return with_paths
        # CustomGibbs blocks read from here what they are conditioned on.
        return dict(with_conditioning(with_paths, given.values))


def _refreshed(kernel: MCMCKernel, state: PyTree, args: tuple, kwargs: dict[str, Any]) -> PyTree:
    """The state with all that depends on the paths computed anew, in the blocks of a composite too."""
    if not isinstance(kernel, Gibbs):
        return kernel.refresh(state, args, kwargs)
    values = kernel.get_constrain_fn(args, kwargs)(state.z)
    blocks = []
    for (block, _), block_state in zip(kernel.blocks, state.block_states, strict=True):
        own = getattr(block_state, block.sample_field)
        siblings = {name: value for name, value in values.items() if name not in own}
        blocks.append(_refreshed(block, block_state, args, with_conditioning(kwargs, siblings)))
    return state._replace(block_states=tuple(blocks))
