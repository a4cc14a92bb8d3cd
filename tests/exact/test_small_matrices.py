"""Factors and solutions of many small matrices, against LAPACK in one piece."""

import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion._small_matrices import cholesky, solve, solve_lower


@pytest.mark.parametrize("size", [1, 2, 5])
def test_factor_and_solutions_are_those_of_lapack(size):
    root = np.random.default_rng(size).normal(size=(3, 4, size, size))
    matrix = root @ root.swapaxes(-1, -2) + 0.5 * np.eye(size)
    right = root[..., 0]
    factor = np.linalg.cholesky(matrix)
    np.testing.assert_allclose(cholesky(jnp.asarray(matrix, float)), factor, atol=1e-5)
    lower = np.linalg.solve(factor, right[..., None])[..., 0]
    np.testing.assert_allclose(solve_lower(jnp.asarray(factor, float), jnp.asarray(right, float)), lower, atol=1e-4)
    wanted = np.linalg.solve(matrix, right[..., None])[..., 0]
    np.testing.assert_allclose(solve(jnp.asarray(matrix, float), jnp.asarray(right, float)), wanted, atol=1e-4)


def test_a_matrix_that_is_not_positive_has_the_factor_of_a_near_one():
    factor = cholesky(jnp.array([[1.0, 1.0], [1.0, 0.9]]))
    assert jnp.isfinite(factor).all()
    np.testing.assert_allclose(factor @ factor.T, [[1.0, 1.0], [1.0, 1.0]], atol=1e-5)


def test_a_bound_changes_no_sum_of_a_diagonal_and_a_positive_semidefinite_matrix():
    root = np.random.default_rng(0).normal(size=(5, 4, 2))
    diagonal = jnp.array([0.1, 2.0, 0.5, 1.0])
    matrix = jnp.asarray(root @ root.swapaxes(-1, -2), float) + jnp.diag(diagonal)
    np.testing.assert_allclose(cholesky(matrix, diagonal), cholesky(matrix), atol=1e-5)


@pytest.mark.parametrize("matrix", [-jnp.eye(2), jnp.zeros((2, 2)), jnp.array([[0.0, 3.0], [3.0, 0.0]])])
@pytest.mark.parametrize("least", [None, jnp.array([0.5, 1.0])])
def test_no_symmetric_matrix_gives_nan(matrix, least):
    assert jnp.isfinite(cholesky(matrix, least)).all()
    assert jnp.isfinite(solve(matrix, jnp.zeros(2), least)).all()
    assert least is None or (jnp.diagonal(cholesky(matrix, least)) ** 2 >= 0.999 * least).all()
