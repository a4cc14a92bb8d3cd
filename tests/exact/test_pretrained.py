"""Networks of other parameterisations as diffusions, against Gaussian data, whose every denoiser is known.

Of data N(MEAN, SPREAD^2) and x_sigma = x^0 + sigma n, the denoiser is (SPREAD^2 x_sigma + sigma^2 MEAN) / (SPREAD^2 +
sigma^2). With the reverse variance that belongs to it, the chain's every path has the weight of the data's density.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import torch_port
from closed_forms import gaussian_moments, linear_posterior
from measured_errors import Moments, check_moments
from precision import enable_x64
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.pretrained import EDM, from_ddpm, from_denoiser

MEAN, SPREAD = np.array([0.4, -0.7]), 0.6
SIGMAS = np.geomspace(0.02, 300.0, 8)
BETAS = np.linspace(1e-3, 0.5, 20)
ALPHAS_CUMPROD = np.cumprod(1 - BETAS)


def denoiser(params, x, sigma, context):
    assert x.ndim == 2
    assert sigma.shape == x.shape[:1]
    level = sigma[:, None]
    return (SPREAD**2 * x + level**2 * params) / (SPREAD**2 + level**2)


def noise(params, x, sigma, context):
    return (x - denoiser(params, x, sigma, context)) / sigma[:, None]


def score(params, x, sigma, context):
    return (params - x) / (SPREAD**2 + sigma[:, None] ** 2)


def edm_network(params, x_in, c_noise, context):
    """F of the exact denoiser, for a network that was trained with sigma_data = 0.5."""
    sigma, scale = jnp.exp(4 * c_noise), 0.5
    total = sigma[:, None] ** 2 + scale**2
    x = x_in * jnp.sqrt(total)
    exact = denoiser(params, x, sigma, context)
    return (exact - scale**2 / total * x) / (sigma[:, None] * scale / jnp.sqrt(total))


def prior_of(network=denoiser, output="x0", mean=MEAN, sigmas=SIGMAS):
    return from_denoiser(network, jnp.asarray(mean, float), sigmas, event_shape=(2,), output=output, data_scale=SPREAD)


NETWORKS = {
    "x0": (denoiser, "x0"),
    "noise": (noise, "noise"),
    "score": (score, "score"),
    "edm": (EDM(edm_network), "x0"),
}
networks = pytest.mark.parametrize(("network", "output"), NETWORKS.values(), ids=NETWORKS)


def exact_denoised(x_t, abar):
    """E[x^0 | x^t] by the conjugate rule on x^t = sqrt(abar) x^0 + sqrt(1 - abar) n, with no sigma in it."""
    gain = np.sqrt(abar) * SPREAD**2 / (abar * SPREAD**2 + 1 - abar)
    return MEAN + gain * (x_t - np.sqrt(abar) * MEAN)


@networks
def test_the_denoised_state_is_exact_at_every_level(network, output):
    with enable_x64():
        chain = prior_of(network, output).chain
        t = jnp.arange(1, len(SIGMAS) + 1)
        x_t = jax.random.normal(jax.random.key(0), (3, len(SIGMAS), 2))
        expected = exact_denoised(np.asarray(x_t), (1 / (1 + SIGMAS**2))[:, None])
        np.testing.assert_allclose(chain.denoised(x_t, t), expected, rtol=1e-7, atol=1e-7)


@networks
def test_the_chain_has_the_moments_of_the_data(network, output):
    with enable_x64():
        means, variances = gaussian_moments(prior_of(network, output))
    np.testing.assert_allclose(means[0], MEAN, atol=1e-4)
    np.testing.assert_allclose(variances[0], SPREAD**2, rtol=1e-4)


@networks
def test_every_path_weighs_the_density_of_the_data(network, output):
    x = jnp.array([[0.0, 0.0], [1.5, -2.0]])
    exact = norm(MEAN, SPREAD).logpdf(x).sum(-1)
    with enable_x64():
        prior = prior_of(network, output)
        estimate = nd.Diffusion(
            prior.kernel, prior.transition, estimator=nd.ImportanceWeighted(1), rng_key=jax.random.key(0)
        )
        # What is left is sqrt(abar_T) x^0 at the top, 0.003 of a standard deviation.
        np.testing.assert_allclose(estimate.log_prob(x.astype(float)), exact, atol=0.02)


def test_a_posterior_is_that_of_the_gaussian():
    matrix, noise_covariance, y = np.array([[1.0, 0.5]]), np.array([[0.3**2]]), np.array([1.2])

    def model(y):
        x = numpyro.sample("x", prior_of())
        numpyro.sample("y", dist.Normal(jnp.asarray(matrix, float) @ x, 0.3).to_event(1), obs=y)

    smc = nd.infer.TwistedSMC(model, 256, 16, "gaussian", progress_bar=False)
    smc.run(jax.random.key(1), y=y)
    before = Moments(MEAN, SPREAD**2 * np.eye(2))
    log_evidence, *after = linear_posterior(*before, matrix, noise_covariance, y)
    assert abs(smc.log_evidence - log_evidence) < 5 * smc.log_evidence_error + 1e-3 < 0.2
    check_moments(smc, lambda samples: samples["x"], Moments(*after), before)


def test_fewer_steps_ask_the_network_at_their_own_sigmas():
    with enable_x64():
        prior = prior_of().respaced(levels=[2, 5, 8])
        x_t = jnp.array([[0.3, -0.2]] * 3)
        expected = exact_denoised(np.asarray(x_t), (1 / (1 + SIGMAS[[1, 4, 7]] ** 2))[:, None])
        np.testing.assert_allclose(prior.chain.denoised(x_t, jnp.arange(1, 4)), expected, rtol=1e-7)


def test_a_network_sees_one_batch_axis_whatever_the_chain_has():
    prior = prior_of()
    x_t, t = jax.random.normal(jax.random.key(0), (2, 3, 2)), jnp.array([[1], [4]])
    together = prior.transition(x_t, t)
    alone = jnp.stack([prior.transition(x_t[i], t[i, 0]) for i in range(2)])
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    assert prior.transition(x_t[0, 0], 1).shape == (2,)


def test_a_context_keeps_its_batch():
    def shifted(params, x, sigma, context):
        assert context.shape == (len(x), 3)
        return denoiser(params, x, sigma, None) + context[:, :2]

    context = jnp.arange(24.0).reshape(2, 4, 3)
    settings = {"event_shape": (2,), "context_shape": (3,), "context": context}
    prior = from_denoiser(shifted, jnp.asarray(MEAN, float), SIGMAS, **settings)
    assert prior.batch_shape == (2, 4)
    x_t = jnp.zeros((2, 4, 2))
    found = prior.transition(x_t, 3, context) - prior_of().transition(x_t, 3)
    np.testing.assert_allclose(found, context[..., :2], rtol=1e-5, atol=1e-5)


def test_priors_built_anew_compile_once_and_parameters_get_gradients():
    traces = []

    @jax.jit
    def squares(prior, key):
        traces.append(prior)
        return (prior.sample(key, (4,)) ** 2).sum()

    for mean in (MEAN, 2 * MEAN):
        squares(prior_of(EDM(edm_network), mean=mean), jax.random.key(0))
    assert len(traces) == 1
    gradient = jax.grad(lambda mean: squares(prior_of(mean=mean), jax.random.key(0)))(jnp.asarray(MEAN, float))
    assert (jnp.abs(gradient) > 0.1).all()


def test_a_prior_is_saved_and_loaded_with_its_sigmas(tmp_path):
    prior = prior_of()
    nd.save(prior, tmp_path / "prior.safetensors")
    loaded = nd.load(tmp_path / "prior.safetensors", network=prior.transition.function)
    draws = (p.sample(jax.random.key(0), (5,)) for p in (prior, loaded))
    np.testing.assert_array_equal(*draws)


def test_a_network_of_flax_or_equinox_is_a_denoiser():
    from flax import nnx

    class Denoiser(nnx.Module):
        def __init__(self):
            self.mean = nnx.Param(jnp.asarray(MEAN, jnp.float32))

        def __call__(self, x, sigma):
            return denoiser(self.mean[...], x, sigma, None)

    network, params = nd.bridges.nnx_network(Denoiser())
    prior = from_denoiser(network, params, SIGMAS, event_shape=(2,), data_scale=SPREAD)
    x_t = jnp.ones((2, 2))
    np.testing.assert_allclose(prior.transition(x_t, 3), prior_of().transition(x_t, 3), rtol=1e-6)


# DDPM ----------------------------------------------------------------------------------------------


def ddpm_noise(params, x, index, context):
    """The exact E[n | x^t], by a table whose index 0 is the first step."""
    assert index.shape == x.shape[:1]
    assert jnp.issubdtype(index.dtype, jnp.integer)
    abar = jnp.asarray(ALPHAS_CUMPROD)[index][:, None]
    exact = MEAN + jnp.sqrt(abar) * SPREAD**2 / (abar * SPREAD**2 + 1 - abar) * (x - jnp.sqrt(abar) * MEAN)
    return (x - jnp.sqrt(abar) * exact) / jnp.sqrt(1 - abar)


def ddpm_v(params, x, index, context):
    abar = jnp.asarray(ALPHAS_CUMPROD)[index][:, None]
    eps = ddpm_noise(params, x, index, context)
    return jnp.sqrt(abar) * eps - jnp.sqrt(1 - abar) * (x - jnp.sqrt(1 - abar) * eps) / jnp.sqrt(abar)


@pytest.mark.parametrize(("network", "output"), [(ddpm_noise, "noise"), (ddpm_v, "v")], ids=["epsilon", "v"])
def test_a_ddpm_network_counts_its_steps_from_0(network, output):
    with enable_x64():
        prior = from_ddpm(network, None, nd.Schedule.from_beta(BETAS), event_shape=(2,), output=output)
        x_t = jax.random.normal(jax.random.key(0), (len(BETAS), 2))
        expected = exact_denoised(np.asarray(x_t), ALPHAS_CUMPROD[:, None])
        np.testing.assert_allclose(prior.chain.denoised(x_t, jnp.arange(1, len(BETAS) + 1)), expected, rtol=1e-7)
        shorter = prior.respaced(levels=[4, 20])
        expected = exact_denoised(np.asarray(x_t[:2]), ALPHAS_CUMPROD[[3, 19], None])
        np.testing.assert_allclose(shorter.chain.denoised(x_t[:2], jnp.arange(1, 3)), expected, rtol=1e-7)


def test_a_table_of_abar_is_a_table_of_sigmas():
    by_sigmas = nd.schedules.from_sigmas(np.sqrt(1 / ALPHAS_CUMPROD - 1))
    by_beta = nd.Schedule.from_beta(BETAS)
    for name in ("beta", "alpha_bar", "noise_variance"):
        np.testing.assert_allclose(getattr(by_sigmas, name), getattr(by_beta, name), rtol=1e-12)


def test_sigmas_are_half_the_log_snr():
    schedule = nd.schedules.from_sigmas(SIGMAS)
    np.testing.assert_allclose(schedule.log_snr[1:], -2 * np.log(SIGMAS), rtol=1e-5)
    again = nd.schedules.log_snr(8, 0.02, 300.0)
    np.testing.assert_array_equal(nd.schedules.from_sigmas(np.geomspace(300.0, 0.02, 8)[::-1]).beta, again.beta)


# A network of PyTorch ------------------------------------------------------------------------------


def test_a_port_of_a_pytorch_network_has_its_outputs():
    stored = torch_port.outputs()
    with enable_x64():
        weights = torch_port.weights(np.float64)
        found = torch_port.noise_network(weights, jnp.asarray(stored["x"], float), jnp.asarray(stored["t"]), None)
        np.testing.assert_allclose(found, stored["output"], rtol=1e-12, atol=1e-13)
    weights = torch_port.weights(np.float32)
    found = torch_port.noise_network(weights, jnp.asarray(stored["x"]), jnp.asarray(stored["t"]), None)
    np.testing.assert_allclose(found, stored["output"], rtol=2e-5, atol=2e-5)


def test_a_pytorch_network_draws_what_it_was_trained_on():
    schedule = nd.Schedule.from_beta(torch_port.outputs()["betas"])
    weights = torch_port.weights(np.float32)
    prior = from_ddpm(torch_port.noise_network, weights, schedule, event_shape=(2,), variance="lower")
    x = np.asarray(prior.sample(jax.random.key(0), (2000,)))
    right = x[:, 0] > 0
    assert abs(right.mean() - 0.5) < 0.06
    for side, mean in ((~right, [-1.0, 0.0]), (right, [1.0, 0.5])):
        np.testing.assert_allclose(x[side].mean(0), mean, atol=0.06)
        np.testing.assert_allclose(x[side].std(0), 0.2, atol=0.05)


# Bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([3.0, 2.0, 1.0], r"got sigma_2 = 2\.0, after sigma_1 = 3\.0\. .*sigmas\[::-1\]"),
        ([0.0, 1.0], r"got sigma_1 = 0\.0\. Sigma_1 is the smallest noise, not 0"),
        ([-1.0, 1.0], r"got sigma_1 = -1\.0"),
        ([1.0, 1.0], r"got sigma_2 = 1\.0, after sigma_1 = 1\.0"),
        ([1.0, np.inf], r"got sigma_2 = inf"),
        ([1.0, np.nan, 2.0], r"got sigma_2 = nan"),
        (np.ones((1, 1)), r"of shape \(T,\) with T >= 1; got shape \(1, 1\)"),
        ([], r"of shape \(T,\) with T >= 1; got shape \(0,\)"),
    ],
)
def test_a_table_that_does_not_rise_is_refused(sigmas, message):
    with pytest.raises(ValueError, match=message):
        prior_of(sigmas=sigmas)


def test_wrong_outputs_and_names_are_refused():
    settings = {"params": None, "sigmas": SIGMAS, "event_shape": (2,)}
    with pytest.raises(ValueError, match=r"of shape \(1, 2\) .* got shape \(1, 1\)"):
        from_denoiser(lambda params, x, sigma, context: x[:, :1], **settings)
    with pytest.raises(TypeError, match=r"got dtype float16"):
        from_denoiser(lambda params, x, sigma, context: x.astype(jnp.float16), **settings)
    with pytest.raises(
        TypeError, match=r"Expected a network that can be called .*; got TypeError.*network\(params, x,"
    ):
        from_denoiser(lambda x, sigma: x, **settings)
    with pytest.raises(ValueError, match=r"Expected output one of x0, noise, score; got 'v'"):
        from_denoiser.__wrapped__(denoiser, **settings, output="v")
    with pytest.raises(ValueError, match=r"Expected sigma_data > 0; got 0\.0"):
        EDM(denoiser, 0.0)
