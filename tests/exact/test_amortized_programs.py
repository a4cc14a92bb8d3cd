"""Another data set of the same shapes meets programs that are compiled already, whatever corrects it."""

import amortized_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion.infer.amortized.targets import Targets

pytestmark = [
    pytest.mark.filterwarnings("ignore:Expected y like the simulated"),
    pytest.mark.filterwarnings("ignore:Expected (Pareto k-hat|R-hat|an effective size)"),
]

OTHER = jnp.array([0.3, -0.5, 1.0])


@pytest.fixture(scope="module")
def amortized():
    return cases.untrained(cases.linear, num_steps=2)


def compiled(caplog, function):
    """Names of the programs that a call compiles."""
    caplog.clear()
    with caplog.at_level("WARNING", logger="jax"), jax.log_compiles():
        function()
    return [record.getMessage().split()[1] for record in caplog.records if record.getMessage().startswith("Compiling")]


def corrected(amortized, y, method, **settings):
    settings = {"num_samples": 40, "num_paths": 2, "progress_bar": False, **settings}
    return amortized.condition(y).correct(jax.random.key(1), method, **settings)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("importance", {}),
        ("importance", {"model_kwargs": {"scale": 0.8}}),
        ("hmc", {"num_warmup": 4, "num_chains": 2}),
        ("tempered", {"num_islands": 2}),
    ],
    ids=["importance", "another prior", "hmc", "tempered"],
)
def test_other_data_and_other_parameters_compile_no_correction(amortized, caplog, method, settings):
    first = corrected(amortized, cases.Y, method, **settings).get_samples()["x"]
    second = []
    amortized = cases.spoiled(amortized, jax.random.key(2), 1e-3)  # as after more training
    programs = compiled(caplog, lambda: second.append(corrected(amortized, OTHER, method, **settings)))
    assert programs == []
    assert not np.allclose(first, second[0].get_samples()["x"])


def test_a_second_data_set_is_conditioned_and_drawn_without_compiling(amortized, caplog):
    def answer(y):
        return amortized.condition(y).sample(jax.random.key(0), 5)

    assert compiled(caplog, lambda: answer(cases.Y[::-1]))  # or nothing is seen here
    assert compiled(caplog, lambda: answer(OTHER)) == []


def test_a_finished_correction_stays_what_it_is(amortized):
    """The engine that is kept is run again for another data set."""
    for method, settings in (("hmc", {"num_warmup": 4, "num_chains": 2}), ("tempered", {"num_islands": 2})):
        first = corrected(amortized, cases.Y, method, **settings)
        before = np.asarray(first.get_samples()["x"])
        corrected(amortized, OTHER, method, **settings)
        np.testing.assert_array_equal(first.get_samples()["x"], before)


def test_other_priors_are_kept_but_not_without_an_end(amortized):
    targets = Targets(amortized._simulator)
    half = targets.of(None, None, {"scale": 0.5})
    assert targets.of(None, None, {"scale": 0.5}) is half
    assert targets.of(cases.linear, (), {"scale": 0.5}) is half
    assert targets.of(None, None, None) is targets.own
    for scale in np.linspace(1.0, 2.0, 20).tolist():
        targets.of(None, None, {"scale": scale})
    assert len(targets._others) == 16
    assert targets.of(None, None, {"scale": 0.5}) is not half
