"""A network of PyTorch called through JAX alone: its weights under their own names and (out, in) layouts."""

from pathlib import Path

import jax
import jax.numpy as jnp
import safetensors.numpy

FOLDER = Path(__file__).parent / "data" / "torch_noise_network"


def weights(dtype):
    return {
        name: array.astype(dtype) for name, array in safetensors.numpy.load_file(FOLDER / "weights.safetensors").items()
    }


def outputs():
    return safetensors.numpy.load_file(FOLDER / "outputs.safetensors")


def noise_network(params, x, t, context):
    """The ``forward`` of the PyTorch network, line by line."""

    def linear(name, value):
        return value @ params[f"{name}.weight"].T + params[f"{name}.bias"]

    angle = t[:, None].astype(x.dtype) * params["freqs"]
    hidden = linear("inp", x) + linear("time", jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1))
    hidden = jax.nn.silu(hidden)
    centred = hidden - hidden.mean(-1, keepdims=True)
    hidden = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    hidden = hidden * params["norm.weight"] + params["norm.bias"]
    hidden = jax.nn.gelu(linear("mid", hidden), approximate=False)
    return linear("out", hidden)
