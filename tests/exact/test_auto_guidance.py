"""Guidance made of a model: log w is flat where it can be, the evidence is exact always, and what guides is said.

The prior is that of independent Gaussian coordinates with its exact denoiser, whose errors are known. Where each
number sees one coordinate the guided chain is then the posterior's own, and log w the log evidence, whatever the
noises. Noises are drawn afresh: no Markov chain is in between.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import density_on_grid, gaussian_moments, linear_posterior
from measured_errors import check, of_chains, of_independent, of_weighted
from numpyro.distributions import transforms as npt
from numpyro.infer import MCMC
from slice_cases import SCALED_DATA, check_scale_posterior, unknown_scale

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import ErrorCovariance
from numpyro_diffusion.infer import DiffusionHMC, DiffusionReparam
from numpyro_diffusion.model.automatic import AutoGuidance
from numpyro_diffusion.model.reference import NormalReference

KERNEL = nd.GaussianKernel(nd.schedules.log_snr(6, 0.1, 300.0), parameterization="x0", variance="denoiser")
SIGNAL, NOISE = (np.asarray(part, float) for part in (KERNEL.schedule.alpha_bar**0.5, KERNEL.schedule.noise_variance))


def denoiser(params, x_t, t, context):
    mean, gain, variance, signal = params
    mean = mean if context is None else mean + context
    return mean + gain[t] * (x_t - signal[t][..., None] * mean), jnp.broadcast_to(variance[t], x_t.shape)


def independent(mean, variance, *, has_errors=True, **options):
    """N(mean, diag(variance)) with its exact denoiser, and with the covariance of its errors."""
    mean, variance = np.asarray(mean, float), np.asarray(variance, float)
    gain = variance * SIGNAL[:, None] / (SIGNAL[:, None] ** 2 * variance + NOISE[:, None])
    left = variance * (1 - SIGNAL[:, None] * gain)
    params = tuple(jnp.asarray(part, float) for part in (mean, gain, left, SIGNAL))
    context_shape = mean.shape if "context" in options else None
    prior = nd.Diffusion(KERNEL, nd.Transition(denoiser, params, mean.shape, context_shape), **options)
    return known(prior, left) if has_errors else prior


def known(prior, left):
    prior = copy.copy(prior)
    prior.errors = ErrorCovariance(jnp.zeros((*left[1:].shape, 1)), jnp.asarray(left[1:], float))
    return prior


def prior(**options):
    return independent([0.5, -0.3, 0.2], [1.0, 0.5, 2.0], **options)


def moments(x):
    mean, variance = gaussian_moments(x)
    return np.asarray(mean[0], float), np.diag(np.asarray(variance[0], float))


def weigher(model, args, guidance="auto"):
    """A function of the other unknowns, unconstrained: values of x at fresh noises, and log L there."""
    reference = NormalReference(model, args, {}, guidance)
    shapes = jax.eval_shape(reference.prior_draw, jax.random.key(0))

    def one(key, others):
        keys = dict(zip(sorted(shapes), jax.random.split(key, len(shapes)), strict=True))
        u = {name: jax.random.normal(keys[name], like.shape, like.dtype) for name, like in shapes.items()} | others
        return reference.constrain(u)["x"], reference.log_likelihood(u)

    compiled = jax.jit(jax.vmap(one, (0, None)))

    def weigh(num_draws=1000, **others):
        values = {name: jnp.asarray(value, shapes[name].dtype) for name, value in others.items()}
        found = compiled(jax.random.split(jax.random.key(3), num_draws), values)
        return [np.asarray(part, float) for part in found]

    return weigh, reference.charts["x"]


def check_flat(found, mean, covariance, matrix, noise, y, *, spread=0.05, to_state=lambda x: x):
    """Weights of a spread of at most so many nats, whose mean is the evidence, and draws of the posterior's mean."""
    x, log_weights = found
    evidence, wanted, _ = linear_posterior(mean, covariance, matrix, noise, y)
    assert log_weights.std() < spread
    peak = log_weights.max()
    ratio = of_independent(np.exp(log_weights - peak))
    # Single precision: some digits of log w are lost in sums of squares.
    assert abs(np.log(ratio.value) + peak - evidence) < 5 * ratio.error / ratio.value + 0.002
    check(of_weighted(to_state(x).reshape(len(x), -1), log_weights), wanted, refused=mean)


# Nothing else is unknown -------------------------------------------------------------------------------------------

Y = np.array([3.0, -2.5, 5.0], np.float32)
SOME = np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]], np.float32)


def one_site(x, y):
    numpyro.sample("y", dist.Normal(jnp.asarray(SOME) @ x + 1.0, 0.5).to_event(1), obs=y[:2])


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


EYE = np.eye(3)
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


# What is not linear, and what cannot be linearised -----------------------------------------------------------------


def test_the_square_of_x_is_linearised_where_it_has_a_slope():
    """And the evidence is that of quadrature."""
    site = independent([2.0], [0.2])

    def model(y):
        x = numpyro.sample("x", site)
        numpyro.sample("y", dist.Normal(x[0] ** 2, 1.0), obs=y)

    weigh, chart = weigher(model, (5.0,))
    assert "linearised near the mode of the posterior" in chart
    weights = np.exp(weigh(4000)[1])
    assert weights.std() < 0.3 * weights.mean()
    grid = np.linspace(-9, 9, 1201)
    likelihood = np.exp(-0.5 * (5.0 - grid**2) ** 2) / np.sqrt(2 * np.pi)
    check(of_independent(weights), (density_on_grid(site, grid) * likelihood).sum() * (grid[1] - grid[0]))


def power(site, y):
    x = numpyro.sample("x", site)
    with numpyro.handlers.scale(scale=2.0):
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def log_normal(site, y):
    numpyro.sample("y", dist.LogNormal(numpyro.sample("x", site), 0.5).to_event(1), obs=jnp.exp(y))


EXACT = {  # the noise's variance, and what the density is over that of Normal numbers
    "a power of a density": (power, 0.125, 3 * (np.log(0.125) - 2 * np.log(0.25) - np.log(2 * np.pi)) / 2),
    "a transform": (log_normal, 0.25, -Y.sum()),
}


@pytest.mark.parametrize("name", EXACT)
def test_numbers_that_are_normal_but_for_a_factor_or_a_transform_guide_exactly(name):
    likelihood, noise, more = EXACT[name]
    site = prior()

    def model(y):
        likelihood(site, y)

    weigh, _ = weigher(model, (Y,))
    x, log_weights = weigh()
    check_flat((x, log_weights - more), *moments(site), EYE, noise * EYE, Y)


NUMBERS = {  # of one x ~ N(2, .2), what is seen
    "counts": lambda x: (dist.Poisson(3 * jnp.exp(x)), 90.0),
    "counts, wider": lambda x: (dist.NegativeBinomial2(3 * jnp.exp(x), 4.0), 90.0),
    "successes": lambda x: (dist.Binomial(40, logits=x), 28.0),
    "positive": lambda x: (dist.Gamma(5.0, 5.0 * jnp.exp(-x)), 25.0),
    "Student's t": lambda x: (dist.StudentT(4.0, x, 0.3), 2.6),
    "Cauchy": lambda x: (dist.Cauchy(x, 0.3), 2.3),
    "Laplace": lambda x: (dist.Laplace(x, 0.1), 2.9),
    "logistic": lambda x: (dist.Logistic(x, 0.1), 3.2),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_not_normal_guide_and_the_evidence_is_that_of_quadrature(name):
    site = independent([2.0], [0.2])
    of = NUMBERS[name]

    def model():
        fn, y = of(numpyro.sample("x", site)[0])
        numpyro.sample("y", fn, obs=y)

    weigh, chart = weigher(model, ())
    assert chart.startswith("guided by 'y', 1 numbers; linearised near the mode of the posterior")
    log_weights = weigh(4000)[1]
    assert log_weights.std() < 0.5 * weigher(model, (), None)[0](4000)[1].std()
    grid = np.linspace(-6, 8, 1001)
    fn, y = of(jnp.asarray(grid))
    wanted = (density_on_grid(site, grid) * np.exp(np.asarray(fn.log_prob(y), float))).sum() * (grid[1] - grid[0])
    check(of_independent(np.exp(log_weights)), wanted)


def test_the_elements_of_a_plate_are_linearised_each_at_its_own_mode():
    site, y = prior(), np.array([[1, 2, 3], [5, 0, 0], [0, 1, 20]], float)

    def model(y):
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", site)
            numpyro.sample("y", dist.Poisson(jnp.exp(x)).to_event(1), obs=y)

    auto = AutoGuidance(model).bind((y,), {})
    found = np.asarray(auto.sites["x"].states["x"], float)
    (mean, covariance), x = moments(site), found
    away = (np.exp(x) - y) + (x - mean) / np.diag(covariance)  # minus the gradient of the log posterior
    # The prior's moments are those of 65 draws, and of its noisiest step.
    assert np.abs(away / (np.exp(x) + 1 / np.diag(covariance))).max() < 0.3
    assert weigher(model, (y,))[0]()[1].std() < 0.1 * weigher(model, (y,), None)[0]()[1].std()


def test_guidance_that_leads_away_from_the_posterior_is_not_taken():
    """A ring: made at one of its points, guidance knows one tangent."""
    reference, plain = (NormalReference(ring, (3.0,), {}, guidance) for guidance in ("auto", None))
    assert reference.charts["x"].startswith("the prior's: 'y', linearised near the mode: further from the posterior")
    u = plain.prior_draw(jax.random.key(0))
    np.testing.assert_array_equal(reference.log_likelihood(u), plain.log_likelihood(u))


def ring(radius):
    x = numpyro.sample("x", independent(np.zeros(2), np.full(2, 4.0)))
    numpyro.sample("y", dist.Normal(jnp.sqrt((x**2).sum()), 0.2), obs=radius)


def exponent(y):
    x = numpyro.sample("x", prior())
    numpyro.sample("y", dist.Poisson(jnp.exp(x)).to_event(1), obs=y)


@pytest.mark.parametrize(("model", "y"), [(ring, 3.0), (exponent, np.array([1.0, 0.0, 9.0], np.float32))])
def test_arguments_that_are_traced_linearise_and_choose_as_known_ones_do(model, y):
    args = (jnp.asarray(y),)
    mcmc = MCMC(DiffusionHMC(model), num_warmup=0, num_samples=5, jit_model_args=True, progress_bar=False)
    mcmc.run(jax.random.key(0), *args)
    state = mcmc.last_state
    reference = NormalReference(model, args, {}, "auto")
    np.testing.assert_allclose(state.log_likelihood, reference.log_likelihood(state.z), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(mcmc.get_samples()["x"][-1], reference.constrain(state.z)["x"], rtol=1e-3, atol=1e-2)


def classes(x):
    numpyro.sample("y", dist.Categorical(logits=x), obs=1)


def nothing(x):
    numpyro.factor("outside", 0.0)


def vectors(x):
    numpyro.sample("y", dist.Multinomial(5, jax.nn.softmax(x)), obs=jnp.array([3, 2, 0]))


def no_slope(x):
    numpyro.sample("y", dist.Normal(jnp.round(x), 1.0).to_event(1), obs=Y)


def two_diffusions(x):
    other = numpyro.sample("other", prior())
    numpyro.sample("y", dist.Normal(x + other, 1.0).to_event(1), obs=Y)


def nested(x):
    numpyro.sample("below", prior(context=x, has_errors=False))


def discrete(x):
    numpyro.sample("k", dist.Bernoulli(0.5))


NOT_GUIDED = {
    "classes": (classes, "the prior's: 'y' is CategoricalLogits"),
    "vectors": (vectors, "the prior's: 'y' is MultinomialProbs"),
    "nothing is seen": (nothing, "the prior's: no other site depends on it"),
    "a step function": (no_slope, "the prior's: 'y', at 0: their slope is 0"),
    "two diffusions": (two_diffusions, "the prior's: 'y' depends on 'other' too"),
    "a diffusion below": (nested, "the prior's: Expected a distribution of diffusion site 'below' that depends on no"),
}


@pytest.mark.parametrize("name", NOT_GUIDED)
def test_a_site_that_cannot_be_guided_keeps_the_noises_of_its_prior_and_says_why(name):
    likelihood, said = NOT_GUIDED[name]
    site = prior()

    def model():
        likelihood(numpyro.sample("x", site))

    reference, plain = (NormalReference(model, (), {}, guidance) for guidance in ("auto", None))
    assert reference.charts["x"].startswith(said)
    assert plain.charts["x"] == "the prior's"
    u = plain.prior_draw(jax.random.key(0))
    np.testing.assert_array_equal(reference.log_likelihood(u), plain.log_likelihood(u))
    np.testing.assert_array_equal(reference.constrain(u)["x"], plain.constrain(u)["x"])


def test_what_is_left_out_is_said():
    site = prior()

    def model():
        x = numpyro.sample("x", site)
        one_site(x, Y)
        numpyro.sample("class", dist.Categorical(logits=x), obs=1)

    chart = NormalReference(model, (), {}, "auto").charts["x"]
    assert chart == "guided by 'y', 2 numbers; errors of the prior; left out: 'class' is CategoricalLogits"


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
        discrete(numpyro.sample("x", site))

    with pytest.raises(TypeError, match="real latent sites; got the discrete site 'k'"):
        DiffusionHMC(model).init(jax.random.key(0), 0)


def test_the_progress_bar_says_what_is_not_guided():
    site = prior()

    def model():
        classes(numpyro.sample("x", site))

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
