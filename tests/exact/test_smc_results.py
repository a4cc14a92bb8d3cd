"""What a run of TwistedSMC hands out: draws, weights, ArviZ, the summary, and how often it is compiled."""

import functools

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from measured_errors import check, of_independent

import numpyro_diffusion as nd
from numpyro_diffusion.infer import TwistedSMC

KERNEL = nd.GaussianKernel(nd.schedules.log_snr(3, 0.3, 10.0), parameterization="x0", variance="upper")
TRACES = []


def network(params, x_t, t, context):
    TRACES.append(x_t.shape)
    return params * x_t


PRIOR = nd.Diffusion(KERNEL, nd.Transition(network, jnp.asarray(0.3), (2,)))


def model(y, power=1):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", PRIOR)
        numpyro.deterministic("size", jnp.sqrt((x**2).sum(-1)))
        numpyro.sample("y", dist.Normal(x**power, 0.5).to_event(1), obs=y)


Y = np.array([[1.0, -1.0], [0.5, 0.2], [-0.3, 1.5]], np.float32)


@functools.cache
def finished():
    """One compiled engine, shared; every test runs or reads it with this key and data."""
    smc = TwistedSMC(model, 256, 8, progress_bar=False)
    smc.run(jax.random.key(0), Y)
    return smc


def test_the_same_key_gives_the_same_draws_and_another_key_others():
    smc = finished()
    first, again, other = smc.get_samples(), smc.get_samples(), smc.get_samples(jax.random.key(1))
    for name, shape in (("x", (2048, 3, 2)), ("size", (2048, 3))):
        assert first[name].shape == shape
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any()
    assert smc.get_samples(num_samples=10)["x"].shape == (10, 3, 2)
    old_style = smc.get_samples(jax.random.PRNGKey(1))
    np.testing.assert_array_equal(old_style["x"], other["x"])
    np.testing.assert_allclose(first["size"], jnp.linalg.norm(first["x"], axis=-1), rtol=1e-5)


def test_weighted_samples_say_what_the_equally_weighted_ones_say():
    smc = finished()
    values, log_weights = smc.get_weighted_samples()
    assert values["x"].shape == (2048, 3, 2)
    assert log_weights.shape == (2048, 3)
    weights = np.exp(log_weights)
    np.testing.assert_allclose(weights.sum(0), 1.0, rtol=1e-4)
    # Systematic resampling: the two differ by far less than independent draws would.
    x = np.asarray(smc.get_samples(num_samples=20_000)["x"])
    mean = (weights[..., None] * values["x"]).sum(0)
    assert (np.abs(x.mean(0) - mean) < 5 * x.std(0) / np.sqrt(20_000)).all()


def test_elements_are_pooled_apart_so_that_draws_of_two_are_not_correlated():
    x = np.asarray(finished().get_samples(num_samples=2000)["x"])[..., 0]
    correlation = np.corrcoef(x.T)[np.triu_indices(3, 1)]
    assert (np.abs(correlation) < 5 / np.sqrt(2000)).all()


def test_equal_shapes_are_not_compiled_again_and_the_answer_follows_data_and_options():
    """One island, which has no standard error."""
    smc = TwistedSMC(model, 64, 1, "none", progress_bar=False)
    smc.run(jax.random.key(0), Y, power=1)
    first, traces = smc.log_evidence, len(TRACES)
    assert np.isnan(smc.log_evidence_error)
    smc.get_samples()
    smc.run(jax.random.key(0), Y / 2, power=1)
    assert len(TRACES) == traces
    assert abs(smc.log_evidence - first) > 0.1
    smc.run(jax.random.key(0), Y, power=1)
    assert smc.log_evidence == first
    smc.run(jax.random.key(0), Y, power=2)  # no array: another model
    assert len(TRACES) > traces
    assert abs(smc.log_evidence - first) > 0.1
    with pytest.raises(TypeError, match="unexpected keyword"):
        smc.run(jax.random.key(0), Y, pover=2)


RUNS = []


def counted(y):
    RUNS.append(None)
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    return conditioned_on(scale, y)


def conditioned_on(scale, y):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", PRIOR)
        numpyro.deterministic("size", jnp.sqrt((x**2).sum(-1)))
        numpyro.sample("y", dist.Normal(x, scale).to_event(1), obs=y)


def test_the_users_model_runs_three_times_for_a_run_its_draws_and_all_others_of_its_shape():
    """Once to find its sites, once for its densities, once for prior draws of other sites."""
    smc = TwistedSMC(counted, 32, 4, progress_bar=False)
    with pytest.warns(UserWarning, match="islands carry the weight"):
        smc.run(jax.random.key(0), Y)
    smc.get_samples()
    assert len(RUNS) == 3
    with pytest.warns(UserWarning, match="islands carry the weight"):
        smc.run(jax.random.key(1), Y / 2)
    smc.get_samples()
    assert len(RUNS) == 3


def test_a_run_can_be_compiled_and_mapped_over_data_sets():
    smc = TwistedSMC(model, 64, 2, progress_bar=False)
    data, keys = jnp.stack([Y, Y / 2, -Y]), jax.random.split(jax.random.key(0), 3)
    compiled = jax.jit(smc.run)(keys[1], data[1])
    compiled.check()
    mapped = jax.jit(jax.vmap(smc.run))(keys, data)
    one, other = (jax.tree.map(lambda leaf, row=row: leaf[row], mapped) for row in (1, 2))
    plain = smc.run(keys[1], data[1])
    x = lambda result: np.asarray(result.get_samples()["x"])
    for result in (compiled, one):
        assert result.log_evidence == pytest.approx(plain.log_evidence, abs=1e-3)
        # Rounding may change which particle is taken, not what they say.
        check(of_independent(x(plain)), x(result).mean(0), refused=x(other).mean(0))
        assert result.summary().splitlines()[0] == plain.summary().splitlines()[0]


@pytest.mark.parametrize(
    "read",
    [
        lambda result: result.log_evidence,
        lambda result: result.log_evidence_error,
        lambda result: result.log_evidence_by_element,
        lambda result: result.min_ess,
        lambda result: result.check(),
        lambda result: result.summary(),
        lambda result: result.get_samples(),
        lambda result: result.get_weighted_samples(),
    ],
)
def test_a_result_is_read_outside_of_the_compiled_function(read):
    smc = TwistedSMC(model, 64, 2, progress_bar=False)
    with pytest.raises(TypeError, match=r"Expected a result that is read outside of jax\.jit.*Return the result"):
        jax.eval_shape(lambda key: read(smc.run(key, Y)), jax.random.key(0))


def test_arrays_that_decide_the_shape_of_a_model_are_taken_as_they_are():
    """Group numbers whose largest gives the size of a plate: an array under jit has no largest. And names."""

    def grouped(group, y, names):
        assert names[0] == "a"
        with numpyro.plate("groups", int(group.max()) + 1):
            x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x[group, 0], 0.5), obs=y)

    smc = TwistedSMC(grouped, 64, 2, "none", progress_bar=False)
    y = jnp.array([1.0, 0.5, -0.5, 0.2])
    group, names = np.array([0, 1, 1, 2]), np.array(["a", "b"])
    smc.run(jax.random.key(0), group, y, names)
    traces = len(TRACES)
    assert smc.get_samples()["x"].shape == (128, 3, 2)
    smc.run(jax.random.key(0), group.copy(), y, names)
    assert len(TRACES) == traces
    group[3] = 1
    smc.run(jax.random.key(0), group, y, names)
    assert smc.get_samples()["x"].shape == (128, 2, 2)


def test_islands_in_batches_are_those_of_one_batch(monkeypatch):
    """Five islands, at most two at once: the last batch begins earlier and gives only what is new."""
    whole = TwistedSMC(model, 16, 5, "none", progress_bar=False)
    whole.run(jax.random.key(0), Y)
    monkeypatch.setattr("numpyro_diffusion.infer.smc._MAX_ROWS", 32)
    parts = TwistedSMC(model, 16, 5, "none", progress_bar=False)
    parts.run(jax.random.key(0), Y)
    np.testing.assert_allclose(parts.effective_sizes, whole.effective_sizes, rtol=1e-4)
    np.testing.assert_allclose(parts.log_evidence_by_element, whole.log_evidence_by_element, rtol=1e-5)


def test_arviz_has_the_draws_the_data_and_the_diagnostics():
    smc = finished()
    data = nd.to_arviz(smc, num_samples=500)
    assert data.posterior["x"].shape == (1, 500, 3, 2)
    assert data.posterior["size"].shape == (1, 500, 3)
    np.testing.assert_array_equal(data.observed_data["y"], Y)
    assert data.attrs["log_evidence"] == smc.log_evidence
    assert data.attrs["elements"] == smc.elements_reason
    frame = az.summary(data, kind="stats", var_names=["x"])
    np.testing.assert_allclose(
        frame["mean"].to_numpy().reshape(3, 2), smc.get_samples(num_samples=500)["x"].mean(0), atol=0.0051
    )


def test_the_summary_says_what_was_done_and_how_far_to_trust_it(capsys):
    smc = finished()
    smc.print_summary()
    text = capsys.readouterr().out
    assert text.startswith("8 islands of 256 particles, T = 3\n")
    assert f"log evidence {smc.log_evidence:.3f} +- {smc.log_evidence_error:.3f} nats" in text
    assert f"smallest effective size {smc.min_ess:.0f} of 256, at level " in text
    assert "filtered element by element, (3,): proved from the model's operations" in text
    assert "x[2, 1]" in text
    assert "size[0]" in text
