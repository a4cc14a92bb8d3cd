"""Engines against answers known by other means: a closed form, a grid in the plane, a conjugate pair.

    python benchmarks/posterior_checks.py --rows evidence spectrum nonlinear density

- evidence: one Gaussian as prior. The T-step model is then linear, its evidence known for any T; the estimate must be
  within three standard errors, and those small.
- spectrum: the same in 784 coordinates whose variances are a power law, by TemperedSMC as it comes: its guidance is
  made of the model.
- nonlinear: a ring, counts and heavy tails in the plane (``grid_problems``), the posterior integrated on a grid.
- density: x ~ N(0, 1) by a diffusion, y = 3 ~ N(x, 1): mean 3/2 and variance 1/2. A prior whose log density is taken
  for zero while its gradient is a score gives 3.16 and 1.11 under NUTS.
"""

import argparse
import time
from typing import Any

import grid_problems
import jax
import jax.numpy as jnp
import mixture_problems
import numpy as np
import numpyro
import numpyro.distributions as dist
from gaussian_chain import chain_moments, log_evidence
from numpyro.diagnostics import effective_sample_size
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS
from records import merge, parser, print_table, record, write

import numpyro_diffusion as nd

# Noise-to-signal ratios: from below the likelihoods' finest scale, 0.3, to 15 times the data's reach of 20.
SIGMA_MIN, SIGMA_MAX = 0.1, 300.0


def evidence_rows(
    seeds: list[int], num_steps: int, num_islands: int = 64, num_particles: int = 2048
) -> list[dict[str, Any]]:
    """TwistedSMC's evidence under a single Gaussian prior against the closed form of the same T steps."""
    errors, standard_errors = [], []
    start = time.perf_counter()
    for seed in seeds:
        rng = np.random.default_rng([seed, 1])
        loc, scale = rng.standard_normal(4), rng.uniform(0.5, 2.0)
        matrix, sigma = rng.standard_normal((2, 4)), rng.uniform(0.3, 1.0)
        y = matrix @ (loc + scale * rng.standard_normal(4)) + sigma * rng.standard_normal(2)
        kernel = nd.GaussianKernel(
            nd.schedules.log_snr(num_steps, SIGMA_MIN, SIGMA_MAX), parameterization="x0", variance="denoiser"
        )
        prior = nd.Diffusion(kernel, nd.analytic.gaussian_mixture(kernel, loc[None], scale, np.ones(1)))
        smc = nd.infer.TwistedSMC(
            mixture_problems.linear_model(prior, matrix, sigma),
            num_particles=num_particles,
            num_islands=num_islands,
            twist="gaussian",
            progress_bar=False,
        )
        smc.run(jax.random.key(seed), jnp.asarray(y, float))
        exact = log_evidence(*chain_moments(kernel.schedule, loc, scale), matrix, sigma, y)
        errors.append(float(smc.log_evidence) - exact)
        standard_errors.append(float(smc.log_evidence_error))
        print(f"T = {num_steps} problem {seed:4} exact {exact:.4f} error {errors[-1]:.4f} +- {standard_errors[-1]:.4f}")
    ratios = np.abs(errors) / np.asarray(standard_errors)
    settings = {"seeds": seeds, "T": num_steps, "particles": num_particles, "islands": num_islands, "errors": errors}
    return [
        record(
            f"gaussian_evidence_error_T{num_steps}",
            float(ratios.max()),
            "s.e., largest",
            limit="<= 3",
            seconds=time.perf_counter() - start,
            **settings,
        ),
        record(f"gaussian_evidence_se_T{num_steps}", max(standard_errors), "nats, largest", limit="<= 0.005"),
    ]


def spectrum_denoiser(params: Any, x_t: Any, t: Any, context: Any) -> tuple[jax.Array, jax.Array]:
    """The exact denoiser of N(0, diag(variances)), and its variance."""
    power, noise = (params[name][t][..., None] for name in ("alpha_bar", "noise_variance"))
    total = power * params["variances"] + noise
    return jnp.sqrt(power) * params["variances"] / total * x_t, params["variances"] * noise / total


def spectrum_rows(
    seeds: list[int], dimension: int = 784, num_steps: int = 30, num_islands: int = 8, num_particles: int = 256
) -> list[dict[str, Any]]:
    """TemperedSMC's evidence under N(0, a power law of variances), seen whole with noise 1: the T-step closed form."""
    errors, standard_errors, temperatures = [], [], []
    start = time.perf_counter()
    sigma, variances = 1.0, np.arange(1, dimension + 1.0) ** -1.2
    variances *= dimension / variances.sum()
    kernel = nd.GaussianKernel(
        nd.schedules.log_snr(num_steps, SIGMA_MIN, SIGMA_MAX), parameterization="x0", variance="denoiser"
    )
    params = {name: jnp.asarray(getattr(kernel.schedule, name), float) for name in ("alpha_bar", "noise_variance")}
    params["variances"] = jnp.asarray(variances, float)
    prior = nd.Diffusion(kernel, nd.Transition(spectrum_denoiser, params, (dimension,)))

    def model(y: jax.Array) -> None:
        numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), sigma).to_event(1), obs=y)

    mean, variance = chain_moments(kernel.schedule, np.zeros(dimension), np.sqrt(variances))
    for seed in seeds:
        rng = np.random.default_rng([seed, 2])
        y = np.sqrt(variances) * rng.standard_normal(dimension) + sigma * rng.standard_normal(dimension)
        total = variance + sigma**2
        exact = -0.5 * float(((y - mean) ** 2 / total + np.log(2 * np.pi * total)).sum())
        smc = nd.infer.TemperedSMC(model, num_particles=num_particles, num_islands=num_islands, progress_bar=False)
        result = smc.run(jax.random.key(seed), jnp.asarray(y, float))
        errors.append(result.log_evidence - exact)
        standard_errors.append(result.log_evidence_error)
        temperatures.append(float(result.num_temperatures.mean()))
        print(
            f"spectrum {dimension} problem {seed:4} exact {exact:.2f} error {errors[-1]:.3f} +- "
            f"{standard_errors[-1]:.3f}, {temperatures[-1]:.1f} temperatures, {smc.num_gradients:.0f} gradients, "
            f"acceptance {result.last_accept_prob:.2f}",
            flush=True,
        )
    settings = {"seeds": seeds, "T": num_steps, "particles": num_particles, "islands": num_islands}
    ratios = np.abs(errors) / np.asarray(standard_errors)
    return [
        record(
            f"gaussian_{dimension}_log_evidence_abs_error",
            float(np.abs(errors).max()),
            "nats, largest",
            limit="<= 0.1",
            seconds=time.perf_counter() - start,
            errors=errors,
            standard_errors=standard_errors,
            temperatures=temperatures,
            **settings,
        ),
        record(f"gaussian_{dimension}_log_evidence_in_se", float(ratios.max()), "s.e., largest", limit="<= 3"),
    ]


def nonlinear_rows(name: str, seeds: list[int], count: int = 2000, num_particles: int = 4096) -> list[dict[str, Any]]:
    """TwistedSMC with the tempered twist on one nonlinear likelihood."""
    ratios, errors, floors = [], [], []
    start = time.perf_counter()
    for seed in seeds:
        problem = grid_problems.grid_problem(seed, name)
        prior = mixture_problems.prior(problem.base, 100, SIGMA_MIN, SIGMA_MAX)
        smc = nd.infer.TwistedSMC(
            problem.model(prior), num_particles=num_particles, num_islands=1, twist="tempered", progress_bar=False
        )
        smc.run(jax.random.key(seed), jnp.asarray(problem.y))
        x = smc.get_samples(jax.random.key(seed + 1), num_samples=count)["x"]
        exact = problem.posterior
        floors.append(mixture_problems.floor(exact.draws, count, seed=seed))
        ratios.append(mixture_problems.distance_to_exact(exact.draws, x, seed=seed) / floors[-1])
        errors.append(float(smc.log_evidence) - exact.log_evidence)
        print(
            f"{name:10} problem {seed:4} distance over floor {ratios[-1]:.2f} floor {floors[-1]:.3f} evidence "
            f"{errors[-1]:.3f} min ESS {smc.min_ess:.0f}",
            flush=True,
        )
    settings = {"seeds": seeds, "T": 100, "particles": num_particles, "draws": count}
    return [
        record(
            f"nonlinear_{name}_sw_over_floor",
            float(np.mean(ratios)),
            "floors",
            baseline=float(np.mean(floors)),
            baseline_name="exact draws against exact draws, sliced W1",
            limit="<= 2.5",
            seconds=time.perf_counter() - start,
            ratios=ratios,
            **settings,
        ),
        record(
            f"nonlinear_{name}_log_evidence_error",
            float(np.mean(np.abs(errors))),
            "nats",
            limit="<= 0.2",
            errors=errors,
            **settings,
        ),
    ]


def density_rows(seed: int, count: int = 5000, num_chains: int = 4) -> list[dict[str, Any]]:
    """The conjugate pair by NUTS on the noises and by DiffusionGibbs."""
    kernel = nd.GaussianKernel(nd.schedules.log_snr(20), parameterization="x0", variance="denoiser")
    prior = nd.Diffusion(kernel, nd.analytic.gaussian_mixture(kernel, jnp.zeros((1, 1)), 1.0, jnp.ones(1)))

    def model(y: Any) -> None:
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    kernels = {
        "nuts": NUTS(reparam(model, config={"x": nd.infer.DiffusionReparam()})),
        "gibbs": nd.infer.DiffusionGibbs(model, num_particles=16),
    }
    records = []
    for name, engine in kernels.items():
        start = time.perf_counter()
        mcmc = MCMC(
            engine,
            num_warmup=500,
            num_samples=count,
            num_chains=num_chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(jax.random.key(seed), jnp.array([3.0]))
        x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"], np.float64)[..., 0]
        effective = float(effective_sample_size(x))
        settings = {"mean": x.mean(), "variance": x.var(), "effective": effective, "seed": seed, "T": 20}
        seconds = time.perf_counter() - start
        for moment, value, exact in (("mean", x.mean(), 1.5), ("variance", x.var(), 0.5)):
            records.append(
                record(
                    f"{name}_density_is_honest_{moment}",
                    float(abs(value - exact)),
                    "error",
                    baseline=exact,
                    baseline_name="exact",
                    limit="<= 0.03",
                    seconds=seconds,
                    **settings,
                )
            )
    return records


ROWS = ["evidence", "spectrum", "nonlinear", "density"]


def main(arguments: argparse.Namespace) -> None:
    records: list[dict[str, Any]] = []
    if "evidence" in arguments.rows:
        records += evidence_rows(arguments.seeds, 20) + evidence_rows(arguments.seeds, 50)
    if "spectrum" in arguments.rows:
        records += spectrum_rows(arguments.seeds)
    if "nonlinear" in arguments.rows:
        records += [row for name in grid_problems.NAMES for row in nonlinear_rows(name, arguments.seeds)]
    if "density" in arguments.rows:
        records += density_rows(arguments.seeds[0])
    print_table(records)
    write(merge(records, arguments.json), arguments.json)


if __name__ == "__main__":
    options = parser(__doc__, "posterior_checks.json")
    options.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS)
    options.add_argument("--seeds", nargs="+", type=int, default=list(range(100, 104)), help="which problems")
    main(options.parse_args())
