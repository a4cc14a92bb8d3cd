# %% [markdown]
# # A diffusion prior inside a NumPyro model
#
# A learned law is an ordinary distribution: it can be the prior of a latent variable in any other model. Here a
# point of the swiss roll is seen only through its horizontal coordinate, several times, with noise of unknown
# size. Where is the point, and how large is the noise? The vertical coordinate was never measured: all we know
# of it comes from the learned prior.
#
# The point is taken near the right edge of the roll, where the possible places hang together. Between places that
# are far apart no gradient-based sampler moves, NUTS included: there, look at R-hat before you believe the draws.

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
from numpyro.infer import MCMC, NUTS
from swiss_roll import train

import numpyro_diffusion as nd

NUM_READINGS = 5
numpyro.set_host_device_count(2)  # one for each chain, on their own cores


# %% [markdown] Nothing in the model is special but the distribution's name. For NUTS the site is written in its
# noises (`DiffusionReparam`), which makes the posterior exact for the learned prior; the log density of the
# marginal itself is only a bound.


# %%
def model(prior: nd.Diffusion, readings=None):
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    x = numpyro.sample("x", prior)
    with numpyro.plate("readings", NUM_READINGS):
        numpyro.sample("y", dist.Normal(x[..., 0], sigma), obs=readings)


def infer(prior: nd.Diffusion, readings: jax.Array, *, num_samples: int = 300, progress_bar: bool = True) -> MCMC:
    noncentred = numpyro.handlers.reparam(model, config={"x": nd.infer.DiffusionReparam()})
    mcmc = MCMC(
        NUTS(noncentred, max_tree_depth=8),
        num_warmup=num_samples,
        num_samples=num_samples,
        num_chains=2,
        chain_method="parallel",
        progress_bar=progress_bar,
    )
    mcmc.run(jax.random.key(5), prior, readings)
    return mcmc


# %%
def main(output: Path, prior: nd.Diffusion | None = None, num_samples: int = 300) -> None:
    output.mkdir(parents=True, exist_ok=True)
    prior = train(diffusion_steps=40) if prior is None else prior
    points = np.asarray(nd.datasets.swiss_roll(jax.random.key(11), 50))
    truth = points[points[:, 0].argmax()]
    sigma_true = 0.3
    readings = truth[0] + sigma_true * jax.random.normal(jax.random.key(12), (NUM_READINGS,))

    mcmc = infer(prior, readings, num_samples=num_samples)
    inference_data = az.from_numpyro(mcmc)
    print(az.summary(inference_data, var_names=["sigma", "x"], round_to=3).to_string())
    print(f"truth: sigma {sigma_true}, x {truth.round(3).tolist()}")

    draws = np.asarray(mcmc.get_samples()["x"])
    assert abs(draws[:, 0].mean() - float(readings.mean())) < 0.3, "the measured coordinate should follow the readings"
    sigma = float(mcmc.get_samples()["sigma"].mean())
    prior_draws = prior.sample(jax.random.key(13), (2000,))
    band = sigma / np.sqrt(NUM_READINGS)
    axes = nd.plots.prior_and_posterior(
        prior_draws, jnp.asarray(draws), observation=(0, float(readings.mean()), band), truth=truth
    )
    path = output / "prior_and_posterior.png"
    axes.figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close("all")
    print(f"the prior against the posterior: {path}")


if __name__ == "__main__":
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    parser.add_argument("--num-samples", type=int, default=300, help="draws of each chain after warm-up")
    main(**vars(parser.parse_args()))
