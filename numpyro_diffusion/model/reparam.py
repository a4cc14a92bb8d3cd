r"""A diffusion site as a function of standard normal noises: the non-centred form, whose density is exact.

x^T = eps^T and x^{t-1} = mean(x^t) + scale(x^t) eps^{t-1}, all eps ~ N(0, 1), make x^0 a deterministic function
of (T + 1) normal vectors, whose joint density is known exactly. HMC and NUTS on them target the posterior of
the T-step model itself, not of a bound. Assumed: a Gaussian kernel. Not assumed: anything of the rest of the
model.

With guidance the noises are those of a guided chain q, whose draws are near the posterior, and the factor

    log p(x^{0:T}) - log q(x^{0:T})

makes the target the same as before, whatever the guidance. What is left for the sampler is what the guidance missed:
the posterior of the noises is near N(0, I).

Each gradient runs the chain once forth and back; with separated modes no local sampler crosses between them in this
space either.
"""

from typing import Any

import numpyro
import numpyro.distributions as dist
from numpyro.infer.reparam import Reparam

from .._checks import expected
from .._compat.numpyro import asking, is_in_scan, reparam_sample_shape, reparam_site_name
from .._typing import Array, ArrayLike
from ..guidance import Guidance, TiltedChain
from ..wrappers import WrappedDiffusion, obstacle, unwrap, wrapped_diffusion
from .sites import check_outside_scan, check_sample_shape

__all__ = ["ChainNoise", "DiffusionReparam", "check_reparameterised", "is_chain_noise"]


class ChainNoise(dist.Normal):
    """N(0, 1), of the noises of a diffusion site: by its type they are told from a user's normal sites.

    A scale raises a density to a power. That of the noises is no power of the density of x^0, so where it would be part
    of a posterior it is refused. In an ELBO it weighs rows, and is as good as at any site.
    """

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        asker = asking()
        if asker is not None and asker.purpose == "density" and asker.site is not None:
            name, scale = asker.site["name"], asker.site["scale"]
            if scale is not None:
                raise ValueError(
                    expected(
                        f"an unscaled latent site {name!r}",
                        f"scale {scale}",
                        "A power of the noises' density is no power of the diffusion's: scale the likelihood instead, "
                        "and drop subsample_size, for a posterior needs every datum.",
                    )
                )
        return super().log_prob(value)


def is_chain_noise(fn: Any) -> bool:
    """Whether a distribution is that of a diffusion site's noises, as :class:`DiffusionReparam` makes it."""
    return isinstance(unwrap(fn)[0], ChainNoise)


def check_reparameterised(name: str, fn: Any, wrapped: WrappedDiffusion | None) -> WrappedDiffusion:
    """The diffusion of a site, if its states are a function of normal noises.

    Raises:
        TypeError: for a site that is no Diffusion, or one with a discrete kernel.
    """
    if wrapped is None:
        raise TypeError(
            expected(
                f"a Diffusion at site {name!r}",
                obstacle(fn),
                "Name only diffusion sites in the reparam config; a masked site must be unmasked, and "
                "a transform must have an inverse.",
            )
        )
    kernel = wrapped.diffusion.kernel
    if kernel.is_discrete:
        raise TypeError(
            expected(
                f"a Gaussian kernel at site {name!r}",
                type(kernel).__name__,
                "Bits are no differentiable function of normal noises.",
            )
        )
    return wrapped


class DiffusionReparam(Reparam):
    """Turn a latent :class:`Diffusion` site ``x`` into its noises ``x_noise`` and a deterministic ``x``.

    The noises have event shape (T + 1, *event), time 0 first. Of a ``TransformedDistribution`` of a diffusion they are
    those of the chain's states, and ``x`` is the transformed state, in the units of the data.

    Args:
        guidance: of the steps, see :mod:`numpyro_diffusion.guidance`: ``MomentMatching``, ``ReconstructionGuidance``,
            ``GaussianFactor(noised=True)``, ``PaperTilt``, or a function ``(chain, x_t, t) -> step`` of stable
            identity; in units of the chain's states, see ``in_states``. The factor is a site ``x_log_ratio``.
        checkpoint: keep no hidden layers of the network for the gradient, and few states, but compute them again:
            memory for little more than the noises and their gradient, for two more passes through the network. For
            networks of images.

    >>> import jax
    >>> from numpyro.handlers import reparam, seed, trace
    >>> from numpyro_diffusion import Diffusion, GaussianKernel, Transition, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper")
    >>> prior = Diffusion(kernel, Transition(lambda params, x_t, t, context: 0 * x_t, None, (2,)))
    >>> model = reparam(lambda: numpyro.sample("x", prior), config={"x": DiffusionReparam()})
    >>> [site["type"] + " " + name for name, site in trace(seed(model, 0)).get_trace().items()]
    ['sample x_noise', 'deterministic x']
    """

    def __init__(self, guidance: Guidance | None = None, *, checkpoint: bool = False) -> None:
        if guidance is not None and not callable(guidance):
            cure = "Pass guidance, or a function (chain, x_t, t) -> step."
            raise TypeError(expected("guidance that can be called", repr(guidance), cure))
        self.guidance = guidance
        self.checkpoint = checkpoint

    def __call__(self, name: str, fn: dist.Distribution, obs: Array | None) -> tuple[None, Array]:
        """Called by the ``reparam`` handler.

        Raises:
            ValueError: for an observed site, or one with a ``sample_shape``.
            TypeError: for a site that is no Diffusion, or one with a discrete kernel.
        """
        check_outside_scan(name, is_in_scan())
        if obs is not None:
            raise ValueError(
                expected(
                    f"a latent site {name!r}",
                    "an observed one",
                    "Name ObservedDiffusionReparam() for it, or drop it from the reparam config.",
                )
            )
        wrapped = check_reparameterised(name, fn, wrapped_diffusion(fn))
        chain = wrapped.chain
        check_sample_shape(name, reparam_sample_shape())
        shape = chain.batch_shape + chain.event_shape
        noises = ChainNoise(0.0, 1.0).expand(shape).to_event(len(shape) - len(fn.batch_shape))
        noise = numpyro.sample(reparam_site_name(f"{name}_noise"), noises)
        if self.guidance is None:
            return None, wrapped.value(chain.from_noise(noise, checkpoint=self.checkpoint))
        state, log_ratio = TiltedChain(chain, self.guidance).weighted_from_noise(noise, checkpoint=self.checkpoint)
        # Plates around the handler have expanded the noises, and know nothing of fn.
        num_batch = noise.ndim - noises.event_dim
        log_ratio = log_ratio.sum(tuple(range(num_batch, log_ratio.ndim)))
        numpyro.factor(reparam_site_name(f"{name}_log_ratio"), log_ratio)
        return None, wrapped.value(state)
