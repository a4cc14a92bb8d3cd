# %% [markdown]
# # A diffusion prior inside a NumPyro model
#
# What was learned is an ordinary distribution: it can be the prior of a latent variable in any other model. Here a
# point of the swiss roll is seen only through its horizontal coordinate, several times, with noise of unknown
# size. Where is the point, and how large is the noise? The vertical coordinate was never measured: all we know
# of it comes from the learned prior.
#
# A vertical line crosses the roll several times, so the posterior has several separate modes, and the noise is
# unknown besides. No gradient-based sampler moves between such modes. `DiffusionGibbs` does: particles walk the
# prior's own chain from noise to data, which leaves the posterior of the trained model invariant, whatever its modes.

# %%
import argparse
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="\nArviZ is undergoing a major refactor")  # on import, from ArviZ 0.23

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC
from swiss_roll import train

import numpyro_diffusion as nd

NUM_READINGS = 5
SIGMA = 0.2


# %% [markdown] Nothing in the model is special but the distribution's name. `DiffusionGibbs` takes it as it is:
# NUTS moves `sigma` given `x`, particles move `x` given `sigma`.


# %%
def model(prior: nd.Diffusion, readings=None):
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    x = numpyro.sample("x", prior)
    with numpyro.plate("readings", NUM_READINGS):
        numpyro.sample("y", dist.Normal(x[..., 0], sigma), obs=readings)


def infer(prior: nd.Diffusion, readings: jax.Array, *, num_samples: int = 500, progress_bar: bool = True) -> MCMC:
    mcmc = MCMC(
        nd.infer.DiffusionGibbs(model, num_particles=32),
        num_warmup=num_samples // 4,
        num_samples=num_samples,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=progress_bar,
    )
    mcmc.run(jax.random.key(5), prior, readings, extra_fields=("effective_size", "refresh_acceptance", "moved"))
    return mcmc


# %% [markdown] With two unknown numbers of x and one of sigma, brute force still works: draw a hundred thousand
# pairs from the prior and weigh them by the likelihood. That is the check, and it knows nothing of the engine.


# %%
def brute_force(prior: nd.Diffusion, readings: jax.Array, num_draws: int = 100_000) -> tuple[np.ndarray, np.ndarray]:
    key_x, key_sigma = jax.random.split(jax.random.key(6))
    x = jax.jit(lambda key: prior.sample(key, (num_draws,)))(key_x)
    sigma = dist.HalfNormal(0.5).sample(key_sigma, (num_draws,))
    log_weights = dist.Normal(x[:, :1], sigma[:, None]).log_prob(readings).sum(-1)
    return np.asarray(x), np.asarray(jax.nn.softmax(log_weights))


# %%
def main(output: Path, prior: nd.Diffusion | None = None, num_samples: int = 500) -> None:
    output.mkdir(parents=True, exist_ok=True)
    prior = train(diffusion_steps=40) if prior is None else prior
    truth = np.asarray(nd.datasets.swiss_roll(jax.random.key(11), 50))[7]
    readings = truth[0] + SIGMA * jax.random.normal(jax.random.key(12), (NUM_READINGS,))

    mcmc = infer(prior, readings, num_samples=num_samples)
    inference_data = az.from_numpyro(mcmc)
    print(az.summary(inference_data, var_names=["sigma", "x"], round_to=3).to_string())
    print(f"truth: sigma {SIGMA}, x {truth.round(3).tolist()}")
    print({name: round(float(value.mean()), 2) for name, value in mcmc.get_extra_fields().items()})

    # How much of the posterior lies in each vertical band: engine against brute force.
    draws = np.asarray(mcmc.get_samples()["x"])
    x, weights = brute_force(prior, readings)
    edges = np.linspace(-2.5, 2.5, 11)
    found = np.histogram(draws[:, 1], edges)[0] / len(draws)
    wanted = np.histogram(x[:, 1], edges, weights=weights)[0]
    distance = 0.5 * np.abs(found - wanted).sum()
    print("posterior by vertical band, engine      ", found.round(3))
    print("posterior by vertical band, brute force ", wanted.round(3))
    print(f"total variation between the two: {distance:.3f}")
    assert distance < 0.1, "the engine's modes should have the weights that brute force finds"

    band = float(mcmc.get_samples()["sigma"].mean()) / np.sqrt(NUM_READINGS)
    axes = nd.plots.prior_and_posterior(
        x[:2000], jnp.asarray(draws), observation=(0, float(readings.mean()), band), truth=truth
    )
    path = output / "prior_and_posterior.png"
    axes.figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close("all")
    print(f"the prior against the posterior: {path}")


if __name__ == "__main__":
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    parser.add_argument("--num-samples", type=int, default=500, help="draws of each of four chains after warm-up")
    main(**vars(parser.parse_args()))
