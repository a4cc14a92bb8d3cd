"""``infer.check`` passes what is right, names what is wrong, and recommends the engine that the documentation does."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from guided_cases import independent

import numpyro_diffusion as nd
from numpyro_diffusion.infer import check

SCHEDULE = nd.schedules.log_snr(10, 0.1, 100.0)


def gaussian(size=2, factor=1.0, schedule=SCHEDULE, variance="upper"):
    """x^0 near N(0, I), with its denoiser, or that times a factor."""
    root = jnp.asarray(np.sqrt(schedule.alpha_bar), float)
    kernel = nd.GaussianKernel(schedule, parameterization="x0", variance=variance)
    return nd.Diffusion(kernel, nd.Transition(_times, factor * root, (size,)))


def _times(root, x_t, t, context):
    return root[t][..., None] * x_t


def seen(prior, size=2):
    def model(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), 1.0).to_event(1), obs=y)

    return model, jnp.linspace(-1.0, 1.0, size)


def failed(found):
    return [finding.name for finding in found.failed]


def test_exact_prior_of_few_coordinates_passes_and_is_filtered():
    found = check(*seen(independent([0.0, 1.0], [1.0, 2.0])))
    assert found.passed, found
    assert (found.engine, found.network_calls) == ("TwistedSMC", 4 * 1000 * 3 * 6)
    assert found.log_weight_sd < 0.05
    assert found.seconds > 0
    assert "✓ data: of site 'y': 2 numbers" in repr(found)


def test_other_unknowns_are_drawn_together_by_hamiltonian_moves():
    prior = independent([0.0, 1.0], [1.0, 2.0])

    def model(y):
        sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 0.5))
        numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), sigma).to_event(1), obs=y)

    found = check(model, jnp.array([0.5, -0.5]))
    assert found.passed
    assert found.engine == "DiffusionHMC"
    assert "beside 'sigma'" in found.reason


def test_plate_tells_whether_its_elements_are_independent():
    prior = independent([0.0, 1.0], [1.0, 2.0])

    def model(y):
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), 1.0).to_event(1), obs=y)

    told = {finding.name: finding.told for finding in check(model, jnp.ones((3, 2))).findings}
    assert told["elements of the plate"].startswith("independent of each other: proved")
    assert "in plates of shape (3,)" in told["site"]


def test_bits_are_for_particles():
    kernel = nd.BernoulliKernel(nd.schedules.linear(5))
    prior = nd.Diffusion(kernel, nd.Transition(lambda params, x_t, t, context: 0 * x_t, None, (4,)))

    def model(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("x", prior).sum(-1), 1.0), obs=y)

    found = check(model, 2.0)
    assert found.engine == "DiffusionGibbs"
    assert found.network_calls == 4 * 1500 * 16 * 5


def test_data_in_other_units_are_told():
    found = check(*seen(gaussian())[:1], jnp.array([128.0, 110.0]))
    assert "data within the model's reach" in failed(found)
    assert "theirs" in repr(found)
    assert "same units" in repr(found)


def test_hidden_numbers_need_not_be_within_reach():
    prior = gaussian()

    def model(y):
        likelihood = dist.Normal(numpyro.sample("x", prior), 1.0).mask(y < 100.0).to_event(1)
        numpyro.sample("y", likelihood, obs=y)

    found = check(model, jnp.array([0.3, 1e6]))
    assert "data within the model's reach" not in failed(found)
    assert "1 of them hidden by a mask" in repr(found)


def test_missing_number_ends_the_list_with_its_index():
    found = check(*seen(gaussian())[:1], jnp.array([1.0, jnp.nan]))
    assert failed(found) == ["data"]
    assert found.engine is None
    assert "NaN at index (1,)" in repr(found)


@pytest.mark.parametrize("is_hidden", [False, True])
def test_infinite_number_among_many_is_named_unless_it_is_hidden(is_hidden):
    prior = gaussian(8)
    y = np.zeros(8)
    y[5] = np.inf

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 1.0).mask(jnp.isfinite(y) | (not is_hidden)).to_event(1), obs=y)

    found = check(model, y)
    assert ("infinite at index (5,), 1 of 8" in repr(found)) is not is_hidden
    assert ("data" in failed(found)) is not is_hidden


def test_model_that_does_not_run_is_told_with_its_error():
    def model(y):
        raise KeyError("no such column")

    found = check(model, 1.0)
    assert failed(found) == ["the model runs"]
    assert "KeyError: 'no such column'" in repr(found)


def test_model_without_a_diffusion_is_told():
    found = check(lambda y: numpyro.sample("y", dist.Normal(numpyro.sample("m", dist.Normal(0, 1)), 1), obs=y), 0.3)
    assert failed(found) == ["sites"]
    assert "latent Diffusion site" in repr(found)


def test_model_without_data_is_told_and_goes_on():
    prior = gaussian()
    found = check(lambda: numpyro.sample("x", prior))
    assert "no numbers are observed" in repr(found)


@pytest.mark.parametrize("factor", [1.5, 0.5])
def test_network_whose_steps_do_not_undo_the_noise_is_told(factor):
    assert "reverse steps fit" in failed(check(*seen(gaussian(factor=factor))))


def test_reverse_variance_that_is_too_small_is_told():
    found = check(*seen(gaussian(variance="lower")))
    assert failed(found) == ["reverse steps fit"]
    assert found.failed[0].told.startswith("+")
    assert check(*seen(gaussian())).passed


def test_schedule_that_leaves_the_signal_is_told():
    found = check(*seen(gaussian(schedule=nd.schedules.log_snr(10, 0.1, 1.0))))
    assert "signal erased" in failed(found)


def test_likelihood_that_is_zero_everywhere_is_told():
    prior = gaussian()

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.factor("never", jnp.where(x.sum() > 1e6, 0.0, -jnp.inf))

    found = check(model, 1.0)
    assert failed(found) == ["likelihood"]
    assert found.engine is None
    assert "at all of 16 draws" in repr(found)


def test_likelihood_without_a_gradient_is_for_particles():
    prior = gaussian()

    def model(y):
        numpyro.sample("y", dist.Normal(jnp.round(numpyro.sample("x", prior)).sum(-1), 1.0), obs=y)

    found = check(model, 1.0)
    assert failed(found) == ["likelihood"]
    assert found.engine == "DiffusionGibbs"


def test_gradient_that_is_no_number_is_told():
    prior = gaussian()

    def model(y):
        x = numpyro.sample("x", prior)
        size = jnp.sqrt(jnp.sum((x - x) ** 2, -1))  # 0, whose gradient is NaN
        numpyro.sample("y", dist.Normal(x.sum(-1) + size, 1.0), obs=y)

    found = check(model, 1.0)
    assert failed(found) == ["likelihood"]
    assert "NaN or infinite in 'x_noise'" in repr(found)


def test_modes_that_guidance_would_hide_are_for_tempered_particles():
    prior = independent([0.0], [1.0])

    def model(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("x", prior)[..., 0] ** 2, 0.05), obs=y)

    assert check(model, 2.0).engine == "TemperedSMC"


def test_transformed_site_is_looked_at_in_its_states():
    prior = dist.TransformedDistribution(gaussian(), dist.transforms.AffineTransform(100.0, 20.0))
    found = check(*seen(prior)[:1], jnp.array([110.0, 90.0]))
    assert found.passed, found
    assert "under a transform" in repr(found)


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="Expected a NumPyro model"):
        check(dist.Normal)


def test_nothing_is_changed_by_a_look():
    model, y = seen(gaussian())
    with numpyro.handlers.trace() as outside, numpyro.handlers.seed(rng_seed=0):
        check(model, y)
    assert not outside
