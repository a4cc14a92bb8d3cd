"""TemperedSMC: draws and evidence of the T-step model, with any guidance, across modes, beside other sites."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import affine_prior, density_on_grid, gaussian_moments, linear_posterior
from measured_errors import Moments, check_islands, check_moments
from numpyro.distributions.transforms import AffineTransform
from scipy.stats import norm
from slice_cases import SCALED_DATA, STANDARD_NORMAL, scale_posterior, unknown_scale, zero_network
from tempered_cases import check_evidence, finished

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import MomentMatching
from numpyro_diffusion.infer import TemperedSMC

SCHEDULE = nd.schedules.log_snr(4, 0.3, 20.0)
PRIOR = affine_prior(SCHEDULE, np.array([0.4, -0.7]))
MATRIX, Y, NOISE = np.array([[1.0, 0.5]], np.float32), np.array([1.5], np.float32), 0.4


def seen(y):
    x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", dist.Normal(jnp.asarray(MATRIX) @ x, NOISE).to_event(1), obs=y)


def prior_moments():
    mean, variance = gaussian_moments(PRIOR)
    return Moments(mean[0], np.diag(np.broadcast_to(variance[0], 2)))


# Posteriors and their evidence -------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [None, MomentMatching(MATRIX, Y, NOISE)], ids=["prior", "guided"])
def test_the_conjugate_posterior_and_its_evidence(guidance):
    prior = prior_moments()
    log_evidence, mean, covariance = linear_posterior(*prior, MATRIX, NOISE**2 * np.eye(1), Y)
    smc = finished(seen, Y, guidance=None if guidance is None else {"x": guidance})
    check_evidence(smc, log_evidence, refused=0.0)
    check_moments(smc, lambda samples: samples["x"], Moments(mean, covariance), prior)
    assert (smc.result.num_temperatures == (2 if guidance is None else 1)).all()


def test_weights_of_modes_that_no_trajectory_crosses_and_their_evidence():
    """At -4 and 4, eight of their standard deviations apart, y = x + 4 eps; by quadrature of the T-step model."""
    kernel = nd.GaussianKernel(
        nd.schedules.log_snr(10, 0.5, 60.0), parameterization="x0", variance="denoiser", data_scale=4.0
    )
    modes = nd.analytic.gaussian_mixture(kernel, np.array([[-4.0], [4.0]]), 1.0, np.array([0.6, 0.4]))
    prior = nd.Diffusion(kernel, modes)

    def model(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("x", prior), 4.0).to_event(1), obs=y)

    smc = finished(model, np.full(1, 2.0, np.float32))
    grid = np.linspace(-100, 100, 4001)
    joint = density_on_grid(prior, grid) * norm.pdf(2.0, grid, 4.0)
    check_evidence(smc, np.log(joint.sum() * (grid[1] - grid[0])), refused=0.0)
    check_islands(smc, lambda samples: samples["x"][:, 0] > 0, joint[grid > 0].sum() / joint.sum(), refused=0.4)


def test_an_unknown_scale_is_drawn_with_x():
    """By quadrature; sigma begins at its prior."""
    smc = finished(unknown_scale, SCALED_DATA)
    x, sigma, density, log_evidence = scale_posterior(prior_sd=1.0)
    check_evidence(smc, log_evidence, refused=log_evidence + np.log(2))
    for name, value in (("x", x), ("sigma", sigma)):
        mean = (density * value).sum()
        check_islands(smc, lambda samples, name=name: samples[name], mean, refused=0.0)
        square = (density * (value - mean) ** 2).sum()
        check_islands(smc, lambda samples, name=name, mean=mean: (samples[name] - mean) ** 2, square, refused=0.6)


def test_a_site_far_from_standard_normal_is_found():
    """shift ~ N(100, 10) and x ~ N(0, 1), seen by their sum with noise 1."""

    def model(y):
        x = numpyro.sample("x", STANDARD_NORMAL)
        shift = numpyro.sample("shift", dist.Normal(100.0, 10.0))
        numpyro.sample("y", dist.Normal(shift + x, 1.0), obs=y)

    smc = finished(model, 130.0)
    total = 1 + 100 + 1.0
    check_evidence(smc, norm.logpdf(130.0, 100.0, np.sqrt(total)), refused=norm.logpdf(130.0, 100.0, 10.0) - 1)
    shift = 100 + 100 * 30 / total
    check_islands(smc, lambda samples: samples["shift"], shift, refused=100.0)
    check_islands(smc, lambda samples: samples["x"], 30 / total, refused=0.0)
    check_islands(smc, lambda samples: (samples["shift"] - shift) ** 2, 100 - 100**2 / total, refused=100.0)


def test_elements_of_a_plate_and_units_of_the_data():
    """x = 100 + 5 z in a plate, guidance written in the units of x."""
    y = np.array([103.0, 97.0, 110.0], np.float32)

    def model(y):
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", dist.TransformedDistribution(PRIOR, AffineTransform(100.0, 5.0)))
            numpyro.deterministic("double", 2 * x)
            numpyro.sample("y", dist.Normal(x[..., 0], 2.0), obs=y)

    first = np.array([[1.0, 0.0]], np.float32)
    guidance = MomentMatching(first, y[:, None], 2.0).in_states([AffineTransform(100.0, 5.0)])
    smc = finished(model, y, guidance={"x": guidance})
    mean, covariance = prior_moments()
    prior_mean, spread = 100 + 5 * mean, 25 * covariance
    gain = spread[:, 0] / (spread[0, 0] + 4)
    wanted = prior_mean + gain * (y[:, None] - prior_mean[0])
    check_islands(smc, lambda samples: samples["x"], wanted, refused=np.broadcast_to(prior_mean, (3, 2)))
    check_evidence(smc, norm.logpdf(y, prior_mean[0], np.sqrt(spread[0, 0] + 4)).sum())
    samples = smc.get_samples(num_samples=50)
    assert {name: value.shape for name, value in samples.items()} == {"x": (50, 3, 2), "double": (50, 3, 2)}
    np.testing.assert_allclose(samples["double"], 2 * samples["x"], rtol=1e-6)


def test_one_step_is_a_chain_too_and_a_region_of_likelihood_zero_is_left_out():
    """x ~ N(0, v) above 1/2: log P(x > 1/2), no draw below, and the summary counts the particles that were."""
    kernel = nd.GaussianKernel(nd.schedules.Schedule.from_beta(jnp.array([0.99])), variance="upper")
    prior = nd.Diffusion(kernel, nd.Transition(zero_network, None, ()))
    step, moved = (prior.chain.reverse(jnp.asarray(x), 1) for x in (0.0, 1.0))
    sd = np.sqrt(float((moved.loc - step.loc) ** 2 + step.scale**2))

    def model():
        x = numpyro.sample("x", prior)
        numpyro.factor("above", jnp.where(x > 0.5, 0.0, -jnp.inf))

    smc = finished(model)
    check_evidence(smc, norm.logsf(0.5, 0.0, sd), refused=0.0)
    assert (smc.get_samples()["x"] > 0.5).all()
    check_islands(smc, lambda samples: samples["x"], sd * norm.pdf(0.5 / sd) / norm.sf(0.5 / sd), refused=0.0)
    impossible = 8 * 256 - int(smc.result.num_possible.sum())
    assert 0.6 < impossible / (8 * 256) < 0.8
    assert f"density 0, infinite or NaN at {impossible} first particles" in smc.result.summary()


# What a run hands out ----------------------------------------------------------------------------------


def silent(params, x_t, t, context):
    return 0 * x_t


KERNEL = nd.GaussianKernel(nd.schedules.log_snr(3, 0.1, 100.0), variance="upper")
SILENT = nd.Diffusion(KERNEL, nd.Transition(silent, None, (2,)))


def two_numbers(y):
    x = numpyro.sample("x", SILENT)
    numpyro.deterministic("size", jnp.sqrt((x**2).sum(-1)))
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


DATA = np.array([1.0, -1.0], np.float32)


@functools.cache
def small():
    """One compiled engine, shared, on a mesh of one device; every test runs or reads it with this key and data."""
    return finished(two_numbers, DATA, num_particles=64, num_islands=3, mesh=jax.make_mesh((1,), ("data",)))


def test_the_same_key_gives_the_same_draws_and_weights_are_those_of_islands():
    smc = small()
    first, again, other = smc.get_samples(), smc.get_samples(), smc.get_samples(jax.random.key(1))
    for name, shape in (("x", (192, 2)), ("size", (192,))):
        assert first[name].shape == shape
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any()
    values, log_weights = smc.get_weighted_samples()
    assert {name: value.shape for name, value in values.items()} == {"x": (192, 2), "size": (192,)}
    by_island = np.exp(np.asarray(log_weights, float)).reshape(3, 64)
    evidence = np.exp(smc.result.log_evidence_by_island())
    np.testing.assert_allclose(by_island, np.repeat(evidence / evidence.sum() / 64, 64).reshape(3, 64), rtol=1e-5)
    np.testing.assert_allclose(np.log(evidence.mean()), smc.log_evidence, rtol=1e-6)


def test_equal_shapes_are_not_compiled_again_and_a_mesh_gives_what_one_device_gives():
    smc = TemperedSMC(two_numbers, num_particles=64, num_islands=3, progress_bar=False)
    smc.run(jax.random.key(0), DATA)
    np.testing.assert_allclose(smc.log_evidence, small().log_evidence, rtol=1e-4)
    np.testing.assert_allclose(smc.effective_sizes, small().effective_sizes, rtol=1e-3)
    first = smc.log_evidence
    smc.run(jax.random.key(0), 2 * DATA)
    assert smc._islands._cache_size() == smc._begin._cache_size() == 1
    assert abs(smc.log_evidence - first) > 0.1
    with pytest.raises(TypeError, match="unexpected keyword"):
        smc.run(jax.random.key(0), DATA, power=2)


def test_a_run_can_be_compiled_and_mapped_over_data_sets():
    smc = small()
    data, keys = jnp.stack([DATA, 2 * DATA]), jnp.stack([jax.random.key(0), jax.random.key(1)])
    mapped = jax.jit(jax.vmap(smc.run))(keys, data)
    one, other = (jax.tree.map(lambda leaf, row=row: leaf[row], mapped) for row in (0, 1))
    one.check()
    assert one.log_evidence == pytest.approx(smc.run(keys[0], DATA).log_evidence, abs=0.02)
    assert one.log_evidence - other.log_evidence > 1
    with pytest.raises(TypeError, match=r"Expected a result that is read outside of jax\.jit"):
        jax.eval_shape(lambda key: smc.run(key, DATA).log_evidence, keys[0])
    smc.run(keys[0], DATA)


def test_arrays_that_decide_the_shape_of_a_model_are_taken_as_they_are():
    def grouped(group, y):
        with numpyro.plate("groups", int(group.max()) + 1):
            x = numpyro.sample("x", STANDARD_NORMAL)
        numpyro.sample("y", dist.Normal(x[group], 0.5), obs=y)

    smc = finished(grouped, np.array([0, 1, 1]), jnp.array([1.0, 0.5, 0.2]), num_particles=16, num_islands=1)
    assert smc.get_samples()["x"].shape == (16, 2)


def test_arviz_has_the_draws_the_data_and_the_diagnostics():
    smc = small()
    data = nd.to_arviz(smc, num_samples=50)
    assert data.posterior["x"].shape == (1, 50, 2)
    np.testing.assert_array_equal(data.observed_data["y"], DATA)
    assert data.attrs["log_evidence"] == smc.log_evidence
    assert data.attrs["min_ess"] == smc.min_ess
    steps = smc.effective_sizes.shape[1]
    for name in ("effective_size", "temperature", "accept_prob"):
        assert data.sample_stats[name].dims == ("island", "temperature_step")
        assert data.sample_stats[name].shape == (3, steps)
    assert data.sample_stats["log_weight"].shape == (3, 64)


def test_the_summary_says_what_was_done_and_how_far_to_trust_it(capsys):
    smc = small()
    smc.print_summary()
    text = capsys.readouterr().out
    counts = smc.result.num_temperatures
    assert text.startswith(f"3 islands of 64 particles, {counts.min()} to {counts.max()} temperatures\n")
    assert f"log evidence {smc.log_evidence:.3f} +- {smc.log_evidence_error:.3f} nats" in text
    assert f"smallest effective size {smc.min_ess:.0f} of 64" in text
    assert f"at temperature 1 acceptance {smc.result.last_accept_prob:.2f} of trajectories of" in text
    assert f"\n{smc.num_gradients:.0f} gradients a particle\n" in text
    assert "x[1]" in text
    assert "first particles" not in text
    last = smc.result.accept_probs[np.arange(3), counts - 1]
    assert smc.result.last_accept_prob == pytest.approx(last.mean())
    assert smc.num_gradients == 1 + smc.result.history.num_gradients.sum(1).mean()


# Bad input ---------------------------------------------------------------------------------------------


def run(model, *args, **options):
    return finished(model, *args, num_particles=16, num_islands=2, **options)


def hostile(likelihood):
    """x ~ N(0, 1) whose log likelihood is a number above a threshold, -inf below, and worse."""
    x = numpyro.sample("x", STANDARD_NORMAL)
    numpyro.factor("zero", jnp.where(x > likelihood["least"], 0.0, -jnp.inf))
    # The root of 0, whose gradient is infinite, times 0.
    numpyro.factor("bad", 0 * jnp.sqrt(jnp.where(x > likelihood["nan"], 0 * x, 1.0)))
    # Which no gradient and no step sees.
    numpyro.factor("cliffs", jax.lax.stop_gradient(likelihood["cliffs"] * jnp.sin(1e6 * x)))


@functools.cache
def hostile_engine():
    return TemperedSMC(hostile, num_particles=16, num_islands=8, progress_bar=False)


def run_hostile(least=-100.0, nan=100.0, cliffs=0.0):
    """The run, compiled once for all these cases, and its warnings."""
    smc = hostile_engine()
    numbers = {"least": jnp.asarray(least), "nan": jnp.asarray(nan), "cliffs": jnp.asarray(cliffs)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        smc.run(jax.random.key(0), numbers)
    return smc, [str(warning.message) for warning in caught]


def test_a_likelihood_that_does_no_harm_warns_of_nothing():
    smc, caught = run_hostile()
    assert caught == []
    np.testing.assert_allclose(smc.log_evidence, 0.0, atol=1e-6)


def test_a_density_of_zero_at_all_particles_is_an_error():
    with pytest.raises(ValueError, match=r"positive, finite density; got 0, infinity or NaN at all 128.*Predictive"):
        run_hostile(least=100.0)


def test_few_particles_of_positive_density_are_told():
    smc, caught = run_hostile(least=1.3)
    assert smc.min_ess < 2
    assert any(one.startswith(f"The effective size fell to {smc.min_ess:.1f} of 16 particles") for one in caught)
    assert (smc.get_samples()["x"] > 1.3).all()


def test_gradients_that_are_nan_everywhere_are_an_error_and_somewhere_a_warning():
    with pytest.raises(ValueError, match=r"finite gradients.*NaN or infinite ones at every particle.*network"):
        run_hostile(nan=-100.0)
    smc, caught = run_hostile(nan=1.0)
    number = int(smc.result.num_fixed.sum())
    assert 0 < number < 64
    assert any(f"NaN or infinite at {number} of 128 particles, which could not move" in one for one in caught)


def test_particles_that_hardly_move_are_told():
    smc, caught = run_hostile(cliffs=300.0)
    assert any(one.startswith("At temperature 1 particles hardly moved") for one in caught)
    assert smc.result.last_accept_prob < 0.1 or smc.result.last_angle < 0.1


def test_a_failed_run_leaves_no_results_of_an_earlier_one():
    smc, _ = run_hostile()
    smc.get_samples()
    with pytest.raises(ValueError, match="positive, finite density"):
        run_hostile(least=100.0)
    with pytest.raises(RuntimeError, match="a finished run; got none"):
        smc.get_samples()


def test_temperatures_that_run_out_are_an_error_and_leave_no_evidence():
    smc = TemperedSMC(seen, guidance=None, num_particles=16, num_islands=2, max_temperatures=1)
    result = jax.jit(smc.run)(jax.random.key(0), Y)
    for read in (
        lambda: result.log_evidence,
        lambda: result.log_evidence_error,
        result.get_samples,
        result.get_weighted_samples,
        result.summary,
        result.check,
    ):
        with pytest.raises(
            RuntimeError, match=r"temperature 1 within max_temperatures=1; got 0\.\d+ in the worst of 2"
        ):
            read()


def test_a_site_of_the_users_that_is_called_a_noise_is_none():
    """It was left out of the draws, and taken for a diffusion's."""

    def model():
        numpyro.deterministic("b", 2 * numpyro.sample("b_noise", dist.HalfNormal(3.0)))
        numpyro.sample("x", PRIOR)

    smc = TemperedSMC(model, num_particles=8, num_islands=1, progress_bar=False)
    smc.run(jax.random.key(0))
    assert set(smc.get_samples()) == {"b", "b_noise", "x"}
    assert set(smc.charts) == {"x"}


def test_a_discrete_site_is_named():
    def model():
        numpyro.sample("x", STANDARD_NORMAL)
        numpyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(TypeError, match=r"real latent sites; got the discrete site 'k', Bernoulli.*DiffusionGibbs"):
        run(model)


@pytest.mark.filterwarnings("ignore:Out-of-support values")  # NumPyro's own, that names neither site nor index
def test_observed_nan_and_guidance_of_an_unknown_site_are_named():
    with pytest.raises(ValueError, match="observed values of site 'y' that are numbers"):
        run(seen, np.full(1, np.nan, np.float32))
    with pytest.raises(ValueError, match=r"guidance of the sites \['x'\]; got of \['z'\]"):
        run(seen, Y, guidance={"z": MomentMatching(MATRIX, Y, NOISE)})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_particles": 1}, "num_particles to be an integer >= 2; got 1"),
        ({"num_islands": 0}, "num_islands to be an integer >= 1; got 0"),
        ({"num_moves": 0}, "num_moves to be an integer >= 1; got 0"),
        ({"target_ess": 1.0}, r"target_ess in \(0, 0.99\]; got 1.0"),
        ({"step_size": 2.0}, r"step_size in \(0, 1.57\]; got 2.0"),
        ({"target_accept_prob": 0.0}, r"target_accept_prob in \(0, 1\]; got 0.0"),
        ({"max_steps": 0}, "max_steps to be an integer >= 1; got 0"),
        ({"max_temperatures": 0}, "max_temperatures to be an integer >= 1; got 0"),
        ({"particles_at_once": 0}, "particles_at_once to be an integer >= 1; got 0"),
    ],
)
def test_options_out_of_range_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        TemperedSMC(seen, **options)


def test_no_model_is_named(no_type_checks):
    with pytest.raises(TypeError, match="Expected a NumPyro model; got 3"):
        TemperedSMC(3)
