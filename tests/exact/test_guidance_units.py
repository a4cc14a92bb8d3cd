"""Guidance given in the units of the data is that of the chain's states."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from measured_errors import check, of_independent
from numpyro.distributions import transforms as npt
from unit_cases import EXP, MATRIX, PAIR, WHITENING, Case

import numpyro_diffusion as nd
from numpyro_diffusion.transforms import InsertConstants, SinhArcsinh

CHAIN = PAIR.chain
COLUMNS = npt.AffineTransform(jnp.array([100.0, -3.0]), jnp.array([5.0, -0.2]))
X_T, Y = jnp.array([[0.3, -1.0], [2.0, 0.1]]), jnp.array([103.0, -3.1])


def same(found, expected):
    for a, b in zip(jax.tree.leaves(found(CHAIN, X_T, 2)), jax.tree.leaves(expected(CHAIN, X_T, 2)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("noised", [False, True])
@pytest.mark.parametrize("scale", [0.7, (0.0, 0.7), (np.inf, 0.7)])
def test_a_gaussian_factor_is_moved_and_scaled_with_each_column(noised, scale):
    scale = jnp.asarray(scale)
    moved = nd.GaussianFactor((Y - COLUMNS.loc) / COLUMNS.scale, scale / jnp.array([5.0, 0.2]), noised=noised)
    for transforms in (COLUMNS, [COLUMNS], npt.ComposeTransform([npt.IdentityTransform(), COLUMNS])):
        found = nd.GaussianFactor(Y, scale, noised=noised).in_states(transforms)
        assert found.fixes == moved.fixes
        same(found, moved)


def test_linear_observations_go_through_a_whitening_and_constant_columns():
    matrix, noise = jnp.array([[1.0, 2.0], [0.5, -1.0]]), jnp.array([0.5, 2.0])
    loc = jnp.array([100.0, -3.0])
    expected = nd.MomentMatching(matrix @ MATRIX, Y - matrix @ loc, noise)
    same(nd.MomentMatching(matrix, Y, noise).in_states(WHITENING), expected)
    wide = jnp.insert(matrix, 1, 7.0, axis=1)  # of a column that is always 4
    found = nd.MomentMatching(wide, Y + 28, noise).in_states([WHITENING, InsertConstants((None, 4.0, None))])
    same(found, expected)
    masked = nd.MomentMatching(matrix, Y.at[0].set(jnp.nan), noise, mask=jnp.array([False, True]))
    same(masked.in_states(WHITENING), nd.MomentMatching(expected.matrix[1:], expected.value[1:], noise[1:]))


@pytest.mark.parametrize("guidance", [nd.PaperTilt, nd.ReconstructionGuidance])
@pytest.mark.parametrize("transforms", [EXP, [WHITENING, SinhArcsinh(0.1, 0.8)]])
def test_a_function_of_x_is_one_of_the_state_by_composition(guidance, transforms):
    log_r = lambda x: dist.Normal(x, 2.0).log_prob(3.0).sum()
    by_hand = lambda state: log_r(npt.ComposeTransform(list(transforms))(state))
    same(guidance(log_r).in_states(transforms), guidance(by_hand))


@pytest.mark.parametrize(
    ("transforms", "y", "guidance"),
    [
        (WHITENING, [102.0, -2.0], lambda likelihood, y: nd.MomentMatching(jnp.eye(2), y, 2.0)),
        (EXP, [4.0, 2.5], lambda likelihood, y: nd.ReconstructionGuidance(lambda x: likelihood(x).log_prob(y))),
    ],
)
def test_weights_of_a_chain_guided_in_units_give_the_evidence(transforms, y, guidance):
    y = jnp.asarray(y)
    likelihood = lambda x: dist.Normal(x, 2.0).to_event(1)
    prior = dist.TransformedDistribution(PAIR, transforms)
    case = Case(PAIR, prior, likelihood, y)
    chain = nd.TiltedChain(CHAIN, guidance(likelihood, y).in_states(prior.transforms))

    @jax.jit
    def weights(key):
        path = chain.sample(key, (20_000,))
        log_r = lambda state: likelihood(case.transform(state)).log_prob(y)
        return jnp.exp(chain.log_weight(path, log_r))

    exact = np.exp(case.quadrature()[0])
    check(of_independent(np.asarray(weights(jax.random.key(0)))[:, None] / exact), np.ones(1), refused=np.full(1, 0.9))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nd.GaussianFactor(Y, 1.0).in_states(EXP), ValueError, "affine transforms that keep.*ExpTransform"),
        (lambda: nd.GaussianFactor(Y, 1.0).in_states(WHITENING), ValueError, "LowerCholeskyAffine. Use MomentMatching"),
        (
            lambda: nd.MomentMatching(jnp.eye(2), Y, 1.0).in_states(EXP),
            ValueError,
            "affine.*Use ReconstructionGuidance",
        ),
        (lambda: nd.PaperTilt(jnp.sum).in_states(jnp.exp), TypeError, "NumPyro transforms.*Pass prior.transforms"),
    ],
)
def test_what_is_not_linear_in_the_state_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
