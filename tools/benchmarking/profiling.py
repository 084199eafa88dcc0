"""Measure which operations a training step spends its time on, and the machine's bounds."""

import collections
import pathlib
import re
import statistics
import tempfile
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarking.common import Contender, Options, Row, alternate, peak_gigabytes, spread, timed
from benchmarking.speed import Ours, matrix_product, multiply_adds, side_of_product
from flaxnets.kernels.platform import platform

TRACED = 5  # steps
# `%name = ... metadata={op_name="jit(train_step)/transpose(jvp(VGG))/features.0/reduce_sum"}`
OPERATION = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = .*metadata=\{op_name="([^"]*)"', re.MULTILINE)
LINES = ("Stream", "XLA Ops")  # of a GPU, of a TPU
CONTAINERS = ("call", "while", "conditional")  # their time is that of the operations inside


def measure_profile(arch: str, options: Options) -> Row:
    """Return the seconds of a step, two bounds of them, and the shares of its operations.

    One bound is the time to read and write the bytes of its operations at the speed of a large
    copy; the other, that for its multiply-adds at the speed of a large matrix product. Shares are
    those of the time that the device was busy. An operation is XLA's: its name is that of its last
    primitive (`reduce_sum`) and the pass that it belongs to.
    """
    ours = Ours(arch, options)
    ours.train_step = compiled = ours.train_step.lower(ours.state, ours.batch).compile()
    copied, copy = large_copy()
    contenders = {
        "ours": timed(ours.train), "copy": copy, "product": matrix_product(options.dtype),
    }  # fmt: skip
    seconds = alternate(contenders, options.rounds)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    moved = compiled.cost_analysis()["bytes accessed"]
    count = len(ours.images)
    products = 3 * multiply_adds(arch, ours.input_shape) * count
    shares, busy = operations(ours, compiled.as_text())
    return {
        "batch_size": count,
        "image_size": ours.input_shape[0],
        "seconds": median["ours"],
        "spread": spread(seconds["ours"]),
        "busy_seconds": busy,
        "gigabytes_moved": moved / 1e9,
        "gigabytes_per_second": copied / median["copy"] / 1e9,
        "seconds_of_memory": moved * median["copy"] / copied,
        "seconds_of_products": products * median["product"] / side_of_product() ** 3,
        "peak_gigabytes": peak_gigabytes(),
        "operations": shares,
    }


def large_copy() -> tuple[int, Contender]:
    """Return the bytes that a copy reads and writes, and the copy, which is larger than caches."""
    x = jnp.zeros(2**26 if platform() == "cpu" else 2**29)
    add = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes, timed(lambda: jax.block_until_ready(add(x)))


def operations(ours: Ours, program: str) -> tuple[dict[str, float], float]:
    """Return each operation's share of the busy time, the largest first, and that time per step.

    `program` is the text of the compiled program. On a CPU, the seconds of all threads are added.
    """
    kinds = {name: kind(path) for name, path in OPERATION.findall(program)}
    nanoseconds: collections.Counter[str] = collections.Counter()
    for name, duration in nanoseconds_of_steps(ours).items():
        nanoseconds[kinds.get(name, "unnamed")] += duration
    total = nanoseconds.total()
    shares = {name: value / total for name, value in nanoseconds.most_common()}
    return shares, total / TRACED / 1e9


def nanoseconds_of_steps(ours: Ours) -> collections.Counter[str]:
    """Return the nanoseconds of XLA's operations, by their names, in `TRACED` training steps."""
    nanoseconds: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            for _ in range(TRACED):
                ours.train()
        for name, duration in traced(pathlib.Path(directory)):
            if not name.startswith(CONTAINERS):
                nanoseconds[name] += duration
    return nanoseconds


def kind(path: str) -> str:
    """Return the primitive and the pass of an operation.

    For "jit(train_step)/transpose(jvp(VGG))/features.0/reduce_sum" it is "reduce_sum, backward".
    """
    passes = {"transpose(": "backward", "jvp(": "forward"}
    name = next((name for part, name in passes.items() if part in path), "update")
    return f"{path.rsplit('/', 1)[-1]}, {name}"


def traced(directory: pathlib.Path) -> Iterator[tuple[str, int]]:
    """Yield the name and nanoseconds of each of XLA's operations in a trace of the profiler."""
    (path,) = directory.rglob("*.xplane.pb")
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            # Other lines of a device's plane summarise the same time.
            if plane.name.startswith("/device:") and not line.name.startswith(LINES):
                continue
            for event in line.events:
                name = next((value for key, value in event.stats if key == "hlo_op"), None)
                if name is not None:
                    yield str(name), round(event.duration_ns)
