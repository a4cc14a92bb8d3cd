"""What engines read off a distribution: its support, and which methods it has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import STRUCTURES, draws, over
from numpyro.distributions import biject_to, constraints

CHAINS = [case for case in STRUCTURES if case.is_chain]


@over(STRUCTURES)
def test_the_support_has_the_event_s_rank_and_holds_the_draws(case):
    distribution, drawn = case.make(), draws(case)
    assert distribution.support.event_dim == len(case.event_shape)
    assert distribution.support.is_discrete == distribution.is_discrete == case.is_discrete
    inside = np.asarray(distribution.support(jnp.asarray(drawn)))
    assert inside.shape == (16, *case.batch_shape)
    assert inside.all()


@over(STRUCTURES)
def test_one_coordinate_outside_is_outside_the_support(case):
    distribution = case.make()
    for outside in (np.nan, 0.5 if case.is_discrete else np.inf):
        spoiled = draws(case).astype(np.float32)
        spoiled[(0,) * spoiled.ndim] = outside
        inside = np.asarray(distribution.support(jnp.asarray(spoiled))).reshape(-1)
        assert not inside[0]
        assert inside[1:].all()


@over(CHAINS)
def test_the_support_is_known_to_a_law_and_not_to_its_class(case):
    distribution = case.make()
    assert not constraints.is_dependent(distribution.support)
    with pytest.raises(NotImplementedError):
        type(distribution).infer_shapes()


@over([case for case in CHAINS if not case.is_discrete])
def test_a_real_support_has_the_identity_as_its_bijection(case):
    distribution = case.make()
    transform = biject_to(distribution.support)
    value = case.value()
    np.testing.assert_array_equal(transform(value), value)
    assert transform.log_abs_det_jacobian(value, value).shape == case.batch_shape


@over([case for case in CHAINS if case.is_discrete])
def test_bits_have_no_bijection(case):
    with pytest.raises(NotImplementedError):
        biject_to(case.make().support)


@over(STRUCTURES)
def test_draws_are_reparametrised_when_real_and_not_when_bits(case):
    distribution, key = case.make(), jax.random.key(0)
    assert distribution.has_rsample == (not case.is_discrete)
    assert distribution.expand((4, *case.batch_shape)).has_rsample == distribution.has_rsample
    assert distribution.mask(False).has_rsample == distribution.has_rsample
    if case.is_discrete:
        with pytest.raises(NotImplementedError):
            distribution.rsample(key)
    else:
        assert str(jax.make_jaxpr(distribution.rsample)(key)) == str(jax.make_jaxpr(distribution.sample)(key))


@over(STRUCTURES)
def test_array_arguments_are_declared_as_numpyro_s_are(case):
    """By name, with what a constraint tells of them; where draws are reparametrised, each of them is."""
    distribution = case.make()
    array = {"forward": "x_0", "reverse": "context", "tilted": "context", "diffusion": "context"}
    if case.is_chain:
        assert set(distribution.arg_constraints) == {array[case.name.split()[0]]}
    for name, constraint in distribution.arg_constraints.items():
        assert distribution.get_args()[name] is getattr(distribution, name)
        assert constraint.event_dim == 0
        assert constraint.is_discrete is False
        assert name in type(distribution).gather_pytree_data_fields()
    if distribution.has_rsample:
        assert set(distribution.arg_constraints) == set(distribution.reparametrized_params)


@over(CHAINS)
def test_what_has_no_closed_form_says_so(case):
    distribution = case.make()
    assert distribution.has_enumerate_support is False
    methods = [
        distribution.enumerate_support,
        distribution.entropy,
        lambda: distribution.cdf(0.5),
        lambda: distribution.icdf(0.5),
    ]
    for method in (*methods, lambda: distribution.mean, lambda: distribution.variance, lambda: distribution.mode):
        with pytest.raises(NotImplementedError):
            method()
