"""Steps with correlated coordinates: exact for linear chains, a change of variables for all."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import linear_posterior
from correlated_gaussian import correlated_chain, exact_errors
from guided_cases import check_flat, weigher
from measured_errors import check, of_chains, of_weighted
from numpyro.infer import MCMC

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import ErrorCovariance, PilotGuidance, TiltedChain
from numpyro_diffusion.guidance.correlated_step import CorrelatedStep
from numpyro_diffusion.guidance.linearised import LinearisedGuidance
from numpyro_diffusion.guidance.path_posterior import PathPosterior
from numpyro_diffusion.guidance.seen_coordinates import spectrum_of
from numpyro_diffusion.guidance.tilted_chain import log_ratio
from numpyro_diffusion.infer import DiffusionHMC

KERNEL = nd.GaussianKernel(nd.schedules.log_snr(6, 0.1, 3000.0), parameterization="x0", variance="denoiser")
CHAIN, COVARIANCES = correlated_chain(kernel=KERNEL)
ERRORS = exact_errors(COVARIANCES)
MIXED = np.array([[1.0, -0.5, 0.2], [0.3, 0.8, -1.0]], np.float32)


def guidance(rows, residual, errors=ERRORS, kernel=KERNEL):
    """By y - A point = residual with noise 1."""
    rows = jnp.asarray(rows, float)
    spectrum = PathPosterior(kernel, errors, rows[:, None])
    return LinearisedGuidance(
        spectrum, jnp.zeros(rows.shape[-1]), jnp.asarray(residual, float), jnp.ones(()), jnp.ones(())
    )


def some_step(key, batch=(), shape=(2, 3), num_columns=4):
    keys = jax.random.split(key, 5)
    size = int(np.prod(shape))
    columns = jnp.linalg.qr(jax.random.normal(keys[0], (size, num_columns)))[0]
    lengths = jnp.array([0.0, 0.1, 1.0, 30.0])[:num_columns]
    loc, log_scale = (jax.random.normal(each, (*batch, *shape)) for each in keys[1:3])
    move = jax.random.normal(keys[3], (*batch, size))
    return CorrelatedStep(dist.Normal(loc, jnp.exp(log_scale)), move, columns * lengths, lengths**2)


@pytest.mark.parametrize("batch", [(), (5,)])
def test_the_noise_of_a_state_is_the_one_that_made_it(batch, x64):
    step = some_step(jax.random.key(0), batch)
    noise = jax.random.normal(jax.random.key(1), (7, *batch, 2, 3))
    np.testing.assert_allclose(step.noise_of(step.from_noise(noise)), noise, rtol=1e-9, atol=1e-9)


def test_a_step_is_a_normal_with_the_covariance_of_its_docstring(x64):
    step = some_step(jax.random.key(0))
    precision = np.eye(6) + step.factor @ step.factor.T
    scale, loc = np.ravel(step.step.scale), np.ravel(step.step.loc)
    law = dist.MultivariateNormal(loc + scale * step.move, scale[:, None] * np.linalg.inv(precision) * scale)
    value = step.sample(jax.random.key(2), (4,))
    np.testing.assert_allclose(step.log_prob(value).sum((-2, -1)), law.log_prob(value.reshape(4, 6)), rtol=1e-8)


def bent(params, x_t, t, context):
    return jnp.tanh(x_t @ params), 0.1 + 0.05 * jnp.cos(x_t)


def bent_chain():
    kernel = nd.GaussianKernel(nd.schedules.log_snr(3, 0.3, 10.0), parameterization="x0", variance="denoiser")
    chain = nd.ReverseChain(kernel, nd.Transition(bent, jnp.array([[0.5, 0.2], [-0.3, 0.8]]), (2,)))
    factor = jax.random.normal(jax.random.key(5), (3, 2, 1))
    errors = ErrorCovariance(factor, 0.1 * jnp.ones((3, 2)))
    return chain, TiltedChain(chain, guidance([[2.0, 1.0]], [1.5], errors, kernel))


def test_the_weight_is_that_of_the_change_of_variables(x64):
    """log p(path) + log |d path / d noise| - log N(noise), by a dense Jacobian, under a network that is not linear."""
    chain, tilted = bent_chain()
    noise = jax.random.normal(jax.random.key(0), (4, 2))
    path = tilted.path_from_noise(noise)
    x, log_weight = tilted.weighted_from_noise(noise)
    np.testing.assert_allclose(x, path[0], rtol=1e-10)
    log_det = jnp.linalg.slogdet(jax.jacobian(tilted.path_from_noise)(noise).reshape(8, 8))[1]
    wanted = chain.log_prob(path) + log_det - dist.Normal(0, 1).log_prob(noise).sum()
    np.testing.assert_allclose(log_weight, wanted, rtol=1e-9)
    ratios = [log_ratio(chain.reverse(path[t], t), tilted.reverse(path[t], t), path[t - 1]).sum() for t in (1, 2, 3)]
    np.testing.assert_allclose(sum(ratios), wanted, rtol=1e-9)


def test_the_weight_has_the_gradient_of_its_differences(x64):
    tilted = bent_chain()[1]
    noise, way = jax.random.normal(jax.random.key(3), (2, 4, 2))
    value = jax.jit(lambda z: tilted.weighted_from_noise(z)[1])
    gradient = (jax.grad(value)(noise) * way).sum()
    np.testing.assert_allclose((value(noise + 1e-5 * way) - value(noise - 1e-5 * way)) / 2e-5, gradient, rtol=1e-6)


# A linear chain ----------------------------------------------------------------------------------------------------


def moments_of(chain):
    """Mean 0 and covariance of x^0 under the T-step chain, dense."""
    covariance, identity = np.eye(3), jnp.eye(3)
    for t in range(chain.num_steps, 0, -1):
        step = chain.reverse(identity, t)
        slope = np.asarray(step.loc, float).T
        covariance = slope @ covariance @ slope.T + np.diag(np.asarray(step.scale[0], float) ** 2)
    return np.zeros(3), covariance


ROWS = {
    "all pixels": np.eye(3) / 0.3,
    "some of them": np.eye(3)[[2, 0]] / 0.3,
    "one behind a mask": np.diag([1.0, 0.0, 1.0]) / 0.3,
    "a mixture": MIXED / 0.2,
    "more numbers than coordinates": np.concatenate([np.eye(3), np.tile(MIXED, (2, 1))]),
}


def log_weights(tilted, rows, y, num_draws=400):
    noise = jax.random.normal(jax.random.key(1), (num_draws, *CHAIN.event_shape))
    x, ratio = jax.jit(jax.vmap(tilted.weighted_from_noise))(noise)
    return np.asarray(x, float), np.asarray(
        ratio + dist.Normal(x @ jnp.asarray(rows, float).T, 1.0).log_prob(y).sum(-1)
    )


@pytest.mark.parametrize("case", ROWS)
def test_the_path_of_a_linear_chain_is_the_posteriors(case):
    rows = ROWS[case]
    y = np.linspace(1.5, -1.0, len(rows)).astype(np.float32)
    mean, covariance = moments_of(CHAIN)
    evidence, wanted, _ = linear_posterior(mean, covariance, rows, np.eye(len(rows)), y)
    x, found = log_weights(TiltedChain(CHAIN, guidance(rows, y)), rows, y)
    np.testing.assert_allclose(found, evidence, atol=5e-3)
    check(of_weighted(x, found), wanted, refused=mean)


def test_weights_are_the_flatter_the_better_the_covariance_is_known():
    rows, y = ROWS["all pixels"], np.array([3.0, -2.0, 1.0], np.float32)
    diagonals = COVARIANCES * np.eye(3)
    spreads = []
    for share in (0.0, 0.7, 1.0):
        errors = exact_errors(share * COVARIANCES + (1 - share) * diagonals)
        spreads.append(log_weights(TiltedChain(CHAIN, guidance(rows, y, errors)), rows, y)[1].std())
    assert spreads[0] > 2 * spreads[1] > 20 * spreads[2]


def test_weights_are_flatter_than_those_of_steps_with_independent_coordinates():
    rows, y = ROWS["all pixels"], np.array([3.0, -2.0, 1.0], np.float32)
    spectrum = spectrum_of(ERRORS, jnp.asarray(rows, float)[:, None], is_fixed=True)
    apart = LinearisedGuidance(spectrum, jnp.zeros(3), jnp.asarray(y), jnp.ones(()), jnp.ones(()))
    own, theirs = (log_weights(TiltedChain(CHAIN, each), rows, y)[1].std() for each in (guidance(rows, y), apart))
    assert own < 0.01 < 0.3 < theirs


def test_what_independent_coordinates_lose_is_the_divergence_from_their_steps():
    rows = jnp.asarray(ROWS["all pixels"], float)
    path, lost = PathPosterior(KERNEL, ERRORS, rows[:, None]), 0.0
    for factor in np.asarray(path.factor, float):
        covariance = np.linalg.inv(np.eye(3) + factor @ factor.T)
        lost += (np.log(np.diag(covariance)).sum() - np.linalg.slogdet(covariance)[1]) / 2
    np.testing.assert_allclose(path.nats(), lost, rtol=1e-4)
    of_independent = ErrorCovariance(jnp.zeros((6, 3, 1)), ERRORS.variances())
    np.testing.assert_allclose(PathPosterior(KERNEL, of_independent, rows[:, None]).nats(), 0.0, atol=1e-5)


def test_where_nothing_shall_move_nothing_does():
    still = guidance(ROWS["all pixels"], np.ones(3)).spectrum.kept_where(jnp.asarray(False))
    prior = CHAIN.reverse(jnp.ones(3), 2)
    step = still.step(prior, 2, jnp.ones(3))
    np.testing.assert_allclose(step.from_noise(jnp.ones(3)), prior.loc + prior.scale, rtol=1e-6)


# A model's posterior -----------------------------------------------------------------------------------------------


def the_prior(errors=ERRORS):
    return nd.Diffusion(KERNEL, CHAIN.transition).with_errors(errors)


def two_sites(y):
    x = numpyro.sample("x", the_prior())
    numpyro.sample("y", dist.Normal(x[0] + x[1], 0.1), obs=y[0])
    seen = np.array([True, False])
    with numpyro.plate("rest", 2):
        numpyro.sample("z", dist.Normal(x[1:], 0.5).mask(seen), obs=jnp.where(seen, y[1:], jnp.nan))


def test_hmc_draws_the_posterior_of_several_sites_one_behind_a_mask():
    y = np.array([2.0, -1.0, 0.0], np.float32)
    kernel = DiffusionHMC(two_sites)
    mcmc = MCMC(kernel, num_warmup=100, num_samples=400, num_chains=4, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(0), y, extra_fields=("accept_prob", "log_likelihood"))
    rows, noise = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), np.diag([0.01, 0.25])
    mean, covariance = moments_of(CHAIN)
    evidence, wanted, posterior = linear_posterior(mean, covariance, rows, noise, y[:2])
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["x"], float)
    check(of_chains(draws), wanted, refused=mean)
    np.testing.assert_allclose(np.cov(draws.reshape(-1, 3).T), posterior, atol=0.15 * np.diag(posterior).max())
    extra = mcmc.get_extra_fields()
    assert extra["accept_prob"].mean() > 0.99
    np.testing.assert_allclose(extra["log_likelihood"], evidence, atol=5e-3)
    assert "correlated steps" in kernel.charts["x"]


def test_elements_of_a_plate_each_with_masks_of_its_own():
    seen = np.array([[True, True], [False, True]])
    y = np.array([[2.0, -1.0], [np.nan, 1.5]], np.float32)

    def model(y):
        with numpyro.plate("n", 2):
            x = numpyro.sample("x", the_prior())
            numpyro.sample("y", dist.Normal(x[:, 0] + x[:, 1], 0.1).mask(seen[:, 0]), obs=y[:, 0])
            numpyro.sample("z", dist.Normal(x[:, 1] - x[:, 2], 0.1), obs=y[:, 1])

    weigh, chart = weigher(model, (y,))
    assert "3 numbers; correlated steps" in chart
    rows = np.zeros((3, 6))
    rows[0, :2], rows[1, 1:3], rows[2, 4:] = 1.0, (1.0, -1.0), (1.0, -1.0)
    mean, covariance = moments_of(CHAIN)
    both = np.kron(np.eye(2), covariance)
    check_flat(weigh(500), np.tile(mean, 2), both, rows, 0.01 * np.eye(3), y[seen], spread=0.1)


def test_a_noise_that_is_not_known_keeps_independent_coordinates():
    def model(y):
        sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(numpyro.sample("x", the_prior()), sigma).to_event(1), obs=y)

    kernel = DiffusionHMC(model)
    kernel.init(jax.random.key(0), 1, None, (np.ones(3, np.float32),), {})
    assert "its noise follows 'sigma'" in kernel.charts["x"]
    assert "correlated steps" not in kernel.charts["x"]


def test_other_guidance_refuses_a_step_that_is_no_normal():
    pilot = PilotGuidance(np.zeros(3), np.eye(3), 0.5, guidance(np.eye(3), np.ones(3)))
    with pytest.raises(TypeError, match="Normal reverse steps for PilotGuidance"):
        pilot(CHAIN, jnp.zeros(3), 6)
