"""The files that CONTRIBUTING says to copy are short, pass the generic tests, and give posteriors that are known."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from catalogue import NUM_STEPS, Case, affine, floats
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import TiltedChain

ROOT = Path(__file__).parent.parent
SKELETONS = ROOT / "docs" / "skeletons"


def module(path):
    """A file as a module, under a name of its own."""
    name = f"skeletons_{path.parent.name}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def kernel(num_steps=NUM_STEPS):
    return module(SKELETONS / "kernel.py").ScaledKernel(nd.schedules.log_snr(num_steps, 0.05, 20.0), scale=2.0)


def near_data(y, noise):
    return module(SKELETONS / "guidance.py").NearData(y, noise)


CASES = [
    Case("forward kernel", lambda **k: nd.ForwardChain(kernel(), floats(3, 2), **k), (3,), (NUM_STEPS, 2)),
    Case("reverse kernel", lambda **k: nd.ReverseChain(kernel(), affine((2,)), **k), (), (NUM_STEPS + 1, 2)),
    Case(
        "tilted kernel guidance",
        lambda **k: TiltedChain(nd.ReverseChain(kernel(), affine((2,))), near_data(floats(2), 0.7), **k),
        (),
        (NUM_STEPS + 1, 2),
    ),
]
CONTRACT = {
    "test_shapes": (
        "test_batch_and_event_shape_are_those_of_the_arguments",
        "test_a_draw_has_sample_then_batch_then_event_shape",
        "test_a_law_is_called_as_numpyro_s_sample_primitive_does",
        "test_draws_differ_along_every_sample_and_batch_axis",
        "test_the_same_key_draws_the_same_and_another_does_not",
        "test_log_prob_compiled_is_log_prob_eager",
    ),
    "test_pytree": ("test_flattening_and_rebuilding_keeps_everything", "test_a_law_built_anew_compiles_once"),
    "test_gradients": ("test_gradients_of_log_prob_are_finite_and_not_all_zero",),
    "test_precision": ("test_single_precision_stays_single", "test_no_nan_arises_on_the_way"),
    "test_validation": ("test_a_concrete_value_outside_the_support_is_refused",),
}


@pytest.mark.parametrize("path", sorted(SKELETONS.glob("*.py")), ids=lambda path: path.stem)
def test_a_skeleton_is_a_file_under_60_lines_that_says_copy_me(path):
    text = path.read_text()
    assert len(text.splitlines()) < 60
    assert "Copy me" in text
    assert f"skeletons/{path.name}" in (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@pytest.mark.parametrize(("file", "test"), [(file, test) for file, tests in CONTRACT.items() for test in tests])
def test_kernel_and_guidance_pass_the_generic_tests(case, file, test):
    getattr(module(ROOT / "tests" / "contract" / f"{file}.py"), test)(case)


def test_steps_in_a_row_are_the_marginal_and_the_bridge_satisfies_bayes_rule():
    found, x_0, x_before, x_t = kernel(6), floats(3), floats(3, seed=1), floats(3, seed=2)
    mean, variance = x_0, jnp.zeros(3)
    for t in range(1, 7):
        step = found.step(mean, t)
        mean, variance = step.loc, found.step(jnp.ones(3), t).loc ** 2 * variance + step.variance
        np.testing.assert_allclose(mean, found.marginal(x_0, t).loc, atol=1e-5)
        np.testing.assert_allclose(variance, found.marginal(x_0, t).variance, rtol=1e-5)
        if t > 1:
            bayes = found.step(x_before, t).log_prob(x_t) + found.marginal(x_0, t - 1).log_prob(x_before)
            bayes = bayes - found.marginal(x_0, t).log_prob(x_t)
            np.testing.assert_allclose(found.bridge(x_t, x_0, t).log_prob(x_before), bayes, rtol=1e-3, atol=1e-3)


def scaled_normal(size, num_steps=20):
    """The prior N(0, 4) in each coordinate, by its exact denoiser."""
    law = kernel(num_steps)

    def denoiser(params, x_t, t, context):
        return jnp.sqrt(jnp.asarray(law.schedule.alpha_bar, float)[t]).reshape(jnp.shape(t) + (1,)) * x_t

    return nd.Diffusion(law, nd.Transition(denoiser, None, (size,)))


def observed(prior):
    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    return model


def check_conjugate(draws, y):
    """Of N(4 y / 5, 4 / 5), by chains of shape (chains, draws, d)."""
    draws = np.asarray(draws, np.float64)
    centred = (draws - 0.8 * np.asarray(y)) / np.sqrt(0.8)
    for values in (centred, centred**2 - 1):
        errors = values.reshape(-1, values.shape[-1]).std(0) / np.sqrt(effective_sample_size(values))
        assert (np.abs(values.mean((0, 1))) < 5 * errors).all()


def test_the_engine_draws_the_conjugate_posterior():
    y, engine = jnp.asarray([1.5, -2.0]), module(SKELETONS / "engine.py").CrankNicolson
    mcmc = MCMC(engine(observed(scaled_normal(2))), num_warmup=200, num_samples=4000, num_chains=4, progress_bar=False,
                chain_method="vectorized")  # fmt: skip
    mcmc.run(jax.random.key(0), y)
    check_conjugate(mcmc.get_samples(group_by_chain=True)["x"], y)
    assert 0.1 < float(mcmc.last_state.accept_prob.mean()) <= 1
    with pytest.raises(ValueError, match=r"Expected step_size in \(0, 1\]; got 2"):
        engine(observed(scaled_normal(2)), step_size=2)


def test_an_engine_is_exact_with_the_guidance_and_the_guided_chain_is_nearer_to_the_posterior_than_the_prior():
    y, prior = jnp.asarray([1.5, -2.0]), scaled_normal(2)
    engine = nd.infer.DiffusionHMC(observed(prior), guidance={"x": near_data(y, 1.0)})
    mcmc = MCMC(engine, num_warmup=300, num_samples=1000, num_chains=4, progress_bar=False, chain_method="vectorized")
    mcmc.run(jax.random.key(1), y)
    check_conjugate(mcmc.get_samples(group_by_chain=True)["x"], y)
    guided = TiltedChain(prior.chain, near_data(y, 1.0)).sample(jax.random.key(2), (2000,))[:, 0]
    free = prior.sample(jax.random.key(2), (2000,))
    assert jnp.square(guided - 0.8 * y).mean() < 0.5 * jnp.square(free - 0.8 * y).mean()


def test_the_kernel_learns_by_the_bound_which_its_exact_denoiser_makes_the_log_density():
    prior = scaled_normal(1)
    x = jnp.asarray([[-3.0], [0.5], [2.0]])
    found = nd.evaluation.importance_weighted(jax.random.key(3), prior, x, num_trajectories=200)
    np.testing.assert_allclose(found.nats, dist.Normal(0.0, 2.0).log_prob(x[:, 0]).mean(), atol=0.02)
