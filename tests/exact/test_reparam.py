"""DiffusionReparam: the same distribution, the exact posterior, on any model unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from measured_errors import check, of_chains
from numpyro.handlers import reparam, seed, trace
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import log_density
from precision import enable_x64

import numpyro_diffusion as nd
from numpyro_diffusion.infer import DiffusionReparam


def zero_network(params, x_t, t, context):
    return 0 * x_t


def shifted_network(params, x_t, t, context):
    return params * jnp.tanh(x_t) + (0 if context is None else context)


KERNEL = nd.GaussianKernel(nd.schedules.log_snr(5, 0.1, 100.0), variance="upper")
STANDARD_NORMAL = nd.Diffusion(KERNEL, nd.Transition(zero_network, None, (2,)))


def noncentred(model):
    return reparam(model, config={"x": DiffusionReparam()})


def test_noises_map_to_the_path_whose_density_they_have():
    """p(path) |d path / d noise| = N(noise): the change of variables, in float64."""
    with enable_x64(True):
        kernel = nd.GaussianKernel(nd.schedules.log_snr(3, 0.3, 10.0), variance="upper")
        chain = nd.ReverseChain(kernel, nd.Transition(shifted_network, jnp.asarray(0.4), ()))
        noise = jax.random.normal(jax.random.key(0), (4,))

        def path_of(noise):
            states = [nd.ReverseChain(kernel, chain.transition, stop=s).from_noise(noise[s:]) for s in range(4)]
            return jnp.stack(states)

        path = path_of(noise)
        log_det = jnp.linalg.slogdet(jax.jacobian(path_of)(noise))[1]
        np.testing.assert_allclose(chain.log_prob(path) + log_det, dist.Normal(0, 1).log_prob(noise).sum(), rtol=1e-9)


def test_model_density_is_that_of_standard_normal_noises():
    def model():
        with numpyro.plate("n", 3):
            numpyro.sample("x", STANDARD_NORMAL)

    noise = jax.random.normal(jax.random.key(0), (3, 6, 2))
    density, sites = log_density(noncentred(model), (), {}, {"x_noise": noise})
    np.testing.assert_allclose(density, dist.Normal(0, 1).log_prob(noise).sum(), rtol=1e-6)
    assert sites["x"]["value"].shape == (3, 2)
    np.testing.assert_allclose(sites["x"]["value"][1], STANDARD_NORMAL.chain.from_noise(noise[1]), rtol=1e-5)


@pytest.mark.parametrize(
    ("wrap", "shape"),
    [
        (lambda d: d, (2,)),
        (lambda d: d.expand((4, 3)), (4, 3, 2)),
        (lambda d: d.expand((4, 3)).to_event(1), (4, 3, 2)),
        (lambda d: d.expand((3,)).to_event(1), (3, 2)),
    ],
)
def test_wrapped_sites_keep_their_shapes(wrap, shape):
    def model():
        return numpyro.sample("x", wrap(STANDARD_NORMAL))

    sites = trace(seed(noncentred(model), 0)).get_trace()
    assert sites["x"]["value"].shape == shape
    assert sites["x_noise"]["value"].shape == shape[:-1] + (6, 2)
    assert sites["x_noise"]["fn"].batch_shape == wrap(STANDARD_NORMAL).batch_shape


def test_noncentred_draws_have_the_law_of_the_site():
    transition = nd.Transition(shifted_network, jnp.asarray(0.4), (1,), context_shape=(1,))
    prior = nd.Diffusion(KERNEL, transition, context=jnp.asarray([[0.5], [-1.0]]))

    def model():
        with numpyro.plate("n", 2):
            numpyro.sample("x", prior)

    draws = Predictive(noncentred(model), num_samples=20_000)(jax.random.key(0))["x"]
    direct = prior.sample(jax.random.key(1), (20_000,))
    error = jnp.sqrt(direct.var(0) / 10_000)
    assert (abs(draws.mean(0) - direct.mean(0)) < 5 * error).all()
    assert (abs(draws.std(0) / direct.std(0) - 1) < 5 / np.sqrt(10_000)).all()
    assert abs(direct.mean(0)[0] - direct.mean(0)[1]) > 1  # the context matters


def test_nuts_finds_the_conjugate_posterior_where_a_score_with_zero_density_does_not():
    """x ~ N(0, 1), y = 3 ~ N(x, 1): mean 1.5, variance 0.5. A prior whose log_prob is 0 gives 3.16 and 1.11."""
    prior = nd.Diffusion(KERNEL, nd.Transition(zero_network, None, ()))

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    mcmc = MCMC(NUTS(noncentred(model)), num_warmup=300, num_samples=4000, progress_bar=False)
    mcmc.run(jax.random.key(0), 3.0)
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    check(of_chains(draws), 1.5, refused=0.0)
    check(of_chains(draws), 1.5, refused=3.16)
    check(of_chains((draws - 1.5) ** 2), 0.5, refused=1 + 1.5**2)
    check(of_chains((draws - 1.5) ** 2), 0.5, refused=1.11 + (3.16 - 1.5) ** 2)


def test_svi_with_an_autoguide_runs_on_the_reparameterised_model():
    def model(y):
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        x = numpyro.sample("x", STANDARD_NORMAL)
        numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)

    guide = AutoNormal(noncentred(model))
    svi = SVI(noncentred(model), guide, optax.adam(0.02), Trace_ELBO())
    result = svi.run(jax.random.key(0), 400, jnp.asarray([1.0, -1.0]), progress_bar=False)
    assert result.losses[-50:].mean() < result.losses[:50].mean()
    draws = Predictive(noncentred(model), guide=guide, params=result.params, num_samples=5)(jax.random.key(1), None)
    assert draws["x"].shape == (5, 2)


def test_a_site_that_is_no_diffusion_is_named():
    def model():
        numpyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(TypeError, match="a Diffusion at site 'x'; got Normal"):
        trace(seed(noncentred(model), 0)).get_trace()


def test_a_masked_site_is_named():
    def model():
        numpyro.sample("x", STANDARD_NORMAL.mask(False))

    with pytest.raises(TypeError, match=r"a Diffusion at site 'x'; got MaskedDistribution.*unmasked"):
        trace(seed(noncentred(model), 0)).get_trace()


def test_a_bernoulli_site_is_named():
    kernel = nd.BernoulliKernel(nd.schedules.constant_fraction(3))

    def model():
        numpyro.sample("x", nd.Diffusion(kernel, nd.Transition(zero_network, None, (2,))))

    with pytest.raises(TypeError, match="a Gaussian kernel at site 'x'; got BernoulliKernel"):
        trace(seed(noncentred(model), 0)).get_trace()


def test_an_observed_site_is_named():
    def model():
        numpyro.sample("x", STANDARD_NORMAL, obs=jnp.zeros(2))

    with pytest.raises(ValueError, match="a latent site 'x'; got an observed one"):
        trace(seed(noncentred(model), 0)).get_trace()


def test_bits_have_no_noise():
    kernel = nd.BernoulliKernel(nd.schedules.constant_fraction(3))
    chain = nd.ReverseChain(kernel, nd.Transition(zero_network, None, (2,)))
    with pytest.raises(TypeError, match="a Gaussian kernel; got BernoulliKernel"):
        chain.from_noise(jnp.zeros((4, 2)))
