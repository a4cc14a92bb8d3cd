"""What a twist says and proposes at one level, against the T-step model in closed form: no particles run."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import affine_prior, normal_log_density

import numpyro_diffusion as nd
from numpyro_diffusion.infer import LinearGaussian, Tempered
from numpyro_diffusion.infer.smc import target_of
from numpyro_diffusion.model.split import split_model
from numpyro_diffusion.particles.steps import ConditionedStep

SCHEDULE = nd.schedules.log_snr(3, 0.3, 10.0)
NUMBER = affine_prior(SCHEDULE, [0.5])
Y = jnp.arange(6.0).reshape(2, 3)
X = jnp.array([10.0, 20.0, 30.0])


def inner_plate_first(y):
    with numpyro.plate("n", 3, dim=-1):
        x = numpyro.sample("x", NUMBER)
        with numpyro.plate("m", 2, dim=-2):
            numpyro.sample("y", dist.Normal(x[..., 0], jnp.array([1.0, 2.0, 3.0])), obs=y)


def inner_plate_last(y):
    with numpyro.plate("n", 3, dim=-2):
        x = numpyro.sample("x", NUMBER)
        with numpyro.plate("m", 2, dim=-1):
            numpyro.sample("y", dist.Normal(x[..., 0], jnp.array([[1.0], [2.0], [3.0]])), obs=y.T)


def vectors(y):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", NUMBER)
        covariance = jnp.array([1.0, 4.0, 9.0])[:, None, None] * jnp.eye(2)
        numpyro.sample("y", dist.MultivariateNormal(x + jnp.zeros(2), covariance), obs=y.T)


def vectors_in_two_plates(y):
    with numpyro.plate("n", 3, dim=-1):
        x = numpyro.sample("x", NUMBER)
        with numpyro.plate("m", 2, dim=-2):
            covariance = jnp.array([1.0, 4.0, 9.0])[:, None, None]
            numpyro.sample("y", dist.MultivariateNormal(x, covariance), obs=y[..., None])


@pytest.mark.parametrize("model", [inner_plate_first, inner_plate_last, vectors, vectors_in_two_plates])
def test_observations_go_to_their_elements(model):
    split = split_model(model, (Y,), {}, elements="independent")
    x = X.reshape((*split.element_shape, 1))
    found = split.observation({"x": x}, {})
    np.testing.assert_array_equal(found.residual.reshape(3, 2), (Y - X).T)
    np.testing.assert_allclose(
        found.covariance.reshape(3, 2, 2), np.array([1.0, 4.0, 9.0])[:, None, None] * np.eye(2), rtol=1e-6
    )


# Gaussian chains: what y says of x^t ---------------------------------------------------------------

EXACT_SCHEDULE = nd.schedules.log_snr(3, 0.3, 10.0)
EXACT_KERNEL = nd.GaussianKernel(EXACT_SCHEDULE, parameterization="x0", variance="denoiser")
EXACT = nd.Diffusion(
    EXACT_KERNEL, nd.analytic.gaussian_mixture(EXACT_KERNEL, jnp.array([[0.5, -0.3, 0.2]]), 0.7, jnp.ones(1))
)
MATRIX, VALUE, NOISE = jnp.array([[1.0, -0.5, 0.2], [0.3, 1.0, 0.0]]), jnp.array([1.5, -0.4]), 0.6


def linear(y):
    x = numpyro.sample("x", EXACT)
    numpyro.sample("y", dist.Normal(MATRIX @ x, NOISE).to_event(1), obs=y)


def target_and_states(model, *args):
    """The distribution, and six states of its diffusion site."""
    target = target_of(split_model(model, args, {}), {})
    states = {name: jax.random.normal(jax.random.key(1), (6, *shape)) for name, shape in target.shapes.items()}
    return target, states


def exact_log_psi(x_t, t):
    """Log p(y | x^t) of the T-step model: every step is affine with one variance, so x^0 given x^t is too."""
    mean, variance = np.asarray(x_t, float), 0.0
    for s in range(t, 0, -1):
        distribution = EXACT.chain.conditional(jnp.asarray(mean), s)
        slope = (
            np.asarray(EXACT.chain.conditional(jnp.ones(3), s).mean - EXACT.chain.conditional(jnp.zeros(3), s).mean)
        )[0]
        mean, variance = (
            np.asarray(distribution.mean, float),
            slope**2 * variance + float(distribution.variance.reshape(-1)[0]),
        )
    residual = np.asarray(VALUE, float) - mean @ np.asarray(MATRIX, float).T
    covariance = NOISE**2 * np.eye(2) + variance * np.asarray(MATRIX @ MATRIX.T, float)
    return np.array([normal_log_density(row, covariance) for row in residual])


@pytest.mark.parametrize("covariance", ["jacobian", "secant"])
def test_the_gaussian_twist_is_exact_for_a_gaussian_chain_and_linear_observations(covariance):
    """C_t = (v_t / sqrt(abar_t)) d x0hat / d x^t; with S^2 = 0.7^2 the secant form starts from the exact C_t too.

    The twist is a mixture of what is exact and, by a tenth of the variance that is open, of y under the prior.
    """
    target, x = target_and_states(linear, VALUE)
    twist = LinearGaussian(covariance)
    draws = np.array([[0.5, -0.3, 0.2]]) + 0.7 * np.random.default_rng(0).normal(size=(64, 3))
    constants = twist.prepare(target, {"x": jnp.asarray(draws, float)})._replace(power={"x": jnp.asarray(0.49)})
    seen = np.asarray(VALUE) - draws @ np.asarray(MATRIX, float).T
    broad = normal_log_density(seen.mean(0), np.cov(seen.T, bias=True) + NOISE**2 * np.eye(2))
    look = jax.jit(lambda x, step: twist.look(target, constants, x, step)[0])
    for step in (1, 2, 3):
        noise, power = EXACT_SCHEDULE.noise_variance[step], EXACT_SCHEDULE.alpha_bar[step]
        doubt = 0.1 * noise / (0.49 * power + noise)
        wanted = np.logaddexp(np.log1p(-doubt) + exact_log_psi(x["x"], step), np.log(doubt) + broad)
        np.testing.assert_allclose(look(x, jnp.asarray(step)), wanted, rtol=2e-4, atol=2e-4)


def test_prior_draws_at_which_the_mean_is_not_defined_are_left_out_of_its_prior_law():
    def model(y):
        x = numpyro.sample("x", NUMBER)
        numpyro.sample("y", dist.Normal(jnp.log(x), 0.5).to_event(1), obs=y)

    target, _ = target_and_states(model, jnp.array([0.3]))
    draws = jnp.array([[1.0], [-1.0], [jnp.e], [-2.0]])
    constants = jax.jit(lambda draws: LinearGaussian().prepare(target, {"x": draws}))(draws)
    np.testing.assert_allclose(constants.residual, [0.3 - 0.5], rtol=1e-5)
    np.testing.assert_allclose(constants.covariance, [[0.25 + 0.25]], rtol=1e-5)


def test_a_conditioned_step_is_the_product_of_the_step_and_what_was_seen():
    """Log p/q and the draws' moments against the product of Gaussians, written out in float64."""
    target, _ = target_and_states(linear, VALUE)
    rng = np.random.default_rng(0)
    loc, scale, slope, residual = (
        rng.normal(size=3),
        np.array([0.5, 1.0, 0.3]),
        rng.normal(size=(2, 3)),
        rng.normal(size=2),
    )
    remaining = np.array([[0.5, 0.2], [0.2, 0.4]])
    every = lambda value: jnp.broadcast_to(jnp.asarray(value, float), (20_000, *np.shape(value)))
    distributions = {
        "a": dist.Normal(every(loc[:1]), every(scale[:1])),
        "b": dist.Normal(every(loc[1:]), every(scale[1:])),
    }
    step = ConditionedStep(distributions, every(slope), every(residual), every(remaining), (1, 2))

    precision = np.diag(1 / scale**2) + slope.T @ np.linalg.solve(remaining, slope)
    covariance = np.linalg.inv(precision)
    mean = loc + covariance @ slope.T @ np.linalg.solve(remaining, residual)
    x = step.sample(jax.random.key(0))
    draws = np.concatenate([x["a"], x["b"]], axis=-1)
    z = (draws.mean(0) - mean) / np.sqrt(np.diag(covariance) / len(draws))
    assert np.abs(z).max() < 5
    np.testing.assert_allclose(
        np.cov(draws.T), covariance, atol=5 * np.diag(covariance).max() * np.sqrt(2 / len(draws))
    )
    log_p = np.array([normal_log_density(row - loc, np.diag(scale**2)) for row in draws[:6]])
    log_q = np.array([normal_log_density(row - mean, covariance) for row in draws[:6]])
    np.testing.assert_allclose(step.log_ratio(target, x, jnp.asarray(1))[:6], log_p - log_q, rtol=1e-4, atol=1e-4)


def test_the_tempered_twist_knows_its_largest_curvature_and_moves_along_its_slope():
    """h is the largest eigenvalue of A^T A / sigma^2, psi = r(x0hat)^lambda, and the mean moves by s^2 grad log psi."""
    target, x = target_and_states(linear, VALUE)
    twist = Tempered(num_iterations=30)
    draws = {"x": 0.7 * jax.random.normal(jax.random.key(2), (64, 3))}
    constants = jax.jit(lambda draws: twist.prepare(target, draws))(draws)
    curvature = np.linalg.eigvalsh(np.asarray(MATRIX.T @ MATRIX, float)).max() / NOISE**2
    np.testing.assert_allclose(constants.curvature, curvature, rtol=1e-3)
    abar, noise, power = EXACT_SCHEDULE.alpha_bar[2], EXACT_SCHEDULE.noise_variance[2], float(draws["x"].var(0).mean())
    temper = 1 / (1 + curvature * power * noise / (abar * power + noise))

    def expected_log_psi(x_t):
        x_0, _ = EXACT.chain.transition(x_t, 2)
        return temper * dist.Normal(x_0 @ MATRIX.T, NOISE).log_prob(VALUE).sum(-1)

    log_psi, move = jax.jit(lambda x: twist.look(target, constants, x, jnp.asarray(2)))(x)
    np.testing.assert_allclose(log_psi, expected_log_psi(x["x"]), rtol=1e-3)
    distribution = EXACT.chain.conditional(x["x"], 2)
    shift = distribution.variance * jax.grad(lambda x_t: expected_log_psi(x_t).sum())(x["x"])
    np.testing.assert_allclose(move.tilted["x"].loc - distribution.mean, shift, rtol=2e-3, atol=1e-4)
    np.testing.assert_array_equal(move.tilted["x"].scale, move.steps["x"].scale)


@pytest.mark.usefixtures("no_type_checks")
def test_what_a_twist_needs_is_checked_when_it_is_made():
    with pytest.raises(ValueError, match="covariance one of secant, jacobian, scale, errors; got 'diagonal'"):
        LinearGaussian("diagonal")
    with pytest.raises(ValueError, match="num_prior_draws to be an integer >= 2; got 0"):
        LinearGaussian(num_prior_draws=0)
    with pytest.raises(ValueError, match="num_prior_draws to be an integer >= 2; got 1"):
        Tempered(num_prior_draws=1)
    with pytest.raises(ValueError, match="num_iterations to be an integer >= 1; got 0"):
        Tempered(num_iterations=0)
