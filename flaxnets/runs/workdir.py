"""The directory of a run: everything that it writes besides checkpoints.

`config.json` (what was asked for), `metrics.jsonl` (a line an epoch), `tensorboard/`,
`learning_curve.png` and `summary.json`; `bad_images.json` if there were some, and `lock`.
"""

import io
import json
import math
import os
import pathlib
import weakref
from typing import Any

import jax
import numpy as np
import PIL.Image

from flaxnets.errors import InputError
from flaxnets.runs.figures import draw_learning_curve
from flaxnets.runs.files import json_text, locked, read_json, write_whole
from flaxnets.runs.processes import all_or_none
from flaxnets.runs.same_run import check_same_run

EpochRow = dict[str, Any]  # a line of metrics.jsonl
Config = dict[str, Any]


class Workdir:
    """The directory of one run, locked until `close` or the end of the process.

    `config["examples"]`, the number of examples of each split, may change between two starts of a
    run: an InputWarning says so.

    Raises InputError, before anything is written, if it holds a run of something else, if another
    process is training in it, or if it cannot be written.
    """

    def __init__(
        self, path: pathlib.Path, config: Config, may_change: tuple[str, ...] = ("epochs",)
    ):
        self.path = path
        self._metrics = path / "metrics.jsonl"
        check_same_run(path, config, may_change)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._unlock = weakref.finalize(self, os.close, locked(path))
            file = path / "config.json"
            self._config_before = file.read_bytes() if file.exists() else None
            write_whole(file, json.dumps(config, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"cannot write to {path}: {error.strerror}") from error
        self._writer: Any = None
        self._logged_until: int | None = None

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Write the rest of TensorBoard's log, and release the lock."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._unlock()

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    def rows(self) -> list[EpochRow]:
        """Return the epochs logged so far; numbers that were not finite are NaN."""
        if not self._metrics.exists():
            return []
        *lines, _ = self._metrics.read_text().split("\n")  # the last is empty, or cut by a kill
        try:
            rows = [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            raise InputError(f"{self._metrics} is damaged: a line of it is no JSON") from error
        return [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]

    def forget_after(self, step: int) -> None:
        """Drop what was logged after the checkpoint from which the run continues."""
        rows = [row for row in self.rows() if row["step"] <= step]
        write_whole(self._metrics, "".join(json_text(row) + "\n" for row in rows))
        self._logged_until = step

    @property
    def _tensorboard(self) -> Any:
        """Open TensorBoard's log. Its import takes a second; the first step need not wait."""
        assert self._logged_until is not None, "forget_after says where the log goes on"
        if self._writer is None:
            from tensorboardX import SummaryWriter

            first = self._logged_until + 1
            # An unbounded queue: on a full disk its writer dies, and a bounded one would block.
            # The suffix, for a file's name has the second: a run that goes on within it would
            # otherwise overwrite what it logged before.
            self._writer = SummaryWriter(
                str(self.path / "tensorboard"),
                purge_step=first,
                max_queue=0,
                flush_secs=10,
                filename_suffix=f".{first:09}",
            )
        return self._writer

    def log(self, row: EpochRow) -> None:
        """Log one epoch."""
        with self._metrics.open("a") as file:
            file.write(json_text(row) + "\n")
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self.scalar(name, value, row["step"])

    def scalar(self, name: str, value: float, step: int) -> None:
        """Log values of a step, for TensorBoard alone."""
        self._tensorboard.add_scalar(name, value, step)

    def picture(self, name: str, figure: Any, step: int) -> None:
        """Save a matplotlib figure as `name.png` and for TensorBoard."""
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=100)
        write_whole(self.path / f"{name}.png", drawn.getvalue())
        pixels = np.asarray(PIL.Image.open(drawn).convert("RGB"))
        self._tensorboard.add_image(name, pixels, step, dataformats="HWC")

    @property
    def bad_images(self) -> list[str]:
        """The pictures that the run has skipped so far."""
        file = self.path / "bad_images.json"
        return read_json(file) if file.exists() else []

    def add_bad_image(self, path: str) -> None:
        bad = [*self.bad_images, path]
        write_whole(self.path / "bad_images.json", json.dumps(bad, indent=2) + "\n")

    def finish(self, summary: dict[str, Any], title: str) -> None:
        """Write the summary and draw the learning curve, unless this step was summarized before."""
        if not self._is_summarized(summary["steps"]):
            write_whole(self.path / "summary.json", json_text(summary, indent=2) + "\n")
            draw_learning_curve(self.rows(), self.path / "learning_curve.png", title)
        self.close()

    def _is_summarized(self, step: int) -> bool:
        try:
            return read_json(self.path / "summary.json")["steps"] == step
        except (OSError, InputError, KeyError, TypeError):  # absent, or not ours
            return False

    def leave(self) -> None:
        """Close a run that took no step, and restore the config.json that its steps were taken
        with.
        """
        if self._config_before is not None:
            write_whole(self.path / "config.json", self._config_before)
        self.close()


class Follower(Workdir):
    """The workdir as the other processes of a run have it: they only read it.

    Raises InputError if this process does not see what process 0 wrote, or has other options.
    """

    def __init__(
        self, path: pathlib.Path, config: Config, may_change: tuple[str, ...] = ("epochs",)
    ):
        self.path = path
        self._metrics = path / "metrics.jsonl"
        if not (path / "config.json").exists():
            raise InputError(f"not every process sees {path}; expected a directory that all share")
        check_same_run(path, config, may_change)
        self._rows = super().rows()  # now: process 0 is about to write

    def forget_after(self, step: int) -> None:
        self._rows = [row for row in self._rows if row["step"] <= step]

    def rows(self) -> list[EpochRow]:
        return self._rows

    def log(self, row: EpochRow) -> None:
        self._rows.append(row)

    def scalar(self, name: str, value: float, step: int) -> None:
        pass

    def picture(self, name: str, figure: Any, step: int) -> None:
        pass

    @property
    def bad_images(self) -> list[str]:
        return []

    def add_bad_image(self, path: str) -> None:
        pass

    def close(self) -> None:
        pass

    def leave(self) -> None:
        pass

    def finish(self, summary: dict[str, Any], title: str) -> None:
        pass


def shared_workdir(path: pathlib.Path, config: Config) -> Workdir:
    """Return the workdir of a run of any number of processes, each of which calls this; process 0
    writes. Raises InputError as `Workdir` and `Follower`; where one process does, all end.
    """
    with all_or_none():  # process 0 writes first
        workdir = Workdir(path, config) if jax.process_index() == 0 else None
    with all_or_none():
        return workdir or Follower(path, config)
