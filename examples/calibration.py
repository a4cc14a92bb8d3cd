# %% [markdown]
# # Is the posterior right? Simulation-based calibration
#
# Draw an unknown noise scale and a point from their priors, simulate data, draw from the posterior given these data,
# and look where the truth ranks among the posterior draws. Over many data sets the rank is uniform if, and as far as
# this test can see only if, the engine draws from the posterior. Nothing needs to be known of the posterior itself.
#
# The prior of the point is a diffusion over a mixture of three Gaussians, with its exact denoiser: the truths are
# drawn from the T-step model itself, so that the test is exact at every T.

# %%
import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import NUTS, Predictive
from scipy import stats

import numpyro_diffusion as nd

MATRIX = np.array([[1.0, 0.3], [-0.4, 0.8], [0.5, 0.5], [0.9, -0.6]])
NUM_DRAWS, THINNING, NUM_WARMUP = 63, 6, 150
BINS = 8  # of 64 possible ranks
SMALLEST_P = 1e-3  # for each quantity: a right engine fails one run in three hundred, and the seed is fixed


def diffusion_prior() -> nd.Diffusion:
    kernel = nd.GaussianKernel(nd.schedules.log_snr(20, 0.2, 100.0), parameterization="x0", variance="denoiser")
    means = jnp.array([[-2.0, 0.0], [2.0, 1.0], [0.0, -2.0]])
    return nd.Diffusion(kernel, nd.analytic.gaussian_mixture(kernel, means, 0.6, jnp.array([0.3, 0.5, 0.2])))


PRIOR = diffusion_prior()


def model(y=None, scale=1.0):
    sigma = numpyro.sample("sigma", dist.LogNormal(-0.5, 0.6))
    x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", dist.Normal(x @ MATRIX.T, scale * sigma).to_event(1), obs=y)


# %% [markdown] All data sets are sampled at once: one chain for each, mapped over. Every sixth draw is kept, so that
# the draws of a chain are nearly independent, as the uniformity of ranks asks.


# %%
def posterior(key: jax.Array, y: jax.Array, scale: float = 1.0) -> dict[str, jax.Array]:
    kernel = nd.infer.DiffusionGibbs(NUTS(model, max_tree_depth=4), num_particles=16)
    arguments = {"y": y, "scale": scale}
    state = kernel.init(key, NUM_WARMUP, None, (), arguments)

    def move(state, _):
        return kernel.sample(state, (), arguments), None

    def keep(state, _):
        state, _ = jax.lax.scan(move, state, None, length=THINNING)
        return state, kernel.postprocess_fn((), arguments)(state.z)

    state, _ = jax.lax.scan(move, state, None, length=NUM_WARMUP)
    return jax.lax.scan(keep, state, None, length=NUM_DRAWS)[1]


def ranks(num_data_sets: int = 200, scale: float = 1.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Ranks of the truth among posterior draws; ``scale`` other than 1 makes the posterior wrong on purpose."""
    key_truth, key_posterior = jax.random.split(jax.random.key(seed))
    truth = Predictive(model, num_samples=num_data_sets)(key_truth)
    keys = jax.random.split(key_posterior, num_data_sets)
    draws = jax.jit(jax.vmap(lambda key, y: posterior(key, y, scale)))(keys, truth["y"])
    return {
        "sigma": nd.evaluation.sbc_ranks(truth["sigma"], draws["sigma"]),
        "x, first": nd.evaluation.sbc_ranks(truth["x"][..., 0], draws["x"][..., 0]),
        "x, second": nd.evaluation.sbc_ranks(truth["x"][..., 1], draws["x"][..., 1]),
    }


def uniformity(rank: np.ndarray) -> float:
    """The p-value of a chi-square test over equally wide bins."""
    return nd.evaluation.rank_uniformity(rank, NUM_DRAWS, num_bins=BINS)


# %%
def main(output: Path, num_data_sets: int = 200) -> None:
    output.mkdir(parents=True, exist_ok=True)
    found = ranks(num_data_sets)
    figure, axes = plt.subplots(1, len(found), figsize=(9, 2.6), sharey=True)
    low, high = stats.binom.interval(0.99, num_data_sets, 1 / BINS)
    for ax, (name, rank) in zip(axes, found.items(), strict=True):
        ax.axhspan(low, high, color="0.85", label="99 % of uniform")
        ax.hist(rank, np.linspace(-0.5, NUM_DRAWS + 0.5, BINS + 1), color="#2b5c8a", rwidth=0.92)
        ax.set_title(f"{name}\np = {uniformity(rank):.2f}", fontsize="medium")
        ax.set(xlabel="rank of the truth", ylim=(0, 1.35 * high))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("data sets")
    axes[0].legend(frameon=False, fontsize="small", loc="upper left")
    path = output / "calibration.png"
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close("all")
    for name, rank in found.items():
        print(f"{name:23} uniformity p = {uniformity(rank):.3f}")
        assert uniformity(rank) > SMALLEST_P, "the ranks should be uniform"
    print(f"rank histograms of {num_data_sets} data sets: {path}")


if __name__ == "__main__":
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    parser.add_argument("--num-data-sets", type=int, default=200)
    main(**vars(parser.parse_args()))
