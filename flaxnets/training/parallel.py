"""Map a function of one device onto all devices: the batch is split, the state is replicated.

There are two thin mappings: `jax.jit` of `jax.shard_map`, and `jax.pmap`, which since JAX 0.8 is
built on the former.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxnets.errors import InputError
from flaxnets.types import DeviceMapping, PyTree

AXIS = "batch"  # the name of the mapped axis
MAX_KEPT = 2**30  # bytes of images on each device: six times CIFAR-10's


class DataParallel:
    """The devices of a run: all devices of all processes unless `devices` names some."""

    def __init__(self, mapping: DeviceMapping = "shard_map", devices: Sequence[Any] | None = None):
        self.mapping = mapping
        self.devices = list(devices or jax.devices())
        self.mesh = Mesh(np.array(self.devices), (AXIS,))
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self._split = NamedSharding(self.mesh, PartitionSpec(AXIS))

    def map(self, function: Callable, *, donate_state: bool = False) -> Any:
        """Return `function(state, batch)` of one device as a compiled function over all devices.

        Its results must be equal on every device, so it has to reduce them over `AXIS`. With
        `donate_state` the result may overwrite the state.
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
            # With the check on, differentiation inserts its own sum, and a pmean of gradients is
            # silently wrong. A test compares with one device.
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=donated)

    def replicate(self, tree: PyTree, *, copied: bool = False) -> PyTree:
        """Return the arrays of `tree`, which are equal in all processes, on all devices.

        Arrays that are on all devices already are returned as they are unless `copied`.
        """
        if self.replicated.is_fully_addressable:
            return jax.device_put(tree, self.replicated, may_alias=not copied)
        # `device_put` would send each array to the other processes to compare it. What is done
        # instead is an implicit transfer to JAX, as in `shard`.
        with jax.transfer_guard_host_to_device("allow"):
            return jax.tree.map(
                lambda leaf: jax.make_array_from_process_local_data(
                    self.replicated, np.asarray(leaf)
                ),
                tree,
            )

    def keeps(self, images: np.ndarray) -> bool:
        """Return whether the images of a data set are kept on every device.

        Images of more than `MAX_KEPT` bytes stay on the host, because the network needs the
        device's memory. With `pmap` all images stay there, because it would copy them in every
        call.
        """
        return self.mapping != "pmap" and images.nbytes <= MAX_KEPT

    def keep(self, images: np.ndarray) -> Callable[[np.ndarray], Any]:
        """Return a function from the indices of this process's examples to their `images`.

        If the images are kept on the devices, only the indices are transferred.
        """
        if not self.keeps(images):
            return images.__getitem__
        kept = self.replicate(images)
        take = jax.jit(lambda images, indices: images[indices], out_shardings=self._split)
        return lambda indices: take(kept, self.shard({"indices": indices})["indices"])

    def shard(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return this process's examples, split over its devices.

        Arrays that are on the devices already stay there. For `pmap` the result has an axis of
        devices, (devices, examples, ...). This transfer is intended, so no transfer guard forbids
        it.
        """
        if self.mapping == "pmap":
            own = [d for d in self.devices if d.process_index == jax.process_index()]
            split = NamedSharding(Mesh(np.array(own), (AXIS,)), PartitionSpec(AXIS))
            return {
                key: jax.device_put(value.reshape(len(own), -1, *value.shape[1:]), split)
                for key, value in batch.items()
            }
        # With several processes this is an implicit transfer to JAX.
        with jax.transfer_guard_host_to_device("allow"):
            return {
                key: value
                if isinstance(value, jax.Array)
                else jax.make_array_from_process_local_data(self._split, value)
                for key, value in batch.items()
            }

    def check_batch_size(self, batch_size: int, parts: int = 1) -> None:
        """Raise InputError unless the batch divides evenly over the devices.

        With gradient accumulation, each device's share must also divide into `parts` equal parts.
        """
        count = len(self.devices) * parts
        if batch_size % count:
            nearest = max(round(batch_size / count), 1) * count
            devices = f"{len(self.devices)} device{'s' if len(self.devices) > 1 else ''}"
            in_parts = f" in {parts} parts each" if parts > 1 else ""
            raise InputError(
                f"batch size {batch_size} does not divide over {devices}{in_parts}; expected a "
                f"multiple of {count}, such as {nearest}"
            )

    def round_up(self, batch_size: int) -> int:
        """Return the next larger batch size that divides over the devices.

        Evaluation masks the additional examples.
        """
        return -(-batch_size // len(self.devices)) * len(self.devices)
