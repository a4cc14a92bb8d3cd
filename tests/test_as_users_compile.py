"""Every engine and ``fit`` as a user's program compiles them: no XLA flags, all optimisations, no run-time type checks.

One plain process runs all of them on one conjugate problem and saves what it found; each test compares its part with
the closed form. The other tests turn optimisations off to compile quickly, and would not see one that is wrong.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from closed_forms import affine_prior, gaussian_moments, linear_posterior
from measured_errors import Mean, Moments, check, of_chains, of_independent, of_islands, of_weighted

import numpyro_diffusion as nd

TESTS = Path(__file__).parent
MATRIX, NOISE, Y = np.array([[1.0, -0.5], [0.3, 1.0]]), 0.25 * np.eye(2), np.array([1.5, -1.0])
NUM_ISLANDS = 16


def problem():
    """A Gaussian chain whose network is wrong on purpose: the posterior is that of the chain."""
    return affine_prior(nd.schedules.log_snr(4, 0.3, 10.0), [0.5, -0.3])


def rows():
    """What ``fit`` learns, eight times: 4096 numbers, the same in every column, in orders of their own."""
    random = np.random.default_rng(0)
    numbers = random.gamma(4.0, 0.5, size=4096).astype(np.float32)
    return np.stack([random.permutation(numbers) for _ in range(8)], axis=1)


def run_all(path):
    """Run in a process of its own; everything is saved by name."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    import optax
    from numpyro.handlers import reparam
    from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO

    from numpyro_diffusion.infer import (
        AutoDiffusionGuide,
        DiffusionGibbs,
        DiffusionReparam,
        EllipticalSlice,
        TwistedSMC,
    )

    prior, y, found = problem(), jnp.asarray(Y, float), {}

    def model(y=None):
        x = numpyro.sample("x", prior)
        noise = jnp.asarray(np.sqrt(np.diag(NOISE)), float)
        numpyro.sample("y", dist.Normal(jnp.asarray(MATRIX, float) @ x, noise).to_event(1), obs=y)

    smc = TwistedSMC(model, 512, NUM_ISLANDS, progress_bar=False)
    smc.run(jax.random.key(0), y)
    values, found["TwistedSMC log weights"] = smc.get_weighted_samples()
    found["TwistedSMC"] = values["x"]
    found["log evidence"] = np.asarray([smc.log_evidence, smc.log_evidence_error])

    kernels = {
        "DiffusionGibbs": DiffusionGibbs(NUTS(model), num_particles=16),
        "EllipticalSlice": EllipticalSlice(model),
        "DiffusionReparam": NUTS(reparam(model, config={"x": DiffusionReparam()})),
    }
    for name, kernel in kernels.items():
        mcmc = MCMC(
            kernel,
            num_warmup=200,
            num_samples=1000,
            num_chains=8,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(jax.random.key(1), y)
        found[name] = mcmc.get_samples(group_by_chain=True)["x"]

    guide = AutoDiffusionGuide(model)
    svi = SVI(guide.model, guide, optax.adam(optax.cosine_decay_schedule(0.05, 300)), Trace_ELBO(16))
    params = svi.run(jax.random.key(2), 300, y, progress_bar=False).params
    weighted = guide.importance_weights(jax.random.key(3), params, 4000, y)
    found["AutoDiffusionGuide"], found["AutoDiffusionGuide log weights"] = weighted.samples["x"], weighted.log_weights

    kernel = nd.GaussianKernel(nd.schedules.log_snr(3, 0.3, 50.0), parameterization="x0", variance="upper")

    def train(batch, size):
        params = numpyro.param("affine", jnp.zeros((2, kernel.num_steps + 1, 8)))
        transition = nd.Transition(affine, params, (8,))
        with numpyro.plate("data", size, subsample_size=len(batch)):
            numpyro.sample("x", nd.Diffusion(kernel, transition, rng_key=numpyro.prng_key()), obs=batch)

    def affine(params, x_t, t, context):
        return params[0, t] * x_t + params[1, t]

    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, 3000))
    options = {"optimizer": optimizer, "num_steps": 3000, "batch_size": 256, "progress_bar": False}
    found["fit"] = nd.fit(train, rows(), rng_key=jax.random.key(4), **options).params["affine"]
    found["fit alpha_bar"] = kernel.schedule.alpha_bar
    np.savez(path, **found)


# Of the session: tests that a worker takes from another come apart, and a run of the whole costs minutes.
@pytest.fixture(scope="session")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("found") / "found.npz"
    quick = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {name: value for name, value in os.environ.items() if name not in quick}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    command = [sys.executable, "-W", "error", __file__, str(path)]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(path) as arrays:
        return dict(arrays)


def exact():
    means, variances = gaussian_moments(problem())
    prior = Moments(means[0], np.diag(variances[0]))
    log_evidence, *posterior = linear_posterior(*prior, MATRIX, NOISE, Y)
    return log_evidence, Moments(*posterior), prior


def moments(x):
    """Of draws (..., 2): what Moments.of gives, with the leading shape of the draws."""
    _, posterior, _ = exact()
    return posterior.of(x.reshape(-1, 2)).reshape(*x.shape[:-1], -1)


def check_posterior(mean):
    _, posterior, prior = exact()
    check(mean, posterior.expected(posterior), prior.expected(posterior))


def test_twisted_smc(found):
    log_evidence, _, _ = exact()
    check(Mean(*found["log evidence"]), log_evidence, refused=log_evidence + 0.5)
    check_posterior(of_islands(moments(found["TwistedSMC"]), found["TwistedSMC log weights"], NUM_ISLANDS))


@pytest.mark.parametrize("name", ["DiffusionGibbs", "EllipticalSlice", "DiffusionReparam"])
def test_kernels_of_mcmc(found, name):
    check_posterior(of_chains(moments(found[name])))


def test_a_trained_guide_with_its_weights(found):
    check_posterior(of_weighted(moments(found["AutoDiffusionGuide"]), found["AutoDiffusionGuide log weights"]))


def test_fit_finds_the_best_affine_denoiser(found):
    """The regression of x^0 on x^t, however the rows are distributed: slope a s^2 / (a^2 s^2 + v)."""
    data = rows()[:, 0].astype(float)
    alpha_bar = found["fit alpha_bar"][1:]
    signal = np.sqrt(alpha_bar)
    slope = signal * data.var() / (alpha_bar * data.var() + 1 - alpha_bar)
    shift = data.mean() * (1 - slope * signal)
    check(
        of_independent(np.moveaxis(found["fit"][:, 1:], -1, 0)),
        np.stack([slope, shift]),
        refused=np.stack([signal, 0 * shift]),
    )


if __name__ == "__main__":
    run_all(sys.argv[1])
