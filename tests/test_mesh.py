"""fit, draws and islands over several devices: simulated ones of one process, and real processes on the loopback."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import json, sys
import jax
processes, index, port, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, index)
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import numpyro_diffusion as nd
from numpyro_diffusion.model.split import split_model

kernel = nd.GaussianKernel(nd.schedules.log_snr(4))
network = nd.networks.MLP(4, 2, width=4, depth=1)
data = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
np.save(f"{path}/rows{index}.npy", data)

def model(x, size):
    transition = nd.haiku_module("net", network, kernel=kernel, event_shape=(2,))
    with numpyro.plate("data", size, subsample_size=len(x)):
        numpyro.sample("x", nd.Diffusion(kernel, transition), obs=x)

def light(x, size):  # compiles in no time
    noise = jax.random.normal(numpyro.prng_key(), (2,))
    numpyro.factor("pull", -size * ((numpyro.param("w", np.zeros(2, np.float32)) - x.mean(0) + noise) ** 2).sum())

def run(mesh):
    shares, share = (processes, index) if mesh is not None else (1, 0)

    def batches():
        for i in range(6):
            rows = data[(8 * i) % 40:][:8]
            yield rows[share * 8 // shares:(share + 1) * 8 // shares]

    settings = dict(optimizer=optax.adam(1e-2), num_steps=6, batch_size=8, rng_key=jax.random.key(1), ema_decay=0.9,
                    progress_bar=False, mesh=mesh)
    on_disk = np.load(f"{path}/rows{index}.npy", mmap_mode="r")
    checkpoints = dict(checkpoint_dir=f"{path}/{'one' if mesh is None else 'many'}", **settings)
    found = {"memory": nd.fit(model, data, validation=nd.Validation(data[:7], every=3), **settings)}
    nd.fit(light, on_disk, **{**checkpoints, "num_steps": 3})
    found["disk, resumed"] = nd.fit(light, on_disk, resume=True, **checkpoints)
    found["stream"] = nd.fit(light, batches(), size=40, **settings)
    result = {name: one.losses.tolist() + one.validation_losses.tolist() for name, one in found.items()}
    result["sum"] = float(sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(found["memory"].params)))
    prior = found["memory"].distribution("x")
    result["draws"] = float(jax.jit(lambda key: prior.sample(key, (100,)).sum(-1).std())(jax.random.key(0)))

    def posterior(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    smc = nd.infer.TwistedSMC(posterior, 8, 4, progress_bar=False, mesh=mesh)
    smc.run(jax.random.key(2), np.ones(2, np.float32))
    result["islands"] = [smc.log_evidence, *np.asarray(smc.get_samples(num_samples=5)["x"]).ravel().tolist()]
    return result, prior, posterior, settings

def refused(build):
    try:
        build()
    except ValueError as error:
        return str(error)

mesh = jax.make_mesh((jax.device_count(),), ("data",))
result, prior, posterior, settings = run(mesh)
if processes == 1:
    result["of one device"] = run(None)[0]
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    draws = jax.jit(lambda key: prior.sample(key, (100,)), out_shardings=rows)(jax.random.key(0))
    assert {shard.data.shape for shard in draws.addressable_shards} == {(50, 2)}
    whole = jax.jit(lambda key: prior.sample(key, (100,)))(jax.random.key(0))
    np.testing.assert_allclose(draws, whole, rtol=1e-5, atol=1e-6)
    result["error"] = refused(lambda: nd.fit(model, data, **{**settings, "batch_size": 5}))
    result["islands error"] = refused(lambda: nd.infer.TwistedSMC(posterior, 8, 3, mesh=mesh))

def with_context(size):
    transition = nd.Transition(lambda a, x_t, t, context: a * x_t, np.zeros(size, np.float32), (size,), (4,))
    upper = nd.GaussianKernel(nd.schedules.log_snr(3), variance="upper")
    return nd.Diffusion(upper, transition, context=np.ones(4, np.float32), rng_key=jax.random.key(0))

def three_sites(y):
    x = [numpyro.sample(name, with_context(size)) for name, size in (("x", 2), ("v", 3), ("w", 5))]
    numpyro.sample("y", dist.Normal(sum(one.sum() for one in x)), obs=y)

leaves = jax.tree.leaves((with_context(2), split_model(three_sites, (0.5,), {})))
result["leaves"] = [list(np.shape(leaf)) for leaf in leaves]
unordered = dist.Distribution.gather_pytree_data_fields.__func__(nd.Diffusion)
print(json.dumps([result, [list(unordered), list({"x", "v", "w"})]]))
"""


def start(path, num_devices, processes=1, index=0, port=0):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={num_devices}"
    environment = {
        **os.environ,
        "XLA_FLAGS": flags,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONHASHSEED": str(1 + index),
    }
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(processes), str(index), str(port), str(path)],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )


def finish(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="session", name="two_devices")
def _two_devices(tmp_path_factory):
    return finish(start(tmp_path_factory.mktemp("devices"), 2))[0]


@pytest.fixture(scope="session", name="two_processes")
def _two_processes(tmp_path_factory):
    """Whose sets have two orders."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = tmp_path_factory.mktemp("processes")
    processes = [start(path, 1, processes=2, index=index, port=port) for index in range(2)]
    return [finish(process) for process in processes]


def assert_equal_to_rounding(ours, theirs):
    for name in ("memory", "disk, resumed", "stream", "sum", "draws"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5, err_msg=name)
    np.testing.assert_allclose(ours["islands"], theirs["islands"], rtol=1e-4, atol=1e-5)


def test_two_devices_give_the_losses_of_one(two_devices):
    assert_equal_to_rounding(two_devices, two_devices["of one device"])
    assert two_devices["islands error"].startswith(
        "Expected num_islands divisible by 2, the devices of the mesh; got 3."
    )
    assert two_devices["error"].startswith("Expected a batch_size divisible by 2, the devices of the mesh; got 5.")


def test_two_processes_give_the_losses_of_one(two_processes, two_devices):
    (first, _), (second, _) = two_processes
    assert first == second
    assert_equal_to_rounding(first, two_devices["of one device"])


def test_leaves_have_one_order_in_every_process(two_processes):
    """Else processes that share them pair them wrongly."""
    (first, its_sets), (second, other_sets) = two_processes
    assert first["leaves"] == second["leaves"]
    assert all(ours != theirs for ours, theirs in zip(its_sets, other_sets, strict=True)), "seeds that show nothing"
