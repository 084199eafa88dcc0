"""Orbax checkpoints of a run: the last one and the best one."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from flaxnets.errors import InputError
from flaxnets.training.state import PyTree, TrainState

Position = dict[str, Any]  # what JSON holds beside the state: where in the epoch the run stood


class Checkpoints:
    """Checkpoints in `directory/<step>`, written in the background and renamed when complete.

    Kept are the newest and the one with the smallest validation error.
    """

    def __init__(self, directory: pathlib.Path):
        best = BestN(
            get_metric_fn=lambda m: -m["error"], n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(1), best]),
            cleanup_tmp_directories=True,
        )
        handlers = {
            # Random weights do not compress: it only costs the next steps their cores.
            "state": ocp.PyTreeCheckpointHandler(use_compression=False),
            "position": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(
            directory.absolute(), options=options, item_handlers=handlers
        )

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: TrainState, position: Position, error: float | None = None) -> None:
        """Returns once the state is copied; a validation `error` makes it a candidate for best."""
        step = int(state.step)
        if step == self.latest_step:
            return
        if jax.process_count() > 1 and state.step.is_fully_addressable:  # pmap's, of this process
            state = jax.tree.map(ocp.utils.fully_replicated_host_local_array_to_global_array, state)
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), position=ocp.args.JsonSave(position)
        )
        self._manager.save(step, args=items, metrics=None if error is None else {"error": error})

    def restore(self, like: TrainState) -> tuple[TrainState, Position]:
        """The newest checkpoint, with the shapes, dtypes and shardings of `like`, so that it moves
        to another number of devices.
        """
        items = ocp.args.Composite(state=_restore(like), position=ocp.args.JsonRestore())
        restored = self._manager.restore(self.latest_step, args=items)
        return restored["state"], restored["position"]

    def restore_variables(self) -> PyTree:
        """The network's variables alone, on this process's first device."""
        self._manager.wait_until_finished()
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        step = self.latest_step
        if step is None:
            raise InputError(f"{self._manager.directory} holds no complete checkpoint")
        saved = self._manager.item_metadata(step)["state"].tree
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            {name: saved[name] for name in ("params", "model_state")},
        )
        items = ocp.args.Composite(state=_restore(like, partial_restore=True))
        state = self._manager.restore(step, args=items)["state"]
        return {"params": state["params"], **state["model_state"]}

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def _restore(like: PyTree, **options) -> ocp.args.PyTreeRestore:
    arguments = ocp.checkpoint_utils.construct_restore_args(like)
    return ocp.args.PyTreeRestore(item=like, restore_args=arguments, **options)
