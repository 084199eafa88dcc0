"""What a run leaves behind beside its checkpoints, all in one directory:

`config.json` (what was asked for), `metrics.jsonl` (a line an epoch), `tensorboard/`,
`learning_curve.png` and `summary.json`.
"""

import json
import pathlib
from typing import Any

from tensorboardX import SummaryWriter

from flaxnets.errors import InputError

Row = dict[str, Any]


class Workdir:
    """The directory of one run.

    Raises InputError, before anything is written, if it holds a run of something else or cannot be
    written.
    """

    def __init__(self, path: pathlib.Path, config: Row, may_change: tuple[str, ...] = ("epochs",)):
        self.path = path
        self._metrics = path / "metrics.jsonl"
        _check_same_run(path, config, may_change)
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"cannot write to {path}: {error.strerror}") from error
        self._tensorboard: SummaryWriter | None = None

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    def rows(self) -> list[Row]:
        """The epochs logged so far."""
        if not self._metrics.exists():
            return []
        return [json.loads(line) for line in self._metrics.read_text().splitlines()]

    def forget_after(self, step: int) -> None:
        """Drops what was logged after the checkpoint from which the run goes on."""
        rows = [row for row in self.rows() if row["step"] <= step]
        self._metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
        # An unbounded queue: on a full disk its writer dies, and a bounded one would block the run.
        self._tensorboard = SummaryWriter(
            str(self.path / "tensorboard"), purge_step=step + 1, max_queue=0
        )

    def log(self, row: Row) -> None:
        """One epoch."""
        with self._metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self.scalar(name, value, row["step"])

    def scalar(self, name: str, value: float, step: int) -> None:
        """For TensorBoard alone."""
        assert self._tensorboard is not None, "forget_after opens the log"
        self._tensorboard.add_scalar(name, value, step)

    def finish(self, summary: Row, title: str) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
        (self.path / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        draw_learning_curve(self.rows(), self.path / "learning_curve.png", title)


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

    def finish(self, summary: Row, title: str) -> None:
        pass


def _check_same_run(path: pathlib.Path, config: Row, may_change: tuple[str, ...]) -> None:
    if path.exists() and not path.is_dir():
        raise InputError(f"workdir {path} is a file; expected a directory")
    file = path / "config.json"
    if not file.exists():
        if path.exists() and (path / "checkpoints").exists():
            raise InputError(f"workdir {path} holds checkpoints of something else; choose another")
        return
    before = json.loads(file.read_text())
    now = json.loads(json.dumps(config))  # tuples become lists, as in the file
    changed = [k for k in now if k not in may_change and before.get(k) != now[k]]
    if changed:
        key = changed[0]
        raise InputError(
            f"workdir {path} holds a run with {key.replace('_', ' ')} {before.get(key)!r}, not "
            f"{now[key]!r}; choose another --workdir or remove it"
        )


def draw_learning_curve(rows: list[Row], path: pathlib.Path, title: str) -> None:
    """Loss and, of classes, top-1 accuracy of training and test data over the epochs, as a PNG."""
    import matplotlib.figure  # half a second that only the end of a run needs

    curves = {"loss": ("loss", 1), "top1": ("top-1 accuracy (%)", 100)}
    names = [name for name in curves if f"test_{name}" in rows[0]]
    figure = matplotlib.figure.Figure(figsize=(4.5 * len(names), 3.6), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False).flat, names, strict=True):
        label, scale = curves[name]
        for split, marker in (("train", "."), ("test", "o")):
            values = [scale * row[f"{split}_{name}"] for row in rows]
            axes.plot(epochs, values, marker=marker, markersize=4, label=split)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.set_yscale("log" if name == "loss" else "linear")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
