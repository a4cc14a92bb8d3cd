"""Finished runs of TemperedSMC, and their evidence against what is right."""

import jax

from numpyro_diffusion.infer import TemperedSMC


def finished(model, *args, num_particles=256, num_islands=8, **options):
    smc = TemperedSMC(model, num_particles=num_particles, num_islands=num_islands, progress_bar=False, **options)
    smc.run(jax.random.key(0), *args)
    return smc


def check_evidence(smc, wanted, refused=None):
    """Within five standard errors, which tell it from what is wrong."""
    assert abs(smc.log_evidence - wanted) < 5 * smc.log_evidence_error
    if refused is not None:
        assert abs(refused - wanted) > 10 * smc.log_evidence_error
