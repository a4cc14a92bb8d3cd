"""Where TemperedSMC begins: at draws of the priors where they are exact, else at a normal distribution, told."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from measured_errors import check_islands
from scipy.stats import cauchy, norm
from slice_cases import STANDARD_NORMAL
from tempered_cases import check_evidence, finished

from numpyro_diffusion.infer import TemperedSMC
from numpyro_diffusion.model.reference import NormalReference


def heavy_tails(y):
    """One of y = (12, 11) has its place in the prior's tail, or their noise is large."""
    x = numpyro.sample("x", STANDARD_NORMAL)
    log_v = numpyro.sample("log_v", dist.Normal(0.0, 1.5))
    c = numpyro.sample("c", dist.Cauchy(0.0, 1.0))
    numpyro.sample("y", dist.Normal(c + x, jnp.exp(log_v)), obs=y)


def below(y):
    """z depends on x, and y on z alone."""
    z = numpyro.sample("z", dist.Normal(numpyro.sample("x", STANDARD_NORMAL), 2.0))
    numpyro.sample("y", dist.Normal(z, 0.5), obs=y)


def heavy_tails_below(y):
    x = numpyro.sample("x", STANDARD_NORMAL)
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    c = numpyro.sample("c", dist.Cauchy(x, 1.0))
    numpyro.sample("y", dist.Normal(x + c, scale), obs=y)


def positive(y):
    scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
    numpyro.sample("y", dist.Normal(numpyro.sample("x", STANDARD_NORMAL), scale), obs=y)


def scaled(y):
    with numpyro.handlers.scale(scale=2.0):
        shift = numpyro.sample("shift", dist.Normal(1.0, 1.0))
    numpyro.sample("y", dist.Normal(numpyro.sample("x", STANDARD_NORMAL) + shift, 1.0), obs=y)


def masked(y):
    with numpyro.handlers.mask(mask=jnp.array(True)):
        shift = numpyro.sample("shift", dist.Normal(1.0, 1.0))
    numpyro.sample("y", dist.Normal(numpyro.sample("x", STANDARD_NORMAL) + shift, 1.0), obs=y)


def beside_one_below(y):
    """s is above y alone; w depends on what depends on x."""
    s = numpyro.sample("s", dist.HalfCauchy(1.0))
    z = numpyro.sample("z", dist.Normal(2 * numpyro.sample("x", STANDARD_NORMAL), 0.5))
    w = numpyro.sample("w", dist.Normal(z, 0.3))
    numpyro.sample("y", dist.Normal(w, s + 0.1), obs=y)


def heavy_tails_beside_one_below(y):
    """The same, but for z between x and y, which x's guidance follows."""
    z = numpyro.sample("z", dist.Normal(numpyro.sample("x", STANDARD_NORMAL), 0.5))
    log_v = numpyro.sample("log_v", dist.Normal(0.0, 1.5))
    c = numpyro.sample("c", dist.Cauchy(0.0, 1.0))
    numpyro.sample("y", dist.Normal(c + z, jnp.exp(log_v)), obs=y)


def beside_a_scaled_one(y):
    with numpyro.handlers.scale(scale=2.0):
        shift = numpyro.sample("shift", dist.Normal(1.0, 1.0))
    c = numpyro.sample("c", dist.Cauchy(0.0, 1.0))
    numpyro.sample("y", dist.Normal(numpyro.sample("x", STANDARD_NORMAL) + shift + c, 1.0), obs=y)


CASES = {  # and which sites begin at draws of their priors, guided and not
    "heavy tails": (heavy_tails, {"log_v", "c"}, {"log_v", "c"}),
    "positive": (positive, {"scale"}, {"scale"}),
    "below": (below, set(), {"z"}),
    "heavy tails below": (heavy_tails_below, {"scale"}, {"scale", "c"}),
    "beside one below": (beside_one_below, {"s"}, {"s", "z", "w"}),
    "scaled": (scaled, set(), set()),
    "beside a scaled one": (beside_a_scaled_one, {"c"}, {"c"}),
    "masked": (masked, set(), set()),
}


@pytest.mark.parametrize("name", CASES)
def test_the_two_parts_are_the_log_likelihood_and_it_is_known_which_priors_can_be_drawn_from(name):
    model, guided, unguided = CASES[name]
    for guidance, expected in (("auto", guided), (None, unguided)):
        reference = NormalReference(model, (2.0,), {}, guidance)
        assert reference.prior_drawn == expected
        u = reference.prior_draw(jax.random.key(1))
        log_prior, rest = reference.log_prior_and_rest(u)
        np.testing.assert_allclose(log_prior + rest, reference.log_likelihood(u), rtol=1e-5, atol=1e-5)


def test_the_part_of_the_priors_is_their_density_over_that_of_standard_normals():
    reference = NormalReference(positive, (2.0,), {}, None)
    u = reference.prior_draw(jax.random.key(1))
    log_scale = float(u["scale"])  # unconstrained: HalfCauchy of exp(u), with its Jacobian
    wanted = np.log(2 * cauchy.pdf(np.exp(log_scale))) + log_scale - norm.logpdf(log_scale)
    np.testing.assert_allclose(reference.log_prior_and_rest(u)[0], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "variance"),
    [(heavy_tails, 1.0), (heavy_tails_beside_one_below, 1.25)],
    ids=["beside x", "beside a site below x"],
)
def test_the_evidence_beside_a_prior_with_heavy_tails_is_that_of_quadrature(model, variance, recwarn):
    """Beside x it was -9.24 +- .26 from a normal start."""
    y = np.array([12.0, 11.0], np.float32)
    smc = finished(model, y, num_particles=512)
    assert not recwarn.list
    # Over x by the covariance v + variance of y, over c and log v by a grid.
    c, log_v = np.linspace(-60, 60, 2401)[:, None], np.linspace(-8, 8, 801)
    v = np.exp(2 * log_v)
    mean, spread, shared = y.mean() - c, np.ptp(y) ** 2 / 2, v + 2 * variance
    log_likelihood = -0.5 * (2 * mean**2 / shared + spread / v + np.log(shared) + np.log(v)) - np.log(2 * np.pi)
    weight = np.exp(log_likelihood) * cauchy.pdf(c) * norm.pdf(log_v, 0, 1.5)
    check_evidence(smc, np.log(weight.sum() * 0.05 * 0.02), refused=-9.24)
    check_islands(smc, lambda samples: samples["c"], (weight * c).sum() / weight.sum(), refused=0.0)


def test_a_site_below_a_diffusion_begins_at_its_own_prior():
    smc = finished(below, 3.0, guidance=None)
    variance = 1 + 4 + 0.25
    check_evidence(smc, norm.logpdf(3.0, 0, np.sqrt(variance)), refused=0.0)
    check_islands(smc, lambda samples: samples["z"], 3 * 5 / variance, refused=0.0)
    check_islands(smc, lambda samples: samples["x"], 3 / variance, refused=0.0)


def test_heavy_tails_in_which_no_particle_begins_are_told():
    smc = TemperedSMC(heavy_tails_below, num_particles=16, num_islands=1, progress_bar=False)
    told = r"The prior of the sites \['c'\] has much heavier tails than a normal.*function of a standard normal one"
    with pytest.warns(UserWarning) as caught:
        smc.run(jax.random.key(0), 2.0)
    assert any(re.match(told, str(one.message)) for one in caught)
