"""The paper's Table 1 beside ours: swiss roll and heartbeat here, images in `paper_images.py`.

    python benchmarks/paper_table.py --rows swiss_roll heartbeat
    python benchmarks/paper_table.py --rows digits mnist dead_leaves bark cifar10          images: an hour
    python benchmarks/paper_table.py --rows mnist dead_leaves cifar10 --budget gpu

Every K is the exact bound (all steps, Eq. 13) on held-out data, but in the rows that repeat the paper's own swiss
roll, where it is the paper's form (Eq. 14) with b_1 stated and the limit that this b_1 sets. "gap" is -K minus the
data's true entropy; "iw" the importance-weighted estimate with 64 trajectories, on fewer points. The swiss roll's "iw
gap" is to the exact log likelihood of the same points, which in the mean is minus the entropy and differs from it by
chance: the difference of the two has less noise.

The tables are also written as Markdown, beside the JSON files, for the documentation. Images have a file of their own,
in which the rows of earlier runs stay.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpyro
import optax
from records import merge, parser, print_table, record, write

import numpyro_diffusion as nd

BITS = math.log(2)
HELD_OUT = 10_000
NUM_TRAJECTORIES = 64


def train(
    kernel_of: Callable[[], nd.Kernel],
    network: Any,
    data: jax.Array,
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    estimator: Any = nd.RandomStep(),  # noqa: B008 - frozen
) -> tuple[nd.Diffusion, float]:
    """Fit one diffusion; the trained prior and the seconds it took, compilation included."""

    def model(x: jax.Array, size: int) -> None:
        kernel = kernel_of()
        transition = nd.haiku_module("net", network, kernel=kernel, event_shape=data.shape[1:])
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", nd.Diffusion(kernel, transition, estimator=estimator), obs=x)

    start = time.perf_counter()
    schedule = optax.cosine_decay_schedule(learning_rate, num_steps)
    fitted = nd.fit(
        model,
        data,
        optimizer=optax.chain(optax.clip_by_global_norm(10.0 * len(data)), optax.adam(schedule)),
        num_steps=num_steps,
        batch_size=batch_size,
        rng_key=jax.random.key(seed),
        ema_decay=0.999,
    )
    seconds = time.perf_counter() - start
    return fitted.distribution("x"), seconds


def tighter(prior: nd.Diffusion, x: jax.Array, seed: int) -> tuple[Any, float]:
    """The importance-weighted estimate, and the seconds it took."""
    start = time.perf_counter()
    key = jax.random.key(seed)
    estimate = nd.evaluation.importance_weighted(key, prior, x, num_trajectories=NUM_TRAJECTORIES)
    return estimate, time.perf_counter() - start


def swiss_roll_gap(diffusion_steps: int, limit: str, seed: int, svi_steps: int) -> list[dict[str, Any]]:
    """The noisy roll, whose entropy is known."""
    kernel = nd.GaussianKernel(nd.schedules.log_snr(diffusion_steps, 0.02, 20.0))
    network = nd.networks.MLP(kernel.num_steps, kernel.num_outputs, width=128, depth=3, num_frequencies=3)
    data = nd.datasets.swiss_roll(jax.random.key(seed), 200_000)
    prior, seconds = train(
        lambda: kernel, network, data, num_steps=svi_steps, batch_size=512, learning_rate=3e-3, seed=seed + 1
    )
    x = nd.datasets.swiss_roll(jax.random.key(seed + 2), HELD_OUT)
    bound = nd.evaluation.bound(jax.random.key(seed + 3), prior, x, num_draws=4)
    iw, iw_seconds = tighter(prior, x[:2000], seed + 4)
    entropy = nd.datasets.swiss_roll_entropy() / BITS
    exact = np.asarray(nd.datasets.swiss_roll_log_prob(np.asarray(x))) / BITS
    paired = exact[:2000] - iw.per_point / BITS
    settings = {"T": diffusion_steps, "svi_steps": svi_steps, "noise": 0.5, "seed": seed, "K": bound.bits}
    truth = {"baseline": entropy, "baseline_name": "true entropy, bits"}
    return [
        record(
            f"swiss_roll_gap_bits_T{diffusion_steps}",
            -bound.bits - entropy,
            "bits",
            limit=limit,
            seconds=seconds,
            standard_error=bound.standard_error_bits,
            K_minus_L_null=bound.above_null.bits,
            iw=iw.bits,
            limit_of_K=-entropy,
            gap_to_exact_log_likelihood_of_the_same_points=float(exact.mean()) - bound.bits,
            **truth,
            **settings,
        ),
        record(
            f"swiss_roll_iw_gap_bits_T{diffusion_steps}",
            float(paired.mean()),
            "bits",
            limit="<= 0.05" if diffusion_steps == 100 else "",
            seconds=iw_seconds,
            standard_error=nd.evaluation.results.standard_error(paired),
            iw=iw.bits,
            gap_to_the_entropy=-iw.bits - entropy,
            standard_error_of_that=iw.standard_error_bits,
            effective_sample_size=float(np.median(iw.effective_sample_size)),
            num_trajectories=NUM_TRAJECTORIES,
            **truth,
            **settings,
        ),
    ]


def swiss_roll_paper(seed: int, svi_steps: int) -> list[dict[str, Any]]:
    """The paper's own experiment (noise-free roll, T = 40, 16 RBF units, learned schedule), and an MLP beside it."""
    rows = []
    data = nd.datasets.swiss_roll(jax.random.key(seed), 100_000, noise=0.0)
    x = nd.datasets.swiss_roll(jax.random.key(seed + 2), HELD_OUT, noise=0.0)
    networks = {
        "swiss_roll_paper_K_bits": (nd.networks.RBF(40, 2, num_units=16), 1e-5, nd.paper_bound, 3e-2),
        "swiss_roll_mlp_K_bits": (nd.networks.MLP(40, 2, num_frequencies=5), 1e-6, nd.paper_bound, 2e-3),
    }
    for name, (network, beta_1, estimator, learning_rate) in networks.items():
        prior, seconds = train(
            lambda b=beta_1: nd.GaussianKernel(nd.learned_schedule("schedule", 40, beta_1=b, sigma_max=20.0)),
            network,
            data,
            num_steps=svi_steps if "paper" in name else svi_steps // 4,
            batch_size=512 if "paper" in name else 128,
            learning_rate=learning_rate,
            seed=seed + 1,
            estimator=estimator,
        )
        bound = nd.evaluation.bound(jax.random.key(seed + 3), prior, x, num_draws=4, form="paper")
        # No chain can do better than minus the entropy of x^1, the roll blurred by b_1.
        sigma = math.sqrt(beta_1 / (1 - beta_1))
        limit = -(nd.datasets.swiss_roll_entropy(noise=0.0, extra_noise=sigma) + math.log(1 - beta_1)) / BITS
        print(f"{name}: K = {bound.bits:.3f} bits with b_1 = {beta_1:g}, which allows {limit:.3f}")
        rows.append(
            record(
                name,
                bound.bits,
                "bits",
                baseline=2.35,
                baseline_name="paper's K, bits",
                limit=">= 2.35" if "paper" in name else "",
                seconds=seconds,
                b_1=beta_1,
                limit_of_K=limit,
                K_minus_L_null=bound.above_null.bits,
                standard_error=bound.standard_error_bits,
                T=40,
                seed=seed,
            )
        )
    return rows


def heartbeat(seed: int, svi_steps: int, diffusion_steps: int = 2000) -> list[dict[str, Any]]:
    """Binary heartbeats at the paper's T = 2000."""
    kernel = nd.BernoulliKernel(nd.schedules.constant_fraction(diffusion_steps), rate=0.2)
    network = nd.networks.MLP(kernel.num_steps, kernel.num_outputs, width=128, depth=2)
    data = nd.datasets.heartbeat(jax.random.key(seed), 50_000)
    prior, seconds = train(
        lambda: kernel, network, data, num_steps=svi_steps, batch_size=256, learning_rate=2e-3, seed=seed + 1
    )
    x = nd.datasets.heartbeat(jax.random.key(seed + 2), 5000)
    bound = nd.evaluation.bound(jax.random.key(seed + 3), prior, x, num_draws=1)
    iw, iw_seconds = tighter(prior, x[:200], seed + 5)
    draws = np.asarray(jax.jit(lambda prior, key: prior.sample(key, (10_000,)))(prior, jax.random.key(seed + 4)))
    beats = np.arange(20) % 5 == np.arange(5)[:, None]
    valid = float((draws[:, None] == beats).all(-1).any(-1).mean())
    settings = {"T": diffusion_steps, "svi_steps": svi_steps, "seed": seed}
    truth = {"limit_of_K": -nd.datasets.heartbeat_entropy() / BITS, "iw": iw.bits}
    return [
        record(
            "heartbeat_K_bits",
            bound.bits,
            "bits/sequence",
            baseline=-2.414,
            baseline_name="paper's K, bits",
            limit=">= -2.335",
            seconds=seconds,
            K_minus_L_null=bound.above_null.bits,
            standard_error=bound.standard_error_bits,
            **truth,
            **settings,
        ),
        record(
            "heartbeat_iw_bits",
            iw.bits,
            "bits/sequence",
            limit=">= -2.326",
            seconds=iw_seconds,
            standard_error=iw.standard_error_bits,
            effective_sample_size=float(np.median(iw.effective_sample_size)),
            num_trajectories=NUM_TRAJECTORIES,
            **truth,
            **settings,
        ),
        record("heartbeat_valid_fraction", valid, "of 10,000", limit=">= 0.99", **settings),
    ]


# What Table 1 has, K and K - L_null in bits, beside the records that answer it.
TABLE = {
    "swiss_roll_paper_K_bits": ("swiss roll, no noise, T = 40, the paper's network", 2.35, 6.45),
    "swiss_roll_mlp_K_bits": ("swiss roll, no noise, T = 40, MLP", None, None),
    "swiss_roll_gap_bits_T40": ("swiss roll, noise .5, T = 40, MLP", None, None),
    "swiss_roll_gap_bits_T100": ("swiss roll, noise .5, T = 100, MLP", None, None),
    "heartbeat_K_bits": ("binary heartbeat, T = 2000", -2.414, 12.024),
}


def markdown(records: list[dict[str, Any]]) -> str:
    """The paper's Table 1 beside ours."""
    lines = [
        "| data | paper: K | K - L_null | ours: K | K - L_null | importance weighted | limit | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    number = lambda value: "" if value is None else f"{value:.3f}"  # noqa: E731
    by_name = {entry["name"]: entry for entry in records}
    for name, (label, *paper) in TABLE.items():
        if name in by_name:
            entry, settings = by_name[name], by_name[name]["settings"]
            ours = [settings.get("K", entry["value"]), settings["K_minus_L_null"], settings.get("iw")]
            cells = [number(value) for value in (*paper, *ours, settings["limit_of_K"])]
            lines.append(f"| {label} | {' | '.join(cells)} | {entry['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def main(arguments: argparse.Namespace) -> None:
    toys = [row for row in arguments.rows if row in TOYS]
    images = [row for row in arguments.rows if row not in TOYS]
    if toys:
        finish(toy_rows(toys, arguments), arguments.json, markdown)
    if images:
        import paper_images  # the fetched data sets are needed for these alone

        budget = arguments.budget if arguments.budget == "gpu" else "cpu"
        path = arguments.json.with_name("paper_images.json")
        for name in images:
            records = paper_images.run(name, budget, arguments.seed, arguments.checkpoints)
            finish(merge(records, path), path, paper_images.markdown)


def toy_rows(rows: list[str], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    scale, seed = float(arguments.budget), arguments.seed
    if "swiss_roll" in rows:
        records += swiss_roll_gap(100, "<= 0.10", seed, int(15_000 * scale))
        records += swiss_roll_gap(40, "<= 0.18", seed + 10, int(12_000 * scale))
        records += swiss_roll_paper(seed + 20, int(6000 * scale))
    if "heartbeat" in rows:
        records += heartbeat(seed + 30, int(9000 * scale))
    return records


def finish(records: list[dict[str, Any]], path: Path, table: Callable[[list[dict[str, Any]]], str]) -> None:
    """Print and write the records and their table."""
    print("\n" + table(records))
    print_table(records)
    write(records, path)
    path.with_suffix(".md").write_text(table(records))


def budget(text: str) -> str:
    """A positive number, or "gpu"."""
    if text != "gpu" and not float(text) > 0:
        raise ValueError
    return text


TOYS = ("swiss_roll", "heartbeat")
IMAGES = ("digits", "mnist", "dead_leaves", "bark", "cifar10")

if __name__ == "__main__":
    options = parser(__doc__, "paper_table.json")
    options.add_argument("--rows", nargs="+", default=list(TOYS), choices=TOYS + IMAGES)
    options.add_argument(
        "--budget", type=budget, default="1", help="multiplies the SVI steps of the toys; gpu: images on one large GPU"
    )
    options.add_argument(
        "--checkpoints", type=Path, default=Path("build/paper_images"), help="where images keep checkpoints to resume"
    )
    main(options.parse_args())
