# %% [markdown]
# # A day of electricity, half of it lost
#
# Italy's demand for electricity, by the hour, of 939 days: workdays, Saturdays, Sundays, summers and winters. A prior
# of the *shape* of a day is learned from them. A meter with unknown gain, offset and noise then reads one new day: of
# the 24 hours eight are lost to an outage and four more at random. What did the lost hours look like, and what is the
# meter's calibration?
#
# Beside it stand a Gaussian process, its mean that of the days and its kernel fitted to them, and one Gaussian with
# the covariance of the days. Likelihood and all other unknowns are the same. Held-out days say who is right.
#
# The data come inside of the package sktime: `python -m pip install 'numpyro-diffusion[curves,examples]'`.

# %%
import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

warnings.filterwarnings("ignore", message="\nArviZ is undergoing a major refactor")  # on import, from ArviZ 0.23
warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto")  # the table of loo counts them

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta
from numpyro.infer.reparam import TransformReparam

import numpyro_diffusion as nd

HOURS = 24
GAIN, OFFSET, NOISE = 5.0, 30.0, 1.0  # of the meter, in its own units: the noise is a fifth of a day's swing


# %% [markdown]
# A day of the data has mean 0 and standard deviation 1: level and swing were taken out, and become offset and gain. So
# 23 hours say all 24. The model is that of any calibration; the prior of the shape is an argument.


# %%
def whole(shape: jax.Array) -> jax.Array:
    return jnp.append(shape, -shape.sum())


def model(prior: dist.Distribution, hours: jax.Array, y: jax.Array | None = None) -> None:
    offset = numpyro.sample("offset", dist.Normal(30.0, 10.0))
    gain = numpyro.sample("gain", dist.LogNormal(np.log(5.0), 0.5))
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    shape = numpyro.sample("shape", prior)
    load = numpyro.deterministic("load", offset + gain * whole(shape))
    with numpyro.plate("recorded", len(hours)):
        numpyro.sample("y", dist.Normal(load[hours], sigma), obs=y)


# %% [markdown] What the meter recorded of a day, and what it would have recorded.


# %%
class Readings(NamedTuple):
    hours: np.ndarray  # recorded, (days, 12)
    lost: np.ndarray  # the others, (days, 12)
    y: np.ndarray  # readings of all hours, (days, 24)
    truth: np.ndarray  # the same without noise


def read(days: np.ndarray, seed: int = 0) -> Readings:
    rng = np.random.default_rng(seed)
    lost = []
    for _ in days:
        outage = rng.integers(0, HOURS - 7) + np.arange(8)
        others = np.setdiff1d(np.arange(HOURS), outage)
        lost.append(np.sort(np.r_[outage, rng.choice(others, 4, replace=False)]))
    hours = np.stack([np.setdiff1d(np.arange(HOURS), gone) for gone in lost])
    truth = OFFSET + GAIN * days
    y = truth + NOISE * rng.normal(size=days.shape)
    return Readings(hours, np.stack(lost), y.astype(np.float32), truth.astype(np.float32))


# %% [markdown]
# The two other priors, in plain NumPyro. Both are of 23 standard normals, which suits NUTS. The Gaussian process has a
# Matern kernel and a nugget, conditioned on a sum of 0; its three numbers maximise the likelihood of the training days.


# %%
def standardised(mean: jax.Array, covariance: jax.Array) -> dist.Distribution:
    affine = dist.transforms.LowerCholeskyAffine(mean, jnp.linalg.cholesky(covariance))
    return dist.TransformedDistribution(dist.Normal(jnp.zeros(HOURS - 1), 1.0).to_event(1), affine)


def process_covariance(amplitude: jax.Array, scale: jax.Array, nugget: jax.Array) -> jax.Array:
    lag = np.sqrt(3.0) * np.abs(np.subtract.outer(np.arange(HOURS), np.arange(HOURS))) / scale
    kernel = amplitude**2 * (1 + lag) * jnp.exp(-lag) + nugget**2 * jnp.eye(HOURS)
    of_sum = kernel.sum(0)
    return (kernel - jnp.outer(of_sum, of_sum) / of_sum.sum())[:-1, :-1]


def gaussian_process(days: np.ndarray, svi_steps: int = 500) -> dist.Distribution:
    mean = jnp.asarray(days[:, :-1].mean(0))

    def train(rows):
        numbers = [numpyro.sample(name, dist.LogNormal(0.0, 2.0)) for name in ("amplitude", "scale", "nugget")]
        with numpyro.plate("days", len(rows)):
            numpyro.sample("x", dist.MultivariateNormal(mean, process_covariance(*numbers)), obs=rows)

    guide = AutoDelta(train)
    svi = SVI(train, guide, numpyro.optim.Adam(0.02), Trace_ELBO())
    found = svi.run(jax.random.key(0), svi_steps, jnp.asarray(days[:, :-1]), progress_bar=False)
    best = guide.median(found.params)
    print("Gaussian process:", {name: round(float(value), 3) for name, value in best.items()})
    return standardised(mean, process_covariance(**best))


def gaussian(days: np.ndarray) -> dist.Distribution:
    return standardised(jnp.asarray(days[:, :-1].mean(0)), jnp.cov(days[:, :-1].T))


# %% [markdown]
# The engines: `DiffusionHMC`, which `nd.infer.check` recommends here, and NUTS. Many days are many posteriors of one
# model: all run side by side, under one `vmap`.


# %%
def diffusion_hmc() -> numpyro.infer.mcmc.MCMCKernel:
    return nd.infer.DiffusionHMC(model, max_steps=16)


def nuts() -> numpyro.infer.mcmc.MCMCKernel:
    return NUTS(numpyro.handlers.reparam(model, {"shape": TransformReparam()}), max_tree_depth=7)


def chains(kernel: numpyro.infer.mcmc.MCMCKernel, num_samples: int, num_chains: int = 4) -> MCMC:
    settings = {"num_chains": num_chains, "chain_method": "vectorized", "progress_bar": False}
    return MCMC(kernel, num_warmup=num_samples, num_samples=num_samples, **settings)


def posteriors(
    kernel: Callable, prior: dist.Distribution, readings: Readings, num_samples: int
) -> dict[str, np.ndarray]:
    """Draws of every day, (days, chains, draws, ...)."""

    @jax.jit
    @jax.vmap
    def run(rng_key, hours, y):
        mcmc = chains(kernel(), num_samples)
        mcmc.run(rng_key, prior, hours, y)
        draws = mcmc.get_samples(group_by_chain=True)
        return {name: draws[name] for name in ("load", "offset", "gain", "sigma")}

    keys = jax.random.split(jax.random.key(1), len(readings.y))
    recorded = jnp.take_along_axis(jnp.asarray(readings.y), jnp.asarray(readings.hours), 1)
    return jax.tree.map(np.asarray, run(keys, jnp.asarray(readings.hours), recorded))


# %% [markdown]
# Three scores of the lost hours: the error of the posterior mean, in units of the meter; how many true loads lie in
# their 90% intervals; and the log density of what the meter would have read, in nats an hour.


# %%
class Scores(NamedTuple):
    error: np.ndarray  # of each day, root mean square over lost hours
    coverage: np.ndarray  # of each day, share of its lost hours
    log_score: np.ndarray  # of each day, nats an hour
    width: np.ndarray  # of each day, mean width of the intervals
    gain: np.ndarray  # of each day, error of the posterior mean, as a share


def score(draws: dict[str, np.ndarray], readings: Readings) -> Scores:
    days = len(readings.y)
    load = draws["load"].reshape(days, -1, HOURS)
    lost = np.take_along_axis(load, readings.lost[:, None, :], 2)  # (days, draws, 12)
    truth = np.take_along_axis(readings.truth, readings.lost, 1)
    y = np.take_along_axis(readings.y, readings.lost, 1)
    low, high = np.quantile(lost, [0.05, 0.95], axis=1)
    sigma = draws["sigma"].reshape(days, -1, 1)
    densities = np.exp(-0.5 * ((y[:, None] - lost) / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
    gain = draws["gain"].reshape(days, -1).mean(1)
    return Scores(
        error=np.sqrt(((lost.mean(1) - truth) ** 2).mean(1)),
        coverage=((truth >= low) & (truth <= high)).mean(1),
        log_score=np.log(densities.mean(1)).mean(1),
        width=(high - low).mean(1),
        gain=np.abs(gain - GAIN) / GAIN,
    )


def compare(scores: dict[str, Scores]) -> None:
    ours = next(iter(scores.values()))
    for name, other in scores.items():
        better = ours.log_score - other.log_score
        spread = better.std(ddof=1) / np.sqrt(len(better)) if len(better) > 1 else np.nan
        behind = "" if other is ours else f", {better.mean():.2f} +- {spread:.2f} behind"
        print(
            f"{name:17} error {np.sqrt((other.error**2).mean()):.2f} (median day {np.median(other.error):.2f}); "
            f"90% intervals hold {other.coverage.mean():.0%}, width {other.width.mean():.1f}; "
            f"gain off by {np.median(other.gain):.0%}; log score {other.log_score.mean():.2f} nats an hour{behind}"
        )


# %% [markdown] One day in full: diagnostics, leave-one-out, and whether the model predicts what was recorded.


# %%
def one_day(kernel, prior: dist.Distribution, readings: Readings, day: int, num_samples: int):
    mcmc = chains(kernel, num_samples)
    hours = readings.hours[day]
    mcmc.run(jax.random.key(2), prior, hours, readings.y[day, hours])
    draws = mcmc.get_samples()
    predicted = Predictive(model, posterior_samples=draws)(jax.random.key(3), prior, np.arange(HOURS))["y"]
    by_chain = mcmc.get_samples(group_by_chain=True)
    load = np.asarray(by_chain["load"])
    print(
        f"R-hat at most {split_gelman_rubin(load).max():.3f} for the hours, "
        f"{split_gelman_rubin(np.asarray(by_chain['sigma'])):.3f} for the noise; "
        f"effective draws at least {effective_sample_size(load).min():.0f}"
    )
    print({name: f"{draws[name].mean():.2f} +- {draws[name].std():.2f}" for name in ("offset", "gain", "sigma")})
    loo = az.loo(nd.to_arviz(mcmc))
    print(loo)
    return np.asarray(draws["load"]), np.asarray(predicted)


def show(ax, load: np.ndarray, predicted: np.ndarray, readings: Readings, day: int, title: str) -> None:
    hours = np.arange(HOURS)
    ax.fill_between(hours, *np.quantile(predicted, [0.05, 0.95], axis=0), color="0.9", label="90% of readings")
    ax.fill_between(
        hours, *np.quantile(load, [0.05, 0.95], axis=0), color="#c8402f", alpha=0.35, label="90% of the load"
    )
    ax.plot(hours, load[:: len(load) // 8].T, color="#c8402f", linewidth=0.5)
    ax.plot(hours, readings.truth[day], color="k", linewidth=1.2, label="truth")
    recorded = readings.hours[day]
    ax.plot(recorded, readings.y[day, recorded], "o", color="#2f5fc8", markersize=4, label="recorded")
    ax.set(title=title, xlabel="hour", xticks=[0, 6, 12, 18, 23])


# %%
def main(
    output: Path, svi_steps: int = 6000, num_days: int = 20, num_samples: int = 200, prior: Path | None = None
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    train, held_out = nd.datasets.power_demand(), nd.datasets.power_demand(held_out=True)
    if prior is None:
        learned = nd.learn_prior(train[:, :-1], rng_key=jax.random.key(0), num_steps=svi_steps)
        print(learned.report)
        learned.save(output / "electricity_prior.safetensors")
        shapes = learned.distribution
    else:
        shapes = nd.load(prior)
    priors = {
        "learned prior": (diffusion_hmc, shapes),
        "Gaussian process": (nuts, gaussian_process(train)),
        "one Gaussian": (nuts, gaussian(train)),
    }
    readings = read(held_out[:num_days])

    scores = {}
    for name, (kernel, distribution) in priors.items():
        draws = posteriors(kernel, distribution, readings, num_samples)
        load = draws["load"]
        rhat = [split_gelman_rubin(day).max() for day in load]
        apart = [day for day, value in enumerate(rhat) if value > 1.5]
        print(f"{name}: R-hat of the hours, median day {np.median(rhat):.3f}, worst {max(rhat):.2f}")
        print(
            f"  chains disagree, draw more before you trust the scores: days {apart}" if apart else "  no day above 1.5"
        )
        scores[name] = score(draws, readings)
    print(f"{num_days} held-out days, 12 hours of each lost:")
    compare(scores)

    day = 0
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), sharey=True)
    for ax, (name, (kernel, distribution)) in zip(axes, priors.items(), strict=True):
        print(f"day {day}, {name}:")
        show(ax, *one_day(kernel(), distribution, readings, day, 2 * num_samples), readings, day, name)
    axes[0].legend(frameon=False, fontsize="small")
    figure.savefig(output / "electricity.png", dpi=130, bbox_inches="tight")
    plt.close(figure)

    ours, process = scores["learned prior"], scores["Gaussian process"]
    assert ours.log_score.mean() > process.log_score.mean(), "the learned prior should predict lost hours better"
    assert 0.8 < ours.coverage.mean() < 0.98, "90% intervals should hold about 90% of the lost hours"
    print(f"Done in {time.perf_counter() - start:.0f} s: {output / 'electricity.png'}")


if __name__ == "__main__":
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    parser.add_argument("--svi-steps", type=int, default=6000, help="of training, at most")
    parser.add_argument("--num-days", type=int, default=20, help="held-out days")
    parser.add_argument(
        "--num-samples", type=int, default=200, help="draws of each of four chains, after as many to warm up"
    )
    parser.add_argument("--prior", type=Path, help="a prior that an earlier run saved")
    main(**vars(parser.parse_args()))
