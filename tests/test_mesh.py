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
import optax
import numpyro_diffusion as nd

kernel = nd.GaussianKernel(nd.schedules.log_snr(4))
network = nd.networks.MLP(4, 2, width=4, depth=1)
data = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)

def model(x, size):
    transition = nd.haiku_module("net", network, kernel=kernel, event_shape=(2,))
    with numpyro.plate("data", size, subsample_size=len(x)):
        numpyro.sample("x", nd.Diffusion(kernel, transition), obs=x)

def light(x, size):  # compiles in no time
    noise = jax.random.normal(numpyro.prng_key(), (2,))
    numpyro.factor("pull", -size * ((numpyro.param("w", np.zeros(2, np.float32)) - x.mean(0) + noise) ** 2).sum())

def batches():
    share = 8 // processes
    for i in range(6):
        rows = data[(8 * i) % 40:][:8]
        yield rows[index * share:(index + 1) * share]

mesh = jax.make_mesh((jax.device_count(),), ("data",)) if jax.device_count() > 1 else None
settings = dict(optimizer=optax.adam(1e-2), num_steps=6, batch_size=8, rng_key=jax.random.key(1), ema_decay=0.9,
                progress_bar=False, mesh=mesh)
np.save(f"{path}/rows{processes}{index}.npy", data)
on_disk = np.load(f"{path}/rows{processes}{index}.npy", mmap_mode="r")
found = {
    "memory": nd.fit(model, data, validation=nd.Validation(data[:7], every=3), **settings),
    "disk": nd.fit(light, on_disk, **settings),
    "stream": nd.fit(light, batches(), size=40, **settings),
}
directory = f"{path}/{jax.device_count()}"
nd.fit(light, data, checkpoint_dir=directory, **{**settings, "num_steps": 3})
found["resumed"] = nd.fit(light, data, checkpoint_dir=directory, resume=True, **settings)
result = {name: one.losses.tolist() + one.validation_losses.tolist() for name, one in found.items()}
if mesh is not None:
    try:
        nd.fit(model, data, **{**settings, "batch_size": 5})
    except ValueError as error:
        result["error"] = str(error)
result["sum"] = float(sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(found["memory"].params)))
result["draw"] = float(found["memory"].distribution("x").sample(jax.random.key(0)).sum())
def posterior(y):
    x = numpyro.sample("x", found["memory"].distribution("x"))
    numpyro.sample("y", numpyro.distributions.Normal(x, 0.5).to_event(1), obs=y)

smc = nd.infer.TwistedSMC(posterior, 8, 4, progress_bar=False, mesh=mesh)
smc.run(jax.random.key(2), np.ones(2, np.float32))
result["islands"] = [smc.log_evidence, *np.asarray(smc.get_samples(num_samples=5)["x"]).ravel().tolist()]

if processes == 1 and mesh is not None:
    prior = found["memory"].distribution("x")
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    draws = jax.jit(lambda key: prior.sample(key, (100,)), out_shardings=rows)(jax.random.key(0))
    assert {shard.data.shape for shard in draws.addressable_shards} == {(50, 2)}
    np.testing.assert_allclose(draws, prior.sample(jax.random.key(0), (100,)), rtol=1e-5, atol=1e-6)
    try:
        nd.infer.TwistedSMC(posterior, 8, 3, mesh=mesh)
    except ValueError as error:
        result["islands error"] = str(error)
print(json.dumps(result))
"""


def start(path, num_devices, processes=1, index=0, port=0):
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}"}
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


@pytest.fixture(scope="module", name="one_device")
def _one_device(tmp_path_factory):
    return finish(start(tmp_path_factory.mktemp("one"), 1))


def assert_equal_to_rounding(ours, theirs, names):
    for name in names:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5, err_msg=name)


def test_two_devices_give_the_losses_of_one(tmp_path, one_device):
    two = finish(start(tmp_path, 2))
    assert_equal_to_rounding(two, one_device, ["memory", "disk", "stream", "resumed", "sum", "draw"])
    np.testing.assert_allclose(two["islands"], one_device["islands"], rtol=1e-4, atol=1e-5)
    assert two["islands error"].startswith("Expected num_islands divisible by 2, the devices of the mesh; got 3.")
    assert two["error"].startswith("Expected a batch_size divisible by 2, the devices of the mesh; got 5.")


def test_two_processes_give_the_losses_of_one(tmp_path, one_device):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(tmp_path, 1, processes=2, index=index, port=port) for index in range(2)]
    found = [finish(process) for process in processes]
    assert found[0] == found[1]
    assert_equal_to_rounding(found[0], one_device, ["memory", "disk", "stream", "resumed", "sum", "draw"])
    np.testing.assert_allclose(found[0]["islands"], one_device["islands"], rtol=1e-4, atol=1e-5)


LEAVES = """
import jax, numpyro, numpyro.distributions as dist, numpyro_diffusion as nd
from numpyro_diffusion.model.split import split_model

kernel = nd.GaussianKernel(nd.schedules.log_snr(3), variance="upper")
zero = lambda params, x_t, t, context: params["a"] * x_t

def prior(size):
    transition = nd.Transition(zero, {"a": jax.numpy.zeros(size)}, (size,), (4,))
    return nd.Diffusion(kernel, transition, context=jax.numpy.ones(4), rng_key=jax.random.key(0))

def model(y):
    x = [numpyro.sample(name, prior(size)) for name, size in (("x", 2), ("v", 3), ("w", 5))]
    numpyro.sample("y", dist.Normal(sum(one.sum() for one in x)), obs=y)

print([leaf.shape for leaf in jax.tree.leaves((prior(2), split_model(model, (0.5,), {})))])
"""


def test_leaves_have_one_order_in_every_process():
    """Else processes that share them pair them wrongly: they had two orders among four seeds of Python's hashes."""
    found = {
        subprocess.run(
            [sys.executable, "-c", LEAVES],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in range(1, 5)
    }
    assert len(found) == 1
