"""What the distributions cost over hand-written JAX, and whether compile time grows with T.

The hand-written versions are what one would write without the package for the same loss, the same network and
the same random draws: plain jnp formulas of the Gaussian bound with v-prediction and learned variance, an optax
loop, and a scan that samples.
"""

import argparse
import math
import statistics
import time
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpyro
import optax
from numpyro.infer import SVI, Trace_ELBO
from records import alternate, parser, print_table, record, write

import numpyro_diffusion as nd

DIM, BATCH, NUM_STEPS, SAMPLES = 2, 512, 100, 10_000


def network_for(num_steps: int) -> nd.networks.MLP:
    return nd.networks.MLP(num_steps, 2, width=128, depth=3, num_frequencies=3)


def coefficients(schedule: nd.Schedule) -> dict[str, jax.Array]:
    """Everything the Gaussian chain needs at step t = index + 1, as float32 vectors."""
    beta, alpha_bar, noise = (
        jnp.asarray(x, jnp.float32) for x in (schedule.beta, schedule.alpha_bar, schedule.noise_variance)
    )
    gain = jnp.sqrt(alpha_bar[:-1]) * beta[1:] / noise[1:]
    kept = jnp.sqrt(1 - beta[1:]) * noise[:-1] / noise[1:]
    bridge = beta[1:] * noise[:-1] / noise[1:]
    upper = bridge + gain**2 * noise[1:]
    lower = bridge.at[0].set(upper[0] * noise[1] / noise[2])
    return {
        "signal": jnp.sqrt(alpha_bar[1:]),
        "sd": jnp.sqrt(noise[1:]),
        "gain": gain,
        "kept": kept,
        "log_bridge": jnp.log(bridge.at[0].set(1.0)),
        "log_lower": jnp.log(lower),
        "log_upper": jnp.log(upper),
    }


def hand_written_loss(apply: Any, c: dict[str, jax.Array], num_steps: int) -> Any:
    def loss(params: Any, key: jax.Array, x_0: jax.Array) -> jax.Array:
        key_step, key_noise = jax.random.split(key)
        position = (jnp.arange(len(x_0)) / len(x_0) + jax.random.uniform(key_step)) % 1.0
        index = jnp.minimum((position * num_steps).astype(int), num_steps - 1)
        event_axes = tuple(range(1, x_0.ndim))
        at = {name: jnp.expand_dims(values[index], event_axes) for name, values in c.items()}
        x_t = at["signal"] * x_0 + at["sd"] * jax.random.normal(key_noise, x_0.shape)
        v, raw = apply(params, x_t, index + 1)
        x_0_hat = at["signal"] * x_t - at["sd"] * v
        log_variance = at["log_lower"] + jax.nn.sigmoid(raw) * (at["log_upper"] - at["log_lower"])
        scaled_error = (at["gain"] * (x_0 - x_0_hat)) ** 2 * jnp.exp(-log_variance)
        log_ratio = at["log_bridge"] - log_variance
        kl = 0.5 * (jnp.expm1(log_ratio) - log_ratio + scaled_error)
        # At t = 1 the bridge is the point x^0: its mean has no weight on x^1.
        first = 0.5 * (scaled_error + log_variance + math.log(2 * math.pi))
        steps = jnp.where(jnp.expand_dims(index, event_axes) == 0, first, kl).sum(event_axes)
        end_log_ratio = 2 * jnp.log(c["sd"][-1])
        end = 0.5 * (jnp.expm1(end_log_ratio) - end_log_ratio + (c["signal"][-1] * x_0) ** 2).sum(event_axes)
        return (end + num_steps * steps).sum()

    return loss


def transformed(num_steps: int) -> Any:
    network = network_for(num_steps)
    return hk.without_apply_rng(hk.transform(lambda x, t: network(x, t)))


def build_model(num_steps: int) -> Any:
    kernel = nd.GaussianKernel(nd.schedules.log_snr(num_steps, 0.02, 20.0))
    network = network_for(num_steps)

    def model(x: jax.Array) -> None:
        transition = nd.haiku_module("net", network, kernel=kernel, event_shape=(DIM,))
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", nd.Diffusion(kernel, transition), obs=x)

    return kernel, model


def svi_step_ratio(seed: int, rounds: int, steps: int = 200) -> dict[str, Any]:
    """SVI steps against an optax loop, batches handed in, both scanned and compiled once."""
    kernel, model = build_model(NUM_STEPS)
    batches = nd.datasets.swiss_roll(jax.random.key(seed), steps * BATCH).reshape(steps, BATCH, DIM)
    svi = SVI(model, lambda x: None, optax.adam(1e-3), Trace_ELBO())
    state = svi.init(jax.random.key(seed + 1), batches[0])
    ours = jax.jit(lambda state, batches: jax.lax.scan(svi.update, state, batches))

    net = transformed(NUM_STEPS)
    apply = net.apply
    params = svi.get_params(state)["net$params"]
    loss = hand_written_loss(apply, coefficients(kernel.schedule), NUM_STEPS)
    optimizer = optax.adam(1e-3)

    def update(carry: Any, x: jax.Array) -> Any:
        params, state, key = carry
        key, subkey = jax.random.split(key)
        value, gradient = jax.value_and_grad(loss)(params, subkey, x)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state, key), value

    theirs = jax.jit(lambda carry, batches: jax.lax.scan(update, carry, batches))
    carry = (params, optimizer.init(params), jax.random.key(seed + 2))

    # The same loss: averaged over keys, on the same parameters and data, the two agree.
    keys = jax.random.split(jax.random.key(seed + 3), 200)
    mine = jax.jit(
        jax.vmap(lambda key: Trace_ELBO().loss(key, svi.get_params(state), model, lambda x: None, batches[0]))
    )(keys)
    other = jax.jit(jax.vmap(lambda key: loss(params, key, batches[0])))(keys)
    error = math.hypot(float(mine.std()), float(other.std())) / math.sqrt(len(keys))
    if not abs(float(mine.mean() - other.mean())) < 5 * error:
        raise RuntimeError(f"the two losses differ: {mine.mean()} and {other.mean()}, standard error {error}")

    jax.block_until_ready((ours(state, batches), theirs(carry, batches)))
    start = time.perf_counter()
    seconds, baseline, ratio = alternate(lambda: ours(state, batches)[1], lambda: theirs(carry, batches)[1], rounds)
    control = alternate(lambda: theirs(carry, batches)[1], lambda: theirs(carry, batches)[1], rounds)[2]
    return record(
        "svi_step_ratio",
        ratio,
        "ratio",
        baseline=baseline / steps,
        baseline_name="hand-written jax/optax, seconds a step",
        ratio=ratio,
        limit="<= 1.05",
        seconds=time.perf_counter() - start,
        ours_seconds_per_step=seconds / steps,
        control_ratio_baseline_against_itself=control,
        batch=BATCH,
        rounds=rounds,
        T=NUM_STEPS,
    )


def sample_ratio(seed: int, rounds: int) -> dict[str, Any]:
    """Diffusion.sample against a scan over coefficients."""
    kernel = nd.GaussianKernel(nd.schedules.log_snr(NUM_STEPS, 0.02, 20.0))
    function = nd.modules.HaikuFunction(network_for(NUM_STEPS))
    net = transformed(NUM_STEPS)
    params = net.init(jax.random.key(seed), jnp.zeros((1, DIM)), jnp.ones((1,), int))
    params = jax.tree.map(lambda p: p + 0.02, params)  # not all zero in the last layer
    prior = nd.Diffusion(kernel, nd.Transition(function, params, (DIM,)))
    ours = jax.jit(lambda prior, key: prior.sample(key, (SAMPLES,)))
    c = coefficients(kernel.schedule)

    def draw(params: Any, key: jax.Array) -> jax.Array:
        key, subkey = jax.random.split(key)
        start = jax.random.normal(subkey, (SAMPLES, DIM))

        def step(carry: Any, xs: Any) -> Any:
            x_t, key = carry
            at, t = xs
            key, subkey = jax.random.split(key)
            v, raw = net.apply(params, x_t, t)
            mean = at["gain"] * (at["signal"] * x_t - at["sd"] * v) + at["kept"] * x_t
            scale = jnp.exp(0.5 * (at["log_lower"] + jax.nn.sigmoid(raw) * (at["log_upper"] - at["log_lower"])))
            return (mean + scale * jax.random.normal(subkey, x_t.shape), key), None

        return jax.lax.scan(step, (start, key), (c, jnp.arange(1, NUM_STEPS + 1)), reverse=True)[0][0]

    theirs = jax.jit(draw)
    key = jax.random.key(seed + 1)
    mine, other = ours(prior, key), theirs(params, key)
    if not jnp.allclose(mine.std(0), other.std(0), rtol=0.1):
        raise RuntimeError(f"the two samplers differ: {mine.std(0)} and {other.std(0)}")
    start = time.perf_counter()
    seconds, baseline, ratio = alternate(lambda: ours(prior, key), lambda: theirs(params, key), rounds)
    control = alternate(lambda: theirs(params, key), lambda: theirs(params, key), rounds)[2]
    return record(
        "sample_ratio",
        ratio,
        "ratio",
        baseline=baseline,
        baseline_name="hand-written scan, seconds",
        ratio=ratio,
        limit="<= 1.05",
        seconds=time.perf_counter() - start,
        ours_seconds=seconds,
        control_ratio_baseline_against_itself=control,
        samples=SAMPLES,
        rounds=rounds,
        T=NUM_STEPS,
    )


def compile_seconds(num_steps: int, seed: int) -> tuple[float, float]:
    """Seconds to trace and compile sample and one SVI step, made anew."""
    kernel, model = build_model(num_steps)
    svi = SVI(model, lambda x: None, optax.adam(1e-3), Trace_ELBO())
    x = nd.datasets.swiss_roll(jax.random.key(seed), BATCH)
    state = svi.init(jax.random.key(seed), x)
    prior = nd.Diffusion(
        kernel,
        nd.Transition(nd.modules.HaikuFunction(network_for(num_steps)), svi.get_params(state)["net$params"], (DIM,)),
    )
    jax.clear_caches()
    start = time.perf_counter()
    jax.jit(lambda prior, key: prior.sample(key, (SAMPLES,))).lower(prior, jax.random.key(0)).compile()
    middle = time.perf_counter()
    jax.jit(svi.update).lower(state, x).compile()
    return middle - start, time.perf_counter() - middle


def compile_ratios(seed: int, rounds: int) -> list[dict[str, Any]]:
    compile_seconds(10, seed)  # first use of everything
    start = time.perf_counter()
    times = {num_steps: [] for num_steps in (10, 1000)}  # type: dict[int, list[tuple[float, float]]]
    for _ in range(rounds):
        for num_steps, collected in times.items():
            collected.append(compile_seconds(num_steps, seed))
    seconds = time.perf_counter() - start
    return [
        record(
            f"compile_ratio_{name}",
            statistics.median(long[which] / short[which] for long, short in zip(times[1000], times[10], strict=True)),
            "ratio",
            baseline=statistics.median(short[which] for short in times[10]),
            baseline_name="seconds at T = 10",
            limit="<= 1.2",
            seconds=seconds,
            rounds=rounds,
        )
        for which, name in enumerate(("sample", "svi_step"))
    ]


def main(arguments: argparse.Namespace) -> None:
    records = [
        svi_step_ratio(arguments.seed, arguments.rounds),
        sample_ratio(arguments.seed, arguments.rounds),
        *compile_ratios(arguments.seed, max(3, arguments.rounds // 4)),
    ]
    print_table(records)
    write(records, arguments.json)


if __name__ == "__main__":
    options = parser(__doc__, "overhead.json")
    options.add_argument("--rounds", type=int, default=31, help="alternating runs of each")
    main(options.parse_args())
