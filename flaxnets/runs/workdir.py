"""Write the directory of a run, except its checkpoints.

It holds `config.json` (the options of the run), `metrics.jsonl` (a line for each epoch),
`tensorboard/`, `learning_curve.png`, `summary.json` and `lock`, and `bad_images.json` if pictures
were unreadable.
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

    If `config["examples"]`, the number of examples of each split, has changed since the last start
    of the run, an InputWarning says so.

    Raises InputError, before anything is written, if the directory holds another run, if another
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
            raise InputError(
                f"cannot write to {path}: {error.strerror}; choose another workdir"
            ) from error
        self._writer: Any = None
        self._logged_until: int | None = None

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Write the rest of TensorBoard's log and release the lock."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._unlock()

    @property
    def checkpoints(self) -> pathlib.Path:
        """The directory of the checkpoints."""
        return self.path / "checkpoints"

    def rows(self) -> list[EpochRow]:
        """Return the epochs logged so far; numbers that were not finite are NaN."""
        if not self._metrics.exists():
            return []
        *lines, _ = self._metrics.read_text().split("\n")  # the last is empty, or cut by a kill
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{self._metrics} is damaged: line {number} is not JSON; remove that line, or "
                    f"choose another workdir"
                ) from error
            rows.append({k: math.nan if v is None else v for k, v in row.items()})
        return rows

    def forget_after(self, step: int) -> None:
        """Drop what was logged after step `step`, from whose checkpoint the run continues."""
        rows = [row for row in self.rows() if row["step"] <= step]
        write_whole(self._metrics, "".join(json_text(row) + "\n" for row in rows))
        self._logged_until = step

    @property
    def _tensorboard(self) -> Any:
        """TensorBoard's log, opened at the first use: its import takes a second."""
        assert self._logged_until is not None, "call forget_after first"
        if self._writer is None:
            from tensorboardX import SummaryWriter

            first = self._logged_until + 1
            # max_queue=0 is unbounded: on a full disk the writer dies, and a bounded queue would
            # block. The name of a file has only the second of its start. A run that continues
            # within that second would overwrite its own log without the suffix.
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
        """Log one value of a step for TensorBoard."""
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
        """The paths of the pictures that the run has skipped so far."""
        file = self.path / "bad_images.json"
        return read_json(file) if file.exists() else []

    def add_bad_image(self, path: str) -> None:
        """Record a picture that is skipped."""
        bad = [*self.bad_images, path]
        write_whole(self.path / "bad_images.json", json.dumps(bad, indent=2) + "\n")

    def finish(self, summary: dict[str, Any], title: str) -> None:
        """Write the summary and draw the learning curve, unless that was done at this step."""
        if not self._is_summarized(summary["steps"]):
            write_whole(self.path / "summary.json", json_text(summary, indent=2) + "\n")
            draw_learning_curve(self.rows(), self.path / "learning_curve.png", title)
        self.close()

    def _is_summarized(self, step: int) -> bool:
        try:
            return read_json(self.path / "summary.json")["steps"] == step
        except (OSError, InputError, KeyError, TypeError):  # absent, or written by something else
            return False

    def leave(self) -> None:
        """Close a run that took no step, and restore the config.json of its earlier steps."""
        if self._config_before is not None:
            write_whole(self.path / "config.json", self._config_before)
        self.close()


class Follower(Workdir):
    """The workdir in the processes other than 0, which only read it.

    Raises InputError if this process does not see the files of process 0, or has other options.
    """

    def __init__(
        self, path: pathlib.Path, config: Config, may_change: tuple[str, ...] = ("epochs",)
    ):
        self.path = path
        self._metrics = path / "metrics.jsonl"
        if not (path / "config.json").exists():
            raise InputError(
                f"not every process sees {path}; expected a workdir on a file system that all "
                f"processes share"
            )
        check_same_run(path, config, may_change)
        self._rows = super().rows()  # read now, because process 0 is about to write

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
    """Return the workdir of a run. Every process of the run calls this; process 0 writes.

    Raises InputError as `Workdir` and `Follower` do. If one process raises it, all end.
    """
    with all_or_none():  # process 0 writes first
        workdir = Workdir(path, config) if jax.process_index() == 0 else None
    with all_or_none():
        return workdir or Follower(path, config)
