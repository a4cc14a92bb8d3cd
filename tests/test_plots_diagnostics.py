"""Pictures of diagnostics show the numbers they were given, in the right place, and refuse what is none."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import pyplot as plt
from scipy import stats

from numpyro_diffusion import plots
from numpyro_diffusion.infer import TwistedSMC


@pytest.fixture(autouse=True)
def _agg_and_no_figure_left():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


RNG = np.random.default_rng(0)


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize("colours", [(), (1,), (3,)])
def test_image_grid_shows_draws_in_rows_and_times_in_columns(colours):
    path = RNG.normal(size=(2, 9, 4, 5, *colours))
    axes = plots.image_grid(path)
    assert [ax.get_title() for ax in axes[0]] == ["$t = 0$", "$t = 2$", "$t = T/2$", "$t = 6$", "$t = T$"]
    low, high = path[:, 0].min(), path[:, 0].max()
    wanted = np.clip((path[1, 6] - low) / (high - low), 0, 1)
    (image,) = axes[1, 3].images
    np.testing.assert_allclose(image.get_array(), wanted[..., 0] if colours == (1,) else wanted)
    axes[0, 0].figure.canvas.draw()


def test_image_grid_takes_times_limits_and_axes():
    path = np.full((1, 3, 2, 2), 0.25)
    _, given = plt.subplots(1, 2, squeeze=False)
    axes = plots.image_grid(path, [0, 2], limits=(0.0, 1.0), axes=given)
    assert list(axes[0]) == list(given[0])
    np.testing.assert_array_equal(axes[0, 1].images[0].get_array(), 0.25)
    np.testing.assert_array_equal(plots.image_grid(path)[0, 0].images[0].get_array(), 0.5)


def test_bound_per_step_shows_terms_and_entropy_between_its_bounds():
    t = np.arange(1, 6)
    ax = plots.bound_per_step(jnp.asarray(-1.0 / t), jnp.zeros(5), jnp.ones(5), 0.5 * jnp.ones(5))
    assert texts(ax) == ["term of $K$", "entropy bounds", "entropy of the step"]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), t)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), -1.0 / t, rtol=1e-6)
    (band,) = ax.collections
    assert set(band.get_paths()[0].vertices[:, 1]) == {0.0, 1.0}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step $t$", "nats")
    assert texts(plots.bound_per_step(-1.0 / t)) == ["term of $K$"]
    assert texts(plots.bound_per_step(-1.0 / t, upper=t)) == ["term of $K$", "upper bound of the entropy"]


def test_a_step_without_a_lower_bound_leaves_a_gap():
    without = plots.bound_per_step(ONES, np.array([-np.inf, 0, 0, 0]), 2 * ONES)
    assert [np.isnan(line.get_ydata()).sum() for line in without.lines[:2]] == [0, 1]


def test_bounds_that_agree_to_rounding_are_taken():
    plots.bound_per_step(jnp.zeros(2), jnp.array([1.0 + 1e-6, 0.0]), jnp.array([1.0, 0.0]))


def test_effective_sizes_run_from_noise_to_data():
    sizes = RNG.uniform(10, 60, (3, 5))
    ax = plots.effective_sizes(sizes, num_particles=64)
    for line, island in zip(ax.lines, sizes, strict=False):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(5))
        np.testing.assert_array_equal(line.get_ydata(), island)
    assert ax.get_xlim()[0] > 4 > 0 > ax.get_xlim()[1]
    assert ax.lines[-1].get_ydata()[0] == 64
    by_element = np.stack([sizes, sizes + 1], -1)
    np.testing.assert_array_equal(plots.effective_sizes(by_element).lines[0].get_ydata(), sizes[0])


def test_effective_sizes_take_an_engine():
    class Finished(TwistedSMC):
        effective_sizes = np.full((2, 4), 30.0)

    engine = Finished(lambda: None, 64)
    assert [line.get_ydata()[0] for line in plots.effective_sizes(engine).lines] == [30, 30, 64]


def test_rank_bars_count_and_the_band_is_simultaneous():
    ranks = RNG.integers(0, 100, 400)
    ax = plots.sbc_ranks(ranks, 99, num_bins=10, probability=0.9)
    (bars,) = [patch for patch in ax.patches if hasattr(patch, "get_data")]
    counts, edges, _ = bars.get_data()
    np.testing.assert_array_equal(counts, np.histogram(ranks, 10, (0, 100))[0])
    np.testing.assert_array_equal(edges, np.arange(0, 101, 10) - 0.5)
    low, _, high = [line.get_ydata()[0] for line in ax.lines]
    draws = RNG.multinomial(400, np.full(10, 0.1), 20_000)
    inside = ((draws >= low) & (draws <= high)).all(1).mean()
    # At least 0.9 (5 standard errors are 0.011), and Bonferroni is not far above: no pointwise band comes near it.
    assert 0.889 < inside < 0.97
    assert stats.binom(400, 0.1).cdf(high) - stats.binom(400, 0.1).cdf(low - 1) > 0.98


def test_number_of_bins_divides_the_ranks_and_leaves_data_in_each():
    edges = lambda ax: len(ax.patches[0].get_data().edges)
    assert edges(plots.sbc_ranks(np.arange(100), 99)) - 1 == 20
    assert edges(plots.sbc_ranks(np.arange(50), 99)) - 1 == 10
    assert edges(plots.sbc_ranks(np.arange(8), 7)) - 1 == 2


def test_coverage_shows_shares_against_levels_with_a_binomial_band():
    levels, shares = np.array([0.9, 0.1, 0.5]), np.array([0.8, 0.2, 0.5])
    ax = plots.coverage(levels, shares, num_data_sets=50, label="a")
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), [[0.1, 0.2], [0.5, 0.5], [0.9, 0.8]])
    (band,) = ax.collections
    middle = band.get_paths()[0].vertices
    middle = middle[np.isclose(middle[:, 0], 0.5), 1]
    np.testing.assert_allclose([middle.min(), middle.max()], stats.binom(50, 0.5).ppf([0.025, 0.975]) / 50)
    assert plots.coverage(levels, levels, ax, label="b") is ax
    assert ax.get_legend_handles_labels()[1] == ["a", "b"]
    assert ax.lines[1].get_color() != ax.lines[2].get_color()


def test_marginals_are_densities_of_the_posterior_and_the_prior():
    posterior = {"sigma": RNG.normal(size=(2, 500)), "rate": RNG.uniform(size=300)}
    prior = {"sigma": RNG.normal(0, 3, 900), "other": np.ones(3)}
    axes = plots.marginals(posterior, prior, truth={"sigma": 0.2})
    assert [ax.get_xlabel() for ax in axes] == ["sigma", "rate"]
    assert [len(ax.patches) for ax in axes] == [2, 1]
    assert texts(axes[0]) == ["prior", "posterior", "truth"]
    assert axes[0].lines[0].get_xdata()[0] == 0.2
    for patch, draws in zip(axes[0].patches, (prior["sigma"], posterior["sigma"]), strict=True):
        heights, edges, _ = patch.get_data()
        np.testing.assert_allclose(edges[[0, -1]], np.quantile(draws, [0.005, 0.995]))
        assert (heights * np.diff(edges)).sum() == pytest.approx(1 - 2 * np.ceil(0.005 * draws.size) / draws.size)
    (constant,) = plots.marginals({"a": np.ones(5)})
    assert constant.get_xlim()[0] < 1 < constant.get_xlim()[1]


ONES = np.ones(4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plots.image_grid(np.ones((2, 3, 4))), ValueError, r"path of shape .*; got shape \(2, 3, 4\)"),
        (lambda: plots.image_grid(np.ones((1, 3, 4, 4, 2))), ValueError, r"1 or 3 colours .*; got shape"),
        (lambda: plots.image_grid(np.full((1, 3, 4, 4), np.nan)), ValueError, "finite values for path"),
        (lambda: plots.image_grid(np.ones((1, 3, 4, 4)), [3]), ValueError, r"integers in 0\.\.2; got \[3\]"),
        (lambda: plots.image_grid(np.ones((1, 3, 4, 4)), limits=(1.0, 1.0)), ValueError, "low < high"),
        (lambda: plots.image_grid(np.ones((1, 3, 4, 4)), axes=np.empty((1, 2))), ValueError, r"axes of shape \(1, 3\)"),
        (lambda: plots.bound_per_step(np.ones((2, 2))), ValueError, r"terms of shape \(T,\); got shape \(2, 2\)"),
        (lambda: plots.bound_per_step([]), ValueError, r"terms of shape \(T,\); got shape \(0,\)"),
        (lambda: plots.bound_per_step(ONES, ONES[:2]), ValueError, r"lower of shape \(4,\); got shape \(2,\)"),
        (lambda: plots.bound_per_step(ONES, entropy=ONES * np.nan), ValueError, "finite values for entropy"),
        (lambda: plots.bound_per_step(ONES, 2 * ONES, ONES), ValueError, "lower <= upper; got lower above upper by 1"),
        (lambda: plots.effective_sizes(ONES), ValueError, r"sizes of shape \(K, T \+ 1\); got shape \(4,\)"),
        (lambda: plots.effective_sizes(-np.ones((2, 2))), ValueError, "sizes >= 0; got -1"),
        (lambda: plots.effective_sizes(np.full((2, 2), np.nan)), ValueError, "finite values for sizes"),
        (lambda: plots.effective_sizes(np.ones((2, 2)), num_particles=0), ValueError, "num_particles to be an integer"),
        (lambda: plots.effective_sizes(TwistedSMC(lambda: None)), RuntimeError, "a finished run; got none"),
        (lambda: plots.sbc_ranks(ONES, 9), ValueError, r"integers; got float64\(4,\)"),
        (lambda: plots.sbc_ranks(np.arange(4), 2), ValueError, r"ranks in 0\.\.2; got 0 to 3"),
        (lambda: plots.sbc_ranks(np.array([-1, 3]), 9), ValueError, r"ranks in 0\.\.9; got -1 to 3"),
        (lambda: plots.sbc_ranks(np.arange(9), 9, num_bins=3), ValueError, r"a divisor of num_draws \+ 1 = 10; got 3"),
        (lambda: plots.sbc_ranks(np.arange(9), 9, num_bins=1), ValueError, "num_bins to be an integer >= 2; got 1"),
        (lambda: plots.sbc_ranks(np.arange(9), 100), ValueError, r"num_draws \+ 1 with a divisor up to 2; got 101"),
        (lambda: plots.sbc_ranks(np.arange(9), 0), ValueError, "num_draws to be an integer >= 1"),
        (lambda: plots.sbc_ranks(np.arange(9), 9, probability=95), ValueError, r"probability in \(0, 1\); got 95"),
        (lambda: plots.coverage(ONES, ONES[:2]), ValueError, r"of one shape \(num_levels,\); got \(4,\) and \(2,\)"),
        (lambda: plots.coverage(ONES * 50, ONES), ValueError, r"expected_coverage in \[0, 1\]; got 50 to 50"),
        (lambda: plots.coverage(ONES, ONES * np.nan), ValueError, "finite values for empirical_coverage"),
        (lambda: plots.coverage(ONES, ONES, num_data_sets=0), ValueError, "num_data_sets to be an integer >= 1"),
        (lambda: plots.marginals(ONES), TypeError, "posterior as a dictionary, name -> draws; got ndarray"),
        (lambda: plots.marginals({}), ValueError, "draws of a scalar at least; got none"),
        (lambda: plots.marginals({"a": []}), ValueError, "draws of 'a' in posterior; got none"),
        (lambda: plots.marginals({"a": [np.inf]}), ValueError, "finite values for a in posterior"),
        (lambda: plots.marginals({"a": ONES}, truth={"a": ONES}), ValueError, "a finite number as truth of 'a'"),
        (lambda: plots.marginals({"a": ONES}, axes=np.empty(2)), ValueError, r"axes of shape \(1,\); got shape \(2,\)"),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_errors_say_what_was_wanted_and_what_came(call, error, message):
    with pytest.raises(error, match=message):
        call()
    assert not plt.get_fignums(), "a refused call leaves no empty figure"
