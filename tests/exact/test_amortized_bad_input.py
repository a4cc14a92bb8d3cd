"""What an amortised posterior refuses, in words, and what it tells."""

import amortized_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_diffusion.infer import AmortizedPosterior


def normal(y=None):
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(theta, 1.0).expand([2]).to_event(1), obs=y)


def improper():
    theta = numpyro.sample("theta", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(theta, 1.0))


def dependent_support():
    width = numpyro.sample("width", dist.HalfNormal(1.0))
    theta = numpyro.sample("theta", dist.Uniform(0.0, width))
    numpyro.sample("y", dist.Normal(theta, 1.0))


def counts():
    number = numpyro.sample("number", dist.Poisson(2.0))
    numpyro.sample("y", dist.Normal(number, 1.0))


def masked_prior():
    with numpyro.handlers.mask(mask=False):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(theta, 1.0))


def scaled_prior():
    with numpyro.handlers.scale(scale=2.0):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(theta, 1.0))


def scaled_likelihood():
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    with numpyro.handlers.scale(scale=2.0):
        numpyro.sample("y", dist.Normal(theta, 1.0))


def with_factor():
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    numpyro.factor("penalty", -(theta**2))
    numpyro.sample("y", dist.Normal(theta, 1.0))


def subsampled():
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 10, subsample_size=5):
        numpyro.sample("y", dist.Normal(theta, 1.0))


def only_data():
    numpyro.sample("y", dist.Normal(0.0, 1.0))


def mask_by_site():
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    with numpyro.handlers.mask(mask=theta > 0):
        numpyro.sample("y", dist.Normal(theta, 1.0))


def support_by_data():
    y = numpyro.sample("y", dist.Exponential(1.0))
    numpyro.sample("theta", dist.Uniform(0.0, y))


def mask_by_chance():
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    with numpyro.handlers.mask(mask=jax.random.bernoulli(numpyro.prng_key(), 0.5, (3,))):
        numpyro.sample("y", dist.Normal(theta, 1.0).expand([3]))


def on_a_sphere():
    theta = numpyro.sample("theta", dist.ProjectedNormal(jnp.ones(3)))
    numpyro.sample("y", dist.Normal(theta, 1.0).to_event(1))


@pytest.mark.parametrize(
    ("model", "error", "match"),
    [
        (support_by_data, ValueError, r"support of site 'theta' that is fixed; got one that depends on \['y'\]"),
        (mask_by_chance, ValueError, r"mask of site 'y' that is fixed; got one that depends on \['random numbers of"),
        (on_a_sphere, ValueError, "a support of site 'theta' with a bijection"),
        (improper, ValueError, "Expected a prior that can be sampled at site 'theta'; got ImproperUniform"),
        (dependent_support, ValueError, r"support of site 'theta' that is fixed; got one that depends on \['width'\]"),
        (mask_by_site, ValueError, r"mask of site 'y' that is fixed; got one that depends on \['theta'\]"),
        (counts, TypeError, "classes of a known number; got the discrete site 'number'"),
        (masked_prior, ValueError, "prior of latent site 'theta' as it is; got a mask"),
        (scaled_prior, ValueError, "prior of latent site 'theta' as it is; got scale 2.0"),
        (scaled_likelihood, ValueError, "Expected an unscaled observed site 'y'; got scale 2.0"),
        (with_factor, ValueError, r"no observed site beside \['y'\]; got \['penalty'\]"),
        (subsampled, ValueError, "Expected a model with all its data; got plate 'rows' with 5 of 10"),
        (only_data, ValueError, "Expected a model with a latent site"),
    ],
)
def test_models_that_are_refused_by_the_sites_name(model, error, match):
    with pytest.raises(error, match=match):
        AmortizedPosterior(model, observed="y")


@pytest.mark.parametrize(
    ("observed", "kwargs", "match"),
    [
        ("x", {}, r"one of \['theta', 'y'\]; got 'x'"),
        ("y", {"y": jnp.ones(2)}, "site 'y' to be drawn by the model; got one that is observed already"),
        ("theta", {"y": jnp.ones(2)}, r"no observed site beside \['theta'\]; got \['y'\]"),
        ((), {}, "one or more names of sites"),
        (("y", "y"), {}, "one or more names of sites"),
    ],
)
def test_observed_is_the_name_of_a_site_that_the_model_draws(observed, kwargs, match):
    with pytest.raises(ValueError, match=match):
        AmortizedPosterior(normal, observed=observed, model_kwargs=kwargs)


def test_arguments_out_of_range(no_type_checks):
    with pytest.raises(TypeError, match="Expected a NumPyro model"):
        AmortizedPosterior("model", observed="y")
    with pytest.raises(TypeError, match="an embedding that can be called"):
        AmortizedPosterior(normal, observed="y", embedding=3)
    with pytest.raises(ValueError, match="num_steps to be an integer >= 1"):
        AmortizedPosterior(normal, observed="y", num_steps=0)
    amortized = AmortizedPosterior(normal, observed="y")
    with pytest.raises(ValueError, match="validation in"):
        amortized.fit(jax.random.key(0), validation=0.7)
    with pytest.raises(ValueError, match="at least 100 simulations; got 20"):
        amortized.fit(jax.random.key(0), 20)
    with pytest.raises(RuntimeError, match="Expected a trained AmortizedPosterior"):
        amortized.condition(jnp.ones(2))


def broken(share):
    """NaN in that share of the simulations."""

    def model():
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        u = numpyro.sample("u", dist.Uniform(0.0, 1.0))
        numpyro.deterministic("y", jnp.where(u < share, jnp.nan, theta)[None])

    return model


def test_a_few_simulations_that_are_nan_are_dropped_and_told():
    with pytest.warns(UserWarning, match="simulations that are numbers; got NaN or infinite values in 1.. of 500"):
        amortized = cases.untrained(broken(0.25))
    assert 0.15 * 500 < 500 - amortized.fit_result.size / 0.9 < 0.35 * 500


def test_simulations_of_which_most_are_nan_are_refused():
    with pytest.raises(ValueError, match="Expected simulations that are numbers"):
        cases.untrained(broken(0.8))


def test_a_simulator_that_returns_constants_is_refused():
    def model():
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.deterministic("y", jnp.ones(3) + 0 * theta)

    with pytest.raises(ValueError, match=r"values of \['y'\] that vary; got the same in all 500 simulations"):
        cases.untrained(model)


def a_class():
    group = numpyro.sample("group", dist.Categorical(jnp.ones(3) / 3))
    numpyro.sample("y", dist.Normal(group, 1.0).expand([2]).to_event(1))


def of_one_value():
    theta = numpyro.sample("theta", dist.Delta(1.0))
    numpyro.sample("y", dist.Normal(theta, 1.0))


@pytest.mark.parametrize(
    "model",
    [of_one_value, numpyro.handlers.substitute(normal, {"theta": 1.0})],
    ids=["Delta", "substitute"],
)
def test_an_unknown_of_one_value_is_refused(model):
    with pytest.raises(
        ValueError, match=r"numbers to be drawn that vary; got the same numbers of \['theta'\] in all 500"
    ):
        cases.untrained(model)


@pytest.mark.parametrize(
    ("model", "changed", "match"),
    [
        (
            normal,
            {"theta": np.zeros((200, 2))},
            "trailing dimensions .* for simulations of site 'theta'|one axis of dra",
        ),
        (normal, {"theta": np.zeros((200, 1))}, "one axis of draws at site 'theta'"),
        (normal, {"y": np.zeros((200, 3))}, r"trailing dimensions \(2,\) for simulations of site 'y'"),
        (normal, {"y": np.zeros((200, 2, 1))}, r"trailing dimensions \(2,\) for simulations of site 'y'"),
        (a_class, {"group": np.full(200, 3)}, "simulations of site 'group' in its support; got 200 of 200 outside"),
        (a_class, {"group": np.full(200, 1.5)}, "simulations of site 'group' in its support; got 200 of 200 outside"),
        (
            cases.rates,
            {"rate": np.linspace(-1, 1, 200)},
            "simulations of site 'rate' in its support; got 100 of 200 ou",
        ),
        (cases.rates, {"y": np.full(200, 0.5)}, "values that int32 holds at site 'y'; got 200 others, as 0.5"),
    ],
)
def test_simulations_of_other_shapes_or_supports_are_refused(model, changed, match):
    amortized = AmortizedPosterior(model, observed="y")
    simulations = {**amortized.simulate(jax.random.key(0), 200), **changed}
    with pytest.raises(ValueError, match=match):
        amortized.fit(jax.random.key(0), simulations=simulations)


def test_no_simulations_are_not_the_models_own():
    with pytest.raises(ValueError, match=r"simulations of the sites \['theta', 'y'\]; got none of"):
        AmortizedPosterior(normal, observed="y").fit(jax.random.key(0), simulations={})


def test_simulations_that_are_given_are_checked():
    amortized = AmortizedPosterior(normal, observed="y")
    with pytest.raises(ValueError, match=r"simulations of the sites \['theta', 'y'\]; got none of \['y'\]"):
        amortized.fit(jax.random.key(0), simulations={"theta": np.zeros(200)})
    with pytest.raises(ValueError, match="as many draws of every site"):
        amortized.fit(jax.random.key(0), simulations={"theta": np.zeros(200), "y": np.zeros((100, 2))})


@pytest.fixture(scope="module")
def amortized():
    return cases.untrained(normal)


@pytest.mark.parametrize(
    ("y", "error", "match"),
    [
        (np.ones(3, np.float32), ValueError, r"y of shape \(2,\) at site 'y'; got shape \(3,\)"),
        (np.ones(2, int), TypeError, "real numbers at site 'y'; got dtype int64"),
        (np.array([1.0, np.nan]), ValueError, "finite values at site 'y'; got 1 NaN or infinite"),
        ({"z": np.ones(2)}, ValueError, r"data of the sites \['y'\]; got \['z'\]"),
    ],
)
def test_data_of_another_shape_or_kind_are_refused(amortized, y, error, match):
    with pytest.raises(error, match=match):
        amortized.condition(y)


@pytest.fixture(scope="module")
def counted():
    return cases.untrained(cases.rates)


@pytest.mark.parametrize(
    ("y", "match"),
    [
        (-1, "y in the support of site 'y'; got 1 outside, as -1"),
        (2**32 + 1, "values that int32 holds at site 'y'; got 1 others, as 4294967297"),
    ],
)
def test_data_that_the_model_cannot_draw_are_refused(counted, y, match):
    with pytest.raises(ValueError, match=match):
        counted.condition(y)


def test_data_that_overflow_are_refused(amortized):
    with pytest.raises(ValueError, match=r"values that float32 holds at site 'y'; got 1 others, as 1e\+300"):
        amortized.condition(np.array([1.0, 1e300]))


def test_log_prob_is_minus_infinity_off_the_support(counted):
    rate = jnp.array([-1.0, 0.0, 1.0])
    found = counted.condition(2).log_prob({"rate": rate}, rng_key=jax.random.key(0))
    np.testing.assert_array_equal(np.isneginf(found), [True, True, False])
    assert np.isfinite(found[2])


def test_log_prob_is_minus_infinity_off_a_simplex_and_at_no_class():
    posterior = cases.untrained(cases.shares_of_groups).condition(0.0)
    shares, group = jnp.array([[0.2, 0.3, 0.5], [0.7, 0.7, 0.7], [0.2, 0.3, 0.5]]), jnp.array([2, 2, 3])
    found = posterior.log_prob({"shares": shares, "group": group}, rng_key=jax.random.key(0))
    np.testing.assert_array_equal(np.isneginf(found), [False, True, True])


def test_log_prob_wants_values_of_all_sites(amortized):
    posterior = amortized.condition(np.ones(2))
    with pytest.raises(ValueError, match=r"values of the sites \['theta'\]; got \['x'\]"):
        posterior.log_prob({"x": jnp.ones(3)}, rng_key=jax.random.key(0))
    with pytest.raises(ValueError, match="one leading axis"):
        posterior.log_prob({"theta": jnp.ones(())}, rng_key=jax.random.key(0))


def test_corrections_that_are_refused(amortized):
    posterior = amortized.condition(np.ones(2))
    with pytest.raises(ValueError, match="num_paths to be an integer >= 1"):
        posterior.correct(jax.random.key(0), num_paths=0)
    with pytest.raises(ValueError, match=r"same unknowns and observations; got others at \['theta', 'x'\]"):
        posterior.correct(jax.random.key(0), model=other_names)

    bits = cases.untrained(cases.bits).condition(np.float32(0.4))
    with pytest.raises(ValueError, match="real sites alone for method='hmc'; got discrete sites"):
        bits.correct(jax.random.key(0), "hmc", num_samples=100)


def masked(mask=(True, False)):
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    with numpyro.handlers.mask(mask=jnp.array(mask)):
        numpyro.sample("y", dist.Normal(theta, 1.0).expand([2]))


def test_numbers_behind_a_mask_are_not_data_of_another_mask():
    """They may be NaN, and are 0 inside."""
    posterior = cases.untrained(masked).condition(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match=r"same unknowns and observations; got others at \['y'\]"):
        posterior.correct(jax.random.key(0), model_kwargs={"mask": (True, True)})


def test_simulations_that_are_given_may_be_nan_behind_a_mask():
    amortized = AmortizedPosterior(masked, observed="y", num_steps=4, width=8, depth=1)
    simulations = amortized.simulate(jax.random.key(0), 200)
    simulations["y"] = np.where([True, False], simulations["y"], np.nan)
    amortized.fit(jax.random.key(0), simulations=simulations, max_steps=1, every=1, progress_bar=False)
    assert np.isfinite(amortized.condition(np.array([1.0, np.nan])).sample(jax.random.key(1), 5)["theta"]).all()


def test_chance_beside_the_sites_makes_a_simulator():
    def model():
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(theta + jax.random.normal(numpyro.prng_key()), 1.0))

    with pytest.raises(ValueError, match=r"random numbers of its own in the density of \['y'\]"):
        cases.untrained(model).condition(0.0).correct(jax.random.key(0))


def test_a_site_may_be_called_log_weight():
    def model():
        log_weight = numpyro.sample("log_weight", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(log_weight, 1.0))

    corrected = cases.untrained(model).condition(0.0).correct(
        jax.random.key(0), "hmc", num_samples=20, num_warmup=5, num_chains=1, progress_bar=False
    )  # fmt: skip
    assert corrected.get_samples()["log_weight"].shape == (20,)


def other_names():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(x, 1.0).expand([2]).to_event(1))


def test_a_likelihood_that_excludes_all_draws_is_told(amortized):
    def excluded():
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Uniform(theta + 100.0, theta + 101.0).expand([2]).to_event(1))

    with pytest.raises(ValueError, match="Expected a draw of the guide at which the model's density is not 0"):
        amortized.condition(np.ones(2)).correct(jax.random.key(0), model=excluded, num_samples=100)


def test_too_few_effective_draws_are_told(amortized):
    with pytest.warns(UserWarning, match="Expected an effective size of 50 draws or more"):
        amortized.condition(np.ones(2)).correct(jax.random.key(0), "importance", num_samples=40)


def test_a_file_that_is_another_is_refused(amortized, tmp_path):
    import numpyro_diffusion as nd

    path = tmp_path / "prior.safetensors"
    kernel = nd.GaussianKernel(nd.schedules.log_snr(10), parameterization="x0", variance="denoiser")
    nd.save(nd.Diffusion(kernel, nd.analytic.gaussian_mixture(kernel, np.zeros((1, 1)), 0.5, np.ones(1))), path)
    with pytest.raises(ValueError, match="Expected the file of an AmortizedPosterior"):
        AmortizedPosterior.load(path, normal)
    with pytest.raises(RuntimeError, match="Expected a trained AmortizedPosterior"):
        AmortizedPosterior(normal, observed="y").save(path)
    amortized.save(path)
    loaded = AmortizedPosterior.load(path, normal)
    assert loaded.condition(np.ones(2)).share_farther > 0
    assert loaded.seconds is None


@pytest.mark.parametrize(
    ("kwargs", "site"), [({"scale": 2.0}, "rate"), ({"exposure": 0.1}, "y"), ({"is_bounded": True}, "rate")]
)
def test_a_file_of_another_prior_likelihood_or_support_is_refused(counted, tmp_path, kwargs, site):
    path = tmp_path / "amortized.safetensors"
    counted.save(path)
    assert AmortizedPosterior.load(path, cases.rates).condition(2).share_farther > 0
    with pytest.raises(ValueError, match=rf"model that the file was trained for; got another density of \['{site}'\]"):
        AmortizedPosterior.load(path, cases.rates, model_kwargs=kwargs)


def test_a_file_of_another_mask_is_refused(tmp_path):
    path = tmp_path / "amortized.safetensors"
    cases.untrained(masked).save(path)
    with pytest.raises(ValueError, match="Expected a model of the sites"):
        AmortizedPosterior.load(path, masked, model_kwargs={"mask": (True, True)})
