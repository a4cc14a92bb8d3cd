"""``nd.fit`` against the loop that one would write by hand in JAX and optax: seconds per step, compiling left out.

Same loss, scaled the same, same network, same optimiser; batches by indices drawn with replacement on the device;
in chunks of 100 steps, after each of which the losses go to the host. The loop is the faster of the two that one can
write: the MLP's chunk is scanned; the U-Net's steps are called one by one, because on the CPU, XLA is slow at
convolutions inside loops (jax-ml/jax #12868). Before timing, both losses and their
gradients are compared on the same draws, and what SVI minimises with what the loop minimises.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.infer import Trace_ELBO
from overhead import coefficients, hand_written_loss
from records import record
from speed_problems import LEARNING_RATE, FitTime, Problem, time_fit

CHUNK = 100
LIMITS = {
    "mlp": ("fit_step_ratio", "<= 1.05"),
    "unet": ("fit_step_ratio_unet", "<= 1.03"),
    "image_unet": ("fit_step_ratio_image_unet", "<= 1.03"),
}


def written_loss(problem: Problem) -> Callable[..., jax.Array]:
    """The sum over a batch of the bound's negative, ``(params, key, x_0)``: plain jnp formulas."""
    apply = hk.without_apply_rng(hk.transform(problem.network)).apply
    return hand_written_loss(apply, coefficients(problem.kernel.schedule), problem.num_steps)


def check_same_loss(problem: Problem, data: jax.Array, seed: int) -> None:
    """Raise unless the hand-written loss is ours.

    On the same draws, value and gradient are compared with ``Diffusion.log_prob``; averaged over keys, the value with
    the ELBO of the model, whose draws come from the model's own key.
    """
    loss, params, x_0 = written_loss(problem), problem.params(seed), data[:64]
    key = jax.random.key(seed + 1)
    mine = jax.jit(jax.value_and_grad(lambda params: -problem.prior(params, key).log_prob(x_0).sum()))(params)
    other = jax.jit(jax.value_and_grad(lambda params: loss(params, key, x_0)))(params)
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(mine), jax.tree.leaves(other), strict=True):
        # Sums of hundreds of float32 numbers in another order.
        if not jnp.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(jnp.abs(theirs).max())):
            raise RuntimeError(f"the two losses differ at {jax.tree_util.keystr(path)}: {ours} and {theirs}")

    keys = jax.random.split(jax.random.key(seed + 2), 50)
    model, scale = problem.model(), len(data) / len(x_0)
    site = {"net$params": params}
    elbo = jax.jit(
        lambda: jax.lax.map(lambda key: Trace_ELBO().loss(key, site, model, _no_guide, x_0, len(data)), keys)
    )
    mine = elbo()
    other = scale * jax.jit(lambda: jax.lax.map(lambda key: loss(params, key, x_0), keys))()
    error = math.hypot(float(mine.std()), float(other.std())) / math.sqrt(len(keys))
    if not abs(float(mine.mean() - other.mean())) < 5 * error:
        raise RuntimeError(f"the two losses differ: {mine.mean()} and {other.mean()}, standard error {error}")


def _no_guide(*args: Any) -> None:
    """All sites are observed."""


def written_fit(problem: Problem, data: jax.Array, scanned: bool = True) -> Callable[[int, int], tuple[float, float]]:
    """A function of a seed and a number of steps that trains by hand: seconds per step, mean of the last losses.

    Compiled at the first call; the first chunk of a call is not timed, as the first of ``fit`` is not.
    """
    loss, optimizer, size = written_loss(problem), optax.adam(LEARNING_RATE), len(data)

    def update(carry: Any, key: jax.Array, data: jax.Array) -> Any:
        params, state = carry
        key_rows, key_loss = jax.random.split(key)
        rows = data[jax.random.randint(key_rows, (problem.batch,), 0, size)]
        scale = size / problem.batch
        value, gradient = jax.value_and_grad(lambda params: scale * loss(params, key_loss, rows))(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value / size

    @jax.jit
    def scanned_chunk(carry: Any, keys: jax.Array, data: jax.Array) -> Any:
        return jax.lax.scan(lambda carry, key: update(carry, key, data), carry, keys)

    step = jax.jit(update)

    def chunk_of_steps(carry: Any, keys: jax.Array, data: jax.Array) -> Any:
        values = []
        for key in keys:
            carry, value = step(carry, key, data)
            values.append(value)
        return carry, jnp.stack(values)

    chunk = scanned_chunk if scanned else chunk_of_steps
    init = hk.without_apply_rng(hk.transform(problem.network)).init

    def fit(seed: int, num_steps: int) -> tuple[float, float]:
        params = init(jax.random.key(seed), jnp.zeros((1, *problem.event_shape)), jnp.ones((1,), int))
        carry, losses = (params, optimizer.init(params)), []
        marks = []
        for start in range(0, num_steps, CHUNK):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(seed + 1), start), CHUNK)
            carry, values = chunk(carry, keys, data)
            losses.append(np.asarray(values))
            marks.append(time.perf_counter())
        return (marks[-1] - marks[0]) / (num_steps - CHUNK), float(losses[-1].mean())

    return fit


def fit_step_ratios(problem: Problem, seed: int, rounds: int, num_steps: int) -> list[dict[str, Any]]:
    """Seconds per step of ``fit`` over those of the loop by hand, alternating calls."""
    name, limit = LIMITS[problem.name]
    data = problem.data(seed)
    check_same_loss(problem, data, seed)
    is_scanned = problem.name == "mlp"
    loop = written_fit(problem, data, scanned=is_scanned)
    loop(seed, 2 * CHUNK)  # compile
    fits: list[FitTime] = []

    def ours(seed: int, num_steps: int) -> tuple[float, float]:
        fits.append(time_fit(problem, data, seed, num_steps))
        return fits[-1].seconds_per_step, fits[-1].last_loss

    # The loop twice: against itself it is the control.
    runs = {"ours": ours, "loop": loop, "control": loop}
    start = time.perf_counter()
    times: dict[str, list[float]] = {who: [] for who in runs}
    # For the record only: over seeds the last losses spread by more than any sensible tolerance. That the losses are
    # the same function is checked above, on the same draws.
    last: dict[str, list[float]] = {who: [] for who in runs}
    for index in range(rounds):
        for who in runs if index % 2 == 0 else reversed(runs):
            seconds, loss = runs[who](seed + index, num_steps)
            times[who].append(seconds)
            last[who].append(loss)
    elapsed = time.perf_counter() - start

    def ratios(who: str, other: str) -> list[float]:
        return [mine / theirs for mine, theirs in zip(times[who], times[other], strict=True)]

    return [
        record(
            name,
            statistics.median(ratios("ours", "loop")),
            "ratio",
            baseline=statistics.median(times["loop"]),
            baseline_name=f"hand-written jax/optax, {'scanned' if is_scanned else 'step by step'}, seconds a step",
            ratio=statistics.median(ratios("ours", "loop")),
            limit=limit,
            seconds=elapsed,
            ours_seconds_per_step=statistics.median(times["ours"]),
            ours_seconds_to_first_report=statistics.median(fit.seconds_to_first_report for fit in fits),
            control_ratio_baseline_against_itself=statistics.median(ratios("control", "loop")),
            ratios=ratios("ours", "loop"),
            last_losses=last,
            batch=problem.batch,
            rows=len(data),
            steps_timed_ours=fits[-1].steps_timed,
            steps_timed=num_steps - CHUNK,
            rounds=rounds,
            T=problem.num_steps,
        )
    ]


def run(seed: int, rounds: int) -> list[dict[str, Any]]:
    return [
        *fit_step_ratios(Problem("mlp"), seed, rounds, num_steps=500),
        *fit_step_ratios(Problem("unet"), seed, max(3, rounds // 2), num_steps=2 * CHUNK),
    ]
