"""The probability flow against exact densities, its interpolation against the exact denoiser, entropy bounds."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from evaluation_cases import (
    MEANS,
    SCALE,
    WEIGHTS,
    bits_model,
    enumerated_bits,
    mixture_draws,
    mixture_log_density,
    mixture_model,
    wavy_model,
)
from measured_errors import check, of_independent
from precision import enable_x64

import numpyro_diffusion as nd
from numpyro_diffusion.evaluation import ProbabilityFlow, entropy_bounds, probability_flow
from numpyro_diffusion.evaluation.flow import interpolated_denoiser, log_noise_to_signal

KEY = jax.random.key(0)


def gaussian_model(num_steps, mean, scale):
    schedule = nd.schedules.log_snr(num_steps, 0.1, 1e5)
    kernel = nd.GaussianKernel(schedule, parameterization="x0", variance="denoiser")
    return nd.Diffusion(kernel, nd.analytic.gaussian_mixture(kernel, jnp.asarray(mean)[None], scale, jnp.ones(1)))


def test_flow_of_one_gaussian_is_its_density():
    with enable_x64(True):
        mean, scale = np.array([0.3, -1.0]), 0.7
        x = np.random.default_rng(0).normal(size=(6, 2))
        exact = -0.5 * (((x - mean) / scale) ** 2).sum(-1) - 2 * math.log(scale) - math.log(2 * math.pi)
        estimator = ProbabilityFlow(rtol=1e-7, atol=1e-7)
        found = probability_flow(KEY, gaussian_model(160, mean, scale), x, estimator=estimator, chunk_size=4)
        # What is left is the interpolation, and the signal sqrt(abar_T) = 1e-5 at the end.
        np.testing.assert_allclose(found.per_point, exact, atol=5e-5)


def test_flow_of_a_mixture_is_its_density():
    x = mixture_draws(60)
    found = probability_flow(KEY, mixture_model(60), x.astype(np.float32))
    assert np.abs(found.per_point - mixture_log_density(x)).mean() < 0.005
    assert found.divergence_standard_error == 0


def test_interpolation_is_exact_at_the_steps_and_of_fourth_order_between():
    with enable_x64(True):
        x, steps = jnp.asarray([0.4, -0.3]), 21
        errors = []
        for refinement in (1, 2):
            coarse, fine = (mixture_model(factor * (steps - 1) + 1, 0.05, 50.0) for factor in (refinement, 4))
            nodes = log_noise_to_signal(coarse.kernel, x.dtype)
            fine_nodes = log_noise_to_signal(fine.kernel, x.dtype)
            # Every level of the finest chain, whose own denoiser is exact there.
            exact = jax.vmap(lambda t, model=fine: model.transition(x, t)[0])(jnp.arange(1, len(fine_nodes) + 1))
            found = jax.vmap(lambda u, model=coarse, nodes=nodes: interpolated_denoiser(model.chain, x, u, nodes))(
                fine_nodes
            )
            difference = np.abs(np.asarray(found - exact))
            assert difference[:: 4 // refinement].max() < 1e-10
            errors.append(difference[2::4].max() if refinement == 1 else difference[1::2].max())
        assert errors[0] < 0.01
        assert errors[0] / errors[1] > 10  # 16 in the limit


def test_hutchinson_errors_are_what_they_say():
    model, x = mixture_model(20), mixture_draws(200, seed=1).astype(np.float32)
    exact = probability_flow(KEY, model, x)
    found = probability_flow(KEY, model, x, estimator=ProbabilityFlow(exact_dimension=1, num_probes=32))
    # The same x^1, so that only the divergence differs.
    errors = found.divergence_standard_errors
    is_seen = errors > 5e-3  # elsewhere what differs is the solver's own error
    assert is_seen.mean() > 0.5
    z = ((found.per_point - exact.per_point) / errors)[is_seen]
    assert 0.8 < np.sqrt((z**2).mean()) < 1.25  # the standard error of this root is 0.05
    assert np.abs(found.nats - exact.nats) < 5 * found.divergence_standard_error
    assert found.divergence_standard_error < 0.1


def test_flow_is_a_lower_bound_when_the_last_step_is_wrong():
    """Fewer and coarser steps: p(x^0 | x^1) is then no posterior, and the joined estimate falls short."""
    x = mixture_draws(400, seed=2)
    found = probability_flow(KEY, mixture_model(20, sigma_min=1.0), x.astype(np.float32), num_draws=2)
    assert found.nats < mixture_log_density(x).mean() - 0.02


def test_flow_is_an_estimator_of_diffusion():
    model = mixture_model(20)
    distribution = nd.Diffusion(model.kernel, model.transition, estimator=ProbabilityFlow(), rng_key=KEY)
    x = mixture_draws(20).astype(np.float32)
    values = jax.jit(distribution.log_prob)(x.reshape(2, 10, 2))
    assert values.shape == (2, 10)
    check_values(values, mixture_log_density(x))
    assert hash(ProbabilityFlow()) == hash(ProbabilityFlow())


def check_values(found, wanted):
    """One number for each point, up to the noise of x^1: neither all the same nor those of other points."""
    wanted = np.asarray(wanted, float).ravel()
    apart = wanted - wanted.mean()
    errors = np.asarray(found, float).ravel() - wanted
    check(of_independent(np.stack([errors, errors * apart], 1)), 0.0, refused=[0.0, -(apart**2).mean()])


@pytest.mark.slow
def test_gradients_of_the_flow_are_the_datas_scores():
    model, x = mixture_model(40), mixture_draws(12).astype(np.float32)
    distribution = nd.Diffusion(model.kernel, model.transition, estimator=ProbabilityFlow(), rng_key=KEY)
    found = jax.jit(jax.grad(lambda x: distribution.log_prob(x).sum()))(x)
    check_values(found, jax.vmap(jax.grad(exact_log_density))(x))


def exact_log_density(x):
    """As mixture_log_density, for gradients."""
    return jax.nn.logsumexp(-0.5 * ((x - MEANS) ** 2).sum(-1) / SCALE**2 + np.log(WEIGHTS))


def test_flow_takes_a_context_for_each_point():
    contexts, x = jnp.arange(6.0).reshape(3, 2), np.ones((3, 2), np.float32)
    found = probability_flow(KEY, wavy_model(5, contexts), x, chunk_size=1)
    swapped = probability_flow(KEY, wavy_model(5, contexts[jnp.array([1, 0, 2])]), x, chunk_size=1)
    assert found.per_point[2] == swapped.per_point[2]
    assert (np.abs(found.per_point - swapped.per_point)[:2] > 0.01).all()
    distribution = nd.Diffusion(
        wavy_model(5).kernel,
        wavy_model(5, contexts).transition,
        context=contexts,
        estimator=ProbabilityFlow(),
        rng_key=KEY,
    )
    assert distribution.log_prob(x).shape == (3,)


def test_bits_do_not_flow():
    with pytest.raises(TypeError, match="a kernel of real states for the probability flow; got BernoulliKernel"):
        probability_flow(KEY, bits_model(), np.zeros((1, 2), int))
    bits = bits_model()
    distribution = nd.Diffusion(bits.kernel, bits.transition, estimator=ProbabilityFlow(), rng_key=KEY)
    with pytest.raises(TypeError, match="a kernel of real states for the probability flow"):
        distribution.log_prob(np.zeros(2, int))


def test_schedules_without_a_flow_are_refused():
    with pytest.raises(ValueError, match="4 or more steps; got 3"):
        probability_flow(KEY, wavy_model(3), np.zeros((1, 2), np.float32))
    kernel = nd.GaussianKernel(nd.schedules.constant_fraction(5))
    model = nd.Diffusion(kernel, wavy_model().transition)
    with pytest.raises(ValueError, match="b_T < 1 for the probability flow"):
        probability_flow(KEY, model, np.zeros((1, 2), np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0.0}, "rtol > 0"),
        ({"atol": math.nan}, "atol > 0"),
        ({"num_probes": 1}, "num_probes to be an integer >= 2"),
        ({"exact_dimension": -1}, "exact_dimension"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_settings_that_make_no_flow_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ProbabilityFlow(**options)


def test_too_few_steps_of_the_solver_are_an_error_and_not_a_number():
    with pytest.raises(RuntimeError, match="maximum number of solver steps"):
        probability_flow(
            KEY, mixture_model(20), mixture_draws(2).astype(np.float32), estimator=ProbabilityFlow(max_steps=2)
        )


def test_entropies_of_unit_gaussian_data_meet_their_upper_bound():
    """Then the reverse step is N(., b_t), and the forward chain keeps the entropy of X^t."""
    kernel = nd.GaussianKernel(nd.schedules.log_snr(4, 0.3, 20.0), variance="upper")
    model = nd.Diffusion(kernel, nd.Transition(lambda params, x_t, t, context: 0 * x_t, None, (2,)))
    found = entropy_bounds(KEY, model, np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32), chunk_size=3)
    beta, noise = np.asarray(kernel.schedule.beta), np.asarray(kernel.schedule.noise_variance)
    upper = np.log(2 * math.pi * math.e * beta[1:])
    np.testing.assert_allclose(found.upper, upper, rtol=1e-5)
    np.testing.assert_allclose(found.model[1:], upper[1:], rtol=1e-5)
    np.testing.assert_allclose(found.lower[1:], upper[1:] + np.log(noise[1:-1] / noise[2:]), rtol=1e-4)
    assert found.lower[0] == -math.inf
    assert (found.lower < found.upper).all()


def test_entropy_bounds_of_a_transformed_model_are_those_of_its_states():
    kernel = nd.GaussianKernel(nd.schedules.log_snr(4, 0.3, 20.0), variance="upper")
    model = nd.Diffusion(kernel, nd.Transition(lambda params, x_t, t, context: 0.3 * x_t, None, (2,)))
    x = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    scaled = dist.TransformedDistribution(model, dist.transforms.AffineTransform(128.0, 60.0))
    found, expected = entropy_bounds(KEY, scaled, 128 + 60 * x), entropy_bounds(KEY, model, x)
    for name in ("lower", "upper", "model"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4)


def test_entropy_bounds_of_bits_hold_the_enumerated_entropy():
    model, x = bits_model(rate=0.5), np.array([[1, 0], [0, 1]] * 2000)
    kernel = model.kernel
    found = entropy_bounds(KEY, model, x)
    for t in range(1, kernel.num_steps + 1):
        joint = np.zeros((4, 4))  # x^{t-1}, x^t
        for x_0 in x[:2]:
            states, before = enumerated_bits(kernel.marginal(jnp.asarray(x_0), t - 1))
            steps = np.stack([enumerated_bits(kernel.step(state, t))[1] for state in states])
            joint += 0.5 * before[:, None] * steps
        entropy = -(joint * np.log(np.maximum(joint, 1e-30))).sum() + (joint.sum(0) * np.log(joint.sum(0))).sum()
        assert found.lower[t - 1] - 1e-5 <= entropy <= found.upper[t - 1] + 1e-5
        forward = sum(
            p * enumerated_entropy(kernel.step(state, t)) for p, state in zip(joint.sum(1), states, strict=True)
        )
        assert found.upper[t - 1] == pytest.approx(forward, abs=1e-4)
        own = sum(
            p * enumerated_entropy(model.chain.conditional(state, t).base_dist)
            for p, state in zip(joint.sum(0), states, strict=True)
        )
        assert abs(found.model[t - 1] - own) < 5 * found.model_standard_errors[t - 1] + 1e-5
        spread = [enumerated_entropy(kernel.marginal(jnp.asarray(x[0]), s)) for s in (t - 1, t)]
        assert found.lower[t - 1] == pytest.approx(forward + spread[0] - spread[1], abs=1e-4)


def enumerated_entropy(distribution):
    probabilities = enumerated_bits(distribution)[1]
    return float(-(probabilities * np.log(np.maximum(probabilities, 1e-30))).sum())
