"""Posteriors of 8x8 digits, 64 coordinates and a learned network: effective draws per 1000 network calls.

    python benchmarks/posterior_scale.py
    python benchmarks/posterior_scale.py --problems noise1 --charts covariance --seed 3

The prior is that of ``image_posteriors.py``. A held-out digit is seen whole with noise as large as the signal
(``noise1``), in its upper half with noise .5 (``half``), by the means of 2x2 blocks with noise .1 (``blocks``), or
whole with a noise that is not known (``unknown_noise``). Three more are not Normal, or not linear: Poisson counts of
the blurred digit (``counts``), Student's t noise of two degrees of freedom (``outliers``), and the magnitudes of the
digit's Fourier transform, without their phases (``magnitudes``).

DiffusionHMC runs in the noises of the prior's chain, in those of the chain guided by the network's error covariance,
made by hand, and in those that it makes of the model (``auto``).
A gradient of a chain of T steps counts as 3 T network calls. The effective size is the smallest of the mean pixel and
of 20 random projections, over 4 chains; R-hat the largest of the same. Of an unknown noise it is that of log sigma,
whose draws are also held against those of a longer run with another key.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import image_posteriors as digits
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import records
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import CovarianceGuidance, error_covariance

NUM_CHAINS, NUM_PROJECTIONS = 4, 20


def block_means() -> np.ndarray:
    """The means of the 16 blocks of 2x2 pixels, as rows."""
    blocks = np.arange(64).reshape(4, 2, 4, 2).transpose(0, 2, 1, 3).reshape(16, 4)
    return np.eye(64)[blocks].mean(1)


def blur() -> np.ndarray:
    """A Gaussian blur of a standard deviation of one pixel, cut off at the edges, as rows."""
    line = np.exp(-0.5 * (np.arange(8)[:, None] - np.arange(8)) ** 2)
    line /= line.sum(1, keepdims=True)
    return np.kron(line, line)


class Linear(NamedTuple):
    """Seen is ``matrix @ x`` with Normal noise."""

    matrix: np.ndarray
    noise: float

    def seen(self, x: jax.Array, noise: Any) -> dist.Distribution:
        return dist.Normal(jnp.asarray(self.matrix, jnp.float32) @ x, noise).to_event(1)


class Curved(NamedTuple):
    """Seen is a number with any distribution."""

    distribution: Callable[[jax.Array], dist.Distribution]
    noise: float = 1.0

    def seen(self, x: jax.Array, noise: Any) -> dist.Distribution:
        return self.distribution(x).to_event(1)


BLUR = blur()


def counts(x: jax.Array) -> dist.Distribution:
    return dist.Poisson(3.0 * jnp.exp(0.7 * (jnp.asarray(BLUR, jnp.float32) @ x)))


def magnitudes(x: jax.Array) -> dist.Distribution:
    waves = jnp.fft.rfft2(x.reshape(8, 8)).ravel() / 8
    return dist.Normal(jnp.sqrt(waves.real**2 + waves.imag**2 + 1e-6), 0.2)


PROBLEMS: dict[str, Linear | Curved] = {
    "noise1": Linear(np.eye(64), 1.0),
    "half": Linear(np.eye(64)[:32], 0.5),
    "blocks": Linear(block_means(), 0.1),
    "unknown_noise": Linear(np.eye(64), 1.0),
    "counts": Curved(counts),
    "outliers": Curved(lambda x: dist.StudentT(2.0, x, 0.5)),
    "magnitudes": Curved(magnitudes),
}
REQUIRED = ("noise1", "half", "blocks")  # whose figure is to be reached
LONGER = 4  # times as many draws in the run that others are held against


def the_prior(seed: int, path: Path | None) -> tuple[nd.Diffusion, np.ndarray]:
    """The prior and the held-out digits; the prior is kept in a file, if there is one."""
    if path is not None and path.exists():
        return nd.load(path), np.load(path.with_suffix(".held_out.npy"))
    prior, held_out = digits.learn(seed)
    if path is not None:
        nd.save(prior, path)
        np.save(path.with_suffix(".held_out.npy"), held_out)
    return prior, np.asarray(held_out)


def run(
    prior: nd.Diffusion, truth: np.ndarray, problem: str, chart: str, seed: int, sizes: tuple, repeat: int = 0
) -> tuple[dict[str, Any], np.ndarray]:
    """Effective draws per 1000 network calls and what goes with them; draws of log sigma, if it is not known."""
    what = PROBLEMS[problem]
    keys = jax.random.split(jax.random.key(seed), 3)
    y = what.seen(jnp.asarray(truth, jnp.float32), what.noise).sample(keys[0])

    def model(y: jax.Array) -> None:
        is_unknown = problem == "unknown_noise"
        sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0)) if is_unknown else what.noise
        x = numpyro.sample("x", prior)
        numpyro.sample("y", what.seen(x, sigma), obs=y)

    guidance: Any = "auto" if chart == "auto" else None
    if chart == "covariance":
        if not isinstance(what, Linear):
            raise SystemExit(f"Expected a linear problem for guidance by hand; got {problem}. Take --charts auto.")
        errors = error_covariance(keys[1], prior.chain, num_draws=4000, rank=48)
        guidance = {"x": CovarianceGuidance(what.matrix, y, what.noise, errors=errors)}
    num_warmup, num_draws = sizes
    kernel = nd.infer.DiffusionHMC(model, guidance=guidance)
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_draws,
        num_chains=NUM_CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    start = time.perf_counter()
    fields = ("~z.x_noise", "accept_prob", "num_steps", "step_size", "log_likelihood")
    mcmc.run(jax.random.fold_in(keys[2], repeat) if repeat else keys[2], y, extra_fields=fields)
    print(kernel.charts, flush=True)
    found = {name: np.asarray(values, float) for name, values in mcmc.get_samples(group_by_chain=True).items()}
    draws, log_sigma = found["x"], np.log(found.get("sigma", np.ones(1)))
    extra = {name: np.asarray(value) for name, value in mcmc.get_extra_fields(group_by_chain=True).items()}
    directions = np.random.default_rng(0).normal(size=(64, NUM_PROJECTIONS)) / 8
    functionals = np.concatenate([draws.mean(-1, keepdims=True), draws @ directions], axis=-1)
    effective = effective_sample_size(functionals)
    calls = 3 * prior.kernel.num_steps * extra["num_steps"].sum()
    of_sigma = {}
    if "sigma" in found:
        of_sigma = {
            "log_sigma_per_1000": 1000 * float(effective_sample_size(log_sigma)) / calls,
            "log_sigma_rhat": float(split_gelman_rubin(log_sigma)),
        }
    result = {
        "per_1000": 1000 * float(effective.min()) / calls,
        "median_per_1000": 1000 * float(np.median(effective)) / calls,
        "rhat": float(split_gelman_rubin(functionals).max()),
        "acceptance": float(extra["accept_prob"].mean()),
        "step_size": float(extra["step_size"][:, -1].mean()),
        "steps": float(extra["num_steps"].mean()),
        "sd_log_weight": float(extra["log_likelihood"].std()),
        "seconds": time.perf_counter() - start,
        **of_sigma,
    }
    return result, log_sigma


def distance(draws: np.ndarray, reference: np.ndarray) -> float:
    """The Wasserstein distance of two samples of a number, in standard deviations of the second."""
    levels = (np.arange(1000) + 0.5) / 1000
    apart = np.abs(np.quantile(draws, levels) - np.quantile(reference, levels)).mean()
    return float(apart / reference.std())


def main() -> None:
    parser = records.parser(__doc__, "posterior_scale.json")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), help="which")
    parser.add_argument("--charts", nargs="+", choices=("prior", "covariance", "auto"), default=["prior", "auto"])
    parser.add_argument("--image", type=int, default=0, help="number of the held-out digit")
    parser.add_argument("--draws", type=int, nargs=2, default=(300, 500), help="of warm-up, and after, for each chain")
    parser.add_argument("--prior", type=Path, help="a file for the prior, which is trained if it is not there")
    arguments = parser.parse_args()
    prior, held_out = the_prior(0, arguments.prior)
    found = []
    for problem in arguments.problems:
        for chart in arguments.charts:
            problem_of = (prior, held_out[arguments.image], problem, chart, arguments.seed)
            result, log_sigma = run(*problem_of, tuple(arguments.draws))
            print(problem, chart, {name: round(value, 4) for name, value in result.items()}, flush=True)
            name = f"digits_{problem}" + {"covariance": "_by_hand", "auto": "", "prior": "_prior"}[chart]
            is_ours = chart == "auto"
            settings = {**result, "seed": arguments.seed, "image": arguments.image, "draws": list(arguments.draws)}
            if problem != "unknown_noise":
                is_required = is_ours and problem in REQUIRED
                limit = ">= 2.5" if is_required else ""
                found += [
                    records.record(f"{name}_ess_per_1000", result["per_1000"], "draws", limit=limit, **settings),
                    records.record(f"{name}_rhat", result["rhat"], "", limit="<= 1.03" if is_required else ""),
                ]
            else:
                sizes = (arguments.draws[0], LONGER * arguments.draws[1])
                longer, reference = run(*problem_of, sizes, repeat=1)
                print(problem, chart, "longer", {key: round(value, 4) for key, value in longer.items()}, flush=True)
                value, limit = result["log_sigma_per_1000"], ">= 3" if is_ours else ""
                apart = distance(log_sigma, reference)
                found += [
                    records.record(f"{name}_log_sigma_ess_per_1000", value, "draws", limit=limit, **settings),
                    records.record(
                        f"{name}_w1_over_sd", apart, "sd", limit="<= 0.05" if is_ours else "", longer=longer
                    ),
                ]
            records.write(records.merge(found, arguments.json), arguments.json)
    records.print_table(found)


if __name__ == "__main__":
    main()
