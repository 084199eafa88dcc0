"""Map a function of one device onto all of them: the batch is split, the state is replicated.

There are two thin mappings: `jax.jit` of `jax.shard_map`, and `jax.pmap` (which JAX has built on
the former since 0.8).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxnets.errors import InputError
from flaxnets.types import Mapping

PyTree = Any
AXIS = "batch"  # the name of the mapped axis
MAX_KEPT = 2**30  # bytes of images on each device: six times CIFAR-10's


class DataParallel:
    """The devices of a run, all of them in all processes unless `devices` names some."""

    def __init__(self, mapping: Mapping = "shard_map", devices: Sequence[Any] | None = None):
        self.mapping = mapping
        self.devices = list(devices or jax.devices())
        self.mesh = Mesh(np.array(self.devices), (AXIS,))
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self._split = NamedSharding(self.mesh, PartitionSpec(AXIS))

    def map(self, function: Callable, *, donate_state: bool = False) -> Any:
        """Return `function(state, batch)`, one device's view, as a compiled function over all
        devices.

        Its results must be equal on every device (reduced over the axis).
        """
        donated = (0,) if donate_state else ()
        if self.mapping == "pmap":
            return jax.pmap(
                function, AXIS, in_axes=(None, 0), out_axes=None,
                devices=self.devices, donate_argnums=donated,
            )  # fmt: skip
        mapped = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(),
            # With its check on, a pmean of gradients is silently wrong (a test compares with one
            # device): differentiation inserts a sum of its own.
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=donated)

    def replicate(self, tree: PyTree, *, copied: bool = False) -> PyTree:
        """Return arrays, equal in all processes, on all devices. Those that are there already stay
        the same arrays unless they are to be `copied`.
        """
        if self.replicated.is_fully_addressable:
            return jax.device_put(tree, self.replicated, may_alias=not copied)
        # `device_put` would send each array to the other processes, to compare them. To JAX the
        # other way is an implicit transfer, as in `shard`.
        with jax.transfer_guard_host_to_device("allow"):
            return jax.tree.map(
                lambda leaf: jax.make_array_from_process_local_data(
                    self.replicated, np.asarray(leaf)
                ),
                tree,
            )

    def keeps(self, images: np.ndarray) -> bool:
        """Return whether the images of a data set stay on every device. Images of more than
        `MAX_KEPT` bytes stay on the host, because the network needs the device's memory. So do
        those of `pmap`, which would copy them in every call.
        """
        return self.mapping != "pmap" and images.nbytes <= MAX_KEPT

    def keep(self, images: np.ndarray) -> Callable[[np.ndarray], Any]:
        """Return a function that takes this process's examples by their indices from `images`;
        if it `keeps` them, only the indices travel.
        """
        if not self.keeps(images):
            return images.__getitem__
        kept = self.replicate(images)
        take = jax.jit(lambda images, indices: images[indices], out_shardings=self._split)
        return lambda indices: take(kept, self.shard({"indices": indices})["indices"])

    def shard(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return this process's examples, spread over its devices; arrays that are on them already
        stay.

        `pmap` takes the examples of each device separately, (devices, examples, ...). No transfer
        guard forbids this transfer, which is meant.
        """
        if self.mapping == "pmap":
            own = [d for d in self.devices if d.process_index == jax.process_index()]
            split = NamedSharding(Mesh(np.array(own), (AXIS,)), PartitionSpec(AXIS))
            return {
                key: jax.device_put(value.reshape(len(own), -1, *value.shape[1:]), split)
                for key, value in batch.items()
            }
        # To JAX it is an implicit transfer where there are several processes.
        with jax.transfer_guard_host_to_device("allow"):
            return {
                key: value
                if isinstance(value, jax.Array)
                else jax.make_array_from_process_local_data(self._split, value)
                for key, value in batch.items()
            }

    def check_batch_size(self, batch_size: int, parts: int = 1) -> None:
        """Raise InputError unless every device gets the same number of images, in `parts` equal
        parts (of gradient accumulation).
        """
        count = len(self.devices) * parts
        if batch_size % count:
            nearest = max(round(batch_size / count), 1) * count
            in_parts = f", in {parts} parts each" if parts > 1 else ""
            raise InputError(
                f"batch size {batch_size} does not divide over {len(self.devices)} devices"
                f"{in_parts}; try {nearest}"
            )

    def round_up(self, batch_size: int) -> int:
        """Return the next batch size that divides over the devices (evaluation masks the rest)."""
        return -(-batch_size // len(self.devices)) * len(self.devices)
