"""One call from a table to a prior in its units: right, or told, and never worse than the Gaussian it starts from."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import transforms as T

import numpyro_diffusion as nd

QUICK = {"num_steps": 20, "every": 10, "batch_size": 32, "num_trajectories": 2, "progress_bar": False}
KERNEL = nd.GaussianKernel(nd.schedules.log_snr(5, 0.1, 20.0), parameterization="x0", variance="denoiser")
SMALL = {"kernel": KERNEL, "network": nd.networks.GaussianSkip(KERNEL.schedule.log_snr[1:], width=8, depth=1)}


WEIGHTS = np.repeat([1.0, 0.0], [400, 200])


def mixed_table():
    """Scales of 1e-3 and 1e4, integers of N(128, 60) within 0..255, a constant, a NaN.

    The last 200 rows, to which ``WEIGHTS`` give none, lie five standard deviations of 'small' higher."""
    rng = np.random.default_rng(0)
    integers = np.clip(np.round(rng.normal(128, 60, 600)), 0, 255)
    small = 1e-3 * (rng.normal(size=600) + np.where(WEIGHTS == 0, 5, 0))
    large = 5e4 + 1e4 * rng.normal(size=600) + 1e6 * small
    rows = {"pixel": integers, "small": small, "always": np.full(600, 3.5), "large": large}
    rows["small"][17] = np.nan
    return rows


@pytest.fixture(scope="module")
def learned():
    return nd.learn_prior(mixed_table(), rng_key=jax.random.key(0), missing="drop", weights=WEIGHTS, **QUICK, **SMALL)


def test_a_row_with_nan_is_refused_by_row_and_column():
    with pytest.raises(ValueError, match=r"got nan in row 17, column 'small' \(1 of 600 rows .*missing='drop'"):
        nd.learn_prior(mixed_table(), rng_key=jax.random.key(0), **QUICK)


def test_draws_are_in_the_units_of_every_column_and_of_the_rows_with_weight(learned):
    rows = np.stack(list(mixed_table().values()), 1)
    rows = rows[np.isfinite(rows).all(1) & (WEIGHTS > 0)]
    draws = np.asarray(learned.distribution.sample(jax.random.key(1), (2000,)))
    assert learned.columns == ("pixel", "small", "always", "large")
    assert (draws[:, 2] == 3.5).all()
    varies = [0, 1, 3]
    scale = rows.std(0)[varies]
    np.testing.assert_allclose((draws.mean(0) - rows.mean(0))[varies] / scale, 0, atol=5 / np.sqrt(340))
    np.testing.assert_allclose(draws.std(0)[varies] / scale, 1, atol=5 / np.sqrt(2 * 340))
    correlations = (np.corrcoef(x[:, 1], x[:, 3])[0, 1] for x in (draws, rows))
    np.testing.assert_allclose(*correlations, atol=0.2)


def test_what_was_done_is_told(learned):
    text = str(learned.report)
    for words in (
        "left out 200 of 600 rows of weight 0",
        "left out 1 of 600 rows with NaN",
        "weights: 399 rows count as 399",
        "on a grid, uniform noise as wide as a step: 'pixel' (1)",
        "column 'always': constant: always 3.5",
        "standard deviations from 0.000944",  # of the rows that count
        "minus one Gaussian",
        "minus Gaussian mixture",
        "minus independent product",
    ):
        assert words in text
    assert learned.report.seconds > 0
    assert learned.report.scored_on == "test"


def test_it_is_no_worse_than_one_gaussian_on_rows_that_it_has_not_seen(learned):
    for baseline in ("the Gaussian it starts from", "one Gaussian"):
        difference = learned.report.minus(baseline)
        assert difference.nats > -3 * difference.standard_error - 1e-3


def test_it_is_a_site_of_a_model_that_draws_alike(learned):
    assert learned.distribution.event_shape == (4,)
    assert learned.distribution.batch_shape == ()
    assert isinstance(learned.distribution.base_dist, nd.Diffusion)


def test_it_comes_back_from_a_file(learned, tmp_path):
    learned.save(tmp_path / "prior.nd")
    loaded = nd.load(tmp_path / "prior.nd")
    key = jax.random.key(3)
    np.testing.assert_array_equal(loaded.sample(key, (5,)), learned.distribution.sample(key, (5,)))


def test_positive_columns_are_respected_and_the_code_does_the_same_by_hand():
    logs = np.random.default_rng(1).normal(size=(300, 2)) @ np.array([[1.0, 0.5], [0.0, 0.5]]) + [1.0, -3.0]
    rows = np.exp(logs)
    learned = nd.learn_prior(rows, rng_key=jax.random.key(0), support="positive", names=["a", "b"], **QUICK)
    assert learned.columns == ("a", "b")
    assert learned.report.residual in (0, 0.25, 0.5, 0.75, 1)
    names = {"data": rows, "rng_key": jax.random.key(0), "report": learned.report}
    exec(learned.report.code, names)  # noqa: S102
    sample = jax.jit(lambda prior: prior.sample(jax.random.key(2), (1000,)))
    draws, by_hand = (np.log(np.asarray(sample(prior))) for prior in (learned.distribution, names["prior"]))
    assert np.isfinite(draws).all()
    np.testing.assert_allclose((draws.mean(0) - logs.mean(0)) / logs.std(0), 0, atol=5 / np.sqrt(240))
    np.testing.assert_allclose(by_hand, draws, rtol=0.02, atol=0.02)
    trained = learned.fit.validation_losses
    np.testing.assert_allclose(names["result"].validation_losses, trained, rtol=1e-3)


@pytest.mark.parametrize(
    "transform",
    [
        T.ExpTransform(),
        T.SigmoidTransform(),
        T.StickBreakingTransform(),
        T.AffineTransform(np.array([0.1, -2.0]), np.array([3.0, 1e-3]), domain=dist.constraints.real),
        T.LowerCholeskyAffine(np.array([0.1, -2.0]), np.array([[3.0, 0.0], [0.5, 1e-3]])),
        nd.transforms.SinhArcsinh(np.array([0.1, 0.0]), np.array([1.0, 0.9])),
        nd.transforms.BySupport(("real", "positive")),
        nd.transforms.InsertConstants((None, 3.5, None)),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_the_code_of_a_transform_is_that_transform(transform):
    from numpyro_diffusion.learning.code import _constructor

    made = eval(_constructor(transform), {"T": T, "nd": nd, "jnp": jnp})  # noqa: S307
    x = jnp.array([0.3, -1.2])
    np.testing.assert_allclose(made(x), transform(x), rtol=1e-6)
    assert made.domain.event_dim == transform.domain.event_dim


def test_a_residual_that_makes_validation_rows_less_likely_is_taken_away(learned):
    """The network's last layer is set to noise: of all factors 0 is the best, and leaves the Gaussian."""
    from numpyro_diffusion.learning.train import _with_best_residual

    trained = learned.distribution.base_dist
    assert trained.event_shape == (3,)
    z = np.random.default_rng(2).normal(size=(40, 3)).astype(np.float32)
    output = trained.transition.params["output"]
    noise = 3 * jax.random.normal(jax.random.key(1), output["w"].shape)
    params = {**trained.transition.params, "output": {**output, "w": noise}}
    prior = nd.Diffusion(KERNEL, nd.Transition(trained.transition.function, params, event_shape=(3,)))
    kept, factor = _with_best_residual(prior, z, jax.random.key(2))
    assert factor == 0
    found = nd.evaluation.importance_weighted(jax.random.key(3), kept, z, num_trajectories=1)
    np.testing.assert_allclose(found.per_point, dist.Normal().log_prob(z).sum(-1), rtol=1e-3)


def test_bits_are_learned_by_a_bernoulli_kernel():
    rng = np.random.default_rng(3)
    first = rng.integers(0, 2, (80, 1))
    rows = np.concatenate([first, first, np.ones((80, 1), int)], 1)
    learned = nd.learn_prior(rows, rng_key=jax.random.key(0), test=0.0, **QUICK)
    assert isinstance(learned.distribution.kernel, nd.BernoulliKernel)
    assert set(np.unique(learned.distribution.sample(jax.random.key(1), (50,)))) <= {0, 1}
    assert "Bernoulli" in str(learned.report)
    assert learned.report.scored_on == "validation"
    assert any("scored on the validation rows" in words for words in learned.report.warnings)
    assert any("repeat another" in words for words in learned.report.warnings)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"validation": 0}, "validation > 0; got 0"),
        ({"test": 0.7}, r"test in \[0, 0.5\); got 0.7"),
        ({"missing": "impute"}, "missing one of refuse, drop"),
        ({"names": ["a"]}, r"names of 2 columns; got \['a'\]"),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_bad_options_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        nd.learn_prior(np.random.default_rng(0).normal(size=(20, 2)), rng_key=jax.random.key(0), **options)


def test_columns_that_never_change_are_refused():
    with pytest.raises(ValueError, match=r"enough different rows to .*; got 1 different rows of 20"):
        nd.learn_prior(np.full((20, 2), 3.0), rng_key=jax.random.key(0), **QUICK)


def test_a_share_that_is_beyond_the_quantiles_is_of_rows_with_noise_where_columns_are_on_a_grid(learned):
    """Draws have no grid: a column of 0 and 1 with noise would lie beyond its own quantiles half of the time."""
    tails = learned.report.tails
    assert tails.names == ("pixel", "small", "large")
    assert (tails.share < 0.1).all()


def test_images_of_integers_keep_their_units():
    rng = np.random.default_rng(5)
    images = np.clip(np.round(rng.normal(128, 60, (60, 2, 2, 1))), 0, 255).astype(np.uint8)
    kernel = nd.GaussianKernel(nd.schedules.log_snr(5, 0.1, 20.0))
    network = nd.networks.MLP(5, 2, width=8, depth=1, event_dim=3)
    learned = nd.learn_prior(images, rng_key=jax.random.key(0), kernel=kernel, network=network, **QUICK)
    draws = np.asarray(learned.distribution.sample(jax.random.key(1), (200,)))
    assert learned.distribution.event_shape == (2, 2, 1)
    np.testing.assert_allclose(draws.mean(), 128, atol=30)
    np.testing.assert_allclose(draws.std(), 60, rtol=0.3)
    assert "'pixels' (1)" in str(learned.report)
