"""``nd.fit`` against the loop that one would write by hand in JAX and optax: seconds per step, compiling left out.

Same loss, scaled the same, same network, same optimiser; batches by indices drawn with replacement on the device;
scanned in chunks of 100 steps, after each of which the losses go to the host. Before timing, both losses and their
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
from speed_problems import LEARNING_RATE, Problem, time_fit

CHUNK = 100
LIMITS = {"mlp": ("fit_step_ratio", "<= 1.05"), "unet": ("fit_step_ratio_unet", "<= 1.03")}


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


def written_fit(problem: Problem, data: jax.Array) -> Callable[[int, int], tuple[float, float]]:
    """A function of a seed and a number of steps that trains by hand: seconds per step, mean of the last losses.

    Compiled at the first call; a call runs one chunk more than it times, as ``fit`` does.
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
    def chunk(carry: Any, keys: jax.Array, data: jax.Array) -> Any:
        return jax.lax.scan(lambda carry, key: update(carry, key, data), carry, keys)

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


def fit_step_ratio(problem: Problem, seed: int, rounds: int, num_steps: int) -> dict[str, Any]:
    """Seconds per step of ``fit`` over those of the hand-written loop, alternating calls."""
    name, limit = LIMITS[problem.name]
    data = problem.data(seed)
    check_same_loss(problem, data, seed)
    by_hand = written_fit(problem, data)
    by_hand(seed, 2 * CHUNK)  # compile
    start = time.perf_counter()
    ours, theirs, controls, last = [], [], [], (math.nan, math.nan)
    for index in range(rounds):
        if index % 2 == 0:
            mine, other = time_fit(problem, data, seed + index, num_steps), by_hand(seed + index, num_steps)
        else:
            other, mine = by_hand(seed + index, num_steps), time_fit(problem, data, seed + index, num_steps)
        ours.append(mine)
        theirs.append(other[0])
        controls.append(by_hand(seed + index, num_steps)[0] / other[0])
        last = (mine.last_loss, other[1])
    if not abs(last[0] - last[1]) < 0.5 * max(1.0, abs(last[1])):
        raise RuntimeError(f"fit and the hand-written loop reach different losses: {last[0]} and {last[1]} nats")
    ratio = statistics.median(mine.seconds_per_step / other for mine, other in zip(ours, theirs, strict=True))
    return record(
        name,
        ratio,
        "ratio",
        baseline=statistics.median(theirs),
        baseline_name="hand-written jax/optax, seconds a step",
        ratio=ratio,
        limit=limit,
        seconds=time.perf_counter() - start,
        ours_seconds_per_step=statistics.median(mine.seconds_per_step for mine in ours),
        ours_seconds_to_first_report=statistics.median(mine.seconds_to_first_report for mine in ours),
        control_ratio_baseline_against_itself=statistics.median(controls),
        ratios=[mine.seconds_per_step / other for mine, other in zip(ours, theirs, strict=True)],
        last_losses_ours_theirs=last,
        batch=problem.batch,
        rows=len(data),
        steps_timed=num_steps - CHUNK,
        rounds=rounds,
        T=problem.num_steps,
    )


def run(seed: int, rounds: int) -> list[dict[str, Any]]:
    return [
        fit_step_ratio(Problem("mlp"), seed, rounds, num_steps=500),
        fit_step_ratio(Problem("unet"), seed, max(3, rounds // 2), num_steps=200),
    ]
