"""Pictures show what was drawn: the points, the arrows, the bits, the ratios; and say what they need."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from matplotlib import pyplot as plt
from numpyro.distributions import transforms

from numpyro_diffusion import (
    BernoulliKernel,
    Diffusion,
    ForwardChain,
    GaussianKernel,
    ReverseChain,
    Transition,
    plots,
    schedules,
)

T = 4
KERNEL = GaussianKernel(schedules.log_snr(T), variance="upper")
NORMAL = Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(2,))
SHIFTED = Transition(lambda params, x_t, t, context: 0.3 * x_t - 0.2, None, event_shape=(2,))
CHAIN = ReverseChain(KERNEL, SHIFTED)
DATA = jax.random.normal(jax.random.key(7), (30, 2)) * jnp.array([0.5, 1.5])


@pytest.fixture(autouse=True)
def _agg_and_no_figure_left():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def points(ax, index=0):
    return np.asarray(ax.collections[index].get_offsets())


def arrows(ax):
    (quiver,) = ax.collections
    return np.asarray(quiver.get_offsets()), np.stack([quiver.U, quiver.V], -1)


def test_trajectory_shows_both_chains_with_titles_on_one_scale():
    axes = plots.trajectory(jax.random.key(3), CHAIN, DATA)
    assert axes.shape == (3, 3)
    assert len(axes[0, 0].figure.axes) == 9
    assert [[ax.get_title() for ax in row] for row in axes] == [
        ["$t = 0$", "$t = T/2$", "$t = T$"],
        ["", "", ""],
        ["$t = 1$", "$t = T/2$", "$t = T$"],
    ]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["$q(x^t)$", "$p(x^t)$", r"$f_\mu(x^t, t) - x^t$"]
    assert len({ax.get_xlim() + ax.get_ylim() for ax in axes.flat}) == 1
    assert all(ax.get_aspect() == 1 for ax in axes.flat)
    key_forward, key_reverse = jax.random.split(jax.random.key(3))
    forward = ForwardChain(KERNEL, DATA).sample(key_forward)
    reverse = CHAIN.sample(key_reverse, (len(DATA),))
    for column, t in enumerate([0, T // 2, T]):
        np.testing.assert_allclose(points(axes[0, column]), forward[:, t - 1] if t else DATA, rtol=1e-6)
        np.testing.assert_allclose(points(axes[1, column]), reverse[:, t], rtol=1e-6)
    axes[0, 0].figure.canvas.draw()


def test_trajectory_is_a_function_of_its_key_and_takes_a_diffusion():
    pictures = [
        plots.trajectory(key, model, DATA)
        for key, model in (
            (jax.random.key(0), CHAIN),
            (jax.random.key(0), Diffusion(KERNEL, SHIFTED, rng_key=jax.random.key(9))),
            (jax.random.key(1), CHAIN),
        )
    ]
    first, same, other = ([points(ax) for ax in axes[:2].flat] for axes in pictures)
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first[1], other[1])
    assert not np.allclose(first[3], other[3])


def test_a_transformed_model_is_shown_in_the_units_of_the_data():
    """The transform of every state; arrows from and to transformed states, and none outside of the support."""
    key = jax.random.key(3)
    plain = plots.trajectory(key, CHAIN, DATA)
    scaled = dist.TransformedDistribution(Diffusion(KERNEL, SHIFTED), transforms.AffineTransform(128.0, 60.0))
    axes = plots.trajectory(key, scaled, 128 + 60 * DATA)
    for ax, expected in zip(axes[:2].flat, plain[:2].flat, strict=True):
        np.testing.assert_allclose(points(ax), 128 + 60 * points(expected), rtol=1e-4, atol=1e-2)
    for ax, expected in zip(axes[2], plain[2], strict=True):
        for found, wanted, shift in zip(arrows(ax), arrows(expected), (128, 0), strict=True):
            np.testing.assert_allclose(found, shift + 60 * wanted, rtol=1e-2, atol=0.1)
    positive = dist.TransformedDistribution(Diffusion(KERNEL, SHIFTED), transforms.ExpTransform())
    (ax,) = plots.drift(positive, [2], limits=(-1.0, 3.0), num_arrows=4)
    starts, _ = arrows(ax)
    assert len(starts) == 9
    assert (starts > 0).all()
    assert np.mean(plots.drift(scaled, [1])[0].get_xlim()) == pytest.approx(128, rel=1e-4)


def test_drift_row_has_no_titles_where_they_repeat_the_first_row():
    axes = plots.trajectory(jax.random.key(0), CHAIN, DATA, t=[1, T])
    assert [[ax.get_title() for ax in row] for row in axes] == [["$t = 1$", "$t = T$"], ["", ""], ["", ""]]


def test_default_limits_hold_nearly_all_points_and_not_an_outlier():
    path = jax.random.normal(jax.random.key(0), (1000, T + 1, 2)).at[0, 2].set(50.0)
    low, high = plots.slices(path)[0].get_xlim()
    inside = ((path[:, [0, 2, T]] > low) & (path[:, [0, 2, T]] < high)).mean()
    assert inside > 0.99
    assert -5 < low < high < 5
    low, high = plots.slices(jnp.full((3, 2, 2), 1.5))[0].get_xlim()
    assert low < 1.5 < high


def test_slices_flattens_batches_and_draws_on_given_axes_with_given_limits():
    path = jax.random.normal(jax.random.key(1), (2, 5, T + 1, 2))
    _, given = plt.subplots(1, 2)
    axes = plots.slices(path, [1, 3], limits=(-1.0, 2.0), axes=given, label="here")
    assert list(axes) == list(given)
    assert axes[0].get_xlim() == axes[1].get_ylim() == (-1, 2)
    assert [ax.get_title() for ax in axes] == ["$t = 1$", "$t = 3$"]
    assert axes[0].get_ylabel() == "here"
    np.testing.assert_array_equal(points(axes[1]), path[:, :, 3].reshape(-1, 2))


@pytest.mark.parametrize(("num_steps", "titles"), [(1, ["0", "T"]), (2, ["0", "T/2", "T"]), (5, ["0", "2", "T"])])
def test_default_times_of_short_and_odd_chains(num_steps, titles):
    axes = plots.slices(jnp.zeros((3, num_steps + 1, 2)))
    assert [ax.get_title() for ax in axes] == [f"$t = {title}$" for title in titles]


def test_drift_arrows_point_along_the_mean_move_and_grow_with_it():
    (ax,) = plots.drift(CHAIN, [2], limits=(-2.0, 2.0), num_arrows=6)
    grid, drawn = arrows(ax)
    assert grid.shape == (36, 2)
    assert np.abs(grid).max() < 2
    moves = np.asarray(CHAIN.conditional(jnp.asarray(grid, float), 2).mean - grid)
    true, shown = np.linalg.norm(moves, axis=-1), np.linalg.norm(drawn, axis=-1)
    np.testing.assert_allclose(drawn / shown[:, None], moves / true[:, None], atol=1e-4)
    np.testing.assert_allclose(shown, 2 * (4 / 6) * true / (true + np.median(true)), rtol=1e-4)


def test_drift_of_a_step_that_moves_nothing_is_drawn_as_points():
    # With b_1 = 1 the mean of p(x^0 | x^1) is the network's x^0 alone.
    erasing = GaussianKernel(schedules.Schedule.from_beta(jnp.ones(1)), variance="upper", parameterization="x0")
    identity = Transition(lambda params, x_t, t, context: x_t, None, event_shape=(2,))
    (ax,) = plots.drift(ReverseChain(erasing, identity))
    np.testing.assert_array_equal(arrows(ax)[1], 0)
    ax.figure.canvas.draw()


def test_default_steps_of_drift_start_at_one():
    assert [ax.get_title() for ax in plots.drift(CHAIN)] == ["$t = 1$", "$t = T/2$", "$t = T$"]


@pytest.mark.parametrize("dtype", [int, float, bool])
def test_bit_raster_shows_the_bits_in_order(dtype):
    bits = jax.random.bernoulli(jax.random.key(0), 0.3, (7, 12)).astype(dtype)
    ax = plots.bit_raster(bits)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("bit", "sequence")
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), np.asarray(bits, float))
    assert image.to_rgba(1.0)[:3] == (0, 0, 0)
    assert ax.get_ylim() == (6.5, -0.5)  # the first sequence on top
    ax.figure.canvas.draw()


def test_prior_and_posterior_shows_both_with_the_observation_and_the_truth():
    prior, posterior = jax.random.normal(jax.random.key(0), (2, 3, 20, 2))
    figure, given = plt.subplots()
    ax = plots.prior_and_posterior(prior, posterior, given, observation=(0, 0.5, 0.1), truth=jnp.array([0.4, -1.0]))
    assert ax is given
    np.testing.assert_array_equal(points(ax, 0), prior.reshape(-1, 2))
    np.testing.assert_array_equal(points(ax, 1), posterior.reshape(-1, 2))
    np.testing.assert_allclose(points(ax, 2), [[0.4, -1.0]], rtol=1e-6)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0.5, 0.5])
    (band,) = ax.patches
    np.testing.assert_allclose(band.get_extents().transformed(ax.transData.inverted()).intervalx, [0.4, 0.6])
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["prior", "posterior", r"observed $\pm$ 1 sd", "truth"]
    figure.canvas.draw()


def test_prior_and_posterior_alone_and_with_an_exact_observation():
    ax = plots.prior_and_posterior(DATA, DATA[:3])
    assert not ax.lines
    assert not ax.patches
    ax = plots.prior_and_posterior(DATA, DATA[:3], observation=(1, -0.5, 0.0))
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [-0.5, -0.5])
    assert not ax.patches
    assert ax.get_legend().get_texts()[-1].get_text() == "observed"


def test_schedule_shows_the_finite_ratios_and_compares():
    erasing = schedules.constant_fraction(10)
    ax = plots.schedule(erasing, label="erasing")
    assert plots.schedule(KERNEL.schedule, ax, label="even") is ax
    _, first, second = ax.lines
    np.testing.assert_array_equal(first.get_xdata(), np.arange(1, 10))
    np.testing.assert_array_equal(first.get_ydata(), erasing.log_snr[1:-1])
    np.testing.assert_array_equal(second.get_xdata(), np.arange(1, T + 1))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step $t$", "log signal-to-noise ratio")
    assert ax.get_legend_handles_labels()[1] == ["erasing", "even"]


def _with(transition=NORMAL, kernel=KERNEL, **kwargs):
    return ReverseChain(kernel, transition, **kwargs)


SOLID = Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(3,))
GIVEN = Transition(lambda params, x_t, t, context: 0 * x_t, None, event_shape=(2,), context_shape=())
BITS = BernoulliKernel(schedules.constant_fraction(T))
PRIOR = Diffusion(KERNEL, SHIFTED)
POSITIVE = dist.TransformedDistribution(PRIOR, transforms.ExpTransform())
SIMPLEX = dist.TransformedDistribution(PRIOR, transforms.StickBreakingTransform())
KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plots.trajectory(KEY, _with(SOLID), DATA), ValueError, r"event shape \(2,\).*; got \(3,\)"),
        (lambda: plots.trajectory(KEY, CHAIN, jnp.zeros((5, 3))), ValueError, r"data of shape .*; got shape \(5, 3\)"),
        (lambda: plots.trajectory(KEY, CHAIN, jnp.zeros(2)), ValueError, r"data of shape .*; got shape \(2,\)"),
        (lambda: plots.trajectory(KEY, CHAIN, DATA.at[1].set(jnp.nan)), ValueError, "finite values for data"),
        (
            lambda: plots.trajectory(KEY, NORMAL, DATA),
            TypeError,
            "a Diffusion, a Trans.*Chain; got Trans",
        ),
        (
            lambda: plots.trajectory(KEY, POSITIVE, DATA),
            ValueError,
            r"points in the support of Exp.*; got \[.* at index \d",
        ),
        (lambda: plots.drift(dist.MaskedDistribution(POSITIVE, True)), TypeError, "got <numpyro.*MaskedDistribution"),
        (lambda: plots.drift(SIMPLEX), ValueError, r"event shape \(2,\).*; got \(3,\)"),
        (lambda: plots.trajectory(KEY, _with(stop=1), DATA), ValueError, "stop=1"),
        (lambda: plots.trajectory(KEY, _with(kernel=BITS), DATA), TypeError, "got BernoulliKernel. Use bit_raster"),
        (lambda: plots.trajectory(KEY, CHAIN, DATA, t=[0, T + 1]), ValueError, rf"integers in 0\.\.{T}; got \[0, 5\]"),
        (
            lambda: plots.trajectory(KEY, CHAIN, DATA, axes=np.empty((2, 3))),
            ValueError,
            r"\(3, 3\); got shape \(2, 3\)",
        ),
        (
            lambda: plots.drift(_with(GIVEN, context=jnp.zeros(6))),
            ValueError,
            r"batch shape \(\); got \(2,\) and \(6,\)",
        ),
        (lambda: plots.drift(CHAIN, [0]), ValueError, rf"integers in 1\.\.{T}; got \[0\]"),
        (lambda: plots.drift(CHAIN, num_arrows=1), ValueError, "num_arrows to be an integer >= 2; got 1"),
        (lambda: plots.drift(CHAIN, limits=(1.0, -1.0)), ValueError, r"low < high; got \(1.0, -1.0\)"),
        (lambda: plots.slices(DATA), ValueError, r"path of shape \(num_points, T \+ 1, 2\); got shape \(30, 2\)"),
        (lambda: plots.slices(jnp.zeros((3, 5, 2)), [0.5]), ValueError, r"integers in 0\.\.4; got \[0\.5\]"),
        (lambda: plots.slices(jnp.zeros((3, 5, 2)), []), ValueError, r"integers in 0\.\.4; got \[\]"),
        (lambda: plots.slices(jnp.zeros((3, 5, 2)), limits=(0.0, jnp.inf)), ValueError, "low < high"),
        (
            lambda: plots.bit_raster(jnp.array([[0, 1, 2]])),
            ValueError,
            r"only 0 and 1 for draws; got 2 at index \(0, 2\)",
        ),
        (lambda: plots.bit_raster(jnp.array([[0.0, jnp.nan]])), ValueError, "only 0 and 1 for draws; got nan"),
        (lambda: plots.bit_raster(jnp.zeros(4)), ValueError, r"\(num_sequences, num_bits\); got shape \(4,\)"),
        (
            lambda: plots.prior_and_posterior(DATA, jnp.zeros((4, 3))),
            ValueError,
            r"posterior_draws .*; got shape \(4, 3\)",
        ),
        (lambda: plots.prior_and_posterior(jnp.zeros((0, 2)), DATA), ValueError, r"prior_draws .*; got shape \(0, 2\)"),
        (
            lambda: plots.prior_and_posterior(DATA, DATA, truth=1.0),
            ValueError,
            r"truth of shape \(2,\); got shape \(\)",
        ),
        (lambda: plots.prior_and_posterior(DATA, DATA, observation=(2, 0.0, 1.0)), ValueError, r"got \(2, 0.0, 1.0\)"),
        (lambda: plots.prior_and_posterior(DATA, DATA, observation=(0, 0.0)), ValueError, r"got \(0, 0.0\)"),
        (lambda: plots.prior_and_posterior(DATA, DATA, observation=(0, 0.0, -1.0)), ValueError, r"sd >= 0.*-1.0"),
        (lambda: plots.schedule(KERNEL), TypeError, "Expected a Schedule; got .*kernel.schedule"),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_errors_say_what_was_wanted_and_what_came(call, error, message):
    with pytest.raises(error, match=message):
        call()
    assert not plt.get_fignums(), "a refused call leaves no empty figure"


def test_the_package_does_not_import_matplotlib():
    code = "import sys, numpyro_diffusion.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_matplotlib_the_error_names_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'pip install "numpyro-diffusion\[examples\]"'):
        plots.schedule(KERNEL.schedule)
