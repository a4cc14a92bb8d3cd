"""Posterior draws against exact ones: linear inverse problems with a mixture of 25 Gaussians as diffusion prior.

    python benchmarks/posterior_mixture.py --rows 8_1 8_4 80_1 gibbs_8 gibbs_80 --seeds 0 1 2
    python benchmarks/posterior_mixture.py --rows 8_2 80_2 80_4 800_1 800_2 800_4 --seeds 300 301
    python benchmarks/posterior_mixture.py --rows modes_8 modes_80 modes_800 --seeds 200 201

A row D_Y has D coordinates, of which Y numbers are seen.

Every row is a mean over problems (``mixture_problems.problem``); no setting was chosen by looking at the problems
100-107, which are the default. Quality is the sliced first Wasserstein distance to exact draws over its floor, the same
distance between exact and exact draws; the ratio is taken for each problem and then averaged (the ratio of the averages
is in the record). The second measure is the total variation of the weights of the modes.

The denoiser is exact, the number of steps is not infinite: what is measured contains the difference between the T-step
model's posterior and the data distribution's.
"""

import argparse
import dataclasses
import time
from functools import cache
from typing import Any

import mixture_problems
import numpy as np
from mixture_problems import MixtureProblem
from posterior_engines import BIASED, COUNT, NUM_STEPS, Engine, gibbs, tempered, twisted
from records import merge, parser, print_table, record, write


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How good one set of draws is, on one problem."""

    distance: float
    floor: float
    mode_distance: float
    seconds: float
    network_calls: float
    evidence_error: float = float("nan")
    min_ess: float = float("nan")
    ess_per_iteration: float = float("nan")
    lowest_ess_per_iteration: float = float("nan")
    evidence_standard_error: float = float("nan")
    temperatures: float = float("nan")
    acceptance: float = float("nan")


@cache
def floor_of(problem: MixtureProblem, count: int) -> float:
    """The floor of a problem, computed once for all engines."""
    return mixture_problems.floor(problem.exact_draws, count, seed=problem.seed)


def assess(engine: Engine, problem: MixtureProblem, label: str) -> Outcome:
    """Run an engine on a problem and compare its draws with exact ones."""
    start = time.perf_counter()
    draws = engine(problem)
    seconds = time.perf_counter() - start
    outcome = Outcome(
        distance=mixture_problems.distance_to_exact(problem.exact_draws, draws.x, seed=problem.seed),
        floor=floor_of(problem, len(draws.x)),
        mode_distance=problem.mode_weights_distance(draws.x),
        seconds=seconds,
        network_calls=draws.network_calls,
        **draws.facts,
    )
    print(
        f"{label:22} problem {problem.seed:4} distance {outcome.distance:7.3f} floor {outcome.floor:6.3f} modes "
        f"{outcome.mode_distance:.3f} evidence {outcome.evidence_error:7.3f} min ESS {outcome.min_ess:6.0f} "
        f"ESS/iteration {outcome.ess_per_iteration:.2f} seconds {seconds:.0f}",
        flush=True,
    )
    return outcome


def averages(outcomes: list[Outcome], problems: list[MixtureProblem]) -> dict[str, Any]:
    """What every record of a row has in its settings."""

    def mean(field: str) -> float:
        return float(np.mean([getattr(outcome, field) for outcome in outcomes]))

    return {
        "T": NUM_STEPS,
        "draws": COUNT,
        "seeds": [problem.seed for problem in problems],
        "distance": mean("distance"),
        "ratio_of_averages": mean("distance") / mean("floor"),
        "ratios": [outcome.distance / outcome.floor for outcome in outcomes],
        "mode_weights_total_variation": mean("mode_distance"),
        "smallest_ess": min(outcome.min_ess for outcome in outcomes),
        "network_calls_per_draw": mean("network_calls"),
    }


def distance_record(
    name: str, limit: str, outcomes: list[Outcome], problems: list[MixtureProblem], **settings: Any
) -> dict[str, Any]:
    """The distance over its floor, mean over problems."""
    return record(
        name,
        float(np.mean([outcome.distance / outcome.floor for outcome in outcomes])),
        "floors",
        baseline=float(np.mean([outcome.floor for outcome in outcomes])),
        baseline_name="exact draws against exact draws, sliced W1",
        limit=limit,
        seconds=sum(outcome.seconds for outcome in outcomes),
        **averages(outcomes, problems),
        **settings,
    )


def smc_row(
    size: str,
    problems: list[MixtureProblem],
    num_particles: int,
    limits: tuple[str, str],
    *,
    biased: bool = False,
    tempered: bool = False,
    bootstrap: bool = True,
) -> list[dict[str, Any]]:
    """TwistedSMC with the twist that it chooses; with it the tempered twist, and what does not reach the posterior."""
    rows: list[dict[str, Any]] = []

    def run(name: str, engine: Engine) -> list[Outcome]:
        return [assess(engine, problem, f"{size} {name}") for problem in problems]

    outcomes = run("auto", twisted("auto", num_particles))
    prefix = f"mixture_{size}"
    rows.append(distance_record(f"{prefix}_sw_over_floor", limits[0], outcomes, problems, particles=num_particles))
    errors = [outcome.evidence_error for outcome in outcomes]
    rows.append(
        record(
            f"{prefix}_log_evidence_abs_error",
            float(np.mean(np.abs(errors))),
            "nats",
            baseline=float(np.mean([problem.exact_log_evidence for problem in problems])),
            baseline_name="exact log evidence",
            limit=limits[1],
            errors=errors,
            particles=num_particles,
        )
    )
    calls = float(np.mean([outcome.network_calls for outcome in outcomes])) * COUNT / num_particles
    rows.append(record(f"{prefix}_calls_per_particle_over_T", calls / NUM_STEPS, "T", limit="<= 3.1"))
    if tempered:
        outcomes = run("tempered", twisted("tempered", num_particles))
        rows.append(
            distance_record(f"{prefix}_tempered_sw_over_floor", "<= 2.0", outcomes, problems, particles=num_particles)
        )
    if bootstrap:
        outcomes = run("bootstrap", twisted("none", num_particles))
        name = f"{prefix}_bootstrap_sw_over_floor"
        rows.append(distance_record(name, "", outcomes, problems, particles=num_particles))
    if biased:
        for name, engine in BIASED.items():
            rows += biased_records(f"{size}_{name}", run(name, engine), problems)
    return rows


def biased_records(name: str, outcomes: list[Outcome], problems: list[MixtureProblem]) -> list[dict[str, Any]]:
    """A baseline that is not the posterior: medians, since some diverge on some problems."""
    ratios = [outcome.distance / outcome.floor for outcome in outcomes]
    diverged = sum(not ratio < 1000 for ratio in ratios)
    return [
        record(f"biased_{name}_sw_over_floor", float(np.median(ratios)), "floors", ratios=ratios, diverged=diverged),
        record(
            f"guided_baseline_fails_{name}",
            float(np.mean([outcome.mode_distance for outcome in outcomes])),
            "TV",
            limit=">= 0.2",
            by_problem=[outcome.mode_distance for outcome in outcomes],
            seeds=[problem.seed for problem in problems],
        ),
    ]


def gibbs_row(dimension: int, problems: list[MixtureProblem], limits: tuple[str, str]) -> list[dict[str, Any]]:
    """Particle Gibbs with refresh."""
    outcomes = [assess(gibbs("gaussian"), problem, f"gibbs {dimension}") for problem in problems]
    exact = [problem.mode_weights_distance(problem.exact_draws(problem.seed, COUNT)) for problem in problems]
    settings = averages(outcomes, problems)
    return [
        record(
            f"gibbs_{dimension}_ess_per_iteration",
            float(np.mean([outcome.ess_per_iteration for outcome in outcomes])),
            "draws",
            limit=limits[0],
            seconds=sum(outcome.seconds for outcome in outcomes),
            lowest_over_coordinates=float(np.mean([outcome.lowest_ess_per_iteration for outcome in outcomes])),
            by_problem=[outcome.ess_per_iteration for outcome in outcomes],
            particles=16,
            twist="gaussian",
            **settings,
        ),
        record(
            f"gibbs_{dimension}_mode_weights_tv",
            float(np.mean([outcome.mode_distance for outcome in outcomes])),
            "TV",
            baseline=float(np.mean(exact)),
            baseline_name="independent exact draws, as many",
            limit=limits[1],
            by_problem=[outcome.mode_distance for outcome in outcomes],
        ),
    ]


def modes_row(
    dimension: int, problems: list[MixtureProblem], num_particles: int, num_islands: int
) -> list[dict[str, Any]]:
    """TemperedSMC: the weights of the modes, and the evidence in its own standard errors."""
    engine = tempered(num_particles, num_islands)
    outcomes = [assess(engine, problem, f"tempered {dimension}") for problem in problems]
    count = num_particles * num_islands
    exact = [problem.mode_weights_distance(problem.exact_draws(problem.seed, count)) for problem in problems]
    errors = [outcome.evidence_error for outcome in outcomes]
    settings = averages(outcomes, problems) | {"draws": count}
    return [
        record(
            f"modes_{dimension}_1_tv",
            float(np.mean([outcome.mode_distance for outcome in outcomes])),
            "TV",
            baseline=float(np.mean(exact)),
            baseline_name="independent exact draws, as many",
            limit="<= 0.05",
            seconds=sum(outcome.seconds for outcome in outcomes),
            by_problem=[outcome.mode_distance for outcome in outcomes],
            particles=num_particles,
            islands=num_islands,
            temperatures=[outcome.temperatures for outcome in outcomes],
            acceptance=[outcome.acceptance for outcome in outcomes],
            **settings,
        ),
        record(
            f"modes_{dimension}_1_log_evidence_abs_error",
            float(np.mean(np.abs(errors))),
            "nats",
            baseline=float(np.mean([outcome.evidence_standard_error for outcome in outcomes])),
            baseline_name="its standard error, as reported",
            errors=errors,
            standard_errors=[outcome.evidence_standard_error for outcome in outcomes],
        ),
    ]


def run_row(name: str, seeds: list[int]) -> list[dict[str, Any]]:
    """The records of one row."""
    observed = {cell: (int(cell.split("_")[0]), int(cell.split("_")[1])) for cell in CELLS}
    observed |= {"gibbs_8": (8, 1), "gibbs_80": (80, 1)}
    observed |= {f"modes_{dimension}": (dimension, 1) for dimension in MODES}
    problems = [mixture_problems.problem(seed, *observed[name]) for seed in seeds]
    if name.startswith("modes"):
        dimension = observed[name][0]
        return modes_row(dimension, problems, *MODES[dimension])
    if name == "8_1":
        return smc_row("8_1", problems, 4096, ("<= 1.7", "<= 0.05"), biased=True, tempered=True)
    if name == "8_4":
        return smc_row("8_4", problems, 4096, ("<= 1.2", "<= 0.08"))
    if name == "80_1":
        return smc_row("80_1", problems, 2048, ("<= 1.5", "<= 0.12"), biased=True)
    if name in CELLS:
        num_particles = 4096 if observed[name][0] == 8 else 2048
        return smc_row(name, problems, num_particles, ("<= 1.7", ""), bootstrap=False)
    return gibbs_row(observed[name][0], problems, (">= 0.6", "<= 0.05") if name == "gibbs_8" else (">= 0.5", ""))


MODES = {8: (512, 8), 80: (512, 8), 800: (256, 8)}  # particles, islands of TemperedSMC by dimension
CELLS = [f"{dimension}_{observed}" for dimension in (8, 80, 800) for observed in (1, 2, 4)]
ROWS = [*CELLS, "gibbs_8", "gibbs_80", *(f"modes_{dimension}" for dimension in MODES)]


def main(arguments: argparse.Namespace) -> None:
    records = [entry for name in arguments.rows for entry in run_row(name, arguments.seeds)]
    print_table(records)
    write(merge(records, arguments.json), arguments.json)


if __name__ == "__main__":
    options = parser(__doc__, "posterior_mixture.json")
    options.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS)
    options.add_argument("--seeds", nargs="+", type=int, default=list(range(100, 108)), help="which problems")
    main(options.parse_args())
