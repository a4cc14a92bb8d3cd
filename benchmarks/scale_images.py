"""The learned prior of 28x28 images for ``posterior_scale.py``: MNIST, or Fashion-MNIST with the same settings.

    python benchmarks/scale_images.py mnist --prior FILE

Pixels are dequantised, standardised by one mean and one scale, and get noise of a tenth of that scale: where all images
are black a pixel would otherwise be known to a thousandth. The chain's states are whitened by the images' covariance:
the network, a multilayer perceptron around the exact denoiser of a standard normal, then begins at the Gaussian's
figure, and need not carry the noise of every pixel through its layers. The images are those of
``python -m benchmarks.data NAME``.
"""

import argparse
import time
from pathlib import Path

import data
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.distributions.transforms import LowerCholeskyAffine

import numpyro_diffusion as nd

SIDE, NUM_STEPS = 28, 50
PIXELS = SIDE * SIDE
SVI_STEPS, BATCH_SIZE = 6_000, 256
PIXEL_NOISE = 0.1
SETS = ("mnist", "fashion_mnist")


def learn(name: str, seed: int, svi_steps: int = SVI_STEPS) -> tuple[dist.Distribution, np.ndarray]:
    """The prior, and the held-out images in its units, shape (10000, 784)."""
    keys = jax.random.split(jax.random.key(seed), 5)
    parts = [np.asarray(part).reshape(-1, PIXELS) for part in data.load(name)]
    train, test = (nd.datasets.dequantise(key, part, 256) for key, part in zip(keys[:2], parts, strict=True))
    train, scaling = nd.datasets.standardise(train)
    train, test = (
        x + PIXEL_NOISE * jax.random.normal(key, x.shape)
        for key, x in zip(keys[3:], (train, scaling.apply(test)), strict=True)
    )
    mean, covariance = np.mean(train, 0), np.cov(np.asarray(train, float).T)
    whitening = LowerCholeskyAffine(jnp.asarray(mean), jnp.asarray(np.linalg.cholesky(covariance), jnp.float32))
    kernel = nd.GaussianKernel(
        nd.schedules.log_snr(NUM_STEPS, sigma_min=0.1, sigma_max=100.0), parameterization="x0", variance="denoiser"
    )
    network = nd.networks.GaussianSkip(kernel.schedule.log_snr[1:], width=512, depth=3)

    def model(x: jax.Array, size: int) -> None:
        transition = nd.haiku_module("net", network, kernel=kernel, event_shape=(PIXELS,))
        with numpyro.plate("data", size, subsample_size=len(x)):
            prior = dist.TransformedDistribution(nd.Diffusion(kernel, transition), [whitening])
            numpyro.sample("x", prior, obs=x)

    optimizer = optax.chain(
        optax.clip_by_global_norm(1e4), optax.adamw(optax.cosine_decay_schedule(1e-3, svi_steps), weight_decay=1e-3)
    )
    fitted = nd.fit(
        model,
        train,
        optimizer=optimizer,
        num_steps=svi_steps,
        batch_size=BATCH_SIZE,
        rng_key=keys[2],
        ema_decay=0.999,
    )
    return fitted.distribution("x"), np.asarray(test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SETS)
    parser.add_argument("--prior", type=Path, required=True, help="the file to write")
    parser.add_argument("--steps", type=int, default=SVI_STEPS, help="of training")
    arguments = parser.parse_args()
    start = time.perf_counter()
    prior, held_out = learn(arguments.name, 0, arguments.steps)
    nd.save(prior, arguments.prior)
    np.save(arguments.prior.with_suffix(".held_out.npy"), held_out)
    print(f"{time.perf_counter() - start:.0f} s")
    bound = nd.evaluation.bound(jax.random.key(1), prior, held_out[:200])
    print(f"{bound.nats:.1f} nats")


if __name__ == "__main__":
    main()
