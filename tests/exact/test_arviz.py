"""ArviZ reads the results of every engine: named axes, diagnostics, pointwise likelihoods, and nothing that is T
times as large unless asked for. Each test also holds with ArviZ 1, where the tree is a DataTree."""

import subprocess
import sys
import warnings
from functools import lru_cache

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from guide_cases import untrained
from numpyro.handlers import reparam
from numpyro.infer import HMC, MCMC, NUTS, Predictive

import numpyro_diffusion as nd

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz as az

ONE_STEP = {"num_steps": 1, "trajectory_length": None}  # of HMC, where no claim is on how it moves
T = 3
KERNEL = nd.GaussianKernel(nd.schedules.log_snr(T), parameterization="x0", variance="denoiser")
PRIOR = nd.Diffusion(KERNEL, nd.analytic.gaussian_mixture(KERNEL, jnp.zeros((1, 2)), 1.0, jnp.ones(1)))
Y = jnp.array([0.3, -0.4, 0.9])


def model(y=None):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    x = numpyro.sample("x", PRIOR, infer={"event_dims": ["axis"]})
    numpyro.deterministic("size", jnp.sqrt((x**2).sum(-1)))
    with numpyro.plate("reading", 3):
        numpyro.sample("y", dist.Normal(x[..., 0], sigma), obs=y)


NONCENTRED = reparam(model, config={"x": nd.infer.DiffusionReparam()})
KERNELS = {
    "NUTS": lambda: NUTS(NONCENTRED, max_tree_depth=3),
    "DiffusionGibbs": lambda: nd.infer.DiffusionGibbs(HMC(model, **ONE_STEP), num_particles=4, twist="none"),
    "EllipticalSlice": lambda: nd.infer.EllipticalSlice(model),
}
FIELDS = {
    "NUTS": ("diverging", "num_steps", "potential_energy", "adapt_state.step_size"),
    "DiffusionGibbs": ("moved", "effective_size", "inner_state.diverging", "inner_state.num_steps", "paths"),
    "EllipticalSlice": ("num_evaluations",),
}


@lru_cache
def _run(name):
    mcmc = MCMC(
        KERNELS[name](), num_warmup=10, num_samples=20, num_chains=2, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(jax.random.key(0), Y, extra_fields=FIELDS[name])
    return mcmc


@pytest.fixture(scope="module", params=sorted(KERNELS))
def chains(request):
    return request.param, _run(request.param)


@pytest.fixture(scope="module")
def smc():
    smc = nd.infer.TwistedSMC(model, 32, 16, "none", keep_paths=True, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few islands carry sigma
        smc.run(jax.random.key(0), Y)
    return smc


@pytest.fixture(scope="module")
def weighted():
    guide = nd.infer.AutoDiffusionGuide(model)
    params = untrained(guide, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # untrained
        return guide.importance_weights(jax.random.key(1), params, 50, Y), guide, params


def groups(data):
    return set(data.groups()) if callable(data.groups) else set(data.children)


def axes(data, group):
    return {name: array.dims[2:] for name, array in data[group].data_vars.items()}


def log_density(draws):
    """Of each reading, by hand."""
    return dist.Normal(draws["x"][..., :1], draws["sigma"][..., None]).log_prob(Y)


def test_arviz_itself_takes_every_kernel_unchanged(chains):
    name, mcmc = chains
    data = az.from_numpyro(mcmc, log_likelihood=True)
    assert {"x", "sigma", "size"} <= set(data["posterior"].data_vars)
    wanted = log_density(mcmc.get_samples(group_by_chain=True))
    np.testing.assert_allclose(data["log_likelihood"]["y"], wanted, rtol=1e-4, atol=1e-5, err_msg=name)


def test_chains_have_named_axes_and_no_trajectories(chains):
    _, mcmc = chains
    data = nd.to_arviz(mcmc, dims={"x": ["axis"]}, coords={"axis": ["east", "north"]})
    assert groups(data) == {"posterior", "sample_stats", "log_likelihood", "observed_data"}
    assert axes(data, "posterior") == {"x": ("axis",), "sigma": (), "size": ()}
    assert axes(data, "log_likelihood") == {"y": ("reading",)}
    assert list(data["posterior"]["axis"].values) == ["east", "north"]
    draws = mcmc.get_samples(group_by_chain=True)
    for name in ("x", "sigma", "size"):
        np.testing.assert_array_equal(data["posterior"][name], draws[name])
    np.testing.assert_allclose(data["log_likelihood"]["y"], log_density(draws), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(data["observed_data"]["y"], Y)
    assert data.attrs["inference_library"] == "numpyro"


def test_extra_fields_are_sample_stats_under_arviz_names(chains):
    name, mcmc = chains
    stats = nd.to_arviz(mcmc, log_likelihood=False)["sample_stats"]
    assert (
        set(stats.data_vars)
        == {
            "NUTS": {"diverging", "n_steps", "tree_depth", "lp", "step_size"},
            "DiffusionGibbs": {"moved", "effective_size", "diverging", "n_steps", "tree_depth"},
            "EllipticalSlice": {"num_evaluations"},
        }[name]
    )
    assert all(array.dims == ("chain", "draw") for array in stats.data_vars.values())
    if name == "NUTS":
        potential = mcmc.get_extra_fields(group_by_chain=True)["potential_energy"]
        np.testing.assert_array_equal(stats["lp"], -potential)


def test_trajectories_of_chains_on_request(chains):
    name, mcmc = chains
    data = nd.to_arviz(mcmc, trajectories=True, dims={"x": ["axis"]}, log_likelihood=False)
    if name == "DiffusionGibbs":
        assert axes(data, "posterior")["x_path"] == ("x_time", "axis")
        assert list(data["posterior"]["x_time"].values) == list(range(T + 1))
        np.testing.assert_array_equal(data["posterior"]["x_path"][:, :, 0], data["posterior"]["x"])
    else:
        np.testing.assert_array_equal(data["posterior"]["x_noise"], mcmc.get_samples(True)["x_noise"])


def test_event_dims_of_the_model_are_used_where_the_site_is_seen():
    mcmc = _run("EllipticalSlice")
    assert axes(nd.to_arviz(mcmc, log_likelihood=False), "posterior")["x"] == ("axis",)


def test_noises_that_were_not_kept_are_not_needed():
    """The reparameterised model's likelihood at x alone."""
    mcmc = MCMC(HMC(NONCENTRED, **ONE_STEP), num_warmup=2, num_samples=4, progress_bar=False)
    mcmc.run(jax.random.key(0), Y, extra_fields=("~z.x_noise",))
    draws = mcmc.get_samples(group_by_chain=True)
    assert "x_noise" not in draws
    data = nd.to_arviz(mcmc)
    np.testing.assert_allclose(data["log_likelihood"]["y"], log_density(draws), rtol=1e-4, atol=1e-5)


def test_particles_have_their_diagnostics(smc):
    data = nd.to_arviz(smc, num_samples=200)
    assert groups(data) == {"posterior", "sample_stats", "log_likelihood", "observed_data"}
    assert axes(data, "posterior") == {"x": ("axis",), "sigma": (), "size": ()}
    stats = data["sample_stats"]
    np.testing.assert_array_equal(stats["effective_size"], smc.effective_sizes)
    assert stats["effective_size"].dims == ("island", "level")
    assert stats["log_weight"].dims == ("island", "particle")
    np.testing.assert_allclose(np.exp(stats["log_weight"]).sum(), 1, rtol=1e-5)
    assert float(stats["log_evidence"]) == data.attrs["log_evidence"] == smc.log_evidence
    assert float(stats["log_evidence_error"]) == smc.log_evidence_error
    draws = smc.get_samples(num_samples=200)
    np.testing.assert_array_equal(data["posterior"]["x"][0], draws["x"])
    np.testing.assert_allclose(data["log_likelihood"]["y"][0], log_density(draws), rtol=1e-4, atol=1e-5)


def test_paths_of_particles_on_request(smc):
    data = nd.to_arviz(smc, trajectories=True, num_samples=10, rng_key=jax.random.key(5), log_likelihood=False)
    assert axes(data, "posterior")["x_path"] == ("x_time", "axis")
    np.testing.assert_array_equal(data["posterior"]["x_path"][0], smc.get_samples(jax.random.key(5), 10)["x_path"])


def test_plates_name_the_axes_of_draws_and_particles():
    def plated(y):
        with numpyro.plate("face", 2):
            x = numpyro.sample("x", PRIOR)
            numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    smc = nd.infer.TwistedSMC(plated, 32, 4, "none", keep_paths=True, progress_bar=False)
    smc.run(jax.random.key(0), jnp.ones((2, 2)))
    data = nd.to_arviz(smc, coords={"face": ["a", "b"]}, trajectories=True)
    assert axes(data, "posterior") == {"x": ("face", "x_dim_1"), "x_path": ("x_time", "face", "x_dim_1")}
    assert axes(data, "log_likelihood") == {"y": ("face",)}
    assert data["observed_data"]["y"].dims == ("face", "y_dim_1")
    assert data["sample_stats"]["effective_size"].dims == ("island", "level", "element_0")


def test_columns_of_a_table_name_the_entries_of_a_site_and_of_its_paths():
    names = ["height", "weight"]
    draws = {"x": np.zeros((4, 3, 2)), "x_path": np.zeros((4, T + 1, 3, 2))}
    posterior = nd.to_arviz(draws, columns={"x": names}, trajectories=True)["posterior"]
    assert posterior["x"].dims == ("chain", "draw", "x_dim_0", "x_column")
    assert posterior["x_path"].dims == ("chain", "draw", "x_time", "x_dim_0", "x_column")
    assert list(posterior["x_column"].values) == names
    named = nd.to_arviz(draws, columns={"x": names}, dims={"x": ["row", "what"]}, trajectories=True)["posterior"]
    assert list(named["x"].sel(what="weight").dims) == ["chain", "draw", "row"]
    assert named["x_path"].dims == ("chain", "draw", "x_time", "row", "what")


def test_importance_samples_are_resampled_and_keep_their_weights(weighted):
    result, guide, params = weighted
    data = nd.to_arviz(result, model=model, model_args=(Y,), num_samples=4000)
    assert axes(data, "posterior")["x"] == ("axis",)
    weights = np.exp(result.log_weights - result.log_weights.max())
    wanted = (weights[:, None] * result.samples["x"]).sum(0) / weights.sum()
    # Systematic resampling: each of 50 draws is taken its share of 4000 to within one.
    rounding = np.abs(result.samples["x"]).sum(0) / 4000
    assert (np.abs(data["posterior"]["x"][0].mean("draw") - wanted) <= rounding).all()
    assert (np.abs(result.samples["x"].mean(0) - wanted) > rounding).any()  # as the weights want it
    np.testing.assert_array_equal(data["sample_stats"]["log_weight"], result.log_weights)
    assert float(data["sample_stats"]["pareto_k"]) == result.pareto_k
    assert np.isclose(float(data["sample_stats"]["log_evidence"]), result.log_evidence)
    plain = nd.to_arviz(guide.sample_posterior(jax.random.key(0), params, Y, sample_shape=(10,)))
    assert dict(plain["posterior"]["x"].sizes) == {"chain": 1, "draw": 10, "x_dim_0": 2}
    assert "x_noise" not in plain["posterior"]


def test_predictive_and_prior_draws_join(smc):
    draws = smc.get_samples(num_samples=20)
    key = jax.random.key(3)
    predictive = Predictive(model, draws)(key)
    prior = Predictive(model, num_samples=7)(key)
    data = nd.to_arviz(smc, num_samples=20, posterior_predictive={"y": predictive["y"]}, prior=prior)
    assert axes(data, "posterior_predictive") == axes(data, "prior_predictive") == {"y": ("reading",)}
    assert axes(data, "prior") == {"x": ("axis",), "sigma": (), "size": ()}
    np.testing.assert_array_equal(data["posterior_predictive"]["y"][0], predictive["y"])
    np.testing.assert_array_equal(data["prior"]["x"][0], prior["x"])


def test_predictive_draws_of_chains_are_grouped_by_chain(chains):
    _, mcmc = chains
    y = np.arange(2 * 20 * 3).reshape(40, 3)
    for given in (y, y.reshape(2, 20, 3)):
        data = nd.to_arviz(mcmc, posterior_predictive={"y": given}, log_likelihood=False)
        np.testing.assert_array_equal(data["posterior_predictive"]["y"], y.reshape(2, 20, 3))


@pytest.mark.filterwarnings("ignore")  # of so few draws, and of ArviZ's own pictures
def test_summaries_loo_and_pictures_work_on_all(chains, smc, weighted):
    mpl.use("Agg")
    _, mcmc = chains
    result, *_ = weighted
    y = np.zeros((30, 3))
    for data in (
        nd.to_arviz(mcmc, posterior_predictive={"y": np.zeros((2, 20, 3))}),
        nd.to_arviz(smc, num_samples=30, posterior_predictive={"y": y}),
        nd.to_arviz(result, model=model, model_args=(Y,), num_samples=30, posterior_predictive={"y": y}),
    ):
        assert len(az.summary(data)) >= 4
        assert az.loo(data).n_data_points == 3
        for plot in (az.plot_trace, az.plot_forest, az.plot_autocorr):
            plot(data, var_names=["sigma", "x"])
        (az.plot_posterior if hasattr(az, "plot_posterior") else az.plot_dist)(data, var_names=["sigma"])
        mpl.pyplot.close("all")


def test_observed_diffusions_have_no_likelihood_for_their_log_prob_is_a_bound():
    def observed(x, y):
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        numpyro.sample("x", PRIOR, obs=x)
        numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)

    draws = {"sigma": np.ones(5)}
    data = nd.to_arviz(draws, model=observed, model_args=(jnp.zeros(2), jnp.zeros(())))
    assert set(data["log_likelihood"].data_vars) == {"y"}
    assert set(data["observed_data"].data_vars) == {"x", "y"}

    def only(x):
        numpyro.sample("shift", dist.Normal())
        numpyro.sample("x", PRIOR, obs=x)

    assert "log_likelihood" not in groups(nd.to_arviz({"shift": np.ones(5)}, model=only, model_args=(jnp.zeros(2),)))


def subsampled():
    with numpyro.plate("n", 10, subsample_size=2):
        numpyro.sample("y", dist.Normal(numpyro.sample("x", dist.Normal()), 1.0), obs=jnp.zeros(2))


def with_parameter(y):
    sigma = numpyro.param("sigma", lambda key: 1.0)
    numpyro.sample("y", dist.Normal(numpyro.sample("x", dist.Normal()), sigma), obs=y)


DRAWS = {"x": np.zeros((4, 2)), "sigma": np.ones(4)}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nd.to_arviz([1.0]), TypeError, "Expected an MCMC, a TwistedSMC, .*; got list. Of SVI"),
        (lambda: nd.to_arviz(MCMC(NUTS(model), num_warmup=1, num_samples=1)), RuntimeError, "a finished run; got none"),
        (lambda: nd.to_arviz(nd.infer.TwistedSMC(model)), RuntimeError, "a finished run; got none"),
        (lambda: nd.to_arviz(DRAWS, num_samples=3), ValueError, "only for weighted results; got num_samples=3"),
        (lambda: nd.to_arviz({"x": np.zeros(3), "s": np.zeros(2)}), ValueError, "draws of every site, as many of each"),
        (lambda: nd.to_arviz({"x": 1.0}), ValueError, "draws of every site, as many of each"),
        (lambda: nd.to_arviz({}), ValueError, "draws of every site, as many of each"),
        (lambda: nd.to_arviz(DRAWS, dims={"z": ["a"]}), ValueError, r"among \['sigma', 'x'\]; got \['z'\]"),
        (lambda: nd.to_arviz(DRAWS, dims={"x": ["a", "b"]}), ValueError, "1 names of the axes of 'x'; got"),
        (lambda: nd.to_arviz(DRAWS, dims={"x": "a"}), ValueError, "1 names of the axes of 'x'; got 'a'"),
        (lambda: nd.to_arviz(DRAWS, columns={"z": ["a"]}), ValueError, r"columns of variables among .*; got 'z'"),
        (lambda: nd.to_arviz(DRAWS, columns={"x": ["a"]}), ValueError, "2 names of the columns of 'x'; got"),
        (lambda: nd.to_arviz(DRAWS, columns={"x": "ab"}), ValueError, "2 names of the columns of 'x'; got 'ab'"),
        (lambda: nd.to_arviz(DRAWS, columns={"sigma": ["a"]}), ValueError, "0 names of the columns of 'sigma'"),
        (
            lambda: nd.to_arviz(DRAWS, coords={"axis": [1, 2]}),
            ValueError,
            r"coords of dimensions among .*; got \['axis",
        ),
        (
            lambda: nd.to_arviz(DRAWS, coords={"x_dim_0": [1]}),
            ValueError,
            "axes and coordinates that fit; got .*'x_dim_0'",
        ),
        (
            lambda: nd.to_arviz({"a": np.zeros((3, 2)), "b": np.zeros((3, 4))}, dims={"a": ["k"], "b": ["k"]}),
            ValueError,
            "axes and coordinates that fit; got .*'k'.* different names",
        ),
        (
            lambda: nd.to_arviz(DRAWS, posterior_predictive={"y": np.zeros((5, 1))}),
            ValueError,
            r"4 draws of 'y', or \(1, 4\) by chain; got shape \(5, 1\)",
        ),
        (lambda: nd.to_arviz({"x": DRAWS["x"]}, model=model, model_args=(Y,)), ValueError, r"got none of \['sigma'\]"),
        (lambda: nd.to_arviz({"x": np.zeros(4)}, model=subsampled), ValueError, "plate 'n' with 2 of 10"),
        (
            lambda: nd.to_arviz({"x": np.zeros(4)}, model=with_parameter, model_args=(0.0,)),
            ValueError,
            "parameter 'sigma'",
        ),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_errors_say_what_was_wanted_and_what_came(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_draws_of_a_potential_have_no_names():
    mcmc = MCMC(
        HMC(potential_fn=lambda x: x**2, **ONE_STEP),
        num_warmup=1,
        num_samples=2,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), init_params=jnp.zeros(()))
    with pytest.raises(TypeError, match="Expected draws by site name; got Array"):
        nd.to_arviz(mcmc)


def test_num_samples_of_importance_draws_is_checked(weighted):
    with pytest.raises(ValueError, match="num_samples to be an integer >= 1; got 0"):
        weighted[0].get_samples(num_samples=0)


def test_the_package_does_not_import_arviz():
    code = "import sys, numpyro_diffusion; sys.exit(bool({'arviz', 'xarray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
