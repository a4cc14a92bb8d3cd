r"""Copy me: an engine. Preconditioned Crank-Nicolson: a NumPyro MCMC kernel in the noises of a model.

The target is N(u; 0, I) L(u), with each diffusion site as its noises. The proposal sqrt(1 - b^2) u + b nu,
nu ~ N(0, I), leaves N(0, I) as it is, and is taken with probability
min(1, L(new) / L(old)), which leaves the target as it is.

NoiseKernel has model, arguments, starting points and results in the units of the model. Give a state and a step.

References: Cotter, Roberts, Stuart, White 2013, Section 4.1.
"""

from collections import namedtuple

import jax
import jax.numpy as jnp

from numpyro_diffusion.infer.noise_kernel import NoiseKernel

State = namedtuple("State", ("i", "z", "log_likelihood", "accept_prob", "rng_key"))


class CrankNicolson(NoiseKernel):
    """Args: model: a NumPyro model with real latent sites; step_size: b, in (0, 1]."""

    def __init__(self, model, step_size=0.3):
        super().__init__(model)
        if not 0 < step_size <= 1:
            raise ValueError(f"Expected step_size in (0, 1]; got {step_size}. Take 0.3, or less to have more accepted.")
        self._step_size = step_size

    def get_diagnostics_str(self, state):
        return f"acceptance {float(state.accept_prob):.2f}"

    def _first_state(self, reference, num_warmup, z, log_likelihood, rng_key):
        return State(jnp.zeros((), int), z, log_likelihood, jnp.zeros_like(log_likelihood), rng_key)

    def _step(self, reference, state):
        rng_key, noise_key, accept_key = jax.random.split(state.rng_key, 3)
        leaves, structure = jax.tree.flatten(state.z)
        keys = jax.random.split(noise_key, len(leaves))
        keep = (1 - self._step_size**2) ** 0.5
        moved = structure.unflatten(
            keep * leaf + self._step_size * jax.random.normal(key, leaf.shape, leaf.dtype)
            for key, leaf in zip(keys, leaves, strict=True)
        )
        log_likelihood = reference.log_likelihood(moved)
        log_likelihood = jnp.where(jnp.isfinite(log_likelihood), log_likelihood, -jnp.inf)
        probability = jnp.minimum(1.0, jnp.exp(log_likelihood - state.log_likelihood))
        is_taken = jax.random.uniform(accept_key, dtype=probability.dtype) < probability
        z = jax.tree.map(lambda new, old: jnp.where(is_taken, new, old), moved, state.z)
        log_likelihood = jnp.where(is_taken, log_likelihood, state.log_likelihood)
        return State(state.i + 1, z, log_likelihood, probability, rng_key)
