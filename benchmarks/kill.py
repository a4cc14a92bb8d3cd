"""Kill a training run with SIGKILL at random moments, resume it each time, and compare with one that was left alone.

    python benchmarks/kill.py --kills 20

Every kill is of a fresh process, uniform in time between its taking of the directory and its end, so some fall into the
writing of a checkpoint. The figure is how many resumed runs ended with the same bits.
"""

import hashlib
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NUM_STEPS, EVERY = 100, 5


def train(directory: str) -> str:
    """The run: prints a digest of the parameters and one of the losses."""
    import jax
    import numpy as np
    import numpyro
    import optax

    import numpyro_diffusion as nd

    kernel = nd.GaussianKernel(nd.schedules.log_snr(10))
    network = nd.networks.MLP(10, 2, width=16, depth=1)

    def model(x: jax.Array, size: int) -> None:
        transition = nd.haiku_module("net", network, kernel=kernel, event_shape=(2,))
        with numpyro.plate("data", size, subsample_size=len(x)):
            numpyro.sample("x", nd.Diffusion(kernel, transition), obs=x)

    data = nd.datasets.swiss_roll(jax.random.key(0), 1000)
    found = nd.fit(
        model,
        data,
        optimizer=optax.adam(1e-3),
        num_steps=NUM_STEPS,
        batch_size=64,
        rng_key=jax.random.key(1),
        ema_decay=0.99,
        checkpoint_dir=directory,
        checkpoint_every=EVERY,
        resume=True,
        progress_bar=False,
    )
    parameters = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(found.params))
    return f"{hashlib.sha256(parameters).hexdigest()} {hashlib.sha256(found.losses.tobytes()).hexdigest()}"


def run(directory: Path, kill_after: float | None = None) -> tuple[str, float, bool]:
    """The run's output, its seconds since it took the directory, and whether it was killed before its end."""
    command = [sys.executable, __file__, "--train", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        while process.poll() is None and not (directory / ".lock").exists():
            time.sleep(0.01)
        began = time.perf_counter()
        if kill_after is None:
            out, _ = process.communicate()
            return out.strip(), time.perf_counter() - began, False
        try:
            out, _ = process.communicate(timeout=kill_after)
            return out.strip(), time.perf_counter() - began, False
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return "", kill_after, True


def main() -> None:
    """Print and write the record."""
    import numpy as np
    from records import parser, print_table, record, write

    arguments = parser(__doc__, "kill.json")
    arguments.add_argument("--kills", type=int, default=20)
    options = arguments.parse_args()
    random = np.random.default_rng(options.seed)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        whole, seconds, _ = run(Path(folder) / "whole")
        same, killed = 0, 0
        for index in range(options.kills):
            directory = Path(folder) / f"killed_{index}"
            _, _, was_killed = run(directory, kill_after=float(random.uniform(0, seconds)))
            out, _, _ = run(directory)
            killed += was_killed
            same += out == whole
            print(f"run {index}: {'killed' if was_killed else 'had ended'}, {'same' if out == whole else 'OTHER'} bits")
    settings = {"kills": options.kills, "killed_before_the_end": killed, "steps": NUM_STEPS, "checkpoint_every": EVERY}
    limit = f">= {options.kills}"
    rows = [record("kill_resumes", same, "same bits", limit=limit, seconds=time.perf_counter() - began, **settings)]
    print_table(rows)
    write(rows, options.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        print(train(sys.argv[2]))
    else:
        main()
