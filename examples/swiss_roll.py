# %% [markdown]
# # Learn the swiss roll
#
# A Gaussian diffusion model of two-dimensional data, trained by NumPyro's SVI on the bound K, and judged
# against the true entropy of the data, which is known by quadrature.

# %%
import argparse
import math
from pathlib import Path

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

import numpyro_diffusion as nd

BITS = math.log(2)


# %% [markdown] The model is one line: the data's distribution is a `Diffusion`. Its `log_prob` is a random
# estimate of a lower bound, so maximising it needs no guide.


# %%
def train(diffusion_steps: int = 40, svi_steps: int = 4000, seed: int = 0, progress_bar: bool = True) -> nd.Diffusion:
    kernel = nd.GaussianKernel(nd.schedules.log_snr(diffusion_steps, sigma_min=0.02, sigma_max=20.0))
    nd.schedules.check_signal_erased(kernel.schedule, data_scale=1.0)
    network = nd.networks.MLP(kernel.num_steps, kernel.num_outputs, width=128, depth=3, num_frequencies=3)

    def model(x, size):
        transition = nd.haiku_module("net", network, kernel=kernel, event_shape=(2,))
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", nd.Diffusion(kernel, transition), obs=x)

    key_data, key_fit = jax.random.split(jax.random.key(seed))
    fitted = nd.fit(
        model,
        nd.datasets.swiss_roll(key_data, 100_000),
        optimizer=optax.adam(optax.cosine_decay_schedule(3e-3, svi_steps)),
        num_steps=svi_steps,
        batch_size=512,
        rng_key=key_fit,
        ema_decay=0.999,
        progress_bar=progress_bar,
    )
    return fitted.distribution("x")


# %% [markdown] How good is it? K is a lower bound on the log likelihood of held-out data; no model can beat
# minus the entropy. The null model is the isotropic Gaussian.


# %%
def evaluate(prior: nd.Diffusion, seed: int = 1, num_points: int = 10_000) -> dict[str, float]:
    x = nd.datasets.swiss_roll(jax.random.key(seed), num_points)
    exact = nd.Diffusion(prior.kernel, prior.transition, estimator=nd.AllSteps(), rng_key=jax.random.key(seed + 1))
    bound = float(jax.jit(lambda d, x: d.log_prob(x).mean())(exact, x)) / BITS
    null = float(dist.Normal(0.0, 1.0).to_event(0).log_prob(x).sum(-1).mean()) / BITS
    entropy = nd.datasets.swiss_roll_entropy() / BITS
    return {"K": bound, "K - L_null": bound - null, "entropy": entropy, "gap": -bound - entropy}


# %%
def main(output: Path, **settings) -> nd.Diffusion:
    output.mkdir(parents=True, exist_ok=True)
    prior = train(**settings)
    figures = evaluate(prior)
    print(f"K                          {figures['K']:8.3f} bits")
    print(f"K - L_null                 {figures['K - L_null']:8.3f} bits (L_null: isotropic Gaussian)")
    print(f"true entropy               {figures['entropy']:8.3f} bits")
    print(f"-K - entropy, the distance {figures['gap']:8.3f} bits")
    assert figures["gap"] < 0.5, "the model should be within half a bit of the truth"

    data = nd.datasets.swiss_roll(jax.random.key(2), 2000)
    axes = nd.plots.trajectory(
        jax.random.key(3), prior, data, t=(0, prior.kernel.num_steps * 3 // 8, prior.kernel.num_steps)
    )
    path = output / "swiss_roll.png"
    np.ravel(axes)[0].figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close("all")
    print(f"forward slices, reverse slices and drift (the paper's Fig. 1): {path}")
    return prior


if __name__ == "__main__":
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    parser.add_argument("--diffusion-steps", type=int, default=40, help="T")
    parser.add_argument("--svi-steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args())
    main(**arguments)
