# %% [markdown]
# # A prior of pictures, and three questions to it
#
# Learn a distribution of 8x8 digits. Then write *one* NumPyro model, pictures seen through some lens with noise of
# unknown strength, and ask it what is under noise as strong as the picture (denoising); what is in the half that was
# not seen (inpainting); what a coarse picture was made of (zooming); and each time how strong the noise was. Each
# answer is a posterior, with a standard deviation for every pixel.
#
# Beside it stands the guidance that is usual with diffusion models (DPS): it moves every step of the chain along the
# gradient of the likelihood. One run of the chain and it looks good; but it is not the posterior, and must be told how
# strong the noise is and how far to move. Where the noise is small it is far off.

# %%
import argparse
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.diagnostics import split_gelman_rubin
from numpyro.infer import MCMC

import numpyro_diffusion as nd

PIXELS = 64
SHOWN = [0, 7, 21, 40]  # held-out digits
BLOCKS = np.kron(np.eye(4), np.kron(np.ones((1, 2)), np.kron(np.eye(4), np.full((1, 2), 0.25)))).astype(np.float32)
QUESTIONS = {  # the lens, a matrix of what is seen by pixels; the noise; how far DPS moves
    "denoise": (np.eye(PIXELS, dtype=np.float32), 1.0, 0.5),
    "inpaint": (np.eye(PIXELS, dtype=np.float32)[:32], 0.5, 0.5),
    "zoom": (BLOCKS, 0.1, 0.1),
}


# %% [markdown]
# The prior: grey levels with uniform noise, scaled to mean 0 and variance 1; a network trained by SVI. The covariance
# of the network's errors is measured once, and goes with the prior: by it the engine knows where to move.


# %%
def learn(svi_steps: int = 2400, progress_bar: bool = True) -> tuple[nd.Diffusion, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    train, scaling = nd.datasets.standardise(nd.datasets.dequantise(keys[0], nd.datasets.digits().images, 17))
    held_out = scaling.apply(nd.datasets.dequantise(keys[1], nd.datasets.digits(held_out=True).images, 17))
    kernel = nd.GaussianKernel(nd.schedules.log_snr(30, sigma_min=0.1, sigma_max=100.0))
    network = nd.networks.MLP(kernel.num_steps, kernel.num_outputs, width=256, depth=3)

    def model(x, size):
        transition = nd.haiku_module("net", network, kernel=kernel, event_shape=(PIXELS,))
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", nd.Diffusion(kernel, transition), obs=x)

    fitted = nd.fit(
        model,
        train.reshape(-1, PIXELS),
        optimizer=optax.adam(optax.cosine_decay_schedule(1e-3, svi_steps)),
        num_steps=svi_steps,
        batch_size=128,
        rng_key=keys[2],
        ema_decay=0.998,
        progress_bar=progress_bar,
    )
    prior = fitted.distribution("x")
    errors = nd.guidance.error_covariance(jax.random.key(5), prior.chain, progress_bar=False)
    return prior.with_errors(errors), held_out.reshape(-1, PIXELS)


# %% [markdown] The model, and the engine: all pictures and the noise move together, in four chains.


# %%
def model(prior, y, lens):
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("pictures", len(y)):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x @ lens.T, sigma).to_event(1), obs=y)


def engine(num_samples: int, progress_bar: bool) -> MCMC:
    settings = {"num_warmup": num_samples, "num_samples": num_samples, "progress_bar": progress_bar}
    return MCMC(nd.infer.DiffusionHMC(model), num_chains=4, chain_method="vectorized", **settings)


# %% [markdown] Guidance, for comparison, told how strong the noise was; at twice the strength some pictures run away.


# %%
def log_r(y, lens, sigma, x):
    return dist.Normal(x @ lens.T, sigma).log_prob(y).sum()


@partial(jax.jit, static_argnames="num_draws")
def guided(prior, y, lens, sigma, strength, num_draws: int = 200) -> jax.Array:
    def one(key, y):
        tilt = nd.ReconstructionGuidance(jax.tree_util.Partial(log_r, y, lens, sigma), strength=strength)
        return nd.TiltedChain(prior.chain, tilt).sample_last(key, (num_draws,))

    return jax.vmap(one, out_axes=1)(jax.random.split(jax.random.key(4), len(y)), y)


# %%
def summary(name: str, draws: np.ndarray, truth: jax.Array, y: jax.Array, lens: np.ndarray, noise: float) -> float:
    """Print how far draws are from truth and from what was seen; return the share of pixels in their 90% intervals."""
    draws = np.where(np.abs(draws).max(-1, keepdims=True) < 100, draws, np.nan)
    low, high = np.nanquantile(draws, [0.05, 0.95], axis=0)
    share = float(((truth >= low) & (truth <= high)).mean())
    error = float(np.sqrt(((np.nanmean(draws, 0) - truth) ** 2).mean()))
    residual = float(np.sqrt(np.nanmean((draws @ lens.T - y) ** 2))) / noise
    lost = float(np.isnan(draws).any(-1).mean())
    print(
        f"{name:13} error of the mean {error:.2f}; 90% intervals hold {share:.0%} of the pixels; residuals "
        f"{residual:.2f} times the noise{f'; {lost:.0%} ran away' if lost else ''}"
    )
    return share


def shown(y: jax.Array, lens: np.ndarray) -> np.ndarray:
    """What was seen as a picture: each pixel by what sees it, light where nothing does."""
    weights = lens.sum(0)
    return np.where(weights > 0, (np.asarray(y) @ lens) / np.where(weights > 0, weights, 1), -1.0)


def show(rows: list[list[np.ndarray]], titles: list[str], path: Path) -> None:
    figure, axes = plt.subplots(len(rows), len(titles), figsize=(1.1 * len(titles), 1.15 * len(rows)))
    for panels, pictures in zip(axes, rows, strict=True):
        for ax, title, picture in zip(panels, titles, pictures, strict=True):
            limits = (0, 1.2) if title.startswith("sd") else (-1.0, 2.0)
            ax.imshow(np.asarray(picture).reshape(8, 8), cmap="gray_r", vmin=limits[0], vmax=limits[1])
            ax.set(xticks=[], yticks=[])
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize="small")
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    print(f"{path}")


def main(output: Path, svi_steps: int = 2400, num_samples: int = 100, progress_bar: bool = True) -> None:
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    prior, held_out = learn(svi_steps, progress_bar)
    pictures = np.asarray(prior.sample(jax.random.key(1), (16,)))
    show([list(pictures[:8]), list(pictures[8:])], 8 * [""], output / "digits_drawn.png")

    truth = held_out[jnp.asarray(SHOWN)]
    rows = []
    titles = ["truth", "seen", "mean", "draw", "draw", "sd", "DPS mean", "DPS draw", "sd, DPS"]
    for question, (lens, noise, strength) in QUESTIONS.items():
        mcmc = engine(num_samples, progress_bar)
        y = truth @ lens.T + noise * jax.random.normal(jax.random.key(2), (len(truth), len(lens)))
        mcmc.run(jax.random.key(3), prior, y, lens)
        draws, sigma = (np.asarray(mcmc.get_samples()[name]) for name in ("x", "sigma"))
        other = np.asarray(guided(prior, y, lens, noise, strength, num_samples))
        r_hat = split_gelman_rubin(np.asarray(mcmc.get_samples(group_by_chain=True)["x"]))
        share = summary(question, draws, truth, y, lens, noise)
        print(f"{'':13} noise {sigma.mean():.2f} +- {sigma.std():.2f}, in truth {noise}; R-hat {np.median(r_hat):.2f}")
        summary(f"{question}, DPS", other, truth, y, lens, noise)
        for index in range(len(SHOWN) if question == "denoise" else 2):
            x, z = draws[:, index], other[:, index]
            visible = shown(y[index], lens)
            rows.append([truth[index], visible, x.mean(0), x[-1], x[len(x) // 2], x.std(0), z.mean(0), z[0], z.std(0)])
        assert abs(np.log(sigma.mean() / noise)) < 0.5, "the noise should be found"
        assert share > 0.75, "intervals should hold about 90% of the pixels"
    show(rows, titles, output / "digits_posteriors.png")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description="Posteriors of pictures: denoise, inpaint, zoom, find the noise.")
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    parser.add_argument("--svi-steps", type=int, default=2400)
    parser.add_argument("--num-samples", type=int, default=100, help="posterior draws of each chain and question")
    main(**vars(parser.parse_args()))
