"""Options of a measurement, and timing in turns."""

import dataclasses
import functools
import importlib.util
import pathlib
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import jax

Row = dict[str, Any]
Contender = Callable[[], float]  # does some work, waits for the result, returns the seconds
Other = Literal["torchvision", "torch.compile", "plain", "float32"]
Mode = Literal[
    "infer", "train", "compile", "profile", "traffic", "growth", "dense", "data", "start", "learn",
    "accuracy",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    arch: tuple[str, ...] = ()
    """Names of networks; by default all, or resnet50 in modes that take long."""
    mode: Mode = "train"
    """What to measure; see the modes above."""
    all: bool = False
    """Measure inference and training of the networks, and print one Markdown table. Unless
    --batch-size is given, batches have as many images as need 12 G multiply-adds forward (4 to
    64)."""
    vs: tuple[Other, ...] = ("torchvision",)
    """Peers to measure in turns with our networks (infer, train)."""
    batch_size: int | None = None
    """Images in a step, or crops computed at once (dense). By default 8; 64 for data; the recipe's
    for accuracy."""
    image_size: int | None = None
    """Height and width in pixels; by default the network's native size, or twice it (dense)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of the computation; torch uses autocast."""
    remat: bool = False
    """Recompute activations in the backward pass to save memory."""
    devices: int = 1
    """Devices that share the batch (train); on a CPU they are virtual."""
    rounds: int = 7
    """Timed repetitions (infer, train, profile, data, dense)."""
    steps: int = 100
    """Training steps (learn), or batches of a round (data)."""
    learning_rate: float | None = None
    """Learning rate (learn, accuracy); by default the recipe's, in proportion to the batch."""
    epochs: int | None = None
    """Epochs of one cycle of the learning rate (accuracy); by default the network's own recipe."""
    target: float = 0.94
    """Accuracy to reach, a share of the test images (accuracy)."""
    dataset: str = "digits"
    """Data set to read or to learn, named as in train.py."""
    data_dir: str | None = None
    """Directory of prepared TensorFlow Datasets; by default TFDS_DATA_DIR."""
    out: pathlib.Path | None = None
    """File for the rows with versions and hardware, .csv or .json. Plots (growth) have its name
    with the suffix .png."""


def alternate(contenders: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each contender's calls.

    Contenders take turns, so that all of them meet the same state of the machine. Two calls of each
    come first and do not count.
    """
    for run in [*contenders.values()] * 2:
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            seconds[name].append(run())
    return seconds


TURN = 0.3  # seconds


def timed(work: Callable[[], object], wait: Callable[[], object] | None = None) -> Contender:
    """Return a contender that measures the seconds of a call of `work`.

    For short calls it is the median of as many calls as fill a turn (`TURN`). The first call does
    not count: it wakes the cores, which takes a while on a virtual machine.

    With `wait`, `work` queues its work on a device, as training does. Then it is the mean of as
    many calls as fill a turn, including the wait for the last one.
    """

    def queued(wait: Callable[[], object]) -> float:
        start, count = time.perf_counter(), 0
        while count < 3 or time.perf_counter() - start < TURN:
            work()
            count += 1
        wait()
        return (time.perf_counter() - start) / count

    if wait is not None:
        return functools.partial(queued, wait)

    def once() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def run() -> float:
        first, others = once(), []
        while first + sum(others) < TURN:
            others.append(once())
        return statistics.median(others or [first])

    return run


def spread(seconds: list[float]) -> float:
    """Return the width of the middle half of the values, divided by their median."""
    lower, median, upper = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return (upper - lower) / median


def installed(*packages: str) -> bool:
    """Return whether packages are installed, without importing them.

    A broken package fails where it is used.
    """
    return all(importlib.util.find_spec(package) for package in packages)


def peak_gigabytes() -> float:
    """Return the peak memory in GiB: of the device if it has its own, otherwise of this process."""
    of_device = jax.local_devices()[0].memory_stats()
    if of_device is not None:
        return of_device["peak_bytes_in_use"] / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
