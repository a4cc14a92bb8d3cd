"""The image benchmarks: every row by both networks, records that are kept, intervals that are counted right."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from measured_errors import Mean, agree, check
from scipy.stats import norm
from test_benchmark_problems import load

import numpyro_diffusion as nd

SMALL = (("conv_layers", 1), ("conv_width", 2), ("num_scales", 1), ("pixel_layers", 0), ("num_bumps", 2))
records, posteriors, images = map(load, ["records", "image_posteriors", "paper_images"])


def test_every_image_row_has_both_networks_at_both_budgets():
    table = load("paper_table")
    for name in table.IMAGES:
        for budgets in images.BUDGETS.values():
            assert set(budgets[name]) == {"paper", "unet"}
            for kind, budget in budgets[name].items():
                kernel, network = images.kernel_and_network(kind, images.ROWS[name], budget)
                assert kernel.num_steps == network.num_steps == budget.num_steps
                assert float(kernel.schedule.beta[1]) == pytest.approx(images.ROWS[name].beta_1, rel=1e-3)
    assert set(images.ROWS) == set(table.IMAGES)


def test_mnist_has_the_dense_pathway_alone_and_cifar_both():
    settings = {name: dict(images.ROWS[name].paper_network) for name in ("mnist", "cifar10", "dead_leaves")}
    layers = {n: (s.get("conv_layers", 4), s.get("dense_layers", 0)) for n, s in settings.items()}
    assert layers == {"mnist": (0, 4), "cifar10": (4, 4), "dead_leaves": (4, 0)}


def test_a_row_that_was_not_run_says_so():
    table = images.markdown([])
    assert table.count("not yet run") == 2 * 2 * len(images.ROWS)
    entry = records.record("bark_unet_gpu_K_bits_per_pixel", -0.4, "bits/pixel", seconds=3.0, K_minus_L_null=1.6)
    table = images.markdown([entry])
    assert table.count("not yet run") == 2 * 2 * len(images.ROWS) - 1
    assert "| unet | gpu | 1000 | 0.001 | -0.400 | 1.600 | -0.550 | 1.500 | 3 |" in table


def test_a_row_is_trained_measured_and_resumed(tmp_path, monkeypatch, capsys):
    """K is that of the trained distribution in bits per pixel, and a second run trains no more."""
    data = np.asarray(jax.random.normal(jax.random.key(0), (40, 4, 4, 3)))
    row = images.Images("noise", lambda seed: (3 + 2 * data[:30], 3 + 2 * data[30:]), 1.0, 2.0, SMALL)
    budget = images.Budget(3, 4, 5, held_out=10, samples=0)
    monkeypatch.setitem(images.ROWS, "noise", row)
    monkeypatch.setitem(images.BUDGETS["cpu"], "noise", {"paper": budget})
    first = images.run("noise", "cpu", 1, tmp_path)
    again = images.run("noise", "cpu", 1, tmp_path)
    assert [entry["value"] for entry in first] == [entry["value"] for entry in again]
    (entry,) = first
    # In the units of the training images, under N(0, 1), by the pixel of three colours.
    held_out = (data[30:] - data[:30].mean()) / data[:30].std()
    assert entry["settings"]["L_null"] == pytest.approx(3 * norm.logpdf(held_out).mean() / np.log(2), rel=1e-5)
    assert entry["value"] - entry["settings"]["L_null"] == pytest.approx(entry["settings"]["K_minus_L_null"])
    entropy = norm(scale=np.sqrt(row.beta_1)).entropy() / np.log(2)
    assert entry["settings"]["bits_of_a_pixel_known_to_b_1"] == pytest.approx(-3 * entropy, rel=1e-6)


def test_records_of_earlier_runs_stay_and_are_replaced_by_name(tmp_path):
    path = tmp_path / "records.json"
    assert records.merge([records.record("a", 1.0, "")], path) == [records.record("a", 1.0, "")]
    path.write_text(json.dumps({"records": [records.record("a", 1.0, ""), records.record("b", 2.0, "")]}))
    merged = records.merge([records.record("a", 3.0, "")], path)
    assert [(entry["name"], entry["value"]) for entry in merged] == [("a", 3.0), ("b", 2.0)]


@pytest.mark.parametrize(
    ("limit", "value", "answer"),
    [
        ("0.87 to 0.93", 0.9, "yes"),
        ("0.87 to 0.93", 0.86, "no"),
        ("0.87 to 0.93", 0.94, "no"),
        ("> 1", 1.0, "no"),
        (">= 1", 1.0, "yes"),
        ("<= 1", 1.01, "no"),
        ("", 1.0, ""),
    ],
)
def test_a_limit_is_met_or_not(limit, value, answer):
    assert records.reached(records.record("x", value, "", limit=limit)) == answer


def test_coverage_is_the_share_of_truths_inside_the_central_90_percent():
    random = np.random.default_rng(0)
    draws, truth = random.normal(size=(400, 50, 64)), random.normal(size=(50, 64))
    # The k-th of n draws lies above k / (n + 1) of the truths: quantiles of 400 draws are a little narrow.
    wanted = 0.9 * 399 / 401
    check(Mean(*map(np.asarray, posteriors.coverage(draws, truth))), wanted, refused=0.8)
    for wrong in (0.5 * draws, draws + 3):
        assert not agree(Mean(*map(np.asarray, posteriors.coverage(wrong, truth))), wanted)


def test_guided_draws_of_every_baseline_are_finite_and_drawn_image_by_image(monkeypatch):
    """For a Gaussian prior with its exact denoiser, seen with little noise, the draws are near what was seen."""
    monkeypatch.setattr(posteriors, "DRAWS", 20)
    kernel = nd.GaussianKernel(nd.schedules.log_snr(30, 0.1, 100.0), parameterization="x0", variance="upper")
    shrink = jnp.asarray(kernel.schedule.alpha_bar**0.5, float)
    network = jax.tree_util.Partial(denoise_standard_normal, shrink)
    prior = nd.Diffusion(kernel, nd.Transition(network, None, (64,)))
    y = jnp.array([2.0, -2.0])[:, None] * jnp.ones(64)
    for name in posteriors.BASELINES:
        draws = posteriors.guided(name, prior, y, "denoise", jax.random.key(0))
        assert draws.shape == (20, 2, 64)
        assert np.isfinite(draws).all()
        assert draws[:, 0].mean() > 0.5
        assert draws[:, 1].mean() < -0.5


def denoise_standard_normal(shrink, params, x_t, t, context):
    return shrink[t] * x_t
