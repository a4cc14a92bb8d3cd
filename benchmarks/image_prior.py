"""A prior of 28x28 pictures, MNIST or Fashion-MNIST, for ``posterior_scale.py``; trained once, read from a file later.

    python -m benchmarks.data mnist fashion_mnist
    python benchmarks/image_prior.py --data mnist --prior FOLDER/mnist

A U-Net of 4x4 patches around the Gaussian denoiser of independent pixels, trained on all 60,000 pictures; grey levels
are dequantised, and scaled to mean 0 and variance 1. Both sets take the same settings: at most half an hour on two
cores.
"""

import argparse
import json
import time
from pathlib import Path

import data as fetched
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax

import numpyro_diffusion as nd

SIDE = 28
NUM_STEPS, SIGMA_MIN, SIGMA_MAX = 50, 0.1, 100.0
SVI_STEPS, BATCH_SIZE = 4000, 128
NUM_HELD_OUT = 1000


def pictures(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(training pictures, held-out ones), of mean 0 and variance 1, shapes (n, 28, 28)."""
    keys = jax.random.split(jax.random.key(seed))
    train, test = (
        nd.datasets.dequantise(key, images, num_levels=256).reshape(-1, SIDE, SIDE)
        for key, images in zip(keys, fetched.load(name), strict=True)
    )
    train, scaling = nd.datasets.standardise(jnp.asarray(train, float))
    return np.asarray(train), np.asarray(scaling.apply(jnp.asarray(test[:NUM_HELD_OUT], float)))


def network_of(kernel: nd.GaussianKernel, images: np.ndarray) -> nd.networks.GaussianSkipUNet:
    """Around the Gaussian of each pixel; no pixel is narrower than what one step leaves."""
    return nd.networks.GaussianSkipUNet(
        kernel.schedule.log_snr[1:],
        mean=images.mean(0).ravel(),
        scale=np.maximum(images.std(0).ravel(), SIGMA_MIN),
        width=96,
        num_levels=1,
        num_blocks=2,
        event_dim=2,
        patch_size=4,
    )


def learn(images: np.ndarray, seed: int, svi_steps: int = SVI_STEPS) -> nd.Diffusion:
    """The prior of the pictures."""
    schedule = nd.schedules.log_snr(NUM_STEPS, SIGMA_MIN, SIGMA_MAX)
    kernel = nd.GaussianKernel(schedule, parameterization="x0", variance="denoiser")
    network = network_of(kernel, images)

    def model(x: jax.Array, size: int) -> None:
        transition = nd.haiku_module("net", network, kernel=kernel, event_shape=(SIDE, SIDE))
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", nd.Diffusion(kernel, transition), obs=x)

    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, svi_steps // 20, svi_steps)
    optimizer = optax.chain(optax.clip_by_global_norm(100.0 * len(images)), optax.adamw(rate, weight_decay=1e-4))
    fitted = nd.fit(
        model,
        images,
        optimizer=optimizer,
        num_steps=svi_steps,
        batch_size=BATCH_SIZE,
        rng_key=jax.random.key(seed),
        ema_decay=0.999,
    )
    return fitted.distribution("x")


def the_prior(name: str, path: Path, seed: int = 0) -> tuple[nd.Diffusion, np.ndarray, dict[str, float]]:
    """The prior, the held-out pictures, and what is known of the prior; it is trained where the file is not there."""
    train, held_out = pictures(name, seed)
    facts_of = path.with_name(path.name + ".facts.json")
    if not path.exists():
        start = time.perf_counter()
        prior = learn(train, seed)
        seconds = time.perf_counter() - start
        nats = {
            f"nats_{steps}_steps": nd.evaluation.bound(
                jax.random.key(seed + 1),
                prior if steps == NUM_STEPS else prior.respaced(steps),
                held_out[:200],
                num_draws=1,
            ).nats
            for steps in (NUM_STEPS, 26)
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        nd.save(prior, path)
        facts_of.write_text(json.dumps({"seconds_of_training": seconds, **nats}))
    return nd.load(path), held_out, json.loads(facts_of.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("mnist", "fashion_mnist"), default="mnist")
    parser.add_argument("--prior", type=Path, required=True, help="the file that is written, if it is not there")
    arguments = parser.parse_args()
    print(the_prior(arguments.data, arguments.prior)[2])


if __name__ == "__main__":
    main()
