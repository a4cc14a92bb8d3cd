"""TwistedSMC against the T-step model's own posterior and evidence, in closed form or by quadrature.

The networks of ``affine_prior`` are wrong on purpose: what is found is the posterior of the chain, not of the data.
Unless it says otherwise, an evidence is compared within 5 of its standard errors over 16 islands or more.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import affine_prior, density_on_grid, gaussian_moments, linear_posterior
from measured_errors import Moments, check, check_islands, check_moments, of_independent
from precision import enable_x64
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import GaussianFactor, PaperTilt
from numpyro_diffusion.infer import LinearGaussian, TwistedSMC

PAIR = affine_prior(nd.schedules.log_snr(5, 0.3, 10.0), [0.5, -0.3])
NUMBER = affine_prior(nd.schedules.log_snr(4, 0.3, 10.0), [0.5])
MATRIX = np.array([[1.0, -0.5], [0.3, 1.0]])
NOISE = np.array([[0.3, 0.1], [0.1, 0.2]])
Y = np.array([1.5, -1.0])


def engine(model, twist="tempered", num_particles=512, num_islands=16, **options):
    return TwistedSMC(model, num_particles, num_islands, twist, progress_bar=False, **options)


def vector_model(y):
    """One vector seen through a matrix, with correlated noise."""
    x = numpyro.sample("x", PAIR)
    numpyro.sample("y", dist.MultivariateNormal(jnp.asarray(MATRIX, float) @ x, jnp.asarray(NOISE, float)), obs=y)


def number_model(prior):
    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 0.4).to_event(1), obs=y)

    return model


def halfway(x_t, t, x_0, log_r):
    """A user's twist: the square root of r at the denoised state."""
    return 0.5 * log_r(x_0)


def check_gaussian(smc, prior=PAIR, matrix=MATRIX, noise=NOISE, y=Y):
    """Evidence, mean and covariance within 5 errors measured over the islands, which tell them from the prior's."""
    means, variances = gaussian_moments(prior)
    before = Moments(means[0], np.diag(variances[0]))
    log_evidence, *after = linear_posterior(*before, matrix, noise, y)
    assert abs(smc.log_evidence - log_evidence) < 5 * smc.log_evidence_error < 0.5
    check_moments(smc, lambda samples: samples["x"], Moments(*after), before)


TWISTS = {
    "none": "none",
    "tempered": "tempered",
    "secant": "gaussian",
    "jacobian": LinearGaussian("jacobian"),
    "scale": LinearGaussian("scale"),
    "function": halfway,
}


@pytest.mark.parametrize("name", TWISTS)
def test_every_twist_finds_the_same_posterior(name):
    smc = engine(vector_model, TWISTS[name])
    smc.run(jax.random.key(0), jnp.asarray(Y, float))
    check_gaussian(smc)
    assert smc.effective_sizes.shape == (16, 6)
    assert smc.min_ess == smc.effective_sizes.min()
    assert smc.num_network_calls == 5 * {"none": 1, "scale": 1, "jacobian": 5}.get(name, 3)


@pytest.mark.parametrize(
    ("schedule", "twist"),
    [
        (nd.schedules.log_snr(1, 0.3, 10.0), "gaussian"),
        (nd.schedules.log_snr(2, 0.3, 10.0), "tempered"),
        (nd.schedules.constant_fraction(3), "gaussian"),
        (nd.schedules.constant_fraction(3), "tempered"),
    ],
    ids=["one-step", "two-steps", "no-signal-gaussian", "no-signal-tempered"],
)
def test_the_shortest_chains_and_a_last_step_that_erases_all(schedule, twist):
    """T = 1 and 2; b_T = 1, where x^T says nothing of x^0."""
    prior = affine_prior(schedule, [0.5, -0.3])
    smc = engine(number_model(prior), twist)
    smc.run(jax.random.key(0), jnp.asarray(Y, float))
    check_gaussian(smc, prior, np.eye(2), 0.16 * np.eye(2))


@pytest.mark.parametrize("twist", ["tempered", "gaussian"])
def test_modes_have_their_weights(twist):
    """Modes at -2 and 2, weights 1:2 before the data and by quadrature after; y says little."""
    kernel = nd.GaussianKernel(nd.schedules.log_snr(8, 0.2, 50.0), parameterization="x0", variance="denoiser")
    transition = nd.analytic.gaussian_mixture(kernel, jnp.array([[-2.0], [2.0]]), 0.4, jnp.array([1.0, 2.0]))
    prior = nd.Diffusion(kernel, transition)

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 3.0).to_event(1), obs=y)

    smc = engine(model, twist)
    smc.run(jax.random.key(0), jnp.array([-1.0]))
    grid = np.linspace(-8, 8, 2001)
    mass = density_on_grid(prior, grid) * norm.pdf(-1.0, grid, 3.0) * (grid[1] - grid[0])
    assert abs(smc.log_evidence - np.log(mass.sum())) < 5 * smc.log_evidence_error < 0.1
    wanted = mass[grid < 0].sum() / mass.sum()
    check_islands(smc, lambda samples: samples["x"][:, 0] < 0, wanted, refused=1 / 3)


def bent_model(y):
    """y = x^2 + noise: two modes, no linear mean."""
    x = numpyro.sample("x", NUMBER)
    numpyro.sample("y", dist.Normal(x**2, 1.0).to_event(1), obs=y)


@pytest.mark.filterwarnings("ignore:The effective size fell")
@pytest.mark.parametrize(("twist", "num_particles"), [("none", 2), ("tempered", 2), ("tempered", 3), ("gaussian", 3)])
def test_the_evidence_has_no_bias_with_two_or_three_particles(twist, num_particles):
    """The mean of 4096 islands against quadrature."""
    smc = engine(bent_model, twist, num_particles, 4096)
    smc.run(jax.random.key(1), jnp.array([1.5]))
    grid = np.linspace(-20, 20, 4001)
    density = density_on_grid(NUMBER, grid)
    exact = np.log((density * norm.pdf(1.5, grid**2, 1.0)).sum() * (grid[1] - grid[0]))
    assert abs(smc.log_evidence - exact) < 5 * smc.log_evidence_error < 0.25


def test_a_proposal_moves_the_particles_and_changes_nothing_else():
    """The paper's tilt by a factor that is not the likelihood, under the tempered twist."""
    tilt = PaperTilt(lambda x: -0.5 * jnp.sum((x - jnp.asarray(Y, float)) ** 2), "annealed")
    smc = engine(vector_model, "tempered", proposal={"x": tilt})
    smc.run(jax.random.key(0), jnp.asarray(Y, float))
    check_gaussian(smc)
    distribution = tilt(PAIR.chain, jnp.zeros(2), 3).step
    assert (
        np.abs(distribution.mean - PAIR.chain.conditional(jnp.zeros(2), 3).mean) > 0.1
    ).all()  # the proposal is another distribution


@pytest.mark.parametrize(("noised", "scale"), [(False, 3.0), (True, 0.5)])
def test_an_exact_product_may_move_the_particles_where_it_fixes_none(noised, scale):
    """The factor is not the likelihood, which sees x through a matrix: weights correct it."""
    smc = engine(vector_model, "tempered", proposal={"x": GaussianFactor(Y, jnp.array([scale, 3.0]), noised=noised)})
    smc.run(jax.random.key(0), jnp.asarray(Y, float))
    check_gaussian(smc)


def test_a_proposal_that_may_fix_coordinates_is_refused():
    factor = GaussianFactor(Y, jnp.array([0.0, jnp.inf]), noised=True)
    with pytest.raises(ValueError, match=r"Expected a proposal with a density in every coordinate of site 'x'; got"):
        engine(vector_model, "tempered", proposal={"x": factor}).run(jax.random.key(0), jnp.asarray(Y, float))


def test_kept_paths_are_draws_of_the_posterior_of_every_level():
    """x^t and y are jointly Gaussian: slopes of the steps give the covariance of x^t and x^0."""
    smc = engine(number_model(PAIR), "gaussian", num_islands=2, keep_paths=True)
    paths = []
    for key in jax.random.split(jax.random.key(0), 16):  # the spread of whole runs is the error of every level
        smc.run(key, jnp.asarray(Y, float))
        samples = smc.get_samples()
        paths.append(np.asarray(samples["x_path"]))
        assert paths[-1].shape == (1024, 6, 2)
        np.testing.assert_array_equal(paths[-1][:, 0], samples["x"])
    means, variances = gaussian_moments(PAIR)
    slope = np.ones(2)
    for t in range(1, 6):
        step = PAIR.chain.conditional
        slope = slope * np.asarray(step(jnp.ones(2), t).mean - step(jnp.zeros(2), t).mean)
        gain = slope * variances[t] / (variances[0] + 0.16)
        wanted = Moments(means[t] + gain * (Y - means[0]), np.diag(variances[t] - gain * slope * variances[t]))
        prior = Moments(means[t], np.diag(variances[t]))
        found = of_independent([wanted.of(path[:, t]).mean(0) for path in paths])
        # The last levels know too little of the data to tell the posterior from the prior.
        check(found, wanted.expected(wanted), prior.expected(wanted) if t < 4 else None)


def test_double_precision_is_kept():
    with enable_x64(True):
        prior = affine_prior(nd.schedules.log_snr(3, 0.3, 10.0), [0.5, -0.3])
        smc = engine(number_model(prior), "gaussian")
        smc.run(jax.random.key(0), jnp.asarray(Y))
        check_gaussian(smc, prior, np.eye(2), 0.16 * np.eye(2))
        assert smc.get_samples()["x"].dtype == np.float64
