"""The Python that does by hand what ``learn_prior`` did, from rows in the data's units."""

from typing import Any

import numpy as np

from .look import Space
from .train import repeats_of

__all__ = ["code_for"]

_DOMAINS = ("domain", "_domain")


def code_for(
    space: Space, event_shape: tuple[int, ...], num_validation: int, residual: float, settings: dict[str, Any]
) -> str:
    """A script in which ``data``, ``rng_key`` and ``report`` are given.

    Args:
        space: the kernel, the network, the transforms, the noise on grids.
        event_shape: of the chain.
        num_validation: rows.
        residual: the factor of the last layer.
        settings: of ``fit``: ``num_steps``, ``batch_size``, ``ema_decay``, ``every``, ``patience``, ``optimizer`` as
            code.
    """
    plan, row_shape = space.plan, tuple(space.values.shape[1:])
    maps = "".join(f"    {_constructor(transform)},\n" for transform in space.transforms)
    to_chain = "T.ComposeTransform(transforms).inv"
    dtype = "int32" if plan.kernel.is_discrete else "float64"
    pair = f"{to_chain}(train), {to_chain}(validation)" if space.transforms else "train, validation"
    noise = ""
    if space.steps.any():
        noise = f"""\
# Uniform noise as wide as the step of each grid, a function of the row's index.
key_noise = jax.random.fold_in(jax.random.split(rng_key, 3)[0], 1)
noise = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key_noise, row), {row_shape}, float, -0.5, 0.5))
data = data + np.array({space.steps.tolist()}) * np.asarray(noise(jnp.arange(len(data))), float)
"""
    lines = f"""\
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import numpyro_diffusion as nd
import optax
from numpyro.distributions import transforms as T

# data, rng_key: as they were given to learn_prior, data as an array without the rows that
# the report says were left out; report: what it returned.
data = np.asarray(data, {dtype!r}).reshape(len(data), *{row_shape})
{noise}train, validation = data[report.drawn["train"]], data[report.drawn["validation"]]
kernel = {plan.kernel_code}
network = {plan.network_code}
transforms = [
{maps}]
z, z_validation = {pair}
z_validation = jnp.concatenate([z_validation] * {repeats_of(num_validation, event_shape)})  # more random steps a row


def model(batch, size):
    transition = nd.haiku_module("net", network, kernel=kernel, event_shape={event_shape})
    with numpyro.plate("rows", size, subsample_size=len(batch)):
        numpyro.sample("x", nd.Diffusion(kernel, transition), obs=batch)


result = nd.fit(
    model,
    z,
    optimizer={settings["optimizer"]},
    num_steps={settings["num_steps"]},
    batch_size={settings["batch_size"]},
    ema_decay={settings["ema_decay"]},
    rng_key=jax.random.split(jax.random.split(rng_key, 3)[1])[0],
    validation=nd.Validation(z_validation, every={settings["every"]}, patience={settings["patience"]}),
)
"""
    if residual != 1.0:
        lines += f"""\
# The residual of the network, times what the validation rows ask for.
output = result.params["net$params"]["output"]
result.params["net$params"]["output"] = jax.tree.map(lambda array: {residual!r} * array, output)
"""
    prior = 'result.distribution("x")'
    return lines + f"prior = {f'dist.TransformedDistribution({prior}, transforms)' if space.transforms else prior}\n"


def _constructor(transform: Any) -> str:
    name = type(transform).__name__
    module = "nd.transforms" if type(transform).__module__.startswith("numpyro_diffusion") else "T"
    arrays, (names, settings) = transform.tree_flatten()
    # The domain is where the chain lives: all numbers, as by default.
    named = [(field, _shown(value)) for field, value in zip(names, arrays, strict=True) if field not in _DOMAINS]
    named += [(field, repr(value)) for field, value in settings.items() if field not in _DOMAINS]
    arguments = [f"{field}={value}" for field, value in named]
    return f"{module}.{name}({', '.join(arguments)})"


def _shown(value: Any) -> str:
    """An array with all of its digits."""
    return f"jnp.array({np.asarray(value).tolist()})"
