# %% [markdown]
# # Binary heartbeats
#
# The Bernoulli kernel on the paper's binary sequences: 20 bits with a pulse in every fifth, at a random phase.
# There are five such sequences among a million, so the true log likelihood is log2(1/5) = -2.322 bits a
# sequence.

# %%
import argparse
import math
from pathlib import Path

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import optax

import numpyro_diffusion as nd

BITS = math.log(2)


# %% [markdown] `constant_fraction` is the paper's schedule for bits: every step forgets the same share of what
# is left, and the last forgets all. The rate is the data's mean. The network estimates x^0; the kernel turns
# that into each reverse step by Bayes' rule.


# %%
def train(
    diffusion_steps: int = 200, svi_steps: int = 2500, seed: int = 0, progress_bar: bool = True, width: int = 128
) -> nd.Diffusion:
    kernel = nd.BernoulliKernel(nd.schedules.constant_fraction(diffusion_steps), rate=0.2)
    network = nd.networks.MLP(kernel.num_steps, kernel.num_outputs, width=width, depth=2)

    def model(x, size):
        transition = nd.haiku_module("net", network, kernel=kernel, event_shape=(20,))
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", nd.Diffusion(kernel, transition), obs=x)

    key_data, key_fit = jax.random.split(jax.random.key(seed))
    fitted = nd.fit(
        model,
        nd.datasets.heartbeat(key_data, 10_000),
        optimizer=optax.adam(optax.cosine_decay_schedule(3e-3, svi_steps)),
        num_steps=svi_steps,
        batch_size=256,
        rng_key=key_fit,
        ema_decay=0.999,
        progress_bar=progress_bar,
    )
    return fitted.distribution("x")


# %%
def evaluate(prior: nd.Diffusion, seed: int = 1, num_sequences: int = 2000) -> float:
    """K in bits a sequence, on held-out sequences."""
    x = nd.datasets.heartbeat(jax.random.key(seed), num_sequences)
    exact = nd.Diffusion(prior.kernel, prior.transition, estimator=nd.AllSteps(), rng_key=jax.random.key(seed + 1))
    return float(jax.jit(lambda d, x: d.log_prob(x).mean())(exact, x)) / BITS


def valid_fraction(draws: jax.Array) -> float:
    """The share of draws that are one of the five heartbeats."""
    beats = np.arange(20) % 5 == np.arange(5)[:, None]
    return float((np.asarray(draws)[:, None] == beats).all(-1).any(-1).mean())


# %%
def main(output: Path, **settings) -> None:
    output.mkdir(parents=True, exist_ok=True)
    prior = train(**settings)
    draws = jax.jit(lambda d, key: d.sample(key, (10_000,)))(prior, jax.random.key(3))
    valid = valid_fraction(draws)
    print(f"K                       {evaluate(prior):7.3f} bits a sequence")
    print(f"the limit, log2(1/5)    {-nd.datasets.heartbeat_entropy() / BITS:7.3f} bits a sequence")
    print(f"valid among 10,000 draws {valid:6.4f}")
    assert valid > 0.9, "nine draws in ten should be heartbeats"
    axes = nd.plots.bit_raster(draws[:40])
    path = output / "heartbeat.png"
    axes.figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close("all")
    print(f"draws (the paper's Fig. 2): {path}")


if __name__ == "__main__":
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    parser.add_argument("--diffusion-steps", type=int, default=200, help="T; the paper has 2000")
    parser.add_argument("--svi-steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
