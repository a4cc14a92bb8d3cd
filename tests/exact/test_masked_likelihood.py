"""A masked likelihood: what the mask leaves out is dropped exactly, by every twist, guide and engine.

Two kinds of test. A twist or guidance with masked numbers says what it says of the same model with these numbers
removed, to rounding. Engines meet the conjugate posterior of the numbers that were seen, in plates whose elements miss
different ones; a mask that were ignored, or a wide noise in its place, is told apart.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import affine_prior, gaussian_moments, linear_posterior
from measured_errors import Moments, check, check_islands, check_moments, of_chains
from numpyro.handlers import mask
from numpyro.infer import MCMC, SVI, Trace_ELBO

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import MomentMatching
from numpyro_diffusion.infer import AutoDiffusionGuide, DiffusionGibbs, LinearGaussian, Tempered, TwistedSMC
from numpyro_diffusion.infer.smc import target_of
from numpyro_diffusion.model.reference import NormalReference
from numpyro_diffusion.model.split import Programs, split_model

SCHEDULE = nd.schedules.log_snr(3, 0.3, 10.0)
KERNEL = nd.GaussianKernel(SCHEDULE, parameterization="x0", variance="denoiser")
MEAN = np.array([0.5, -0.3, 0.2])
COVARIANCE = np.array([[1.0, 0.3, 0.0], [0.3, 0.8, -0.2], [0.0, -0.2, 0.5]])
TRIPLE = affine_prior(SCHEDULE, MEAN)
NOISE = np.array([0.3, 0.5, 0.4])
# Different entries in every row; all of the third, none of the fourth.
SEEN = np.array([[True, False, True], [False, True, False], [True, True, True], [False, False, False]])
Y = np.array([[1.5, 7.0, -0.4], [-9.0, 0.8, 3.0], [0.1, 0.4, -1.2], [5.0, 5.0, 5.0]])


def by_entry(y, seen):
    with numpyro.plate("rows", len(y)):
        x = numpyro.sample("x", TRIPLE)
        numpyro.sample("y", dist.Normal(x, NOISE).mask(seen).to_event(1), obs=y)


def by_handler(y, seen):
    with numpyro.plate("rows", len(y), dim=-2):
        x = numpyro.sample("x", TRIPLE)
        with numpyro.plate("columns", 3, dim=-1), mask(mask=seen):
            numpyro.sample("y", dist.Normal(x[:, 0, :], NOISE), obs=y)


# Where the numbers are, and which -------------------------------------------------------------------------


@jax.jit
def observation(split, x):
    return split.observation({"x": x}, {})


@pytest.mark.parametrize("model", [by_entry, by_handler])
def test_masked_numbers_leave_the_residual_and_its_covariance(model):
    split = split_model(model, (Y, SEEN), {}, elements="independent")
    found = observation(split, jnp.zeros((*split.element_shape, 3)))
    np.testing.assert_array_equal(found.seen.reshape(4, 3), SEEN)
    np.testing.assert_allclose(found.residual.reshape(4, 3), np.where(SEEN, Y, 0), rtol=1e-6)
    wanted = np.where(SEEN[:, :, None] & SEEN[:, None, :], np.diag(NOISE**2), 0)
    np.testing.assert_allclose(found.covariance.reshape(4, 3, 3), wanted, rtol=1e-6)


def test_a_mask_of_whole_vectors_and_masks_in_masks_are_met():
    rows = np.array([True, False, True, True])

    def vectors(y, seen):
        with numpyro.plate("rows", 4):
            x = numpyro.sample("x", TRIPLE)
            with mask(mask=seen[:, 1]), mask(mask=rows):
                numpyro.sample("y", dist.MultivariateNormal(x, COVARIANCE), obs=y)

    def off(y, seen):
        with numpyro.plate("rows", 4):
            x = numpyro.sample("x", TRIPLE)
            numpyro.sample("y", dist.Normal(x, 1.0).to_event(1).mask(False), obs=y)
            numpyro.sample("z", dist.Normal(x, 1.0).mask(seen).to_event(1).mask(rows), obs=y)

    found = observation(split_model(vectors, (Y, SEEN), {}, elements="independent"), jnp.zeros((4, 3)))
    wanted = (SEEN[:, 1] & rows)[:, None] & np.ones(3, bool)
    np.testing.assert_array_equal(found.seen, wanted)
    np.testing.assert_allclose(found.covariance, wanted[..., None] * COVARIANCE, rtol=1e-6)
    found = observation(split_model(off, (Y, SEEN), {}, elements="independent"), jnp.zeros((4, 3)))
    np.testing.assert_array_equal(found.seen, SEEN & rows[:, None])  # what a mask turns off depends on no x


def test_a_likelihood_that_is_not_normal_is_named_behind_its_mask():
    def model(y, seen):
        with numpyro.plate("rows", len(y)):
            x = numpyro.sample("x", TRIPLE)
            numpyro.sample("y", dist.StudentT(3.0, x, 1.0).mask(seen).to_event(1), obs=y)

    with pytest.raises(TypeError, match=r"likelihood at site 'y' for the gaussian twist; got StudentT"):
        split_model(model, (Y, SEEN), {}).observation({"x": jnp.zeros((4, 3))}, {})


# Twists: as if the numbers were not there ------------------------------------------------------------------

MATRIX = np.array([[1.0, -0.5, 0.2], [0.3, 1.0, 0.0], [0.2, 0.4, -1.0], [0.5, 0.5, 0.5]])
VALUE, SPREAD = np.array([1.5, -40.0, 0.3, 70.0]), np.array([0.6, 0.2, 0.4, 9.0])
KEPT = np.array([0, 2])
IS_KEPT = np.isin(np.arange(4), KEPT)
EXACT = nd.Diffusion(KERNEL, nd.analytic.gaussian_mixture(KERNEL, jnp.array([[0.5, -0.3, 0.2]]), 0.7, jnp.ones(1)))


def masked(unit=1.0, value=VALUE):
    x = unit * numpyro.sample("x", EXACT)
    numpyro.sample("y", dist.Normal(MATRIX @ x, unit * SPREAD).mask(IS_KEPT).to_event(1), obs=unit * value)


def removed(unit=1.0):
    x = unit * numpyro.sample("x", EXACT)
    numpyro.sample("y", dist.Normal(MATRIX[KEPT] @ x, unit * SPREAD[KEPT]).to_event(1), obs=unit * VALUE[KEPT])


MASKED, REMOVED = Programs(masked), Programs(removed)
TWISTS = {**{name: LinearGaussian(name) for name in ("secant", "jacobian", "scale")}, "tempered": Tempered()}


@partial(jax.jit, static_argnames="name")
def look(split, step, name):
    """Log psi of six particles, and where they may go by the density of the move: p/q at six other states."""
    target, twist = target_of(split, {}), TWISTS[name]
    draws = {"x": MEAN + 0.7 * jax.random.normal(jax.random.key(0), (64, 3))}
    x = jax.random.normal(jax.random.key(1), (6, 3))
    log_psi, move = twist.look(target, twist.prepare(target, draws), {"x": x}, step)
    return log_psi, move.log_ratio(target, {"x": x[::-1]}, step), move.sample(jax.random.key(2))["x"]


@pytest.mark.parametrize(("name", "unit"), [*((name, 1.0) for name in TWISTS), ("secant", 1e-4)])
def test_a_twist_says_what_it_says_without_the_masked_numbers(name, unit):
    unit = jnp.asarray(unit, float)
    for step in (1, 2, 3):
        ours, theirs = (look(programs.bind((unit,), {}), jnp.asarray(step), name) for programs in (MASKED, REMOVED))
        for one, other in zip(ours[:2], theirs[:2], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
        assert np.isfinite(ours[2]).all()


def test_a_nan_behind_the_mask_changes_nothing():
    with_nan, without = (MASKED.bind((), {"value": value}) for value in (np.where(IS_KEPT, VALUE, np.nan), VALUE))

    @jax.jit
    def look(split, x):
        residual, pull = jax.vjp(lambda x: split.observation({"x": x}, {}).residual, x)
        gradient = jax.grad(lambda x: split.log_factor({"x": x}, {}).elements)(x)
        return residual, pull(jnp.ones(4)), gradient

    x = jnp.array([0.3, -0.2, 1.0])
    for one, other in zip(jax.tree.leaves(look(with_nan, x)), jax.tree.leaves(look(without, x)), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, other)


def test_where_everything_is_masked_the_twist_is_one():
    def model():
        x = numpyro.sample("x", EXACT)
        numpyro.sample("y", dist.Normal(MATRIX @ x, SPREAD).mask(np.zeros(4, bool)).to_event(1), obs=VALUE)

    target = target_of(split_model(model, (), {}), {})
    x = {"x": jax.random.normal(jax.random.key(1), (6, 3))}
    twist = LinearGaussian()
    log_psi, move = jax.jit(lambda x: twist.look(target, twist.prepare(target, x), x, jnp.asarray(2)))(x)
    np.testing.assert_allclose(log_psi, 0, atol=1e-5)
    np.testing.assert_allclose(move.log_ratio(target, x, jnp.asarray(2)), 0, atol=1e-5)


# Moment matching ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["jacobian", "scale"])
def test_moment_matching_with_a_mask_is_that_of_the_numbers_that_were_seen(covariance):
    x_t = jax.random.normal(jax.random.key(1), (3, 3))
    each = np.array([[True, False, True, False], [False, False, False, True], [True, True, True, True]])
    value = np.where(each, VALUE, np.nan)

    @jax.jit
    def guided(t):
        """All rows with their masks, and each by itself without what it does not see."""
        ours = MomentMatching(MATRIX, value, SPREAD, covariance=covariance, mask=each)(EXACT.chain.expand((3,)), x_t, t)
        theirs = [
            MomentMatching(MATRIX[seen], VALUE[seen], SPREAD[seen], covariance=covariance)(EXACT.chain, x, t)
            for x, seen in zip(x_t, each, strict=True)
        ]
        return (ours.step.loc, ours.log_psi), [(guide.step.loc, guide.log_psi) for guide in theirs]

    for t in (1, 3):
        ours, theirs = guided(jnp.asarray(t))
        for row, alone in enumerate(theirs):
            for one, other in zip(ours, alone, strict=True):
                np.testing.assert_allclose(one[row], other, rtol=1e-4, atol=1e-5)


def test_moment_matching_names_a_mask_that_does_not_fit_and_a_nan_that_it_does_not_cover():
    with pytest.raises(ValueError, match=r"a mask of booleans that .* the value's shape \(4,\); got .*\(3,\)"):
        MomentMatching(MATRIX, VALUE, SPREAD, mask=np.ones(3, bool))
    with pytest.raises(ValueError, match=r"a mask of booleans.* got dtype float"):
        MomentMatching(MATRIX, VALUE, SPREAD, mask=np.ones(4))
    with pytest.raises(ValueError, match=r"finite values for value.*nan at index \(2,\)"):
        MomentMatching(MATRIX, np.where(np.arange(4) > 1, np.nan, 1.0), SPREAD, mask=np.arange(4) != 3)


# What goes by the likelihood alone -------------------------------------------------------------------------


def test_the_slice_sampler_and_the_guide_see_the_numbers_that_were_seen():
    """Their target and their bound are those of the model without the masked numbers, gradients included."""
    value = np.where(IS_KEPT, VALUE, np.nan)
    references = [NormalReference(masked, (), {"value": value}), NormalReference(removed, (), {})]
    u = references[1].prior_draw(jax.random.key(0))
    ours, theirs = (jax.jit(jax.value_and_grad(reference.log_likelihood))(u) for reference in references)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), ours, theirs)

    def bound(model, **arguments):
        """Inside of a jitted function, where the values are known and the random keys are not."""
        guide = AutoDiffusionGuide(model)
        svi = SVI(guide.model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
        state, loss = jax.jit(lambda key: svi.update(svi.init(key, **arguments), **arguments))(jax.random.key(0))
        return loss, svi.get_params(state)

    ours, theirs = bound(masked, value=value), bound(removed)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), ours, theirs)


# Engines: the posterior of what was seen -------------------------------------------------------------------


MEAN_OF_X, VARIANCE_OF_X = (moments[0] for moments in gaussian_moments(TRIPLE))


def conjugate(row):
    """Log evidence, mean and covariance of one row's x, from the numbers that were seen of it."""
    seen = SEEN[row]
    if not seen.any():
        return 0.0, MEAN_OF_X, np.diag(VARIANCE_OF_X)
    noise = np.diag(NOISE[seen] ** 2)
    return linear_posterior(MEAN_OF_X, np.diag(VARIANCE_OF_X), np.eye(3)[seen], noise, Y[row, seen])


def test_smc_finds_the_posterior_of_what_was_seen():
    """By the tempered twist; DiffusionGibbs below takes the other."""
    smc = TwistedSMC(by_entry, 512, 8, "tempered", progress_bar=False)
    smc.run(jax.random.key(0), np.where(SEEN, Y, np.nan).astype(np.float32), SEEN)
    assert smc.elements_reason.startswith("element by element")
    prior = Moments(*map(np.asarray, (MEAN_OF_X, np.diag(VARIANCE_OF_X))))
    for row in range(3):  # where all is missing the posterior is the prior
        wanted = Moments(*conjugate(row)[1:])
        check_moments(smc, lambda samples, row=row: samples["x"][:, row], wanted, prior, element=row)
    check_islands(smc, lambda samples: prior.of(samples["x"][:, 3]), prior.expected(prior), element=3)
    evidence = sum(conjugate(row)[0] for row in range(4))
    assert abs(smc.log_evidence - evidence) < 5 * smc.log_evidence_error < 0.5


def test_gibbs_draws_the_posterior_of_what_was_seen():
    kernel = DiffusionGibbs(by_entry, twist="gaussian")
    mcmc = MCMC(kernel, num_warmup=20, num_samples=120, num_chains=20, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(0), np.where(SEEN, Y, np.nan).astype(np.float32), SEEN)
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"], float)
    for row in range(4):
        _, mean, covariance = conjugate(row)
        moments = np.concatenate([x[:, :, row], (x[:, :, row] - mean) ** 2], -1)
        prior = np.concatenate([MEAN_OF_X, VARIANCE_OF_X + (MEAN_OF_X - mean) ** 2])
        check(of_chains(moments), np.concatenate([mean, np.diag(covariance)]), prior if row < 3 else None)
