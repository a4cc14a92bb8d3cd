"""DiffusionGibbs draws the exact posterior of the T-step model: by enumeration on bits, in closed form on Gaussians.

Two kinds of test. On bits all paths are enumerated: starts are drawn from the exact posterior, each is moved once, and
the counts of where they end are compared with the same posterior; draws are independent, so nothing is left to an
effective sample size. On Gaussians a few long chains are compared with closed forms or quadrature; errors are in
standard errors of the effective sample size.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import HMC, MCMC, NUTS, CustomGibbs, DiscreteGibbs, Gibbs
from numpyro.infer.gibbs import discrete_latent_sites
from scipy.stats import chi2, norm

import numpyro_diffusion as nd
from numpyro_diffusion.estimates.importance import log_path_ratio
from numpyro_diffusion.infer import DiffusionGibbs
from numpyro_diffusion.infer.smc import target_of
from numpyro_diffusion.model.split import split_model
from numpyro_diffusion.particles.filter import run_filter
from numpyro_diffusion.particles.path_moves import conditional_smc, independent_paths, refresh_paths
from numpyro_diffusion.particles.target import draw_prior


def zero_network(params, x_t, t, context):
    return 0 * x_t


def normal_prior(num_steps, event_shape=()):
    """Its x^0 is N(0, 1) whatever T: the network and the variance are exact for such data."""
    kernel = nd.GaussianKernel(nd.schedules.log_snr(num_steps, 0.1, 100.0), variance="upper")
    return nd.Diffusion(kernel, nd.Transition(zero_network, None, event_shape))


NORMAL = normal_prior(4)


def run(kernel, *args, num_samples=500, num_warmup=50, num_chains=8, key=0, extra_fields=()):
    """Draws by chain, and extra fields by chain."""
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(key), *args, extra_fields=extra_fields)
    return mcmc.get_samples(group_by_chain=True), mcmc.get_extra_fields(group_by_chain=True)


def z_score(values, wanted):
    """Of the mean of values, shape (chains, draws), with the standard error of their effective number."""
    values = np.asarray(values, float)
    size = effective_sample_size(values)
    assert size > 200
    return abs(values.mean() - wanted) / (values.std() / np.sqrt(size))


def check_normal(draws, mean, variance):
    assert z_score(draws, mean) < 5
    assert z_score((draws - mean) ** 2, variance) < 5


# Bits: every path enumerated ----------------------------------------------------------------------------


def coupling_network(params, x_t, t, context):
    """The second bit tells of the first, and the first of the second, differently at each step."""
    return params * (x_t[..., ::-1] - 0.5) + 0.3 * t[..., None] - 0.5


def bits_problem(parameterization):
    """Two bits, T = 2: the model, its 64 paths (3, 2) and their posterior."""
    kernel = nd.BernoulliKernel(nd.schedules.linear(2, 1.0, 4.0), rate=0.4, parameterization=parameterization)
    prior = nd.Diffusion(kernel, nd.Transition(coupling_network, jnp.asarray(1.2), (2,)))

    def model():
        x = numpyro.sample("x", prior)
        mean = 1.5 * x[0] - x[1] + 2.0 * x[0] * x[1]
        numpyro.sample("y", dist.Normal(mean, 0.8), obs=1.2)

    paths = jnp.asarray(list(itertools.product((0, 1), repeat=6))).reshape(64, 3, 2)
    return model, paths, posterior_of(model, prior, paths)


def one_bit_problem():
    """One bit, T = 1: a likelihood ratio of nine, so that two particles often differ much."""
    kernel = nd.BernoulliKernel(nd.schedules.linear(1, 1.0, 4.0), rate=0.5)
    prior = nd.Diffusion(kernel, nd.Transition(zero_network, None, ()))

    def model():
        numpyro.factor("r", np.log(9.0) * numpyro.sample("x", prior))

    paths = jnp.asarray(list(itertools.product((0, 1), repeat=2)))
    return model, paths, posterior_of(model, prior, paths)


def posterior_of(model, prior, paths):
    split = split_model(model, (), {})

    @jax.jit
    def of(paths):
        log_r = jax.vmap(lambda x_0: split.log_factor({"x": x_0}, {}).elements)(paths[:, 0])
        return jax.nn.softmax(prior.chain.log_prob(paths) + log_r)

    return np.asarray(of(paths), float)


def moved_once(moves, paths, posterior, num_batches=5, batch=20_000):
    """Starts are drawn from the posterior; ``moves(path, key)`` tells where each move by name ends.

    Returns:
        By name, counts by path of the ends, and the share that was moved.
    """
    places = np.prod(paths.shape[1:])
    powers = 2 ** jnp.arange(places)[::-1]

    @jax.jit
    def of(key):
        key_start, key_move = jax.random.split(key)
        starts = jax.random.choice(key_start, len(paths), (batch,), p=jnp.asarray(posterior))
        ends = jax.vmap(moves)(paths[starts], jax.random.split(key_move, batch))
        return starts, {name: end.reshape(batch, -1) @ powers for name, end in ends.items()}

    batches = [of(key) for key in jax.random.split(jax.random.key(7), num_batches)]
    starts, ends = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
    return {name: (np.bincount(end, minlength=len(paths)), (starts != end).mean()) for name, end in ends.items()}


def p_value(counts, posterior):
    """Of the chi-square test, over paths none of which is rare."""
    wanted = counts.sum() * posterior
    assert wanted.min() > 10
    return chi2.sf(((counts - wanted) ** 2 / wanted).sum(), len(wanted) - 1)


def kernel_move(kernel):
    """One whole draw of a kernel as a move of a path."""
    start = kernel.init(jax.random.key(0), 0, None, (), {})
    return lambda path, key: kernel.sample(start._replace(paths={"x": path}, rng_key=key), (), {}).paths


def test_two_particles_leave_the_posterior_of_bits_as_it_is():
    model, paths, posterior = bits_problem("x0")
    move = kernel_move(DiffusionGibbs(NUTS(model), num_particles=2, independence=True))
    ((counts, moved),) = moved_once(move, paths, posterior).values()
    assert p_value(counts, posterior) > 1e-5
    assert moved > 0.3


def test_each_move_alone_leaves_the_posterior_of_bits_as_it_is():
    """N = 4 particles; of bits by the logits of a step, where the test above has them by x^0."""
    model, paths, posterior = bits_problem("logits")
    twist = DiffusionGibbs(NUTS(model)).twist
    target = target_of(split_model(model, (), {}), {})
    constants = twist.prepare(target, draw_prior(target, jax.random.key(0), twist.num_prior_draws))

    def walk(key, **options):
        return run_filter(target, twist, constants, key, 4, keep_paths=True, **options)

    def moves(path, key):
        """The independent one follows conditional SMC, which leaves not a path alone but a cloud with its evidence."""
        key_cloud, key_fresh, key_refresh = jax.random.split(key, 3)
        conditional, cloud, _ = conditional_smc(target, walk, {"x": path}, key_cloud)
        independent, _ = independent_paths(target, walk, conditional, cloud.log_evidence, key_fresh)
        refreshed, _ = refresh_paths(target, {"x": path}, key_refresh)
        return {"conditional": conditional["x"], "independent": independent["x"], "refresh": refreshed["x"]}

    found = moved_once(moves, paths, posterior)
    for name, least in {"conditional": 0.3, "independent": 0.4, "refresh": 0.1}.items():
        counts, moved = found[name]
        assert p_value(counts, posterior) > 1e-5, name
        assert moved > least, name


def test_the_test_has_power():
    """Fresh particles taken without asking for their evidence are found out."""
    model, paths, posterior = one_bit_problem()
    target = target_of(split_model(model, (), {}), {})
    twist = DiffusionGibbs(NUTS(model), twist="none").twist

    def walk(key, **options):
        return run_filter(target, twist, None, key, 2, keep_paths=True, **options)

    def always(path, key):
        return independent_paths(target, walk, {"x": path}, jnp.asarray(-jnp.inf), key)[0]

    ((counts, _),) = moved_once(always, paths, posterior, num_batches=1).values()
    assert p_value(counts, posterior) < 1e-5


def test_acceptance_of_fresh_particles_tells_nothing_of_which_is_chosen():
    """A million starts: one key for both moved the posterior by 6 standard errors."""
    model, paths, posterior = one_bit_problem()
    kernel = DiffusionGibbs(NUTS(model), num_particles=2, twist="none", refresh=False, independence=True)
    ((counts, _),) = moved_once(kernel_move(kernel), paths, posterior, num_batches=50).values()
    assert p_value(counts, posterior) > 1e-5


@pytest.mark.slow
def test_bits_beside_an_unknown_scale():
    """x by enumeration, sigma by quadrature; the network's bias is a third unknown, which the path alone tells of."""
    kernel = nd.BernoulliKernel(nd.schedules.linear(2, 1.0, 4.0), rate=0.4)

    def prior(bias):
        return nd.Diffusion(kernel, nd.Transition(biased_network, bias, (2,)))

    def model():
        bias = numpyro.sample("bias", dist.Uniform(-1.0, 1.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        x = numpyro.sample("x", prior(bias))
        numpyro.sample("y", dist.Normal(x.sum(), sigma), obs=1.7)

    draws, _ = run(DiffusionGibbs(NUTS(model), num_particles=4), num_samples=2000)
    paths = jnp.asarray(list(itertools.product((0, 1), repeat=6))).reshape(64, 3, 2)
    bias, sigma = np.linspace(-1, 1, 201), np.linspace(1e-3, 5, 2000)
    log_paths = np.asarray(jax.vmap(lambda bias: prior(bias).chain.log_prob(paths))(jnp.asarray(bias)), float)
    sums = np.asarray(paths[:, 0].sum(-1))
    likelihood = norm.pdf(1.7, sums[:, None], sigma) * norm.pdf(sigma)  # (paths, sigma)
    weight = np.exp(log_paths)[:, :, None] * likelihood  # (bias, paths, sigma)
    weight /= weight.sum()
    assert z_score(draws["bias"], (weight.sum((1, 2)) * bias).sum()) < 5
    assert z_score(draws["sigma"], (weight.sum((0, 1)) * sigma).sum()) < 5
    for count in (1, 2):
        assert z_score(draws["x"].sum(-1) == count, weight.sum((0, 2))[sums == count].sum()) < 5


def biased_network(params, x_t, t, context):
    return 2.0 * (x_t - 0.5) + params


# Gaussians: closed forms and quadrature -----------------------------------------------------------------


SCALED_DATA = np.array([1.2, 0.4, 2.1, 0.9], np.float32)


def unknown_scale(y):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    x = numpyro.sample("x", NORMAL)
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(x, sigma), obs=y)


def test_an_unknown_scale_beside_x_against_quadrature():
    """With HMC as the inner kernel, and without a twist."""
    inner = HMC(unknown_scale, num_steps=4, trajectory_length=None)
    draws, _ = run(DiffusionGibbs(inner, twist="none"), SCALED_DATA, num_samples=2000)
    x, sigma = np.meshgrid(np.linspace(-4, 5, 1201), np.linspace(1e-3, 6, 1200), indexing="ij")
    log_density = norm.logpdf(x) + norm.logpdf(sigma) + norm.logpdf(SCALED_DATA[:, None, None], x, sigma).sum(0)
    weight = np.exp(log_density - log_density.max())
    weight /= weight.sum()
    for f in (lambda x, s: x, lambda x, s: x**2, lambda x, s: s, lambda x, s: s**2, lambda x, s: x * s):
        assert z_score(f(draws["x"], draws["sigma"]), (weight * f(x, sigma)).sum()) < 5


def shifting_network(params, x_t, t, context):
    """E[x^0 | x^t] for x^0 ~ N(context, 1)."""
    signal = jnp.sqrt(params[t])
    return context + signal * (x_t - signal * context)


def test_a_chain_whose_law_another_site_shifts():
    """m ~ N(0, 1), x^0 | m ~ N(k m, 1), y = 2 ~ N(x, 1/2): m sees the path alone, by its density. k is not quite 1."""
    kernel = nd.GaussianKernel(nd.schedules.log_snr(5, 0.2, 4.0), parameterization="x0", variance="upper")
    schedule = kernel.schedule
    transition = nd.Transition(shifting_network, jnp.asarray(schedule.alpha_bar, float), (), context_shape=())

    def model():
        m = numpyro.sample("m", dist.Normal(0.0, 1.0))
        x = numpyro.sample("x", nd.Diffusion(kernel, transition, context=m))
        numpyro.sample("y", dist.Normal(x, np.sqrt(0.5)), obs=2.0)

    mean = jnp.zeros(())  # of x^t for m = 1: a step's mean is linear in x^t and m
    for t in range(kernel.num_steps, 0, -1):
        mean = kernel.reverse(transition(mean, t, jnp.ones(())), mean, t).mean
    k = float(mean)
    assert 0.5 < k < 0.98
    prior = np.array([[1.0, k], [k, k**2 + 1.0]])  # of (m, x^0)
    gain = prior[:, 1] / (prior[1, 1] + 0.5)
    covariance = prior - np.outer(gain, prior[1])
    draws, _ = run(DiffusionGibbs(NUTS(model)), num_samples=2000)
    check_normal(draws["m"], gain[0] * 2.0, covariance[0, 0])
    check_normal(draws["x"], gain[1] * 2.0, covariance[1, 1])
    cross = (draws["m"] - gain[0] * 2.0) * (draws["x"] - gain[1] * 2.0)
    assert z_score(cross, covariance[0, 1]) < 5


def test_two_diffusion_sites_of_different_length():
    """x, w ~ N(0, 1), y = 2 ~ N(x + 2 w, 1)."""

    def model():
        x, w = numpyro.sample("x", NORMAL), numpyro.sample("w", normal_prior(1, (1,)))
        numpyro.sample("y", dist.Normal(x + 2.0 * w[0], 1.0), obs=2.0)

    draws, info = run(DiffusionGibbs(NUTS(model)), num_samples=1500, extra_fields=("refresh_acceptance",))
    x, w = draws["x"], draws["w"][..., 0]
    check_normal(x, 1 / 3, 5 / 6)
    check_normal(w, 2 / 3, 1 / 3)
    assert z_score((x - 1 / 3) * (w - 2 / 3), -1 / 3) < 5
    assert (info["refresh_acceptance"] > 0.999).mean() > 0.999


PLATE_DATA = np.array([2.0, -1.0, 0.5], np.float32)
PLATE_SCALES = np.array([0.3, 1.0, 2.0], np.float32)


def test_elements_of_a_plate_are_moved_one_by_one():
    """x_i ~ N(0, 1), y_i ~ N(x_i, s_i)."""

    def model():
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", NORMAL)
            numpyro.sample("y", dist.Normal(x, PLATE_SCALES), obs=PLATE_DATA)

    kernel = DiffusionGibbs(NUTS(model), num_particles=2, independence=True)
    fields = ("moved", "independence_acceptance")
    draws, info = run(kernel, num_samples=2000, extra_fields=fields)
    for index, (y, scale) in enumerate(zip(PLATE_DATA, PLATE_SCALES, strict=True)):
        check_normal(draws["x"][..., index], y / (1 + scale**2), scale**2 / (1 + scale**2))
    for name in fields:  # of three elements some are moved and others not
        shares = np.unique(np.round(3 * np.asarray(info[name]), 3))
        assert shares.tolist() == [0, 1, 2, 3], name
    stays = np.asarray(draws["x"])[:, 1:] == np.asarray(draws["x"])[:, :-1]
    assert 0 < stays[..., 0].mean() != stays[..., 2].mean()


def test_a_plate_that_the_likelihood_couples_is_moved_as_one():
    """y = 2 ~ N(sum of x_i, 1/2): mean 2/3.5 each, covariance I - 1/3.5. Where p is exact every noising is accepted."""

    def model():
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", NORMAL)
        numpyro.sample("y", dist.Normal(x.sum(), np.sqrt(0.5)), obs=2.0)

    fields = ("refresh_acceptance", "moved", "effective_size", "independence_acceptance")
    draws, info = run(DiffusionGibbs(NUTS(model)), num_samples=1500, extra_fields=fields)
    check_normal(draws["x"][..., 0], 2 / 3.5, 1 - 1 / 3.5)
    check_normal(draws["x"].sum(-1), 6 / 3.5, 3 - 9 / 3.5)
    assert set(np.unique(info["moved"])) == {0.0, 1.0}
    assert info["moved"].mean() > 0.1
    assert (info["refresh_acceptance"] > 0.999).mean() > 0.999  # to rounding of the ratio 1
    assert ((info["effective_size"] >= 1) & (info["effective_size"] <= 16 + 1e-3)).all()
    assert (info["independence_acceptance"] == 0).all()


# Inner kernels that are composites ----------------------------------------------------------------------


def shifts_and_jump(y):
    """x, mu, nu ~ N(0, 1), c ~ B(0.05), y ~ N(x + mu + nu + 2 c, 1/2)."""
    c = numpyro.sample("c", dist.Bernoulli(0.05))
    mu, nu = (numpyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("mu", "nu"))
    x = numpyro.sample("x", NORMAL)
    numpyro.sample("y", dist.Normal(x + mu + nu + 2.0 * c, 0.5), obs=y)


def draw_mu(rng_key, gibbs_sites, hmc_sites):
    """mu given everything else, x too."""
    left = 1.0 - hmc_sites["x"] - hmc_sites["nu"] - 2.0 * hmc_sites["c"]
    return {"mu": dist.Normal(0.8 * left, np.sqrt(0.2)).sample(rng_key)}


def test_gibbs_within_gibbs_with_a_discrete_site():
    """What the blocks keep of their potentials is stale once x has moved: not told so, c was off by 10 s.e."""
    blocks = [
        (DiscreteGibbs(shifts_and_jump), discrete_latent_sites),
        (CustomGibbs(draw_mu), ["mu"]),
        (HMC(shifts_and_jump, num_steps=4, trajectory_length=None), None),
    ]
    draws, _ = run(DiffusionGibbs(Gibbs(blocks), twist="none"), 1.0, num_samples=3000)
    variance = 3.25  # of y given c
    evidence = np.array([0.95, 0.05]) * norm.pdf(1.0, [0.0, 2.0], np.sqrt(variance))
    chance = evidence[1] / evidence.sum()
    mean, square = (1 - 2 * chance) / variance, 1 - 1 / variance + 1 / variance**2
    assert z_score(draws["c"], chance) < 5
    for name in ("x", "mu", "nu"):
        assert z_score(draws[name], mean) < 5, name
        assert z_score(draws[name] ** 2, square) < 5, name


# The ratio of the refresh -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gaussian", "bernoulli"])
def test_path_ratio_is_the_difference_of_the_two_chains_densities(x64, name):
    """Of a batch of paths with a context for each, in float64."""

    def network(params, x_t, t, context):
        first = 0.4 * jnp.tanh(x_t) + context.sum(-1, keepdims=True)
        return first if name == "bernoulli" else (first, jnp.full_like(first, 0.3))

    if name == "gaussian":
        kernel = nd.GaussianKernel(nd.schedules.log_snr(4, 0.2, 10.0), parameterization="x0", variance="denoiser")
    else:
        kernel = nd.BernoulliKernel(nd.schedules.linear(4, 1.0, 4.0), rate=0.3)
    context = jax.random.normal(jax.random.key(0), (5, 3))
    reverse = nd.ReverseChain(kernel, nd.Transition(network, None, (2,), context_shape=(3,)), context=context)

    @jax.jit
    def found_and_wanted(key):
        path = reverse.sample(key)
        forward = nd.ForwardChain(kernel, path[:, 0])
        ratio = log_path_ratio(reverse, jnp.moveaxis(path, 1, 0))
        return ratio, reverse.log_prob(path) - forward.log_prob(path[:, 1:])

    found, wanted = found_and_wanted(jax.random.key(1))
    assert found.shape == (5,)
    np.testing.assert_allclose(found, wanted, rtol=1e-8)
