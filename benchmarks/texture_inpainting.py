"""The paper's Figure 5 with a number: the middle 100x100 of a 300x300 texture, filled by a model of small patches.

    python benchmarks/texture_inpainting.py --texture gravel --checkpoints runs --plot texture.png

The hole's truth is held out. A filling need not equal it, so fillings are compared by what textures share: the sliced
Wasserstein distance of all 8x8 patches to the true hole's, that of gradients, and the step across the border. The floor
is the same number for true pieces of the same photograph. The fillings:

    exact_product   the paper's: each reverse step times the known pixels at the step's noise level, 300x300
    twisted_smc     the same with weights, exact in the limit of many particles, which it is far from; on a piece: the
                    hole and the 32 or more pixels around it that its reverse step depends on
    unconditional   a draw of the prior that has seen nothing, cut to the hole
    mean            grey

Weights of thousands of unknown pixels collapse: the record of twisted_smc's smallest effective size says how far. Draws
that descend from one particle of one island are one guided draw, no better founded than the exact product's.
"""

import argparse
import io
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import texture_problem as texture
from records import parser, print_table, record, write

import numpyro_diffusion as nd

NOISE = 0.05  # of the known pixels for twisted_smc, which has no density without: two grey levels


def exact_product(prior: nd.Diffusion, image: jax.Array, known: jax.Array, draws: int, key: jax.Array) -> np.ndarray:
    """Whole images by the paper's tilt, (draws, side, side, 1)."""
    factor = nd.GaussianFactor(image, jnp.where(known, 0.0, jnp.inf), noised=True)
    chain = nd.TiltedChain(texture.resized(prior, len(image)).chain, factor)
    return np.asarray(jax.jit(lambda chain, key: chain.sample_last(key, (draws,)))(chain, key))


def twisted_smc(
    prior: nd.Diffusion, image: jax.Array, known: jax.Array, particles: int, islands: int, key: jax.Array
) -> nd.infer.TwistedSMC:
    """The exact product with weights: the filter, after its run, on a square piece of which some pixels are known.

    Particles move by the product of the step with the known pixels' factor and are weighed by the same factor. The
    generic twist would look further, through the network, but needs its gradient at every step: on a CPU XLA runs those
    of convolutions an order of magnitude slower inside a loop (jax-ml/jax #12868).
    """
    seen = np.flatnonzero(np.asarray(known))
    schedule = prior.kernel.schedule

    def model(y: jax.Array) -> None:
        x = numpyro.sample("x", texture.resized(prior, len(image)))
        numpyro.sample("y", dist.Normal(x.reshape(-1)[seen], NOISE).to_event(1), obs=y)

    key_noise, key_run = jax.random.split(key)
    y = image.reshape(-1)[seen] + NOISE * jax.random.normal(key_noise, (len(seen),))

    def log_factor(x_t: Any, t: jax.Array, x_0: Any, log_r: Any) -> jax.Array:
        alpha_bar, noise = (jnp.asarray(values, float)[t] for values in (schedule.alpha_bar, schedule.noise_variance))
        noised = dist.Normal(jnp.sqrt(alpha_bar) * y, jnp.sqrt(alpha_bar * NOISE**2 + noise))
        return noised.log_prob(x_t["x"].reshape(-1)[seen]).sum()

    value = jnp.zeros(image.size).at[seen].set(y).reshape(image.shape)
    factor = nd.GaussianFactor(value, jnp.where(known, NOISE, jnp.inf), noised=True)
    smc = nd.infer.TwistedSMC(model, particles, islands, twist=log_factor, proposal={"x": factor}, progress_bar=False)
    smc.run(key_run, y)
    return smc


def fillings(prior: nd.Diffusion, problem: texture.Problem, arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Name -> (fillings of the hole (draws, 100, 100), seconds), and the filter."""
    keys = jax.random.split(jax.random.key(arguments.seed + 1), 3)
    box = texture.hole()
    piece = texture.crop_around_hole(texture.network(prior.kernel), texture.SIDE, texture.HOLE)
    inner = slice(box[0].start - piece.start, box[0].stop - piece.start)
    side = piece.stop - piece.start
    found = {}

    def keep(name: str, start: float, images: Any, rows: slice) -> None:
        found[name] = np.asarray(images)[:, rows, rows, 0], time.perf_counter() - start
        print(f"{name}: {found[name][1]:.0f} s", flush=True)

    start = time.perf_counter()
    keep("mean", start, jnp.full((1, texture.SIDE, texture.SIDE, 1), problem.image[problem.known].mean()), box[0])
    start = time.perf_counter()
    chain = texture.resized(prior, side).chain
    keep("unconditional", start, jax.jit(lambda c, k: c.sample_last(k, (arguments.draws,)))(chain, keys[0]), inner)
    start = time.perf_counter()
    images = exact_product(prior, problem.image, problem.known, arguments.draws, keys[1])
    keep("exact_product", start, images, box[0])
    start = time.perf_counter()
    around = [part[piece, piece] for part in (problem.image, problem.known)]
    smc = twisted_smc(prior, *around, arguments.particles, arguments.islands, keys[2])
    keep("twisted_smc", start, smc.get_samples(num_samples=arguments.islands)["x"], inner)
    return found, smc


def distance_records(found: Any, image: np.ndarray, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Each filling's distances to the true hole beside those of other true pieces."""
    box = texture.hole()
    truth = image[box]
    elsewhere = [texture.distances(image[other], truth) for other in texture.moved_boxes(box, texture.HOLE)]
    floors = {name: [distance[name] for distance in elsewhere] for name in elsewhere[0]}
    floors["border_jump"] = [
        texture.border_jump(image, other) for other in [box, *texture.moved_boxes(box, texture.HOLE // 2)]
    ]
    records = []
    for name, (draws, seconds) in found.items():
        measured = []
        for draw in draws:
            filled = image.copy()
            filled[box] = draw
            measured.append({**texture.distances(draw, truth), "border_jump": texture.border_jump(filled, box)})
        for statistic, floor in floors.items():
            values = [numbers[statistic] for numbers in measured]
            records.append(
                record(
                    f"{facts['texture']}_{statistic}_{name}",
                    float(np.mean(values)),
                    "ratio" if statistic == "border_jump" else "pixel sd",
                    baseline=float(np.mean(floor)),
                    baseline_name="other pieces of the true texture",
                    ratio=float(np.mean(values) / np.mean(floor)),
                    seconds=seconds,
                    floor_smallest=min(floor),
                    floor_largest=max(floor),
                    each_draw=values,
                    pixel_sd_over_true=float(draws.std((1, 2)).mean() / truth.std()),
                    **facts,
                )
            )
    return records


def filter_record(smc: nd.infer.TwistedSMC, seconds: float, facts: dict[str, Any]) -> dict[str, Any]:
    """How many particles the weights left."""
    sizes = np.asarray(smc.effective_sizes)
    pixels = smc.get_weighted_samples()[0]["x"][0].size
    return record(
        f"{facts['texture']}_smc_min_effective_size",
        float(smc.min_ess),
        "particles",
        baseline=float(smc.num_particles),
        baseline_name="particles of an island",
        seconds=seconds,
        median_over_levels=float(np.median(sizes)),
        share_of_levels_below_two=float((sizes < 2).mean()),
        log_evidence_error=smc.log_evidence_error,
        islands=smc.num_islands,
        noise=NOISE,
        unknown_pixels=texture.HOLE**2,
        known_pixels=pixels - texture.HOLE**2,
        **facts,
    )


def plot(path: Path, found: Any, image: np.ndarray) -> None:
    """Truth, what is seen, fillings, and where draws of the exact product differ; the middle two thirds of each."""
    from matplotlib.figure import Figure
    from PIL import Image

    box = texture.hole()
    middle = slice(texture.SIDE // 6, -texture.SIDE // 6)
    draws = found["exact_product"][0]

    def with_hole(inside: Any, outside: np.ndarray = image) -> np.ndarray:
        shown = outside.copy()
        shown[box] = inside
        return shown[middle, middle]

    low, high = np.quantile(image, [0.005, 0.995])
    panels = [
        ("truth", with_hole(image[box]), low, high),
        ("what is seen", with_hole(high), low, high),
        ("a draw that saw nothing", with_hole(found["unconditional"][0][0]), low, high),
        ("exact product (the paper)", with_hole(draws[0]), low, high),
        ("twisted SMC", with_hole(found["twisted_smc"][0][0]), low, high),
        (f"sd of {len(draws)} draws", with_hole(draws.std(0), np.zeros_like(image)), 0.0, 1.5),
    ]
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    for ax, (title, shown, black, white) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        ax.imshow(shown, cmap="gray", vmin=black, vmax=white)
        ax.set_title(title, fontsize=9)
        ax.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    Image.open(buffer).convert("L").save(path, optimize=True)


def main(arguments: argparse.Namespace) -> None:
    problem = texture.problem(arguments.texture, arguments.seed)
    start = time.perf_counter()
    settings = arguments.svi_steps, arguments.batch_size, arguments.seed
    folder = arguments.checkpoints and arguments.checkpoints / "_".join(map(str, (arguments.texture, *settings)))
    resumed = folder is not None and folder.exists()  # then the seconds are not of the whole training
    prior = texture.learn(problem.strips, *settings, folder)
    facts = {
        "texture": arguments.texture,
        "svi_steps": arguments.svi_steps,
        "batch_size": arguments.batch_size,
        "num_steps": texture.NUM_STEPS,
        "seed": arguments.seed,
    }
    held_out = texture.patches([problem.image], 32, texture.PATCH, jax.random.key(arguments.seed + 2))
    K = nd.evaluation.bound(jax.random.key(arguments.seed + 3), prior, held_out, num_draws=1)
    records = [
        record(
            f"{arguments.texture}_K_minus_L_null",
            K.above_null.bits / held_out[0].size,
            "bits/pixel",
            seconds=time.perf_counter() - start,
            K=K.bits / held_out[0].size,
            training_was_resumed=resumed,
            **facts,
        )
    ]
    print(f"trained: {records[0]['seconds']:.0f} s, {records[0]['value']:.3f} bits/pixel above null", flush=True)
    found, smc = fillings(prior, problem, arguments)
    image = np.asarray(problem.image)[..., 0]
    records += distance_records(found, image, facts)
    records.append(filter_record(smc, found["twisted_smc"][1], facts))
    if arguments.plot:
        plot(arguments.plot, found, image)
    print_table(records)
    write(records, arguments.json)


if __name__ == "__main__":
    options = parser(__doc__, "texture_inpainting.json")
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("--texture", default="gravel", choices=texture.TEXTURES, help="bark must be fetched: data.py")
    options.add_argument("--svi-steps", type=int, default=2000, help="about five minutes on two cores")
    options.add_argument("--batch-size", type=int, default=16)
    options.add_argument("--checkpoints", type=Path, help="where training can be stopped and go on")
    options.add_argument("--draws", type=int, default=4, help="of the exact product, and of the prior")
    options.add_argument("--particles", type=int, default=8, help="of each island")
    options.add_argument("--islands", type=int, default=2)
    options.add_argument("--plot", type=Path, help="a PNG to write")
    main(options.parse_args())
