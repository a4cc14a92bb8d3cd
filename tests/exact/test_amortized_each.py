"""Many data sets at once: what each would have alone, by one program."""

import amortized_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion.infer import AmortizedPosterior

pytestmark = [
    pytest.mark.filterwarnings("ignore:Expected (y like|importance weights of all|an effective size|Pareto|R-hat)"),
]

KEY = jax.random.key(1)


@pytest.fixture(scope="module")
def amortized():
    return cases.untrained(cases.linear, num_steps=2)


@pytest.fixture(scope="module")
def y(amortized):
    return amortized.simulate(jax.random.key(3), 20)["y"]


@pytest.fixture(scope="module")
def posteriors(amortized, y):
    return amortized.condition_each(y)


def test_each_draws_what_it_would_alone(amortized, y, posteriors):
    draws = posteriors.sample(KEY, 3)["x"]
    assert draws.shape == (20, 3, 2)
    for index in (0, -1):
        alone = amortized.condition(y[index])
        position = index % 20
        np.testing.assert_allclose(
            draws[index], alone.sample(jax.random.fold_in(KEY, position), 3)["x"], rtol=1e-4, atol=1e-5
        )
        assert posteriors[index].share_farther == posteriors.share_farther[index] == alone.share_farther
    assert [one.share_farther for one in posteriors[:2]] == posteriors.share_farther[:2].tolist()
    with pytest.raises(IndexError):
        posteriors[20]


def test_each_is_corrected_as_it_would_be_alone(y, posteriors):
    """And the evidence is that of the linear model."""
    corrected = posteriors.correct(KEY, num_samples=1000, num_paths=2, progress_bar=False)
    alone = posteriors[5].correct(jax.random.fold_in(KEY, 5), "importance", num_samples=1000, num_paths=2)
    assert len(corrected) == 20
    assert corrected.log_evidence[5] == pytest.approx(alone.log_evidence, abs=1e-3)
    assert corrected[5].pareto_k == pytest.approx(alone.pareto_k, abs=0.02)
    assert corrected.pareto_k[5] == corrected[5].pareto_k
    noise = cases.NOISE**2 * np.eye(3)
    truth = [cases.linear_posterior(cases.PRIOR_MEAN, cases.PRIOR_COVARIANCE, cases.MATRIX, noise, one) for one in y]
    error = (corrected.log_evidence - np.array([each[0] for each in truth])) / corrected.log_evidence_error
    assert np.abs(error).max() < 5
    draws = corrected.get_samples(400)["x"]
    assert draws.shape == (20, 400, 2)
    mean, sd = np.array([each[1] for each in truth]), np.sqrt([np.diagonal(each[2]) for each in truth])
    assert (np.abs(draws.mean(1) - mean) < 5 * sd / np.sqrt(200)).all()


def test_data_sets_with_bad_weights_are_followed_by_chains(y):
    bad = cases.spoiled(cases.untrained(cases.linear, num_steps=2), jax.random.key(4), 0.2)
    posteriors = bad.condition_each(y[:3])
    settings = {"num_samples": 60, "num_paths": 1, "progress_bar": False}
    with pytest.warns(UserWarning, match="importance weights of all 3 data sets that can be trusted; got"):
        posteriors.correct(KEY, **settings)
    corrected = posteriors.correct(KEY, "auto", num_warmup=4, num_chains=2, **settings)
    assert "hmc" in corrected.methods
    assert corrected.get_samples(50)["x"].shape == (3, 50, 2)
    with pytest.raises(ValueError, match="num_samples <= 60, the draws of chains; got 61"):
        corrected.get_samples(61)


def test_data_sets_may_lack_other_numbers_each(y):
    amortized = cases.untrained(cases.linear, num_steps=2, missing=0.7)
    lacking = np.where(np.eye(20, 3) > 0, np.nan, y)
    corrected = amortized.condition_each(lacking).correct(KEY, num_samples=500, num_paths=2, progress_bar=False)
    for index in (1, 7):
        seen = ~np.isnan(lacking[index])
        truth, *_ = cases.linear_posterior(
            cases.PRIOR_MEAN,
            cases.PRIOR_COVARIANCE,
            cases.MATRIX[seen],
            cases.NOISE**2 * np.eye(seen.sum()),
            y[index][seen],
        )
        assert abs(corrected.log_evidence[index] - truth) < 5 * corrected.log_evidence_error[index]


def test_more_strange_data_sets_than_by_chance_are_told(amortized, y):
    strange = np.concatenate([y, np.full((1, 3), 30.0, np.float32)])
    with pytest.warns(UserWarning, match="y like the simulated data sets; got .* of 21 farther from them"):
        posteriors = amortized.condition_each(strange)
    assert posteriors.share_farther[-1] == 0


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (np.zeros((0, 3), np.float32), r"one or more data sets; got \[0\] of the sites"),
        (np.float32(1.0), "one or more data sets"),
        (np.zeros((4, 2), np.float32), r"y of shape \(3,\) at site 'y'"),
        ({"z": np.zeros((4, 3), np.float32)}, r"data of the sites \['y'\]"),
    ],
)
def test_what_are_no_data_sets_is_refused(amortized, rows, match):
    with pytest.raises(ValueError, match=match):
        amortized.condition_each(rows)


def test_no_posterior_before_fit():
    with pytest.raises(RuntimeError, match="Expected a trained AmortizedPosterior"):
        AmortizedPosterior(cases.linear, observed="y").condition_each(jnp.zeros((2, 3)))
