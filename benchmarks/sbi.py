"""Amortised posteriors on public tasks, as the network draws them and corrected, by the field's classifier test.

    python benchmarks/sbi.py --tasks two_moons slcp --budgets 1000 30000
    python benchmarks/sbi.py --tasks two_moons --budgets online --calibration 300
    python benchmarks/sbi.py --tasks two_moons --budgets 30000 --export FOLDER     # then peers/sbi_draws.py
    python benchmarks/sbi.py --tasks two_moons --budgets 30000 --score FOLDER

``infer.AmortizedPosterior`` with its own settings learns from so many simulations (``online``: as many as it takes)
of a task of ``sbi_tasks``. For each of ten observations 10,000 draws, and 10,000 corrected ones, resampled from 30,000
weighted ones, or from as many as are worth 40,000, up to 200,000, stand against 10,000 reference draws: C2ST is the
share that a classifier tells apart, .5 at best. The classifier is that of the literature, scikit-learn's network of two
layers of 10 d units, five folds, numbers in units of the reference's standard deviations, with the early stopping that
the package sbi has added. Efficiency is the effective size of weights over draws; log evidence is compared with a long
importance run about the reference draws.

A row's value is the mean over ten observations (k-hat: the largest; efficiency: the median). The file of records holds
every run: a later call adds tasks, budgets and seeds, and repeats none.
"""

import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import records
import sbi_tasks
from numpyro.infer.util import log_density
from sbi_tasks import NUM_OBSERVATIONS, Task
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

import numpyro_diffusion as nd
from numpyro_diffusion.infer import AmortizedPosterior
from numpyro_diffusion.noise.importance import TRUSTED

NUM_DRAWS, NUM_WEIGHTED, MOST_WEIGHTED = 10_000, 30_000, 200_000
# Of the weighted draws, so that few of those that are compared are the same one: a classifier learns repeats by heart.
WORTH = 4 * NUM_DRAWS
NUM_EVIDENCE = 200_000
# To reach at 30,000 simulations: as drawn, and corrected.
LIMITS = {
    "two_moons": (0.53, 0.52),
    "gaussian_linear": (0.52, 0.52),
    "gaussian_mixture": (0.53, 0.52),
    "slcp": (0.65, 0.55),
    "bernoulli_glm": (0.60, 0.52),
}
# Tasks whose evidence a long importance run about the reference draws gives: their posteriors have one mode.
WITH_EVIDENCE = ("gaussian_linear", "bernoulli_glm")
PEERS = ("npe", "npse")


def c2st(draws: np.ndarray, reference: np.ndarray) -> float:
    """Accuracy over five folds of a classifier that tells draws from the reference, shapes (n, d)."""
    centre, scale = reference.mean(0), reference.std(0)
    size = 10 * reference.shape[1]
    classifier = MLPClassifier(
        hidden_layer_sizes=(size, size), max_iter=1000, early_stopping=True, n_iter_no_change=50, random_state=1
    )
    rows = (np.concatenate([reference, draws]) - centre) / scale
    labels = np.repeat([0, 1], [len(reference), len(draws)])
    return float(cross_val_score(classifier, rows, labels, cv=KFold(5, shuffle=True, random_state=1)).mean())


def log_evidence(task: Task, index: int, seed: int) -> tuple[float, float]:
    """Log p(y) of an observation and its standard error, by weights of a t density about the reference draws, nats."""
    draws = task.draws[index]
    proposal = dist.MultivariateStudentT(
        5.0, jnp.asarray(draws.mean(0)), jnp.asarray(np.linalg.cholesky(np.cov(draws.T)))
    )
    observation = jnp.asarray(task.observations[index])

    @jax.jit
    def log_weights(thetas: jax.Array) -> jax.Array:
        def log_joint(theta: jax.Array) -> jax.Array:
            return log_density(task.model, (), {}, {"theta": theta, "y": observation})[0]

        return jax.lax.map(log_joint, thetas, batch_size=10_000) - proposal.log_prob(thetas)

    found = np.asarray(log_weights(proposal.sample(jax.random.key(seed), (NUM_EVIDENCE,))), np.float64)
    weights = np.exp(found - found.max())
    error = weights.std() / weights.mean() / np.sqrt(NUM_EVIDENCE)
    return float(np.log(weights.mean()) + found.max()), float(error)


def learned(task: Task, name: str, budget: str, seed: int, networks: Path | None) -> tuple[AmortizedPosterior, float]:
    """(a trained posterior, seconds), from a file if ``networks`` has it."""
    path = networks / f"{name}.{budget}.{seed}" if networks else None
    if path and path.exists():
        return AmortizedPosterior.load(path, task.model), float(path.with_name(f"{path.name}.seconds").read_text())
    amortized = AmortizedPosterior(task.model, observed="y")
    is_online = budget == "online"
    count = 30_000 if is_online else int(budget)
    amortized.fit(jax.random.key(seed), count, online=is_online, progress_bar=False)
    print(f"{name} {budget} {seed}: {len(amortized.fit_result.losses)} steps in {amortized.seconds:.0f} s", flush=True)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        amortized.save(path)
        path.with_name(f"{path.name}.seconds").write_text(str(amortized.seconds))
    return amortized, float(amortized.seconds or 0.0)


def run(task: Task, name: str, budget: str, seed: int, networks: Path | None) -> dict[str, Any]:
    """What one trained network does with the ten observations: lists over them."""
    amortized, fit_seconds = learned(task, name, budget, seed, networks)
    found: dict[str, Any] = {"fit_seconds": fit_seconds}
    columns: dict[str, list[float]] = {}
    for index in range(NUM_OBSERVATIONS):
        key_draw, key_correct = jax.random.split(jax.random.fold_in(jax.random.key(seed), index))
        posterior = amortized.condition(task.observations[index])
        began = time.perf_counter()
        draws = np.asarray(posterior.sample(key_draw, NUM_DRAWS)["theta"])
        row = {"draw_seconds": time.perf_counter() - began, "share_farther": posterior.share_farther}
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that weights are poor stands in the record
            corrected = posterior.correct(key_correct, "importance", num_samples=NUM_WEIGHTED)
            worth = float(corrected.importance.effective_sample_size)
            count = int(min(MOST_WEIGHTED, np.ceil(NUM_WEIGHTED * WORTH / worth)))
            if count > NUM_WEIGHTED and corrected.pareto_k <= TRUSTED:
                corrected = posterior.correct(key_correct, "importance", num_samples=count)
            weights = corrected.importance
            if weights.pareto_k > TRUSTED:  # what method="auto" does, with as many draws as the test takes
                settings = {"num_samples": NUM_DRAWS, "num_chains": 100, "num_warmup": 200, "progress_bar": False}
                corrected = posterior.correct(key_correct, "hmc", **settings)
        row["correct_seconds"] = time.perf_counter() - began
        row["is_hmc"] = float(corrected.method == "hmc")
        row["pareto_k"] = weights.pareto_k
        row["efficiency"] = float(weights.effective_sample_size) / weights.log_weights.size
        row["weighted"] = weights.log_weights.size
        corrected_draws = np.asarray(corrected.get_samples()["theta"])
        chosen = np.random.default_rng(seed).choice(len(corrected_draws), NUM_DRAWS, replace=False)
        row["distinct"] = float(len(np.unique(corrected_draws[chosen], axis=0))) / NUM_DRAWS
        row["c2st"] = c2st(draws, task.draws[index])
        row["c2st_corrected"] = c2st(corrected_draws[chosen], task.draws[index])
        if name in WITH_EVIDENCE and corrected.method == "importance":
            truth, error = log_evidence(task, index, seed)
            row["log_evidence_error_of_truth"] = error
            row["log_evidence_error"] = corrected.log_evidence_error
            difference = corrected.log_evidence - truth
            row["log_evidence_in_errors"] = float(abs(difference) / np.hypot(error, corrected.log_evidence_error))
        print(name, budget, seed, index + 1, {key: round(value, 3) for key, value in row.items()}, flush=True)
        for key, value in row.items():
            columns.setdefault(key, []).append(value)
    return {**found, **columns}


def summary(name: str, budget: str, by_seed: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of one task and budget."""
    runs = list(by_seed.values())
    limits = LIMITS.get(name, (None, None)) if budget == "30000" else (None, None)
    settings = {"seeds": len(runs), "observations": NUM_OBSERVATIONS}
    start = f"sbi_{name}_{budget}"

    def over_runs(key: str, of_observations: Any) -> float:
        return float(np.mean([of_observations(run[key]) for run in runs]))

    entries = [
        records.record(
            f"{start}_c2st",
            over_runs("c2st", np.mean),
            "share",
            limit=f"<= {limits[0]}" if limits[0] else "",
            seconds=over_runs("fit_seconds", np.mean),
            runs=by_seed,
            **settings,
        ),
        records.record(
            f"{start}_c2st_corrected",
            over_runs("c2st_corrected", np.mean),
            "share",
            limit=f"<= {limits[1]}" if limits[1] else "",
            seconds=over_runs("correct_seconds", np.median),
            by_hmc=over_runs("is_hmc", np.sum),
            **settings,
        ),
        records.record(
            f"{start}_efficiency",
            over_runs("efficiency", np.median),
            "share",
            limit=">= 0.3" if limits[0] else "",
            **settings,
        ),
        records.record(f"{start}_pareto_k", over_runs("pareto_k", np.max), "largest", **settings),
        records.record(
            f"{start}_fit_seconds", over_runs("fit_seconds", np.mean), "s", limit="<= 600" if limits[0] else ""
        ),
        # The first observation's draws are compiled; the others' are not.
        records.record(
            f"{start}_draw_seconds", over_runs("draw_seconds", lambda values: np.median(values[1:])), "s", limit="<= 2"
        ),
    ]
    if all("log_evidence_in_errors" in run for run in runs):
        entries += [
            records.record(
                f"{start}_log_evidence_in_errors",
                over_runs("log_evidence_in_errors", np.max),
                "largest, s.e.",
                limit="<= 3",
            ),
            records.record(
                f"{start}_log_evidence_error", over_runs("log_evidence_error", np.max), "largest, nats", limit="<= 0.05"
            ),
        ]
    return entries


def calibration(amortized: AmortizedPosterior, start: str, seed: int, num_data_sets: int) -> list[dict[str, Any]]:
    """Simulation-based calibration: the least p-value of all numbers of theta, times how many they are."""
    entries = []
    for end, corrected in (("", False), ("_corrected", True)):
        began = time.perf_counter()
        found = nd.evaluation.sbc(
            jax.random.key(seed), amortized, num_data_sets=num_data_sets, corrected=corrected, progress_bar=False
        )
        p_values = np.atleast_1d(found.p_values["theta"])
        entries.append(
            records.record(
                f"{start}_sbc_p{end}",
                float(min(1.0, p_values.min() * p_values.size)),
                "p",
                limit="> 0.01" if corrected else "",
                seconds=time.perf_counter() - began,
                data_sets=num_data_sets,
                p_values=[float(value) for value in p_values],
            )
        )
    return entries


def export(task: Task, name: str, budget: str, seed: int, folder: Path) -> None:
    """Simulations and observations as one file, for a peer that runs elsewhere."""
    simulated = AmortizedPosterior(task.model, observed="y").simulate(jax.random.key(seed), int(budget))
    flat = {key: np.asarray(value).reshape(len(value), -1) for key, value in simulated.items()}
    folder.mkdir(parents=True, exist_ok=True)
    observations = task.observations.reshape(NUM_OBSERVATIONS, -1)
    np.savez(folder / f"{name}.{budget}.{seed}.npz", observations=observations, **flat)


def score(task: Task, name: str, budget: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Records of what peers drew."""
    entries = []
    for peer in PEERS:
        path = folder / f"{name}.{budget}.{seed}.{peer}.npz"
        if path.exists():
            with np.load(path) as found:
                values = [c2st(found["draws"][index], task.draws[index]) for index in range(NUM_OBSERVATIONS)]
                settings = {"fit_seconds": float(found["fit_seconds"]), "draw_seconds": float(found["draw_seconds"])}
            entries.append(
                records.record(
                    f"sbi_{name}_{budget}_c2st_{peer}", float(np.mean(values)), "share", each=values, **settings
                )
            )
    return entries


def main() -> None:
    """Run the rows."""
    parser = records.parser(__doc__, "sbi.json")
    parser.add_argument("--tasks", nargs="+", choices=list(sbi_tasks.MODELS), default=list(LIMITS))
    parser.add_argument("--budgets", nargs="+", default=["30000"], help="numbers of simulations, or online")
    parser.add_argument("--networks", type=Path, help="a folder of trained networks, to read from and to write to")
    parser.add_argument("--calibration", type=int, default=0, help="data sets of simulation-based calibration")
    parser.add_argument("--export", type=Path, help="write simulations for a peer to this folder, and do no more")
    parser.add_argument("--score", type=Path, help="score what a peer has drawn into this folder, and do no more")
    arguments = parser.parse_args()
    for name in arguments.tasks:
        task = sbi_tasks.load(name)
        for budget in arguments.budgets:
            start, key = f"sbi_{name}_{budget}", str(arguments.seed)
            if arguments.export:
                export(task, name, budget, arguments.seed, arguments.export)
                continue
            if arguments.score:
                entries = score(task, name, budget, arguments.seed, arguments.score)
            elif arguments.calibration:
                amortized, _ = learned(task, name, budget, arguments.seed, arguments.networks)
                entries = calibration(amortized, start, arguments.seed, arguments.calibration)
            else:
                by_seed = records.earlier_runs(f"{start}_c2st", arguments.json)
                if key not in by_seed:
                    by_seed[key] = run(task, name, budget, arguments.seed, arguments.networks)
                entries = summary(name, budget, by_seed)
            records.print_table(entries)
            records.write(records.merge(entries, arguments.json), arguments.json)


if __name__ == "__main__":
    main()
