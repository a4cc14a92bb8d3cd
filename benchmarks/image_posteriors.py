"""Are posteriors of real images right? Coverage of pixels' intervals over held-out digits; the noise level recovered.

A prior of 8x8 digits is learned from the training digits. Each of ``--images`` held-out digits is then seen with noise
as large as the signal (denoising at SNR 1), or in its upper half alone with noise .5 (inpainting). Of the 90% intervals
of a right posterior 90% hold the true pixel, if the prior is right too: held-out digits test both together.

Ours is DiffusionGibbs on a plate of all images at once. The baselines are the biased ones of common practice: the
paper's tilts, its exact product, and guidance, 200 draws each, unweighted.

    python benchmarks/image_posteriors.py --rows coverage noise_level noise_evidence unet_step chain_memory
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC
from records import merge, parser, print_table, record, write
from speed_fit import CHUNK, fit_step_ratios
from speed_problems import Problem
from speed_process import program_bytes

import numpyro_diffusion as nd

NUM_STEPS, PIXELS = 30, 64
DRAWS, WARMUP, PARTICLES = 200, 50, 32
TASKS = {"denoise": (jnp.arange(PIXELS), 1.0), "inpaint": (jnp.arange(PIXELS // 2), 0.5)}


def learn(seed: int, svi_steps: int = 6000) -> tuple[nd.Diffusion, jax.Array]:
    """The prior, and the held-out digits in its units, shape (256, 64)."""
    keys = jax.random.split(jax.random.key(seed), 3)
    parts = [nd.datasets.digits(held_out=held_out).images.reshape(-1, PIXELS) for held_out in (False, True)]
    train, test = (nd.datasets.dequantise(key, part, 17) for key, part in zip(keys[:2], parts, strict=True))
    train, scaling = nd.datasets.standardise(train)
    kernel = nd.GaussianKernel(nd.schedules.log_snr(NUM_STEPS, sigma_min=0.1, sigma_max=100.0))
    network = nd.networks.MLP(kernel.num_steps, kernel.num_outputs, width=256, depth=3)

    def model(x: jax.Array, size: int) -> None:
        transition = nd.haiku_module("net", network, kernel=kernel, event_shape=(PIXELS,))
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", nd.Diffusion(kernel, transition), obs=x)

    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, svi_steps))
    fitted = nd.fit(
        model, train, optimizer=optimizer, num_steps=svi_steps, batch_size=128, rng_key=keys[2], ema_decay=0.998
    )
    return fitted.distribution("x"), scaling.apply(test)


def observe(x: jax.Array, task: str, key: jax.Array) -> jax.Array:
    seen, noise = TASKS[task]
    return x[:, seen] + noise * jax.random.normal(key, (len(x), len(seen)))


def gibbs(prior: nd.Diffusion, y: jax.Array, task: str, key: jax.Array) -> np.ndarray:
    """Draws of all images, shape (draws, images, 64)."""
    seen, noise = TASKS[task]

    def model(y: jax.Array) -> None:
        with numpyro.plate("images", len(y)):
            x = numpyro.sample("x", prior)
            numpyro.sample("y", dist.Normal(x[..., seen], noise).to_event(1), obs=y)

    kernel = nd.infer.DiffusionGibbs(model, num_particles=PARTICLES)
    mcmc = MCMC(kernel, num_warmup=WARMUP, num_samples=DRAWS)
    mcmc.run(key, y)
    return np.asarray(mcmc.get_samples()["x"])


def log_likelihood(seen: jax.Array, y: jax.Array, noise: float, x: jax.Array) -> jax.Array:
    return -0.5 * (((y - x[seen]) / noise) ** 2).sum()


def _log_r(task: str, y: jax.Array) -> Any:
    seen, noise = TASKS[task]
    return jax.tree_util.Partial(log_likelihood, seen, y, noise)


def _product(task: str, y: jax.Array) -> Any:
    seen, noise = TASKS[task]
    value = jnp.zeros(PIXELS).at[seen].set(y)
    return nd.GaussianFactor(value, jnp.full(PIXELS, jnp.inf).at[seen].set(noise), noised=True)


def _moments(covariance: str) -> Callable[[str, jax.Array], Any]:
    def tilt(task: str, y: jax.Array) -> Any:
        seen, noise = TASKS[task]
        return nd.MomentMatching(jnp.eye(PIXELS)[seen], y, jnp.asarray(noise), covariance=covariance)  # type: ignore[arg-type]

    return tilt


BASELINES: dict[str, Callable[[str, jax.Array], Any]] = {
    "paper_constant": lambda task, y: nd.PaperTilt(_log_r(task, y)),
    "paper_annealed": lambda task, y: nd.PaperTilt(_log_r(task, y), exponent="annealed"),
    "exact_product": _product,
    "dps": lambda task, y: nd.ReconstructionGuidance(_log_r(task, y)),
    "dps_half": lambda task, y: nd.ReconstructionGuidance(_log_r(task, y), strength=0.5),
    "pigdm": _moments("scale"),
    "mmps": _moments("jacobian"),
}


def guided(name: str, prior: nd.Diffusion, y: jax.Array, task: str, key: jax.Array) -> np.ndarray:
    """Draws of a tilted chain for every image, one image at a time in memory."""

    def one(key_and_y: tuple[jax.Array, jax.Array]) -> jax.Array:
        key, y = key_and_y
        return nd.TiltedChain(prior.chain, BASELINES[name](task, y)).sample_last(key, (DRAWS,))

    draws = jax.jit(lambda keys, y: jax.lax.map(one, (keys, y)))(jax.random.split(key, len(y)), y)
    return np.asarray(draws).swapaxes(0, 1)


def coverage(draws: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """The share of true pixels inside the 90% intervals, and its standard error over images."""
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    inside = ((truth >= low) & (truth <= high)).mean(1)
    return float(inside.mean()), float(inside.std() / np.sqrt(len(inside)))


def coverage_rows(prior: nd.Diffusion, truth: jax.Array, seed: int, methods: list[str]) -> Iterator[dict[str, Any]]:
    for task in TASKS:
        y = observe(truth, task, jax.random.key(seed + 10))
        for name in methods:
            start = time.perf_counter()
            key = jax.random.key(seed + 11)
            draws = gibbs(prior, y, task, key) if name == "gibbs" else guided(name, prior, y, task, key)
            value, error = coverage(draws, np.asarray(truth))
            print(f"{task}, {name}: {value:.3f} +- {error:.3f}", flush=True)
            yield record(
                f"digits_coverage_90_{task}_{name}",
                value,
                "of pixels",
                limit="0.87 to 0.93" if name == "gibbs" else "",
                seconds=time.perf_counter() - start,
                standard_error=error,
                # Of medians, and in the median: some guided chains run away.
                error_of_the_median=float(np.sqrt(((np.median(draws, 0) - np.asarray(truth)) ** 2).mean())),
                median_standard_deviation=float(np.median(draws.std(0))),
                ran_away=float((np.abs(draws).max(-1) > 20).mean()),
                images=len(truth),
                draws=DRAWS,
                seed=seed,
            )


def noise_level_rows(prior: nd.Diffusion, truth: jax.Array, seed: int) -> Iterator[dict[str, Any]]:
    """The noise level, unknown, from noisy images alone: its posterior beside the level that was used."""
    for level in (0.5, 1.0):
        y = truth + level * jax.random.normal(jax.random.key(seed + 20), truth.shape)
        realised = float(jnp.sqrt(((y - truth) ** 2).mean()))

        def model(y: jax.Array) -> None:
            sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))
            with numpyro.plate("images", len(y)):
                x = numpyro.sample("x", prior)
                numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)

        start = time.perf_counter()
        kernel = nd.infer.DiffusionGibbs(model, num_particles=PARTICLES)
        mcmc = MCMC(kernel, num_warmup=100, num_samples=DRAWS)
        mcmc.run(jax.random.key(seed + 21), y)
        sigma = np.asarray(mcmc.get_samples()["sigma"])
        yield record(
            f"digits_noise_level_{level:g}",
            float(sigma.mean()),
            "posterior mean",
            baseline=realised,
            baseline_name="root mean square of the noise",
            seconds=time.perf_counter() - start,
            posterior_standard_deviation=float(sigma.std()),
            standard_deviations_off=float((sigma.mean() - realised) / sigma.std()),
            images=len(truth),
            seed=seed,
        )


def noise_evidence_rows(prior: nd.Diffusion, truth: jax.Array, seed: int) -> Iterator[dict[str, Any]]:
    """Log evidence of noise levels on a grid, by TwistedSMC digit by digit: where is it largest?"""
    grid = np.array([0.5, 0.63, 0.8, 1.0, 1.25, 1.6, 2.0])
    y = truth + jax.random.normal(jax.random.key(seed + 30), truth.shape)

    def model(sigma: jax.Array, y: jax.Array) -> None:
        with numpyro.plate("images", len(y)):
            x = numpyro.sample("x", prior)
            numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)

    start = time.perf_counter()
    smc = nd.infer.TwistedSMC(model, num_particles=512, num_islands=4, progress_bar=False)
    evidence, errors, sizes = [], [], []
    for sigma in grid:
        smc.run(jax.random.key(seed + 31), jnp.asarray(sigma, float), y)
        evidence.append(smc.log_evidence)
        errors.append(smc.log_evidence_error)
        sizes.append(float(smc.min_ess))
    yield record(
        "digits_noise_level_by_evidence",
        float(grid[np.argmax(evidence)]),
        "noise level",
        baseline=float(jnp.sqrt(((y - truth) ** 2).mean())),
        baseline_name="root mean square of the noise",
        limit="1.0 to 1.0",
        seconds=time.perf_counter() - start,
        grid=grid.tolist(),
        log_evidence=evidence,
        log_evidence_errors=errors,
        smallest_effective_sizes=sizes,
        particles=512,
        islands=4,
        images=len(truth),
        seed=seed,
    )


def unet_step_rows(seed: int, rounds: int) -> list[dict[str, Any]]:
    """A training step by ``fit`` over a hand-written loop of the same U-Net, with attention and three levels."""
    return fit_step_ratios(Problem("image_unet", rows=4000, side=16), seed, rounds, num_steps=2 * CHUNK)


def chain_memory_rows(seed: int) -> Iterator[dict[str, Any]]:
    """Gradients through the whole chain of a U-Net, hidden layers computed again: T = 1000 over T = 100."""
    for side in (32, 8):

        def needed(num_steps: int, checkpoint: bool, side: int = side) -> int:
            problem = Problem("image_unet", num_steps=num_steps, side=side)
            prior = problem.prior(problem.params(seed))

            def objective(chain: Any, noise: jax.Array) -> jax.Array:
                return (chain.from_noise(noise, checkpoint=checkpoint) ** 2).sum()

            return program_bytes(jax.grad(objective, argnums=1), prior.chain, jnp.zeros((4, *prior.chain.event_shape)))

        start = time.perf_counter()
        long, short, plain = needed(1000, True), needed(100, True), needed(100, False)
        yield record(
            f"chain_gradient_memory_ratio_T_{side}x{side}",
            long / short,
            "ratio",
            baseline=short,
            baseline_name="bytes at T = 100",
            ratio=long / short,
            limit="<= 4" if side == 32 else "",
            seconds=time.perf_counter() - start,
            bytes_without_checkpoints_T100=plain,
            images=4,
        )


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    seed = arguments.seed
    if {"coverage", "noise_level", "noise_evidence"} & set(arguments.rows):
        prior, held_out = learn(seed)
        if "coverage" in arguments.rows:
            yield from coverage_rows(prior, held_out[: arguments.images], seed, arguments.methods)
        if "noise_level" in arguments.rows:
            yield from noise_level_rows(prior, held_out[:32], seed)
        if "noise_evidence" in arguments.rows:
            yield from noise_evidence_rows(prior, held_out[:16], seed)
    if "chain_memory" in arguments.rows:
        yield from chain_memory_rows(seed)
    if "unet_step" in arguments.rows:
        yield from unet_step_rows(seed, arguments.rounds)


def main(arguments: argparse.Namespace) -> None:
    records = []
    for entry in measure(arguments):  # written one by one: some take many minutes
        records.append(entry)
        write(merge(records, arguments.json), arguments.json)
    print_table(records)


if __name__ == "__main__":
    rows = ["coverage", "noise_level", "noise_evidence", "unet_step", "chain_memory"]
    options = parser(__doc__, "image_posteriors.json")
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("--rows", nargs="+", default=rows, choices=rows)
    methods = ["gibbs", *BASELINES]
    options.add_argument("--methods", nargs="+", default=methods, choices=methods, help="of the coverage rows")
    options.add_argument("--images", type=int, default=100, help="held-out digits of the coverage rows")
    options.add_argument("--rounds", type=int, default=7, help="alternating runs of the training step")
    main(options.parse_args())
