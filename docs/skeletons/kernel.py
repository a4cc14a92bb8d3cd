r"""Copy me: a kernel. Noise of the data's own scale S; the network returns its estimate of E[x^0 | x^t].

q(x^t | x^{t-1}) = N(sqrt(1 - b_t) x^{t-1}, b_t S^2),   q(x^t | x^0) = N(sqrt(1 - v_t) x^0, v_t S^2)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

import numpyro_diffusion as nd


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScaledKernel(nd.Kernel):
    schedule: nd.Schedule
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})

    is_discrete, num_outputs, element_support = False, 1, dist.constraints.real

    def check_data(self, name, value):
        nd.GaussianKernel.check_data(self, name, value)  # floating point, finite

    def stationary(self, shape):
        return self._normal(jnp.zeros(shape), 1.0)

    def step(self, x_previous, t):
        return self._normal(jnp.sqrt(1 - self._at("beta", t)) * x_previous, self._at("beta", t))

    def marginal(self, x_0, t):
        return self._normal(jnp.sqrt(self._at("alpha_bar", t)) * x_0, self._at("noise_variance", t))

    def bridge(self, x_t, x_0, t):
        return self.reverse(x_0, x_t, t, self._at("noise_variance", t - 1) / self._at("noise_variance", t))

    def reverse(self, output, x_t, t, factor=1.0):
        beta, noise_before = self._at("beta", t), self._at("noise_variance", t - 1)
        mean = jnp.sqrt(1 - noise_before) * beta * output + jnp.sqrt(1 - beta) * noise_before * x_t
        return self._normal(mean / self._at("noise_variance", t), factor * beta)

    def denoised(self, output, x_t, t):
        return output

    def tilt(self, step, slope):
        return dist.Normal(step.loc + step.scale**2 * slope, step.scale, validate_args=False)

    def kl(self, bridge, reverse):
        ratio, shift = bridge.scale / reverse.scale, (bridge.loc - reverse.loc) / reverse.scale
        return 0.5 * (ratio**2 - 1 + shift**2) - jnp.log(jnp.where(ratio > 0, ratio, 1.0))  # 0 at t = 1: left out

    def from_noise(self, step, noise):
        return step.loc + step.scale * noise

    def _at(self, name, t):
        return jnp.asarray(getattr(self.schedule, name), float)[jnp.asarray(t)]

    def _normal(self, loc, variance):
        return dist.Normal(loc, self.scale * jnp.sqrt(variance), validate_args=False)
