"""Floating point: the default float in, the same float out, no silent promotion, no NaN on the way."""

import jax
import jax.numpy as jnp
import numpy as np
from catalogue import CASES, FEW, draw, draws, log_prob, over, scores


def check_dtypes(case, wanted):
    """Strict promotion only refuses: what it lets pass has the same dtypes without it."""
    with jax.numpy_dtype_promotion("strict"):
        distribution = case.make()
        drawn = jax.eval_shape(distribution.sample, jax.random.key(0))
        assert drawn.dtype == wanted or (case.is_discrete and jnp.issubdtype(drawn.dtype, jnp.integer))
        assert jax.eval_shape(distribution.log_prob, case.value()).dtype == wanted
        if case.is_discrete:
            for dtype in (jnp.int8, jnp.uint8, jnp.float32):
                assert jax.eval_shape(distribution.log_prob, case.value().astype(dtype)).dtype == wanted


@over(CASES)
def test_single_precision_stays_single(case):
    check_dtypes(case, jnp.float32)


@over(CASES)
def test_double_precision_stays_double(case, x64):
    check_dtypes(case, jnp.float64)


@over([case for case in CASES if case.is_discrete])
def test_bits_may_be_booleans(case):
    assert jax.eval_shape(case.make().log_prob, case.value().astype(bool)).dtype == jnp.float32
    # NumPyro's constraints.boolean compares with the integers 0 and 1, which strict promotion refuses for booleans.
    with jax.numpy_dtype_promotion("strict"):
        distribution = case.make(validate_args=False)
        assert jax.eval_shape(distribution.log_prob, case.value().astype(bool)).dtype == jnp.float32


@over([case for case in FEW if not case.is_estimate])
def test_single_and_double_precision_agree(case, request):
    single = scores(case)
    value = np.asarray(case.value(2))
    request.getfixturevalue("x64")
    distribution = case.make()
    double = np.asarray(log_prob(distribution, value.astype(value.dtype if case.is_discrete else np.float64)))
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    # Some ten factors, each exact to eps, of single-precision arguments.
    np.testing.assert_allclose(single, double, rtol=0, atol=100 * np.finfo(np.float32).eps * (1 + np.abs(double).max()))


@over(FEW)
def test_no_nan_arises_on_the_way(case):
    distribution = case.make()
    with jax.debug_nans(True):
        np.testing.assert_array_equal(draw(distribution, jax.random.key(1), (16,)), draws(case))
        np.testing.assert_array_equal(log_prob(distribution, case.value(2)), scores(case))
