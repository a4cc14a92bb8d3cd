"""Elements of a plate are filtered apart where the model's operations prove that they may be, and nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from closed_forms import affine_prior
from measured_errors import check_islands
from numpyro.infer import MCMC

import numpyro_diffusion as nd
from numpyro_diffusion.infer import DiffusionGibbs, TwistedSMC
from numpyro_diffusion.model.split import split_model

PRIOR = affine_prior(nd.schedules.log_snr(2, 0.3, 10.0), [0.5, -0.3])
WEIGHTS = jnp.arange(6.0).reshape(2, 3)
GROUPS = jnp.array([0, 2, 1, 0])


def jitted(x):
    return jax.jit(lambda x: jnp.tanh(x) * 2)(x)


def scanned_over_features(x):
    return jax.lax.scan(lambda c, column: (c + column**2, c), jnp.zeros(x.shape[0]), x.T)[0]


def scanned_over_elements(x):
    return jax.lax.scan(lambda c, row: (c + row.sum(), c), 0.0, x)[1]


def scanned_a_few_times(x):
    return jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y) + x, x).sum(-1)


def as_long_as_x_says(x):
    return jax.lax.while_loop(lambda y: y.sum() < 10, lambda y: y + 1, x)[:, 0]


def branched(x):
    return jax.lax.cond(x.sum() > 0, lambda x: x, lambda x: -x, x)[:, 0]


def two_carries_exchanged(x):
    """Each is coupled for a reason of its own."""
    start = (x.sum() + x[:, 0], x[::-1, 0])
    return jax.lax.fori_loop(0, 3, lambda _, carry: (carry[1], carry[0]), start)[0]


@jax.custom_jvp
def own_gradient(x):
    return x**2


own_gradient.defjvp(lambda primals, tangents: (own_gradient(*primals), 2 * primals[0] * tangents[0]))


@jax.custom_vjp
def own_pullback(x):
    return x**2


own_pullback.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))

# The mean of y_i, from x of shape (elements, 2): whether it is of x_i alone.
APART = {
    "one feature": lambda x: x[:, 0],
    "last feature": lambda x: x[..., -1],
    "product with a matrix": lambda x: (x @ WEIGHTS).sum(-1),
    "einsum": lambda x: jnp.einsum("nd,de->ne", x, WEIGHTS)[:, 1],
    "norm": lambda x: jnp.linalg.norm(x, axis=-1),
    "softmax of features": lambda x: jax.nn.softmax(x, axis=-1)[:, 0],
    "logsumexp of features": lambda x: jax.nn.logsumexp(x, axis=-1),
    "sorted features": lambda x: jnp.sort(x, axis=-1)[:, 0],
    "reversed features": lambda x: x[:, ::-1][:, 0],
    "cumulated features": lambda x: jnp.cumsum(x, axis=-1)[:, -1],
    "where": lambda x: jnp.where(x[:, 0] > 0, x[:, 1], 3.0),
    "relu": lambda x: jax.nn.relu(x[:, 0]),
    "vmap": jax.vmap(lambda row: row @ jnp.array([1.0, 2.0])),
    "vmap of a loop": jax.vmap(lambda row: jax.lax.fori_loop(0, 3, lambda _, y: jnp.cos(y), row)[0]),
    "jit": lambda x: jitted(x)[:, 0],
    "checkpoint": lambda x: jax.checkpoint(lambda x: jnp.sin(x).sum(-1))(x),
    "custom derivative": lambda x: own_gradient(x)[:, 0],
    "custom pull-back": lambda x: own_pullback(x)[:, 0],
    "scan over features": scanned_over_features,
    "a few rounds": scanned_a_few_times,
    "reshape": lambda x: x.reshape(4, 2, 1)[:, 0, 0],
    "transpose": lambda x: x.T[0],
    "stack": lambda x: jnp.stack([x[:, 0], x[:, 1]], axis=1).sum(1),
    "concatenate": lambda x: jnp.concatenate([x, x**2], axis=1).max(1),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 1))).sum(-1),
    "table": lambda x: jnp.array([1.0, 2.0, 3.0])[jnp.clip(x[:, 0].astype(int), 0, 2)],
    "set a feature": lambda x: x.at[:, 0].set(0.0).sum(-1),
    "own random number": lambda x: x[:, 0] + jax.random.normal(jax.random.key(0), (4,)),
    "cholesky": lambda x: jnp.linalg.cholesky(x[:, :, None] * x[:, None, :] + 3 * jnp.eye(2))[:, 0, 0],
    "unstack": lambda x: jnp.unstack(x, axis=1)[1],
    "tile": lambda x: jnp.tile(x, (1, 2)).sum(-1),
}
TOGETHER = {
    "sum": lambda x: x[:, 0] + jax.nn.relu(x.sum() - 10),
    "mean": lambda x: x[:, 0] - x[:, 0].mean(),
    "reversed": lambda x: x[::-1, 0],
    "rolled": lambda x: jnp.roll(x[:, 0], 1),
    "gathered": lambda x: x[GROUPS, 0],
    "taken": lambda x: jnp.take_along_axis(x, GROUPS[:, None], axis=0)[:, 0],
    "cumulated": lambda x: jnp.cumsum(x[:, 0]),
    "cumulative maximum": lambda x: jax.lax.cummax(x[:, 0]),
    "sorted": lambda x: jnp.sort(x[:, 0]),
    "softmax of elements": lambda x: jax.nn.softmax(x[:, 0]),
    "normalised": lambda x: x[:, 0] / jnp.linalg.norm(x),
    "one for all": lambda x: jnp.broadcast_to(x[0, 0], (4,)),
    "slice and pad": lambda x: jnp.pad(x[1:, 0], (0, 1)),
    "covariance": lambda x: (x @ x.T)[:, 0],
    "square matrix": lambda x: jnp.ones((4, 4)) @ x[:, 0],
    "scan over elements": scanned_over_elements,
    "as long as x says": as_long_as_x_says,
    "branch": branched,
    "where all": lambda x: jnp.where((x > 0).all(), x[:, 0], 0.0),
    "merged": lambda x: x.reshape(-1)[:4],
    "convolved": lambda x: jnp.convolve(x[:, 0], jnp.ones(3), mode="same"),
    "nested sum": lambda x: jax.jit(lambda x: x - jax.jit(jnp.sum)(x))(x)[:, 0],
    "exchanged carries": two_carries_exchanged,
    "far away": lambda x: jnp.where(x.sum() > 1e6, x[::-1, 0], x[:, 0]),
}


def model_of(mean):
    def model(y=None):
        with numpyro.plate("n", 4):
            x = numpyro.sample("x", PRIOR)
            numpyro.sample("y", dist.Normal(mean(x), 0.5), obs=y)

    return model


@pytest.mark.parametrize("name", APART)
def test_operations_that_keep_elements_apart_are_proved(name):
    split = split_model(model_of(APART[name]), (jnp.zeros(4),), {})
    assert split.element_shape == (4,), split.reason
    assert split.reason == "proved from the model's operations"
    # And rightly: a change of one element changes its own term alone.
    x = jax.random.normal(jax.random.key(1), (4, 2))
    before, after = (split.log_factor({"x": x}, {}).elements for x in (x, x.at[2].add(jnp.array([0.7, 0.3]))))
    np.testing.assert_array_equal((before != after), [False, False, name not in ("table",), False])


@pytest.mark.parametrize("name", TOGETHER)
def test_operations_across_elements_are_filtered_jointly_and_say_why(name):
    split = split_model(model_of(TOGETHER[name]), (jnp.zeros(4),), {})
    assert split.element_shape == ()
    assert split.reason.startswith("at site 'y', ")


@pytest.mark.parametrize("is_transposed", [True, False])
def test_a_reshape_that_reads_the_axes_in_another_order_is_no_reshape_of_rows(is_transposed):
    """``order="F"``: of as many elements as features its transpose went for x itself, and each had another's data."""
    prior = affine_prior(nd.schedules.log_snr(2, 0.3, 10.0), [0.5, -0.3, 0.1])

    def model():
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", prior).reshape((3, 3), order="F")
            numpyro.sample("y", dist.Normal(x.T if is_transposed else x, 0.5).to_event(1), obs=jnp.zeros((3, 3)))

    assert split_model(model, (), {}).element_shape == (() if is_transposed else (3,))


def test_each_of_two_plates_is_proved_by_itself():
    def model(coupled):
        with numpyro.plate("m", 3, dim=-2), numpyro.plate("n", 2, dim=-1):
            x = numpyro.sample("x", PRIOR)
            shift = x[..., 0].sum(0) if coupled else 0.0
            numpyro.sample("y", dist.Normal(x[..., 0] + shift, 0.5), obs=jnp.zeros((3, 2)))

    assert split_model(model, (False,), {}).element_shape == (3, 2)
    assert split_model(model, (True,), {}).element_shape == ()


def far_coupling(y):
    """Prior N(4, 1) for each of 3 members; their sum counts only above 10, where N(0, 1) states never are."""
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", FAR)
        numpyro.sample("y", dist.Normal(x[:, 0] + jax.nn.relu(x.sum() - 10), 0.5), obs=y)


def mirrored(y):
    """Modes at 0 and 8, two members; each sees the other only above 4."""
    with numpyro.plate("n", 2):
        x = numpyro.sample("x", MODES)
        numpyro.sample("y", dist.Normal(x[:, 0] + 0.8 * jax.nn.relu(x[::-1, 0] - 4), 2.0), obs=y)


def mixture(means, num_steps=40):
    kernel = nd.GaussianKernel(nd.schedules.log_snr(num_steps, 0.05, 200.0), parameterization="x0", variance="denoiser")
    means = jnp.asarray(means)[:, None]
    return nd.Diffusion(kernel, nd.analytic.gaussian_mixture(kernel, means, 1.0, jnp.ones(len(means))))


FAR, MODES = mixture([4.0]), mixture([0.0, 8.0])


def grid_posterior(prior_density, likelihood, size, num_points=161):
    """Mean and sd of x_1, the evidence, and P(exactly one above 4), by quadrature on a grid."""
    points = np.linspace(-5.0, 13.0, num_points)
    x = np.stack(np.meshgrid(*[points] * size, indexing="ij"), -1)
    density = np.prod(prior_density(x), -1) * likelihood(x) * (points[1] - points[0]) ** size
    total = density.sum()
    mean = (density * x[..., 0]).sum() / total
    sd = np.sqrt((density * (x[..., 0] - mean) ** 2).sum() / total)
    return mean, sd, np.log(total), density[(x > 4).sum(-1) == 1].sum() / total


def normal_density(value, mean, scale):
    return np.exp(-0.5 * ((value - mean) / scale) ** 2) / (scale * np.sqrt(2 * np.pi))


@pytest.mark.parametrize("engine", ["smc", "gibbs"])
def test_a_coupling_far_from_where_states_are_tried_has_its_posterior(engine):
    y = jnp.array([4.0, 4.0, 4.0])
    likelihood = lambda x: np.prod(normal_density(4.0, x + np.maximum(x.sum(-1, keepdims=True) - 10, 0), 0.5), -1)
    mean, sd, evidence, _ = grid_posterior(lambda x: normal_density(x, 4.0, 1.0), likelihood, 3, 121)
    if engine == "smc":
        smc = TwistedSMC(far_coupling, 2048, 4, progress_bar=False)
        smc.run(jax.random.key(0), y)
        assert "jointly" in smc.elements_reason
        assert abs(smc.log_evidence - evidence) < 5 * smc.log_evidence_error + 0.02  # of T = 40
        draws, effective = smc.get_samples(num_samples=4000)["x"][:, :, 0], smc.min_ess
    else:
        mcmc = MCMC(DiffusionGibbs(far_coupling), num_warmup=100, num_samples=1000, progress_bar=False)
        mcmc.run(jax.random.key(0), y)
        draws = mcmc.get_samples()["x"][:, :, 0]
        effective = float(numpyro.diagnostics.effective_sample_size(np.asarray(draws[None, :, 0])))
    assert abs(draws[:, 0].mean() - mean) < 5 * sd / np.sqrt(effective)
    assert abs(draws[:, 0].std() / sd - 1) < 5 / np.sqrt(2 * effective)
    assert effective > 100


def test_two_members_that_see_each_other_have_their_modes_and_evidence():
    likelihood = lambda x: np.prod(normal_density(5.0, x + 0.8 * np.maximum(x[..., ::-1] - 4, 0), 2.0), -1)
    prior = lambda x: 0.5 * normal_density(x, 0.0, 1.0) + 0.5 * normal_density(x, 8.0, 1.0)
    _, _, evidence, one_above = grid_posterior(prior, likelihood, 2, 361)
    smc = TwistedSMC(mirrored, 4096, 8, progress_bar=False)
    smc.run(jax.random.key(0), jnp.array([5.0, 5.0]))
    assert abs(smc.log_evidence - evidence) < 5 * smc.log_evidence_error + 0.05
    one_of_two = lambda samples: (np.asarray(samples["x"])[:, :, 0] > 4).sum(1) == 1
    check_islands(smc, one_of_two, one_above, refused=0.5)  # which it is for members taken apart
