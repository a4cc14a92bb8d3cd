"""A likelihood that is learned from a simulator, in a model of one's own: posteriors beside those that are known."""

import amortized_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS, Predictive
from scipy import stats

from numpyro_diffusion import networks
from numpyro_diffusion.infer import AmortizedLikelihood, AmortizedPosterior, ObservedDiffusionReparam, TemperedSMC

SETTINGS = {"observed": "y", "embedding": networks.VectorEmbedding(size=16, width=32, depth=1)}


def trained(model, num_simulations, max_steps, **settings):
    amortized = AmortizedLikelihood(model, **{"num_steps": 20, "width": 32, "depth": 2, **SETTINGS, **settings})
    return amortized.fit(
        jax.random.key(0), num_simulations, max_steps=max_steps, batch_size=128, every=500, progress_bar=False
    )


def nuts(model, y, num_samples=1000):
    mcmc = MCMC(
        NUTS(reparam(model, config={"y": ObservedDiffusionReparam()})), num_warmup=200, num_samples=num_samples,
        num_chains=2, chain_method="vectorized", progress_bar=False,
    )  # fmt: skip
    mcmc.run(jax.random.key(1), y)
    return {name: np.asarray(draws, float) for name, draws in mcmc.get_samples().items()}


@pytest.fixture(scope="module")
def linear():
    return trained(cases.linear, 2000, 50)


def test_the_posterior_of_a_linear_simulator(linear):
    """The regression on theta is exact here: training has next to nothing to add."""

    def model(y=None):
        prior = dist.MultivariateNormal(jnp.array(cases.PRIOR_MEAN), jnp.array(cases.PRIOR_COVARIANCE))
        x = numpyro.sample("x", prior)
        numpyro.sample("y", linear.likelihood(x=x), obs=y)

    x = nuts(model, cases.Y)["x"]
    _, mean, covariance = cases.linear_truth()
    sd = np.sqrt(np.diagonal(covariance))
    assert (np.abs(x.mean(0) - mean) < 0.3 * sd).all()
    assert (np.abs(np.cov(x.T) - covariance) < 0.35 * np.outer(sd, sd)).all()


def test_the_evidence_of_a_linear_simulator(linear):
    """By tempered particles in the noises."""

    def model(y=None):
        prior = dist.MultivariateNormal(jnp.array(cases.PRIOR_MEAN), jnp.array(cases.PRIOR_COVARIANCE))
        numpyro.sample("y", linear.likelihood(x=numpyro.sample("x", prior)), obs=y)

    exact = reparam(model, config={"y": ObservedDiffusionReparam()})
    smc = TemperedSMC(exact, guidance=None, num_particles=100, num_islands=4, progress_bar=False)
    smc.run(jax.random.key(2), cases.Y)
    error = max(float(smc.log_evidence_error), 0.02)
    assert error < 0.2
    assert abs(float(smc.log_evidence) - cases.linear_truth()[0]) < 5 * error


def test_draws_are_those_of_the_simulator(linear):
    """Given x: y ~ N(A x, 0.5^2)."""
    x = jnp.array([[0.5, -1.0], [2.0, 0.0]])
    likelihood = linear.likelihood({"x": x})
    assert (likelihood.batch_shape, likelihood.event_shape) == ((2,), (3,))
    y = np.asarray(likelihood.sample(jax.random.key(0), (2000,)))
    np.testing.assert_allclose(y.mean(0), np.asarray(x) @ cases.MATRIX.T, atol=0.1)
    np.testing.assert_allclose(y.std(0), cases.NOISE, atol=0.05)


def extremes():
    """Five Gumbel numbers of unknown place and scale: a simulator that has draws alone."""
    place = numpyro.sample("place", dist.Normal(0.0, 1.0))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
    numpyro.deterministic("y", place + scale * jax.random.gumbel(numpyro.prng_key(), (5,)))


@pytest.mark.optimised
def test_the_posterior_of_a_simulator_without_a_likelihood():
    """Beside quadrature; and with a prior that was not simulated from."""
    y = np.array([0.3, 1.9, -0.2, 0.6, 3.1])
    amortized = trained(extremes, 8000, 3000)

    def model(y=None):
        place = numpyro.sample("place", dist.Normal(0.5, 0.5))
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
        numpyro.sample("y", amortized.likelihood(place=place, scale=scale), obs=y)

    place, log_scale = np.linspace(-3, 4, 701)[:, None], np.linspace(-2, 2.5, 601)[None]
    joint = stats.norm.pdf(place, 0.5, 0.5) * stats.norm.pdf(log_scale, 0, 0.5)
    for one in y:
        joint = joint * stats.gumbel_r.pdf(one, place, np.exp(log_scale))
    joint /= joint.sum()
    draws = nuts(model, jnp.asarray(y, jnp.float32))
    for name, values, truth in (("place", draws["place"], place), ("scale", np.log(draws["scale"]), log_scale)):
        mean = (joint * truth).sum()
        sd = np.sqrt((joint * (truth - mean) ** 2).sum())
        assert abs(values.mean() - mean) < 0.3 * sd, name
        assert values.std() == pytest.approx(sd, rel=0.2), name
    shares = amortized.share_farther(place=draws["place"][:50], scale=draws["scale"][:50])
    assert shares.shape == (50,)
    assert shares.mean() > 0.2
    assert amortized.share_farther(place=50.0, scale=1.0) == 0


def test_a_plate_of_data_sets_and_prediction(linear):
    def model(y=None):
        with numpyro.plate("sets", 4):
            x = numpyro.sample("x", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("y", linear.likelihood(x=x), obs=y)

    assert Predictive(model, num_samples=3)(jax.random.key(0))["y"].shape == (3, 4, 3)
    draws = nuts(model, jnp.tile(cases.Y, (4, 1)), 20)
    assert draws["y_noise"].shape == (40, 4, 1, 20, 3)
    assert draws["x"].shape == (40, 4, 2)


def test_without_the_reparam_it_is_no_density(linear):
    def model(y):
        x = numpyro.sample("x", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("y", linear.likelihood(x=x), obs=y)

    with pytest.raises(ValueError, match=r"an observed Diffusion at site 'y' that depends on no latent site"):
        NUTS(model).init(jax.random.key(0), 0, None, (cases.Y,), {})
    with pytest.raises(ValueError, match="a named estimate of"):
        linear.likelihood(x=jnp.zeros(2)).log_prob(cases.Y)


def positive():
    """A positive matrix of a class, a bit and a simplex."""
    group = numpyro.sample("group", dist.Categorical(probs=jnp.ones(3) / 3))
    sign = numpyro.sample("sign", dist.Bernoulli(0.5))
    shares = numpyro.sample("shares", dist.Dirichlet(jnp.ones(2)))
    numpyro.sample("y", dist.LogNormal(group + sign * shares[0], 0.1).expand([2, 1]).to_event(2))


def test_kinds_of_sites_on_both_sides(tmp_path):
    amortized = trained(positive, 2000, 50)
    theta = {"group": jnp.array([0, 2]), "sign": jnp.array(1), "shares": jnp.array([0.5, 0.5])}
    likelihood = amortized.likelihood(theta)
    assert likelihood.shape() == (2, 2, 1)
    y = np.asarray(likelihood.sample(jax.random.key(0), (500,)))
    assert (y > 0).all()
    np.testing.assert_allclose(np.log(y).mean((0, 2, 3)), [0.5, 2.5], atol=0.2)

    path = tmp_path / "likelihood.safetensors"
    amortized.save(path)
    loaded = AmortizedLikelihood.load(path, positive)
    np.testing.assert_array_equal(loaded.likelihood(theta).sample(jax.random.key(0), (500,)), y)
    with pytest.raises(ValueError, match="Expected the file of an AmortizedPosterior; got AmortizedLikelihood"):
        AmortizedPosterior.load(path, positive)


@pytest.mark.parametrize(
    ("theta", "match"),
    [
        ({}, r"values of the sites \['x'\]; got \[\]"),
        ({"x": jnp.zeros(2), "z": 1.0}, r"values of the sites \['x'\]; got \['x', 'z'\]"),
        ({"x": jnp.zeros(3)}, r"trailing dimensions \(2,\) for site 'x'; got shape \(3,\)"),
    ],
)
def test_theta_is_all_sites_in_their_shapes(linear, theta, match):
    with pytest.raises(ValueError, match=match):
        linear.likelihood(theta)


def test_theta_is_in_its_support_and_given_once():
    amortized = trained(extremes, 500, 1)
    with pytest.raises(ValueError, match="values of site 'scale' in its support"):
        amortized.likelihood(place=0.0, scale=jnp.array([1.0, -1.0]))
    with pytest.raises(
        ValueError, match=r"values of the sites \['place', 'scale'\]; got \['place', 'scale', 'scale'\]"
    ):
        amortized.likelihood({"place": 0.0, "scale": 1.0}, scale=2.0)


def test_a_model_that_holds_it_is_a_simulator_to_an_amortised_posterior(linear):
    def model():
        x = numpyro.sample("x", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("y", linear.likelihood(x=x))

    posterior = cases.untrained(model).condition(cases.Y)
    assert posterior.sample(jax.random.key(0), 3)["x"].shape == (3, 2)
    with pytest.raises(
        ValueError, match="a model with a likelihood of y; got 'y', a deterministic site or a Diffusion"
    ):
        posterior.correct(jax.random.key(1))


def counts():
    numpyro.sample("y", dist.Poisson(numpyro.sample("rate", dist.Gamma(2.0, 1.0))))


def up_to_theta():
    numpyro.sample("y", dist.Uniform(0.0, numpyro.sample("theta", dist.HalfNormal(1.0))))


def behind_a_mask():
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    with numpyro.handlers.mask(mask=jnp.arange(3) != 1):
        numpyro.sample("y", dist.Normal(theta, 1.0).expand([3]))


def two():
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(theta, 1.0))
    numpyro.sample("z", dist.Normal(theta, 1.0))


def half_constant():
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    numpyro.deterministic("y", jnp.stack([theta, 1.0]))


@pytest.mark.parametrize(
    ("model", "observed", "error", "match"),
    [
        (counts, "y", TypeError, "real numbers at site 'y'; got dtype int32"),
        (up_to_theta, "y", ValueError, r"support of site 'y' that is fixed; got one that depends on \['theta'\]"),
        (behind_a_mask, "y", ValueError, "observed site 'y' without a mask"),
        (two, ("y", "z"), ValueError, r"one observed site; got \['y', 'z'\]"),
        (half_constant, "y", ValueError, r"numbers to be drawn that vary; got the same numbers of \['y'\]"),
    ],
)
def test_simulators_that_are_refused(model, observed, error, match):
    with pytest.raises(error, match=match):
        AmortizedLikelihood(model, observed=observed).fit(jax.random.key(0), 200, progress_bar=False)


def test_it_must_be_trained_first():
    with pytest.raises(RuntimeError, match="Expected a trained AmortizedLikelihood"):
        AmortizedLikelihood(cases.linear, observed="y").likelihood(x=jnp.zeros(2))
