"""The trainings that the benchmarks time, and what every part of them uses to time them.

    mlp           points of the swiss roll, the MLP of the package
    unet          8 x 8 x 1 images of a blob each, a U-Net of two resolutions without attention
    image_unet    the same, of any size, a U-Net of three resolutions with attention

20,000 rows, T = 100, Adam; batches of 512 points, and of 64 images.
"""

import contextlib
import dataclasses
import io
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import haiku as hk
import jax
import jax.numpy as jnp
import numpyro
import optax
import tqdm.auto

import numpyro_diffusion as nd

LEARNING_RATE = 1e-3
BATCHES = {"mlp": 512, "unet": 64, "image_unet": 64}


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network, its kernel and the shape of one event.

    Args:
        name: "mlp", "unet" or "image_unet".
        num_steps: T.
        kernel_options: to the Gaussian kernel; its defaults are v-prediction and a learned variance.
        width: of the network; None for the benchmark's.
        dimension: of the MLP's data: the roll in the plane, normal data elsewhere.
        batch_size: rows in a batch; None for the benchmark's.
        rows: rows of data.
        side: pixels on a side of the U-Nets' images.
    """

    name: str
    num_steps: int = 100
    kernel_options: tuple[tuple[str, Any], ...] = ()
    width: int | None = None
    dimension: int = 2
    batch_size: int | None = None
    rows: int = 20_000
    side: int = 8

    @property
    def batch(self) -> int:
        return self.batch_size or BATCHES[self.name]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dimension,) if self.name == "mlp" else (self.side, self.side, 1)

    @property
    def kernel(self) -> nd.GaussianKernel:
        return nd.GaussianKernel(nd.schedules.log_snr(self.num_steps, 0.02, 20.0), **dict(self.kernel_options))

    @property
    def network(self) -> Any:
        if self.name == "mlp":
            waves = 3 if self.dimension == 2 else 0
            return nd.networks.MLP(
                self.num_steps, self.kernel.num_outputs, width=self.width or 128, depth=3, num_frequencies=waves
            )
        width = self.width or 16
        levels, attention = (3, True) if self.name == "image_unet" else (2, False)
        return nd.networks.UNet(
            self.num_steps, self.kernel.num_outputs, width=width, num_levels=levels, attention=attention
        )

    def data(self, seed: int) -> jax.Array:
        key = jax.random.key(seed)
        if self.name != "mlp":
            centre, radius = jnp.split(jax.random.uniform(key, (self.rows, 3)), [2], axis=1)
            offset = (
                jnp.stack(jnp.meshgrid(*2 * [jnp.linspace(0, 1, self.side)], indexing="ij"), -1) - centre[:, None, None]
            )
            distance = (offset**2).sum(-1, keepdims=True) / (0.1 + 0.3 * radius[:, None, None]) ** 2
            return 2 * jnp.exp(-0.5 * distance) - 1
        return (
            nd.datasets.swiss_roll(key, self.rows)
            if self.dimension == 2
            else jax.random.normal(key, (self.rows, self.dimension))
        )

    def model(self) -> Callable[..., None]:
        kernel, network = self.kernel, self.network

        def model(x: jax.Array, size: int) -> None:
            transition = nd.haiku_module("net", network, kernel=kernel, event_shape=self.event_shape)
            with numpyro.plate("data", size, subsample_size=len(x)):
                numpyro.sample("x", nd.Diffusion(kernel, transition), obs=x)

        return model

    def params(self, seed: int) -> Any:
        """Parameters as after some training: nothing is exactly zero, so no term of a comparison drops out."""
        init = hk.without_apply_rng(hk.transform(self.network)).init
        params = jax.jit(init)(jax.random.key(seed), jnp.zeros((1, *self.event_shape)), jnp.ones((1,), int))
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
        noisy = [leaf + 0.02 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(tree, noisy)

    def prior(self, params: Any, rng_key: jax.Array | None = None) -> nd.Diffusion:
        transition = nd.Transition(nd.modules.HaikuFunction(self.network), params, self.event_shape)
        return nd.Diffusion(self.kernel, transition, estimator=nd.RandomStep(), rng_key=rng_key)


@dataclasses.dataclass(frozen=True)
class FitTime:
    """What one call of ``fit`` took."""

    seconds_per_step: float
    steps_timed: int
    seconds_to_first_report: float  # tracing, compiling and the first chunk
    last_loss: float


def time_fit(problem: Problem, data: jax.Array, seed: int, num_steps: int) -> FitTime:
    """Train with ``nd.fit`` and time its steps after its first report.

    ``fit`` compiles at each call, for seconds that vary by as much as the ratios to be measured, so neither one call
    nor the difference of two will do. But it reports its progress, as a user sees it, whenever the losses of some steps
    have arrived, and the first report comes after compiling. What is between the first and the last is all that steps
    cost: device, host, progress bar.
    """
    with progress_marks() as marks, contextlib.redirect_stderr(io.StringIO()):
        start = time.perf_counter()
        fit = nd.fit(
            problem.model(),
            data,
            optimizer=optax.adam(LEARNING_RATE),
            num_steps=num_steps,
            batch_size=problem.batch,
            rng_key=jax.random.key(seed),
        )
    if len(marks) < 2:
        raise RuntimeError(f"Expected two or more reports of progress from fit; got {len(marks)}. Take more steps.")
    counted = sum(steps for steps, _ in marks[1:])
    tail = fit.losses[-min(100, num_steps) :]
    return FitTime((marks[-1][1] - marks[0][1]) / counted, counted, marks[0][1] - start, float(tail.mean()))


@contextlib.contextmanager
def progress_marks() -> Iterator[list[tuple[int, float]]]:
    """The steps of each report to a tqdm bar, and when it came."""
    marks: list[tuple[int, float]] = []
    original = tqdm.auto.tqdm.update

    def update(bar: Any, n: int = 1) -> Any:
        if n:
            marks.append((n, time.perf_counter()))
        return original(bar, n)

    with mock.patch.object(tqdm.auto.tqdm, "update", update):
        yield marks
