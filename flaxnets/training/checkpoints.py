"""Orbax checkpoints of a run: the last one and the best one."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from flaxnets.training.state import TrainState

Position = dict[str, Any]  # what JSON holds beside the state: where in the epoch the run stood


class Checkpoints:
    """Checkpoints in `directory/<step>`, written in the background and renamed when complete.

    Kept are the newest and the one with the best `top1`.
    """

    def __init__(self, directory: pathlib.Path):
        best = BestN(get_metric_fn=lambda m: m["top1"], n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(1), best]),
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: TrainState, position: Position, top1: float | None = None) -> None:
        """Returns once the state is copied; `top1` makes it a candidate for the best."""
        step = int(state.step)
        if step == self.latest_step:
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position)
        )
        self._manager.save(step, args=items, metrics=None if top1 is None else {"top1": top1})

    def restore(self, like: TrainState) -> tuple[TrainState, Position]:
        """The newest checkpoint, with the shapes, dtypes and shardings of `like`, so that it moves
        to another number of devices.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), position=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(self.latest_step, args=items)
        return restored["state"], restored["position"]

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()
