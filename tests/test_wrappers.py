"""Which diffusions a distribution holds, and what can be seen through."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions.transforms import AffineTransform, ExpTransform, StickBreakingTransform
from wrapped_cases import HALVES, NUMBER, OTHERS, PRIOR, SHAPES, TRANSFORMED, WITHOUT_INVERSE

from numpyro_diffusion import Diffusion
from numpyro_diffusion.wrappers import find_diffusions, obstacle, unwrap, wrapped_diffusion

HOLDERS = [
    (cls, field)
    for _, cls in inspect.getmembers(dist, inspect.isclass)
    if issubclass(cls, dist.Distribution)
    for field in sorted(cls.gather_pytree_data_fields())
    if "dist" in field
]


@pytest.mark.parametrize(
    "make", [*SHAPES.values(), *TRANSFORMED.values(), *OTHERS.values()], ids=[*SHAPES, *TRANSFORMED, *OTHERS]
)
def test_a_diffusion_is_found_inside_of_every_wrapper(make):
    found = find_diffusions(make())
    assert found
    assert all(isinstance(distribution, Diffusion) for distribution in found)


@pytest.mark.parametrize(("cls", "field"), HOLDERS, ids=[f"{cls.__name__}.{field}" for cls, field in HOLDERS])
def test_a_diffusion_is_found_in_every_field_of_numpyro_that_holds_a_distribution(cls, field):
    holder = object.__new__(cls)
    holder.__dict__[field] = [PRIOR, NUMBER] if field.endswith("s") else PRIOR
    assert find_diffusions(holder)[0] is PRIOR
    assert NUMBER in find_diffusions(holder) or not field.endswith("s")


def test_the_wrappers_of_numpyro_are_known():
    """A class that holds a distribution in a field of another name would be missing above."""
    names = {cls.__name__ for cls, _ in HOLDERS}
    assert {
        "EulerMaruyama",
        "ExpandedDistribution",
        "FoldedDistribution",
        "GaussianCopula",
        "Independent",
        "IntervalCensoredDistribution",
        "LeftCensoredDistribution",
        "MaskedDistribution",
        "MixtureGeneral",
        "MixtureSameFamily",
        "RightCensoredDistribution",
        "SineSkewed",
        "TransformedDistribution",
        "LeftTruncatedDistribution",
        "ZeroInflatedProbs",
    } <= names
    holding = {
        name
        for name, cls in inspect.getmembers(dist, inspect.isclass)
        if issubclass(cls, dist.Distribution)
        and any(
            "Distribution" in str(parameter.annotation) and "Constraint" not in str(parameter.annotation)
            for parameter in inspect.signature(cls.__init__).parameters.values()
        )
    }
    assert holding <= names


def test_a_distribution_without_a_diffusion_holds_none():
    mixture = dist.MixtureGeneral(HALVES, [dist.Normal(), dist.Normal()])
    assert find_diffusions(mixture) == ()
    assert find_diffusions(PRIOR.chain) == ()


def test_two_diffusions_are_both_found_and_one_twice_once():
    both = dist.MixtureGeneral(HALVES, [NUMBER, Diffusion(NUMBER.kernel, NUMBER.transition)])
    assert len(find_diffusions(both)) == 2
    assert len(find_diffusions(dist.MixtureGeneral(HALVES, [NUMBER, NUMBER]))) == 1


@pytest.mark.parametrize("make", SHAPES.values(), ids=SHAPES)
def test_expand_and_to_event_are_seen_through_with_their_shape(make):
    distribution, batch_shape = unwrap(make())
    assert isinstance(distribution, Diffusion)
    assert batch_shape + distribution.event_shape == make().shape()


@pytest.mark.parametrize("name", [*OTHERS, *WITHOUT_INVERSE])
def test_what_changes_the_distribution_is_not_seen_through(name):
    distribution = {**OTHERS, **WITHOUT_INVERSE}[name]()
    assert not isinstance(unwrap(distribution)[0], Diffusion)
    assert wrapped_diffusion(distribution) is None
    assert obstacle(distribution) in name


@pytest.mark.parametrize("make", [*SHAPES.values(), *TRANSFORMED.values()], ids=[*SHAPES, *TRANSFORMED])
def test_what_is_seen_through_is_a_function_of_the_state(make):
    """The state has the shape of a draw of the chain; its value has the site's, and leads back to it."""
    distribution = make()
    wrapped = wrapped_diffusion(distribution)
    states = jax.random.normal(jax.random.key(0), wrapped.state_shape)
    assert wrapped.chain.sample(jax.random.key(1)).shape[: len(wrapped.batch_shape)] == wrapped.batch_shape
    value = wrapped.value(states)
    assert value.shape == distribution.shape()
    np.testing.assert_allclose(wrapped.state(value), states, atol=1e-4)


def test_transforms_act_from_the_inside_out_through_every_wrapper():
    inner = dist.TransformedDistribution(PRIOR, AffineTransform(1.0, 2.0)).expand((3,)).to_event(1)
    distribution = dist.TransformedDistribution(inner, ExpTransform())
    wrapped = wrapped_diffusion(distribution)
    assert wrapped.state_shape == (3, 1)
    np.testing.assert_allclose(wrapped.value(jnp.ones((3, 1))), np.exp(3.0) * np.ones((3, 1)), rtol=1e-6)


def test_the_state_of_a_simplex_has_one_number_less():
    distribution = dist.TransformedDistribution(NUMBER.expand((4, 2)).to_event(1), StickBreakingTransform())
    wrapped = wrapped_diffusion(distribution)
    assert (distribution.shape(), wrapped.state_shape, wrapped.batch_shape) == ((4, 3), (4, 2), (4, 2))
