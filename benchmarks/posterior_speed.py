"""What a particle costs: TwistedSMC against unconditional sampling of the same prior, the network of the demo.

The prior is that of examples/swiss_roll.py after a short training, the observation that of examples/prior_in_a_model.py
with its noise known. Both are run compiled, alternating; ours is the whole ``run``, checks and evidence included.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from records import alternate, parser, print_table, record, write

import numpyro_diffusion as nd

NUM_STEPS, PARTICLES = 100, 8192


def trained_prior(seed: int) -> nd.Diffusion:
    """The demo's swiss roll prior, trained for a moment: time does not depend on the weights."""
    kernel = nd.GaussianKernel(nd.schedules.log_snr(NUM_STEPS, 0.02, 20.0))
    network = nd.networks.MLP(NUM_STEPS, 2, width=128, depth=3, num_frequencies=3)

    def model(x: jax.Array, size: int) -> None:
        transition = nd.haiku_module("net", network, kernel=kernel, event_shape=(2,))
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", nd.Diffusion(kernel, transition), obs=x)

    data = nd.datasets.swiss_roll(jax.random.key(seed), 4096)
    fit = nd.fit(
        model,
        data,
        optimizer=optax.adam(1e-3),
        num_steps=500,
        batch_size=256,
        rng_key=jax.random.key(seed),
        progress_bar=False,
    )
    return fit.distribution("x")


def smc_time_ratio(seed: int, rounds: int, twist: str) -> dict[str, Any]:
    prior = trained_prior(seed)

    def model(y: Any = None) -> None:
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[0], 0.1), obs=y)

    y = jnp.asarray(0.5)
    smc = nd.infer.TwistedSMC(model, PARTICLES, 1, twist, progress_bar=False)
    key = jax.random.key(seed + 1)
    sample = jax.jit(lambda prior, key: prior.sample(key, (PARTICLES,)))

    def ours() -> Any:
        smc.run(key, y)
        return smc.log_evidence

    def theirs() -> Any:
        return sample(prior, key)

    jax.block_until_ready((ours(), theirs()))
    start = time.perf_counter()
    seconds, baseline, ratio = alternate(ours, theirs, rounds)
    control = alternate(theirs, theirs, rounds)[2]
    return record(
        f"smc_time_ratio_{twist}",
        ratio,
        "ratio",
        baseline=baseline / PARTICLES,
        baseline_name="unconditional sampling, seconds a draw",
        ratio=ratio,
        limit="<= 4",
        seconds=time.perf_counter() - start,
        ours_seconds_per_particle=seconds / PARTICLES,
        control_ratio_baseline_against_itself=control,
        particles=PARTICLES,
        rounds=rounds,
        T=NUM_STEPS,
        network_calls_per_particle_over_T=smc.num_network_calls / NUM_STEPS,
    )


def main(arguments: argparse.Namespace) -> None:
    records = [smc_time_ratio(arguments.seed, arguments.rounds, twist) for twist in ("tempered", "gaussian", "none")]
    print_table(records)
    write(records, arguments.json)


if __name__ == "__main__":
    options = parser(__doc__, "posterior_speed.json")
    options.add_argument("--rounds", type=int, default=15, help="alternating runs of each")
    main(options.parse_args())
