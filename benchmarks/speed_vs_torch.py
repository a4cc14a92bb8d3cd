"""``nd.fit`` and ``Diffusion.sample`` against PyTorch with Hugging Face diffusers, on the same CPU, alternating.

The same on both sides: data, batch, T, noise levels, network (the PyTorch one is loaded with Haiku's parameters and
must return the same outputs before anything is timed), what it predicts (the noise), Adam and its rate, float32, the
variance of a reverse step (the bridge's), the number of draws, threads as each library sets them.

What differs:

- The loss. Ours is the bound on log p(x^0), steps stratified over the batch; theirs the unweighted error of the noise
  with independent steps, as in the diffusers' examples. The network's work is the same, the rest is elementwise.
- Ours runs compiled, many steps at a time; theirs step by step from Python, as PyTorch does. Beside it stand,
  without a limit, "one_thread", which can be faster for small arrays, and "compiled", the network under
  ``torch.compile``. Time to compile is counted on neither side.
- Ours reports progress and reads the losses once in a chunk; theirs once at the end.
- At the last step diffusers adds no noise; ours adds the little that a density needs.
- Images are (side, side, channels) for us and (channels, side, side) for them, as each library has it.

PyTorch runs in a process of its own, so that its threads and XLA's do not disturb each other; each waits for the other.
"""

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from records import record
from speed_problems import LEARNING_RATE, Problem, time_fit

KERNEL = (("parameterization", "noise"), ("variance", "lower"))
LIMITS = {
    "train_vs_torch_mlp": ">= 4.0",
    "train_vs_torch_unet": ">= 1.0",
    "sample_vs_torch_mlp": ">= 3.0",
    "sample_vs_torch_unet": ">= 1.2",
}
COUNTS = {"mlp": 10_000, "unet": 500}  # draws at once
STEPS = {"mlp": 500, "unet": 200}  # training steps of one call of fit
VARIANTS = ("eager", "one_thread", "compiled")
INSTALL = "python -m pip install torch diffusers numpy"


class TorchError(RuntimeError):
    """The PyTorch side could not do what it was asked."""


class Torch:
    """The worker `speed_torch.py`, a process that answers requests."""

    def __init__(self, python: str) -> None:
        script = str(Path(__file__).with_name("speed_torch.py"))
        self._process = subprocess.Popen(  # noqa: S603 - the interpreter that the user named
            [python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, **request: Any) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("Expected pipes to the PyTorch worker; got none.")
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        answer = json.loads(stdout.readline() or '{"error": "the worker ended"}')
        if "error" in answer:
            raise TorchError(f"the PyTorch worker failed at {request['task']}: {answer['error']}")
        return answer

    def __enter__(self) -> "Torch":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its input, at which it ends


def can_run(python: str) -> bool:
    """Whether this interpreter has torch and diffusers."""
    try:
        done = subprocess.run(  # noqa: S603
            [python, "-c", "import torch, diffusers"], capture_output=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0


def set_up(torch: Torch, problem: Problem, params: Any, data: jax.Array, folder: Path) -> dict[str, Any]:
    """Hand the worker network, parameters and data; raise unless its outputs are ours."""
    x_t = jax.random.normal(jax.random.key(7), (64, *problem.event_shape))
    t = 1 + jnp.arange(64) % problem.num_steps
    ours = hk.without_apply_rng(hk.transform(problem.network)).apply(params, x_t, t)
    flat = {f"{layer}/{name}": np.asarray(leaf) for layer, leaves in params.items() for name, leaf in leaves.items()}
    np.savez(folder / "params.npz", **flat)
    betas = np.asarray(problem.kernel.schedule.beta[1:], np.float32)
    np.savez(folder / "arrays.npz", data=np.asarray(data), betas=betas, x_t=np.asarray(x_t), t=np.asarray(t))
    answer = torch(
        task="setup",
        network=problem.name,
        params=str(folder / "params.npz"),
        arrays=str(folder / "arrays.npz"),
        num_steps=problem.num_steps,
        width=problem.network.width,
        batch=problem.batch,
        count=COUNTS[problem.name],
        learning_rate=LEARNING_RATE,
    )
    theirs = np.asarray(answer.pop("outputs"), np.float32).reshape(ours.shape)
    if not np.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(jnp.abs(ours).max())):
        raise RuntimeError(f"the two networks differ by {abs(np.asarray(ours) - theirs).max()}")
    return answer


def compare(
    name: str,
    unit: str,
    amount: float,
    ours: Callable[[int], float],
    theirs: Callable[[str], float],
    rounds: int,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Records of ours over each variant of theirs, from functions that return seconds for each unit of work.

    Args:
        name: of the record.
        unit: of work, such as "steps"; what is reported is units in a second.
        amount: units of work that the returned seconds stand for.
        ours: of the round's number.
        theirs: of the variant's name.
        rounds: how many.
        **settings: to report.
    """
    ours(-1)
    variants = []
    for variant in VARIANTS:  # first use of everything
        try:
            theirs(variant)
            variants.append(variant)
        except TorchError as error:
            if variant == "eager":
                raise
            print(f"{name}: no row {variant}, {error}")
    start = time.perf_counter()
    times: dict[str, list[float]] = {"ours": [], **{variant: [] for variant in variants}}
    for index in range(rounds):
        order = list(times)
        for who in order if index % 2 == 0 else order[::-1]:
            times[who].append(ours(index) if who == "ours" else theirs(who))
    records = []
    for variant in variants:
        ratios = [other / mine for mine, other in zip(times["ours"], times[variant], strict=True)]
        records.append(
            record(
                name if variant == "eager" else f"{name}_{variant}",
                statistics.median(ratios),
                "ratio",
                baseline=amount / statistics.median(times[variant]),
                baseline_name=f"PyTorch with diffusers, {variant}, {unit} a second",
                ratio=statistics.median(ratios),
                limit=LIMITS[name] if variant == "eager" else "",
                seconds=time.perf_counter() - start,
                ours_per_second=amount / statistics.median(times["ours"]),
                ratios=ratios,
                rounds=rounds,
                **settings,
            )
        )
    return records


def rows(torch: Torch, problem: Problem, seed: int, rounds: int) -> list[dict[str, Any]]:
    """Training and sampling of one network."""
    data, params = problem.data(seed), problem.params(seed)
    count, steps = COUNTS[problem.name], STEPS[problem.name]
    with tempfile.TemporaryDirectory() as folder:
        settings = set_up(torch, problem, params, data, Path(folder))
    prior = problem.prior(params)
    draw = jax.jit(lambda prior, key: prior.sample(key, (count,)))

    def sample(index: int) -> float:
        start = time.perf_counter()
        x = draw(prior, jax.random.key(seed + 1 + index)).block_until_ready()
        seconds = time.perf_counter() - start
        if not bool(jnp.isfinite(x).all()):
            raise RuntimeError("Expected finite draws; got NaN or infinity.")
        return seconds

    settings |= {"T": problem.num_steps, "batch": problem.batch}
    timed = max(steps - 100, 1)
    return [
        *compare(
            f"sample_vs_torch_{problem.name}",
            "draws",
            count,
            sample,
            lambda variant: torch(task="sample", variant=variant)["seconds"],
            rounds,
            draws=count,
            **settings,
        ),
        *compare(
            f"train_vs_torch_{problem.name}",
            "steps",
            1.0,
            lambda index: time_fit(problem, data, seed + 1 + index, steps).seconds_per_step,
            lambda variant: torch(task="train", steps=timed, variant=variant)["seconds"] / timed,
            rounds,
            steps=timed,
            **settings,
        ),
    ]


def run(seed: int, rounds: int, python: str) -> list[dict[str, Any]]:
    if not can_run(python):
        print(
            f"torch: skipped, {python} cannot import torch and diffusers. Install them, here or in another virtual "
            f"environment that --torch-python names: {INSTALL}"
        )
        return []
    with Torch(python) as torch:
        return [
            row
            for name in ("mlp", "unet")
            for row in rows(
                torch, Problem(name, kernel_options=KERNEL), seed, rounds if name == "mlp" else max(3, rounds // 2)
            )
        ]
