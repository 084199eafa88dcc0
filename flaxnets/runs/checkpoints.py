"""Save and restore a run with Orbax: the last few checkpoints and the best one, with checksums.

Orbax renames a checkpoint when it is complete, so that an incomplete one is never used. It may not
notice damage that happens later: it reads a missing chunk as zeros and a flipped bit as a value.
The JSON beside the arrays therefore has a CRC-32 of every array, which is compared after reading.
"""

import contextlib
import json
import pathlib
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from jax import tree_util
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from flaxnets.errors import InputError, InputWarning
from flaxnets.runs.checksums import Position, dtypes, verified, with_checksums
from flaxnets.types import PyTree

if TYPE_CHECKING:  # it imports optax, which whoever reads a network does not need
    from flaxnets.training.state import TrainState

Read = TypeVar("Read")


class Checkpoints:
    """Checkpoints in `directory/<step>`, written in the background and renamed when complete.

    The newest `keep` checkpoints are kept, and the one with the smallest validation error. With
    `read_only` nothing is created, moved or cleaned up, because the run may still be training.
    """

    def __init__(self, directory: pathlib.Path, keep: int = 2, *, read_only: bool = False):
        self.directory = directory.absolute()
        self._read_only = read_only
        best = BestN(
            get_metric_fn=lambda m: -m["error"], n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,
        )
        handlers = {
            # Random weights do not compress: it only costs the next steps their cores.
            "state": ocp.PyTreeCheckpointHandler(use_compression=False),
            "position": ocp.JsonCheckpointHandler(),
        }
        self._manager = _opened(self.directory, options=options, item_handlers=handlers)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, state: "TrainState", position: Position, error: float | None = None) -> None:
        """Save the state in the background, and return once it is copied.

        A checkpoint with a validation `error` may be kept as the best one.
        """
        step = int(state.step)
        if step == self.latest_step:
            return
        # A state of `pmap` is on the devices of this process alone.
        if jax.process_count() > 1 and state.step.is_fully_addressable:
            state = jax.tree.map(ocp.utils.fully_replicated_host_local_array_to_global_array, state)
        signed = with_checksums(position, state)
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), position=ocp.args.JsonSave(signed)
        )
        self._manager.save(step, args=items, metrics=None if error is None else {"error": error})

    def restore(self, like: "TrainState") -> tuple["TrainState", Position]:
        """Return the newest intact checkpoint, with the shapes, dtypes and shardings of `like`.

        The number of devices may differ from that of the saved run. Newer checkpoints that are
        damaged are moved to another directory, with a warning.

        Raises InputError if all checkpoints are damaged (they stay where they are), or if the
        newest intact one has other dtypes.
        """

        def read(step: int) -> tuple["TrainState", Position]:
            self._check_files(step)
            saved = self._manager.item_metadata(step)["state"].tree
            self._check_types(step, saved, like, "start another run")
            items = ocp.args.Composite(state=_restore(like), position=ocp.args.JsonRestore())
            restored = self._manager.restore(step, args=items)
            return restored["state"], verified(restored["state"], restored["position"])

        return self._newest_intact(read)

    def restore_variables(self) -> PyTree:
        """Return only the network's variables, on this process's first device.

        If the run has moving averages, those are returned. Nothing else is read. Raises InputError
        as `restore` does.
        """
        self._manager.wait_until_finished()
        variables = self._newest_intact(self._read_variables)
        return jax.device_put(variables, jax.local_devices()[0])

    def restore_mean(self, count: int) -> PyTree:
        """Return the mean of the variables in the newest `count` checkpoints, as NumPy arrays.

        Raises InputError if there are fewer, or if one has other dtypes than this process uses.
        """
        self._manager.wait_until_finished()
        steps = sorted(self._manager.all_steps())
        if not 1 <= count <= len(steps):
            raise InputError(
                f"cannot average {count} checkpoints: {self.directory} has {len(steps)}; expected "
                f"at least one, and at most that many"
            )
        all_variables = [self._read_variables(step) for step in steps[-count:]]

        def mean(*leaves: np.ndarray) -> np.ndarray:
            return np.mean(leaves, axis=0, dtype=np.float64).astype(leaves[0].dtype)

        return jax.tree.map(mean, *all_variables)

    def _read_variables(self, step: int) -> PyTree:
        saved = self._manager.item_metadata(step)["state"].tree
        names = ("average",) if saved.get("average") else ("params", "model_state")
        saved = {name: saved[name] for name in names}
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype)
            ),
            saved,
        )
        self._check_types(step, saved, like, "set JAX_ENABLE_X64=1, as when it was written")
        position = ocp.args.Composite(position=ocp.args.JsonRestore())
        try:
            arrays = _arrays(self.directory / str(step) / "state", like)
        except Exception:
            self._check_files(step)  # its message names the missing file
            raise
        verified(arrays, self._manager.restore(step, args=position)["position"])
        state = arrays.get("average", arrays)
        return {"params": state["params"], **state["model_state"]}

    def close(self) -> None:
        """Wait until everything is on disk, and close the directory."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _check_files(self, step: int) -> None:
        """Read every file of the arrays once, one after another.

        Orbax reads many files at a time. If one is missing, some of its threads fail after Orbax
        has raised its own error, and each prints a traceback.

        Raises ValueError if a file is missing.
        """
        path = self.directory / str(step) / "state"
        for file in path.glob("array_metadatas/*"):
            json.loads(file.read_bytes())
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{path}/"}).result()
        for key in store.list().result():
            if not store.read(key).result().value:  # the result's state may still say "value"
                raise ValueError(f"a file with {key.decode()} is missing")

    def _check_types(self, step: int, saved: PyTree, like: PyTree, advice: str) -> None:
        """Raise InputError if an array was saved in another dtype than that of `like`."""
        expected = dtypes(like)
        for name, dtype in dtypes(saved).items():
            if expected.get(name, dtype) != dtype:
                raise InputError(
                    f"checkpoint {step} in {self.directory} has {name} in {dtype}; expected "
                    f"{expected[name]}: {advice}"
                )

    def _newest_intact(self, read: Callable[[int], Read]) -> Read:
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                content = read(step)
            except InputError:  # the checkpoint is intact, but does not fit
                raise
            except Exception as error:  # damaged files make Orbax raise almost anything
                damaged[step] = _first_words(error)
                continue
            if damaged and not self._read_only:
                multihost_utils.sync_global_devices("all processes have found the damage")
            for number, reason in damaged.items():
                moved = "" if self._read_only else f" and was moved to {self._set_aside(number)}"
                warnings.warn(
                    f"checkpoint {number} in {self.directory} is damaged ({reason}){moved}; "
                    f"checkpoint {step} is used instead",
                    InputWarning,
                    stacklevel=3,
                )
            if damaged and not self._read_only:
                multihost_utils.sync_global_devices("damaged checkpoints are moved")
                self._manager.reload()
            return content
        if not damaged:
            raise InputError(
                f"{self.directory} holds no complete checkpoint; train the run to its first one"
            )
        listed = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
        raise InputError(
            f"every checkpoint in {self.directory} is damaged ({listed}); restore one from a "
            f"backup, or train the run again in another workdir"
        )

    def _set_aside(self, step: int) -> pathlib.Path:
        """Move a damaged checkpoint to `checkpoints_damaged`, in process 0; return its new path."""
        parent = self.directory.with_name(self.directory.name + "_damaged")
        count = len(list(parent.glob(f"{step}*")))
        place = parent / (f"{step}-{count}" if count else str(step))
        if jax.process_index() == 0:
            parent.mkdir(exist_ok=True)
            (self.directory / str(step)).rename(place)
        return place


def _opened(directory: pathlib.Path, **options: Any) -> ocp.CheckpointManager:
    """Return Orbax's manager of a directory.

    A run that is still training may delete an old checkpoint after Orbax has listed it and before
    Orbax asks for its age. Another try lists the directory again.
    """
    for _ in range(9):
        with contextlib.suppress(FileNotFoundError):
            return ocp.CheckpointManager(directory, **options)
    return ocp.CheckpointManager(directory, **options)


def _arrays(path: pathlib.Path, like: PyTree) -> PyTree:
    """Return the arrays of a saved state that `like` names, as NumPy arrays, each read once.

    Raises tensorstore's error if a part of an array is missing.
    """
    base = {"driver": "ocdbt", "base": f"file://{path}/"}

    def begin_to_read(keys: Any, _: Any) -> Any:
        name = tree_util.keystr(keys, simple=True, separator=".")
        store = {"driver": "zarr", "kvstore": base | {"path": name + "/"}}
        options = {"open": True, "fill_missing_data_reads": False}  # True would read zeros
        return tensorstore.open(store | options, read=True).result().read()

    reading = tree_util.tree_map_with_path(begin_to_read, like)
    return jax.tree.map(lambda future: future.result(), reading)


def _first_words(error: Exception) -> str:
    """Return the beginning of an error's message, without tensorstore's long details."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(" [")[0][:160]


def _restore(like: PyTree, **options) -> ocp.args.PyTreeRestore:
    arguments = ocp.checkpoint_utils.construct_restore_args(like)
    return ocp.args.PyTreeRestore(item=like, restore_args=arguments, **options)
