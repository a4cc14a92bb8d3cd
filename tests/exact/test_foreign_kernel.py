"""A kernel that the package does not know goes through every chain, estimate and engine that its mathematics allows.

It is Gaussian with noise of standard deviation S, q(x^t | x^0) = N(sqrt(abar_t) x^0, v_t S^2), written on the abstract
methods alone. The prior is N(MEAN, SPREAD^2), whose denoiser is exact, so that answers are conjugate.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from measured_errors import check, of_independent
from numpyro.distributions import constraints
from numpyro.infer import HMC, MCMC, SVI, Trace_ELBO

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import GaussianFactor, MomentMatching, PaperTilt, ReconstructionGuidance, TiltedChain
from numpyro_diffusion.infer import AutoDiffusionGuide, DiffusionGibbs, DiffusionReparam, EllipticalSlice, TwistedSMC

S, MEAN, SPREAD, NOISE, Y = 3.0, 1.0, 2.0, 1.5, 4.0
T = 30


def normal(loc, scale):
    return dist.Normal(loc, scale, validate_args=False)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaled(nd.Kernel):
    """Not a GaussianKernel: nothing of that class is called."""

    schedule: nd.Schedule

    is_discrete = False
    element_support = constraints.real
    num_outputs = 2

    def check_data(self, name, value):
        if not np.isfinite(np.asarray(value)).all():
            raise ValueError(f"Expected finite values for {name}.")

    def stationary(self, shape):
        return normal(jnp.zeros(shape), S)

    def step(self, x_previous, t):
        beta = self._at("beta", t)
        return normal(jnp.sqrt(1 - beta) * x_previous, S * jnp.sqrt(beta))

    def marginal(self, x_0, t):
        return normal(jnp.sqrt(self._at("alpha_bar", t)) * x_0, S * jnp.sqrt(self._at("noise_variance", t)))

    def bridge(self, x_t, x_0, t):
        return normal(self._mean(x_t, x_0, t), jnp.sqrt(self._lower(t)))

    def reverse(self, output, x_t, t):
        mean, variance = output
        gain = self._mean(jnp.zeros(()), jnp.ones(()), t)
        return normal(self._mean(x_t, mean, t), jnp.sqrt(self._lower(t) + gain**2 * variance))

    def denoised(self, output, x_t, t):
        return output[0]

    def tilt(self, distribution, slope):
        return normal(distribution.loc + distribution.scale**2 * slope, distribution.scale)

    def kl(self, bridge, reverse):
        ratio = bridge.scale / reverse.scale
        log_ratio = jnp.log(jnp.where(ratio > 0, ratio, 1.0))
        return 0.5 * (ratio**2 - 1 + ((bridge.loc - reverse.loc) / reverse.scale) ** 2) - log_ratio

    def from_noise(self, distribution, noise):
        return distribution.loc + distribution.scale * noise

    def _mean(self, x_t, x_0, t):
        beta, noise = self._at("beta", t), self._at("noise_variance", t)
        before, noise_before = self._at("alpha_bar", t - 1), self._at("noise_variance", t - 1)
        return (jnp.sqrt(before) * beta * x_0 + jnp.sqrt(1 - beta) * noise_before * x_t) / noise

    def _lower(self, t):
        return S**2 * self._at("beta", t) * self._at("noise_variance", t - 1) / self._at("noise_variance", t)

    def _at(self, name, t):
        return jnp.asarray(getattr(self.schedule, name), float)[jnp.asarray(t)]


KERNEL = Scaled(nd.schedules.log_snr(T, 0.02, 300.0))


def exact(params, x_t, t, context):
    """Mean and variance of x^0 given x^t."""
    power, noise = (jnp.asarray(values, float)[t][..., None] for values in params)
    total = power * SPREAD**2 + S**2 * noise
    gain = jnp.sqrt(power) * SPREAD**2 / total
    return MEAN + gain * (x_t - jnp.sqrt(power) * MEAN), jnp.broadcast_to(SPREAD**2 * S**2 * noise / total, x_t.shape)


PARAMS = (KERNEL.schedule.alpha_bar, KERNEL.schedule.noise_variance)
PRIOR = nd.Diffusion(KERNEL, nd.Transition(exact, jax.tree.map(jnp.asarray, PARAMS), (1,)))
SHARE = SPREAD**2 / (SPREAD**2 + NOISE**2)
POSTERIOR = MEAN + SHARE * (Y - MEAN), np.sqrt(SHARE) * NOISE
EVIDENCE = float(dist.Normal(MEAN, np.hypot(SPREAD, NOISE)).log_prob(Y))


def model():
    x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=jnp.array([Y]))


def log_r(x):
    return dist.Normal(x, NOISE).log_prob(Y).sum()


def check_posterior(draws, effective):
    mean, sd = POSTERIOR
    assert abs(draws.mean() - mean) < 5 * sd / np.sqrt(effective) + 0.01  # of T = 30
    assert abs(draws.std() / sd - 1) < 5 / np.sqrt(2 * effective) + 0.01
    assert effective > 100


def test_the_algebra_of_a_step_follows_from_the_abstract_methods():
    t = jnp.arange(1, T + 1)
    signal, noise = KERNEL.signal_and_noise(t, 0.0)
    np.testing.assert_allclose(signal**2, KERNEL.schedule.alpha_bar[1:], rtol=1e-4)
    np.testing.assert_allclose(noise, S**2 * KERNEL.schedule.noise_variance[1:], rtol=1e-4)
    gaussian = nd.GaussianKernel(KERNEL.schedule)
    np.testing.assert_allclose(KERNEL.bridge_terms(t, 0.0)[0], gaussian.bridge_terms(t, 0.0)[0], rtol=1e-3)
    np.testing.assert_allclose(KERNEL.denoising_gain(t, 0.0), S**2 * gaussian.denoising_gain(t, 0.0), rtol=1e-3)
    step = PRIOR.chain.reverse(jnp.zeros((5, 1)), jnp.arange(2, 7))
    left = KERNEL.variance_left(step, jnp.arange(2, 7)[:, None])
    np.testing.assert_allclose(left, PRIOR.transition(jnp.zeros((5, 1)), jnp.arange(2, 7))[1], rtol=2e-2)


@pytest.mark.parametrize("estimator", [nd.ImportanceWeighted(64), nd.AllSteps(200), nd.RandomStep(4000)])
def test_estimates_are_the_density_of_a_normal(estimator):
    x = jnp.array([[-3.0], [1.0], [4.0]])
    keys = jax.random.split(jax.random.key(0), 20)
    found = jax.jit(jax.vmap(lambda key: estimator(key, PRIOR.chain, x)))(keys)
    wanted, base = (distribution.log_prob(x)[:, 0] for distribution in (dist.Normal(MEAN, SPREAD), dist.Normal(0.0, S)))
    check(of_independent(found), wanted, refused=base)


@pytest.mark.parametrize("twist", ["tempered", "gaussian"])
def test_particles(twist):
    smc = TwistedSMC(model, 1000, 8, twist, progress_bar=False)
    smc.run(jax.random.key(0))
    assert abs(smc.log_evidence - EVIDENCE) < 5 * smc.log_evidence_error + 0.01
    check_posterior(np.asarray(smc.get_samples()["x"]), 8 * smc.min_ess)


def gibbs(model):
    return DiffusionGibbs(model, twist="none")


def reparametrised(model):
    return HMC(numpyro.handlers.reparam(model, config={"x": DiffusionReparam()}), trajectory_length=1.5)


@pytest.mark.parametrize("make", [gibbs, EllipticalSlice, reparametrised])
def test_markov_chains(make):
    mcmc = MCMC(make(model), num_warmup=200, num_samples=1000, progress_bar=False)
    mcmc.run(jax.random.key(0))
    draws = np.asarray(mcmc.get_samples()["x"])
    check_posterior(draws, float(numpyro.diagnostics.effective_sample_size(draws[None, :, 0])))


@pytest.mark.parametrize(
    "guidance",
    [
        PaperTilt(log_r, "annealed"),
        GaussianFactor(Y, NOISE, noised=True),
        ReconstructionGuidance(log_r, 0.5),
        MomentMatching(jnp.ones((1, 1)), jnp.array([Y]), NOISE),
        MomentMatching(jnp.ones((1, 1)), jnp.array([Y]), NOISE, covariance="scale"),
    ],
)
def test_guided_chains_are_weighted_to_the_evidence(guidance):
    chain = TiltedChain(PRIOR.chain, guidance)
    log_weight = jax.jit(lambda key: chain.log_weight(chain.sample(key, (20_000,)), log_r))
    weights = np.exp(np.asarray(log_weight(jax.random.key(0))))
    assert abs(weights.mean() / np.exp(EVIDENCE) - 1) < 5 * weights.std() / weights.mean() / np.sqrt(20_000) + 0.01


def test_a_variational_guide_is_trained_and_weighted():
    guide = AutoDiffusionGuide(model)
    svi = SVI(guide.model, guide, optax.adam(0.02), Trace_ELBO(num_particles=8))
    params = svi.run(jax.random.key(0), 300, progress_bar=False).params
    found = guide.importance_weights(jax.random.key(1), params, 2000)
    assert found.pareto_k < 0.7
    assert abs(found.log_evidence - EVIDENCE) < 5 / np.sqrt(found.effective_sample_size) + 0.01


def test_what_its_mathematics_does_not_allow_is_refused_by_name():
    """The probability flow is that of a kernel that keeps the variance of standardised data."""
    with pytest.raises(ValueError, match=r"a kernel that keeps the variance, a_t\^2 \+ n_t = 1"):
        nd.evaluation.probability_flow(jax.random.key(0), PRIOR, jnp.zeros((3, 1)))
    with pytest.raises(TypeError, match="discrete states that has reweighted; got Scaled"):
        KERNEL.reweighted(None, 0.0, 1, jnp.zeros(2))
