"""The distributions that the contract tests visit: one row here brings every generic test.

Transition functions are affine and written out, so that what a test finds wrong is the chain and not a network; one row
has a Haiku network. T is 3 everywhere: it is the smallest chain with a first, an inner and a last step.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from numpyro_diffusion import (
    AllSteps,
    BernoulliKernel,
    CategoricalKernel,
    Diffusion,
    ForwardChain,
    GaussianKernel,
    ImportanceWeighted,
    RandomStep,
    ReverseChain,
    Transition,
    networks,
    schedules,
)
from numpyro_diffusion.guidance import ErrorCovariance, GaussianFactor, MomentMatching, PaperTilt, TiltedChain
from numpyro_diffusion.kernels.bernoulli import BernoulliLogits
from numpyro_diffusion.modules import HaikuFunction

NUM_STEPS = 3


def floats(*shape: int, seed: int = 0) -> jax.Array:
    """Fixed standard normal numbers in the default float."""
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), float)


def bits(*shape: int, seed: int = 0) -> jax.Array:
    """Fixed fair bits."""
    return jnp.asarray(np.random.default_rng([seed, *shape]).integers(0, 2, size=shape), int)


# Transition functions ------------------------------------------------------------------------------


def pull_to_zero(params: Any, x_t: Any, t: Any, context: Any) -> Any:
    """For events that are one number: t broadcasts with x_t as it is."""
    return params * x_t / t.astype(x_t.dtype)


@dataclasses.dataclass(frozen=True)
class Affine:
    """gain t/T x_t + shift + the context's sum; a second output, if any, is positive. Differs at every step."""

    event_dim: int
    num_outputs: int = 1
    context_dim: int = 1

    def __call__(self, params: Any, x_t: Any, t: Any, context: Any) -> Any:
        t = t.astype(x_t.dtype).reshape(t.shape + (1,) * self.event_dim)
        output = params["gain"] * x_t * t / NUM_STEPS + params["shift"]
        if context is not None:
            context = context.sum(tuple(range(context.ndim - self.context_dim, context.ndim)))
            output = output + context.reshape(context.shape + (1,) * self.event_dim)
        return output if self.num_outputs == 1 else (output, jax.nn.softplus(output))


def affine_params() -> dict[str, jax.Array]:
    return {"gain": jnp.asarray(0.7, float), "shift": jnp.asarray(-0.3, float)}


def affine(
    event_shape: tuple[int, ...], num_outputs: int = 1, context_shape: tuple[int, ...] | None = None
) -> Transition:
    """An affine transition, anew at each call, equal to every other of the same arguments."""
    function = Affine(len(event_shape), num_outputs, len(context_shape or ()))
    return Transition(function, affine_params(), event_shape, context_shape)


def haiku_mlp() -> Transition:
    """A small Haiku network on vectors of length 2, with weights that are not the zeros it starts from."""
    function = HaikuFunction(networks.MLP(NUM_STEPS, num_outputs=2, width=4, depth=1, num_time_features=2))
    shapes, _ = jax.eval_shape(function.init, jax.random.key(0), floats(1, 2), jnp.ones((1,), int), None)
    leaves, structure = jax.tree.flatten(shapes)
    weights = [0.5 * floats(*leaf.shape, seed=index) for index, leaf in enumerate(leaves)]
    return Transition(function, jax.tree.unflatten(structure, weights), (2,))


def log_r(weights: Any, x: Any) -> Any:
    """A factor for a tilt: smooth, neither linear nor a sum over coordinates."""
    return jnp.tanh((weights * x).sum()) - 0.1 * (x**2).sum()


# Kernels -------------------------------------------------------------------------------------------


def gaussian(**kwargs: Any) -> GaussianKernel:
    return GaussianKernel(schedules.log_snr(NUM_STEPS, 0.3, 5.0), **kwargs)


def bernoulli(**kwargs: Any) -> BernoulliKernel:
    # b_T < 1, so that a small change of every number in the schedule is again a schedule.
    return BernoulliKernel(schedules.linear(NUM_STEPS, 1.0, 4.0), **kwargs)


def categorical(**kwargs: Any) -> CategoricalKernel:
    return CategoricalKernel(schedules.linear(NUM_STEPS, 1.0, 4.0), 3, **kwargs)


def to_states(params: Any, x_t: Any, t: Any, context: Any) -> Any:
    """Logits of x^0 for vectors of states, from one-hot x_t: every state looks at its neighbour's."""
    gain = t.astype(x_t.dtype)[..., None, None] / NUM_STEPS
    return gain * params["gain"] * jnp.roll(x_t, 1, axis=-2) + params["shift"] * x_t


def estimated(kernel: Any, transition: Transition, estimator: Any, **kwargs: Any) -> Diffusion:
    return Diffusion(kernel, transition, estimator=estimator, rng_key=jax.random.key(7), **kwargs)


# Cases ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """One distribution.

    Args:
        name: the test's id.
        make: builds it anew, from arrays that are new too; passes keywords on to the constructor.
        batch_shape: what it must be.
        event_shape: what it must be.
        is_discrete: whether draws are bits.
        is_estimate: log_prob is a random estimate, whose noise depends on the batch's shape.
    """

    name: str
    make: Callable[..., Any]
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    is_discrete: bool = False
    is_estimate: bool = False

    @property
    def is_chain(self) -> bool:
        """Whether the class is one of the package's chains (and not a distribution of single numbers)."""
        return self.name.split()[0] in ("forward", "reverse", "tilted", "diffusion")

    def value(self, *leading: int, seed: int = 0) -> jax.Array:
        """A value in the support, of shape leading + batch_shape + event_shape, independent of the package."""
        make = bits if self.is_discrete else floats
        return make(*leading, *self.batch_shape, *self.event_shape, seed=seed)


VECTOR_CONTEXT = {"event_shape": (2,), "context_shape": (2,)}
T = NUM_STEPS

CASES = [
    # forward chains
    Case(
        "forward gaussian number",
        lambda **k: ForwardChain(gaussian(), floats(), event_dim=0, **k),
        (),
        (T,),
    ),
    Case(
        "forward gaussian vector batch key",
        lambda **k: ForwardChain(gaussian(), floats(3, 2), rng_key=jax.random.key(5), **k),
        (3,),
        (T, 2),
    ),
    Case(
        "forward gaussian matrix",
        lambda **k: ForwardChain(gaussian(), floats(2, 2), event_dim=2, **k),
        (),
        (T, 2, 2),
    ),
    Case(
        "forward bernoulli number",
        lambda **k: ForwardChain(bernoulli(), bits(), event_dim=0, **k),
        (),
        (T,),
        is_discrete=True,
    ),
    Case(
        "forward bernoulli vector batch",
        lambda **k: ForwardChain(bernoulli(rate=jnp.asarray([0.3, 0.6], float)), bits(3, 2), **k),
        (3,),
        (T, 2),
        is_discrete=True,
    ),
    # reverse chains
    Case(
        "reverse gaussian number",
        lambda **k: ReverseChain(
            gaussian(variance="upper"), Transition(pull_to_zero, jnp.asarray(0.4, float), ()), **k
        ),
        (),
        (T + 1,),
    ),
    Case(
        "reverse gaussian vector context batch",
        lambda **k: ReverseChain(gaussian(), affine((2,), 2, (2,)), context=floats(3, 2), **k),
        (3,),
        (T + 1, 2),
    ),
    Case(
        "reverse gaussian vector number-context batch stop",
        lambda **k: ReverseChain(
            gaussian(parameterization="noise", variance="denoiser"),
            affine((2,), 2, ()),
            context=floats(3),
            stop=1,
            **k,
        ),
        (3,),
        (T, 2),
    ),
    Case(
        "reverse gaussian matrix stop",
        lambda **k: ReverseChain(gaussian(parameterization="x0", variance="lower"), affine((2, 2)), stop=1, **k),
        (),
        (T, 2, 2),
    ),
    Case(
        "reverse gaussian vector score",
        lambda **k: ReverseChain(gaussian(parameterization="score", data_scale=2.0), affine((2,), 2), **k),
        (),
        (T + 1, 2),
    ),
    Case(
        "reverse gaussian vector paper",
        lambda **k: ReverseChain(gaussian(parameterization="paper"), affine((2,), 2), **k),
        (),
        (T + 1, 2),
    ),
    Case(
        "reverse gaussian vector haiku",
        lambda **k: ReverseChain(gaussian(), haiku_mlp(), **k),
        (),
        (T + 1, 2),
    ),
    Case(
        "reverse gaussian vector expanded",
        lambda **k: ReverseChain(gaussian(), affine((2,), 2), **k).expand((3,)),
        (3,),
        (T + 1, 2),
    ),
    Case(
        "reverse bernoulli vector context batch",
        lambda **k: ReverseChain(bernoulli(), affine((2,), 1, (2,)), context=floats(3, 2), **k),
        (3,),
        (T + 1, 2),
        is_discrete=True,
    ),
    Case(
        "reverse bernoulli number logits stop",
        lambda **k: ReverseChain(bernoulli(parameterization="logits"), affine(()), stop=1, **k),
        (),
        (T,),
        is_discrete=True,
    ),
    # tilted chains
    Case(
        "tilted gaussian number factor stop",
        lambda **k: TiltedChain(
            ReverseChain(gaussian(variance="upper"), affine(()), stop=1), GaussianFactor(0.4, 1.5, noised=True), **k
        ),
        (),
        (T,),
    ),
    Case(
        "tilted gaussian vector context batch",
        lambda **k: TiltedChain(
            ReverseChain(gaussian(), affine((2,), 2, (2,)), context=floats(3, 2)),
            MomentMatching(floats(2, 2), floats(3, 2), 0.7),
            **k,
        ),
        (3,),
        (T + 1, 2),
    ),
    Case(
        "tilted bernoulli vector paper",
        lambda **k: TiltedChain(
            ReverseChain(bernoulli(), affine((2,))), PaperTilt(Partial(log_r, floats(2)), "annealed"), **k
        ),
        (),
        (T + 1, 2),
        is_discrete=True,
    ),
    # marginals
    Case(
        "diffusion gaussian vector haiku random-step",
        lambda **k: estimated(gaussian(), haiku_mlp(), RandomStep(), **k),
        (),
        (2,),
        is_estimate=True,
    ),
    Case(
        "diffusion gaussian vector context batch all-steps",
        lambda **k: estimated(gaussian(), affine((2,), 2, (2,)), AllSteps(), context=floats(3, 2), **k),
        (3,),
        (2,),
        is_estimate=True,
    ),
    Case(
        "diffusion gaussian vector errors all-steps",
        lambda **k: estimated(gaussian(), affine((2,), 2), AllSteps(), **k).with_errors(
            ErrorCovariance(floats(T, 2, 1), 1 + floats(T, 2) ** 2)
        ),
        (),
        (2,),
        is_estimate=True,
    ),
    Case(
        "diffusion gaussian number importance-weighted",
        lambda **k: estimated(gaussian(variance="upper"), affine(()), ImportanceWeighted(2), **k),
        (),
        (),
        is_estimate=True,
    ),
    Case(
        "diffusion bernoulli vector context batch random-step",
        lambda **k: estimated(bernoulli(), affine((2,), 1, (2,)), RandomStep(2), context=floats(3, 2), **k),
        (3,),
        (2,),
        is_discrete=True,
        is_estimate=True,
    ),
    Case(
        "diffusion bernoulli matrix all-steps",
        lambda **k: estimated(
            BernoulliKernel(schedules.constant_fraction(NUM_STEPS), rate=0.4), affine((2, 2)), AllSteps(2), **k
        ),
        (),
        (2, 2),
        is_discrete=True,
        is_estimate=True,
    ),
    Case(
        "diffusion bernoulli number logits importance-weighted",
        lambda **k: estimated(bernoulli(parameterization="logits"), affine(()), ImportanceWeighted(2), **k),
        (),
        (),
        is_discrete=True,
        is_estimate=True,
    ),
    Case(
        "diffusion categorical vector all-steps",
        lambda **k: estimated(categorical(), Transition(to_states, affine_params(), (2,)), AllSteps(), **k),
        (),
        (2,),
        is_discrete=True,
        is_estimate=True,
    ),
    # distributions of single numbers
    Case("bernoulli-logits batch", lambda **k: BernoulliLogits(floats(3), **k), (3,), (), is_discrete=True),
]

# One of each class and kernel, batched or not, for tests that cost a compilation each.
FEW = [
    case
    for case in CASES
    if case.name
    in (
        "forward gaussian vector batch key",
        "forward bernoulli vector batch",
        "reverse gaussian vector context batch",
        "reverse gaussian vector haiku",
        "reverse bernoulli number logits stop",
        "tilted gaussian vector context batch",
        "diffusion gaussian vector context batch all-steps",
        "diffusion bernoulli vector context batch random-step",
        "diffusion gaussian number importance-weighted",
    )
]


# One of each class, for tests of keys, plates and NumPyro's wrappers: which kernel or network is inside plays no part.
CLASSES = [case for case in FEW if case.name.endswith(("batch key", "context batch", "context batch all-steps"))]

# Every class, kernel, rank of the event, batch, context, key, stop, estimator and network is in one of these. The other
# rows put them together anew, or differ in a parameterization: in numbers, so in densities and gradients, and not in
# shapes, leaves, supports and checks. Tests of those run on these rows.
STRUCTURES = [
    case
    for case in CASES
    if case.name
    not in (
        "forward gaussian matrix",
        "forward bernoulli number",
        "reverse gaussian number",
        "reverse gaussian vector number-context batch stop",
        "reverse gaussian vector score",
        "reverse gaussian vector paper",
        "reverse bernoulli vector context batch",
        "diffusion gaussian number importance-weighted",
        "diffusion bernoulli vector context batch random-step",
        "diffusion bernoulli matrix all-steps",
    )
]


def over(cases: list[Case]) -> pytest.MarkDecorator:
    """Run a test once for each case."""
    return pytest.mark.parametrize("case", cases, ids=[case.name.replace(" ", "-") for case in cases])


# What many tests compile, compiled once ------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=2)
def draw(distribution: Any, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
    """distribution.sample as a compiled function of the distribution."""
    return distribution.sample(key, sample_shape)


@jax.jit
def log_prob(distribution: Any, value: Any) -> jax.Array:
    """distribution.log_prob as a compiled function of the distribution."""
    return distribution.log_prob(value)


def draws(case: Case) -> np.ndarray:
    """Sixteen draws, shape (16,) + batch_shape + event_shape; one compilation serves every test of a case."""
    return np.asarray(draw(case.make(), jax.random.key(1), (16,)))


def scores(case: Case, value: jax.Array | None = None) -> np.ndarray:
    """log_prob of two values, shape (2,) + batch_shape; one compilation serves every test of a case."""
    return np.asarray(log_prob(case.make(), case.value(2) if value is None else value))


def close(actual: Any, wanted: Any, rounding: float = 100.0) -> None:
    """Equal but for the rounding of a sum in another order: ``rounding`` units in the last place of the largest number.

    Also compares shapes and dtypes; integers are equal exactly, NaN never.
    """
    actual, wanted = np.asarray(actual), np.asarray(wanted)
    assert actual.shape == wanted.shape
    assert actual.dtype == wanted.dtype
    if not np.issubdtype(wanted.dtype, np.floating):
        np.testing.assert_array_equal(actual, wanted)
        return
    assert np.isfinite(actual).all()
    size = 1.0 + np.abs(wanted).max(initial=0.0)
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=rounding * np.finfo(wanted.dtype).eps * size)
