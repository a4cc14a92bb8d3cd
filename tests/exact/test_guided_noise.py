"""GuidedNoise: the distribution of a chain's noises under a correction, its density and its path gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from guide_cases import GAUSSIAN, GAUSSIAN_PRIOR, KERNEL, MODES, T, random_correction, random_start
from numpyro.handlers import seed, trace
from precision import enable_x64

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import StepCorrection
from numpyro_diffusion.infer.guide import AutoDiffusionGuide
from numpyro_diffusion.noise.charts import GuidedNoise


def test_where_training_starts_the_guide_is_the_prior():
    guide = AutoDiffusionGuide(lambda: numpyro.sample("x", GAUSSIAN_PRIOR))
    distribution = trace(seed(guide, 1)).get_trace()["x_noise"]["fn"]
    key, standard = jax.random.key(2), jax.random.normal(jax.random.key(2), (3, T + 1, 2))
    expected = dist.Normal(0, 1).log_prob(standard).sum((-1, -2))
    for path_gradient in (False, True):
        distribution = GuidedNoise(
            distribution.chain, distribution.correction, distribution.start, path_gradient=path_gradient
        )
        (noise, intermediates), alone = jax.jit(
            lambda distribution: (distribution.sample_with_intermediates(key, (3,)), distribution.sample(key, (3,)))
        )(distribution)
        # The same numbers, made by two programs: equal to the last digit of float32.
        np.testing.assert_allclose(noise, standard, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(alone, standard, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(distribution.log_prob(noise, intermediates), expected, rtol=1e-6)
    np.testing.assert_allclose(distribution.log_prob(standard), expected, rtol=1e-6)


def test_density_is_that_of_the_path_by_change_of_variables():
    """log q(noise) = log q(path) + log |d path / d noise|, with q(path) written out anew; in float64."""
    with enable_x64(True):
        kernel = nd.GaussianKernel(nd.schedules.log_snr(3, 0.3, 10.0), parameterization="x0", variance="denoiser")
        transition = nd.analytic.gaussian_mixture(kernel, jnp.asarray([[1.0], [-1.5]]), 0.3, jnp.ones(2))
        correction, start = random_correction((3, 1)), random_start((1,))
        distribution = GuidedNoise(nd.ReverseChain(kernel, transition), correction, start)
        noise = distribution.sample(jax.random.key(0))

        @jax.jit
        def path_of(noise):
            return jnp.stack([nd.ReverseChain(kernel, transition, stop=s).from_noise(noise[s:]) for s in range(4)])

        path = path_of(noise)
        log_q = dist.Normal(*start).log_prob(path[3]).sum()
        for t in (1, 2, 3):
            prior = nd.ReverseChain(kernel, transition).reverse(path[t], t)
            gain, inflation, shift, scale = (numbers[t - 1] for numbers in correction)
            bridge = kernel.bridge(path[t], path[t], t).variance
            variance = scale**2 * (bridge + inflation * (prior.variance - bridge))
            mean = prior.loc + prior.scale * (shift + gain * prior.loc)
            log_q += dist.Normal(mean, jnp.sqrt(variance)).log_prob(path[t - 1]).sum()
        log_det = jnp.linalg.slogdet(jax.jit(jax.jacobian(path_of))(noise).reshape(4, 4))[1]
        np.testing.assert_allclose(distribution.log_prob(noise), log_q + log_det, rtol=1e-10)
        draw, intermediates = distribution.sample_with_intermediates(jax.random.key(1), (5,))
        np.testing.assert_allclose(distribution.log_prob(draw, intermediates), distribution.log_prob(draw), rtol=1e-10)


def test_batches_are_independent_and_have_their_own_corrections():
    correction, start = random_correction((3, T, 2)), random_start((3, 2))
    chain = nd.ReverseChain(KERNEL, GAUSSIAN)
    distribution = GuidedNoise(chain.expand((3,)), correction, start)
    noise = distribution.sample(jax.random.key(0), (4,))
    log_prob = distribution.log_prob(noise)
    assert noise.shape == (4, 3, T + 1, 2)
    assert log_prob.shape == (4, 3)
    one = GuidedNoise(chain, jax.tree.map(lambda x: x[1], correction), jax.tree.map(lambda x: x[1], start))
    np.testing.assert_allclose(log_prob[:, 1], one.log_prob(noise[:, 1]), rtol=1e-5)


def test_path_gradient_leaves_out_a_part_whose_mean_is_zero_and_no_value_changes():
    chain = nd.ReverseChain(KERNEL, MODES)
    start = random_start((1,))

    def log_prob(correction, key, path_gradient):
        distribution = GuidedNoise(chain, correction, start, path_gradient=path_gradient)
        noise, intermediates = distribution.sample_with_intermediates(key)
        return distribution.log_prob(noise, intermediates)

    keys = jax.random.split(jax.random.key(0), 20_000)
    both = jax.vmap(jax.value_and_grad(log_prob), in_axes=(None, 0, None))
    (values, whole), (same, part) = (
        jax.jit(both, static_argnums=2)(random_correction((T, 1)), keys, path_gradient)
        for path_gradient in (False, True)
    )
    np.testing.assert_allclose(values, same, rtol=1e-4, atol=1e-5)
    for name in StepCorrection._fields:
        difference = np.asarray(getattr(whole, name) - getattr(part, name), np.float64)
        error = difference.std(0) / np.sqrt(len(keys))
        assert (np.abs(difference.mean(0)) < 5 * error + 1e-6).all(), name
        assert (error > 0).any(), name
