"""What a run leaves behind beside its checkpoints, all in one directory:

`config.json` (what was asked for), `metrics.jsonl` (a line an epoch), `tensorboard/`,
`learning_curve.png` and `summary.json`; `bad_images.json` if there were some, and `lock`.
"""

import fcntl
import io
import json
import math
import os
import pathlib
import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image

from flaxnets.errors import InputError, InputWarning
from flaxnets.runs.figures import draw_learning_curve

Row = dict[str, Any]


def default_workdir(arch: str, dataset: str) -> pathlib.Path:
    """Return the workdir `runs/ARCH-DATASET`, the same however the path of a folder or file is
    spelled. That of an old run, whose name has the path as it was typed, is taken where it exists.
    """
    here = os.path.join(os.getcwd(), "")
    new, old = (
        pathlib.Path("runs") / f"{arch}-{name.replace('/', '-').replace(':', '-')}"
        for name in (_absolute(dataset, below=here), dataset.rstrip("/"))
    )
    return old if old.exists() and not new.exists() else new


class Workdir:
    """The directory of one run, locked until `close` or the end of the process.

    `config["examples"]`, the number of examples of each split, may change between two starts of a
    run: an InputWarning says so.

    Raises InputError, before anything is written, if it holds a run of something else, if another
    process is training in it, or if it cannot be written.
    """

    def __init__(self, path: pathlib.Path, config: Row, may_change: tuple[str, ...] = ("epochs",)):
        self.path = path
        self._metrics = path / "metrics.jsonl"
        _check_same_run(path, config, may_change)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._unlock = weakref.finalize(self, os.close, _locked(path))
            file = path / "config.json"
            self._config_before = file.read_bytes() if file.exists() else None
            _write(file, json.dumps(config, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"cannot write to {path}: {error.strerror}") from error
        self._writer: Any = None
        self._logged_until: int | None = None

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Writes what TensorBoard's log still lacks, and releases the lock."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._unlock()

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    def rows(self) -> list[Row]:
        """Return the epochs logged so far; a number that was not finite is NaN."""
        if not self._metrics.exists():
            return []
        *lines, _ = self._metrics.read_text().split("\n")  # the last is empty, or cut by a kill
        try:
            rows = [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            raise InputError(f"{self._metrics} is damaged: a line of it is no JSON") from error
        return [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]

    def forget_after(self, step: int) -> None:
        """Drops what was logged after the checkpoint from which the run goes on."""
        rows = [row for row in self.rows() if row["step"] <= step]
        _write(self._metrics, "".join(json_text(row) + "\n" for row in rows))
        self._logged_until = step

    @property
    def _tensorboard(self) -> Any:
        """Its log. The import is a second that the first step need not wait for."""
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

    def log(self, row: Row) -> None:
        """One epoch."""
        with self._metrics.open("a") as file:
            file.write(json_text(row) + "\n")
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self.scalar(name, value, row["step"])

    def scalar(self, name: str, value: float, step: int) -> None:
        """For TensorBoard alone."""
        self._tensorboard.add_scalar(name, value, step)

    def picture(self, name: str, figure: Any, step: int) -> None:
        """A matplotlib figure, as `name.png` and for TensorBoard."""
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=100)
        _write(self.path / f"{name}.png", drawn.getvalue())
        pixels = np.asarray(PIL.Image.open(drawn).convert("RGB"))
        self._tensorboard.add_image(name, pixels, step, dataformats="HWC")

    @property
    def bad_images(self) -> list[str]:
        """The pictures that the run skipped so far."""
        file = self.path / "bad_images.json"
        return read_json(file) if file.exists() else []

    def add_bad_image(self, path: str) -> None:
        bad = [*self.bad_images, path]
        _write(self.path / "bad_images.json", json.dumps(bad, indent=2) + "\n")

    def finish(self, summary: Row, title: str) -> None:
        """Write the summary and draw the learning curve, unless this step was summarized before."""
        if not self._is_summarized(summary["steps"]):
            _write(self.path / "summary.json", json_text(summary, indent=2) + "\n")
            draw_learning_curve(self.rows(), self.path / "learning_curve.png", title)
        self.close()

    def _is_summarized(self, step: int) -> bool:
        try:
            return read_json(self.path / "summary.json")["steps"] == step
        except (OSError, InputError, KeyError, TypeError):  # absent, or not ours
            return False

    def leave(self) -> None:
        """Close a run that took no step: config.json says again what the steps were taken with."""
        if self._config_before is not None:
            _write(self.path / "config.json", self._config_before)
        self.close()


class Follower(Workdir):
    """The same directory in the other processes of a run: read, and never written to.

    Raises InputError if this process does not see what process 0 wrote, or has other options.
    """

    def __init__(self, path: pathlib.Path, config: Row, may_change: tuple[str, ...] = ("epochs",)):
        self.path = path
        self._metrics = path / "metrics.jsonl"
        if not (path / "config.json").exists():
            raise InputError(f"not every process sees {path}; expected a directory that all share")
        _check_same_run(path, config, may_change)
        self._rows = super().rows()  # now: process 0 is about to write

    def forget_after(self, step: int) -> None:
        self._rows = [row for row in self._rows if row["step"] <= step]

    def rows(self) -> list[Row]:
        return self._rows

    def log(self, row: Row) -> None:
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

    def finish(self, summary: Row, title: str) -> None:
        pass


MAX_JSON = 2**24  # bytes; a config with the names of 22,000 classes has half a million


def read_json(path: pathlib.Path) -> Any:
    """What a file of a workdir holds. Raises InputError if it is too large, or no JSON."""
    if path.stat().st_size > MAX_JSON:
        raise InputError(f"{path} is larger than {MAX_JSON >> 20} MiB: no file of a training run")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError too
        raise InputError(f"{path} is damaged: it is no JSON") from error


def json_text(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON, which has no NaN and no infinity: null stands for either."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: pathlib.Path, content: str | bytes) -> None:
    """All of a file or nothing: a run killed meanwhile leaves the old one."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(new, path)


def _locked(path: pathlib.Path) -> int:
    """A descriptor whose lock the kernel releases when it is closed, also by a kill."""
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(
            f"another process is training in {path}; wait for it, or choose another --workdir"
        ) from None
    except OSError:
        pass  # a file system without locks
    return descriptor


def _check_same_run(path: pathlib.Path, config: Row, may_change: tuple[str, ...]) -> None:
    if path.exists() and not path.is_dir():
        raise InputError(f"workdir {path} is a file; expected a directory")
    file = path / "config.json"
    if not file.exists():
        if path.exists() and (path / "checkpoints").exists():
            raise InputError(f"workdir {path} holds checkpoints of something else; choose another")
        return
    before = read_json(file)
    now = json.loads(json.dumps(config))  # tuples become lists, as in the file
    before = _with_plan(before, now)
    may_change = (*may_change, "examples")
    changed = [k for k in now if k not in may_change and not _same(k, before.get(k), now[k])]
    if changed:
        key = changed[0]
        raise InputError(
            f"workdir {path} holds a run with {key.replace('_', ' ')} {_short(before.get(key))}, "
            f"not {_short(now[key])}; choose another --workdir or remove it"
        )
    _warn_of_other_sizes(before.get("examples"), now.get("examples"))


def _with_plan(before: Row, now: Row) -> Row:
    """The config of a run from before plans were written down, whose values decide: those that it
    had, but for an interpolation that was of policies alone.
    """
    if "plan" in before or "preprocessing" not in before or "preprocessing" not in now:
        return before
    values = now["preprocessing"] | before["preprocessing"]
    values["interpolation"] = now["preprocessing"]["interpolation"]
    return (
        {key: now[key] for key in ("plan", "kind") if key in now}
        | before
        | {"preprocessing": values}
    )


def _same(key: str, before: Any, now: Any) -> bool:
    """Return whether an option has the same value; a path may be spelled in another way."""
    if key in ("dataset", "init_from") and isinstance(before, str) and isinstance(now, str):
        return _absolute(before) == _absolute(now)
    return before == now


def _absolute(name: str, below: str = "") -> str:
    """Return one spelling of a file, or of the path of a data set (`folder:PATH`), without the
    directory `below` at its beginning. Different names of other things stay different.
    """
    kind, colon, path = name.partition(":")
    if not colon:
        kind, path = "", name
    return kind + colon + os.path.abspath(os.path.expanduser(path)).removeprefix(below)


def _warn_of_other_sizes(before: Any, now: Any) -> None:
    """`before` is missing in runs that did not record it."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return
    names = {"train": "training", "test": "test"}
    changes = [
        f"{before[split]} {name} examples then, {now[split]} now"
        for split, name in names.items()
        if before.get(split) not in (None, now.get(split))
    ]
    if changes:
        warnings.warn(f"the data changed: {'; '.join(changes)}", InputWarning, stacklevel=4)


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 6:
        return f"{value[0]!r} ... {value[-1]!r} ({len(value)} in all)"
    return repr(value)
