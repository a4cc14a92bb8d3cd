"""A network that is trained for seconds, and corrected: draws and evidence are those of the model's posterior."""

import amortized_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.infer import AmortizedPosterior

pytestmark = pytest.mark.filterwarnings("ignore:Expected y like the simulated")


@pytest.fixture(scope="module")
def amortized():
    return cases.trained(cases.linear, 2000, 300)


@pytest.fixture(scope="module")
def posterior(amortized):
    return amortized.condition(cases.Y)


def assert_linear(x, scale=1.0, *, num_effective, slack=0.0):
    """Mean and covariance within five standard errors of so many draws, and a share of the posterior's own scale."""
    _, mean, covariance = cases.linear_truth(scale)
    sd = np.sqrt(np.diagonal(covariance))
    x = np.asarray(x, np.float64)
    error = 5 / np.sqrt(num_effective) + slack
    assert (np.abs(x.mean(0) - mean) < error * sd).all()
    assert (np.abs(np.cov(x.T) - covariance) < 1.5 * error * np.outer(sd, sd)).all()


def test_draws_are_near_the_posterior_before_any_correction(posterior):
    assert_linear(posterior.sample(jax.random.key(1), 4000)["x"], num_effective=4000, slack=0.1)


def test_importance_weights_make_them_the_posteriors(posterior):
    corrected = posterior.correct(jax.random.key(2), num_samples=4000, num_paths=4)
    assert corrected.method == "importance"
    assert corrected.pareto_k < 0.5
    size = float(corrected.importance.effective_sample_size)
    assert size > 0.9 * 4000
    assert_linear(corrected.get_samples()["x"], num_effective=size)
    assert corrected.log_evidence_error < 0.02
    assert abs(corrected.log_evidence - cases.linear_truth()[0]) < 5 * corrected.log_evidence_error
    low, high = corrected.importance.efficiency_interval
    assert low < size / 4000 < high
    assert "corrected by importance" in corrected.summary()


def test_another_prior_may_be_corrected_for(posterior):
    """Exact for the model that is named then: the network knows the first prior alone."""
    corrected = posterior.correct(jax.random.key(3), model_kwargs={"scale": 0.8}, num_samples=4000, num_paths=4)
    assert abs(corrected.log_evidence - cases.linear_truth(0.8)[0]) < 5 * corrected.log_evidence_error
    size = float(corrected.importance.effective_sample_size)
    assert_linear(corrected.get_samples()["x"], 0.8, num_effective=size)


def test_hamiltonian_moves_in_the_chains_noises(amortized):
    spoiled = cases.spoiled(cases.untrained(cases.linear), jax.random.key(4), 0.14)
    corrected = spoiled.condition(cases.Y).correct(
        jax.random.key(5), "hmc", num_samples=4000, num_warmup=300, progress_bar=False
    )
    assert corrected.largest_r_hat < 1.05
    assert_linear(corrected.get_samples()["x"], num_effective=500)
    with pytest.raises(AttributeError, match="Expected a method that gives the evidence"):
        _ = corrected.log_evidence


def test_tempered_particles_in_the_chains_noises():
    spoiled = cases.spoiled(cases.untrained(cases.linear), jax.random.key(4), 0.14)
    corrected = spoiled.condition(cases.Y).correct(
        jax.random.key(6), "tempered", num_samples=1600, num_islands=4, progress_bar=False
    )
    assert_linear(corrected.get_samples()["x"], num_effective=200)
    assert abs(corrected.log_evidence - cases.linear_truth()[0]) < max(5 * corrected.log_evidence_error, 0.1)
    with pytest.raises(AttributeError, match="Expected chains, by method 'hmc'"):
        _ = corrected.largest_r_hat


def test_bad_weights_are_followed_by_hamiltonian_moves():
    bad = cases.spoiled(cases.untrained(cases.linear), jax.random.key(4), 0.16).condition(cases.Y)
    with pytest.warns(UserWarning, match="Expected Pareto k-hat"):
        assert bad.correct(jax.random.key(7), "importance", num_samples=400).method == "importance"
    corrected = bad.correct(jax.random.key(7), num_samples=400, num_warmup=100, num_chains=1, progress_bar=False)
    assert corrected.method == "hmc"
    assert corrected.pareto_k > 0.7
    data = nd.to_arviz(corrected)
    assert list(data["posterior"].data_vars) == ["x"]
    assert float(data["sample_stats"]["pareto_k"]) == pytest.approx(corrected.pareto_k)


def test_log_prob_is_an_estimate_by_name(posterior):
    x = posterior.sample(jax.random.key(8), 50)["x"]
    _, mean, covariance = cases.linear_truth()
    truth = np.asarray(dist.MultivariateNormal(jnp.array(mean), jnp.array(covariance)).log_prob(x))
    estimates = [
        np.asarray(posterior.log_prob({"x": x}, rng_key=jax.random.key(9), estimator=estimator))
        for estimator in (None, nd.AllSteps())
    ]
    for found in estimates:
        assert np.abs(np.mean(found - truth)) < 0.1


def test_log_prob_is_of_the_sites_own_supports():
    """A rate of Gamma(1, 1) that is seen as good as not at all: its density is exp(-rate)."""

    def model():
        rate = numpyro.sample("rate", dist.LogNormal(0.3, 0.5))
        numpyro.sample("y", dist.Normal(0 * rate, 1.0))

    posterior = cases.trained(model, 2000, 50).condition(np.float32(0.1))
    rate = jnp.array([0.5, 1.0, 2.0])
    found = posterior.log_prob({"rate": rate}, rng_key=jax.random.key(0))
    np.testing.assert_allclose(found, dist.LogNormal(0.3, 0.5).log_prob(rate), atol=0.15)


def test_one_network_answers_every_data_set(amortized):
    """Posterior means of the linear model are linear in y."""
    simulated = amortized.simulate(jax.random.key(10), 3)
    for y in simulated["y"]:
        corrected = amortized.condition(y).correct(jax.random.key(11), num_samples=4000, num_paths=4)
        truth = cases.linear_posterior(
            cases.PRIOR_MEAN, cases.PRIOR_COVARIANCE, cases.MATRIX, cases.NOISE**2 * np.eye(3), np.asarray(y)
        )
        assert abs(corrected.log_evidence - truth[0]) < 5 * corrected.log_evidence_error


def test_a_file_gives_the_same_draws(amortized, posterior, tmp_path):
    path = tmp_path / "amortized.safetensors"
    amortized.save(path)
    loaded = AmortizedPosterior.load(path, cases.linear)
    again = loaded.condition(cases.Y)
    assert again.share_farther == posterior.share_farther
    np.testing.assert_array_equal(
        again.sample(jax.random.key(1), 20)["x"], posterior.sample(jax.random.key(1), 20)["x"]
    )
    with pytest.raises(ValueError, match="Expected a model of the sites"):
        AmortizedPosterior.load(path, cases.bits)


def test_results_are_read_by_arviz(posterior):
    corrected = posterior.correct(jax.random.key(2), num_samples=4000, num_paths=4)
    data = nd.to_arviz(corrected)
    assert dict(data["posterior"]["x"].sizes) == {"chain": 1, "draw": 4000, "x_dim_0": 2}
    assert float(data["sample_stats"]["pareto_k"]) == pytest.approx(corrected.pareto_k)


def test_a_data_set_like_none_is_told(amortized):
    assert amortized.condition(cases.Y).share_farther > 0.01
    with pytest.warns(UserWarning, match="Expected y like the simulated data sets"):
        assert amortized.condition(jnp.array([30.0, -30.0, 30.0])).share_farther == 0


def test_shares_are_uniform_for_data_of_the_model(amortized):
    y = amortized.simulate(jax.random.key(12), 200)["y"]
    shares = np.array([amortized.condition(one).share_farther for one in y])
    assert abs(shares.mean() - 0.5) < 5 * np.sqrt(1 / 12 / 200)


def test_a_simulator_without_a_likelihood():
    """The largest of three noisy numbers, of which nobody writes the density."""

    def model():
        centre = numpyro.sample("centre", dist.Normal(0.0, 1.0))
        noise = jax.random.gumbel(numpyro.prng_key(), (3,))
        numpyro.deterministic("y", jnp.max(centre + 0.1 * noise)[None])

    amortized = cases.trained(model, 2000, 300)
    posterior = amortized.condition(jnp.array([0.5]))
    drawn = np.asarray(posterior.sample(jax.random.key(1), 2000)["centre"])
    # The largest of three Gumbel numbers is Gumbel, log 3 higher.
    grid = np.linspace(-3, 3, 4001)
    z = (0.5 - grid) / 0.1 - np.log(3)
    density = np.exp(-0.5 * grid**2 - z - np.exp(-z))
    mean = (density * grid).sum() / density.sum()
    sd = np.sqrt((density * (grid - mean) ** 2).sum() / density.sum())
    assert abs(drawn.mean() - mean) < 0.3 * sd
    assert drawn.std() == pytest.approx(sd, rel=0.3)
    with pytest.raises(
        ValueError, match="Expected a model with a likelihood of y; got 'y', a deterministic site or a Diffusion"
    ):
        posterior.correct(jax.random.key(2))
