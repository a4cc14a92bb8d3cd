"""NumPyro's handlers, plates and Predictive around a sample site."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from catalogue import CLASSES, FEW, NUM_STEPS, affine, close, estimated, floats, gaussian, over, scores
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.util import log_density

from numpyro_diffusion import AllSteps, Diffusion, ReverseChain, haiku_module, networks

# One unbatched chain, one batched marginal, one of bits: a handler sees only a site, whatever its distribution.
SITES = [case for case in FEW if "haiku" in case.name or "all-steps" in case.name or "stop" in case.name]


def site_model(case):
    return lambda: numpyro.sample("x", case.make())


@over(CLASSES)
def test_a_seeded_site_draws_the_law_with_the_handler_s_key(case):
    seen = []

    @jax.jit
    def both(distribution, key):  # the distribution from outside the model, where it takes no key for itself
        site = handlers.trace(handlers.seed(lambda: numpyro.sample("x", distribution), key)).get_trace()["x"]
        seen.append((site["fn"].batch_shape, site["is_observed"]))
        return site["value"], distribution.sample(jax.random.split(key)[1])  # the key that is handed to the first site

    close(*both(case.make(), jax.random.key(3)))
    assert seen == [(case.batch_shape, False)]


@over(SITES)
def test_handlers_set_and_hide_the_value(case):
    jax.eval_shape(lambda: check_handlers(case))  # nothing here depends on a number


def check_handlers(case):
    model, value = site_model(case), case.value()
    seeded = handlers.seed(model, 0)
    drawn = handlers.trace(seeded).get_trace()

    substituted = handlers.trace(handlers.substitute(seeded, {"x": value})).get_trace()["x"]
    assert substituted["value"] is value
    assert not substituted["is_observed"]

    conditioned = handlers.trace(handlers.condition(seeded, {"x": value})).get_trace()["x"]
    assert conditioned["value"] is value
    assert conditioned["is_observed"]

    replayed = handlers.trace(handlers.replay(handlers.seed(model, 1), drawn)).get_trace()["x"]
    assert replayed["value"] is drawn["x"]["value"]

    assert handlers.trace(handlers.block(seeded)).get_trace() == {}
    assert np.shape(handlers.seed(handlers.do(model, {"x": value}), 0)()) == value.shape


@over(SITES)
def test_densities_add_scale_and_mask(case):
    value = case.value(2)

    def model():
        with numpyro.plate("row", 2, dim=-1 - len(case.batch_shape)):
            # A latent site has no estimate of its density.
            return numpyro.sample("x", case.make(), obs=value if case.is_estimate else None)

    @jax.jit
    def densities(value):
        plain = log_density(model, (), {}, {"x": value})[0]
        scaled = log_density(handlers.scale(model, 3.0), (), {}, {"x": value})[0]
        masked = log_density(handlers.mask(model, mask=False), (), {}, {"x": value})[0]
        return plain, scaled, masked

    plain, scaled, masked = densities(value)
    close(plain, scores(case).sum())
    close(scaled, 3 * scores(case).sum())
    assert masked == 0


@over(CLASSES)
def test_a_plate_draws_each_member_anew(case):
    def model():
        with numpyro.plate("member", 4, dim=-1 - len(case.batch_shape)):
            return numpyro.sample("x", case.make())

    drawn = np.asarray(jax.jit(lambda key: handlers.seed(model, key)())(jax.random.key(0)))
    assert drawn.shape == (4, *case.batch_shape, *case.event_shape)
    assert (drawn != drawn[:1]).any()


@over([case for case in SITES if case.batch_shape])
def test_a_plate_of_the_batch_s_own_size_changes_nothing(case):
    def model():
        with numpyro.plate("batch", 3):
            return numpyro.sample("x", case.make())

    def with_a_plate_of_four():
        with numpyro.plate("batch", 4):
            return numpyro.sample("x", case.make())

    site = handlers.trace(handlers.substitute(handlers.seed(model, 0), {"x": case.value()})).get_trace()["x"]
    assert site["fn"].batch_shape == (3,)
    with pytest.raises(ValueError, match=r"(?i)broadcast|shape"):
        handlers.seed(with_a_plate_of_four, 0)()


def test_a_subsampled_plate_scales_the_density():
    contexts, data = floats(6, 2), floats(6, NUM_STEPS + 1, 2, seed=1)

    def distribution(context):
        return ReverseChain(gaussian(), affine((2,), 2, (2,)), context=context)

    def model():
        with numpyro.plate("member", 6, subsample_size=3):
            context = numpyro.subsample(contexts, event_dim=1)
            batch = numpyro.subsample(data, event_dim=2)
            numpyro.sample("x", distribution(context), obs=batch)

    @jax.jit
    def density(key):
        total, trace = log_density(handlers.seed(model, key), (), {}, {})
        return total, trace["member"]["value"]

    each = jax.jit(lambda: distribution(contexts).log_prob(data))()
    total, members = density(jax.random.key(0))
    assert np.unique(members).size == 3
    close(total, 2 * each[members].sum())


def test_a_key_is_taken_from_the_seed_and_fresh_each_time():
    def model():
        return Diffusion(gaussian(), affine((2,), 2)).rng_key

    first, again, other = (handlers.seed(model, seed)() for seed in (0, 0, 1))
    np.testing.assert_array_equal(jax.random.key_data(first), jax.random.key_data(again))
    assert (jax.random.key_data(first) != jax.random.key_data(other)).any()
    assert Diffusion(gaussian(), affine((2,), 2)).rng_key is None


def network_model():
    kernel = gaussian()
    network = networks.MLP(NUM_STEPS, kernel.num_outputs, width=2, depth=1, num_time_features=1)
    transition = haiku_module("net", network, kernel=kernel, event_shape=(2,))
    with numpyro.plate("member", 3):
        numpyro.sample("x", Diffusion(kernel, transition))


def test_predictive_draws_from_the_prior_with_given_parameters():
    seeded = handlers.seed(network_model, 0)
    params = {"net$params": handlers.trace(seeded).get_trace()["net$params"]["value"]}
    moved = jax.tree.map(lambda leaf: leaf + 1.0, params)
    key = jax.random.key(4)
    drawn, mapped, other = (
        Predictive(network_model, params=given, num_samples=5, parallel=parallel)(key)["x"]
        for given, parallel in ((params, False), (params, True), (moved, True))
    )
    assert drawn.shape == (5, 3, 2)
    assert np.unique(drawn).size == drawn.size
    close(mapped, drawn)
    assert (drawn != other).all()


def test_predictive_passes_posterior_draws_into_the_law():
    def model():
        context = numpyro.sample("context", numpyro.distributions.Normal(jnp.zeros(2), 1).to_event(1))
        distribution = estimated(gaussian(), affine((2,), 2, (2,)), AllSteps(), context=context)
        numpyro.sample("x", distribution)

    contexts = 5.0 * floats(4, 2)
    drawn = Predictive(model, posterior_samples={"context": contexts})(jax.random.key(0))
    assert drawn["x"].shape == (4, 2)
    # The output "v" is shifted by the context's sum, and x^0 by minus that: the draws follow their own contexts.
    assert np.corrcoef(drawn["x"].mean(-1), -contexts.sum(-1))[0, 1] > 0.9
