"""One test for each name of another library that is private, experimental or bound to a version: what we rely on."""

import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from measured_errors import check, of_independent
from numpyro.contrib.control_flow import scan
from numpyro.handlers import block, reparam, seed, trace
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, TraceMeanField_ELBO, autoguide, log_likelihood
from numpyro.infer.inspect import get_dependencies
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.reparam import Reparam

from numpyro_diffusion._compat import arviz as arviz_names
from numpyro_diffusion._compat import numpyro as names
from numpyro_diffusion._dependence import with_marked_answers

KEY = jax.random.key(0)


class Nosy(dist.Distribution):
    """A standard normal that notes who asks."""

    support = dist.constraints.real
    asked: list = []  # noqa: RUF012 - of the class, so that copies share it

    def sample(self, key, sample_shape=()):
        return jax.random.normal(key, sample_shape + self.batch_shape)

    def log_prob(self, value):
        self.asked.append(names.asking())
        return dist.Normal().log_prob(value)


@pytest.fixture
def asked():
    Nosy.asked.clear()
    yield Nosy.asked
    Nosy.asked.clear()


def wrapped(distribution=None):
    """In as many wrappers as are on the way to an asker elsewhere."""
    distribution = Nosy() if distribution is None else distribution
    shifted = dist.TransformedDistribution(distribution.expand((2,)), dist.transforms.AffineTransform(1.0, 2.0))
    return dist.MixtureGeneral(dist.Categorical(jnp.ones(2) / 2), [shifted.to_event(1)] * 2).mask(jnp.ones((), bool))


def model():
    x = numpyro.sample("x", wrapped())
    numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=0.0)


def observed():
    numpyro.sample("z", dist.Normal())
    numpyro.sample("x", wrapped(), obs=jnp.zeros(2))


def of(asked):
    return {(asker.purpose, asker.site["name"], asker.site["is_observed"]) for asker in asked}


def latent_of(asker):
    return {name for name, site in asker.run_again({}).items() if not site["is_observed"]}


# NumPyro -----------------------------------------------------------------------------------------------


def test_nobody_asks_of_a_call_by_the_user(asked):
    wrapped().log_prob(jnp.zeros(2))
    jax.jit(wrapped().log_prob)(jnp.zeros(2))
    assert asked
    assert set(asked) == {None}


def test_mcmc_asks_for_a_density(asked):
    NUTS(model).init(KEY, 0, None, (), {})
    assert of(asked) == {("density", "x", False)}
    asked.clear()
    NUTS(observed).init(KEY, 0, None, (), {})
    assert of(asked) == {("density", "x", True)}


def test_who_asks_for_a_joint_density_can_run_the_model_again(asked):
    """By hand on plain numbers too, whatever the values of its sites, and by a factor, which has no site."""

    def factor():
        z = numpyro.sample("z", dist.Normal())
        numpyro.factor("f", Nosy().log_prob(z))

    names.log_density(observed, (), {}, {"z": 0.3})
    assert asked
    assert all(latent_of(asker) == {"z"} and asker.run_again({"z": 0.7})["z"]["value"] == 0.7 for asker in asked)
    asked.clear()
    names.potential_energy(factor, (), {}, {"z": 0.3})
    (asker,) = list(asked)
    assert latent_of(asker) == {"z"}
    assert asker.run_again({"z": 0.7})["z"]["value"] == 0.7


def test_whoever_marks_answers_is_found_on_the_stack(asked):
    with_marked_answers(0.25, lambda: names.log_density(observed, (), {}, {"z": 0.3}))
    assert {(asker.purpose, asker.mark) for asker in asked} == {("dependence", 0.25)}


@pytest.mark.parametrize(
    "loss", [Trace_ELBO, TraceMeanField_ELBO, numpyro.infer.TraceGraph_ELBO, numpyro.infer.RenyiELBO]
)
def test_an_elbo_asks_for_an_elbo(loss, asked):
    def guide():
        numpyro.sample("z", dist.Normal())

    svi = SVI(observed, guide, numpyro.optim.Adam(0.1), loss())
    svi.evaluate(svi.init(KEY))
    assert of(asked) == {("elbo", "x", True)}


def test_the_set_up_of_an_automatic_guide_is_part_of_an_elbo(asked):
    """It evaluates the potential energy once."""
    with seed(rng_seed=0):
        autoguide.AutoNormal(observed)()
    assert of(asked) == {("elbo", "x", True)}
    assert names._VARIATIONAL[:3] == (
        numpyro.infer.elbo.__name__,
        autoguide.__name__,
        sys.modules[SVI.__module__].__name__,
    )


def test_log_likelihood_asks_for_itself(asked):
    log_likelihood(observed, {"z": jnp.zeros(3)})
    assert {(asker.purpose, asker.site["name"]) for asker in asked} == {("log_likelihood", "x")}


def test_the_dependence_of_sites_asks_for_itself(asked):
    get_dependencies(model)
    assert {(asker.purpose, asker.site["name"]) for asker in asked} == {("dependence", "x")}


def test_a_factor_has_no_site(asked):
    def factor():
        z = numpyro.sample("z", dist.Normal())
        numpyro.factor("f", Nosy().log_prob(z))

    names.potential_energy(factor, (), {}, {"z": 0.0})
    assert [(asker.purpose, asker.site) for asker in asked] == [("density", None)]
    asked.clear()
    with seed(rng_seed=0):
        factor()
    assert asked == [None]


def test_the_handler_stack_tells_whether_a_handler_is_active():
    assert not names.is_in_handler()
    with block():
        assert names.is_in_handler()


def test_a_handler_knows_whether_it_runs_inside_of_a_scan():
    found = []

    class Note(Reparam):
        def __call__(self, name, fn, obs):
            found.append((name, names.is_in_scan()))
            return fn, obs

    def looped():
        numpyro.sample("outside", dist.Normal())
        scan(lambda carry, _: (carry, numpyro.sample("inside", dist.Normal())), 0, jnp.arange(2))

    seed(reparam(looped, config={"outside": Note(), "inside": Note()}), 0)()
    assert set(found) == {("outside", False), ("inside", True)}
    assert not names.is_in_scan()


def test_the_reparam_handler_has_the_sample_shape():
    found = []

    class Note(Reparam):
        def __call__(self, name, fn, obs):
            found.append(names.reparam_sample_shape())
            return fn, obs

    def drawn():
        numpyro.sample("x", dist.Normal(), sample_shape=(2, 3))

    seed(reparam(drawn, config={"x": Note()}), 0)()
    assert found == [(2, 3)]
    assert names.reparam_sample_shape() == ()


def test_a_site_that_a_reparam_makes_is_named_in_its_scopes_once():
    class Twin(Reparam):
        def __call__(self, name, fn, obs):
            return None, numpyro.sample(names.reparam_site_name(f"{name}_twin"), fn)

    def drawn():
        with numpyro.handlers.scope(prefix="a"), numpyro.handlers.scope(prefix="a", divider="."):
            numpyro.sample("x", dist.Normal())

    inside = numpyro.handlers.scope(reparam(drawn, config={"a/a.x": Twin()}), prefix="b")
    assert set(trace(seed(inside, 0)).get_trace()) == {"b/a/a.x", "b/a/a.x_twin"}
    assert names.reparam_site_name("x") == "x"


@pytest.mark.parametrize("told", [None, True, False])
def test_a_distribution_keeps_whether_validation_was_asked_for(told):
    assert names.explicit_validation(dist.Normal(validate_args=told)) is told


def test_a_density_is_checked_against_its_support_where_validation_is_on():
    class Positive(dist.Distribution):
        support = dist.constraints.positive

        @names.validate_sample
        def log_prob(self, value):
            return jnp.log(value)

    with pytest.warns(UserWarning, match="Out-of-support"):
        Positive(validate_args=True).log_prob(-1.0)
    assert np.isnan(Positive(validate_args=False).log_prob(-1.0))


def test_a_masked_distribution_has_its_mask_in_the_shape_of_its_batch():
    assert names.mask_of(dist.Normal().mask(False)) is False
    masked = dist.Normal(jnp.zeros((2, 3)), 1.0).to_event(1).mask(jnp.array([True, False]))
    np.testing.assert_array_equal(names.mask_of(masked), [True, False])


def test_mcmc_keeps_its_arguments():
    mcmc = MCMC(NUTS(lambda y, *, scale: numpyro.sample("x", dist.Normal(y, scale))), num_warmup=1, num_samples=1)
    mcmc.progress_bar = False
    mcmc.run(KEY, 1.0, scale=2.0)
    assert names.model_arguments(mcmc) == ((1.0,), {"scale": 2.0})


def test_compiled_run_takes_data_as_arguments_and_leaves_copies():
    traces = []

    def model(y):
        traces.append(y)
        numpyro.sample("y", dist.Normal(numpyro.sample("x", dist.Normal()), 1.0), obs=y)

    mcmc = MCMC(NUTS(model), num_warmup=5, num_samples=5, jit_model_args=True, progress_bar=False)
    run = names.compiled_run(mcmc)
    start = {"x": jnp.zeros(())}
    first = run(KEY, start, jnp.asarray(0.0))
    count = len(traces)
    second = run(KEY, start, jnp.asarray(5.0))
    assert len(traces) == count
    assert names.model_arguments(second) == ((5.0,), {})
    mcmc.run(KEY, jnp.asarray(0.0), init_params=start)
    np.testing.assert_allclose(first.get_samples(True)["x"], mcmc.get_samples(True)["x"], rtol=1e-4)
    assert second.get_samples()["x"].mean() > first.get_samples()["x"].mean() + 0.5


class StillState(NamedTuple):
    z: Any
    rng_key: Any


class Still(MCMCKernel):
    """Stays where it is, and counts how often it was started."""

    sample_field = "z"

    def __init__(self, sample_fn):
        self._sample_fn = sample_fn
        self.starts = 0

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        self.starts += 1
        return StillState(jnp.zeros(()), rng_key)

    def sample(self, state, model_args, model_kwargs):
        return state


@pytest.mark.parametrize(("sample_fn", "starts"), [(None, 2), (lambda: None, 1)])
def test_mcmc_that_goes_on_starts_a_kernel_again_whose_sample_fn_is_none(sample_fn, starts):
    """``EllipticalSlice`` has one for that reason."""
    kernel = Still(sample_fn)
    mcmc = MCMC(kernel, num_warmup=0, num_samples=1, progress_bar=False)
    mcmc.run(KEY)
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(KEY)
    assert kernel.starts == starts


def test_a_gibbs_kernel_conditions_by_a_keyword():
    kwargs = names.with_conditioning({"a": 1}, {"x": 2.0})
    assert kwargs == {"a": 1, names.GIBBS_SITES_KWARG: {"x": 2.0}}


def test_provenance_follows_values():
    found = names.eval_provenance(lambda x, y: {"a": x + 1, "b": x * y, "c": jnp.ones(2)}, x=1.0, y=2.0)
    assert found == {"a": frozenset("x"), "b": frozenset("xy"), "c": frozenset()}


def test_the_potential_energy_is_minus_the_log_density_on_unconstrained_space():
    def positive():
        numpyro.sample("x", dist.HalfNormal())

    z = 0.3
    wanted = dist.HalfNormal().log_prob(np.exp(z)) + z
    np.testing.assert_allclose(names.potential_energy(positive, (), {}, {"x": z}), -wanted, rtol=1e-6)
    found = names.constrain_fn(seed(positive, 0), (), {}, {"x": z}, return_deterministic=True)
    np.testing.assert_allclose(found["x"], np.exp(z), rtol=1e-6)
    transforms = {"x": dist.biject_to(dist.constraints.positive)}
    np.testing.assert_allclose(names.transform_fn(transforms, {"x": z})["x"], np.exp(z), rtol=1e-6)
    np.testing.assert_allclose(names.transform_fn(transforms, {"x": 2.0}, invert=True)["x"], np.log(2.0), rtol=1e-6)


def test_log_probs_of_sites_on_unconstrained_space_have_their_jacobians():
    def model():
        scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
        numpyro.sample("shift", dist.Normal(0.0, scale).expand((2,)))
        numpyro.factor("more", 2.0 * scale)

    u = {"scale": jnp.array(0.3), "shift": jnp.array([1.0, -2.0])}
    found = names.unconstrained_log_probs(model, (), {}, u)
    assert set(found) == {"scale", "shift", "more"}
    np.testing.assert_allclose(found["scale"], dist.HalfCauchy(1.0).log_prob(jnp.exp(0.3)) + 0.3, rtol=1e-6)
    np.testing.assert_allclose(sum(found.values()), -names.potential_energy(model, (), {}, u), rtol=1e-6)


def test_a_mutable_site_keeps_a_dictionary():
    with trace() as sites, seed(rng_seed=0):
        names.mutable("state", {"count": 1})["count"] = 2
    assert sites["state"]["type"] == "mutable"
    assert sites["state"]["value"] == {"count": 2}


def test_a_messenger_sees_a_message_and_may_change_it():
    class Observe(names.Messenger):
        def process_message(self, msg):
            if msg["type"] == "sample":
                msg["value"], msg["is_observed"] = 3.0, True

    assert Observe(lambda: numpyro.sample("x", dist.Normal()))() == 3.0


def test_scan_promotes_the_batch_shape_of_stacked_leaves():
    class Stacked(dist.Normal):
        pass

    names.promote_batch_shape.register(Stacked, lambda distribution: "ours")
    assert names.promote_batch_shape(Stacked()) == "ours"


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_both_kinds_of_random_keys_are_keys(make):
    assert names.is_prng_key(make(0))
    assert not names.is_prng_key(jax.random.split(make(0), 3))
    assert not names.is_prng_key(jnp.zeros(2))


def test_automatic_guides_keep_what_our_guide_takes_out_of_them():
    """``AutoDiffusionGuide`` takes the noises out of these after the set-up."""
    guide = autoguide.AutoNormal(model := lambda: numpyro.sample("x", dist.Normal(jnp.zeros(3), 1.0).to_event(1)))
    with seed(rng_seed=0):
        guide._setup_prototype()
    assert set(guide._init_locs) == set(guide._event_dims) == {"x"}
    assert guide._event_dims["x"] == 1
    assert set(guide.prototype_trace) == {"x"}
    assert guide.prefix == "auto"
    assert guide.model is model


# ArviZ -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:\nArviZ is undergoing")
def test_groups_become_the_tree_that_the_installed_arviz_reads():
    import xarray

    tree = arviz_names.as_tree({"posterior": xarray.Dataset({"x": (("chain", "draw"), np.ones((1, 3)))})}, {"by": "us"})
    assert dict(tree["posterior"]["x"].sizes) == {"chain": 1, "draw": 3}
    assert tree.attrs["by"] == "us"


@pytest.mark.filterwarnings("ignore:\nArviZ is undergoing")
@pytest.mark.parametrize("shape", [0.2, 0.8])
def test_pareto_k_is_the_shape_of_the_tail(shape):
    """Weights from a generalised Pareto distribution of this shape, whose tail has it too.

    The estimate is drawn towards .5 as by 10 weights more than the tail's 3 sqrt(4000) (Vehtari et al. 2024).
    """
    uniform = np.random.default_rng(0).uniform(size=(20, 4000))
    found = [arviz_names.pareto_k(np.log((row**-shape - 1) / shape)) for row in uniform]
    tail = np.ceil(3 * np.sqrt(4000))
    check(of_independent(found), (tail * shape + 10 * 0.5) / (tail + 10), refused=1 - shape)


def test_a_transform_says_how_it_is_undone():
    class Forth(dist.transforms.Transform):
        def tree_flatten(self):
            return (), ((), {})

    assert names.has_inverse(dist.transforms.ExpTransform())
    assert names.has_inverse(dist.transforms.ExpTransform().inv)
    assert not names.has_inverse(Forth())
