"""The speed benchmark compares like with like: same loss, same steps, and measures that can come out otherwise."""

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from test_benchmark_problems import load

import numpyro_diffusion as nd

problems, fits, growth, process, torch_side, plots = map(
    load, ["speed_problems", "speed_fit", "speed_growth", "speed_process", "speed_vs_torch", "speed_plot"]
)

SMALL = {
    "mlp": problems.Problem("mlp", num_steps=4, width=8, batch_size=8, rows=40),
    "unet": problems.Problem("unet", num_steps=4, width=4, batch_size=8, rows=40),
}


@pytest.mark.parametrize("name", ["mlp", pytest.param("unet", marks=pytest.mark.slow)])
def test_hand_written_loss_is_ours_on_the_same_draws(name):
    problem = SMALL[name]
    x_0, params, key = problem.data(0), problem.params(1), jax.random.key(2)
    ours = jax.jit(lambda: -problem.prior(params, key).log_prob(x_0).sum())()
    written = jax.jit(fits.written_loss(problem))
    np.testing.assert_allclose(written(params, key, x_0), ours, rtol=1e-4)
    other_key = written(params, jax.random.key(3), x_0)
    assert abs(other_key - ours) > 1e-2 * abs(ours)  # so that equality above says something


def test_another_loss_is_found_out(monkeypatch):
    problem = SMALL["mlp"]
    fits.check_same_loss(problem, problem.data(0), 0)
    written = fits.written_loss(problem)
    monkeypatch.setattr(fits, "written_loss", lambda problem: lambda *arguments: 1.01 * written(*arguments))
    with pytest.raises(RuntimeError, match="the two losses differ"):
        fits.check_same_loss(problem, problem.data(0), 0)


@pytest.mark.slow
def test_unet_does_to_each_image_what_it_does_to_one():
    """Any batch shape; a scalar t for all."""
    problem = SMALL["unet"]
    transition = jax.jit(problem.prior(problem.params(0)).transition)
    x = jax.random.normal(jax.random.key(1), (2, 3, 8, 8, 1))
    t = jnp.array([1, 2, 4])
    together = transition(x, t)
    assert [part.shape for part in together] == 2 * [x.shape]
    for index in np.ndindex(2, 3):
        for part, alone in zip(together, transition(x[index], t[index[1]]), strict=True):
            np.testing.assert_allclose(part[index], alone, atol=1e-5)


@pytest.mark.slow
def test_both_kinds_of_written_loop_train_alike_and_fit_is_timed():
    problem = SMALL["mlp"]
    data = problem.data(0)
    scanned, stepwise = (fits.written_fit(problem, data, scanned=scanned)(0, 200) for scanned in (True, False))
    np.testing.assert_allclose(scanned[1], stepwise[1], rtol=1e-3)
    ours = problems.time_fit(problem, data, 0, 300)
    assert 0 < ours.seconds_per_step < ours.seconds_to_first_report
    assert np.isfinite(ours.last_loss)
    assert 0 < ours.steps_timed < 300
    with pytest.raises(RuntimeError, match="two or more reports"):
        problems.time_fit(problem, data, 0, 1)


def test_slope_is_the_exponent_of_a_power_law(monkeypatch):
    row = growth.growth("cubic", (2, 4, 8), lambda size: lambda: 0.5 * size**3, 2, "<= 1.02")
    np.testing.assert_allclose(row["value"], 3, rtol=1e-6)
    assert growth.sampling_seconds(SMALL["mlp"], 8, 0)() > 0
    with pytest.raises(RuntimeError, match="positive seconds"):
        growth.growth("none", (2, 4), lambda size: lambda: 0.0, 1)


@pytest.mark.slow
def test_peak_of_a_fresh_process_is_its_own():
    """Not its parent's, which ``ru_maxrss`` reports on Linux."""
    code = f"import sys; sys.path.insert(0, {str(process._BENCHMARKS)!r})\n{{}}\nfrom speed_process import peak_bytes"
    code += "\nprint(peak_bytes())"
    held = bytearray(1000 << 20)
    held[::4096] = b"x" * len(held[::4096])
    small, large = (process.fresh(code.format(extra)) for extra in ("", "x = b'x' * (400 << 20)"))
    assert small < len(held)
    assert large - small > 300 << 20


@pytest.mark.slow
def test_program_memory_grows_with_the_batch():
    small, large = (
        process.training_bytes(problems.Problem("mlp", num_steps=4, width=8, batch_size=size)) for size in (64, 4096)
    )
    assert large > 4 * small


def test_without_pytorch_its_rows_are_skipped(capsys):
    assert torch_side.run(0, 1, "no-such-interpreter") == []
    assert torch_side.INSTALL in capsys.readouterr().out


def test_picture_is_drawn(tmp_path):
    rows = [growth.growth("linear", (2, 4), lambda size: lambda: float(size), 1)]
    rows += [growth.record("ratio", 1.2, "ratio", limit="<= 1.05"), growth.record("free", 2.0, "ratio")]
    plots.plot(rows, tmp_path / "speed.png")
    drawn = matplotlib.image.imread(tmp_path / "speed.png")
    half = drawn.shape[1] // 2
    for panel in (drawn[:, :half], drawn[:, half:]):  # ratios and slopes: each has points and words
        assert (panel[..., :3].min(-1) < 0.5).mean() > 0.001


def test_picture_of_one_kind_of_record_has_one_panel(tmp_path):
    plots.plot([growth.record("ratio", 1.2, "ratio", limit="<= 1.05")], tmp_path / "ratios.png")
    plots.plot([growth.growth("linear", (2, 4), lambda size: lambda: float(size), 1)], tmp_path / "slopes.png")
    for name in ("ratios.png", "slopes.png"):
        height, width = matplotlib.image.imread(tmp_path / name).shape[:2]
        assert width < 1.4 * height


def test_picture_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected a record of a ratio or of a slope to draw; got none"):
        plots.plot([growth.record("seconds", 1.2, "s")], tmp_path / "none.png")


def test_the_kernel_of_the_pytorch_rows_is_ddpm():
    """Predicts the noise, one output; the variance is the bridge's."""
    problem = problems.Problem("mlp", kernel_options=torch_side.KERNEL)
    assert problem.kernel.num_outputs == 1
    assert isinstance(problem.kernel, nd.GaussianKernel)
