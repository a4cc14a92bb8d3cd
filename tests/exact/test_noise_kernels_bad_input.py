"""Kernels on noises: what they say of models and starts that they cannot draw from."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import substitute
from numpyro.infer import NUTS, Gibbs
from slice_cases import (
    KERNEL,
    KERNELS,
    NORMAL,
    SCALED_DATA,
    STANDARD_NORMAL,
    conjugate,
    noncentred,
    sampler,
    unknown_scale,
    zero_network,
)

import numpyro_diffusion as nd


@pytest.fixture(params=KERNELS.values(), ids=KERNELS, name="kernel")
def _kernel(request):
    return request.param


@pytest.fixture(name="run")
def _run(kernel):
    def run(model, *args, **kwargs):
        sampler(model, kernel=kernel).run(jax.random.key(0), *args, **kwargs)

    return run


def test_a_model_without_a_diffusion_site_is_sent_to_nuts(run):
    with pytest.raises(ValueError, match=r"Expected a latent Diffusion site; got latent sites \['z'\].*NUTS"):
        run(lambda: numpyro.sample("z", NORMAL))


def test_an_observed_diffusion_site_is_none(run):
    with pytest.raises(ValueError, match="Expected a latent Diffusion site; got latent sites"):
        run(lambda: numpyro.sample("x", STANDARD_NORMAL, obs=jnp.zeros(())))


def test_a_bernoulli_site_is_named_with_its_cure(run):
    kernel = nd.BernoulliKernel(nd.schedules.constant_fraction(3))
    prior = nd.Diffusion(kernel, nd.Transition(zero_network, None, (2,)))
    with pytest.raises(TypeError, match=r"the discrete site 'x', Diffusion.*DiffusionGibbs"):
        run(lambda: numpyro.sample("x", prior))


def test_a_discrete_site_is_named_with_its_cure(run):
    def model():
        numpyro.sample("x", STANDARD_NORMAL)
        numpyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(TypeError, match=r"the discrete site 'k', BernoulliProbs.*DiffusionGibbs"):
        run(model)


def test_a_masked_site_is_named(run):
    with pytest.raises(
        ValueError, match=r"at latent site 'x', .*; got one inside of MaskedDistribution.*mask .*likelihood"
    ):
        run(lambda: numpyro.sample("x", STANDARD_NORMAL.mask(False)))


def test_a_subsampled_plate_is_named(run):
    def model():
        x = numpyro.sample("x", STANDARD_NORMAL)
        with numpyro.plate("n", 10, subsample_size=5):
            numpyro.sample("y", dist.Normal(x, 1.0), obs=jnp.zeros(5))

    with pytest.raises(ValueError, match=r"plate 'n' with 5 of 10.*subsample_size"):
        run(model)


def test_an_untrained_network_is_named(run):
    def model():
        params = numpyro.param("network", lambda key: jax.random.normal(key, ()))
        numpyro.sample("x", nd.Diffusion(KERNEL, nd.Transition(lambda p, x, t, c: p * x, params, ())))

    with pytest.raises(ValueError, match=r"a value of parameter 'network'.*substitute"):
        run(model)
    run(substitute(model, data={"network": jnp.asarray(0.1)}))


def test_a_density_of_zero_at_every_start_is_an_error(run):
    def model():
        numpyro.sample("x", STANDARD_NORMAL)
        numpyro.factor("never", -jnp.inf)

    with pytest.raises(RuntimeError, match=r"finite density; got 0.*100 draws from the prior.*init_params"):
        run(model)


def test_a_start_of_zero_density_is_an_error(run):
    def model():
        x = numpyro.sample("x", STANDARD_NORMAL)
        numpyro.factor("positive", jnp.where(x > 0, 0.0, -jnp.inf))

    with pytest.raises(RuntimeError, match=r"finite density; got 0, infinity or NaN at init_params"):
        run(model, init_params={"x_noise": -jnp.ones(6)})


def test_init_params_of_other_sites_are_named(run):
    with pytest.raises(ValueError, match=r"'x_noise': \(6,\).*got \{'x': \(\)\}"):
        run(conjugate, 3.0, init_params={"x": jnp.zeros(())})


def test_a_plain_model_in_gibbs_is_told_to_reparameterise(kernel):
    gibbs = Gibbs([(kernel(unknown_scale), ["x"]), (NUTS(unknown_scale), ["sigma"])])
    message = r"In a Gibbs kernel give all blocks the model.*name the site 'x_noise'"
    with pytest.raises(ValueError, match=message):
        gibbs.init(jax.random.key(0), 0, None, (SCALED_DATA,), {})


def test_a_support_that_moves_is_refused_in_gibbs(kernel):
    def model():
        x = numpyro.sample("x", STANDARD_NORMAL)
        bound = numpyro.sample("bound", dist.Uniform(0.0, 1.0))
        numpyro.sample("below", dist.Uniform(0.0, bound))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=0.0)

    model = noncentred(model)
    gibbs = Gibbs([(kernel(model), ["x_noise", "below"]), (NUTS(model), ["bound"])])
    with pytest.raises(ValueError, match=r"supports that are known beforehand.*computed, at site 'below'"):
        gibbs.init(jax.random.key(0), 0, None, (), {})


def test_no_model_is_named(kernel, no_type_checks):
    with pytest.raises(TypeError, match="Expected a NumPyro model; got 3"):
        kernel(3)
