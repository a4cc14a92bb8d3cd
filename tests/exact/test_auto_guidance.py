"""Guidance made of a model: log w is flat where it can be, and the evidence is exact always.

The prior is that of independent Gaussian coordinates with its exact denoiser (``guided_cases``). What is not linear is
in ``test_guidance_not_linear``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import linear_posterior
from guided_cases import EYE, SOME, Y, check_flat, moments, one_site, prior, weigher
from measured_errors import check, of_chains, of_weighted
from numpyro.distributions import transforms as npt
from numpyro.infer import MCMC
from slice_cases import SCALED_DATA, check_scale_posterior, unknown_scale

from numpyro_diffusion.infer import DiffusionHMC, DiffusionReparam
from numpyro_diffusion.model.automatic import AutoGuidance
from numpyro_diffusion.model.reference import NormalReference

# Nothing else is unknown -------------------------------------------------------------------------------------------


def two_sites(x, y):
    """One number behind a mask; names are not in the order of the sites."""
    numpyro.sample("z", dist.Normal(x[0], 0.4), obs=y[0])
    seen = np.array([False, True])
    with numpyro.plate("rest", 2):
        numpyro.sample("two", dist.Normal(x[1:], 0.8).mask(seen), obs=jnp.where(seen, y[1:], jnp.nan))


def multivariate(x, y):
    covariance = jnp.diag(jnp.array([0.3, 0.5, 0.4]))
    numpyro.sample("y", dist.MultivariateNormal(x, covariance), obs=y)


def repeated(x, y):
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(x, 0.7).to_event(1), obs=jnp.stack([y, y + 0.5, y - 1.0, y]))


PLAIN = {
    "one site": (one_site, SOME, [0.25, 0.25], Y[:2] - 1.0),
    "two sites": (two_sites, EYE[[0, 2]], [0.16, 0.64], Y[[0, 2]]),
    "multivariate": (multivariate, EYE, [0.3, 0.5, 0.4], Y),
    "more numbers than coordinates": (
        repeated, np.tile(EYE, (4, 1)), np.full(12, 0.49), np.concatenate([Y, Y + 0.5, Y - 1.0, Y]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_the_guided_chain_of_a_linear_model_is_its_posterior(name):
    likelihood, matrix, noise, y = PLAIN[name]
    site = prior()

    def model(y):
        likelihood(numpyro.sample("x", site), y)

    weigh, chart = weigher(model, (Y,))
    check_flat(weigh(), *moments(site), matrix, np.diag(noise), y)
    assert f", {len(y)} numbers; errors of the prior" in chart


def test_double_precision_under_strict_promotion(x64):
    site = prior()

    def model(y):
        two_sites(numpyro.sample("x", site), y)

    with jax.numpy_dtype_promotion("strict"):
        found = weigher(model, (np.asarray(Y, float),))[0](300)
    check_flat(found, *moments(site), EYE[[0, 2]], np.diag([0.16, 0.64]), Y[[0, 2]])


def test_units_of_the_data():
    site = prior()
    root = np.array([[2.0, 0, 0], [1.0, 1.0, 0], [-0.5, 0.3, 0.5]], np.float32)
    offset = np.array([1.0, 2.0, 300.0])
    transform = npt.LowerCholeskyAffine(jnp.asarray(offset, float), jnp.asarray(root))
    rows = np.linalg.inv(root)[:2]  # each sees one coordinate of the state
    y = np.asarray(rows @ offset + Y[:2], np.float32)

    def model(y):
        x = numpyro.sample("x", dist.TransformedDistribution(site, transform))
        numpyro.sample("y", dist.Normal(jnp.asarray(rows, jnp.float32) @ x, 0.5).to_event(1), obs=y)

    to_state = lambda x: (x - offset) @ np.linalg.inv(root).T
    found = weigher(model, (y,))[0]()
    check_flat(found, *moments(site), EYE[:2], 0.25 * np.eye(2), y - rows @ offset, to_state=to_state)


def test_elements_of_a_plate_are_guided_one_by_one():
    """With masks of their own."""
    site, seen = prior(), np.array([[True, False, True], [False, False, False]])
    y = np.stack([Y, -Y])

    def model(y):
        with numpyro.plate("n", 2):
            x = numpyro.sample("x", site)
            numpyro.sample("y", dist.Normal(x, 0.5).mask(seen).to_event(1), obs=y)

    mean, covariance = moments(site)
    rows = np.eye(6)[seen.ravel()]
    found = weigher(model, (y,))[0]()
    check_flat(found, np.tile(mean, 2), np.kron(np.eye(2), covariance), rows, 0.25 * np.eye(2), y[seen])


def test_elements_that_are_seen_together_are_guided_together():
    site = prior()

    def model(y):
        with numpyro.plate("n", 2):
            x = numpyro.sample("x", site)
        numpyro.sample("y", dist.Normal(x.sum(0), 1.0).to_event(1), obs=y)

    mean, covariance = moments(site)
    rows = np.tile(EYE, 2)
    found, unguided = (weigher(model, (Y,), guidance)[0](3000) for guidance in ("auto", None))
    # Steps know no correlation of the two, so that the weights are not flat.
    check_flat(found, np.tile(mean, 2), np.kron(np.eye(2), covariance), rows, EYE, Y, spread=1.5)
    assert unguided[1].std() > 3 * found[1].std()


def test_errors_that_are_not_known_are_computed_once():
    site = prior(has_errors=False)

    def model(y):
        two_sites(numpyro.sample("x", site), y)

    auto = AutoGuidance(model)
    first = auto.bind((Y,), {})
    assert "errors computed" in dict(first.charts)["x"]
    assert len(auto._errors) == 1
    auto.bind((2 * Y,), {})
    assert len(auto._errors) == 1
    found = weigher(model, (Y,), first)[0]()
    check_flat(found, *moments(site), EYE[[0, 2]], np.diag([0.16, 0.64]), Y[[0, 2]], spread=0.2)


# Other unknowns ----------------------------------------------------------------------------------------------------


def noise_before(site, y):
    sigma = numpyro.sample("u", dist.LogNormal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(numpyro.sample("x", site), sigma).to_event(1), obs=y)


def noise_after(site, y):
    x = numpyro.sample("x", site)
    sigma = numpyro.sample("u", dist.LogNormal(0.0, 1.0))
    numpyro.sample("z", dist.Normal(x[0], sigma), obs=y[0])
    numpyro.sample("two", dist.Normal(x[1:], 2 * sigma).to_event(1), obs=y[1:])


def everything(site, y):
    u = numpyro.sample("u", dist.Normal(0.0, 1.0))
    x = numpyro.sample("x", site)
    numpyro.sample("y", dist.Normal(u * x - u, jnp.exp(0.3 * u)).to_event(1), obs=y)


FOLLOWED = {  # by u, unconstrained: the slope, the noise's variance, what is taken off y; and what is said
    "noise, before x": (noise_before, lambda u: (1.0, np.exp(2 * u) * np.ones(3), 0.0), "its noise follows 'u'"),
    "noise, after x": (noise_after, lambda u: (1.0, np.exp(2 * u) * np.array([1, 4, 4]), 0.0), "its noise follows 'u'"),
    "everything": (everything, lambda u: (u, np.exp(0.6 * u) * np.ones(3), -u), "noise follows 'u'; its slope follows"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWED)
def test_guidance_follows_the_current_values_of_other_unknowns(name):
    """Flat at each of them, and the evidence given it: u is N(0, 1) before anything is seen."""
    likelihood, of, said = FOLLOWED[name]
    site = prior()

    def model(y):
        likelihood(site, y)

    weigh, chart = weigher(model, (Y,))
    assert said in chart
    for u in (-1.2, 0.7):
        slope, noise, shift = of(u)
        check_flat(weigh(u=u), *moments(site), slope * EYE, np.diag(noise), Y - shift)


def test_a_latent_normal_number_guides_by_its_current_value():
    site = prior()

    def model(y):
        x = numpyro.sample("x", site)
        z = numpyro.sample("z", dist.Normal(x[0], 0.5))
        numpyro.sample("y", dist.Normal(z, 0.3), obs=y[0])

    weigh, chart = weigher(model, (Y,))
    x, log_weights = weigh(z=1.7)
    assert "guided by 'z', 1 numbers; its offset follows 'z'" in chart
    mean, covariance = moments(site)
    evidence, wanted, _ = linear_posterior(mean, covariance, EYE[:1], 0.25 * np.eye(1), np.array([1.7]))
    rest = dist.Normal(1.7, 0.3).log_prob(Y[0]) - dist.Normal(0.0, 1.0).log_prob(1.7)
    assert log_weights.std() < 0.05
    assert abs(log_weights.mean() - evidence - float(rest)) < 0.01
    check(of_weighted(x, log_weights), wanted, refused=mean)


def test_a_batch_of_contexts_has_the_errors_of_the_first():
    site = prior(context=jnp.array([[0.0, 0.0, 0.0], [2.0, -1.0, 1.0]]), has_errors=False)
    y = np.stack([Y, Y])

    def model(y):
        with numpyro.plate("n", 2):
            numpyro.sample("y", dist.Normal(numpyro.sample("x", site), 0.5).to_event(1), obs=y)

    weigh, chart = weigher(model, (y,))
    assert chart == "guided by 'y', 6 numbers; errors computed for the first context"
    means = np.concatenate([moments(prior())[0], moments(prior())[0] + np.array([2.0, -1.0, 1.0])])
    covariance = np.kron(np.eye(2), moments(prior())[1])
    check_flat(weigh(), means, covariance, np.eye(6), 0.25 * np.eye(6), y.ravel(), spread=0.3)


# In the kernel -----------------------------------------------------------------------------------------------------


@pytest.mark.optimised
def test_an_unknown_scale_is_drawn_with_x_by_default():
    kernel = DiffusionHMC(unknown_scale)
    with pytest.raises(RuntimeError, match="a kernel that has run; got one that has not"):
        _ = kernel.charts
    mcmc = MCMC(kernel, num_warmup=200, num_samples=800, num_chains=4, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(0), SCALED_DATA)
    assert kernel.charts == {"x": "guided by 'y', 4 numbers; its noise follows 'sigma'; errors computed"}
    assert "guided" not in kernel.get_diagnostics_str(jax.tree.map(lambda leaf: leaf[0], mcmc.last_state))
    found = mcmc.get_samples(group_by_chain=True)
    check_scale_posterior(found["x"], found["sigma"], prior_sd=1.0, least_size=800)


def test_arguments_that_are_traced_make_the_same_noises():
    """As with jit_model_args: the state's log L is that of the guidance made of the arguments themselves."""
    site = prior()

    def model(matrix, y):
        sigma = numpyro.sample("u", dist.LogNormal(0.0, 1.0))
        x = numpyro.sample("x", site)
        numpyro.sample("y", dist.Normal(matrix @ x, sigma).to_event(1), obs=y)

    args = (jnp.asarray(SOME), jnp.asarray(Y[:2]))
    kernel = DiffusionHMC(model)
    mcmc = MCMC(kernel, num_warmup=0, num_samples=20, jit_model_args=True, progress_bar=False)
    mcmc.run(jax.random.key(0), *args)
    state = mcmc.last_state
    reference = NormalReference(model, args, {}, "auto")
    np.testing.assert_allclose(state.log_likelihood, reference.log_likelihood(state.z), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mcmc.get_samples()["x"][-1], reference.constrain(state.z)["x"], rtol=1e-4, atol=1e-4)
    check(of_chains(np.asarray(mcmc.get_samples()["x"])[None, :, 1]), -0.3)


def test_a_traced_prior_without_errors_is_refused():
    def bind(site):
        def model():
            one_site(numpyro.sample("x", site), Y)

        return NormalReference(model, (), {}, "auto").charts

    with pytest.raises(
        ValueError, match=r"a prior at site 'x' that brings the covariance of its errors.*guidance=None"
    ):
        jax.eval_shape(lambda site: bind(site) and None, prior(has_errors=False))


def test_guidance_by_an_unknown_name_is_refused(no_type_checks):
    with pytest.raises(ValueError, match="guidance by site, 'auto' or None; got 'covariance'"):
        DiffusionHMC(unknown_scale, guidance="covariance")


def test_a_discrete_site_is_refused_as_without_guidance():
    site = prior()

    def model():
        numpyro.sample("x", site)
        numpyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(TypeError, match="real latent sites; got the discrete site 'k'"):
        DiffusionHMC(model).init(jax.random.key(0), 0)


def test_the_progress_bar_says_what_is_not_guided():
    site = prior()

    def model():
        numpyro.sample("y", dist.Categorical(logits=numpyro.sample("x", site)), obs=1)

    kernel = DiffusionHMC(model)
    state = kernel.init(jax.random.key(0), 0)
    assert kernel.charts == {"x": "the prior's: 'y' is CategoricalLogits"}
    assert kernel.get_diagnostics_str(state).endswith("acceptance 0.00, x not guided")


def test_a_site_that_the_model_reparameterised_is_its_own():
    site = prior()

    def model():
        one_site(numpyro.sample("x", site), Y)

    noncentred = numpyro.handlers.reparam(model, config={"x": DiffusionReparam()})
    assert NormalReference(noncentred, (), {}, "auto").charts == {"x": "the model's own"}
