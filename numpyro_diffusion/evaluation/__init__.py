"""How good a model is: log likelihoods of held-out data, entropies of its steps, distances of its draws, calibration.

    bound                    K with every step, term by term, and K - L_null
    importance_weighted      tighter with more trajectories, and how it converges
    probability_flow         an ordinary differential equation through the denoiser; ProbabilityFlow is the estimator
    flow_sample              draws of that flow in few network calls, which are not draws of the model
    integer_log_likelihood  of integers under a model of real numbers: dequantised, bins accounted for
    entropy_bounds           what each reverse step's entropy must lie between
    parzen_log_likelihood    only for comparison with published tables
    sliced_wasserstein, max_mean_discrepancy, classifier_two_sample_test     draws against data
    sbc_ranks, rank_uniformity, expected_coverage, sbc                       posteriors against truths

A model is a diffusion or a ``TransformedDistribution`` of one, whose log likelihoods are those of the data in their own
units. Several independent states that ``to_event`` made one event have the sum of theirs. Log likelihoods are in nats,
with properties for bits and bits per dimension, and carry standard errors.
"""

from .bounds import Bound, bound
from .calibration import Coverage, expected_coverage, rank_uniformity, sbc_ranks
from .distances import TwoSampleTest, classifier_two_sample_test, max_mean_discrepancy, sliced_wasserstein
from .entropies import EntropyBounds, entropy_bounds
from .flow import FlowLikelihood, ProbabilityFlow, flow_sample, probability_flow
from .importance import ImportanceWeightedBound, importance_weighted
from .integers import integer_log_likelihood
from .parzen import ParzenLikelihood, parzen_log_likelihood
from .results import LogLikelihood
from .simulated import SimulatedCalibration, sbc

__all__ = [
    "Bound",
    "Coverage",
    "EntropyBounds",
    "FlowLikelihood",
    "ImportanceWeightedBound",
    "LogLikelihood",
    "ParzenLikelihood",
    "ProbabilityFlow",
    "SimulatedCalibration",
    "TwoSampleTest",
    "bound",
    "classifier_two_sample_test",
    "entropy_bounds",
    "expected_coverage",
    "flow_sample",
    "importance_weighted",
    "integer_log_likelihood",
    "max_mean_discrepancy",
    "parzen_log_likelihood",
    "probability_flow",
    "rank_uniformity",
    "sbc",
    "sbc_ranks",
    "sliced_wasserstein",
]
