"""Elements of a plate that are independent a posteriori: each accepts on its own, and no proof means together."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import linear_posterior
from guided_cases import EYE, moments, prior
from measured_errors import check, of_chains
from numpyro.infer import MCMC

from numpyro_diffusion.guidance import ReconstructionGuidance
from numpyro_diffusion.infer import DiffusionHMC
from numpyro_diffusion.model.reference import NormalReference
from numpyro_diffusion.noise.hmc import Point, hamiltonian_move

SEEN = np.array([[True, False, True], [False, False, False], [True, True, True], [False, True, False]])
Y = np.array([[3.0, 0, -1], [0, 0, 0], [1.0, -2, 2], [0, 4.0, 0]], np.float32)


def masked(y, seen):
    with numpyro.plate("n", len(y)):
        x = numpyro.sample("x", prior())
        numpyro.sample("y", dist.StudentT(4.0, x, 0.5).mask(seen).to_event(1), obs=y)


def two_plates(y, seen):
    with numpyro.plate("n", 2, dim=-2), numpyro.plate("m", 2, dim=-1):
        x = numpyro.sample("x", prior())
        numpyro.sample("y", dist.Normal(x**2, 2.0).to_event(1), obs=y.reshape(2, 2, 3))
    numpyro.factor("constant", 1.5)


def two_sites(y, seen):
    with numpyro.plate("n", len(y)):
        total = numpyro.sample("x", prior()) + numpyro.sample("z", prior())
        numpyro.sample("y", dist.Normal(total, 1.0).to_event(1), obs=y)


APART = {"masks": masked, "two plates": two_plates, "two sites": two_sites}


@pytest.mark.parametrize("guidance", ["auto", None])
@pytest.mark.parametrize("name", APART)
def test_terms_are_the_log_likelihood_and_each_depends_on_its_element(name, guidance):
    reference = NormalReference(APART[name], (Y, SEEN), {}, guidance)
    shape = (2, 2) if name == "two plates" else (4,)
    assert reference.elements == shape
    assert reference.elements_reason == "proved from the model's operations"
    u, other = (reference.prior_draw(jax.random.key(seed)) for seed in (0, 1))
    terms, gradient = reference.terms_and_gradient(u)
    assert terms.shape == shape
    total, slope = jax.value_and_grad(reference.log_likelihood)(u)
    np.testing.assert_allclose(terms.sum(), total, rtol=1e-5, atol=1e-4)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-3), gradient, slope)
    first = (0,) * len(shape)
    changed, _ = reference.terms_and_gradient(
        {name: leaf.at[first].set(other[name][first]) for name, leaf in u.items()}
    )
    is_first = np.zeros(shape, bool)
    is_first[first] = True
    np.testing.assert_array_equal(np.asarray(changed != terms), is_first)


def coupled(y, seen):
    with numpyro.plate("n", len(y)):
        x = numpyro.sample("x", prior())
    numpyro.sample("y", dist.Normal(x.sum(0), 1.0).to_event(1), obs=y[0])


def neighbours(y, seen):
    with numpyro.plate("n", len(y)):
        x = numpyro.sample("x", prior())
        numpyro.sample("y", dist.Normal(x + x[::-1], 1.0).to_event(1), obs=y)


def unknown_noise(y, seen):
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(numpyro.sample("x", prior()), sigma).to_event(1), obs=y)


def no_plate(y, seen):
    numpyro.sample("y", dist.Normal(numpyro.sample("x", prior()), 1.0).to_event(1), obs=y[0])


TOGETHER = {
    "a sum": (coupled, "site 'y' depends on the elements of the plate together"),
    "neighbours": (neighbours, "at site 'y', rev goes over the elements of the plate"),
    "another unknown": (unknown_noise, "other sites are unknown: ['sigma']"),
    "no plate": (no_plate, "no diffusion site is in a plate"),
}


@pytest.mark.parametrize("guidance", ["auto", None])
@pytest.mark.parametrize("name", TOGETHER)
def test_elements_go_together_where_they_are_coupled_or_more_is_unknown(name, guidance):
    model, reason = TOGETHER[name]
    reference = NormalReference(model, (Y, SEEN), {}, guidance)
    assert reference.elements == ()
    assert reference.elements_reason == reason
    terms, _ = reference.terms_and_gradient(u := reference.prior_draw(jax.random.key(0)))
    np.testing.assert_allclose(terms, reference.log_likelihood(u), rtol=1e-6)


def test_elements_go_together_under_guidance_that_is_given():
    guidance = {"x": ReconstructionGuidance(lambda x: -0.5 * (x**2).sum())}
    reference = NormalReference(masked, (Y, SEEN), {}, guidance)
    assert (reference.elements, reference.elements_reason) == ((), "guidance that is given may couple them")


def test_an_element_that_is_stuck_stops_no_other():
    """The first is at the wall of a region from which every move leads out; the others are free."""

    def evaluate(z):
        inside = jnp.abs(z[:, 0] - 100.0) < 1e-6
        return Point(z, jnp.where(jnp.arange(4) == 0, jnp.where(inside, 0.0, -jnp.inf), 0.0), jnp.zeros_like(z))

    z = jnp.full((4, 3), 0.5).at[0].set(100.0)
    moved = hamiltonian_move(evaluate, jax.random.key(0), evaluate(z), jnp.asarray(0.7), jnp.asarray(2))
    np.testing.assert_array_equal(moved.accept_prob, [0.0, 1.0, 1.0, 1.0])
    np.testing.assert_array_equal(moved.is_accepted, [False, True, True, True])
    np.testing.assert_array_equal(moved.point.z[0], z[0])
    assert (moved.point.z[1:] != z[1:]).all()


def test_the_energy_errors_of_elements_add_up_to_that_of_all():
    """Of one trajectory, from the same start with the same momenta."""
    z, centre = jax.random.normal(jax.random.key(1), (3, 2)), jnp.arange(3.0)[:, None]

    def by_element(z):
        return Point(z, -((z - centre) ** 2).sum(-1), -2 * (z - centre))

    def all_together(z):
        return (point := by_element(z))._replace(log_weight=point.log_weight.sum())

    apart, together = (
        hamiltonian_move(evaluate, jax.random.key(5), evaluate(z), jnp.asarray(0.4), jnp.asarray(3)).energy_error
        for evaluate in (by_element, all_together)
    )
    assert apart.shape == (3,)
    np.testing.assert_allclose(apart.sum(), together, rtol=1e-4)


# The kernel --------------------------------------------------------------------------------------------------------


def squares(y):
    """Far from Normal, so that steps are small."""
    with numpyro.plate("n", len(y)):
        x = numpyro.sample("x", prior())
        numpyro.sample("y", dist.Normal(x + 0.5 * jnp.sin(3 * x), 0.3).to_event(1), obs=y)


def run(model, *args, **options):
    settings = {"num_warmup": 150, "num_samples": 200, "num_chains": 2, "chain_method": "vectorized"} | options
    mcmc = MCMC(DiffusionHMC(model), progress_bar=False, **settings)
    mcmc.run(jax.random.key(0), *args, extra_fields=("accept_prob", "num_steps", "by_element"))
    return mcmc


def test_the_step_size_does_not_fall_with_the_number_of_elements():
    few, many = (run(squares, np.tile(np.float32([1.0, -0.5, 0.3]), (count, 1))) for count in (1, 64))
    small, large = (float(mcmc.last_state.step_size.mean()) for mcmc in (few, many))
    assert large > 0.8 * small  # of a trajectory that is accepted as a whole it is a third
    assert many.last_state.mean_accept_prob.shape == (2, 64)
    assert 0.7 < many.last_state.mean_accept_prob.mean() < 0.9
    assert many.last_state.by_element.shape == (2, 64)
    np.testing.assert_allclose(many.last_state.by_element.sum(-1), many.last_state.log_likelihood, rtol=1e-5)


@pytest.mark.optimised
def test_each_element_has_its_own_posterior():
    def model(y, seen):
        with numpyro.plate("n", 4):
            x = numpyro.sample("x", prior())
            numpyro.sample("y", dist.Normal(x, 0.5).mask(seen).to_event(1), obs=y)

    mcmc = run(model, Y, SEEN, num_samples=400)
    assert mcmc.sampler.elements_reason == "proved from the model's operations"
    mean, covariance = moments(prior())
    exact = [
        linear_posterior(mean, covariance, EYE[s], 0.25 * np.eye(s.sum()), y[s]) for s, y in zip(SEEN, Y, strict=True)
    ]
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["x"], float)
    check(of_chains(draws), np.stack([wanted for _, wanted, _ in exact]), refused=np.tile(mean, (4, 1)))
    variances = np.stack([np.diag(spread) for _, _, spread in exact])
    means = np.stack([wanted for _, wanted, _ in exact])
    check(of_chains((draws - means) ** 2), variances)


def test_arguments_that_are_traced_go_by_element_too():
    mcmc = run(squares, jnp.asarray(Y), num_samples=3, num_warmup=0, num_chains=1)
    kernel = DiffusionHMC(squares)
    traced = MCMC(kernel, num_warmup=0, num_samples=3, jit_model_args=True, progress_bar=False)
    traced.run(jax.random.key(0), jnp.asarray(Y))
    assert traced.last_state.by_element.shape == mcmc.last_state.by_element.shape == (4,)


def test_the_progress_bar_says_which_element_moves_least():
    mcmc = run(squares, Y, num_samples=5, num_warmup=5, num_chains=1)
    said = mcmc.sampler.get_diagnostics_str(mcmc.last_state)
    assert said.endswith(" in one of 4), x not guided")
    with pytest.raises(RuntimeError, match="a kernel that has run"):
        _ = DiffusionHMC(squares).elements_reason
