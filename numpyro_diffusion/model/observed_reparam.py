r"""An observed diffusion as a function of standard normal noises of its forward path: a likelihood that is exact.

p(y | theta) of a chain has no density that could be computed, a path does. With x^0 the state of y, and a path
x^{1:T}(eps) that the forward chain makes of x^0 and of noises eps ~ N(0, I), which know nothing of theta,

    R(eps, theta) = p(x^{0:T} | theta) / q(x^{1:T} | x^0),     E R(eps, theta) = p(x^0 | theta).

So the model of theta and of one more latent site, eps, whose factor is R, has the posterior of theta given y, exactly,
for any network. Of K independent paths the mean of R has the same integral, and hangs less on each. Where the network
reverses the forward chain well R is nearly p(x^0 | theta), whatever eps: the noises are near N(0, I) beside theta, and
NUTS moves in them with long steps.

Assumed: a Gaussian kernel. Not assumed: anything of the rest of the model.

References: Sohl-Dickstein et al. 2015, Eq. 9 (R); Andrieu, Roberts 2009 (an unbiased estimate in a density's place).
"""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer.reparam import Reparam

from .._checks import check_finite, check_integer_at_least, expected
from .._compat.numpyro import is_in_scan, reparam_site_name
from .._typing import Array
from .._weights import log_mean_exp
from ..chains import ForwardChain
from ..estimates.importance import log_path_ratio
from ..wrappers import wrapped_diffusion
from .reparam import ChainNoise, check_reparameterised
from .sites import check_outside_scan

__all__ = ["ObservedDiffusionReparam"]


class ObservedDiffusionReparam(Reparam):
    """Turn an observed :class:`Diffusion` site ``y`` into noises ``y_noise`` and a factor ``y_log_ratio``.

    For a diffusion whose context, or the transforms around it, depend on latent sites: a neural likelihood. NUTS and
    HMC, and ``DiffusionHMC``, which mixes faster where noises are many, then have the posterior itself as their target.
    A site without data stays what it is, so that the model predicts, of draws without ``y`` and ``y_noise``.

    The noises have event shape (K, T, *event), times 1 to T.

    Args:
        num_paths: K.

    >>> import jax
    >>> from numpyro.handlers import reparam, seed, trace
    >>> from numpyro_diffusion import Diffusion, GaussianKernel, Transition, schedules
    >>> kernel = GaussianKernel(schedules.log_snr(20), variance="upper", parameterization="x0")
    >>> transition = Transition(lambda params, x_t, t, context: context, None, (2,), context_shape=(2,))
    >>> def model(y):
    ...     theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    ...     numpyro.sample("y", Diffusion(kernel, transition, context=theta), obs=y)
    >>> model = reparam(model, config={"y": ObservedDiffusionReparam()})
    >>> [site["type"] + " " + name for name, site in trace(seed(model, 0)).get_trace(jnp.ones(2)).items()]
    ['sample theta', 'sample y_noise', 'sample y_log_ratio', 'deterministic y']
    """

    def __init__(self, num_paths: int = 1) -> None:
        self.num_paths = check_integer_at_least("num_paths", num_paths, 1, "It counts paths for each observation.")

    def __call__(
        self, name: str, fn: dist.Distribution, obs: Array | None
    ) -> tuple[dist.Distribution | None, Array | None]:
        """Called by the ``reparam`` handler.

        Raises:
            ValueError: for a site inside of a scan, or a value of another shape or that is NaN.
            TypeError: for a site that is no Diffusion, or one with a discrete kernel.
        """
        check_outside_scan(name, is_in_scan())
        wrapped = check_reparameterised(name, fn, wrapped_diffusion(fn))
        if obs is None:
            return fn, None
        value, shape = jnp.asarray(obs), fn.shape()
        if value.shape != shape:
            cure = "Check the observation against the distribution that the model gives it."
            raise ValueError(expected(f"a value of shape {shape} at site {name!r}", f"shape {value.shape}", cure))
        check_finite(f"observed site {name!r}", value)
        chain, state = wrapped.chain, wrapped.state(value)
        num_batch, num_steps = len(fn.batch_shape), chain.num_steps
        per_path = (self.num_paths, num_steps, *state.shape[num_batch:])
        noises = ChainNoise(0.0, 1.0).expand(fn.batch_shape + per_path).to_event(len(per_path))
        noise = numpyro.sample(reparam_site_name(f"{name}_noise"), noises)
        # Plates around the handler may have expanded the noises: paths and times go before all of the batch.
        paths_first = jnp.moveaxis(noise, (noise.ndim - len(per_path), noise.ndim - len(per_path) + 1), (0, 1))
        start = jnp.broadcast_to(state, (self.num_paths, *paths_first.shape[2:]))
        forward = ForwardChain(chain.kernel, start, event_dim=chain.state_dim, validate_args=False)
        path = forward.path_from_noise(jnp.moveaxis(paths_first, 1, start.ndim - chain.state_dim))
        times_first = jnp.moveaxis(path, start.ndim - chain.state_dim, 0)
        log_ratio = log_path_ratio(chain, jnp.concatenate([start[None], times_first]))
        inner = len(chain.batch_shape) - num_batch
        log_ratio = log_mean_exp(log_ratio.sum(tuple(range(log_ratio.ndim - inner, log_ratio.ndim))))
        factor = log_ratio - wrapped.log_abs_det(state, fn.event_dim)
        numpyro.factor(reparam_site_name(f"{name}_log_ratio"), factor)
        return None, value
