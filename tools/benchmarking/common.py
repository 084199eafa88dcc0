"""The options of a measurement, and timing in turns."""

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
Contender = Callable[[], float]  # does its work, waits for the result, and returns the seconds
Other = Literal["torchvision", "torch.compile", "plain"]
Mode = Literal[
    "infer", "train", "compile", "profile", "traffic", "growth", "dense", "data", "start", "learn",
    "accuracy",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    arch: tuple[str, ...] = ()
    """Names of networks; all networks of the library unless given."""
    mode: Mode = "train"
    """What to measure."""
    all: bool = False
    """Inference and training of the networks in one Markdown table, with batches of as many images
    as take 12 G multiply-adds forward (from 4 to 64) unless their size is given."""
    vs: tuple[Other, ...] = ("torchvision",)
    """Peers to measure beside our networks (infer, train)."""
    batch_size: int | None = None
    """Images in a step; crops at once (dense). 8 unless given, 64 of data, the recipe's of
    accuracy."""
    image_size: int | None = None
    """Height and width in pixels; the network's native size, or twice it (dense), unless given."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; torch uses autocast."""
    remat: bool = False
    """Recompute activations in the backward pass."""
    devices: int = 1
    """Devices that share the batch (train); on a CPU they are virtual."""
    rounds: int = 7
    """Timed repetitions (infer, train, profile, data, dense)."""
    steps: int = 100
    """Training steps (learn); batches of a round (data)."""
    learning_rate: float | None = None
    """Learning rate (learn, accuracy); the recipe's, in proportion to the batch, unless given."""
    epochs: int | None = None
    """Of accuracy: one cycle of the learning rate in so many; the network's own recipe unless
    given."""
    target: float = 0.94
    """Share of the test images to reach (accuracy)."""
    dataset: str = "digits"
    """Data to read or to learn, named as in train.py."""
    data_dir: str | None = None
    """Directory of prepared TensorFlow Datasets; TFDS_DATA_DIR unless given."""
    out: pathlib.Path | None = None
    """File for the rows with versions and hardware, .csv or .json; plots (growth) have its name
    with .png."""


def alternate(contenders: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each call, in turns after two unmeasured ones, so that all meet the
    same machine.
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
    """Return the seconds of a call. For short calls it is the median of as many as fill a turn,
    after one that wakes the cores, which takes a while on a virtual machine.

    With `wait`, `work` queues its work on a device, as training does: the result is the mean of as
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
    """Return the spread of the middle half, as a share of the median."""
    lower, median, upper = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return (upper - lower) / median


def installed(*packages: str) -> bool:
    """Return whether modules are installed, without importing them, so that a broken one fails
    where it is used.
    """
    return all(importlib.util.find_spec(package) for package in packages)


def peak_gigabytes() -> float:
    """Return the peak memory of this process; of the device, if that has its own memory."""
    of_device = jax.local_devices()[0].memory_stats()
    if of_device is not None:
        return of_device["peak_bytes_in_use"] / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
