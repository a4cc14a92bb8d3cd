"""kl_divergence(ForwardChain, ReverseChain): found by NumPyro, wrapped or not, and right on average."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from catalogue import NUM_STEPS, affine, bits, close, floats
from numpyro.distributions.kl import kl_divergence

from numpyro_diffusion import BernoulliKernel, ForwardChain, GaussianKernel, ReverseChain, schedules


# Schedules that end early, so that the far end's divergence is a large part of the whole.
def gaussian():
    return GaussianKernel(schedules.log_snr(NUM_STEPS, 0.3, 1.0))


def bernoulli():
    return BernoulliKernel(schedules.linear(NUM_STEPS, 0.3, 0.6))


PAIRS = {
    "gaussian": lambda key: (
        ForwardChain(gaussian(), floats(3, 2), rng_key=key),
        ReverseChain(gaussian(), affine((2,), 2), stop=1),
    ),
    "gaussian with context": lambda key: (
        ForwardChain(gaussian(), floats(3, 2), rng_key=key),
        ReverseChain(gaussian(), affine((2,), 2, (2,)), context=floats(3, 2, seed=1), stop=1),
    ),
    "bernoulli": lambda key: (
        ForwardChain(bernoulli(), bits(3, 2), rng_key=key),
        ReverseChain(bernoulli(), affine((2,)), stop=1),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_it_is_the_mean_of_the_log_ratio(name):
    forward, reverse = PAIRS[name](jax.random.key(0))

    def by_formula(key):
        forward, reverse = PAIRS[name](key)
        return kl_divergence(forward, reverse)

    def by_trajectory(key):
        path = forward.sample(key)
        return forward.log_prob(path) - reverse.log_prob(path)

    @jax.jit
    def both(key):
        first, second = jax.random.split(key)
        draws = 4000
        return (
            jax.vmap(by_formula)(jax.random.split(first, draws)),
            jax.vmap(by_trajectory)(jax.random.split(second, draws)),
        )

    formula, trajectory = (np.asarray(draws, np.float64) for draws in both(jax.random.key(11)))
    assert formula.shape == trajectory.shape == (4000, 3)
    error = np.sqrt(formula.var(0) / 4000 + trajectory.var(0) / 4000)
    z = (formula.mean(0) - trajectory.mean(0)) / error
    assert np.abs(z).max() < 5, z  # 6e-7 for each of the nine
    assert (formula.var(0) < trajectory.var(0)).all(), "the estimate is meant to have less variance"


def test_it_passes_numpyro_s_wrappers():
    forward, reverse = PAIRS["gaussian with context"](jax.random.key(0))
    mask = jnp.asarray([True, False, True])

    @jax.jit
    def all_pairs(forward, reverse):
        wide = lambda distribution: dist.ExpandedDistribution(distribution, (4, 3))
        return {
            "plain": kl_divergence(forward, reverse),
            "expanded forward": kl_divergence(wide(forward), reverse),
            "expanded reverse": kl_divergence(forward, wide(reverse)),
            "both expanded": kl_divergence(wide(forward), wide(reverse)),
            "joined": kl_divergence(forward.to_event(1), reverse.to_event(1)),
            "masked": kl_divergence(forward.mask(mask), reverse.mask(mask)),
        }

    pairs = all_pairs(forward, reverse)
    plain = pairs["plain"]
    assert plain.shape == (3,)
    assert (plain > 0).all()
    for name in ("expanded forward", "expanded reverse", "both expanded"):
        close(pairs[name], jnp.broadcast_to(plain, (4, 3)))
    close(pairs["joined"], plain.sum())
    close(pairs["masked"], jnp.where(mask, plain, 0.0))


def test_its_own_expand_broadcasts_with_fresh_noise():
    forward, reverse = PAIRS["gaussian"](jax.random.key(0))
    expanded = jax.jit(lambda p, q: kl_divergence(p.expand((2, 3)), q.expand((2, 3))))(forward, reverse)
    assert expanded.shape == (2, 3)
    assert (expanded[0] != expanded[1]).all()


def test_the_same_key_gives_the_same_number():
    divergence = jax.jit(lambda forward, reverse: kl_divergence(forward, reverse))
    np.testing.assert_array_equal(
        divergence(*PAIRS["gaussian"](jax.random.key(1))), divergence(*PAIRS["gaussian"](jax.random.key(1)))
    )
    assert (
        divergence(*PAIRS["gaussian"](jax.random.key(1))) != divergence(*PAIRS["gaussian"](jax.random.key(2)))
    ).all()


def test_what_is_no_pair_is_left_to_numpyro_s_fallback():
    forward, reverse = PAIRS["gaussian"](jax.random.key(0))
    whole = ReverseChain(gaussian(), affine((2,), 2))
    of_bits = PAIRS["bernoulli"](jax.random.key(0))[1]
    for other in (whole, of_bits):
        with pytest.raises(NotImplementedError):
            kl_divergence(forward, other)
    with pytest.raises(NotImplementedError):
        kl_divergence(reverse, forward)


def test_it_needs_a_key():
    forward, reverse = PAIRS["gaussian"](None)
    with pytest.raises(
        ValueError, match=r"Expected a random key for kl_divergence\(ForwardChain, ReverseChain\); got None"
    ):
        kl_divergence(forward, reverse)
