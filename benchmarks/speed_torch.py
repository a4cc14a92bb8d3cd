"""The PyTorch side of the speed benchmark: two networks, DDPM training and sampling with Hugging Face diffusers.

Needs torch, diffusers and numpy, and nothing of the package: it may run under another interpreter. It is a worker that
reads one request a line from its standard input, JSON, and answers each with one line:

    {"task": "setup", "network": "mlp", "params": "FILE.npz", ...}    networks and data; returns outputs to compare
    {"task": "train", "steps": 200, "variant": "eager"}               seconds of so many training steps
    {"task": "sample", "variant": "eager"}                            seconds of one batch of draws

The variants: "eager" with as many threads as PyTorch chooses, "one_thread", and "compiled" by ``torch.compile``.
Training is the loop of the diffusers' examples (random steps, ``add_noise``, mean squared error of the noise) on
tensors in memory, without their loader, accelerator and logging. Layers carry the names that they have in Haiku.
"""

import json
import math
import sys
import time
from typing import Any

import diffusers
import numpy as np
import torch
from torch import nn
from torch.nn import functional


def time_features(t: torch.Tensor, num_steps: int, frequencies: torch.Tensor) -> torch.Tensor:
    position = t.to(frequencies.dtype)[..., None] / num_steps
    angle = position * frequencies
    return torch.cat([2 * position - 1, angle.sin(), angle.cos()], dim=-1)


class MLP(nn.Module):
    """As ``numpyro_diffusion.networks.MLP``; t counts from 0, as the scheduler's."""

    def __init__(self, num_steps: int, size: int, width: int, depth: int, num_frequencies: int) -> None:
        super().__init__()
        self.num_steps, self.depth, self.num_frequencies = num_steps, depth, num_frequencies
        self.register_buffer("frequencies", torch.from_numpy(np.pi * np.geomspace(1.0, 500.0, 16)).float())
        self.register_buffer("octaves", 2.0 ** torch.arange(num_frequencies))
        self.time = nn.Linear(33, width)
        self.input = nn.Linear(size * (1 + 2 * num_frequencies), width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.shift = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.output = nn.Linear(width, size)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if self.num_frequencies:
            angle = x[..., None] * self.octaves
            x = torch.cat([x, torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)], dim=-1)
        time = functional.silu(self.time(time_features(t + 1, self.num_steps, self.frequencies)))
        hidden = self.input(x)
        for layer, shift in zip(self.hidden, self.shift, strict=True):
            hidden = hidden + layer(functional.silu(hidden + shift(time)))
        return self.output(functional.silu(hidden))

    def by_name(self) -> dict[str, nn.Module]:
        """The layers by their names in Haiku."""
        return {
            **{name: getattr(self, name) for name in ("time", "input", "output")},
            **{f"hidden_{index}": layer for index, layer in enumerate(self.hidden)},
            **{f"time_{index}": layer for index, layer in enumerate(self.shift)},
        }


class Block(nn.Module):
    """A residual block that is told the time."""

    def __init__(self, size_in: int, size_out: int, time_size: int) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(size_in // 4, size_in)
        self.first = nn.Conv2d(size_in, size_out, 3, padding=1)
        self.time = nn.Linear(time_size, size_out)
        self.second_norm = nn.GroupNorm(size_out // 4, size_out)
        self.second = nn.Conv2d(size_out, size_out, 3, padding=1)
        self.skip = nn.Identity() if size_in == size_out else nn.Conv2d(size_in, size_out, 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        hidden = self.first(functional.silu(self.first_norm(x))) + self.time(time)[:, :, None, None]
        return self.skip(x) + self.second(functional.silu(self.second_norm(hidden)))


class UNet(nn.Module):
    """As ``numpyro_diffusion.networks.UNet`` with two levels; images as (count, channels, h, w), t counts from 0."""

    def __init__(self, num_steps: int, width: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.register_buffer("frequencies", torch.from_numpy(np.pi * np.geomspace(1.0, 500.0, 16)).float())
        self.time = nn.Linear(33, 2 * width)
        self.input = nn.Conv2d(1, width, 3, padding=1)
        self.down = Block(width, width, 2 * width)
        self.middle = Block(width, 2 * width, 2 * width)
        self.up = Block(3 * width, width, 2 * width)
        self.last_norm = nn.GroupNorm(width // 4, width)
        self.output = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time = functional.silu(self.time(time_features(t.reshape(-1) + 1, self.num_steps, self.frequencies)))
        fine = self.down(self.input(x), time)
        coarse = self.middle(functional.avg_pool2d(fine, 2), time)
        joined = torch.cat([fine, functional.interpolate(coarse, scale_factor=2.0, mode="nearest")], dim=1)
        return self.output(functional.silu(self.last_norm(self.up(joined, time))))

    def by_name(self) -> dict[str, nn.Module]:
        """The layers by their names in Haiku."""
        blocks = {"down": "down_0_0", "middle": "middle_0", "up": "up_0_0"}
        names = {}
        for name, module in self.named_modules():
            first, *rest = name.split(".")
            names["_".join([blocks.get(first, first), *rest])] = module
        parts = {name: module for name, module in names.items() if not isinstance(module, Block)}
        return {name: module for name, module in parts.items() if list(module.parameters(recurse=False))}


def load(network: Any, file: str) -> None:
    """Copy Haiku parameters, "layer/parameter" in an npz file, into the layers; all must be there, and no others."""
    layers, copied = network.by_name(), 0
    for key, value in np.load(file).items():
        layer_name, parameter = key.rsplit("/", 1)
        layer = layers[layer_name]
        if parameter == "w":  # Haiku has outputs last, for images (height, width, in, out)
            value = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
        target = layer.weight if parameter in ("w", "scale") else layer.bias
        if target.shape != value.shape:
            raise ValueError(f"Expected shape {tuple(target.shape)} for {key}; got {value.shape}.")
        with torch.no_grad():
            target.copy_(torch.from_numpy(np.ascontiguousarray(value)))
        copied += value.size
    total = sum(parameter.numel() for parameter in network.parameters())
    if copied != total:
        raise ValueError(f"Expected {total} parameters, as many as the network has; got {copied}.")


class Worker:
    """What answers the requests: one method for each task."""

    threads: int = 0  # PyTorch's own choice, once known

    def setup(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make network, scheduler, optimiser and data as the request says; compare by ``outputs``."""
        arrays = np.load(request["arrays"])
        num_steps, self.count = request["num_steps"], request["count"]
        self.network = (
            MLP(num_steps, arrays["data"].shape[1], request["width"], 3, 3)
            if request["network"] == "mlp"
            else UNet(num_steps, request["width"])
        )
        load(self.network, request["params"])
        self.scheduler = diffusers.DDPMScheduler(
            num_train_timesteps=num_steps, trained_betas=arrays["betas"], clip_sample=False, prediction_type="epsilon"
        )
        self.scheduler.set_timesteps(num_steps)
        self.data, self.batch = self._images(arrays["data"]), request["batch"]
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=request["learning_rate"], fused=True)
        self.compiled, self.threads = torch.compile(self.network), self.threads or torch.get_num_threads()
        with torch.inference_mode():
            outputs = self.network(self._images(arrays["x_t"]), torch.from_numpy(arrays["t"]).long() - 1)
        if outputs.ndim == 4:
            outputs = outputs.permute(0, 2, 3, 1)
        versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
        return {"outputs": outputs.flatten().tolist(), "threads": self.threads, **versions}

    def _network(self, variant: str) -> Any:
        torch.set_num_threads(1 if variant == "one_thread" else self.threads)
        return self.compiled if variant == "compiled" else self.network

    @staticmethod
    def _images(x: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(x)
        return tensor.permute(0, 3, 1, 2).contiguous() if tensor.ndim == 4 else tensor

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds of ``steps`` training steps, and the mean loss of the last hundred."""
        network = self._network(request["variant"])
        num_steps, losses = self.scheduler.config.num_train_timesteps, []
        network.train()
        start = time.perf_counter()
        for _ in range(request["steps"]):
            clean = self.data[torch.randint(len(self.data), (self.batch,))]
            noise = torch.randn_like(clean)
            t = torch.randint(num_steps, (self.batch,))
            noisy = self.scheduler.add_noise(clean, noise, t)
            loss = functional.mse_loss(network(noisy, t), noise)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.detach())
        loss = float(torch.stack(losses[-100:]).mean())
        return {"seconds": time.perf_counter() - start, "loss": loss}

    def sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds of drawing ``count`` events by all steps of the chain, and their standard deviation."""
        network = self._network(request["variant"])
        network.eval()
        start = time.perf_counter()
        with torch.inference_mode():
            x = torch.randn(self.count, *self.data.shape[1:])
            for t in self.scheduler.timesteps:
                x = self.scheduler.step(network(x, t), t, x).prev_sample
            scale = float(x.std())
        if not math.isfinite(scale):
            raise RuntimeError(f"Expected finite draws; got a standard deviation of {scale}.")
        return {"seconds": time.perf_counter() - start, "scale": scale}


def main() -> None:
    worker = Worker()
    tasks = {"setup": worker.setup, "train": worker.train, "sample": worker.sample}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = tasks[request["task"]](request)
        except Exception as error:  # the other side decides what it means
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
