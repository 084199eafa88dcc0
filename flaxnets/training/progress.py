"""How far a run is and how fast it goes, on the terminal."""

import contextlib
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Row = dict[str, Any]
PROFILE_AFTER = 10  # steps: the first ones compile
TIMED = ("images_per_second", "waiting_for_input")  # the only values that differ from run to run


class Clock:
    """Images per second of the current epoch, without the first step (it compiles), and the share
    of that time in which the loop waited for its input.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._ticks = 0
        self._first = self._last = 0.0
        self._rate = self._waited = self._share = 0.0

    def restart(self) -> None:
        self._ticks = 0

    def tick(self) -> None:
        self._last = time.perf_counter()
        if self._ticks == 0:
            self._first, self._waited = self._last, 0.0
        self._ticks += 1

    @contextlib.contextmanager
    def waits(self) -> Iterator[None]:
        """Around the reading of a batch."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @property
    def images_per_second(self) -> float:
        if self._ticks > 1:
            self._rate = self._batch_size * (self._ticks - 1) / (self._last - self._first)
        return self._rate

    @property
    def waiting(self) -> float:
        """From 0 to 1."""
        if self._ticks > 1:
            self._share = min(1.0, self._waited / (self._last - self._first))
        return self._share


class profiler:
    """Traces `count` steps with JAX's profiler into `directory`, behind the first `PROFILE_AFTER`
    of the process; `with` ends a trace that is cut short.
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
        """Before each step, numbered from zero."""
        if step in self._steps and not self._running:
            jax.profiler.start_trace(str(self._directory))
            self._running = True
        elif step not in self._steps:
            self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
        self._running = False


def described(values: dict[str, Any], prefix: str = "") -> str:
    """The loss and, where there are classes, the accuracy."""
    text = f"loss {values[prefix + 'loss']:.4f}"
    top1 = values.get(prefix + "top1")
    return text if top1 is None else f"{text}  top-1 {top1:6.2%}"


class terminal_progress:
    """A bar with loss, accuracy, images/s and time left; where the output is no terminal, a line an
    epoch.
    """

    def __init__(self, title: str, total: int, completed: int):
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        self._is_terminal = self._bar.console.is_terminal
        self._task = self._bar.add_task(title, total=total, completed=completed, text="")

    def __enter__(self):
        if self._is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop() if self._is_terminal else None

    def __call__(self, step: int, sums: dict[str, float], images_per_second: float) -> None:
        if self._is_terminal and sums["steps"]:
            means = {name: summed / sums["steps"] for name, summed in sums.items()}
            text = f"{described(means)}  {images_per_second:.0f} images/s"
            self._bar.update(self._task, completed=step, text=text)

    def epoch(self, row: Row, epochs: int) -> None:
        average = f"  average {described(row, 'ema_')}" if "ema_loss" in row else ""
        self._bar.console.print(
            f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"
            f"  train {described(row, 'train_')}  test {described(row, 'test_')}"
            f"{average}"
            f"  {row['images_per_second']:.0f} images/s",
            highlight=False,
            soft_wrap=True,
        )
