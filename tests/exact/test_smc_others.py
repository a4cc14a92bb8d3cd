"""TwistedSMC with other unknowns: drawn from their prior, one draw for each island (IS^2), or given."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import affine_prior, gaussian_moments
from measured_errors import Moments, check_islands, check_moments
from numpyro.handlers import condition
from numpyro.infer import Predictive
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.infer import TwistedSMC

SCHEDULE = nd.schedules.log_snr(3, 0.3, 10.0)
NUMBER = affine_prior(SCHEDULE, [0.5])
MEAN, VARIANCE = (float(part[0, 0]) for part in gaussian_moments(NUMBER))
Y = 1.8


def run(model, *args, twist="tempered", num_particles=64, num_islands=1024, generator=None, **options):
    smc = TwistedSMC(model, num_particles, num_islands, twist, progress_bar=False, **options)
    smc.run(jax.random.key(0, impl=generator), *(jnp.asarray(arg, float) for arg in args))
    return smc


def check_number(smc, select, mean, variance, prior, element=None):
    """Mean and variance of one number, over the islands; ``prior`` holds its mean and variance before the data."""
    before = Moments([prior[0]], [[prior[1]]])
    check_moments(smc, lambda x: np.reshape(select(x), (-1, 1)), Moments([mean], [[variance]]), before, element)


def model(y):
    """An unknown amplitude, and an unknown offset of 0 or 2."""
    amplitude = numpyro.sample("amplitude", dist.Normal(1.0, 0.5))
    jump = numpyro.sample("jump", dist.Categorical(jnp.array([0.3, 0.7])))
    x = numpyro.sample("x", NUMBER)
    numpyro.sample("y", dist.Normal(amplitude * x + 2.0 * jump, 0.5).to_event(1), obs=y)


def joint_density():
    """P(y, amplitude, jump) on a grid of amplitudes: x is summed out in closed form."""
    grid = np.linspace(-3, 5, 1601)
    width = grid[1] - grid[0]
    return grid, np.stack(
        [
            width
            * weight
            * norm.pdf(grid, 1.0, 0.5)
            * norm.pdf(Y, grid * MEAN + 2 * jump, np.sqrt(grid**2 * VARIANCE + 0.25))
            for jump, weight in ((0, 0.3), (1, 0.7))
        ]
    )


def exact_means():
    """Site name -> a function of the samples, its posterior mean, and that of the prior."""
    grid, mass = joint_density()
    mass = mass / mass.sum()
    amplitude = (mass.sum(0) * grid).sum()
    spread = (mass.sum(0) * (grid - amplitude) ** 2).sum()
    # x given the others, averaged over them.
    gain = grid * VARIANCE / (grid**2 * VARIANCE + 0.25)
    x = (mass * (MEAN + gain * (Y - grid * MEAN - 2 * np.arange(2)[:, None]))).sum()
    both = lambda s: np.stack([s["amplitude"], (s["amplitude"] - amplitude) ** 2], axis=-1)
    return {
        "jump": (lambda s: s["jump"], mass[1].sum(), 0.7),
        "amplitude": (both, [amplitude, spread], [1.0, 0.25 + (1.0 - amplitude) ** 2]),
        "x": (lambda s: s["x"][:, 0], x, MEAN),
    }


class PriorDraws:
    """What an engine that ignores the data would return, in as many islands."""

    num_islands = 1024

    def __init__(self):
        draws = Predictive(model, num_samples=64 * 1024)(jax.random.key(5), None)
        self.samples = {name: draws[name] for name in ("amplitude", "jump", "x")}

    def get_samples(self):
        return self.samples

    def get_weighted_samples(self):
        return self.samples, np.full(64 * 1024, -np.log(64 * 1024))


@pytest.mark.parametrize("name", ["jump", "amplitude", "x"])
def test_draws_of_the_prior_do_not_pass_for_the_posterior(name):
    with pytest.raises(AssertionError, match="is exact"):
        check_islands(PriorDraws(), *exact_means()[name])


def test_a_continuous_and_a_discrete_unknown_have_their_posterior():
    smc = run(model, [Y], num_particles=32, num_islands=4096)
    _, mass = joint_density()
    assert abs(smc.log_evidence - np.log(mass.sum())) < 5 * smc.log_evidence_error < 0.25
    check_islands(smc, *exact_means()["jump"])
    check_islands(smc, *exact_means()["amplitude"])
    check_islands(smc, *exact_means()["x"])
    # Weighted samples repeat each island's draw for its particles.
    values, log_weights = smc.get_weighted_samples()
    np.testing.assert_allclose(np.exp(log_weights).sum(), 1.0, rtol=1e-3)
    assert values["amplitude"].shape == log_weights.shape == (32 * 4096,)


def test_a_key_of_another_generator_finds_the_same():
    smc = run(model, [Y], generator="rbg")
    check_islands(smc, *exact_means()["jump"])
    check_islands(smc, *exact_means()["x"])


def test_given_unknowns_keep_their_prior_in_the_evidence():
    given = condition(model, {"amplitude": jnp.asarray(1.3), "jump": jnp.asarray(1)})
    smc = run(given, [Y], num_particles=512, num_islands=16)
    exact = norm.logpdf(Y, 1.3 * MEAN + 2, np.sqrt(1.3**2 * VARIANCE + 0.25)) + np.log(0.7) + norm.logpdf(1.3, 1.0, 0.5)
    assert abs(smc.log_evidence - exact) < 5 * smc.log_evidence_error < 0.1
    assert set(smc.get_samples()) == {"x"}


@pytest.mark.parametrize("twist", ["tempered", "gaussian"])
def test_an_unknown_whose_law_depends_on_x(twist):
    """x -> b ~ N(x, 1) -> y ~ N(b, 1/2): drawn at a random x, weighted by its density at the particle's x."""

    def chain_model(y):
        x = numpyro.sample("x", NUMBER)
        b = numpyro.sample("b", dist.Normal(x, 1.0).to_event(1))
        numpyro.sample("y", dist.Normal(b, 0.5).to_event(1), obs=y)

    smc = run(chain_model, [Y], twist=twist)
    total = VARIANCE + 1.25
    assert abs(smc.log_evidence - norm.logpdf(Y, MEAN, np.sqrt(total))) < 5 * smc.log_evidence_error < 0.25
    x, b = (lambda s: s["x"]), (lambda s: s["b"])
    check_number(smc, x, MEAN + VARIANCE / total * (Y - MEAN), VARIANCE - VARIANCE**2 / total, (MEAN, VARIANCE))
    above = VARIANCE + 1
    check_number(smc, b, MEAN + above / total * (Y - MEAN), above - above**2 / total, (MEAN, above))


def test_an_unknown_in_the_law_of_the_diffusion():
    """A context with a prior: the mean of x^0 is affine in it."""

    def prior(context):
        return affine_prior(SCHEDULE, [0.5], context=context)

    def context_model(y):
        context = numpyro.sample("context", dist.Normal(0.0, 1.0))
        x = numpyro.sample("x", prior(context[None]))
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    smc = run(context_model, [Y], twist="gaussian")
    at_zero, at_one = (gaussian_moments(prior(jnp.array([value])))[0][0, 0] for value in (0.0, 1.0))
    slope = at_one - at_zero
    total = slope**2 + VARIANCE + 0.25
    assert abs(smc.log_evidence - norm.logpdf(Y, at_zero, np.sqrt(total))) < 5 * smc.log_evidence_error < 0.25
    context, x = (lambda s: s["context"]), (lambda s: s["x"])
    check_number(smc, context, slope / total * (Y - at_zero), 1 - slope**2 / total, (0.0, 1.0))
    power = slope**2 + VARIANCE
    check_number(smc, x, at_zero + power / total * (Y - at_zero), power - power**2 / total, (at_zero, power))


def test_an_unknown_shared_by_a_plate_that_is_filtered_element_by_element():
    """Three elements and one noise scale: each island filters them apart, and is weighted by all of them."""

    def scale_model(y):
        scale = numpyro.sample("scale", dist.LogNormal(-0.5, 0.5))
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", NUMBER)
            numpyro.sample("y", dist.Normal(x[..., 0], scale), obs=y)

    y = np.array([3.0, -1.5, 0.9])
    smc = run(scale_model, y)
    assert smc.elements_reason.startswith("element by element, (3,)")
    log_scale = np.linspace(-3.5, 2.5, 1201)
    sd = np.sqrt(VARIANCE + np.exp(2 * log_scale))[:, None]
    mass = norm.pdf(log_scale, -0.5, 0.5) * norm.pdf(y, MEAN, sd).prod(-1) * (log_scale[1] - log_scale[0])
    assert abs(smc.log_evidence - np.log(mass.sum())) < 5 * smc.log_evidence_error < 0.25
    mass = mass / mass.sum()
    mean = (mass * log_scale).sum()
    scale = lambda s: np.log(s["scale"])
    check_number(smc, scale, mean, (mass * (log_scale - mean) ** 2).sum(), (-0.5, 0.25), element=0)
    gain = VARIANCE / (VARIANCE + np.exp(2 * log_scale))
    for i in range(3):
        x = (mass * (MEAN + gain * (y[i] - MEAN))).sum()
        check_islands(smc, lambda s, i=i: s["x"][:, i, 0], x, MEAN, element=i)
    assert smc.get_weighted_samples()[1].shape == (64 * 1024, 3)
