"""Where simulations come from, what the network sees of y, and calibration over many data sets."""

import amortized_cases as cases
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import numpyro_diffusion as nd

pytestmark = pytest.mark.filterwarnings("ignore:Expected y like the simulated")


def two_sites():
    """A number seen twice: a real one, and three bits."""
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    numpyro.sample("level", dist.Normal(theta, 0.5))
    numpyro.sample("signs", dist.Bernoulli(logits=3.0 * theta).expand([3]).to_event(1))


def two_sites_truth(level, signs):
    """Log evidence by quadrature."""
    grid = np.linspace(-6, 6, 4001)
    log_joint = dist.Normal(0.0, 1.0).log_prob(grid) + dist.Normal(grid, 0.5).log_prob(level)
    log_joint += sum(dist.Bernoulli(logits=3.0 * grid).log_prob(one) for one in signs)
    return float(np.log(np.exp(np.asarray(log_joint, np.float64)).sum() * (grid[1] - grid[0])))


def assert_evidence(corrected, log_evidence):
    assert corrected.pareto_k < 0.7
    assert corrected.log_evidence_error < 0.05
    assert abs(corrected.log_evidence - log_evidence) < 5 * corrected.log_evidence_error


def test_several_observed_sites_and_an_embedding_of_ones_own():
    seen = []

    def embedding(y):
        seen.append({name: value.shape[1:] for name, value in y.items()})
        both = jnp.concatenate([y["level"][:, None], y["signs"]], axis=-1)
        return jax.nn.silu(hk.Linear(16, name="input")(both))  # the core has a layer of this name

    amortized = cases.trained(two_sites, 2000, 300, observed=("level", "signs"), embedding=embedding)
    assert seen[0] == {"level": (), "signs": (3,)}
    y = {"level": np.float32(0.3), "signs": np.array([1, 0, 1])}
    corrected = amortized.condition(y).correct(jax.random.key(1), "importance", num_samples=2000)
    assert_evidence(corrected, two_sites_truth(0.3, [1, 0, 1]))


def test_an_embedding_of_another_shape_is_refused():
    with pytest.raises((TypeError, ValueError), match="an embedding of shape"):
        cases.untrained(cases.linear, embedding=lambda y: y.sum())


@pytest.mark.parametrize(
    ("embedding", "shape"),
    [
        (nd.networks.SeriesEmbedding(size=4, width=4, depth=2), (16,)),
        (nd.networks.SeriesEmbedding(size=4, width=4, depth=1), (8, 2)),
        (nd.networks.ImageEmbedding(size=4, width=4, depth=1), (6, 6)),
    ],
)
def test_series_and_images(embedding, shape):
    def model():
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(theta, 1.0).expand(shape).to_event(len(shape)))

    posterior = cases.untrained(model, embedding=embedding).condition(np.ones(shape, np.float32))
    assert np.isfinite(posterior.sample(jax.random.key(0), 3)["theta"]).all()


def test_simulations_that_exist_train_the_same_network():
    amortized = cases.untrained(cases.linear)
    simulations = amortized.simulate(jax.random.key(3), 500)
    others = [
        cases.AmortizedPosterior(cases.linear, observed="y", num_steps=4, width=8, depth=1).fit(
            jax.random.key(0), simulations=given, max_steps=1, every=1, progress_bar=False
        )
        for given in (simulations, dict(reversed(simulations.items())))
    ]
    first, second = (one.condition(cases.Y).sample(jax.random.key(1), 5)["x"] for one in others)
    np.testing.assert_array_equal(first, second)


def test_online_simulations_are_used_once():
    amortized = cases.trained(cases.linear, 500, 100, fit={"online": True})
    corrected = amortized.condition(cases.Y).correct(jax.random.key(1), num_samples=2000, num_paths=2)
    assert_evidence(corrected, cases.linear_truth()[0])
    assert len(amortized.fit_result.losses) == 100


@pytest.mark.parametrize("online", [False, True])
def test_a_killed_run_is_resumed(tmp_path, online):
    def fit(max_steps, **settings):
        amortized = cases.AmortizedPosterior(cases.linear, observed="y", num_steps=4, width=8, depth=1)
        settings = {"checkpoint_dir": tmp_path / str(len(settings)), "checkpoint_every": 10, **settings}
        import optax

        return amortized.fit(
            jax.random.key(0), 300, max_steps=max_steps, every=10, online=online, optimizer=optax.adam(1e-3),
            progress_bar=False, **settings,
        )  # fmt: skip

    whole = fit(20)
    directory = {"checkpoint_dir": tmp_path / "again"}
    fit(10, **directory)
    resumed = fit(20, resume=True, **directory)
    np.testing.assert_array_equal(whole.fit_result.losses, resumed.fit_result.losses)
    one, other = (each.condition(cases.Y).sample(jax.random.key(1), 5)["x"] for each in (whole, resumed))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("corrected", [False, True])
def test_calibration_in_one_call(corrected):
    """Corrected draws of a wrong network are calibrated, its own are not."""
    amortized = cases.spoiled(cases.untrained(cases.linear), jax.random.key(1), 0.12)
    found = nd.evaluation.sbc(
        jax.random.key(2), amortized, num_data_sets=160, num_draws=31, corrected=corrected, num_samples=1000,
        progress_bar=False,
    )  # fmt: skip
    assert found.ranks["x"].shape == (160, 2)
    assert (found.p_values["x"].min() > 1e-3) == corrected
    assert (found.pareto_k is not None) == corrected


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"num_draws": 16}, r"num_draws \+ 1 with a divisor from 2 to 16; got 17"),
        ({"corrected": True, "num_samples": 20}, "num_samples >= num_draws = 63; got 20"),
        ({"num_data_sets": 5}, "num_data_sets to be an integer >= 10"),
    ],
)
def test_calibrations_that_would_say_nothing_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        nd.evaluation.sbc(jax.random.key(0), None, **settings)


def walk():
    """Two steps of a random walk by NumPyro's scan."""

    def step(x, _):
        x = numpyro.sample("x", dist.Normal(x, 1.0))
        numpyro.sample("y", dist.Normal(x, 0.5))
        return x, None

    scan(step, 0.0, None, length=2)


def test_a_scan_has_a_likelihood():
    """Its loop carries a key, and no density depends on it."""
    corrected = cases.untrained(walk).condition(np.array([0.5, 1.0])).correct(
        jax.random.key(0), "importance", num_samples=4000
    )  # fmt: skip
    covariance = np.array([[1.25, 1.0], [1.0, 2.25]])
    log_evidence = float(dist.MultivariateNormal(jnp.zeros(2), jnp.array(covariance)).log_prob(jnp.array([0.5, 1.0])))
    assert_evidence(corrected, log_evidence)


def test_few_ranks_fall_into_few_bins_of_equal_size():
    ranks = {"x": np.arange(20) % 9}  # of 8 draws: 3 or 9 bins, of which 9 are too many for 20 data sets
    found = nd.evaluation.SimulatedCalibration(ranks, 8, None)
    assert found.p_values["x"] == nd.evaluation.rank_uniformity(ranks["x"], 8, num_bins=3)
