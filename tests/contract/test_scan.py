"""numpyro.contrib.control_flow.scan: a site in its body scores as the loop written out."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from catalogue import (
    NUM_STEPS,
    affine,
    bernoulli,
    bits,
    close,
    draw,
    estimated,
    floats,
    gaussian,
    haiku_mlp,
    log_prob,
    pull_to_zero,
)
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import log_density

from numpyro_diffusion import AllSteps, AsDensity, ForwardChain, ReverseChain, Transition

LENGTH, MEMBERS = 3, 5
T = NUM_STEPS

# name: (what is sampled given the carried vector, the data of the whole scan). The carry is the last value's mean.
BODIES = {
    "forward": (lambda carry: ForwardChain(gaussian(), carry), floats(LENGTH, T, 2)),
    "reverse with context": (
        lambda carry: ReverseChain(gaussian(), affine((2,), 2, (2,)), context=carry),
        floats(LENGTH, T + 1, 2),
    ),
    "reverse of one network": (lambda carry: ReverseChain(gaussian(), haiku_mlp()), floats(LENGTH, T + 1, 2)),
    "reverse of a scanned network": (
        lambda carry: ReverseChain(gaussian(variance="upper"), Transition(pull_to_zero, carry[0], ())),
        floats(LENGTH, T + 1),
    ),
    "reverse of bits": (
        lambda carry: ReverseChain(bernoulli(), affine((2,), 1, (2,)), context=carry, stop=1),
        bits(LENGTH, T, 2),
    ),
    "marginal": (
        lambda carry: estimated(gaussian(), affine((2,), 2, (2,)), AsDensity(AllSteps()), context=carry),
        floats(LENGTH, 2),
    ),
    "masked": (
        lambda carry: ReverseChain(gaussian(), affine((2,), 2, (2,)), context=carry).mask(carry[..., 0] < 0),
        floats(LENGTH, T + 1, 2),
    ),
}

# The same in a plate of three: the data have one more axis, and the site a batch or none (then the plate expands it).
PLATED = {
    "batched by the context": (
        lambda carry: ReverseChain(gaussian(), affine((2,), 2, (2,)), context=carry),
        floats(LENGTH, MEMBERS, T + 1, 2),
    ),
    "expanded by the plate": (
        lambda carry: ReverseChain(gaussian(), affine((2,), 2, (2,)), context=carry[0]),
        floats(LENGTH, MEMBERS, T + 1, 2),
    ),
    "expanded, one network": (
        lambda carry: ReverseChain(gaussian(), haiku_mlp()),
        floats(LENGTH, MEMBERS, T + 1, 2),
    ),
    "forward": (lambda carry: ForwardChain(gaussian(), carry), floats(LENGTH, MEMBERS, T, 2)),
    "marginal expanded by the plate": (
        lambda carry: estimated(gaussian(), affine((2,), 2), AsDensity(AllSteps())),
        floats(LENGTH, MEMBERS, 2),
    ),
}


def scanned(make, start, event_dim, plate):
    """The model, and the log density of the same loop written out."""

    def carry_of(value):
        flat = value.reshape((*value.shape[: value.ndim - event_dim], -1, 2 if value.shape[-1] == 2 else 1))
        return jnp.broadcast_to(jnp.asarray(flat.mean(-2), float), start.shape)

    def model(values=None):
        def body(carry, value):
            if plate:
                with numpyro.plate("member", MEMBERS):
                    value = numpyro.sample("x", make(carry), obs=value)
            else:
                value = numpyro.sample("x", make(carry), obs=value)
            return carry_of(value), value

        return scan(body, start, values, length=LENGTH)[1]

    def written_out(values):
        carry, total = start, 0.0
        for value in values:
            distribution = make(carry)
            total = total + (distribution.expand((MEMBERS,)) if plate else distribution).log_prob(value).sum()
            carry = carry_of(value)
        return total

    return model, written_out


def check(make, values, plate):
    start = floats(MEMBERS, 2) if plate else floats(2)
    event_dim = make(start).event_dim
    model, written_out = scanned(make, start, event_dim, plate)
    observed, latent, wanted = jax.jit(
        lambda values: (
            log_density(model, (values,), {}, {})[0],
            log_density(model, (), {}, {"x": values})[0],
            written_out(values),
        )
    )(values)
    close(observed, wanted)
    close(latent, wanted)
    assert wanted != 0


@pytest.mark.parametrize("name", BODIES)
def test_a_site_in_a_scan_scores_as_the_loop(name):
    check(*BODIES[name], plate=False)


@pytest.mark.parametrize("name", PLATED)
def test_a_plated_site_in_a_scan_scores_as_the_loop(name):
    check(*PLATED[name], plate=True)


@pytest.mark.parametrize("name", ["batched by the context", "expanded, one network"])
def test_a_site_in_a_scan_draws_each_step_anew(name):
    make, values = PLATED[name]
    model, written_out = scanned(make, floats(MEMBERS, 2), 2, plate=True)

    @jax.jit
    def run(key):
        site = handlers.trace(handlers.seed(model, key)).get_trace()["x"]
        return site["value"], site["fn"], written_out(site["value"])

    value, stacked, wanted = run(jax.random.key(0))
    assert stacked.batch_shape == (LENGTH, MEMBERS)
    scores, drawn = log_prob(stacked, value), draw(stacked, jax.random.key(1), (2,))
    assert value.shape == values.shape
    assert np.unique(value).size == value.size
    assert scores.shape == (LENGTH, MEMBERS)
    close(scores.sum(), wanted)
    # The site's own distribution, stacked over the steps, is again one that leaves and enters compiled functions.
    assert drawn.shape == (2, *values.shape)
    assert np.unique(drawn).size == drawn.size


def test_a_stacked_law_scores_more_values_at_once():
    make, values = PLATED["batched by the context"]
    model, _ = scanned(make, floats(MEMBERS, 2), 2, plate=True)

    @jax.jit
    def run(values):
        stacked = handlers.trace(handlers.seed(model, 0)).get_trace(values)["x"]["fn"]
        many = jnp.stack([values, values[:, ::-1]])
        return stacked.log_prob(many), stacked.log_prob(values), stacked.log_prob(values[:, ::-1])

    many, first, second = run(values)
    close(many, jnp.stack([first, second]))


def test_gradients_pass_through_a_scanned_site():
    def model(gain, values):
        def body(carry, value):
            numpyro.sample("x", ReverseChain(gaussian(variance="upper"), Transition(pull_to_zero, gain, ())), obs=value)
            return carry, None

        scan(body, None, values)

    values = floats(LENGTH, T + 1)
    chain = lambda gain: ReverseChain(gaussian(variance="upper"), Transition(pull_to_zero, gain, ()))
    scanned_gradient, wanted = jax.jit(
        lambda gain: (
            jax.grad(lambda gain: log_density(model, (gain, values), {}, {})[0])(gain),
            jax.grad(lambda gain: chain(gain).log_prob(values).sum())(gain),
        )
    )(floats())
    close(scanned_gradient, wanted)
    assert wanted != 0
