r"""Copy me: a guidance. The reverse step drawn to a Normal observation y of every number of x^0.

With p(x^{t-1} | x^t) = N(m, s^2) the step is N(m + k (y - x0hat), (1 - k) s^2), k = s^2 / (s^2 + tau_t^2): tau_t^2 is
the noise of y plus what x^t has not yet said of x^0. It is approximate: a chain of these steps is biased. Engines that
weigh paths (DiffusionHMC, TemperedSMC, TwistedSMC) are exact with any guidance; a better one makes them faster.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from numpyro_diffusion.guidance import Guided


@jax.tree_util.register_pytree_node_class
class NearData:
    """Data are leaves, so that other data compile nothing.

    Args:
        y: the observed numbers, in the event's shape.
        noise: their standard deviation.
    """

    def __init__(self, y: Any, noise: Any) -> None:
        self.y, self.noise = y, noise

    def __call__(self, chain: Any, x_t: Any, t: Any) -> Guided:
        output = chain.output(x_t, t)  # the one call of the network
        step = chain.reverse(x_t, t, output)
        x_0 = chain.denoised(x_t, t, output)
        # What is still unknown of x^0 after step t, for data of variance 1: the factor must not be surer than that.
        left = chain.kernel.denoised_variance(self._like(t, x_t), jnp.ones((), x_t.dtype))
        variance = self.noise**2 + left
        share = step.variance / (step.variance + variance)
        moved = step.mean + share * (self.y - x_0)
        log_psi = dist.Normal(x_0, jnp.sqrt(variance)).log_prob(self.y)
        axes = tuple(range(-chain.state_dim, 0))
        return Guided(dist.Normal(moved, jnp.sqrt(step.variance * (1 - share)), validate_args=False), log_psi.sum(axes))

    def tree_flatten(self) -> tuple[tuple[Any, Any], None]:
        return (self.y, self.noise), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: tuple[Any, Any]) -> "NearData":
        return cls(*leaves)

    @staticmethod
    def _like(t: Any, x_t: Any) -> Any:
        """The step with an axis for each of the event's."""
        t = jnp.asarray(t)
        return t.reshape(t.shape + (1,) * (jnp.ndim(x_t) - t.ndim)) if t.ndim else t
