"""Values outside the support, and arguments that make no distribution: errors name what was wanted and what came."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from catalogue import (
    NUM_STEPS,
    STRUCTURES,
    Affine,
    affine,
    affine_params,
    bernoulli,
    bits,
    floats,
    gaussian,
    log_prob,
    over,
    scores,
)

from numpyro_diffusion import (
    AllSteps,
    BernoulliKernel,
    Diffusion,
    ForwardChain,
    GaussianKernel,
    ImportanceWeighted,
    RandomStep,
    ReverseChain,
    Transition,
    schedules,
)

CHAINS = [case for case in STRUCTURES if case.is_chain]
# One row for each class and kernel: validation looks at values, not at the distribution's details.
VALIDATED = [
    case
    for case in CHAINS
    if case.name
    in (
        "forward gaussian vector batch key",
        "forward bernoulli vector batch",
        "reverse gaussian vector context batch",
        "reverse bernoulli number logits stop",
        "diffusion gaussian vector context batch all-steps",
        "diffusion bernoulli vector context batch random-step",
    )
]


def spoil(value, number):
    """The value with one coordinate of the last batch member replaced."""
    return jnp.asarray(value, float).at[(-1,) * value.ndim].set(number)


@over(CHAINS)
def test_a_concrete_value_outside_the_support_is_refused(case):
    name = type(case.make()).__name__
    for number, message in ((np.nan, "nan"), (0.5 if case.is_discrete else np.inf, "0.5|inf")):
        wrong = spoil(case.value(), number)
        index = ", ".join(str(size - 1) for size in wrong.shape)
        wanted = "(only 0 and 1|states 0 to 2)" if case.is_discrete else "finite values"
        match = rf"Expected {wanted} for a value of {name}; got .*({message}).* at index \({index},?\)"
        for validate_args in (None, True):
            with pytest.raises(ValueError, match=match):
                case.make(validate_args=validate_args).log_prob(wrong)


@over(VALIDATED)
def test_a_traced_value_outside_the_support_has_density_zero(case):
    distribution = case.make(validate_args=True)
    value = jnp.asarray(case.value(2), float)
    wrong = spoil(value, 0.5 if case.is_discrete else np.inf)
    right, scored = np.asarray(log_prob(distribution, value)), np.asarray(log_prob(distribution, wrong))
    outside = np.zeros(scored.shape, bool)
    outside[(-1,) * scored.ndim] = True
    assert (scored[outside] == -np.inf).all()
    assert np.isfinite(right).all()
    if not case.is_estimate:
        np.testing.assert_array_equal(scored[~outside], right[~outside])
    np.testing.assert_allclose(right, scores(case), rtol=1e-5)


@over([case for case in VALIDATED if not case.is_estimate])
def test_without_validation_nothing_is_refused(case):
    distribution = case.make(validate_args=False)
    scored = np.asarray(distribution.log_prob(spoil(case.value(2), 0.5 if case.is_discrete else np.inf)))
    np.testing.assert_allclose(scored[0], scores(case)[0], rtol=1e-5)


@over([case for case in CHAINS if not case.is_discrete])
def test_integers_are_no_real_state(case):
    with pytest.raises(TypeError, match=r"Expected floating-point values for a value of \w+; got dtype int32"):
        case.make().log_prob(jnp.zeros(case.make().shape(), int))


def conditional():
    return affine((2,), 2, (2,))


def returning(output):
    """A chain of vectors of length 2 whose network returns what it must not."""
    return ReverseChain(gaussian(), Transition(lambda params, x_t, t, context: output(x_t), None, (2,)))


PATH = floats(NUM_STEPS + 1, 2)

REFUSED = {
    "kernel of a forward chain": (lambda: ForwardChain(None, floats(2)), TypeError, "Expected a Kernel; got None"),
    "kernel of a reverse chain": (
        lambda: ReverseChain(dist.Normal(), affine((2,), 2)),
        TypeError,
        "Expected a Kernel; got <numpyro",
    ),
    "x_0 with a nan": (
        lambda: ForwardChain(gaussian(), floats(3, 2).at[1, 0].set(np.nan)),
        ValueError,
        r"Expected finite values for x_0; got 1 NaN or infinite of 6, first nan at index \(1, 0\)",
    ),
    "x_0 of integers": (
        lambda: ForwardChain(gaussian(), bits(3, 2)),
        TypeError,
        "Expected floating-point values for x_0; got dtype int32",
    ),
    "x_0 not of bits": (
        lambda: ForwardChain(bernoulli(), bits(3, 2).at[2, 1].set(2)),
        ValueError,
        r"Expected only 0 and 1 for x_0; got 2 at index \(2, 1\) \(1 of 6 are neither\)",
    ),
    "negative event_dim": (
        lambda: ForwardChain(gaussian(), floats(2), event_dim=-1),
        ValueError,
        "Expected event_dim to be an integer >= 0; got -1",
    ),
    "event_dim above the rank": (
        lambda: ForwardChain(gaussian(), floats(2), event_dim=2),
        ValueError,
        r"Expected the rank of x_0, of shape \(2,\), to be an integer >= 2; got 1",
    ),
    "negative stop": (
        lambda: ReverseChain(gaussian(), affine((2,), 2), stop=-1),
        ValueError,
        "Expected stop to be an integer >= 0; got -1",
    ),
    "stop beyond T": (
        lambda: ReverseChain(gaussian(), affine((2,), 2), stop=NUM_STEPS + 1),
        ValueError,
        f"Expected stop <= T = {NUM_STEPS}; got {NUM_STEPS + 1}",
    ),
    "stop that is no integer": (
        lambda: ReverseChain(gaussian(), affine((2,), 2), stop=1.0),
        ValueError,
        r"Expected stop to be an integer >= 0; got 1\.0",
    ),
    "function in place of a transition": (
        lambda: ReverseChain(gaussian(), lambda x: x),
        TypeError,
        "Expected a Transition; got <function",
    ),
    "transition of a diffusion": (lambda: Diffusion(gaussian(), None), TypeError, "Expected a Transition; got None"),
    "kernel of a diffusion": (
        lambda: Diffusion(None, conditional(), context=floats(2)),
        TypeError,
        "Expected a Kernel",
    ),
    "context that is missing": (
        lambda: ReverseChain(gaussian(), conditional()),
        ValueError,
        r"Expected a context of trailing shape \(2,\); got None",
    ),
    "context not wanted": (
        lambda: Diffusion(gaussian(), affine((2,), 2), context=floats(2)),
        ValueError,
        r"Expected no context for an unconditional transition; got shape \(2,\)",
    ),
    "context of another shape": (
        lambda: ReverseChain(gaussian(), conditional(), context=floats(2, 3)),
        ValueError,
        r"Expected trailing dimensions \(2,\) for context; got shape \(2, 3\)",
    ),
    "function that is none": (lambda: Transition(3, None, ()), TypeError, "Expected function"),
    "event_shape of zero": (
        lambda: Transition(Affine(1), affine_params(), (0,)),
        ValueError,
        r"Expected event_shape to be a tuple of positive integers; got \(0,\)",
    ),
    "event_shape that is a number": (
        lambda: Transition(Affine(1), affine_params(), 2),
        ValueError,
        "Expected event_shape to be a tuple of positive integers; got 2",
    ),
    "context_shape that is negative": (
        lambda: Transition(Affine(1), affine_params(), (2,), (-1,)),
        ValueError,
        r"Expected context_shape to be a tuple of positive integers; got \(-1,\)",
    ),
    "network with one output of two": (
        lambda: returning(lambda x_t: x_t).log_prob(PATH),
        TypeError,
        "Expected the transition to return a tuple of 2 arrays",
    ),
    "network with three outputs": (
        lambda: returning(lambda x_t: (x_t, x_t, x_t)).sample(jax.random.key(0)),
        TypeError,
        "Expected the transition to return a tuple of 2 arrays",
    ),
    "network of another shape": (
        lambda: returning(lambda x_t: (x_t, x_t[..., :1])).log_prob(PATH),
        ValueError,
        r"Expected the transition to return .*; got shape \(3, 1\)",
    ),
    "network of another dtype": (
        lambda: returning(lambda x_t: (x_t, x_t.astype(jnp.float16))).log_prob(PATH),
        TypeError,
        r"got dtype float16. End the network with .astype\(float32\)",
    ),
    "network that returns None": (
        lambda: returning(lambda x_t: None).log_prob(PATH),
        TypeError,
        "Expected the transition to return a tuple of 2 arrays",
    ),
    "parameterization of a gaussian": (
        lambda: gaussian(parameterization="epsilon"),
        ValueError,
        "Expected parameterization one of v, noise, x0, score, paper; got 'epsilon'",
    ),
    "variance": (lambda: gaussian(variance="fixed"), ValueError, "Expected variance one of .*; got 'fixed'"),
    "variance of the paper's": (
        lambda: gaussian(parameterization="paper", variance="lower"),
        ValueError,
        "Expected variance='learned' with parameterization='paper'; got 'lower'",
    ),
    "data_scale": (lambda: gaussian(data_scale=0.0), ValueError, r"Expected data_scale > 0; got 0\.0"),
    "data_scale that is nan": (lambda: gaussian(data_scale=np.nan), ValueError, "Expected data_scale > 0; got nan"),
    "noise without signal": (
        lambda: GaussianKernel(schedules.constant_fraction(3), parameterization="noise"),
        ValueError,
        "Expected b_T < 1 for parameterization='noise'; got b_T = 1",
    ),
    "rate": (lambda: bernoulli(rate=1.0), ValueError, r"Expected rate in \(0, 1\); got 1\.0"),
    "rate that is nan": (lambda: bernoulli(rate=np.nan), ValueError, r"Expected rate in \(0, 1\); got nan"),
    "parameterization of bits": (
        lambda: BernoulliKernel(schedules.linear(3), parameterization="v"),
        ValueError,
        "Expected parameterization one of x0, logits; got 'v'",
    ),
    "draws of a random step": (lambda: RandomStep(0), ValueError, "Expected num_draws to be an integer >= 1; got 0"),
    "draws of all steps": (lambda: AllSteps(-1), ValueError, "Expected num_draws to be an integer >= 1; got -1"),
    "trajectories": (
        lambda: ImportanceWeighted(True),
        ValueError,
        "Expected num_trajectories to be an integer >= 1; got True",
    ),
    "density without a key": (
        lambda: Diffusion(gaussian(), affine((2,), 2), estimator=RandomStep()).log_prob(floats(2)),
        ValueError,
        r"Expected a random key for log_prob of Diffusion, .*RandomStep.*; got None. Pass rng_key=jax.random.key\(0\)",
    ),
    "noise of another shape": (
        lambda: ReverseChain(gaussian(), affine((2,), 2)).from_noise(floats(3, 2)),
        ValueError,
        r"Expected trailing dimensions \(4, 2\) for noise; got shape \(3, 2\)",
    ),
    "noise for bits": (
        lambda: ReverseChain(bernoulli(), affine((2,))).from_noise(floats(4, 2)),
        TypeError,
        "Expected a Gaussian kernel; got BernoulliKernel",
    ),
    "state of another shape": (
        lambda: ReverseChain(gaussian(), affine((2,), 2)).conditional(floats(3), 1),
        ValueError,
        r"Expected trailing dimensions \(2,\) for x_t; got shape \(3,\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_argument_is_named_in_the_error(name, no_type_checks):
    build, error, match = REFUSED[name]
    with pytest.raises(error, match=match):
        build()
