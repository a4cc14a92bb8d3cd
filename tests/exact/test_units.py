"""Diffusion sites inside of transforms: every engine draws the posterior in the data's units, against quadrature."""

import jax
import numpy as np
import pytest
from guide_cases import untrained
from measured_errors import of_chains, of_islands, of_resampled, of_weighted
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS
from unit_cases import CASES

from numpyro_diffusion.infer import AutoDiffusionGuide, DiffusionGibbs, DiffusionReparam, EllipticalSlice, TwistedSMC

KEY = jax.random.key(0)
LIMIT = 4.0  # standard errors


def check(found, wanted, refused):
    """Within 4 errors of what is exact, and not within 8 of the prior's."""
    assert (np.abs(found.value - wanted) <= LIMIT * found.error).all(), (found, wanted)
    assert (np.abs(refused - wanted) > 2 * LIMIT * found.error).any(), (found, wanted, refused)


def by_islands(case, twist="tempered"):
    """Of the particles; the draws are made of them. The evidence has no unit of x."""
    smc = TwistedSMC(case.model, 512, 16, twist, progress_bar=False)
    smc.run(KEY, case.y)
    assert abs(smc.log_evidence - case.quadrature()[0]) < LIMIT * smc.log_evidence_error < 0.3
    values, log_weights = smc.get_weighted_samples()
    particles = of_islands(case.features(values["x"]), log_weights, 16)
    drawn = of_resampled(case.features(smc.get_samples()["x"]), particles)
    assert (np.abs(drawn.value - particles.value) < LIMIT * drawn.error).all()
    return particles


def by_chains(kernel, case):
    mcmc = MCMC(kernel, num_warmup=200, num_samples=500, num_chains=8, chain_method="vectorized", progress_bar=False)
    mcmc.run(KEY, case.y)
    x = mcmc.get_samples(group_by_chain=True)["x"]
    return of_chains(case.features(x).reshape(8, 500, -1))


def by_guide(case):
    """Its weights are exact, trained or not."""
    guide = AutoDiffusionGuide(case.model)
    weighted = guide.importance_weights(KEY, untrained(guide, case.y), 4000, case.y)
    assert abs(weighted.log_evidence - case.quadrature()[0]) < 0.15
    return of_weighted(case.features(weighted.samples["x"]), weighted.log_weights)


ENGINES = {
    "TwistedSMC": by_islands,
    "TwistedSMC gaussian": lambda case: by_islands(case, "gaussian"),
    "DiffusionGibbs": lambda case: by_chains(DiffusionGibbs(case.model, num_particles=32), case),
    "EllipticalSlice": lambda case: by_chains(EllipticalSlice(case.model), case),
    "DiffusionReparam": lambda case: by_chains(NUTS(reparam(case.model, config={"x": DiffusionReparam()})), case),
    "AutoDiffusionGuide": by_guide,
}
PAIRS = [
    *((name, engine) for name in ("affine", "exp") for engine in ENGINES),
    *((name, "TwistedSMC") for name in CASES if name not in ("affine", "exp")),
    ("whitening", "TwistedSMC gaussian"),
    ("simplex", "DiffusionReparam"),
]


@pytest.mark.parametrize(("name", "engine"), PAIRS)
def test_an_engine_draws_the_posterior_in_the_data_s_units(name, engine):
    case = CASES[name]
    _, posterior, prior = case.quadrature()
    check(ENGINES[engine](case), posterior, prior)
