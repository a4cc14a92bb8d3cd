"""One test for each name of JAX that is private or bound to a version: what we rely on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion._compat import jax as jax_names


def test_a_traced_value_is_a_tracer():
    seen = []
    jax.jit(lambda x: seen.append(jax_names.is_tracer(x)))(1.0)
    jax.vmap(lambda x: seen.append(jax_names.is_tracer(x)))(jnp.ones(2))
    jax.grad(lambda x: [seen.append(jax_names.is_tracer(x)), x][1])(1.0)
    assert seen == [True] * 3
    assert not any(map(jax_names.is_tracer, (1.0, jnp.ones(2), np.ones(2), jax.random.key(0))))


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, lambda f: lambda x: jax.vmap(f)(jnp.full(2, x))])
def test_what_is_computed_from_a_tracer_is_told_from_what_is_only_traced(transform):
    found = {}

    def function(x):
        inner = jax.jit(lambda y: jnp.sin(y) + 1)
        functions = {
            "constant": lambda: [jnp.ones(3) * 2, np.ones(2), 1.0, inner(0.5)],
            "itself": lambda: [jnp.ones(3), x],
            "inside of jit": lambda: inner(x),
            "by closure": lambda: jax.jit(lambda: x + 1)(),
            "by a loop": lambda: jax.lax.fori_loop(0, 3, lambda i, y: y + x, 0.0),
            "not used": lambda: (x + 1, jnp.ones(2))[1],
        }
        found.update({name: [origin.tracers for origin in jax_names.origins(each)] for name, each in functions.items()})
        return x

    transform(function)(1.0)
    assert found == {
        "constant": [False] * 4,
        "itself": [False, True],
        "inside of jit": [True],
        "by closure": [True],
        "by a loop": [True],
        "not used": [False],
    }


def test_each_result_is_told_by_the_inputs_that_it_is_computed_from():
    """Inside of a loop and of a call too."""

    def function(a, b):
        total, rows = jax.lax.scan(lambda carry, row: (carry + row, 2 * row), a["x"], b)
        return [total, rows, jax.jit(lambda x, y: (x, y))(a["y"], b)[0], 0.0]

    arguments = {"x": 1.0, "y": 2.0}, jnp.ones(3)
    found = [tuple(origin.inputs) for origin in jax_names.origins(function, *arguments)]
    assert found == [(True, False, True), (False, False, True), (False, True, False), (False, False, False)]


def test_a_primitive_is_found_by_its_name_inside_of_a_loop():
    def convolve(x):
        body = lambda i, y: jax.lax.conv(y, jnp.ones((1, 1, 1, 1)), (1, 1), "SAME")
        return jax.lax.fori_loop(0, 2, body, x)

    assert jax_names.has_primitive(convolve, "conv_general_dilated", jnp.ones((1, 1, 2, 2)))
    assert not jax_names.has_primitive(jnp.sin, "conv_general_dilated", 1.0)


def test_a_program_is_evaluated_with_the_arrays_that_it_closed_over():
    offset = jnp.arange(3.0)
    program = jax.make_jaxpr(lambda x, y: (x + offset, y * 2))(offset, 1.0)
    first, second = jax_names.evaluate_jaxpr(program.jaxpr, program.consts, [jnp.ones(3), 3.0])
    np.testing.assert_array_equal(first, offset + 1)
    assert second == 6.0
    replaced = jax_names.evaluate_jaxpr(program.jaxpr, [jnp.zeros(3)] * len(program.consts), [jnp.ones(3), 3.0])
    np.testing.assert_array_equal(replaced[0], jnp.ones(3))


def test_inputs_that_an_output_is_computed_from_are_told_from_the_others():
    def function(x, y, z):
        return x + jax.lax.fori_loop(0, 2, lambda i, total: total + y, 0.0), jax.jit(lambda y, z: z)(y, z), 1.0

    program = jax.make_jaxpr(function)(1.0, 2.0, 3.0).jaxpr
    assert jax_names.used_inputs(program, {0}) == [True, True, False]
    assert jax_names.used_inputs(program, {1}) == [False, False, True]
    assert jax_names.used_inputs(program, {2}) == [False] * 3
    assert jax_names.used_inputs(program, {0, 1}) == [True] * 3


def test_inputs_of_a_scan_are_constants_what_is_carried_and_rows():
    def loop(x, w):
        step = lambda c, v: ({"a": c["a"] * w, "b": c["b"] + v[1]}, c["a"] * v[0])
        return jax.lax.scan(step, {"a": 1.0, "b": w}, (x, x[:, 0]))

    program = jax.make_jaxpr(loop)(jnp.ones((4, 3)), jnp.ones(3)[0])
    (equation,) = (equation for equation in program.eqns if equation.primitive.name == "scan")
    constants, carry = jax_names.scan_parts(equation)
    body = getattr(equation.params["jaxpr"], "jaxpr", equation.params["jaxpr"])
    assert constants >= 1
    assert [v.aval.shape for v in body.invars[:constants]] == [v.aval.shape for v in equation.invars[:constants]]
    assert carry == 2
    rows = slice(constants + carry, None)
    assert [(4, *v.aval.shape) for v in body.invars[rows]] == [v.aval.shape for v in equation.invars[rows]]
    assert len(equation.invars[rows]) >= 1
