"""TiltedChain: densities by quadrature, weights against known evidence, shapes, scans and compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.tree_util import Partial
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.util import log_density
from precision import enable_x64
from tilted_cases import (
    LOG_R,
    MATRIX,
    NOISE,
    QUADRATIC,
    TILTS,
    VALUE,
    conjugate,
    draw,
    gaussian_prior,
    log_prob,
    log_weight,
    moments,
    observed,
    quadratic,
    step_law,
    tilts_of,
)

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import GaussianFactor, MomentMatching, PaperTilt, ReconstructionGuidance, TiltedChain
from numpyro_diffusion.guidance.tilted_chain import log_ratio


@pytest.mark.parametrize("stop", [0, 1])
def test_the_identity_tilt_is_the_reverse_chain_to_the_last_bit(stop):
    untilted, _ = gaussian_prior(4)
    chain = nd.ReverseChain(untilted.kernel, untilted.transition, stop=stop).expand((3,))
    tilted = TiltedChain(chain, nd.ReverseChain.reverse)
    assert (tilted.batch_shape, tilted.event_shape) == (chain.batch_shape, chain.event_shape)
    path = draw(tilted, jax.random.key(0), (2,))
    np.testing.assert_array_equal(path, draw(chain, jax.random.key(0), (2,)))
    last = jax.jit(lambda tilted, key: tilted.sample_last(key, (2,)))(tilted, jax.random.key(0))
    np.testing.assert_array_equal(last, path[..., 0, :])
    np.testing.assert_array_equal(log_prob(tilted, path), log_prob(chain, path))
    np.testing.assert_array_equal(log_prob(tilted.chain, path), log_prob(chain, path))
    np.testing.assert_array_equal(log_weight(tilted, path), jnp.zeros((2, 3)))


def one_dimensional(num_steps):
    """A mixture of two modes, on a schedule whose every step is wide enough for a grid."""
    schedule = nd.schedules.log_snr(num_steps, 0.6, 4.0)
    kernel = nd.GaussianKernel(schedule, parameterization="x0", variance="denoiser")
    means = jnp.array([[-1.0], [1.0]])
    return nd.ReverseChain(kernel, nd.analytic.gaussian_mixture(kernel, means, 0.6, jnp.array([0.3, 0.7])))


@pytest.mark.parametrize("name", TILTS)
def test_the_density_of_trajectories_integrates_to_one(name):
    tilt = tilts_of(quadratic, np.ones((1, 1)), np.ones(1), 1.0)[name]
    chain = TiltedChain(one_dimensional(2), tilt)
    # The trapezoid rule with a step below the smallest standard deviation is exact to 1e-8 for Gaussians.
    grid = jnp.linspace(-7.0, 7.0, 61)
    assert step_law(chain, jnp.zeros((1,)), 1).scale > grid[1] - grid[0]
    path = jnp.stack(jnp.meshgrid(grid, grid, grid, indexing="ij"), axis=-1)[..., None]
    total = jnp.exp(log_prob(chain, path)).sum() * (grid[1] - grid[0]) ** 3
    assert total == pytest.approx(1, abs=1e-5)


def test_with_a_fixed_coordinate_the_density_of_the_others_integrates_to_one():
    """x^0 is set to 0.8: the density with respect to that atom and to length for x^1, x^2."""
    chain = TiltedChain(one_dimensional(2), GaussianFactor(0.8, 0.0, noised=True))
    grid = jnp.linspace(-7.0, 7.0, 81)
    others = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij"), axis=-1)
    path = jnp.concatenate([jnp.full((81, 81, 1), 0.8), others], axis=-1)[..., None]
    assert jnp.exp(log_prob(chain, path)).sum() * (grid[1] - grid[0]) ** 2 == pytest.approx(1, abs=1e-5)
    assert (log_prob(chain, path.at[..., 0, :].set(0.81)) == -jnp.inf).all()
    assert (draw(chain, jax.random.key(0), (50,))[:, 0] == jnp.float32(0.8)).all()


@pytest.mark.parametrize("name", TILTS)
def test_the_mean_weight_is_the_evidence_and_the_weighted_mean_the_posterior_s(name):
    chain, _ = gaussian_prior(4)
    tilted = TiltedChain(chain, TILTS[name])
    mean, _, log_evidence = conjugate(*moments(chain))

    path = draw(tilted, jax.random.key(0), (20_000,))
    weight = np.exp(np.asarray(log_weight(tilted, path, LOG_R) - log_evidence, np.float64))
    error = weight.std() / np.sqrt(weight.size)
    assert error < 0.03
    assert abs(weight.mean() - 1) < 5 * error
    # The ratio estimate's error by the delta method.
    terms = weight[:, None] * (np.asarray(path[:, 0]) - mean)
    assert (abs(terms.mean(0)) < 5 * terms.std(0) / np.sqrt(weight.size)).all()


def test_weights_are_accurate_in_single_precision():
    """500 steps: the difference of two log densities of some thousand nats loses digits that a sum of ratios keeps."""
    tilt = PaperTilt(Partial(observed, jnp.asarray(MATRIX), jnp.asarray(VALUE), 4.0))
    chain, _ = gaussian_prior(500)
    tilted = TiltedChain(chain, tilt)
    path = draw(tilted, jax.random.key(0), (64,))
    ours = np.asarray(log_weight(tilted, path))
    difference = np.asarray(log_prob(chain, path) - log_prob(tilted, path))
    with enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)
        exact = np.asarray(log_weight(TiltedChain(gaussian_prior(500)[0], wide(tilt)), wide(path)))
    assert np.abs(exact).max() > 1
    assert np.abs(ours - exact).max() < 3e-4
    assert np.abs(difference - exact).max() > 3 * np.abs(ours - exact).max()


def test_the_ratio_of_two_laws_is_the_difference_of_their_log_densities():
    with enable_x64(True):
        distribution, proposal = (
            dist.Normal(jnp.array([0.0, 1.0, 2.0]), 0.5),
            dist.Normal(jnp.array([0.3, 1.0, -1.0]), 0.7),
        )
        value = jnp.array([0.2, -0.4, 3.0])
        np.testing.assert_allclose(
            log_ratio(distribution, proposal, value),
            distribution.log_prob(value) - proposal.log_prob(value),
            rtol=1e-12,
        )


def test_a_guide_with_a_learned_factor_approaches_the_evidence_from_below():
    chain, _ = gaussian_prior(3)
    _, _, log_evidence = conjugate(*moments(chain), np.eye(2), np.array([1.2, -1.0]), 0.9)

    def model():
        x = numpyro.sample("path", chain)[0]
        numpyro.sample("y", dist.Normal(x, 0.9).to_event(1), obs=jnp.array([1.2, -1.0]))

    def guide():
        value = numpyro.param("value", jnp.array([-1.0, 1.0]))
        scale = numpyro.param("scale", jnp.full(2, 2.0), constraint=dist.constraints.positive)
        numpyro.sample("path", TiltedChain(chain, GaussianFactor(value, scale)))

    svi = SVI(model, guide, optax.adam(0.05), Trace_ELBO(num_particles=20))
    result = svi.run(jax.random.key(0), 200, progress_bar=False)
    bound = -result.losses[-100:]
    error = bound.std() / 10
    assert bound.mean() < log_evidence + 5 * error
    assert bound.mean() > log_evidence - 0.5
    assert bound.mean() > -result.losses[:5].mean() + 0.3


def test_the_size_of_the_program_does_not_grow_with_the_steps():
    def size(num_steps):
        tilted = TiltedChain(gaussian_prior(num_steps)[0], TILTS["moments by jacobian"])
        run = lambda key: tilted.log_weight(tilted.sample(key, (2,)), LOG_R)
        return str(jax.make_jaxpr(run)(jax.random.key(0))).count(" = ")

    assert size(20) == size(4)


def test_new_data_in_a_tilt_compile_nothing_new():
    traces = []

    @jax.jit
    def run(tilted, key):
        traces.append(1)
        return tilted.sample(key)

    chain, _ = gaussian_prior(3)
    for shift in (0.0, 1.0):
        for tilt in tilts_of(
            Partial(observed, jnp.asarray(MATRIX), jnp.asarray(VALUE + shift), NOISE), MATRIX, VALUE + shift, NOISE
        ).values():
            run(TiltedChain(chain, tilt), jax.random.key(0))
    assert len(traces) == len(TILTS)


@pytest.mark.parametrize("make", [lambda y: GaussianFactor(y, 0.5), lambda y: MomentMatching(np.eye(2), y, 0.5)])
def test_a_batch_of_observations_is_a_loop_over_them(make):
    chain, _ = gaussian_prior(3)
    values = jnp.array([[1.0, 0.0], [-1.0, 2.0], [0.3, 0.2]])
    batched = TiltedChain(chain.expand((3,)), make(values))
    path = draw(batched, jax.random.key(0), (5,))
    densities, weights = log_prob(batched, path), log_weight(batched, path, QUADRATIC)
    assert densities.shape == weights.shape == (5, 3)
    for index, value in enumerate(values):
        single = TiltedChain(chain, make(value))
        np.testing.assert_allclose(densities[:, index], log_prob(single, path[:, index]), rtol=1e-4)
        np.testing.assert_allclose(weights[:, index], log_weight(single, path[:, index], QUADRATIC), atol=1e-3)


def test_mapping_over_the_data_of_a_tilt_is_a_loop():
    chain, _ = gaussian_prior(3)
    path = draw(chain, jax.random.key(0))

    @jax.jit
    def score(value):
        return TiltedChain(chain, PaperTilt(Partial(observed, jnp.asarray(MATRIX), value, NOISE))).log_prob(path)

    values = jnp.array([[0.0], [2.0]])
    np.testing.assert_allclose(jax.vmap(score)(values), [score(value) for value in values], rtol=1e-5)


def shrink(params, x_t, t, context):
    return 0.7 * x_t


@pytest.mark.parametrize("name", ["paper", "reconstruction", "scale", "jacobian", "bits"])
def test_an_event_of_any_rank_is_its_flattened_vector(name):
    schedule = nd.schedules.log_snr(3, 0.3, 5.0)
    kernel = nd.GaussianKernel(schedule, parameterization="x0", variance="upper")
    matrix, value = jnp.arange(8.0).reshape(2, 4), jnp.array([1.0, 2.0])
    log_r = lambda x: jnp.tanh(x.reshape(-1) @ jnp.array([1.0, -2.0, 0.5, 0.3]))
    tilts = {
        "paper": lambda shape: PaperTilt(log_r),
        "reconstruction": lambda shape: ReconstructionGuidance(log_r),
        "scale": lambda shape: MomentMatching(matrix.reshape(2, *shape), value, 0.5, covariance="scale"),
        "jacobian": lambda shape: MomentMatching(matrix.reshape(2, *shape), value, 0.5),
    }
    tilts["bits"] = tilts["paper"]
    if name == "bits":
        kernel = nd.BernoulliKernel(schedule)
    values = jnp.asarray(np.random.default_rng(0).integers(0, 2, (5, 3, 4)), kernel.encode(jnp.ones(())).dtype)
    means = [
        TiltedChain(nd.ReverseChain(kernel, nd.Transition(shrink, None, shape)), tilts[name](shape))
        .reverse(values.reshape(5, 3, *shape), 2)
        .mean.reshape(5, 3, 4)
        for shape in ((4,), (2, 2))
    ]
    np.testing.assert_allclose(means[0], means[1], rtol=1e-5)


def test_moment_matching_takes_an_event_that_is_one_number():
    kernel = nd.GaussianKernel(nd.schedules.log_snr(3, 0.3, 5.0), parameterization="x0", variance="upper")
    scalar, vector = (nd.ReverseChain(kernel, nd.Transition(shrink, None, shape)) for shape in ((), (1,)))
    x_t = jnp.array([0.3, -1.0])
    by_number = TiltedChain(scalar, MomentMatching(np.array([2.0]), np.array([1.0]), 0.5)).conditional(x_t, 2)
    by_vector = TiltedChain(vector, MomentMatching(np.array([[2.0]]), np.array([1.0]), 0.5)).conditional(
        x_t[:, None], 2
    )
    np.testing.assert_allclose(by_number.mean, by_vector.mean[:, 0], rtol=1e-6)


def test_a_step_without_signal_is_left_alone_by_moment_matching():
    """With b_T = 1 nothing in x^T tells of x^0, and v / sqrt(abar) is infinite."""
    kernel = nd.GaussianKernel(nd.schedules.constant_fraction(3), parameterization="x0", variance="upper")
    chain = nd.ReverseChain(kernel, nd.Transition(shrink, None, (2,)))
    tilted = TiltedChain(chain, MomentMatching(MATRIX, VALUE, NOISE))
    x_t = jnp.array([0.4, -1.0])
    np.testing.assert_array_equal(step_law(tilted, x_t, 3).mean, step_law(chain, x_t, 3).mean)
    assert (step_law(tilted, x_t, 2).mean != step_law(chain, x_t, 2).mean).all()


def test_a_tilted_site_in_a_scan_scores_as_the_loop():
    chain, _ = gaussian_prior(3)
    paths = draw(chain, jax.random.key(0), (4,))

    def guide(paths):
        def body(value, path):
            numpyro.sample("path", TiltedChain(chain, GaussianFactor(value, 0.7)), obs=path)
            return path[0], None

        scan(body, jnp.zeros(2), paths)

    total = jax.jit(lambda paths: log_density(guide, (paths,), {}, {})[0])(paths)
    values = jnp.concatenate([jnp.zeros((1, 2)), paths[:-1, 0]])
    looped = sum(
        log_prob(TiltedChain(chain, GaussianFactor(value, 0.7)), path)
        for value, path in zip(values, paths, strict=True)
    )
    np.testing.assert_allclose(total, looped, rtol=1e-5)
