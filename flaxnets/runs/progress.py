"""Show the progress and the speed of a run on the terminal."""

import contextlib
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

Item = TypeVar("Item")
PROFILE_AFTER = 10  # steps before the trace; the first of them compile
TIMED = ("images_per_second", "waiting_for_input")  # metrics that differ between equal runs


class Clock:
    """Measure the images per second of an epoch, and the share of time spent waiting for input.

    The epoch's first step is left out, because it may compile.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._ticks = 0
        self._first = self._last = 0.0
        self._rate = self._waited = self._share = 0.0

    def restart(self) -> None:
        """Begin another epoch."""
        self._ticks = 0

    def tick(self) -> None:
        """Record that a step has ended."""
        self._last = time.perf_counter()
        if self._ticks == 0:
            self._first, self._waited = self._last, 0.0
        self._ticks += 1

    @contextlib.contextmanager
    def waits(self) -> Iterator[None]:
        """Measure the time that the `with` block waits for a batch."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @property
    def images_per_second(self) -> float:
        """Images per second of this epoch, or of the last one until two steps have ended."""
        if self._ticks > 1:
            self._rate = self._batch_size * (self._ticks - 1) / (self._last - self._first)
        return self._rate

    @property
    def waiting(self) -> float:
        """Share of the time spent waiting for input, from 0 to 1."""
        if self._ticks > 1:
            self._share = min(1.0, self._waited / (self._last - self._first))
        return self._share


class profiler:
    """Trace `count` steps with JAX's profiler into `directory`.

    The trace begins after `PROFILE_AFTER` steps of this process. Leaving the `with` block ends it
    early.
    """

    def __init__(self, directory: pathlib.Path, start: int, count: int):
        self._directory = directory
        self._steps = range(start + PROFILE_AFTER, start + PROFILE_AFTER + count)
        self._running = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop()

    def __call__(self, step: int) -> None:
        """Start or end the trace. Call this before each step, with its number from 0."""
        if step in self._steps and not self._running:
            jax.profiler.start_trace(str(self._directory))
            self._running = True
        elif step not in self._steps:
            self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
        self._running = False


def described(values: Mapping[str, Any], prefix: str = "") -> str:
    """Return the loss and, for classes, the top-1 accuracy as text."""
    text = f"loss {values[prefix + 'loss']:.4f}"
    top1 = values.get(prefix + "top1")
    return text if top1 is None else f"{text}  top-1 {top1:6.2%}"


class Bars(Progress):
    """Progress bars that drop columns on a narrow terminal, because a cut number would be wrong.

    `columns` are in the order of display, `droppable` in the order in which they are dropped.
    """

    def __init__(
        self,
        columns: list[ProgressColumn],
        droppable: list[ProgressColumn],
        **options: Any,
    ):
        self._droppable = droppable
        super().__init__(*columns, **options)

    def make_tasks_table(self, tasks: Iterable[Any]) -> Table:
        """Return the bars with as many columns as fit."""
        tasks = list(tasks)
        if not tasks:
            return super().make_tasks_table(tasks)
        all_columns = self.columns
        kept, droppable = list(all_columns), list(self._droppable)
        unlimited = self.console.options.update(max_width=1000)
        while True:
            self.columns = tuple(kept)
            table = super().make_tasks_table(tasks)
            self.columns = all_columns
            width = Measurement.get(self.console, unlimited, table).maximum
            if width <= self.console.width or not droppable:
                return table
            kept.remove(droppable.pop(0))


def column(text: str) -> TextColumn:
    """Return a column of plain text, in which names of classes and folders are not markup."""
    return TextColumn(text, markup=False)


def track(
    items: Iterable[Item], title: str, total: int | None = None, *, transient: bool = False
) -> Iterator[Item]:
    """Yield `items` with a progress bar, if standard error is a terminal."""
    name, bar, rest = column("{task.description}"), BarColumn(20), TimeRemainingColumn()
    columns = [name, bar, column("{task.percentage:>3.0f}%"), rest]
    hidden, console = not sys.stderr.isatty(), Console(stderr=True)
    bars = Bars(columns, [bar, rest, name], console=console, disable=hidden, transient=transient)
    with bars:
        yield from bars.track(items, total, description=title)


class terminal_progress:
    """A progress bar with loss, accuracy, images/s and time left, and a line for each epoch.

    If the output is not a terminal, only the lines are printed.
    """

    def __init__(self, title: str, total: int, completed: int):
        name, bar, rest = column("{task.description}"), BarColumn(20), TimeRemainingColumn()
        loss, rate = column("{task.fields[loss]}"), column("{task.fields[rate]}")
        columns = [name, bar, column("{task.completed}/{task.total}"), loss, rate, rest]
        self._bar = Bars(columns, [bar, rest, name, rate, loss])
        self._is_terminal = self._bar.console.is_terminal
        self._task = self._bar.add_task(title, total=total, completed=completed, loss="", rate="")

    def __enter__(self):
        if self._is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop() if self._is_terminal else None

    def __call__(self, step: int, sums: dict[str, float], images_per_second: float) -> None:
        if self._is_terminal and sums["steps"]:
            means = {name: summed / sums["steps"] for name, summed in sums.items()}
            rate = f"{images_per_second:.0f} images/s"
            self._bar.update(self._task, completed=step, loss=described(means), rate=rate)

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """Print the line of an epoch."""
        average = f"  average {described(row, 'ema_')}" if "ema_loss" in row else ""
        self._bar.console.print(
            f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"
            f"  train {described(row, 'train_')}  test {described(row, 'test_')}"
            f"{average}"
            f"  {row['images_per_second']:.0f} images/s",
            highlight=False,
            soft_wrap=not self._is_terminal,  # a terminal breaks lines between words
        )
