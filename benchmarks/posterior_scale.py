"""Posteriors of pictures under a learned network: effective draws per 1000 network calls.

    python benchmarks/posterior_scale.py
    python benchmarks/posterior_scale.py --problems noise1 --charts covariance --seed 3
    python benchmarks/posterior_scale.py --data mnist --steps 26 --problems noise1 --charts pilot --prior FOLDER/mnist
    python benchmarks/posterior_scale.py --data powerlaw_784 --problems sharp

The prior of 8x8 digits, 64 coordinates, is that of ``image_posteriors.py``; of MNIST and Fashion-MNIST, 784, that of
``image_prior.py``, respaced to ``--steps``, if they are given; of a Gaussian picture, whose posterior is known, that of
``power_law.py``. A held-out picture is seen whole with noise as large as the signal (``noise1``) or .3 (``sharp``), in
its upper half with noise .5 (.3 of 784 pixels; ``half``), by the means of 2x2 blocks (4x4) with noise .1 (``blocks``),
or whole with a noise that is not known (``unknown_noise``). Three more are not Normal, or not linear: Poisson counts of
the blurred picture (``counts``), Student's t noise of two degrees of freedom (``outliers``), and the magnitudes of the
picture's Fourier transform, without their phases (``magnitudes``).

DiffusionHMC runs in the noises of the prior's chain, in those that it makes of the model (``auto``), and in those of
the chain guided by hand: by the network's error covariance (``covariance``), or, above the noise of the data, by a mean
and covariance known beforehand (``pilot``; pixels with Normal noise only).
A gradient of a chain of T steps counts as 3 T network calls. The effective size is the smallest of the mean pixel and
of 20 random projections, over 4 chains; R-hat the largest of the same, and of all pixels apart. Of an unknown noise it
is that of log sigma, whose draws are also held against those of a longer run with another key.
"""

import time
from pathlib import Path
from typing import Any

import image_posteriors as digits
import image_prior as pictures
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import power_law
import records
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC
from scale_problems import NAMES, Linear, problems

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import CovarianceGuidance, error_covariance, pilot_guidance

SIDES = {"powerlaw_64": 8, "powerlaw_784": 28, "powerlaw_4096": 64}
CHARTS = ("prior", "covariance", "pilot", "auto")
NUM_CHAINS, NUM_PROJECTIONS = 4, 20


# The least effective draws per 1000 calls, and the largest R-hat, of "auto".
LIMITS = {
    ("digits", "noise1"): (">= 2.5", "<= 1.03"),
    ("digits", "half"): (">= 2.5", "<= 1.03"),
    ("digits", "blocks"): (">= 2.5", "<= 1.03"),
    ("powerlaw_784", "sharp"): (">= 2.5", "<= 1.03"),
    ("powerlaw_4096", "sharp"): (">= 1.5", "<= 1.03"),
    ("mnist", "half"): (">= 0.5", "<= 1.01"),
    ("mnist", "noise1"): (">= 0.5", "<= 1.03"),
}
LONGER = 4  # times as many draws in the run that others are held against


def the_prior(data: str, path: Path | None, num_steps: int | None) -> tuple[nd.Diffusion, np.ndarray]:
    """The prior with its network's errors, and the held-out pictures; the prior is kept in a file, if there is one."""
    if data in SIDES:
        prior = power_law.power_law(SIDES[data]).prior
        held_out = prior.sample(jax.random.key(0), (20,))
    elif data != "digits":
        if path is None:
            raise SystemExit(f"Expected --prior, a file for the prior of {data}, which takes half an hour to train.")
        prior, held_out, _ = pictures.the_prior(data, path)
    elif path is not None and path.exists():
        prior, held_out = nd.load(path), np.load(path.with_suffix(".held_out.npy"))
    else:
        prior, held_out = digits.learn(0)
        if path is not None:
            nd.save(prior, path)
            np.save(path.with_suffix(".held_out.npy"), held_out)
    return (prior.respaced(num_steps) if num_steps else prior), np.asarray(held_out)


def by_hand(chart: str, prior: nd.Diffusion, what: Any, y: jax.Array, rng_key: jax.Array) -> Any:
    """Guidance of a chart that is not made of the model."""
    if not isinstance(what, Linear):
        raise SystemExit(f"Expected a linear problem for guidance by hand; got {what}. Take --charts auto.")
    shape = prior.event_shape
    if chart == "covariance":
        errors = error_covariance(rng_key, prior.chain, progress_bar=False)
        return CovarianceGuidance(what.matrix.reshape(-1, *shape), y, what.noise, errors=errors)
    if not np.array_equal(what.matrix, np.eye(what.matrix.shape[1])):
        raise SystemExit("Expected a problem that shows all pixels for --charts pilot. Take --charts covariance.")
    errors = error_covariance(rng_key, prior.chain, progress_bar=False)
    return pilot_guidance(prior.chain, y.reshape(shape), what.noise, errors=errors)


def run(
    prior: nd.Diffusion,
    truth: np.ndarray,
    problem: str,
    chart: str,
    seed: int,
    sizes: tuple,
    repeat: int = 0,
    known: power_law.PowerLaw | None = None,
) -> tuple[dict[str, Any], np.ndarray]:
    """Effective draws per 1000 network calls and what goes with them; draws of log sigma, if it is not known."""
    what = problems(round(truth.size**0.5))[problem]
    keys = jax.random.split(jax.random.key(seed), 3)
    y = what.seen(jnp.asarray(truth, jnp.float32).ravel(), what.noise).sample(keys[0])

    def model(y: jax.Array) -> None:
        is_unknown = problem == "unknown_noise"
        sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0)) if is_unknown else what.noise
        x = numpyro.sample("x", prior)
        numpyro.sample("y", what.seen(x.ravel(), sigma), obs=y)

    guidance: Any = {"auto": "auto", "prior": None}.get(chart, "by hand")
    if guidance == "by hand":
        guidance = {"x": by_hand(chart, prior, what, y, keys[1])}
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
    draws, log_sigma = found["x"].reshape(*found["x"].shape[:2], -1), np.log(found.get("sigma", np.ones(1)))
    extra = {name: np.asarray(value) for name, value in mcmc.get_extra_fields(group_by_chain=True).items()}
    size = draws.shape[-1]
    directions = np.random.default_rng(0).normal(size=(size, NUM_PROJECTIONS)) / np.sqrt(size)
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
        "rhat_of_pixels": float(np.nanmax(split_gelman_rubin(draws))),
        "acceptance": float(extra["accept_prob"].mean()),
        "step_size": float(extra["step_size"][:, -1].mean()),
        "steps": float(extra["num_steps"].mean()),
        "calls_of_a_chain": float(calls / NUM_CHAINS),
        "sd_log_weight": float(extra["log_likelihood"].std()),
        "seconds": time.perf_counter() - start,
        **of_sigma,
    }
    if known is not None:
        result |= against_truth(known, draws, np.asarray(y), what.noise)
    return result, log_sigma


def against_truth(known: power_law.PowerLaw, draws: np.ndarray, y: np.ndarray, noise: float) -> dict[str, float]:
    """Draws of a picture that is seen whole: the errors of means, in standard deviations, and of these."""
    shape = known.variances.shape
    mean, scale = known.posterior(y.reshape(shape), noise)
    found = known.coordinates(draws.reshape(-1, *shape))
    off = (found.mean(0) - mean) / scale
    return {"rms_of_mean": float(np.sqrt((off**2).mean())), "sd_ratio": float((found.std(0) / scale).mean())}


def distance(draws: np.ndarray, reference: np.ndarray) -> float:
    """The Wasserstein distance of two samples of a number, in standard deviations of the second."""
    levels = (np.arange(1000) + 0.5) / 1000
    apart = np.abs(np.quantile(draws, levels) - np.quantile(reference, levels)).mean()
    return float(apart / reference.std())


def main() -> None:
    parser = records.parser(__doc__, "posterior_scale.json")
    parser.add_argument("--data", choices=("digits", "mnist", "fashion_mnist", *SIDES), default="digits")
    parser.add_argument("--steps", type=int, help="of the chain, of those that the network was trained with")
    parser.add_argument("--problems", nargs="+", choices=NAMES, default=NAMES, help="which")
    parser.add_argument("--charts", nargs="+", choices=CHARTS, default=["prior", "auto"])
    parser.add_argument("--image", type=int, default=0, help="number of the held-out picture")
    parser.add_argument("--draws", type=int, nargs=2, default=(300, 500), help="of warm-up, and after, for each chain")
    parser.add_argument("--prior", type=Path, help="a file for the prior, which is trained if it is not there")
    arguments = parser.parse_args()
    prior, held_out = the_prior(arguments.data, arguments.prior, arguments.steps)
    known = power_law.power_law(SIDES[arguments.data]) if arguments.data in SIDES else None
    found = []
    for problem in arguments.problems:
        for chart in arguments.charts:
            problem_of = (prior, held_out[arguments.image], problem, chart, arguments.seed)
            result, log_sigma = run(*problem_of, tuple(arguments.draws), known=known)
            print(problem, chart, {name: round(value, 4) for name, value in result.items()}, flush=True)
            ending = {"covariance": "_by_hand", "auto": "", "prior": "_prior", "pilot": "_pilot"}[chart]
            name = f"{arguments.data}{'' if known else '_' + problem}{ending}"
            is_ours = chart == "auto"
            settings = {**result, "seed": arguments.seed, "image": arguments.image, "draws": list(arguments.draws)}
            settings |= {"chain_steps": prior.kernel.num_steps}
            if problem != "unknown_noise":
                limits = LIMITS.get((arguments.data, problem), ("", "")) if is_ours else ("", "")
                rhat = result["rhat"] if arguments.data == "digits" else max(result["rhat"], result["rhat_of_pixels"])
                found += [
                    records.record(f"{name}_ess_per_1000", result["per_1000"], "draws", limit=limits[0], **settings),
                    records.record(f"{name}_rhat", rhat, "", limit=limits[1]),
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
