"""A prior has no density: what the engines of this package refuse, and what enters an evidence."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import affine_prior
from density_cases import DATA, DEPENDENT, DEPENDS, KEY, latent, svi
from numpyro.handlers import reparam, seed
from numpyro.infer import NUTS
from wrapped_cases import OTHERS, PRIOR, SCHEDULE, WITHOUT_INVERSE

import numpyro_diffusion as nd
from numpyro_diffusion.infer import (
    AutoDiffusionGuide,
    DiffusionGibbs,
    DiffusionHMC,
    DiffusionReparam,
    EllipticalSlice,
    TemperedSMC,
    TwistedSMC,
)


def run_guide(model):
    guide = AutoDiffusionGuide(model)
    svi(guide.model, guide).init(KEY)


ENGINES = {
    "TwistedSMC": lambda model: TwistedSMC(model, num_particles=2, progress_bar=False).run(KEY),
    "DiffusionGibbs": lambda model: DiffusionGibbs(NUTS(model), num_particles=2).init(KEY, 0),
    "EllipticalSlice": lambda model: EllipticalSlice(model).init(KEY, 0),
    "AutoDiffusionGuide": run_guide,
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [*OTHERS, *WITHOUT_INVERSE])
@pytest.mark.parametrize("is_beside_another", [False, True], ids=["alone", "beside a bare one"])
def test_an_engine_refuses_a_wrapper_that_it_does_not_see_through(engine, name, is_beside_another):
    """Alone: "NUTS alone will do" it said. Beside a bare one DiffusionGibbs gave it to NUTS: sd 8.0, right 2."""

    def model():
        if is_beside_another:
            numpyro.sample("z", PRIOR)
        latent({**OTHERS, **WITHOUT_INVERSE}[name]())()

    wanted = f"a Diffusion at latent site 'x', as it is .*inverse; got one inside of {name.split()[0]}"
    with pytest.raises(ValueError, match=wanted):
        ENGINES[engine](model)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_refuses_a_transform_of_bits(engine):
    """NumPyro's density of it would have the Jacobian of a real number."""
    kernel = nd.BernoulliKernel(nd.schedules.linear(2, 1.0, 4.0), rate=0.4)
    bits = nd.Diffusion(kernel, nd.Transition(lambda params, x_t, t, context: 0.0 * x_t, None, (1,)))
    signs = dist.TransformedDistribution(bits, dist.transforms.AffineTransform(-1.0, 2.0))
    wanted = "real states inside of the transforms at latent site 'x'; got the discrete ones of BernoulliKernel"
    with pytest.raises(ValueError, match=wanted):
        ENGINES[engine](latent(signs))


@pytest.mark.parametrize("name", [*OTHERS, *WITHOUT_INVERSE])
def test_reparam_names_what_it_does_not_see_through(name):
    model = reparam(latent({**OTHERS, **WITHOUT_INVERSE}[name]()), config={"x": DiffusionReparam()})
    with pytest.raises(TypeError, match=f"a Diffusion at site 'x'; got {name.split()[0]}"):
        seed(model, 0)()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_refuses_a_sample_shape_at_a_diffusion_site(engine):
    """It dropped it: one x, shared by two observations."""

    def model():
        x = numpyro.sample("x", PRIOR, sample_shape=(2,))
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(), obs=jnp.zeros((2, 1)))

    with pytest.raises(ValueError, match=r"no sample_shape at the diffusion site 'x'; got \(2,\).*plate"):
        ENGINES[engine](model)


def test_reparam_refuses_a_sample_shape():
    def model():
        numpyro.sample("x", PRIOR, sample_shape=(2,))

    with pytest.raises(ValueError, match=r"no sample_shape at the diffusion site 'x'; got \(2,\).*plate"):
        seed(reparam(model, config={"x": DiffusionReparam()}), 0)()


def test_a_sample_shape_in_a_plate_is_the_plate_s():
    def model():
        with numpyro.plate("n", 3):
            return numpyro.sample("x", PRIOR, sample_shape=(2, 1))

    assert seed(reparam(model, config={"x": DiffusionReparam()}), 0)().shape == (2, 3, 1)


@pytest.mark.parametrize("engine", ["TwistedSMC", "DiffusionGibbs", "EllipticalSlice"])
@pytest.mark.parametrize("model", DEPENDENT.values(), ids=DEPENDENT)
def test_an_engine_refuses_an_observed_diffusion_that_depends_on_a_latent_site(engine, model):
    def beside():
        numpyro.sample("diffusion", PRIOR)
        model()

    with pytest.raises(ValueError, match=DEPENDS):
        ENGINES[engine](beside)


def observed_below():
    z = numpyro.sample("z", PRIOR)
    numpyro.sample("x", affine_prior(SCHEDULE, [0.0], context=z), obs=DATA[0])


@pytest.mark.parametrize("engine", ["TwistedSMC", "DiffusionGibbs", "EllipticalSlice"])
def test_an_engine_refuses_an_observed_diffusion_that_depends_on_a_diffusion_site(engine):
    with pytest.raises(ValueError, match=DEPENDS):
        ENGINES[engine](observed_below)


class Written(dist.Distribution):
    """By a user: a diffusion is made when the density is asked for, and no attribute shows it."""

    support = dist.constraints.real_vector

    def __init__(self, context):
        self.context = context
        super().__init__((), (1,))

    def sample(self, key, sample_shape=()):
        return self.diffusion().sample(key, sample_shape)

    def log_prob(self, value, intermediates=None):
        return self.diffusion().log_prob(value)

    def diffusion(self):
        return affine_prior(SCHEDULE, [0.5], context=self.context)


class Hidden(Written):
    """It holds a function of a diffusion."""

    def __init__(self, context):
        self.density = affine_prior(SCHEDULE, [0.5], context=context).log_prob
        dist.Distribution.__init__(self, (), (1,))

    def log_prob(self, value, intermediates=None):
        return self.density(value)


WRITTEN = pytest.mark.parametrize("written", [Written, Hidden])


@WRITTEN
@pytest.mark.parametrize("engine", ["TwistedSMC", "DiffusionGibbs", "EllipticalSlice"])
def test_an_engine_refuses_a_written_density_that_is_made_of_one(engine, written):
    """Log Z was -.80 where -1.89 is right."""

    def model():
        z = numpyro.sample("z", PRIOR)
        numpyro.sample("x", written(z), obs=DATA[0])

    with pytest.raises(ValueError, match=DEPENDS):
        ENGINES[engine](model)


@WRITTEN
def test_nuts_refuses_a_written_density_that_is_made_of_one(written):
    """C was 1.11 where 1.28 is right."""

    def model():
        c = numpyro.sample("c", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
        numpyro.sample("x", written(c), obs=DATA[0])

    with pytest.raises(ValueError, match=DEPENDS):
        NUTS(model).init(KEY, 0, None, (), {})


@WRITTEN
def test_a_written_density_that_depends_on_no_latent_site_is_a_constant(written):
    """Also where the chains are mapped, and so is the model's key."""

    def model():
        c = numpyro.sample("c", dist.Normal())
        numpyro.sample("y", dist.Normal(c, 1.0), obs=1.0)
        numpyro.sample("x", written(jnp.ones(1)), obs=DATA[0])

    NUTS(model).init(KEY, 0, None, (), {})
    NUTS(model).init(jax.random.split(KEY), 0, None, (), {})


def test_the_weights_of_our_guide_are_not_made_of_a_bound():
    guide = AutoDiffusionGuide(observed_below)
    params = svi(guide.model, guide).run(KEY, 1, progress_bar=False).params
    with pytest.raises(ValueError, match=DEPENDS):
        guide.importance_weights(KEY, params, 25)


def twisted_evidence(model):
    return TwistedSMC(model, num_particles=64, num_islands=1, twist="none", progress_bar=False).run(KEY).log_evidence


def tempered_evidence(model):
    smc = TemperedSMC(model, guidance=None, num_particles=64, num_islands=1, progress_bar=False)
    return smc.run(KEY).log_evidence


def guided_evidence(model):
    guide = AutoDiffusionGuide(model)
    params = svi(guide.model, guide).run(KEY, 1, progress_bar=False).params
    return float(guide.importance_weights(KEY, params, 25).log_evidence)


@pytest.mark.parametrize("evidence", [twisted_evidence, tempered_evidence, guided_evidence])
def test_a_constant_observed_diffusion_enters_the_evidence_by_its_named_estimate(evidence):
    """Of one that names none a single random step was taken, without a word."""
    named = nd.Diffusion(PRIOR.kernel, PRIOR.transition, estimator=nd.AllSteps(), rng_key=KEY)

    def beside(other):
        def model():
            latent(PRIOR)()
            if other is not None:
                numpyro.sample("other", other, obs=jnp.ones(1) * 0.3)

        return model

    with pytest.raises(ValueError, match=r"for the observed site 'other', a constant of the evidence; got estimator=N"):
        evidence(beside(PRIOR))
    wanted = evidence(beside(None)) + float(named.log_prob(0.3 * jnp.ones(1)))
    assert evidence(beside(named)) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("kernel", [EllipticalSlice, DiffusionHMC])
def test_a_posterior_needs_no_name_of_a_constant(kernel):
    def model():
        latent(PRIOR)()
        numpyro.sample("other", PRIOR, obs=jnp.ones(1) * 0.3)

    kernel(model).init(KEY, 0)
