"""TwistedSMC on several diffusion variables: plates filtered element by element or together, several sites and lengths.

All are Gaussian, so that evidence and posterior of the T-step model are known in closed form.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import affine_prior, gaussian_moments, linear_posterior
from measured_errors import Moments, check, check_moments, of_independent

import numpyro_diffusion as nd
from numpyro_diffusion.infer import TwistedSMC

NUMBER = affine_prior(nd.schedules.log_snr(4, 0.3, 10.0), [0.5])
LONG = affine_prior(nd.schedules.log_snr(5, 0.3, 10.0), [0.5, -0.3])
SHORT = affine_prior(nd.schedules.log_snr(3, 0.2, 10.0), [-0.4])
Y = np.array([1.5, -1.0, 0.2])


def run(model, *args, twist="tempered", num_particles=512, num_islands=16, **options):
    smc = TwistedSMC(model, num_particles, num_islands, twist, progress_bar=False, **options)
    smc.run(jax.random.key(0), *(jnp.asarray(arg, float) for arg in args))
    return smc


def moments(*priors):
    """Mean and covariance of all priors' x^0 side by side."""
    every = [gaussian_moments(prior) for prior in priors]
    return np.concatenate([mean[0] for mean, _ in every]), np.diag(np.concatenate([var[0] for _, var in every]))


def numbers(samples):
    """The x of every element, each a vector of one number, side by side."""
    return samples["x"][..., 0]


def check_joint(smc, select, wanted, prior):
    """Evidence within 5 errors; means and covariances, over the islands, within 5 and apart from the prior's."""
    log_evidence, *after = wanted
    assert abs(smc.log_evidence - log_evidence) < 5 * smc.log_evidence_error < 0.5
    check_moments(smc, select, Moments(*after), Moments(*prior))


def check_by_element(smc, select, wanted, prior):
    """The same where elements were filtered by themselves: each by its own weights, and apart they are independent."""
    log_evidence, mean, covariance = wanted
    assert abs(smc.log_evidence - log_evidence) < 5 * smc.log_evidence_error < 0.5
    for i in range(len(mean)):
        after, before = (Moments(m[i : i + 1], c[i : i + 1, i : i + 1]) for m, c in ((mean, covariance), prior))
        check_moments(smc, lambda samples, i=i: select(samples)[:, i : i + 1], after, before, element=i)
    apart = np.asarray(select(smc.get_samples()), float) - mean
    above = np.triu_indices(len(mean), 1)
    check(of_independent((apart[:, :, None] * apart[:, None, :])[:, *above]), covariance[above])


def plate_model(y):
    with numpyro.plate("n", len(y)):
        x = numpyro.sample("x", NUMBER)
        numpyro.sample("y", dist.Normal(x, 0.4).to_event(1), obs=y[:, None])


def one_by_one(y, noise=0.16):
    """The posterior of each number by itself, and all of them together."""
    mean, covariance = moments(NUMBER)
    parts = [linear_posterior(mean, covariance, np.eye(1), noise * np.eye(1), np.array([value])) for value in y]
    return (
        np.array([part[0] for part in parts]),
        np.concatenate([part[1] for part in parts]),
        np.diag([part[2][0, 0] for part in parts]),
    )


def test_a_plate_is_filtered_element_by_element_and_each_has_its_evidence():
    """Thirty elements, 27 with data two standard deviations out: the effective size of none falls with their number."""
    y = np.concatenate([Y, np.full(27, 2.5)])
    smc = run(plate_model, y)
    assert smc.elements_reason.startswith("element by element, (30,): proved")
    evidences, mean, covariance = one_by_one(y)
    assert smc.effective_sizes.shape == (16, 5, 30)
    assert smc.min_ess > 512 / 8
    np.testing.assert_allclose(smc.log_evidence, smc.log_evidence_by_element.sum(), rtol=1e-6)
    # Its error is that of thirty independent sums: no more than all of the total's error.
    assert (np.abs(smc.log_evidence_by_element - evidences) < 5 * smc.log_evidence_error).all()
    first = lambda samples: numbers(samples)[:, :3]
    check_by_element(smc, first, (evidences.sum(), mean[:3], covariance[:3, :3]), moments(NUMBER, NUMBER, NUMBER))


def test_told_to_be_joint_it_finds_the_same():
    smc = run(plate_model, Y, elements="joint")
    assert smc.elements_reason == "jointly: told so"
    assert smc.effective_sizes.shape == (16, 5)
    evidences, mean, covariance = one_by_one(Y)
    check_joint(smc, numbers, (evidences.sum(), mean, covariance), moments(NUMBER, NUMBER, NUMBER))


def test_a_likelihood_that_couples_the_plate_is_filtered_jointly():
    """Their sum is observed too, with less noise than each: strong negative correlations."""

    def model(y, total):
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", NUMBER)
            numpyro.sample("y", dist.Normal(x, 0.8).to_event(1), obs=y[:, None])
        numpyro.sample("total", dist.Normal(x.sum(), 0.3), obs=total)

    smc = run(model, Y, 2.0, twist="gaussian")
    assert smc.elements_reason.startswith("jointly: site 'total' depends on the elements of the plate together")
    matrix = np.concatenate([np.eye(3), np.ones((1, 3))])
    wanted = linear_posterior(
        *moments(NUMBER, NUMBER, NUMBER), matrix, np.diag([0.64, 0.64, 0.64, 0.09]), np.append(Y, 2.0)
    )
    assert wanted[2][0, 1] / wanted[2][0, 0] < -0.2
    check_joint(smc, numbers, wanted, moments(NUMBER, NUMBER, NUMBER))


def test_contexts_and_a_plate_of_observations_inside_the_plate():
    """Each element has its own chain, and two observations: the Gaussian twist sees those of its element."""
    context = np.array([[-2.0], [0.0], [3.0]])
    y = np.stack([Y, Y[::-1] + 0.5])
    prior = affine_prior(nd.schedules.log_snr(4, 0.3, 10.0), [0.5], context=jnp.asarray(context, float))

    def model(y):
        with numpyro.plate("n", 3, dim=-1):
            x = numpyro.sample("x", prior)
            with numpyro.plate("m", 2, dim=-2):
                numpyro.sample("y", dist.Normal(x[..., 0], 0.5), obs=y)

    smc = run(model, y, twist="gaussian")
    assert smc.effective_sizes.shape[2:] == (3,)
    evidences, means, variances, priors = [], [], [], []
    for i in range(3):
        alone = affine_prior(nd.schedules.log_snr(4, 0.3, 10.0), [0.5], context=jnp.asarray(context[i], float))
        found = linear_posterior(*moments(alone), np.ones((2, 1)), 0.25 * np.eye(2), y[:, i])
        evidences, means, variances = evidences + [found[0]], means + [found[1][0]], variances + [found[2][0, 0]]
        priors.append(alone)
    check_by_element(smc, numbers, (sum(evidences), np.array(means), np.diag(variances)), moments(*priors))


@pytest.mark.parametrize("twist", ["tempered", "gaussian"])
def test_two_sites_with_chains_of_different_length(twist):
    """The shorter rests at its x^T until its own levels come; paths have each their own length."""

    def model(y):
        a = numpyro.sample("a", LONG)
        b = numpyro.sample("b", SHORT)
        numpyro.deterministic("sum", a.sum() + b[0])
        numpyro.sample("y", dist.Normal(a.sum() + b, 0.5).to_event(1), obs=y)
        numpyro.sample("z", dist.Normal(a[0], 0.5), obs=1.0)

    smc = run(model, [1.2], twist=twist, keep_paths=True)
    wanted = linear_posterior(
        *moments(LONG, SHORT), np.array([[1.0, 1, 1], [1, 0, 0]]), 0.25 * np.eye(2), np.array([1.2, 1.0])
    )
    samples = smc.get_samples()
    check_joint(smc, lambda x: np.concatenate([x["a"], x["b"]], axis=1), wanted, moments(LONG, SHORT))
    np.testing.assert_allclose(samples["sum"], samples["a"].sum(1) + samples["b"][:, 0], rtol=1e-4, atol=1e-5)
    for name, shape in (("a", (6, 2)), ("b", (4, 1))):
        assert samples[f"{name}_path"].shape[1:] == shape
        np.testing.assert_array_equal(samples[f"{name}_path"][:, 0], samples[name])
    # At its x^T the shorter site is what its own chain makes of the data: it has not walked with the other.
    slope = np.prod([np.diff(SHORT.chain.conditional(jnp.asarray([[0.0], [1.0]]), t).mean, axis=0) for t in (1, 2, 3)])
    mean, covariance = moments(LONG, SHORT)
    mean = np.append(mean, 0.0)
    covariance = np.block([[covariance, np.array([[0.0], [0.0], [slope]])], [np.array([[0.0, 0.0, slope, 1.0]])]])
    matrix = np.array([[1.0, 1, 1, 0], [1, 0, 0, 0]])
    _, mean, covariance = linear_posterior(mean, covariance, matrix, 0.25 * np.eye(2), np.array([1.2, 1.0]))
    starts = []
    for key in jax.random.split(jax.random.key(1), 8):  # the spread of whole runs is the error
        smc.run(key, jnp.asarray([1.2]))
        starts.append(np.asarray(smc.get_samples()["b_path"][:, -1, 0]))
    check(of_independent([start.mean() for start in starts]), mean[3])
    spread = of_independent([((start - mean[3]) ** 2).mean() for start in starts])
    check(spread, covariance[3, 3], refused=covariance[2, 2])


def test_two_sites_of_one_plate_are_filtered_element_by_element_with_their_paths():
    def model(y):
        with numpyro.plate("n", 3):
            a = numpyro.sample("a", NUMBER)
            b = numpyro.sample("b", SHORT)
            numpyro.sample("y", dist.Normal(a + b, 0.4).to_event(1), obs=y[:, None])

    smc = run(model, Y, twist="gaussian", keep_paths=True)
    assert smc.effective_sizes.shape[2:] == (3,)
    samples = smc.get_samples()
    total = 0.0
    for i, value in enumerate(Y):
        log_evidence, mean, covariance = linear_posterior(
            *moments(NUMBER, SHORT), np.ones((1, 2)), 0.16 * np.eye(1), np.array([value])
        )
        total += log_evidence
        pair = lambda x, i=i: np.stack([x["a"][:, i, 0], x["b"][:, i, 0]], axis=1)
        check_moments(smc, pair, Moments(mean, covariance), Moments(*moments(NUMBER, SHORT)), element=i)
    assert abs(smc.log_evidence - total) < 5 * smc.log_evidence_error < 0.5
    assert samples["a_path"].shape == (8192, 5, 3, 1)
    assert samples["b_path"].shape == (8192, 4, 3, 1)
    np.testing.assert_array_equal(samples["b_path"][:, 0], samples["b"])
