"""What a stranger runs first does run: the README's code, made small, and the examples as they are."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import numpyro_diffusion as nd

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def test_the_code_in_the_readme_runs():
    code = "".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
    small = "small = dict(network=network, kernel=kernel, num_steps=4, every=2, num_trajectories=1, progress_bar=False)"
    first, second = (line for line in code.splitlines() if line.startswith(("kernel =", "network =")))
    for full, replaced in (
        ("\ndata =", f"\n{first}\n{second}\n{small}\n\ndata ="),
        ("rng_key=jax.random.key(1))", "rng_key=jax.random.key(1), **small)"),
        ("log_snr(num_steps=40", "log_snr(num_steps=4"),
        ("num_frequencies=3", "num_frequencies=1, width=8, depth=1"),
        ("num_steps=4000, batch_size=512", "num_steps=2, batch_size=8, progress_bar=False"),
        ("5000)", "200)"),
        ("num_warmup=200, num_samples=500", "num_warmup=2, num_samples=3, progress_bar=False"),
    ):
        assert full in code
        code = code.replace(full, replaced)
    names = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - our own file
    draws = names["mcmc"].get_samples()
    assert draws["x"].shape == (3, 2)
    assert names["prior"].estimator is None
    assert jnp.isfinite(names["prior"].sample(jax.random.key(0), (3,))).all()
    assert jnp.isfinite(names["smc"].log_evidence)
    assert names["learned"].distribution.event_shape == (2,)


def test_the_readme_is_read_in_two_minutes_and_its_links_lead_somewhere():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.split("```python")[0].split()) <= 120
    links = re.findall(r"\]\((?!http)([^)#]+)", readme)
    assert len(links) > 40
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_parse_and_use_public_names_only(name):
    tree = ast.parse((ROOT / "examples" / name).read_text())
    private = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")]
    assert not private


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run_to_their_checked_number_and_write_their_pictures(name, tmp_path):
    command = [sys.executable, name, "--output", str(tmp_path)]
    subprocess.run(command, cwd=ROOT / "examples", check=True, timeout=900)
    assert list(tmp_path.glob("*.png"))


def test_the_model_of_the_demo_runs_on_a_prior_as_fit_returns_it(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    example = importlib.import_module("prior_in_a_model")
    kernel = nd.GaussianKernel(nd.schedules.log_snr(2, 0.3, 10.0), variance="upper")
    transition = nd.Transition(lambda params, x_t, t, context: 0 * x_t, None, (2,))
    prior = nd.Diffusion(kernel, transition, rng_key=jax.random.key(0))
    mcmc = example.infer(prior, jnp.zeros(example.NUM_READINGS), num_samples=4, progress_bar=False)
    assert mcmc.get_samples()["x"].shape == (16, 2)
