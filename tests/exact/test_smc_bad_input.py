"""TwistedSMC on input that it cannot answer, or not well: errors and warnings with the level, number and cure."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import affine_prior, density_on_grid, gaussian_moments
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.infer import Tempered, TwistedSMC

SCHEDULE = nd.schedules.log_snr(2, 0.3, 10.0)
NUMBER = affine_prior(SCHEDULE, [0.5])
MEAN, SD = (float(moment[0, 0]) for moment in (gaussian_moments(NUMBER)[0], np.sqrt(gaussian_moments(NUMBER)[1])))
NUMBER_ALONE = nd.Diffusion(NUMBER.kernel, nd.Transition(lambda params, x_t, t, context: 0 * x_t, None, ()))
INF, NAN = jnp.inf, jnp.nan


def step_model(y):
    """Log r is y[1] above y[0] and y[2] below."""
    x = numpyro.sample("x", NUMBER)
    numpyro.factor("likelihood", jnp.where(x[0] > y[0], y[1], y[2]))


def normal_model(y):
    x = numpyro.sample("x", NUMBER)
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


@functools.cache
def filter_of_steps(num_particles):
    return TwistedSMC(step_model, num_particles=num_particles, num_islands=4, progress_bar=False)


def run_steps(threshold, above, below, num_particles=16, seed=0):
    """The run, compiled once for all these cases, and its warnings."""
    smc = filter_of_steps(num_particles)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        smc.run(jax.random.key(seed), jnp.array([threshold, above, below]))
    return smc, [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("above", "below", "message"),
    [
        (
            -INF,
            -INF,
            r"all weights zero at level 0 of 2\. .*the likelihood is zero at every one.*check units and scale",
        ),
        (NAN, NAN, r"all weights zero at level 0 of 2\. .*the likelihood is NaN at 64 of them; mend it"),
        (NAN, -INF, r"all weights zero at level 0 of 2\. .*the likelihood is NaN at \d+ of them; mend it"),
        (INF, 0.0, r"finite weights; got NaN or infinite ones at level 0 of 2\. The likelihood is infinite"),
    ],
)
def test_a_likelihood_without_a_posterior_is_refused_with_the_level_and_what_it_means(above, below, message):
    with pytest.raises(ValueError, match=message):
        run_steps(0.5, above, below)


def test_a_likelihood_that_is_zero_at_some_particles_is_answered():
    """Log P(x > 1/2), and all draws above; 4 islands of 512, whose standard error is that of 2048 draws: 0.016."""
    smc, caught = run_steps(0.5, 0.0, -INF, num_particles=512)
    assert caught == []
    assert abs(smc.log_evidence - norm.logsf(0.5, MEAN, SD)) < 5 * 0.016
    assert (smc.get_samples()["x"] > 0.5).all()


def test_a_likelihood_that_is_nan_at_some_particles_warns_with_their_number():
    smc, caught = run_steps(0.5, 0.0, NAN, num_particles=512)
    assert len(caught) == 1
    number = int((np.asarray(smc.get_weighted_samples()[0]["x"]) <= 0.5).sum())
    assert caught[0].startswith(f"The likelihood was NaN at {number} of 2048 particles; they were given weight zero.")
    assert abs(smc.log_evidence - norm.logsf(0.5, MEAN, SD)) < 5 * 0.016


def test_a_collapse_of_the_effective_size_warns_with_number_level_and_cure():
    _, caught = run_steps(MEAN + 2 * SD, 30.0, 0.0)
    assert caught[0].startswith("The effective size fell to 1.0 of 16 particles at level ")
    assert "Take more particles, a closer twist" in caught[0]


def test_an_island_without_weight_is_left_out_of_the_pool():
    smc, caught = run_steps(MEAN + 2 * SD, 0.0, -INF, seed=1)
    values, log_weights = smc.get_weighted_samples()
    islands = np.asarray(values["x"]).reshape(4, 16) > MEAN + 2 * SD
    assert islands.any(), "no island has a particle with weight: take another threshold"
    assert not islands.any(1).all(), "every island has one: take another threshold"
    np.testing.assert_array_equal(np.asarray(log_weights).reshape(4, 16) > -np.inf, islands)
    np.testing.assert_allclose(np.exp(log_weights).sum(), 1.0, rtol=1e-5)
    assert (smc.get_samples()["x"] > MEAN + 2 * SD).all()
    message = next(message for message in caught if message.startswith("The islands disagree on the evidence"))
    assert f"standard error is {smc.log_evidence_error:.2f} nats" in message
    assert "Take more particles or a closer twist" in message


def test_a_failed_run_leaves_no_results_of_an_earlier_one():
    smc, _ = run_steps(0.5, 0.0, -INF)
    smc.get_samples()
    with pytest.raises(ValueError, match="all weights zero"):
        run_steps(0.5, -INF, -INF)
    with pytest.raises(RuntimeError, match="a finished run; got none"):
        smc.get_samples()


def test_elements_without_weight_and_impossible_data_elsewhere_are_named():
    """Filtered element by element: the second has no posterior; then a site that no diffusion enters is impossible."""

    def model(y, z):
        numpyro.factor("elsewhere", z)
        with numpyro.plate("n", 3):
            numpyro.sample("x", NUMBER)
            numpyro.factor("likelihood", y)

    smc = TwistedSMC(model, 4, 2, "none", elements="independent", progress_bar=False)
    with pytest.raises(ValueError, match=r"all weights zero at level 0 of 2 for elements \[\[1\]\]"):
        smc.run(jax.random.key(0), jnp.array([0.0, -INF, 0.0]), jnp.zeros(()))
    for value in (-INF, NAN):
        with pytest.raises(ValueError, match=f"the sites that no diffusion enters; got {value}"):
            smc.run(jax.random.key(0), jnp.zeros(3), jnp.asarray(value))
    smc.run(jax.random.key(0), jnp.array([1.0, 2.0, 3.0]), jnp.asarray(0.5))
    np.testing.assert_allclose(smc.log_evidence_by_element, [1.0, 2.0, 3.0], rtol=1e-5)
    np.testing.assert_allclose(smc.log_evidence, 6.5, rtol=1e-5)


def test_a_mean_that_is_not_defined_everywhere_is_answered_by_the_gaussian_twist_too():
    """y = log(x) + noise: NaN for x < 0, which has weight zero. The rest by quadrature."""

    def model(y):
        x = numpyro.sample("x", NUMBER)
        numpyro.sample("y", dist.Normal(jnp.log(x), 0.5).to_event(1), obs=y)

    smc = TwistedSMC(model, 512, 8, "gaussian", progress_bar=False)
    with pytest.warns(UserWarning, match=r"NaN at \d+ of 4096 particles"):
        smc.run(jax.random.key(0), jnp.array([0.3]))
    grid = np.linspace(-60, 60, 24_001)
    density = density_on_grid(NUMBER, grid[::10])
    positive = grid[grid > 0]
    log_r = norm.logpdf(0.3, np.log(positive), 0.5)
    exact = np.log((np.interp(positive, grid[::10], density) * np.exp(log_r)).sum() * (grid[1] - grid[0]))
    assert abs(smc.log_evidence - exact) < 5 * smc.log_evidence_error < 0.25


def test_a_network_that_gives_nan_is_named_with_its_level():
    def network(params, x_t, t, context):
        return jnp.where(t == 1, jnp.nan, x_t) * params

    prior = nd.Diffusion(NUMBER.kernel, nd.Transition(network, jnp.ones(()), (1,)))

    def model():
        numpyro.sample("x", prior)

    with pytest.raises(ValueError, match=r"finite draws of site 'x'; got NaN or infinite ones at 8 of 8 particles"):
        TwistedSMC(model, 4, 2, "none", progress_bar=False).run(jax.random.key(0))


def test_other_sites_that_few_islands_carry_are_named():
    def model(y):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 3.0))
        x = numpyro.sample("x", NUMBER)
        numpyro.sample("y", dist.Normal(x, scale).to_event(1), obs=y)

    with pytest.warns(
        UserWarning, match=r"\['scale'\] were drawn from their prior, and .* of 4 islands carry the weight"
    ):
        TwistedSMC(model, 16, 4, "none", progress_bar=False).run(jax.random.key(0), jnp.array([2.0]))


def without_diffusion(y):
    numpyro.sample("x", dist.Normal(0.0, 1.0))


def poisson_model(y):
    x = numpyro.sample("x", NUMBER)
    numpyro.sample("y", dist.Poisson(jnp.exp(x)).to_event(1), obs=y)


def scaled_model(y):
    x = numpyro.sample("x", NUMBER)
    with numpyro.handlers.scale(scale=0.5):
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def bits_model(y):
    network = nd.Transition(lambda params, x_t, t, context: 0 * x_t, None, (1,))
    x = numpyro.sample("x", nd.Diffusion(nd.BernoulliKernel(nd.schedules.constant_fraction(2)), network))
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def unconditioned_model(y):
    numpyro.sample("x", NUMBER)


ONE, THREE = jnp.array([1.0]), jnp.ones(3)
REFUSED = {
    "no-diffusion": (without_diffusion, {}, ONE, ValueError, "a model with a latent Diffusion site; got latent sites"),
    "shape-of-y": (normal_model, {}, THREE, ValueError, r"a value of shape \(1,\) at site 'y'; got shape \(3,\)"),
    "poisson": (
        poisson_model,
        {"twist": "gaussian"},
        ONE,
        TypeError,
        "MultivariateNormal likelihood at site 'y' .*; got Poisson",
    ),
    "scaled": (scaled_model, {"twist": "gaussian"}, ONE, TypeError, "'y' for the gaussian twist; got a scaled one"),
    "bits": (bits_model, {"twist": "gaussian"}, ONE, TypeError, "a Gaussian kernel at site 'x'; got a discrete one"),
    "no-y": (unconditioned_model, {"twist": "gaussian"}, ONE, ValueError, "an observed Normal site that depends on"),
    "proposal": (
        normal_model,
        {"proposal": {"z": None}},
        ONE,
        ValueError,
        r"proposals for sites among \['x'\]; got \['z'\]",
    ),
    "twist-shape": (
        normal_model,
        {"twist": lambda x_t, t, x_0, log_r: -(x_t["x"] ** 2)},
        ONE,
        ValueError,
        r"a twist of shape \(\) for one particle; got shape \(1,\)",
    ),
    "elements": (normal_model, {"elements": "all"}, ONE, ValueError, "elements 'auto', 'independent' or 'joint'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_filtered_is_refused(name):
    model, options, y, error, message = REFUSED[name]
    smc = TwistedSMC(model, 4, 2, progress_bar=False, **options)
    with pytest.raises(error, match=message):
        smc.run(jax.random.key(0), y)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_particles": 1}, ValueError, "num_particles to be an integer >= 2; got 1.*take hundreds"),
        ({"num_particles": 64.0}, ValueError, r"num_particles to be an integer >= 2; got 64\.0"),
        ({"num_islands": 0}, ValueError, "num_islands to be an integer >= 1; got 0"),
        ({"twist": "guided"}, ValueError, "a twist among auto, tempered, gaussian, none; got 'guided'"),
        ({"twist": 3}, TypeError, "a twist's name, a Twist or a function; got 3"),
        ({"twist": Tempered}, TypeError, "a twist's name, a Twist or a function; got <class.*not its class"),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_settings_are_checked_when_the_engine_is_made(options, error, message):
    with pytest.raises(error, match=message):
        TwistedSMC(normal_model, **options)


def test_results_are_refused_before_a_run_and_in_no_number():
    smc = TwistedSMC(normal_model, progress_bar=False)
    for ask in (smc.get_samples, smc.get_weighted_samples, lambda: nd.to_arviz(smc), smc.print_summary):
        with pytest.raises(RuntimeError, match=r"a finished run; got none\. Call run"):
            ask()
    smc, _ = run_steps(0.5, 0.0, 0.0)
    with pytest.raises(ValueError, match="num_samples to be an integer >= 1; got 0"):
        smc.get_samples(num_samples=0)


@pytest.mark.parametrize("model", ["m", 3, dict])
def test_what_is_no_model_is_refused_at_construction(model, no_type_checks):
    with pytest.raises(TypeError, match=r"Expected a NumPyro model; got .*Pass the model function itself"):
        TwistedSMC(model)


def test_a_censored_diffusion_has_no_probability_of_what_was_not_seen():
    def model():
        x = numpyro.sample("x", NUMBER)
        numpyro.sample("z", dist.LeftCensoredDistribution(dist.Normal(x[0], 1.0), 0.0), obs=1.0)
        numpyro.sample("w", dist.LeftCensoredDistribution(NUMBER_ALONE, jnp.zeros(())), obs=1.0)

    with pytest.raises(NotImplementedError, match=r"a distribution with a known cdf; got Diffusion.*Count draws"):
        TwistedSMC(model, 2, progress_bar=False).run(jax.random.key(0))
