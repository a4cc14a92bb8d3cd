"""The look-ahead by the covariance of a network's errors, against the conjugate posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import linear_posterior
from correlated_gaussian import SPREAD, correlated_chain, exact_errors

import numpyro_diffusion as nd
from numpyro_diffusion.infer import LinearGaussian, Tempered, TwistedSMC


def test_the_errors_that_a_prior_carries_are_a_covariance_for_the_twist():
    """For a correlated Gaussian they are Cov[x^0 | x^t] itself: weights are nearly even, and the evidence is right."""
    chain, covariances = correlated_chain()
    prior = nd.Diffusion(chain.kernel, chain.transition).with_errors(exact_errors(covariances))
    matrix, y, noise = np.array([[1.0, 1.0, 0.0], [0.0, 0.5, 1.0]], np.float32), np.array([2.0, -0.4], np.float32), 0.2

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(matrix @ x, noise).to_event(1), obs=y)

    found = {}
    for covariance in ("errors", "scale"):
        smc = TwistedSMC(model, 256, 2, twist=LinearGaussian(covariance), progress_bar=False)
        found[covariance] = smc.run(jax.random.key(0), y)
    evidence, mean, _ = linear_posterior(np.zeros(3), SPREAD, matrix, noise**2 * np.eye(2), y)
    assert found["errors"].min_ess > 200  # a tenth of the twist is for modes that are still open
    assert found["errors"].min_ess > 1.5 * found["scale"].min_ess
    # The chain of 30 steps is not quite N(0, SPREAD).
    assert abs(found["errors"].log_evidence - evidence) < 0.1
    np.testing.assert_allclose(found["errors"].get_samples(num_samples=512)["x"].mean(0), mean, atol=0.15)


def test_a_twist_by_errors_wants_a_prior_that_carries_them():
    chain, _ = correlated_chain()
    prior = nd.Diffusion(chain.kernel, chain.transition)

    def model(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), 1.0).to_event(1), obs=y)

    smc = TwistedSMC(model, 16, 1, twist=LinearGaussian("errors"), progress_bar=False)
    with pytest.raises(ValueError, match="a prior at site 'x' that carries the covariance of its network's errors"):
        smc.run(jax.random.key(0), jnp.zeros(3))


def seen_as(likelihood, **options):
    chain, covariances = correlated_chain()
    prior = nd.Diffusion(chain.kernel, chain.transition)
    if options.pop("has_errors", False):
        prior = prior.with_errors(exact_errors(covariances))

    def model():
        likelihood(numpyro.sample("x", prior))

    smc = TwistedSMC(model, 64, 2, progress_bar=False, **options)
    smc.run(jax.random.key(0))
    return smc


def normal(x):
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=jnp.array([1.0, 0.0, -1.0]))


def counts(x):
    numpyro.sample("y", dist.Poisson(jnp.exp(x)).to_event(1), obs=jnp.array([1.0, 0.0, 2.0]))


@pytest.mark.parametrize(
    ("likelihood", "has_errors", "wanted"),
    [
        (normal, True, LinearGaussian("errors")),
        (normal, False, LinearGaussian("secant")),
        (counts, True, Tempered()),
        (lambda x: None, False, Tempered()),
    ],
    ids=["Normal, errors known", "Normal", "counts", "nothing seen"],
)
def test_the_twist_that_is_chosen_is_said_and_gives_the_same_run_as_by_its_name(likelihood, has_errors, wanted, capsys):
    found = seen_as(likelihood, has_errors=has_errors, twist="auto")
    assert found.chosen_twist == wanted
    found.print_summary()
    assert f"twist {wanted}" in capsys.readouterr().out
    named = seen_as(likelihood, has_errors=has_errors, twist=wanted)
    assert named.chosen_twist == wanted
    assert found.num_network_calls == named.num_network_calls
    assert found.log_evidence == pytest.approx(named.log_evidence, abs=1e-5)
