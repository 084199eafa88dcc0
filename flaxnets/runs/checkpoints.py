"""Orbax checkpoints of a run: the last few and the best one, each with checksums of what it holds.

Orbax renames a checkpoint when it is complete, so half of one has no name. What its files lose
later, it may not notice: it takes a missing chunk for zeros and a flipped bit for a value. So the
JSON beside the arrays has a CRC-32 of every array, which is compared after reading.
"""

import contextlib
import json
import pathlib
import warnings
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from jax import tree_util
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from flaxnets.errors import InputError, InputWarning
from flaxnets.training.state import PyTree, TrainState

Position = dict[str, Any]  # what JSON holds beside the state: where in the epoch the run stood
Read = TypeVar("Read")


class Checkpoints:
    """Checkpoints in `directory/<step>`, written in the background and renamed when complete.

    Kept are the newest `keep` and the one with the smallest validation error. `read_only` is for
    those who look at a run, which may be going on: nothing is created, moved or cleaned up.
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
        return self._manager.latest_step()

    def save(self, state: TrainState, position: Position, error: float | None = None) -> None:
        """Returns once the state is copied; a validation `error` makes it a candidate for best."""
        step = int(state.step)
        if step == self.latest_step:
            return
        if jax.process_count() > 1 and state.step.is_fully_addressable:  # pmap's, of this process
            state = jax.tree.map(ocp.utils.fully_replicated_host_local_array_to_global_array, state)
        sums = {"checksums": checksums(state), "own": _checksum_of_json(position)}
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), position=ocp.args.JsonSave(position | sums)
        )
        self._manager.save(step, args=items, metrics=None if error is None else {"error": error})

    def restore(self, like: TrainState) -> tuple[TrainState, Position]:
        """The newest intact checkpoint, with the shapes, dtypes and shardings of `like`, so that it
        moves to another number of devices. Newer, damaged ones are moved aside with a warning.

        Raises InputError if all are damaged, and leaves them where they are, or if the newest has
        other dtypes.
        """

        def read(step: int) -> tuple[TrainState, Position]:
            self._check_files(step)
            saved = self._manager.item_metadata(step)["state"].tree
            self._check_types(step, saved, like, "start another run")
            items = ocp.args.Composite(state=_restore(like), position=ocp.args.JsonRestore())
            restored = self._manager.restore(step, args=items)
            return restored["state"], _verified(restored["state"], restored["position"])

        return self._newest_intact(read)

    def restore_variables(self) -> PyTree:
        """Return the network's variables alone, the moving averages where there are some, on this
        process's first device. Nothing else is read. Raises as `restore`.
        """
        self._manager.wait_until_finished()
        variables = self._newest_intact(self._read_variables)
        return jax.device_put(variables, jax.local_devices()[0])

    def restore_mean(self, count: int) -> PyTree:
        """Return the mean of the variables in the newest `count` checkpoints, as NumPy arrays.

        Raises InputError if there are fewer, or as `restore` for types.
        """
        self._manager.wait_until_finished()
        steps = sorted(self._manager.all_steps())
        if not 1 <= count <= len(steps):
            raise InputError(
                f"the mean of {count} checkpoints is asked for; {self.directory} has {len(steps)}"
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
        self._check_types(step, saved, like, "set JAX_ENABLE_X64=1, with which it was written")
        position = ocp.args.Composite(position=ocp.args.JsonRestore())
        try:
            arrays = _arrays(self.directory / str(step) / "state", like)
        except Exception:
            self._check_files(step)  # which names the file that is missing
            raise
        _verified(arrays, self._manager.restore(step, args=position)["position"])
        state = arrays.get("average", arrays)
        return {"params": state["params"], **state["model_state"]}

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _check_files(self, step: int) -> None:
        """Reads all bytes of the arrays once, one after the other: where some are missing Orbax,
        which reads many at a time, has threads fail after its own error, each with a traceback.
        """
        path = self.directory / str(step) / "state"
        for file in path.glob("array_metadatas/*"):
            json.loads(file.read_bytes())
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{path}/"}).result()
        for key in store.list().result():
            if not store.read(key).result().value:  # its state may be "value" all the same
                raise ValueError(f"a file with {key.decode()} is missing")

    def _check_types(self, step: int, saved: PyTree, like: PyTree, advice: str) -> None:
        """Raise InputError if an array was saved in another dtype than that of `like`."""
        expected = _types(like)
        for name, dtype in _types(saved).items():
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
            except InputError:  # of an intact one
                raise
            except Exception as error:  # broken files make Orbax raise almost anything
                damaged[step] = _first_words(error)
                continue
            if damaged and not self._read_only:
                multihost_utils.sync_global_devices("all processes have found the same damages")
            for number, reason in damaged.items():
                aside = "" if self._read_only else f", now in {self._set_aside(number)}"
                warnings.warn(
                    f"checkpoint {number} in {self.directory} is damaged ({reason}){aside}; "
                    f"checkpoint {step} is used instead",
                    InputWarning,
                    stacklevel=3,
                )
            if damaged and not self._read_only:
                multihost_utils.sync_global_devices("they are aside")
                self._manager.reload()
            return content
        if not damaged:
            raise InputError(f"{self.directory} holds no complete checkpoint")
        listed = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
        raise InputError(f"every checkpoint in {self.directory} is damaged ({listed})")

    def _set_aside(self, step: int) -> pathlib.Path:
        """Moves a checkpoint out of the way of those to come, in process 0."""
        parent = self.directory.with_name(self.directory.name + "_damaged")
        count = len(list(parent.glob(f"{step}*")))
        place = parent / (f"{step}-{count}" if count else str(step))
        if jax.process_index() == 0:
            parent.mkdir(exist_ok=True)
            (self.directory / str(step)).rename(place)
        return place


def _opened(directory: pathlib.Path, **options: Any) -> ocp.CheckpointManager:
    """Orbax's manager. A run that goes on may delete an old checkpoint after Orbax has listed it
    and before it asks how old it is: the next listing is without it.
    """
    for _ in range(9):
        with contextlib.suppress(FileNotFoundError):
            return ocp.CheckpointManager(directory, **options)
    return ocp.CheckpointManager(directory, **options)


def _arrays(path: pathlib.Path, like: PyTree) -> PyTree:
    """Return the arrays of a saved state that `like` names, as NumPy's, each read once.

    Raises what tensorstore does where a part of one is missing.
    """
    base = {"driver": "ocdbt", "base": f"file://{path}/"}

    def begin_to_read(keys: Any, _: Any) -> Any:
        name = tree_util.keystr(keys, simple=True, separator=".")
        store = {"driver": "zarr", "kvstore": base | {"path": name + "/"}}
        options = {"open": True, "fill_missing_data_reads": False}  # else zeros
        return tensorstore.open(store | options, read=True).result().read()

    reading = tree_util.tree_map_with_path(begin_to_read, like)
    return jax.tree.map(lambda future: future.result(), reading)


def _first_words(error: Exception) -> str:
    """Up to the details, of which tensorstore has many."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(" [")[0][:160]


def checksums(tree: PyTree) -> dict[str, int]:
    """The CRC-32 of every array's bytes, by its path; about 3.6 GB/s on one core."""

    def checksum(leaf: Any) -> int:
        local = leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf
        return zlib.crc32(np.ascontiguousarray(local).reshape(-1).view(np.uint8).data)

    named = tree_util.tree_leaves_with_path(tree)
    return {
        tree_util.keystr(path, simple=True, separator="/"): checksum(leaf) for path, leaf in named
    }


def _types(tree: PyTree) -> dict[str, np.dtype]:
    """Return the dtype of every array by its path, as `checksums` names it."""
    return {
        tree_util.keystr(path, simple=True, separator="/"): np.dtype(leaf.dtype)
        for path, leaf in tree_util.tree_leaves_with_path(tree)
        if hasattr(leaf, "dtype")
    }


def _checksum_of_json(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _verified(state: PyTree, saved: dict[str, Any]) -> Position:
    """The position, if it and the arrays read are those that were saved."""
    position = dict(saved)
    expected, own = position.pop("checksums"), position.pop("own")
    if _checksum_of_json(position) != own:
        raise ValueError("the position has another checksum")
    for name, checksum in checksums(state).items():
        if expected.get(name) != checksum:
            raise ValueError(f"{name} has another checksum")
    return position


def _restore(like: PyTree, **options) -> ocp.args.PyTreeRestore:
    arguments = ocp.checkpoint_utils.construct_restore_args(like)
    return ocp.args.PyTreeRestore(item=like, restore_args=arguments, **options)
