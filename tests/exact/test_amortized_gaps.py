"""Data sets that lack numbers, each others: one network, and the posterior of what is seen."""

import amortized_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import stats

import numpyro_diffusion as nd
from numpyro_diffusion import networks
from numpyro_diffusion.infer import AmortizedPosterior

pytestmark = [
    pytest.mark.filterwarnings("ignore:Expected y like the simulated"),
    pytest.mark.filterwarnings("ignore:Expected Pareto k-hat"),
]


def rows(size=6):
    centre = numpyro.sample("centre", dist.Normal(0.0, 2.0))
    with numpyro.plate("rows", size):
        numpyro.sample("y", dist.Normal(centre, 1.0))


def posterior_of(y):
    """Log evidence, mean and standard deviation of the centre, given what is seen."""
    seen = y[~np.isnan(y)]
    total = np.eye(len(seen)) + 4.0
    precision = 1 / 4 + len(seen)
    return stats.multivariate_normal.logpdf(seen, np.zeros(len(seen)), total), seen.sum() / precision, precision**-0.5


DATA = [
    np.array([0.3, 1.2, np.nan, -0.4, 0.9, 0.1]),
    np.array([np.nan, 3.2, np.nan, np.nan, 2.9, np.nan]),
    np.array([0.3, 1.2, 2.0, -0.4, 0.9, 0.1]),
]


@pytest.mark.optimised
@pytest.mark.parametrize(
    "embedding",
    [networks.VectorEmbedding(16, 32, 1), networks.SetEmbedding(16, 32, 1)],
    ids=["VectorEmbedding", "SetEmbedding"],
)
def test_each_data_set_lacks_others(embedding):
    amortized = cases.trained(rows, 8000, 1500, num_steps=20, embedding=embedding, missing=0.8)
    for y in DATA:
        log_evidence, mean, sd = posterior_of(y)
        posterior = amortized.condition(y)
        drawn = np.asarray(posterior.sample(jax.random.key(1), 2000)["centre"])
        assert abs(drawn.mean() - mean) < 0.5 * sd  # with zeros for what is missing it would be off by 2.6
        assert drawn.std() == pytest.approx(sd, rel=0.25)
        corrected = posterior.correct(jax.random.key(2), num_samples=2000, num_paths=4)
        assert corrected.log_evidence_error < 0.1
        assert abs(corrected.log_evidence - log_evidence) < 5 * corrected.log_evidence_error


def bits():
    chance = numpyro.sample("chance", dist.Uniform(0.0, 1.0))
    numpyro.sample("y", dist.Bernoulli(chance).expand([4]).to_event(1))


def test_integers_lack_numbers_by_nan(tmp_path):
    """Of two bits that are seen, one is 1: p(y) = B(2, 2)."""
    amortized = cases.trained(bits, 2000, 50, num_steps=10, missing=0.5)
    y = np.array([1.0, np.nan, 0.0, np.nan])
    corrected = amortized.condition(y).correct(jax.random.key(2), "importance", num_samples=2000)
    assert abs(corrected.log_evidence - np.log(1 / 6)) < 5 * corrected.log_evidence_error < 0.2
    with pytest.raises(ValueError, match=r"values that int32 holds at site 'y'; got 1 others, as 0\.5"):
        amortized.condition(np.array([1.0, np.nan, 0.5, 0.0]))
    with pytest.raises(ValueError, match="finite values at site 'y'; got 1 NaN or infinite"):
        amortized.condition(np.array([1.0, np.nan, np.inf, 0.0]))

    amortized.save(tmp_path / "amortized.safetensors")
    again = AmortizedPosterior.load(tmp_path / "amortized.safetensors", bits).condition(y)
    drawn, expected = (each.sample(jax.random.key(3), 10)["chance"] for each in (again, amortized.condition(y)))
    np.testing.assert_array_equal(drawn, expected)


def waiting():
    """Positive numbers, whose density at 0 has no logarithm."""
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    numpyro.sample("y", dist.LogNormal(0.0, scale).expand([3]).to_event(1))


def test_what_is_missing_has_no_part_in_moves_by_gradients():
    posterior = cases.untrained(waiting, missing=0.5).condition(np.array([1.5, np.nan, np.nan]))
    corrected = posterior.correct(
        jax.random.key(0), "hmc", num_samples=2000, num_warmup=200, num_chains=2, progress_bar=False
    )
    log_scale = np.linspace(-5, 5, 2001)
    joint = stats.norm.pdf(log_scale) * stats.norm.pdf(np.log(1.5), 0, np.exp(log_scale))
    mean = (joint * log_scale).sum() / joint.sum()
    assert np.log(np.asarray(corrected.get_samples()["scale"])).mean() == pytest.approx(mean, abs=0.15)


def test_simulations_say_themselves_what_is_missing():
    amortized = AmortizedPosterior(rows, observed="y", missing=0.5, num_steps=4, width=8, depth=1)
    simulations = amortized.simulate(jax.random.key(0), 300)
    simulations["y"][:, 3:] = np.where(np.arange(300)[:, None] % 2, np.nan, simulations["y"][:, 3:])
    amortized.fit(jax.random.key(0), simulations=simulations, max_steps=1, every=1, progress_bar=False)
    assert amortized.fit_result.size == 270
    assert amortized.condition(np.where(np.arange(6) < 3, 0.5, np.nan)).share_farther > 0

    simulations["y"][:, 0] = np.nan
    with pytest.raises(ValueError, match="numbers that are seen in some simulations; got 1 that are missing in all"):
        amortized.fit(jax.random.key(0), simulations=simulations)


class _Answer:
    """The exact posterior of the centre, of what is seen, or of zeros in the place of what is not."""

    observed = ("y",)

    def __init__(self, amortized, *, fill):
        self.simulate, self._fill = amortized.simulate, fill

    def condition_each(self, y):
        self._y = np.nan_to_num(y["y"]) if self._fill else y["y"]
        return self

    def sample(self, rng_key, num_samples):
        precision = 1 / 4 + (~np.isnan(self._y)).sum(1)
        mean, sd = np.nansum(self._y, 1) / precision, precision**-0.5
        return {"centre": mean[:, None] + sd[:, None] * jax.random.normal(rng_key, (len(mean), num_samples))}


SETTINGS = {"num_data_sets": 160, "num_draws": 31, "progress_bar": False}


@pytest.mark.parametrize("fill", [False, True])
def test_calibration_is_over_data_sets_that_lack_numbers(fill):
    """The posterior of what is seen is calibrated; that of all numbers, of which some are wrong, is not."""
    amortized = AmortizedPosterior(rows, observed="y", missing=0.8)
    found = nd.evaluation.sbc(jax.random.key(3), _Answer(amortized, fill=fill), **SETTINGS)
    assert (found.p_values["centre"] < 1e-3) == fill


def test_corrected_draws_are_calibrated_where_numbers_are_missing():
    amortized = cases.spoiled(cases.untrained(rows, missing=0.8), jax.random.key(4), 0.1)
    found = nd.evaluation.sbc(jax.random.key(5), amortized, corrected=True, num_samples=300, **SETTINGS)
    assert found.p_values["centre"] > 1e-3


def test_simulated_data_sets_lack_shares_of_their_own():
    amortized = AmortizedPosterior(rows, observed="y", missing=0.8, num_steps=2)
    whole, lacking = (amortized.simulate(jax.random.key(0), 2000, gaps=gaps) for gaps in (False, True))
    is_gap = np.isnan(lacking["y"])
    np.testing.assert_array_equal(lacking["centre"], whole["centre"])
    np.testing.assert_array_equal(np.where(is_gap, 0, lacking["y"]), np.where(is_gap, 0, whole["y"]))
    assert is_gap.mean() == pytest.approx(0.4, abs=0.02)
    # Of shares p uniform to .8 a set of 6 numbers lacks none with the mean of (1 - p)^6; of one share for all it would
    # with .6^6 = .05.
    assert (~is_gap.any(1)).mean() == pytest.approx((1 - 0.2**7) / 7 / 0.8, abs=0.03)


def pairs():
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    with numpyro.plate("pairs", 2):
        numpyro.sample("y", dist.MultivariateNormal(theta * jnp.ones(2), jnp.array([[1.0, 0.5], [0.5, 1.0]])))


def test_an_event_is_seen_whole_or_not_at_all():
    amortized = cases.untrained(pairs, missing=0.5)
    part = amortized.condition(np.array([[0.1, np.nan], [0.3, 0.4]]))
    assert np.isfinite(part.sample(jax.random.key(0), 5)["theta"]).all()
    with pytest.raises(ValueError, match="events of site 'y', MultivariateNormal, that are seen whole or not at all"):
        part.correct(jax.random.key(0))

    y = np.array([[np.nan, np.nan], [0.3, 0.4]])
    corrected = amortized.condition(y).correct(jax.random.key(0), "importance", num_samples=2000)
    truth = stats.multivariate_normal.logpdf(y[1], np.zeros(2), np.array([[1.0, 0.5], [0.5, 1.0]]) + 1.0)
    assert abs(corrected.log_evidence - truth) < 5 * corrected.log_evidence_error < 0.5


def in_a_scan():
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))

    def step(carry, _):
        numpyro.sample("y", dist.Normal(theta, 1.0))
        return carry, None

    scan(step, 0.0, None, length=3)


def test_rounds_of_a_scan_and_whole_data_sets_may_be_missing():
    amortized = cases.untrained(in_a_scan, missing=1.0)
    for y in (np.array([1.0, np.nan, 2.0]), np.full(3, np.nan)):
        corrected = amortized.condition(y).correct(jax.random.key(0), "importance", num_samples=4000)
        seen = y[~np.isnan(y)]
        truth = stats.multivariate_normal.logpdf(seen, np.zeros(len(seen)), np.eye(len(seen)) + 1) if len(seen) else 0.0
        assert abs(corrected.log_evidence - truth) < 5 * corrected.log_evidence_error < 0.2


def test_online_simulations_lack_numbers_too():
    amortized = cases.trained(rows, 500, 20, num_steps=4, missing=0.5, fit={"online": True})
    assert np.isfinite(amortized.condition(DATA[0]).sample(jax.random.key(0), 5)["centre"]).all()


@pytest.mark.parametrize(("embedding", "shape"), [("SeriesEmbedding", (8,)), ("ImageEmbedding", (4, 4))])
def test_series_and_images_are_told_what_is_missing(embedding, shape):
    def model():
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(theta, 1.0).expand(shape).to_event(len(shape)))

    embedding = getattr(networks, embedding)(size=4, width=4, depth=1)
    y = np.ones(shape, np.float32)
    y[0] = np.nan
    draws = cases.untrained(model, embedding=embedding, missing=0.5).condition(y).sample(jax.random.key(0), 3)
    assert np.isfinite(draws["theta"]).all()


def masked():
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    with numpyro.handlers.mask(mask=jnp.arange(3) != 1):
        numpyro.sample("y", dist.Normal(theta, 1.0).expand([3]))


def test_shares_and_masks_that_are_refused():
    with pytest.raises(ValueError, match=r"missing in \[0, 1\]; got 1.5"):
        AmortizedPosterior(rows, observed="y", missing=1.5)
    with pytest.raises(ValueError, match=r"observed sites without a mask beside missing=; got one at \['y'\]"):
        AmortizedPosterior(masked, observed="y", missing=0.5)
    with pytest.raises(ValueError, match=r"Say missing=0\.5"):
        cases.untrained(rows).condition(DATA[0])


def test_what_is_missing_is_no_error_to_debug_nans():
    with jax.debug_nans(True):
        posterior = cases.untrained(rows, missing=0.5).condition(DATA[0])
        assert np.isfinite(posterior.sample(jax.random.key(0), 3)["centre"]).all()
