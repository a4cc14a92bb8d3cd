"""SplitModel: which sites are diffusions, what multiplies their distribution, and which elements are filtered apart."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import affine_prior
from numpyro.handlers import block, condition, mask, scale, seed, substitute, trace
from numpyro.infer.util import log_density

import numpyro_diffusion as nd
from numpyro_diffusion.model.split import split_model

SCHEDULE = nd.schedules.log_snr(2, 0.3, 10.0)
NUMBER = affine_prior(SCHEDULE, [0.5])
PAIR = affine_prior(SCHEDULE, [0.5, -0.3])
CONDITIONAL = affine_prior(SCHEDULE, [0.5, -0.3], context=jnp.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]))
BITS = nd.Diffusion(
    nd.BernoulliKernel(nd.schedules.constant_fraction(2)),
    nd.Transition(lambda params, x_t, t, context: 0 * x_t, None, (1,)),
    rng_key=jax.random.key(7),
)


def plain(y):
    x = numpyro.sample("x", PAIR)
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def with_others(y):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    k = numpyro.sample("k", dist.Categorical(jnp.array([0.2, 0.8])))
    x = numpyro.sample("x", PAIR)
    shift = numpyro.sample("shift", dist.Normal(x[0], 1.0))
    numpyro.deterministic("sum", x.sum() + shift)
    numpyro.sample("y", dist.Normal(x + k + shift, sigma).to_event(1), obs=y)


def in_a_plate(y):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("n", 3):
        offset = numpyro.sample("offset", dist.Normal(0.0, 1.0))
        x = numpyro.sample("x", PAIR)
        numpyro.sample("y", dist.Normal(x + offset[:, None], sigma).to_event(1), obs=y)


def in_nested_plates(y):
    with numpyro.plate("n", 3, dim=-1):
        x = numpyro.sample("x", NUMBER)
        with numpyro.plate("m", 2, dim=-2):
            numpyro.sample("y", dist.Normal(x[..., 0], 0.5), obs=y)


def outer_plate_of_diffusions(y):
    with numpyro.plate("n", 3, dim=-2):
        x = numpyro.sample("x", NUMBER)
        with numpyro.plate("m", 2, dim=-1):
            numpyro.sample("y", dist.Normal(x[..., 0], 0.5), obs=y)


def as_an_event(y):
    x = numpyro.sample("x", NUMBER.expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(x[:, 0], 0.5).to_event(1), obs=y)


def two_sites(y):
    with numpyro.plate("n", 3):
        a = numpyro.sample("a", PAIR)
        b = numpyro.sample("b", NUMBER)
        numpyro.sample("y", dist.Normal(a + b, 0.5).to_event(1), obs=y)


def masked_and_scaled_likelihood(y):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", NUMBER)
        with mask(mask=jnp.array([True, False, True])), scale(scale=0.3):
            numpyro.sample("y", dist.Normal(x[..., 0], 0.5), obs=y)


def with_a_factor(y):
    x = numpyro.sample("x", PAIR)
    numpyro.factor("y", -jnp.sum((x - y) ** 4))


def coupled_by_a_mean(y):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", NUMBER)
        numpyro.sample("y", dist.Normal(x[..., 0] - x.mean(), 0.5), obs=y)


def coupled_by_a_site_outside(y):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", NUMBER)
        numpyro.sample("y", dist.Normal(x[..., 0], 0.5), obs=y)
    numpyro.sample("total", dist.Normal(x.sum(), 0.5), obs=1.0)


def coupled_by_a_difference_of_sites(y):
    with numpyro.plate("n", 3):
        a = numpyro.sample("a", NUMBER)
        b = numpyro.sample("b", NUMBER)
        numpyro.sample("y", dist.Normal((a - b).mean(), 0.5), obs=y)


def coupled_for_one_value_of_another_site(y):
    is_coupled = numpyro.sample("is_coupled", dist.Bernoulli(0.5))
    with numpyro.plate("n", 2):
        x = numpyro.sample("x", NUMBER)
        numpyro.sample("y", dist.Normal(x[..., 0] + is_coupled * x.sum(), 0.5), obs=y)


def coupled_bits(y):
    with numpyro.plate("n", 2):
        x = numpyro.sample("x", BITS)
        numpyro.sample("y", dist.Normal(x.sum() % 2, 0.5), obs=y)


def independent_bits(y):
    with numpyro.plate("n", 2):
        x = numpyro.sample("x", BITS)
        numpyro.sample("y", dist.Normal(x[:, 0], 0.5), obs=y)


def own_contexts(y):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", CONDITIONAL)
        numpyro.sample("y", dist.Normal(x.sum(-1), 0.5), obs=y)


def not_finite_everywhere(y):
    with numpyro.plate("n", 2):
        x = numpyro.sample("x", NUMBER)
        numpyro.factor("y", jnp.where(x[..., 0] > 40.0, 0.0, -jnp.inf))


MODELS = [
    # model, shape of y, elements, words of the reason
    (plain, (2,), (), "no diffusion site is in a plate"),
    (with_others, (2,), (), "no diffusion site is in a plate"),
    (in_a_plate, (3, 2), (3,), "proved"),
    (in_nested_plates, (2, 3), (3,), "proved"),
    (outer_plate_of_diffusions, (3, 2), (3, 1), "proved"),
    (as_an_event, (3,), (), "no diffusion site is in a plate"),
    (two_sites, (3, 2), (3,), "proved"),
    (masked_and_scaled_likelihood, (3,), (3,), "proved"),
    (with_a_factor, (2,), (), "no diffusion site is in a plate"),
    (coupled_by_a_mean, (3,), (), "goes over the elements"),
    (coupled_by_a_site_outside, (3,), (), "'total' depends on the elements"),
    (coupled_by_a_difference_of_sites, (3,), (), "goes over the elements"),
    (coupled_for_one_value_of_another_site, (2,), (), "goes over the elements"),
    (coupled_bits, (2,), (), "goes over the elements"),
    (independent_bits, (2,), (2,), "proved"),
    (own_contexts, (3,), (3,), "proved"),
    (not_finite_everywhere, (), (2,), "proved"),
]


@pytest.mark.parametrize(("model", "shape", "elements", "reason"), MODELS, ids=[row[0].__name__ for row in MODELS])
def test_the_factor_is_numpyros_density_without_the_diffusions_and_elements_are_found(model, shape, elements, reason):
    """Every model at values of all its latent sites, in float32: NumPyro's own log_density is the reference."""
    y = jnp.asarray(np.random.default_rng(0).normal(size=shape), float)
    split = split_model(model, (y,), {})
    assert split.element_shape == elements
    assert reason in split.reason

    @jax.jit  # one program, and not one for each operation
    def evaluate(y):
        sites = trace(seed(model, 3)).get_trace(y)
        values = {n: s["value"] for n, s in sites.items() if s["type"] == "sample" and not s["is_observed"]}
        x, others = ({n: values[n] for n in names} for names in ([site.name for site in split.sites], split.others))
        # Observed at these values with no density of their own, the diffusions leave the factor alone.
        beside = block(condition(seed(model, 3), x), hide=list(x))
        return split.log_factor(x, others), log_density(beside, (y,), {}, others)[0], values

    found, wanted, values = evaluate(y)
    assert {site.name for site in split.sites} | set(split.others) == values.keys()
    assert found.elements.shape == elements
    assert found.shared.shape == ()
    np.testing.assert_allclose(found.elements.sum() + found.shared, wanted, rtol=1e-4, atol=1e-4)


def test_each_element_has_its_own_terms_and_the_rest_is_shared():
    y, offset, x = jnp.arange(6.0).reshape(3, 2), jnp.array([1.0, 2.0, 3.0]), jnp.arange(6.0).reshape(3, 2) ** 2
    split = split_model(in_a_plate, (y,), {})
    found = split.log_factor({"x": x}, {"sigma": jnp.asarray(0.7), "offset": offset})
    by_hand = dist.Normal(0, 1).log_prob(offset) + dist.Normal(x + offset[:, None], 0.7).log_prob(y).sum(-1)
    np.testing.assert_allclose(found.elements, by_hand, rtol=1e-5)
    np.testing.assert_allclose(found.shared, dist.HalfNormal(1.0).log_prob(0.7), rtol=1e-5)
    # Two plates: every element sums over the plate that it is not in.
    split = split_model(in_nested_plates, (y.T,), {})
    x = x[:, :1]
    np.testing.assert_allclose(
        split.log_factor({"x": x}, {}).elements, dist.Normal(x, 0.5).log_prob(y).sum(1), rtol=1e-5
    )


def test_sites_are_sorted_into_their_roles():
    split = split_model(with_others, (jnp.zeros(2),), {})
    assert [site.name for site in split.sites] == ["x"]
    assert split.others == ("sigma", "k", "shift")
    assert split.discrete_others == ("k",)
    assert split.deterministic == ("sum",)
    assert list(split.observations()) == ["y"]
    assert not split.chains_depend_on_others()
    values = {"sigma": jnp.ones(()), "k": jnp.ones((), int), "shift": jnp.asarray(2.0)}
    x = {"x": jnp.array([1.0, 2.0])}
    assert set(split.seen(x, values)) == {"shift", "y"}
    assert split.outputs({**values, **x})["sum"] == 5.0


def test_other_sites_are_drawn_with_the_density_at_which_they_were_drawn():
    """HalfNormal, Categorical and a Normal about a random x: what the density must add up to, from the values."""
    split = split_model(with_others, (jnp.zeros(2),), {})
    drawn, log_prob = jax.jit(jax.vmap(split.draw_others))(jax.random.split(jax.random.key(0), 4000))
    fixed = dist.HalfNormal(1.0).log_prob(drawn["sigma"]) + jnp.log(jnp.where(drawn["k"] == 1, 0.8, 0.2))
    # What is left is log N(shift; x, 1), of mean -(1 + log 2 pi) / 2 and variance 1/2.
    left = log_prob - fixed
    assert abs(left.mean() + 0.5 * (1 + np.log(2 * np.pi))) < 5 * np.sqrt(0.5 / 4000)
    assert abs(drawn["k"].mean() - 0.8) < 5 * np.sqrt(0.16 / 4000)


def test_a_conditioned_site_is_no_longer_latent_and_its_prior_stays_in_the_factor():
    values = {"sigma": jnp.asarray(0.5), "k": jnp.asarray(1), "shift": jnp.asarray(0.3)}
    y, x = jnp.array([1.0, 2.0]), {"x": jnp.array([0.1, 0.2])}
    given = split_model(condition(with_others, values), (y,), {})
    assert given.others == ()
    np.testing.assert_allclose(
        given.log_factor(x, {}).elements, split_model(with_others, (y,), {}).log_factor(x, values).elements, rtol=1e-6
    )
    assert split_model(substitute(with_others, values), (y,), {}).others == ("sigma", "k", "shift")


def test_chains_follow_the_other_sites_they_depend_on():
    def model():
        rate = numpyro.sample("rate", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", 3):
            numpyro.sample("x", affine_prior(SCHEDULE, [0.0, 0.0], context=rate * jnp.ones((3, 2))))

    split = split_model(model, (), {})
    assert split.chains_depend_on_others()
    chain = split.chains({"rate": jnp.asarray(2.5)})["x"]
    assert chain.batch_shape == (3,)
    np.testing.assert_array_equal(chain.context, 2.5)
    assert split.element_shape == (3,)


def test_a_chain_depends_on_a_site_through_a_flag_too():
    def network(is_positive, x_t, t, context):
        return jnp.where(is_positive, x_t, -x_t)

    def model():
        rate = numpyro.sample("rate", dist.Normal(0.0, 1.0))
        numpyro.sample("x", nd.Diffusion(PAIR.kernel, nd.Transition(network, rate > 0, (2,))))

    split = split_model(model, (), {})
    assert split.chains_depend_on_others()
    assert not split.chains({"rate": jnp.asarray(-1.0)})["x"].transition.params


def test_what_was_told_is_done():
    y = jnp.zeros((3, 2))
    assert split_model(in_a_plate, (y,), {}, elements="joint").element_shape == ()
    told = split_model(in_a_plate, (y,), {}, elements="independent")
    assert (told.element_shape, told.reason) == ((3,), "told so")
