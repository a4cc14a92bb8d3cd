"""What a kernel learns in warm-up: a step size, and means and standard deviations. Under strict dtype promotion too.

References: Hoffman and Gelman 2014, Section 3.2; Welford 1962.
"""

from typing import NamedTuple

import jax.numpy as jnp

from .._typing import Array, ArrayLike

__all__ = ["Moments", "StepSearch"]

_DELAY, _DECAY = 10.0, 0.75  # t0 and kappa of the paper
# The paper's gamma is .05, for the mean over a tree. The acceptance of one trajectory is noisier; steps that swing with
# it have a mean acceptance of the wanted .8 at a mean log step whose own is .9.
_PULL = 0.2


class StepSearch(NamedTuple):
    """Dual averaging of a log step size, until the mean acceptance is a wanted one.

    Attributes:
        log_step: to be tried next.
        log_mean: the average of those tried, weighted towards the last: the result.
        mean_gap: of the wanted acceptance over the one met.
        num_draws: how many there were, as a float.
        centre: log of the step size towards which the search is drawn.
    """

    log_step: Array
    log_mean: Array
    mean_gap: Array
    num_draws: Array
    centre: Array

    @classmethod
    def start(cls, step_size: ArrayLike) -> "StepSearch":
        """From a step size; larger ones are tried first."""
        log_step = jnp.log(jnp.asarray(step_size, float))
        zero = jnp.zeros_like(log_step)
        return cls(log_step, log_step, zero, zero, log_step + jnp.log(jnp.full_like(log_step, 2)))

    def after(self, accept_prob: Array, target: float) -> "StepSearch":
        """What is known after a draw."""
        count = self.num_draws + 1
        mean_gap = self.mean_gap + (target - accept_prob - self.mean_gap) / (count + _DELAY)
        log_step = self.centre - jnp.sqrt(count) / _PULL * mean_gap
        weight = count**-_DECAY
        return StepSearch(log_step, self.log_mean + weight * (log_step - self.log_mean), mean_gap, count, self.centre)


class Moments(NamedTuple):
    """Running mean and sum of squares around it, shape (d,) each, of so many draws.

    Attributes:
        mean: of the draws.
        squares: sum of squared distances from it.
        num_draws: how many there were, as a float.
    """

    mean: Array
    squares: Array
    num_draws: Array

    @classmethod
    def start(cls, like: Array) -> "Moments":
        """Of no draws."""
        return cls(jnp.zeros_like(like), jnp.zeros_like(like), jnp.zeros((), like.dtype))

    def after(self, draw: Array) -> "Moments":
        """With one more draw."""
        count = self.num_draws + 1
        mean = self.mean + (draw - self.mean) / count
        return Moments(mean, self.squares + (draw - self.mean) * (draw - mean), count)

    def standard_deviation(self) -> Array:
        """Of the draws; 0 of fewer than two."""
        return jnp.sqrt(self.squares / jnp.maximum(self.num_draws - 1, 1))
