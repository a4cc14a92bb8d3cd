"""Tilts and tilted chains refuse wrong arguments, and say what was wanted and what came."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from tilted_cases import MATRIX, VALUE, bits_chain, gaussian_prior, linear

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import GaussianFactor, MomentMatching, PaperTilt, ReconstructionGuidance, TiltedChain


def gaussian_chain():
    return gaussian_prior(3)[0]


def sampled(tilt, chain=gaussian_chain):
    return TiltedChain(chain(), tilt).sample(jax.random.key(0))


REFUSED = {
    "chain of another class": (
        lambda: TiltedChain(dist.Normal(), PaperTilt(linear)),
        TypeError,
        "Expected an unguided ReverseChain; got <numpyro",
    ),
    "chain tilted already": (
        lambda: TiltedChain(TiltedChain(gaussian_chain(), PaperTilt(linear)), PaperTilt(linear)),
        TypeError,
        "Expected an unguided ReverseChain; got a TiltedChain. Two tilts do not combine",
    ),
    "tilt that is none": (
        lambda: TiltedChain(gaussian_chain(), None),
        TypeError,
        "Expected a function tilt.*; got None",
    ),
    "tilt of another shape": (
        lambda: sampled(lambda chain, x_t, t: dist.Normal(0.0, 1.0)),
        ValueError,
        r"Expected guidance to return a step of batch_shape \(2,\); got batch_shape \(\)",
    ),
    "log_r that is none": (lambda: PaperTilt(1.0), TypeError, r"Expected a function log_r\(x\); got 1\.0"),
    "log_r of guidance": (lambda: ReconstructionGuidance(None), TypeError, r"Expected a function log_r\(x\); got None"),
    "log_r of a vector": (
        lambda: sampled(PaperTilt(lambda x: x)),
        ValueError,
        r"Expected log_r of one x, of shape \(2,\), to return one real number; got shape \(2,\) and dtype float32",
    ),
    "log_r of guidance of a vector": (
        lambda: sampled(ReconstructionGuidance(lambda x: x)),
        ValueError,
        "to return one real number; got shape",
    ),
    "log_r of an integer": (
        lambda: sampled(PaperTilt(lambda x: (x > 0).sum())),
        ValueError,
        r"to return one real number; got shape \(\) and dtype int32",
    ),
    "log_r that returns None": (
        lambda: sampled(PaperTilt(lambda x: None)),
        ValueError,
        "to return one real number; got None",
    ),
    "log_r of a weight": (
        lambda: TiltedChain(gaussian_chain(), PaperTilt(linear)).log_weight(jnp.zeros((4, 2)), lambda x: x),
        ValueError,
        "to return one real number; got shape",
    ),
    "log_r of a chain that stops early": (
        lambda: TiltedChain(
            nd.ReverseChain(gaussian_chain().kernel, gaussian_chain().transition, stop=1), PaperTilt(linear)
        ).log_weight(jnp.zeros((3, 2)), linear),
        ValueError,
        r"Expected a chain down to x\^0 for log_r; got stop=1",
    ),
    "path of another shape": (
        lambda: TiltedChain(gaussian_chain(), PaperTilt(linear)).log_weight(jnp.zeros((3, 2))),
        ValueError,
        r"Expected trailing dimensions \(4, 2\) for path; got shape \(3, 2\)",
    ),
    "exponent": (
        lambda: PaperTilt(linear, "linear"),
        ValueError,
        "Expected exponent one of constant, annealed; got 'linear'",
    ),
    "scale that is negative": (lambda: GaussianFactor(0.0, -1.0), ValueError, r"Expected scale >= 0; got -1\.0"),
    "scale that is nan": (lambda: GaussianFactor(0.0, np.nan), ValueError, "Expected scale >= 0; got nan"),
    "value that is missing where observed": (
        lambda: GaussianFactor(np.array([1.0, np.nan]), np.array([np.inf, 1.0])),
        ValueError,
        r"Expected finite values for value where scale < inf; got 1 NaN or infinite of 2, first nan at index \(1,\)",
    ),
    "value of another shape": (
        lambda: sampled(GaussianFactor(np.zeros(3), 1.0)),
        ValueError,
        r"Expected value and scale to broadcast to the state's shape \(2,\); got shapes \(3,\) and \(\)",
    ),
    "value with a batch of its own": (
        lambda: sampled(GaussianFactor(np.zeros((3, 2)), 1.0)),
        ValueError,
        r"Expected value and scale to broadcast to the state's shape \(2,\); got shapes \(3, 2\) and \(\)",
    ),
    "covariance": (
        lambda: MomentMatching(MATRIX, VALUE, 1.0, covariance="exact"),
        ValueError,
        "Expected covariance one of scale, jacobian; got 'exact'",
    ),
    "matrix without rows": (
        lambda: MomentMatching(1.0, VALUE, 1.0),
        ValueError,
        r"Expected matrix \(m, event...\), .*; got shapes \(\), \(1,\), \(\)",
    ),
    "value of another length": (
        lambda: MomentMatching(MATRIX, np.zeros(3), 1.0),
        ValueError,
        r"Expected matrix \(m, event...\), .*; got shapes \(1, 2\), \(3,\), \(\)",
    ),
    "noise of another length": (
        lambda: MomentMatching(MATRIX, VALUE, np.ones(2)),
        ValueError,
        r"Expected matrix \(m, event...\), .*; got shapes \(1, 2\), \(1,\), \(2,\)",
    ),
    "matrix of another event": (
        lambda: sampled(MomentMatching(np.ones((1, 3)), VALUE, 1.0)),
        ValueError,
        r"Expected a matrix of shape \(m, \*\(2,\)\); got shape \(1, 3\)",
    ),
    "values with a batch of their own": (
        lambda: sampled(MomentMatching(MATRIX, np.zeros((3, 1)), 1.0)),
        ValueError,
        r"Expected a value that broadcasts to shape \(1,\); got shape \(3, 1\)",
    ),
    "noise that is zero": (
        lambda: MomentMatching(MATRIX, VALUE, 0.0),
        ValueError,
        r"Expected noise_scale > 0; got 0\.0. For numbers that are known exactly use GaussianFactor",
    ),
    "matrix with a nan": (
        lambda: MomentMatching(np.array([[np.nan, 1.0]]), VALUE, 1.0),
        ValueError,
        "Expected finite values for matrix; got 1 NaN",
    ),
    "value of moments with an inf": (
        lambda: MomentMatching(MATRIX, np.array([np.inf]), 1.0),
        ValueError,
        "Expected finite values for value; got 1 NaN",
    ),
    "factor of bits": (
        lambda: sampled(GaussianFactor(0.0, 1.0), bits_chain),
        TypeError,
        "Expected a kernel of real states for GaussianFactor; got BernoulliKernel. For bits",
    ),
    "reconstruction of bits": (
        lambda: sampled(ReconstructionGuidance(linear), bits_chain),
        TypeError,
        "Expected a kernel of real states for ReconstructionGuidance; got BernoulliKernel",
    ),
    "moments of bits": (
        lambda: sampled(MomentMatching(np.ones((1, 3)), VALUE, 1.0), bits_chain),
        TypeError,
        "Expected a kernel of real states for MomentMatching; got BernoulliKernel",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_argument_is_named_in_the_error(name, no_type_checks):
    build, error, match = REFUSED[name]
    with pytest.raises(error, match=match):
        build()
