r"""Where arrays live: on one device, or over a mesh of devices of one or several processes.

Training over a mesh is data-parallel: parameters are on every device, the rows of a batch are divided among all of
them, and XLA sums the gradients. The numbers are those of one device but for the rounding of sums. Random
numbers do not depend on the devices. Independent runs (islands of particles) are divided without any communication.
With several processes (``jax.distributed.initialize``) every one of them makes
the same calls with the same arguments.

References: JAX, "Distributed arrays and automatic parallelization"; "Multi-process JAX".
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ._checks import expected
from ._typing import Array, PyTree, Shape

__all__ = ["Placement"]


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh, or None for the default device."""

    mesh: Mesh | None

    def __post_init__(self) -> None:
        if self.mesh is not None:
            # Axes over which XLA divides the work by itself; ``jax.make_mesh`` makes others unless told.
            object.__setattr__(self, "mesh", Mesh(self.mesh.devices, self.mesh.axis_names))

    @property
    def num_processes(self) -> int:
        """How many processes divide a batch among them."""
        return 1 if self.mesh is None else len({device.process_index for device in self.mesh.devices.flat})

    @property
    def num_devices(self) -> int:
        """How many devices there are."""
        return 1 if self.mesh is None else self.mesh.size

    def check_divisible(self, name: str, count: int) -> None:
        """Raise ValueError unless every device gets as many."""
        if count % self.num_devices:
            raise ValueError(
                expected(
                    f"{name} divisible by {self.num_devices}, the devices of the mesh",
                    count,
                    "Every device takes the same number.",
                )
            )

    def replicate(self, tree: PyTree) -> PyTree:
        """The whole of every leaf on every device; keys too."""
        if self.mesh is None:
            return tree
        whole = NamedSharding(self.mesh, PartitionSpec())

        def put(leaf: Any) -> Any:
            if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
                data = jax.device_put(np.asarray(jax.random.key_data(leaf)), whole)
                wrap = jax.jit(lambda data: jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf)))
                return wrap(data)
            return jax.device_put(np.asarray(leaf), whole)

        return jax.tree.map(put, tree)

    def constrain(self, rows: Array) -> Array:
        """Traced: the first axis of a batch is divided among devices."""
        if self.mesh is None:
            return rows
        return jax.lax.with_sharding_constraint(rows, _divided(self.mesh, leading=0))

    def compile(self, function: Callable, *, donate: int) -> Callable:
        """Jit a function whose results are wanted on every device."""
        if self.mesh is None:
            return jax.jit(function, donate_argnums=donate)
        whole = NamedSharding(self.mesh, PartitionSpec())
        return jax.jit(function, donate_argnums=donate, out_shardings=whole)

    def divide(self, function: Callable) -> Callable:
        """A function of (array, more...) whose results lead with the array's first axis, a share on each device."""
        if self.mesh is None:
            return function
        whole, share = PartitionSpec(), PartitionSpec(self.mesh.axis_names)

        def divided(shared_out: Any, *whole_ones: Any) -> Any:
            specs = (share, *(whole,) * len(whole_ones))
            run = jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=share, check_vma=False)
            return run(shared_out, *whole_ones)

        return divided

    def gather(self, tree: PyTree) -> PyTree:
        """Results of :meth:`divide` on the host, whole in every process."""
        if self.num_processes == 1:
            return jax.tree.map(np.asarray, tree)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(tree, tiled=True)

    def wait(self) -> None:
        """Return when every process of the mesh has come here."""
        if self.num_processes > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("numpyro_diffusion")

    def split_rows(self, shape: Shape, row_shape: Shape, data: Any, rows: np.ndarray) -> Array:
        """``data[rows]``, rows (steps, batch), each process reading only what its devices take."""
        if self.mesh is None:
            return jnp.asarray(data[rows.reshape(-1)].reshape(shape + row_shape))
        sharding = _divided(self.mesh, leading=1)

        def part(index: Any) -> np.ndarray:
            wanted = rows[index[:2]]
            return np.asarray(data[wanted.reshape(-1)]).reshape(wanted.shape + row_shape)

        return jax.make_array_from_callback(shape + row_shape, sharding, part)

    def join_batches(self, batches: PyTree) -> PyTree:
        """Batches (steps, rows of this process, ...) as arrays whose rows are those of all processes."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, batches)
        sharding = _divided(self.mesh, leading=1)
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batches)

    def fetch(self, tree: PyTree) -> PyTree:
        """Replicated arrays as arrays of this process alone."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def _divided(mesh: Mesh, leading: int) -> NamedSharding:
    """Axis ``leading`` over all devices."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, mesh.axis_names))
