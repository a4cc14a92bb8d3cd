"""Models that particle engines cannot filter: what they say, and what they must not refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import affine_prior
from numpyro.handlers import scale, substitute

import numpyro_diffusion as nd
from numpyro_diffusion.model.split import split_model

SCHEDULE = nd.schedules.log_snr(2, 0.3, 10.0)
PAIR = affine_prior(SCHEDULE, [0.5, -0.3])


def plain(y):
    x = numpyro.sample("x", PAIR)
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def coupled_by_a_site_outside(y):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", PAIR)
        numpyro.sample("y", dist.Normal(x.sum(-1), 0.5), obs=y)
    numpyro.sample("total", dist.Normal(x.sum(), 0.5), obs=1.0)


def scaled():
    with scale(scale=0.5):
        numpyro.sample("x", PAIR)


def nested():
    x = numpyro.sample("x", PAIR)
    numpyro.sample("z", affine_prior(SCHEDULE, [0.0, 0.0], context=x))


def subsampled():
    with numpyro.plate("n", 6, subsample_size=3):
        numpyro.sample("x", PAIR)


def different_plates():
    with numpyro.plate("n", 3):
        numpyro.sample("x", PAIR)
    numpyro.sample("z", PAIR)


def untrained():
    slope = numpyro.param("slope", lambda key: jax.random.normal(key, ()))
    numpyro.sample("x", nd.Diffusion(PAIR.kernel, nd.Transition(lambda p, x, t, c: p * x, slope, (2,))))


def observed(distribution, shape):
    def model():
        x = numpyro.sample("x", PAIR)
        numpyro.sample("y", distribution(x), obs=jnp.zeros(shape))

    return model


BAD = {
    "no-diffusion": (
        lambda: numpyro.sample("x", dist.Normal(0, 1)),
        r"latent Diffusion site; got latent sites \['x'\]",
    ),
    "scaled": (scaled, r"an unscaled diffusion site 'x'; got scale 0\.5"),
    "masked": (
        lambda: numpyro.sample("x", PAIR.mask(False)),
        "at latent site 'x', .*; got one inside of MaskedDistribution",
    ),
    "masked-as-an-event": (
        lambda: numpyro.sample("x", PAIR.expand([2]).mask(False).to_event(1)),
        "at latent site 'x', .*; got one inside of MaskedDistribution",
    ),
    "obs-mask": (
        lambda: numpyro.sample("x", PAIR.expand([3]), obs=jnp.zeros((3, 2)), obs_mask=jnp.arange(3) > 0),
        r"no obs_mask at the diffusion site 'x'; got one\. Leave the site latent .*infer\.observe_entries",
    ),
    "nested": (nested, r"'z' that depends on no other diffusion site; got one that depends on \['x'\]"),
    "subsampled": (subsampled, "a model with all its data; got plate 'n' with 3 of 6"),
    "untrained": (untrained, r"a value of parameter 'slope'.*substitute"),
    "y-too-long": (observed(lambda x: dist.Normal(x, 1.0), (3,)), r"shape \(2,\) at site 'y'; got shape \(3,\)"),
    "y-both-broadcast": (
        observed(lambda x: dist.Normal(x, 1), (2, 1)),
        r"shape \(2,\) at site 'y'; got shape \(2, 1\)",
    ),
    "y-of-another-event": (
        observed(lambda x: dist.Normal(x[:1], 1.0).to_event(1), (3,)),
        r"shape \(1,\) at site 'y'; got shape \(3,\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_model_that_cannot_be_filtered_says_why(name):
    model, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        split_model(model, (), {})


def test_a_trained_parameter_is_one_with_a_value():
    assert split_model(substitute(untrained, data={"slope": jnp.ones(())}), (), {}).sites[0].name == "x"


def test_elements_are_found_from_the_shapes_of_traced_data():
    """The proof is of operations, so that no value is needed."""

    def evidence_shape(y, elements):
        def model():
            with numpyro.plate("n", 3):
                x = numpyro.sample("x", PAIR)
                numpyro.sample("y", dist.Normal(x.sum(-1), 0.5), obs=y)

        return jnp.zeros(split_model(model, (), {}, elements=elements).element_shape)

    for elements, shape in (("auto", (3,)), ("independent", (3,)), ("joint", ())):
        assert jax.jit(evidence_shape, static_argnums=1)(jnp.zeros(3), elements).shape == shape


def test_being_told_wrongly_is_refused_where_it_can_be_seen():
    with pytest.raises(ValueError, match="does not couple; got the diffusion sites have different plates"):
        split_model(different_plates, (), {}, elements="independent")
    with pytest.raises(ValueError, match="got site 'total' depends on the elements of the plate together"):
        split_model(coupled_by_a_site_outside, (jnp.zeros(3),), {}, elements="independent")
    with pytest.raises(ValueError, match="elements 'auto', 'independent' or 'joint'; got 'all'"):
        split_model(plain, (jnp.zeros(2),), {}, elements="all")


def test_more_data_than_dimensions_broadcast_as_in_numpyro():
    """Five numbers of one x: legal in NumPyro, and summed."""
    split = split_model(observed(lambda x: dist.Normal(x[0], 1.0), (5,)), (), {})
    found = split.log_factor({"x": jnp.array([1.0, 0.0])}, {})
    np.testing.assert_allclose(found.elements, 5 * dist.Normal(1.0, 1.0).log_prob(0.0), rtol=1e-6)


def test_a_model_that_is_not_defined_everywhere_is_split_all_the_same():
    """Its distributions are invalid at random states, where NumPyro says so; what only looks may not care."""

    def model(y):
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
        x = numpyro.sample("x", PAIR)
        numpyro.sample("y", dist.Normal(jnp.log(-(x**2)) + shift, 1.0).to_event(1), obs=y)

    split = split_model(model, (jnp.zeros(2),), {})
    others, log_density = split.draw_others(jax.random.key(0))
    np.testing.assert_allclose(log_density, dist.Normal(0.0, 1.0).log_prob(others["shift"]), rtol=1e-6)
    assert split.chains(others)["x"].event_shape == (3, 2)
    np.testing.assert_array_equal(split.observations()["y"], jnp.zeros(2))
    assert np.isnan(split.log_factor({"x": jnp.ones(2)}, others).elements)
