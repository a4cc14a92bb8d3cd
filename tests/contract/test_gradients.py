"""Gradients: finite everywhere, and the derivatives of what is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import CASES, FEW, NUM_STEPS, affine, floats, gaussian, over, pull_to_zero

from numpyro_diffusion import ForwardChain, GaussianKernel, ReverseChain, Transition, schedules


def split(distribution):
    """The floating-point leaves of a distribution, and how to put others in their place."""
    leaves, structure = jax.tree.flatten(distribution)
    is_float = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]
    numbers = [jnp.asarray(leaf, float) for leaf, real in zip(leaves, is_float, strict=True) if real]

    def join(numbers):
        numbers = iter(numbers)
        return jax.tree.unflatten(
            structure, [next(numbers) if real else leaf for leaf, real in zip(leaves, is_float, strict=True)]
        )

    return numbers, join


@over(CASES)
def test_gradients_of_log_prob_are_finite_and_not_all_zero(case):
    distribution, value = case.make(), case.value()
    numbers, join = split(distribution)

    @jax.jit
    def gradients(numbers, value):
        if case.is_discrete:
            return jax.grad(lambda numbers: join(numbers).log_prob(value).sum())(numbers)
        return jax.grad(lambda arguments: join(arguments[0]).log_prob(arguments[1]).sum())((numbers, value))

    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(gradients(numbers, value))]
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert any((leaf != 0).any() for leaf in leaves)
    if not case.is_discrete:
        assert (leaves[-1] != 0).any(), "log_prob does not depend on the value"


def directional(function, numbers):
    """The derivative of a compiled function along a fixed direction, by JAX and by a central difference."""
    # The numbers 0 and 1 at a schedule's ends are edges of its domain: only inner points have a two-sided derivative.
    direction = [
        jnp.where((number == 0) | (number == 1), 0.0, 1.0)
        * np.cos(np.arange(number.size) + index).reshape(number.shape)
        for index, number in enumerate(numbers)
    ]

    @jax.jit
    def along(h):
        moved = lambda h: function([number + h * d for number, d in zip(numbers, direction, strict=True)])
        return jax.jvp(moved, (h,), (1.0,))

    h = 1e-5  # error h^2 from the third derivative and eps / h = 2e-11 from rounding
    return np.asarray(along(0.0)[1]), np.asarray((along(h)[0] - along(-h)[0]) / (2 * h))


@over(FEW)
def test_log_prob_has_the_derivative_of_its_values(case, x64):
    numbers, join = split(case.make())
    value = case.value(2)
    if case.is_discrete:
        by_jax, by_difference = directional(lambda numbers: join(numbers).log_prob(value), numbers)
    else:
        by_jax, by_difference = directional(lambda all_: join(all_[:-1]).log_prob(all_[-1]), [*numbers, value])
    assert np.abs(by_jax).min() > 1e-3
    np.testing.assert_allclose(by_jax, by_difference, rtol=1e-6, atol=1e-7)


@over([case for case in FEW if not case.is_discrete])
def test_a_draw_has_the_derivative_of_its_values(case, x64):
    numbers, join = split(case.make())
    by_jax, by_difference = directional(lambda numbers: join(numbers).sample(jax.random.key(0)), numbers)
    assert np.abs(by_jax).max() > 1e-3
    np.testing.assert_allclose(by_jax, by_difference, rtol=1e-6, atol=1e-7)


@over([case for case in CASES if case.is_discrete and case.is_chain])
def test_draws_of_bits_carry_no_gradient(case):
    numbers, join = split(case.make())
    drawn, tangent = jax.eval_shape(
        lambda numbers: jax.jvp(lambda numbers: join(numbers).sample(jax.random.key(0)), (numbers,), (numbers,)),
        numbers,
    )
    assert jnp.issubdtype(drawn.dtype, jnp.integer)
    assert tangent.dtype == jax.dtypes.float0


# a distribution as a function of one argument, the argument, a value of the distribution
ARGUMENTS = {
    "context": (
        lambda context: ReverseChain(gaussian(), affine((2,), 2, (2,)), context=context),
        floats(3, 2),
        floats(3, NUM_STEPS + 1, 2),
    ),
    "data": (lambda x_0: ForwardChain(gaussian(), x_0), floats(3, 2), floats(3, NUM_STEPS, 2)),
    "schedule": (
        lambda raw: ForwardChain(GaussianKernel(schedules.learned(raw, beta_1=0.1)), floats(2)),
        floats(NUM_STEPS - 1),
        floats(NUM_STEPS, 2),
    ),
    "network": (
        lambda params: ReverseChain(gaussian(variance="upper"), Transition(pull_to_zero, params, ())),
        floats(),
        floats(NUM_STEPS + 1),
    ),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_number_of_an_argument_moves_the_density_and_the_draws(name):
    make, argument, value = ARGUMENTS[name]

    @jax.jit
    def gradients(argument):
        return (
            jax.grad(lambda argument: make(argument).log_prob(value).sum())(argument),
            jax.grad(lambda argument: make(argument).sample(jax.random.key(0)).sum())(argument),
        )

    for gradient in gradients(argument):
        assert np.isfinite(gradient).all()
        assert (np.asarray(gradient) != 0).all()
