"""What a learned prior is compared with, and runs that end without one."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from evaluation_cases import wavy_model

import numpyro_diffusion as nd
from numpyro_diffusion.evaluation import LogLikelihood
from numpyro_diffusion.learning.baselines import baseline_log_densities
from numpyro_diffusion.learning.gaussians import fit_gaussian
from numpyro_diffusion.learning.look import look_at, space_for
from numpyro_diffusion.learning.report import Report, Tails
from numpyro_diffusion.learning.score import Scores, _baselines, _log_frequencies, _of_integers, afterthoughts
from numpyro_diffusion.training import DivergenceError

KERNEL = nd.GaussianKernel(nd.schedules.log_snr(5, 0.1, 20.0))
IMAGES = nd.networks.MLP(5, 2, width=8, depth=1, event_dim=3)


def space_of(data, weights=None, kernel=None, network=None):
    found = look_at(data, weights, "real", "refuse", None)
    rows = np.arange(len(found.values))
    rng = np.random.default_rng(0)
    return found, space_for(found, rows, [rows], kernel, network, "none", rng, jax.random.key(0))


@pytest.mark.parametrize("columns", [2, 20])
def test_a_mixture_has_fewer_numbers_than_rows_or_is_the_one_gaussian(columns):
    """BIC of eight rows would choose a component for each, and any prior beats that by hundreds of nats."""
    rows = np.random.default_rng(0).normal(size=(48, columns))
    found = baseline_log_densities(rows[:8], np.ones(8), rows[8:], rng=np.random.default_rng(1))
    assert found["Gaussian mixture"].mean() > found["one Gaussian"].mean() - 15
    if columns == 20:
        np.testing.assert_allclose(found["Gaussian mixture"], found["one Gaussian"])


def test_independent_states_have_the_frequencies_of_all_classes():
    states, others = np.array([[0], [2], [2], [1]]), np.array([[2], [0], [3]])
    found = _log_frequencies(states, np.array([1.0, 2.0, 1.0, 0.0]), others)
    np.testing.assert_allclose(found, np.log([3.5 / 6, 1.5 / 6, 0.5 / 6]))


def test_images_are_compared_with_one_gaussian_of_all_pixels_by_weight():
    rng = np.random.default_rng(2)
    images = rng.normal(size=(300, 2, 2, 1))
    images[:, 1] = images[:, 0] + 0.1 * rng.normal(size=(300, 2, 1))
    weights = np.repeat([1.0, 1e-3], 150)
    images[150:] += 5.0
    found, space = space_of(images, weights, KERNEL, IMAGES)
    rows = np.arange(100)
    scores = _baselines(found, space, np.arange(100, 300), rows, np.full(100, 4 * np.log(space.scaling[1])), rng)
    assert list(scores) == ["the Gaussian it starts from", "one Gaussian", "independent product"]
    flat = images.reshape(300, 4)
    exact = fit_gaussian(flat[100:], weights[100:], rng=np.random.default_rng(0))
    np.testing.assert_allclose(scores["one Gaussian"].mean(), exact.log_prob(flat[:100]).mean(), atol=0.05)
    share = weights[100:] / weights[100:].sum()
    mean = share @ flat[100:]
    scale = np.sqrt(share @ (flat[100:] - mean) ** 2)
    z = (flat[:100] - mean) / scale
    normal = (-0.5 * (z**2 + np.log(2 * np.pi)) - np.log(scale)).sum(1)
    np.testing.assert_allclose(scores["independent product"], normal, rtol=1e-6)
    assert scores["one Gaussian"].mean() > scores["independent product"].mean() + 2


def test_integers_are_named_by_as_many_bits_as_their_bins_leave():
    """Multiples of 2 that are uniform over 8: 3 bits each, whichever unit the density has."""
    prior = LogLikelihood(np.full(50, 2 * np.log(1 / 16)), 2)
    rows = 2.0 * np.random.default_rng(3).integers(0, 8, (50, 2))
    found, space = space_of(rows)
    np.testing.assert_allclose(_of_integers(prior, found, space).bits_per_dimension, -3)
    mixed, space = space_of(np.concatenate([rows, rows + np.random.default_rng(4).normal(size=(50, 2))], 1))
    assert _of_integers(prior, mixed, space) is None
    images, space = space_of(rows.reshape(50, 2, 1, 1), None, KERNEL, IMAGES)
    np.testing.assert_allclose(_of_integers(prior, images, space).bits_per_dimension, -3)


def test_a_kernel_of_bits_refuses_what_would_be_cut_to_integers():
    kernel = nd.BernoulliKernel(nd.schedules.constant_fraction(3))
    with pytest.raises(ValueError, match="Expected only 0 and 1 for data"):
        space_of(np.random.default_rng(0).uniform(size=(30, 2)), None, kernel, object())


def test_too_few_different_rows_for_all_parts_are_refused():
    rows = np.repeat([[0, 1], [1, 0]], 40, axis=0)
    with pytest.raises(ValueError, match="enough different rows to train, validate and test; got 2 different rows"):
        nd.learn_prior(rows, rng_key=jax.random.key(0))


def test_a_run_that_reaches_nothing_is_no_prior():
    """Its parameters are not finite, and all draws would be one number or NaN."""
    rows = np.random.default_rng(0).normal(size=(60, 2))
    with pytest.raises(DivergenceError, match="finite loss"):
        nd.learn_prior(
            rows,
            rng_key=jax.random.key(0),
            kernel=KERNEL,
            network=nd.networks.MLP(5, 2, width=4, depth=1),
            optimizer=optax.sgd(1e30),
            num_steps=4,
            every=4,
            batch_size=8,
            progress_bar=False,
        )


def test_keys_of_both_kinds_give_the_same_estimate():
    x = jnp.array([[0.3, -1.0], [0.1, 0.4]])
    old, new = (
        nd.evaluation.bound(key, wavy_model(), x).per_point for key in (jax.random.PRNGKey(0), jax.random.key(0))
    )
    np.testing.assert_array_equal(old, new)


def test_the_report_shows_bits_where_all_columns_are_integers():
    prior = LogLikelihood(np.full(50, 2 * np.log(1 / 16)), 2)
    rows = 2.0 * np.random.default_rng(3).integers(0, 8, (50, 2))
    found, space = space_of(rows)
    fields = {
        "split": {"train": np.arange(50)},
        "drawn": {"train": np.arange(50)},
        "scored_on": "test",
        "prior": prior,
        "baselines": {},
        "steps": 1,
        "best_step": 1,
        "residual": 1.0,
        "validation_losses": np.zeros(1),
        "two_sample": None,
        "tails": Tails(np.array([0.02, 0.02]), ("a", "b")),
        "columns": found.columns,
        "did": (),
        "warnings": (),
        "seconds": 1.0,
        "code": "",
    }
    text = str(Report(**fields, integers=_of_integers(prior, found, space)))
    assert "bits to name each number        3.000 (0.000)" in text
    assert "bits" not in str(Report(**fields, integers=None))


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize(("behind", "is_told"), [(1e-6, False), (0.1, True)])
def test_the_rounding_of_two_sums_is_no_difference(behind, is_told):
    prior, other = LogLikelihood(np.full(10, -1.0), 1), LogLikelihood(np.full(10, -1.0) + behind, 1)
    scored = Scores(prior, {"one Gaussian": other}, None, None, Tails(np.zeros(1), ("a",)), np.inf)
    trained = SimpleNamespace(residual=1.0, result=SimpleNamespace(validation_losses=np.array([1.0])))
    told = afterthoughts(trained, scored, "test")
    assert any("worse than one Gaussian" in each for each in told) is is_told
