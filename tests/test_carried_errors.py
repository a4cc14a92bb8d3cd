"""A prior carries the covariance of its network's errors wherever it goes, and draws and estimates as without it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from catalogue import affine, bernoulli, draw, gaussian, log_prob
from numpyro.contrib.control_flow import scan
from numpyro.distributions.batch_util import vmap_over
from numpyro.distributions.transforms import AffineTransform

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import ErrorCovariance, error_covariance
from numpyro_diffusion.io.saving import unpack
from numpyro_diffusion.wrappers import wrapped_diffusion

T, KEY = 3, jax.random.key(7)
ERRORS = ErrorCovariance(
    jnp.asarray(np.random.default_rng(0).normal(size=(T, 2, 1)), jnp.float32), jnp.full((T, 2), 0.3)
)


def plain():
    return nd.Diffusion(gaussian(), affine((2,), 2), estimator=nd.AllSteps(), rng_key=KEY)


def assert_carried(prior):
    errors = wrapped_diffusion(prior).diffusion.errors
    np.testing.assert_array_equal(errors.factor, ERRORS.factor)
    np.testing.assert_array_equal(errors.diagonal, ERRORS.diagonal)


def test_it_is_carried_through_expand_plates_and_transforms():
    prior = plain().with_errors(ERRORS)
    assert plain().errors is None
    for shaped in (
        prior,
        prior.expand((4,)),
        prior.expand_by((2,)),
        prior.expand((4,)).to_event(1),
        dist.TransformedDistribution(prior, AffineTransform(100.0, 5.0)),
        dist.TransformedDistribution(prior, AffineTransform(100.0, 5.0)).expand((3,)),
        jax.tree.unflatten(jax.tree.structure(prior), jax.tree.leaves(prior)),
        jax.jit(lambda prior: prior)(prior),
    ):
        assert_carried(shaped)
    assert prior.with_errors(None).errors is None

    def model():
        with numpyro.plate("n", 3):
            numpyro.sample("x", prior)

    trace = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace()
    assert_carried(trace["x"]["fn"])


def test_it_is_an_argument_of_compiled_functions_and_can_be_mapped_over():
    prior = plain().with_errors(ERRORS)
    traces = []

    @jax.jit
    def total(prior):
        traces.append(prior)
        return prior.errors.diagonal.sum()

    doubled = prior.with_errors(ErrorCovariance(ERRORS.factor, 2 * ERRORS.diagonal))
    np.testing.assert_allclose([total(prior), total(doubled)], [1.8, 3.6], rtol=1e-6)
    assert len(traces) == 1
    axes = vmap_over(prior, errors=0)
    stacked = jax.vmap(lambda scale: prior.with_errors(jax.tree.map(lambda a: a * scale, ERRORS)), out_axes=axes)(
        jnp.asarray([1.0, 2.0])
    )
    np.testing.assert_allclose(jax.vmap(total, in_axes=(axes,))(stacked), [1.8, 3.6], rtol=1e-6)


def test_it_is_carried_inside_of_scan():
    def model():
        def step(carry, _):
            x = numpyro.sample("x", plain().with_errors(ERRORS))
            return carry + x.sum(), None

        return scan(step, jnp.zeros(()), None, length=2)

    trace = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace()
    assert trace["x"]["value"].shape == (2, 2)
    assert trace["x"]["fn"].errors.diagonal.shape == (2, T, 2)
    np.testing.assert_array_equal(trace["x"]["fn"].log_prob(trace["x"]["value"]).shape, (2,))


def test_draws_estimates_and_the_chain_do_not_look_at_it():
    prior, carrying = plain(), plain().with_errors(ERRORS)
    x = draw(prior, jax.random.key(1), (16,))
    np.testing.assert_array_equal(draw(carrying, jax.random.key(1), (16,)), x)
    np.testing.assert_array_equal(log_prob(carrying, x), log_prob(prior, x))
    assert jax.tree.structure(carrying.chain) == jax.tree.structure(prior.chain)


@pytest.mark.parametrize(
    "wrap", [lambda prior: prior, lambda prior: dist.TransformedDistribution(prior, AffineTransform(100.0, 5.0))]
)
def test_it_is_saved_with_the_prior(wrap, tmp_path):
    path = tmp_path / "prior.safetensors"
    nd.save(wrap(plain().with_errors(ERRORS)), path)
    assert unpack(path)[1]["format"] == 3
    loaded = nd.load(path, network=plain().transition.function)
    assert_carried(loaded)
    x = draw(wrap(plain()), jax.random.key(1), (2,))
    np.testing.assert_array_equal(draw(loaded, jax.random.key(1), (2,)), x)
    nd.save(plain(), path)
    assert unpack(path)[1]["format"] == 1
    assert nd.load(path, network=plain().transition.function).errors is None


@pytest.mark.parametrize(
    ("errors", "error", "match"),
    [
        (
            lambda: ErrorCovariance(ERRORS.factor[:2], ERRORS.diagonal[:2]),
            ValueError,
            "T = 3 .* d = 2 .*; got T = 2 and d = 2. Compute",
        ),
        (lambda: ErrorCovariance(jnp.ones((T, 3, 1)), jnp.ones((T, 3))), ValueError, "got T = 3 and d = 3"),
        (lambda: ERRORS.matrices(), TypeError, "an ErrorCovariance; got"),
        (
            lambda: ErrorCovariance(ERRORS.factor.at[1, 0].set(jnp.nan), ERRORS.diagonal),
            ValueError,
            "finite values for factor",
        ),
        (
            lambda: ErrorCovariance(ERRORS.factor, ERRORS.diagonal.at[1, 0].set(jnp.inf)),
            ValueError,
            "finite values for diagonal",
        ),
        (
            lambda: ErrorCovariance(ERRORS.factor, ERRORS.diagonal.at[1, 0].set(-1.0)),
            ValueError,
            r"diagonal > 0; got -1.0 at index \(1, 0\)",
        ),
        (lambda: ErrorCovariance(ERRORS.diagonal, ERRORS.diagonal), ValueError, r"factor \(T, d, q\)"),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_what_is_no_covariance_of_this_prior_is_refused(errors, error, match):
    with pytest.raises(error, match=match):
        plain().with_errors(errors())


def test_bits_carry_none():
    prior = nd.Diffusion(bernoulli(), affine((2,)))
    with pytest.raises(TypeError, match="a kernel of real states for with_errors; got BernoulliKernel"):
        prior.with_errors(ERRORS)


def test_a_network_that_gives_no_numbers_has_no_covariance():
    kernel = gaussian(parameterization="x0", variance="upper")
    nan = nd.Transition(lambda params, x_t, t, context: x_t * jnp.nan, None, (2,))
    with pytest.raises(ValueError, match="finite values for factor"):
        error_covariance(jax.random.key(0), nd.ReverseChain(kernel, nan), num_draws=4)
