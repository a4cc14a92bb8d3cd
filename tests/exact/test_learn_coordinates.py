"""Coordinates in which a table is whitened: bijections with the right volumes, no worse than one Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from numpyro_diffusion.learning.baselines import baseline_log_densities
from numpyro_diffusion.learning.columns import look
from numpyro_diffusion.learning.coordinates import fit_coordinates, log_volume
from numpyro_diffusion.learning.gaussians import fit_gaussian
from numpyro_diffusion.learning.rows import noise_of, resample, split_rows
from numpyro_diffusion.transforms import BySupport, InsertConstants, SinhArcsinh


def generator():
    return np.random.default_rng(0)


TRANSFORMS = [
    SinhArcsinh(jnp.array([0.3, -0.5, 0.0]), jnp.array([0.6, 1.0, 1.4])),
    BySupport(("real", "positive", "unit_interval")),
    InsertConstants((None, 7.0, None, None)),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_transforms_invert_and_their_volumes_are_the_jacobians(transform):
    x = jnp.array([[0.3, -1.2, 0.8], [2.0, 0.1, -2.5]])
    y = transform(x)
    assert y.shape == transform.forward_shape(x.shape)
    assert transform.inverse_shape(y.shape) == x.shape
    np.testing.assert_allclose(transform.inv(y), x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(transform._inverse(np.asarray(y, np.float64)), x, rtol=1e-4, atol=1e-5)
    varies = [index for index in range(y.shape[-1]) if not (y[:, index] == 7.0).all()]
    jacobians = jax.vmap(jax.jacfwd(transform))(x)[:, varies]
    exact = jnp.linalg.slogdet(jacobians)[1]
    found = jnp.asarray(transform.log_abs_det_jacobian(x, y))
    np.testing.assert_allclose(found.sum(-1) if found.ndim == 2 else found, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_transforms_are_trees_that_compare_by_value(transform):
    leaves, tree = jax.tree.flatten(transform)
    again = jax.tree.unflatten(tree, leaves)
    assert transform == again or transform.eq(again)
    x = jnp.ones((2, 3))
    np.testing.assert_allclose(jax.jit(lambda t, x: t(x))(again, x), transform(x), rtol=1e-5)


def test_columns_with_their_own_supports_are_checked():
    support = dist.TransformedDistribution(
        dist.Normal(jnp.zeros(2), 1).to_event(1), BySupport(("positive", "unit_interval"))
    ).support
    assert support(jnp.array([[1.0, 0.5], [-1.0, 0.5], [1.0, 1.5]])).tolist() == [True, False, False]


def test_a_constant_and_nothing_else_has_no_distribution():
    with pytest.raises(ValueError, match="a column that varies"):
        InsertConstants((1.0, 2.0))
    with pytest.raises(ValueError, match="supports out of real, positive, unit_interval; got 'simplex'"):
        BySupport(("simplex",))


def table(support):
    rng = generator()
    x = rng.normal(size=(400, 3)) @ np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.4]])
    if support == "positive":
        return np.exp(x) * [1e-3, 1e4, 1.0]
    if support == "unit_interval":
        return 1 / (1 + np.exp(-x))
    if support == "simplex":
        return np.exp(x) / np.exp(x).sum(1, keepdims=True)
    return x * [1e-3, 1e4, 1.0] + [0.0, 1e5, 3.0]


@pytest.mark.parametrize("support", ["real", "positive", "unit_interval", "simplex"])
def test_whitened_rows_have_mean_0_and_covariance_1_and_come_back(support):
    rows = table(support)
    columns = look(rows, ("a", "b", "c"), (support,) * 3)
    found = fit_coordinates(rows, np.ones(400), columns, margins="auto", rng=generator())
    z = found.whiten(rows)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(np.cov(z.T), np.eye(z.shape[1]), atol=0.03)  # shrinkage leaves a little
    value = jnp.asarray(z, float)
    for transform in found.transforms:
        value = transform(value)
    np.testing.assert_allclose(np.asarray(value), rows, rtol=1e-3)


def test_the_density_of_whitened_rows_in_the_datas_units_is_the_gaussians():
    rows = table("real")
    columns = look(rows, ("a", "b", "c"), ("real",) * 3)
    found = fit_coordinates(rows, np.ones(400), columns, margins="none", rng=generator())
    z = found.whiten(rows)
    log_density = -0.5 * (z**2 + np.log(2 * np.pi)).sum(1) - log_volume(found.transforms, z)
    exact = baseline_log_densities(rows, np.ones(400), rows, rng=generator())["one Gaussian"]
    np.testing.assert_allclose(log_density, exact, atol=1e-2)


def test_heavy_and_skew_columns_get_normal_margins_and_normal_ones_are_left_alone():
    rng = generator()
    rows = np.stack([rng.standard_t(2, 500), np.exp(rng.normal(size=500)), rng.normal(size=500)], 1)
    columns = look(rows, ("heavy", "skew", "normal"), ("real",) * 3)
    found = fit_coordinates(rows, np.ones(500), columns, margins="auto", rng=generator())
    assert found.is_bent
    assert found.margins.tail[0] < 0.8
    assert found.margins.skew[1] > 0.3
    assert (found.margins.skew[2], found.margins.tail[2]) == (0, 1)
    z = found.whiten(rows)
    # Tails that fall as a power become exponential, whose excess kurtosis is at most 3.
    assert columns[0].kurtosis > 20
    assert np.abs(((z / z.std(0)) ** 4).mean(0) - 3).max() < 3
    straight = fit_coordinates(rows, np.ones(500), columns, margins="none", rng=generator())
    assert not straight.is_bent
    assert len(straight.transforms) == 1


def test_shrinkage_is_what_the_number_of_rows_asks_for():
    rng = generator()
    many = fit_gaussian(rng.normal(size=(3000, 3)) @ table("real")[:3] / 1e4, np.ones(3000), rng=generator())
    few = fit_gaussian(rng.normal(size=(20, 30)), np.ones(20), rng=generator())
    assert many.shrinkage < 1e-3 < 0.1 < few.shrinkage
    assert np.isfinite(few.log_prob(rng.normal(size=(5, 30)))).all()


def test_weights_enter_the_gaussian():
    rows = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0], [9.0, 9.0]] * 5) + 0.1 * generator().normal(size=(20, 2))
    weights = np.tile([1.0, 2.0, 1.0, 0.0], 5)
    found = fit_gaussian(rows, weights, rng=generator())
    np.testing.assert_allclose(found.mean, np.average(rows, axis=0, weights=weights))


def test_baselines_score_what_they_were_made_for():
    rng = generator()
    truth = dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), dist.Normal(jnp.array([-3.0, 3.0]), 1.0))
    rows = 1e3 * (np.sign(rng.normal(size=(3000, 1))) * 3 + rng.normal(size=(3000, 1)))
    found = baseline_log_densities(rows[:2000], np.ones(2000), rows[2000:], rng=generator())
    exact = np.asarray(truth.log_prob(rows[2000:, 0] / 1e3)) - np.log(1e3)
    np.testing.assert_allclose(found["Gaussian mixture"].mean(), exact.mean(), atol=0.02)
    np.testing.assert_allclose(found["independent product"].mean(), exact.mean(), atol=0.02)
    assert found["one Gaussian"].mean() < exact.mean() - 0.2


def test_equal_rows_are_in_one_part_and_all_rows_in_some():
    rows = np.repeat(np.arange(50.0), 4)[:, None]
    split, repeats = split_rows(rows, 0.2, 0.2, rng=generator())
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(200))
    assert repeats == 150
    parts = [set(rows[index, 0]) for index in split.values()]
    assert all(len(part) >= 10 for part in parts)
    assert not parts[0] & parts[1] | parts[1] & parts[2] | parts[0] & parts[2]


def test_rows_are_repeated_as_their_weights_say():
    found = resample(np.arange(4), np.array([0.0, 1.0, 1.0, 2.0]), rng=generator())
    assert found.tolist() == [1, 2, 3, 3]


def test_noise_is_one_step_wide_and_belongs_to_the_row():
    key = jax.random.key(0)
    noise = noise_of(key, np.arange(4000), (2,))
    assert np.abs(noise).max() <= 0.5
    np.testing.assert_allclose(noise.mean(0), 0, atol=5 / np.sqrt(12 * 4000))
    np.testing.assert_allclose(noise.var(0), 1 / 12, rtol=0.06)
    np.testing.assert_allclose(np.corrcoef(noise.T)[0, 1], 0, atol=5 / np.sqrt(4000))
    some = np.array([3999, 17, 17])
    np.testing.assert_array_equal(noise_of(key, some, (2,)), noise[some])
    assert noise_of(key, some[:0], (2,)).shape == (0, 2)


def test_a_row_s_place_is_the_same_in_any_order_and_in_stretches(monkeypatch):
    import sys

    rows = generator().normal(size=(500, 3))
    rows[100:200] = rows[:100]
    order = generator().permutation(500)
    split, repeats = split_rows(rows, 0.2, 0.1, rng=generator())
    other, _ = split_rows(rows[order], 0.2, 0.1, rng=generator())
    monkeypatch.setattr(sys.modules["numpyro_diffusion.learning.stretches"], "_NUMBERS", 50)
    again, _ = split_rows(rows, 0.2, 0.1, rng=generator())
    assert repeats == 100
    for name, found in split.items():
        np.testing.assert_array_equal(found, np.sort(order[other[name]]))
        np.testing.assert_array_equal(found, again[name])
    twin = {int(row): name for name, found in split.items() for row in found}
    assert all(twin[row] == twin[row + 100] for row in range(100))
    assert 49 <= len(split["test"]) <= 52
    assert 98 <= len(split["validation"]) <= 104


def test_of_very_many_rows_not_all_that_are_asked_for_are_held_out():
    split, repeats = split_rows(generator().normal(size=(40_000, 1)), 0.2, 0.2, rng=generator())
    assert (repeats, len(split["validation"]), len(split["test"])) == (0, 5000, 5000)
    same = np.zeros((40_000, 1))
    same[:100, 0] = np.arange(100)
    split, repeats = split_rows(same, 0.2, 0.2, rng=generator())
    assert repeats == 39_900
    assert max(len(split["validation"]), len(split["test"])) <= 10_000
