"""The categorical kernel against enumeration: closed forms, bounds, posteriors by particles."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from measured_errors import Mean, check, of_independent
from numpyro.infer import MCMC

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import PaperTilt, TiltedChain
from numpyro_diffusion.infer import DiffusionGibbs, TwistedSMC

K, SIZE, T = 3, 2, 3
STATES = np.array(list(itertools.product(range(K), repeat=SIZE)))
RATES = ["uniform", "absorbing", (0.2, 0.5, 0.3)]


def kernel_of(rates):
    rates = np.array(rates) if isinstance(rates, tuple) else rates
    return nd.CategoricalKernel(nd.schedules.constant_fraction(T), K, rates=rates)


def possible(kernel, t):
    """The states that x^t can be in."""
    return np.flatnonzero(np.asarray(kernel.marginal(jnp.arange(K), t).probs).sum(0) > 1e-20)


@pytest.mark.parametrize("rates", RATES)
def test_steps_in_a_row_are_the_marginal_and_bayes_rule_the_bridge(rates):
    kernel, states, product = kernel_of(rates), jnp.arange(K), np.eye(K)
    for t in range(1, T + 1):
        before, step = product, np.asarray(kernel.step(states, t).probs)
        product = product @ step
        np.testing.assert_allclose(product, kernel.marginal(states, t).probs, atol=1e-6)
        for x_0, x_t in itertools.product(range(K), range(K)):
            if product[x_0, x_t] > 1e-12:
                bayes = before[x_0] * step[:, x_t] / product[x_0, x_t]
                np.testing.assert_allclose(kernel.bridge(x_t, x_0, t).probs, bayes, atol=1e-6)


@pytest.mark.parametrize("rates", RATES)
def test_the_reverse_step_is_the_mixture_of_bridges(rates):
    kernel, output = kernel_of(rates), jax.random.normal(jax.random.key(0), (K,))
    for t in range(1, T + 1):
        for x_t in possible(kernel, t):
            weights = np.asarray(kernel.state_probabilities(output, x_t, t))
            np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-6)
            bridges = [np.asarray(kernel.bridge(x_t, k, t).probs) for k in range(K)]
            mixture = sum(weight * bridge for weight, bridge in zip(weights, bridges, strict=True) if weight > 0)
            np.testing.assert_allclose(kernel.reverse(output, x_t, t).probs, mixture, atol=1e-6)


def network(params, x_t, t, context):
    """Logits (..., SIZE, K) that couple the two coordinates."""
    other = jnp.roll(x_t, 1, axis=-2)
    return 1.2 * x_t + 0.8 * other @ params + jnp.array([0.3, -0.2, 0.1])


PARAMS = jnp.array([[1.0, -0.5, 0.2], [0.0, 0.7, -1.0], [-0.3, 0.4, 0.9]])


def chain_of(rates):
    return nd.ReverseChain(kernel_of(rates), nd.Transition(network, PARAMS, (SIZE,)))


@functools.cache
def probabilities(rates):
    """p(x^0) of every state, summed over all paths."""
    paths = STATES[np.array(list(itertools.product(range(len(STATES)), repeat=T + 1)))]
    log_probs = np.asarray(jax.jit(lambda paths: chain_of(rates).log_prob(paths))(jnp.asarray(paths)), np.float64)
    by_state = np.exp(log_probs).reshape(len(STATES), -1).sum(1)
    assert by_state.sum() == pytest.approx(1.0, abs=1e-5)
    return by_state


@pytest.mark.parametrize("rates", RATES)
def test_draws_have_the_enumerated_probabilities(rates):
    draws = np.asarray(jax.jit(lambda key: chain_of(rates).sample_last(key, (20_000,)))(jax.random.key(0)))
    counts = np.bincount(draws @ np.array([K, 1]), minlength=K**SIZE) / 20_000
    wanted = probabilities(rates)
    assert (np.abs(counts - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / 20_000)).all()


@pytest.mark.parametrize("rates", RATES)
def test_weights_average_to_the_probability_and_the_bound_lies_below(rates):
    x_0 = jnp.asarray(STATES[[1, 5]])
    exact = np.log(probabilities(rates)[[1, 5]])
    many = jnp.broadcast_to(x_0, (20_000, 2, SIZE))
    weights = np.exp(np.asarray(jax.jit(nd.ImportanceWeighted(1))(jax.random.key(0), chain_of(rates), many)))
    assert (np.abs(weights.mean(0) - np.exp(exact)) < 5 * weights.std(0) / np.sqrt(20_000)).all()
    bounds = np.asarray(jax.jit(nd.AllSteps())(jax.random.key(1), chain_of(rates), many))
    assert (bounds.mean(0) < exact).all()
    random = np.asarray(jax.jit(nd.RandomStep())(jax.random.key(2), chain_of(rates), many))
    error = np.hypot(random.std(0), bounds.std(0)) / np.sqrt(20_000)
    assert (np.abs(random.mean(0) - bounds.mean(0)) < 5 * error).all()


SCORES = jnp.array([[1.0, -0.5, 0.3], [0.2, 1.1, -0.9]])


def log_likelihood(x, coupled):
    x = x.astype(int)
    apart = SCORES[jnp.arange(SIZE), x].sum(-1)
    return apart - 1.5 * coupled * (x[..., 0] == x[..., 1])


def model(coupled):
    x = numpyro.sample("x", nd.Diffusion(chain_of("uniform").kernel, nd.Transition(network, PARAMS, (SIZE,))))
    numpyro.factor("seen", log_likelihood(x, coupled))


def posterior(coupled):
    joint = probabilities("uniform") * np.exp(np.asarray(log_likelihood(jnp.asarray(STATES), coupled), np.float64))
    return np.log(joint.sum()), joint / joint.sum()


def frequencies(draws):
    return np.bincount(np.asarray(draws).reshape(-1, SIZE) @ np.array([K, 1]), minlength=K**SIZE) / len(draws)


@functools.cache
def engine(twist):
    return TwistedSMC(model, 1000, 16, twist, progress_bar=False)


@pytest.mark.parametrize("twist", ["tempered", "none"])
@pytest.mark.parametrize("coupled", [0.0, 1.0])
def test_particles_have_the_enumerated_posterior_and_evidence(twist, coupled):
    evidence, wanted = posterior(coupled)
    smc = engine(twist)
    smc.run(jax.random.key(0), jnp.asarray(coupled))
    assert abs(smc.log_evidence - evidence) < 5 * smc.log_evidence_error
    assert smc.log_evidence_error < 0.02
    draws = smc.get_samples(num_samples=8000)["x"]
    effective = min(8000, 16 * smc.min_ess)
    assert (np.abs(frequencies(draws) - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / effective) + 1e-3).all()


def test_gibbs_has_the_enumerated_posterior():
    _, wanted = posterior(1.0)
    kernel = DiffusionGibbs(model, num_particles=8, twist="none")
    mcmc = MCMC(kernel, num_warmup=100, num_samples=4000, progress_bar=False)
    mcmc.run(jax.random.key(0), 1.0, extra_fields=("moved",))
    x = np.asarray(mcmc.get_samples()["x"])
    for state in range(K**SIZE):
        hit = (x @ np.array([K, 1]) == state).astype(float)
        effective = float(numpyro.diagnostics.effective_sample_size(hit[None]))
        assert abs(hit.mean() - wanted[state]) < 5 * np.sqrt(wanted[state] * (1 - wanted[state]) / effective)
    assert mcmc.get_extra_fields()["moved"].mean() > 0.5


def test_the_papers_tilt_is_weighted_to_the_evidence():
    evidence, _ = posterior(1.0)
    log_r = lambda x: log_likelihood(x, 1.0)
    tilted = TiltedChain(chain_of("uniform"), PaperTilt(log_r, "annealed"))
    path = jax.jit(lambda key: tilted.sample(key, (20_000,)))(jax.random.key(0))
    weights = np.exp(np.asarray(tilted.log_weight(path, log_r)))
    assert abs(weights.mean() - np.exp(evidence)) < 5 * weights.std() / np.sqrt(20_000)


def joint_probabilities(chain):
    """p(x^0) of every state, step by step."""
    log_probs = chain.kernel.stationary((SIZE,)).log_prob(jnp.asarray(STATES)).sum(-1)
    probs = np.exp(np.asarray(log_probs, np.float64))
    for t in range(chain.num_steps, 0, -1):
        by_coordinate = np.asarray(chain.reverse(jnp.asarray(STATES), jnp.asarray(t)).probs, np.float64)
        probs = probs @ (by_coordinate[:, 0, :, None] * by_coordinate[:, 1, None, :]).reshape(K**SIZE, K**SIZE)
    return probs


def test_a_trained_network_knows_which_classes_go_together():
    """Two classes of three occur, always both the same: 1 bit a sequence.

    Coordinates that leave the mask in the same of T steps are drawn apart: the best of T-step models has the two agree
    with probability 1 - 1 / (2 T).
    """
    kernel = nd.CategoricalKernel(nd.schedules.constant_fraction(10), K, rates="absorbing")
    network = nd.networks.MLP(10, 1, width=32, depth=2, event_dim=2)
    x = jnp.repeat(jax.random.randint(jax.random.key(0), (512, 1), 0, 2), SIZE, axis=1)

    def train(batch, size):
        transition = nd.haiku_module("net", network, kernel=kernel, event_shape=(SIZE,))
        with numpyro.plate("rows", size, subsample_size=len(batch)):
            numpyro.sample("x", nd.Diffusion(kernel, transition), obs=batch)

    options = {"optimizer": optax.adam(3e-3), "num_steps": 600, "batch_size": 128, "progress_bar": False}
    fit = nd.fit(train, x, rng_key=jax.random.key(1), **options)
    prior = fit.distribution("x")
    draws = np.asarray(prior.sample(jax.random.key(2), (2000,)))
    exact = joint_probabilities(prior.chain)
    alike = exact.reshape(K, K).diagonal()
    assert alike[:2].sum() == pytest.approx(0.95, rel=0.01)  # what training leaves
    np.testing.assert_allclose(alike[:2], 0.475, rtol=0.1)
    assert exact.reshape(K, K)[:2, :2].sum() > 0.999
    check(of_independent(draws[:, 0] == draws[:, 1]), alike.sum(), refused=0.5)
    found = nd.evaluation.importance_weighted(jax.random.key(3), prior, x[:200], num_trajectories=64)
    wanted = np.log2(alike[np.asarray(x[:200, 0])]).mean()
    check(Mean(np.asarray(found.bits), np.asarray(found.standard_error_bits)), wanted, refused=-2.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nd.CategoricalKernel(nd.schedules.constant_fraction(3), 1), "num_states to be an integer >= 2; got 1"),
        (lambda: kernel_of("even"), "rates 'uniform', 'absorbing' or probabilities; got 'even'"),
        (lambda: kernel_of((0.5, 0.6, 0.1)), r"rates of shape \(3,\), >= 0 with sum 1"),
        (
            lambda: nd.CategoricalKernel(nd.schedules.log_snr(4), 3, rates="absorbing"),
            "b_T = 1 for rates that are 0 somewhere; got abar_T",
        ),
        (lambda: kernel_of("uniform").check_data("x", np.array([0, 3])), r"states 0 to 2 for x; got 3 at index \(1,\)"),
    ],
)
def test_what_is_no_kernel_or_state_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_classes_do_not_have_is_refused_by_name():
    kernel = kernel_of("uniform")
    for ask in (
        lambda: kernel.denoised(jnp.zeros(K), 0, 1),
        lambda: kernel.from_noise(kernel.stationary(()), 0.0),
        lambda: kernel.signal_and_noise(1, 0.0),
    ):
        with pytest.raises(TypeError, match="CategoricalKernel"):
            ask()
    with pytest.raises(TypeError, match="a Gaussian kernel at site 'x'"):
        numpyro.handlers.reparam(numpyro.handlers.seed(model, 0), config={"x": nd.infer.DiffusionReparam()})(0.0)
    with pytest.raises(TypeError, match="a Gaussian kernel at site 'x'"):
        TwistedSMC(normal_of_classes, twist="gaussian", progress_bar=False).run(jax.random.key(0))


def normal_of_classes():
    x = numpyro.sample("x", nd.Diffusion(kernel_of("uniform"), nd.Transition(network, PARAMS, (SIZE,))))
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=jnp.zeros(SIZE))
