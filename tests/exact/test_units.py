"""Diffusion sites inside of transforms: every engine draws the posterior in the data's units, against quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import gaussian_moments, linear_posterior
from guide_cases import untrained
from measured_errors import of_chains, of_islands, of_resampled, of_weighted
from numpyro.distributions import transforms
from numpyro.handlers import reparam
from numpyro.infer import HMC, MCMC, CustomGibbs, Gibbs
from unit_cases import AFFINE, CASES, NUMBER

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import GaussianFactor, TiltedChain
from numpyro_diffusion.infer import (
    AutoDiffusionGuide,
    DiffusionGibbs,
    DiffusionHMC,
    DiffusionReparam,
    EllipticalSlice,
    TemperedSMC,
    TwistedSMC,
)

KEY = jax.random.key(0)
LIMIT = 4.0  # standard errors


def check(found, wanted, refused):
    """Within 4 errors of what is exact, and not within 8 of the prior's."""
    assert (np.abs(found.value - wanted) <= LIMIT * found.error).all(), (found, wanted)
    assert (np.abs(refused - wanted) > 2 * LIMIT * found.error).any(), (found, wanted, refused)


class Together:
    """Several cases as the sites of one model, each with its own datum: one compiled engine draws them all."""

    def __init__(self, *names):
        self.cases = {name: CASES[name] for name in names}
        self.y = {name: case.y for name, case in self.cases.items()}
        self.exact = {name: case.quadrature() for name, case in self.cases.items()}
        self.log_evidence = sum(log_evidence for log_evidence, _, _ in self.exact.values())

    def model(self, y=None):
        for name, case in self.cases.items():
            x = numpyro.sample(name, case.prior)
            numpyro.sample(f"{name}_y", case.likelihood(x), obs=None if y is None else y[name])

    def features(self, samples):
        """Site name -> those of its case."""
        return {name: case.features(samples[name]) for name, case in self.cases.items()}


def by_islands(together, twist="tempered"):
    return of_particles(TwistedSMC(together.model, 1024, 16, twist, progress_bar=False), together)


def of_particles(smc, together):
    """The draws are made of them. The evidence has no unit of x."""
    smc.run(KEY, together.y)
    assert abs(smc.log_evidence - together.log_evidence) < LIMIT * smc.log_evidence_error < 0.3
    values, log_weights = smc.get_weighted_samples()
    found = {name: of_islands(x, log_weights, 16) for name, x in together.features(values).items()}
    for name, x in together.features(smc.get_samples()).items():
        drawn = of_resampled(x, found[name])
        assert (np.abs(drawn.value - found[name].value) < LIMIT * drawn.error).all()
    return found


def by_chains(kernel, together):
    mcmc = MCMC(kernel, num_warmup=200, num_samples=500, num_chains=8, chain_method="vectorized", progress_bar=False)
    mcmc.run(KEY, together.y)
    features = together.features(mcmc.get_samples(group_by_chain=True))
    return {name: of_chains(x.reshape(8, 500, -1)) for name, x in features.items()}


def by_reparam(together):
    model = reparam(together.model, config={name: DiffusionReparam() for name in together.cases})
    return by_chains(HMC(model, trajectory_length=1.5), together)


def by_guide(together):
    """Its weights are exact, trained or not."""
    guide = AutoDiffusionGuide(together.model)
    weighted = guide.importance_weights(KEY, untrained(guide, together.y), 4000, together.y)
    assert abs(weighted.log_evidence - together.log_evidence) < 0.15
    return {name: of_weighted(x, weighted.log_weights) for name, x in together.features(weighted.samples).items()}


ENGINES = {
    "TwistedSMC": (by_islands, ("affine", "exp", "softplus")),
    "TwistedSMC of vectors": (by_islands, ("whitening", "simplex", "interval")),
    "TwistedSMC gaussian": (lambda together: by_islands(together, "gaussian"), ("affine", "exp", "whitening")),
    "DiffusionGibbs": (
        lambda together: by_chains(DiffusionGibbs(together.model, num_particles=64, twist="none"), together),
        ("affine", "exp"),
    ),
    "DiffusionGibbs on bounded supports": (
        lambda together: by_chains(DiffusionGibbs(together.model, num_particles=64, twist="none"), together),
        ("interval", "simplex"),
    ),
    "EllipticalSlice": (lambda together: by_chains(EllipticalSlice(together.model), together), ("affine", "exp")),
    "EllipticalSlice on bounded supports": (
        lambda together: by_chains(EllipticalSlice(together.model), together),
        ("interval", "simplex"),
    ),
    "DiffusionReparam": (by_reparam, ("affine", "exp", "simplex")),
    "DiffusionHMC": (
        lambda together: by_chains(DiffusionHMC(together.model), together),
        ("exp", "interval", "simplex"),
    ),
    "TemperedSMC": (
        lambda together: of_particles(
            TemperedSMC(together.model, num_particles=256, num_islands=16, progress_bar=False), together
        ),
        ("exp", "interval", "simplex"),
    ),
    "AutoDiffusionGuide": (by_guide, ("affine", "exp")),
    "AutoDiffusionGuide on bounded supports": (by_guide, ("interval", "simplex")),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_draws_the_posterior_in_the_data_s_units(engine):
    draw, names = ENGINES[engine]
    together = Together(*names)
    found = draw(together)
    for name in names:
        _, posterior, prior = together.exact[name]
        check(found[name], posterior, prior)


# A transform that depends on another latent site ------------------------------------------------------


def shifted_model(y=None):
    """Shift ~ N(0, 2^2), x = 100 + shift + 5 s, y ~ N(x, 1): x and the shift are Gaussian together."""
    shift = numpyro.sample("shift", dist.Normal(0.0, 2.0))
    x = numpyro.sample("x", dist.TransformedDistribution(NUMBER, transforms.AffineTransform(100.0 + shift, 5.0)))
    numpyro.sample("y", dist.Normal(x[0], 1.0), obs=y)


def shifted_moments(y):
    """Posterior and prior means of (x, shift) and their squares."""
    mean, variance = (moments[0, 0] for moments in gaussian_moments(NUMBER))
    before = np.array([100.0 + 5 * mean, 0.0])
    covariance = np.array([[25 * variance + 4.0, 4.0], [4.0, 4.0]])
    _, after, left = linear_posterior(before, covariance, np.array([[1.0, 0.0]]), np.eye(1), np.array([y]))
    return [np.concatenate([m, m**2 + np.diag(c)]) for m, c in ((after, left), (before, covariance))]


def shifted_features(samples):
    x, shift = np.asarray(samples["x"], float)[..., 0], np.asarray(samples["shift"], float)
    return np.stack([x, shift, x**2, shift**2], -1)


@pytest.mark.parametrize(
    "kernel",
    [
        lambda: DiffusionGibbs(HMC(shifted_model, trajectory_length=1.5), num_particles=16),
        lambda: HMC(reparam(shifted_model, config={"x": DiffusionReparam()}), trajectory_length=1.5),
    ],
    ids=["DiffusionGibbs", "DiffusionReparam"],
)
def test_a_transform_may_depend_on_another_latent_site(kernel):
    """The other site moves x with the state held: no Jacobian, and the joint posterior is right."""
    mcmc = MCMC(kernel(), num_warmup=200, num_samples=1000, num_chains=8, chain_method="vectorized", progress_bar=False)
    mcmc.run(KEY, 115.0)
    found = of_chains(shifted_features(mcmc.get_samples(group_by_chain=True)))
    check(found, *shifted_moments(115.0))


def test_islands_draw_the_other_site_and_transform_with_it():
    smc = TwistedSMC(shifted_model, 64, 400, progress_bar=False)
    smc.run(KEY, 108.0)
    values, log_weights = smc.get_weighted_samples()
    check(of_islands(shifted_features(values), log_weights, 400), *shifted_moments(108.0))


def test_blocks_of_gibbs_refuse_a_transform_that_depends_on_one_of_them():
    """They are told the value of x once for a sweep, in which another block may change it."""
    kernel = DiffusionGibbs(Gibbs([(HMC(shifted_model), ["shift"])]))
    wanted = r"a transform at diffusion site 'x' that depends on no other latent site, beside Gibbs; got .*shift"
    with pytest.raises(ValueError, match=wanted):
        kernel.init(KEY, 0, None, (115.0,), {})


def test_blocks_of_gibbs_see_the_data_s_units():
    """A block of the user's own is handed x as the model has it, near 100, not the state near 0."""

    def block(rng_key, gibbs_sites, hmc_sites):
        return {"seen": hmc_sites["x"][0]}

    def model(y):
        numpyro.sample("seen", dist.Normal(0.0, 1000.0))
        numpyro.sample("scale", dist.HalfNormal(1.0))
        x = numpyro.sample("x", dist.TransformedDistribution(NUMBER, AFFINE))
        numpyro.sample("y", dist.Normal(x[0], 4.0), obs=y)

    of_scale = HMC(model, num_steps=1, trajectory_length=None)
    blocks = Gibbs([(CustomGibbs(block), ["seen"]), (of_scale, ["scale"])])
    kernel = DiffusionGibbs(blocks, num_particles=4, twist="none")
    mcmc = MCMC(kernel, num_warmup=2, num_samples=5, progress_bar=False)
    mcmc.run(KEY, 112.0)
    samples = mcmc.get_samples()
    np.testing.assert_allclose(samples["seen"], samples["x"][:, 0], rtol=1e-6)


# Where a chain starts ---------------------------------------------------------------------------------


def test_a_start_is_in_the_data_s_units():
    case = CASES["exp"]
    start = {"x": jnp.full((3, 1), 6.5)}
    kernel = DiffusionGibbs(case.model, num_particles=4, twist="none")
    state = kernel.init(jax.random.split(KEY, 3), 0, start, (case.y,), {})
    x = jax.vmap(kernel.postprocess_fn((case.y,), {}))(state.z)["x"]
    np.testing.assert_allclose(x, start["x"], rtol=1e-5)


def test_a_start_outside_of_the_support_or_the_shape_is_named():
    case = CASES["exp"]
    kernel = DiffusionGibbs(case.model, num_particles=4)
    with pytest.raises(ValueError, match=r"the state of init_params\['x'\], which must lie in the site's support"):
        kernel.init(KEY, 0, {"x": jnp.array([-1.0])}, (case.y,), {})
    simplex = CASES["simplex"]
    with pytest.raises(ValueError, match=r"init_params\['x'\] of shape \(3,\) for each chain; got shape \(2,\)"):
        DiffusionGibbs(simplex.model, num_particles=4).init(KEY, 0, {"x": jnp.ones(2) / 2}, (simplex.y,), {})
    with pytest.raises(ValueError, match=r"a transform at site 'x' that depends on no other .*; got .*'shift'"):
        DiffusionGibbs(shifted_model, num_particles=4).init(KEY, 0, {"x": jnp.ones(1)}, (115.0,), {})


# Plates -----------------------------------------------------------------------------------------------


def test_elements_of_a_plate_are_filtered_by_themselves_and_have_a_transform_each():
    """Rows have locations of their own; elementwise transforms keep them apart, as is proved from the operations."""
    rows = transforms.AffineTransform(jnp.array([[100.0], [-50.0]]), 5.0)
    y = np.array([112.0, -53.0])

    def model(y):
        with numpyro.plate("n", 2):
            x = numpyro.sample("x", dist.TransformedDistribution(NUMBER.expand((2,)), rows))
            numpyro.sample("y", dist.Normal(x[:, 0], 4.0), obs=y)

    smc = TwistedSMC(model, 512, 16, "gaussian", progress_bar=False)
    smc.run(KEY, jnp.asarray(y))
    assert smc.result.split.element_shape == (2,)
    mean, variance = (moments[0, 0] for moments in gaussian_moments(NUMBER))
    for element, loc in enumerate((100.0, -50.0)):
        before = np.array([loc + 5 * mean])
        log_evidence, after, _ = linear_posterior(
            before, np.array([[25 * variance]]), np.eye(1), 16 * np.eye(1), y[element : element + 1]
        )
        values, log_weights = smc.get_weighted_samples()
        check(of_islands(values["x"][:, element], log_weights[:, element], 16), after, before)
        assert abs(smc.log_evidence_by_element[element] - log_evidence) < 0.05


# Guidance, ArviZ --------------------------------------------------------------------------------------


def test_a_tilted_chain_takes_the_observation_in_the_state_s_units():
    """As the page on units has it: the weights are those of the data, and x the transform of x^0."""
    case = CASES["affine"]
    factor = GaussianFactor((case.y - 100.0) / 5.0, 4.0 / 5.0, noised=True)
    chain = TiltedChain(case.prior.base_dist.chain, factor)

    @jax.jit
    def weighted(key):
        paths = chain.sample(key, (4000,))
        log_weights = chain.log_weight(paths, lambda state: case.likelihood(case.transform(state)).log_prob(case.y))
        return case.transform(paths[:, 0]), log_weights

    x, log_weights = weighted(KEY)
    log_evidence, posterior, prior = case.quadrature()
    check(of_weighted(case.features(x), log_weights), posterior, prior)
    assert abs(jax.nn.logsumexp(log_weights) - np.log(4000) - log_evidence) < 0.1


def test_arviz_drops_the_noises_of_a_simplex():
    draws = {"x": np.full((10, 3), 1 / 3), "x_noise": np.zeros((10, 4, 2)), "y": np.zeros(10), "y_noise": np.zeros(10)}
    assert set(nd.to_arviz(draws)["posterior"].data_vars) == {"x", "y", "y_noise"}
