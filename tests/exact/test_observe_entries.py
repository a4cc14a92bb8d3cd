"""infer.observe_entries: some entries of x are seen and others not, different ones in every row.

The posterior of a Gaussian prior given the entries that were seen is known in closed form; engines must draw the
missing cells from it, with the right mean and the right spread.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import linear_posterior
from measured_errors import of_chains, of_islands
from numpyro.handlers import condition, seed, trace
from numpyro.infer import MCMC, Predictive

import numpyro_diffusion as nd
from numpyro_diffusion.infer import DiffusionGibbs, TwistedSMC, observe_entries

KERNEL = nd.GaussianKernel(nd.schedules.log_snr(4, 0.3, 10.0), parameterization="x0", variance="upper")
# Correlated, so that a missing cell is told by the others: x^0 of one last affine step, whose moments are exact below.
MIXING = jnp.array([[0.8, 0.3, -0.2], [0.3, 0.7, 0.2], [-0.2, 0.2, 0.6]])


def mixing_network(params, x_t, t, context):
    return x_t @ params + 0.3


PRIOR = nd.Diffusion(KERNEL, nd.Transition(mixing_network, MIXING, (3,)))
SCALE = np.array([0.2, 0.3, 0.2], np.float32)
VALUES = np.array([[1.8, np.nan, np.nan], [np.nan, 0.8, -0.5], [0.2, -0.4, np.nan], [np.nan] * 3], np.float32)
MISSING = np.isnan(VALUES)


@functools.cache
def prior_moments():
    """Mean and covariance of x^0: every reverse step is affine."""
    mean, covariance = np.zeros(3), np.eye(3)
    for t in range(KERNEL.num_steps, 0, -1):
        start, *columns = (PRIOR.chain.conditional(x, t).mean for x in (jnp.zeros(3), *jnp.eye(3)))
        slope = np.asarray(jnp.stack(columns) - start, float).T
        mean = slope @ mean + np.asarray(start, float)
        variance = np.asarray(PRIOR.chain.conditional(jnp.zeros(3), t).variance, float)
        covariance = slope @ covariance @ slope.T + np.diag(np.broadcast_to(variance, 3))
    return mean, covariance


def conditional(row):
    """Mean and covariance of one row given what was seen of it."""
    mean, covariance = prior_moments()
    seen = ~MISSING[row]
    if not seen.any():
        return mean, covariance
    noise = np.diag(SCALE[seen].astype(float) ** 2)
    return linear_posterior(mean, covariance, np.eye(3)[seen], noise, VALUES[row, seen])[1:]


def model(values):
    with numpyro.plate("rows", 4):
        x = numpyro.sample("x", PRIOR)
        observe_entries("y", x, values, SCALE)


def site_of(x, values, scale, **options):
    sites = trace(seed(lambda: observe_entries("y", x, values, scale, **options), 0)).get_trace()
    return sites["y"]


# The site ------------------------------------------------------------------------------------------------


def test_it_is_the_normal_density_of_the_entries_that_were_seen():
    x = np.arange(12.0, dtype=np.float32).reshape(4, 3) / 10
    site = site_of(x, VALUES, SCALE)
    assert site["is_observed"]
    assert site["fn"].event_dim == 1
    each = dist.Normal(x, SCALE).log_prob(np.nan_to_num(VALUES))
    np.testing.assert_allclose(site["fn"].log_prob(site["value"]), np.where(MISSING, 0, each).sum(-1), rtol=1e-6)


def test_its_gradient_is_finite_and_zero_at_missing_entries_whose_noise_is_missing_too():
    scale = np.where(MISSING, np.nan, 0.5).astype(np.float32)

    def log_prob(x):
        site = site_of(x, VALUES, scale)
        return site["fn"].log_prob(site["value"]).sum()

    slope = jax.grad(log_prob)(jnp.zeros((4, 3)))
    np.testing.assert_allclose(slope, np.where(MISSING, 0, VALUES / 0.25), rtol=1e-6)


def test_event_dims_and_noise_may_be_of_any_shape_that_broadcasts():
    image = np.full((2, 4, 4), np.nan, np.float32)
    image[:, 1, 2] = 0.5
    site = site_of(jnp.zeros((2, 4, 4)), image, 0.5, event_dim=2)
    assert site["fn"].batch_shape == (2,)
    np.testing.assert_allclose(site["fn"].log_prob(site["value"]), dist.Normal(0, 0.5).log_prob(0.5), rtol=1e-6)
    assert site_of(jnp.zeros(3), [1.0, np.nan, 2], 0.5)["fn"].batch_shape == ()
    assert site_of(jnp.zeros(()), 1, 0.5, event_dim=0)["fn"].batch_shape == ()


def test_without_values_it_is_drawn_and_other_handlers_work():
    drawn = Predictive(lambda: model(None), num_samples=3)(jax.random.key(0))
    assert drawn["y"].shape == (3, 4, 3)
    assert not np.isnan(drawn["y"]).any()
    conditioned = condition(lambda: model(None), data={"y": jnp.zeros((4, 3))})
    assert trace(seed(conditioned, 0)).get_trace()["y"]["is_observed"]


def test_noise_may_be_a_latent_site_and_values_may_be_traced():
    @jax.jit
    def log_prob(values, sigma):
        site = site_of(jnp.zeros((4, 3)), values, sigma)
        return site["fn"].log_prob(site["value"]).sum()

    wanted = np.where(MISSING, 0, dist.Normal(0, 0.7).log_prob(np.nan_to_num(VALUES))).sum()
    np.testing.assert_allclose(log_prob(VALUES, 0.7), wanted, rtol=1e-5)


def test_tables_of_other_libraries_are_values():
    class Frame:
        def to_numpy(self):
            return VALUES.astype(np.float64)

    site = site_of(jnp.zeros((4, 3)), Frame(), SCALE)
    np.testing.assert_array_equal(site["value"], VALUES)


BAD = {
    "exact": (
        (VALUES, [0.1, 0.0, 0.1]),
        r"a finite scale > 0 .* at site 'y'; got 0\.0 at index \(1, 1\)\. .*how far.*may be off",
    ),
    "wide": ((VALUES, [0.1, np.inf, 0.1]), r"got inf at index \(1, 1\).*NaN in values is for an entry that was not"),
    "scale-nan": ((VALUES, [0.1, np.nan, 0.1]), r"scale > 0 .* at site 'y'; got nan at index \(1, 1\)"),
    "infinite": (
        (np.where(MISSING, np.nan, np.inf), 0.1),
        r"values of site 'y' that are finite or NaN; got inf at index \(0, 0\)",
    ),
    "shape": (
        (VALUES[:3], 0.1),
        r"values and scale of site 'y' that broadcast to x's shape \(4, 3\); got shapes \(3, 3\) and \(\)",
    ),
    "words": (([["1", "?", "2"]] * 4, 0.1), r"numbers, NaN where missing, for the values of site 'y'; got dtype <U1"),
    "event": ((VALUES, 0.1, {"event_dim": 3}), r"event_dim <= 2, the dimensions of x; got 3"),
}


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_meant_is_named(name):
    (values, scale, *options), message = BAD[name]
    with pytest.raises((ValueError, TypeError), match=message):
        site_of(jnp.zeros((4, 3)), values, scale, **(options[0] if options else {}))


# Engines -------------------------------------------------------------------------------------------------


def of_cell(x, row, column, mean):
    """The draws of a cell and their squares about the exact mean."""
    cell = np.asarray(x, float)[..., row, column]
    return cell, (cell - mean) ** 2


def check_cells(measured, num_errors=4.0):
    """Mean and variance of every missing cell, each within four standard errors of the exact conditional's."""
    for row, column in zip(*np.nonzero(MISSING), strict=True):
        mean, covariance = conditional(row)
        wanted = mean[column], covariance[column, column]
        for found, exact in zip(measured(row, column, mean[column]), wanted, strict=True):
            assert abs(found.value - exact) < num_errors * found.error, (row, column)
            assert found.error < 0.1 * np.sqrt(covariance[column, column])


def test_the_prior_would_not_pass():
    """Missing cells are told by the others: where anything was seen, by a good part of the prior's spread."""
    mean, covariance = prior_moments()
    for row in range(3):
        after, spread = conditional(row)
        cells = MISSING[row]
        assert (np.abs(after - mean) > 0.2 * np.sqrt(np.diag(covariance)))[cells].any()
        assert (np.diag(spread) < 0.95 * np.diag(covariance))[cells].all()


def test_smc_draws_missing_cells_from_their_conditional():
    """By the gaussian twist; DiffusionGibbs below takes the tempered one."""
    smc = TwistedSMC(model, 512, 16, "gaussian", progress_bar=False)
    smc.run(jax.random.key(0), VALUES)
    assert smc.elements_reason.startswith("element by element")
    samples, log_weights = smc.get_weighted_samples()

    def measured(row, *cell):
        return tuple(of_islands(values, log_weights[:, row], 16) for values in of_cell(samples["x"], row, *cell))

    check_cells(measured)


def test_gibbs_draws_missing_cells_from_their_conditional():
    settings = {"num_warmup": 20, "num_samples": 200, "num_chains": 20, "chain_method": "vectorized"}
    mcmc = MCMC(DiffusionGibbs(model), progress_bar=False, **settings)
    mcmc.run(jax.random.key(1), VALUES)
    x = mcmc.get_samples(group_by_chain=True)["x"]
    check_cells(lambda *cell: tuple(map(of_chains, of_cell(x, *cell))))
