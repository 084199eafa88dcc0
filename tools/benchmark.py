"""Measure the speed of networks on this machine, in turns with torchvision's.

    python tools/benchmark.py --arch resnet50 vgg19 --mode train --vs torchvision plain
    python tools/benchmark.py --all --out all.csv
    python tools/benchmark.py --mode data --dataset imagenet2012
    python tools/benchmark.py --arch resnet50 --mode growth --out growth.csv
    python tools/benchmark.py --arch airbench94 --mode accuracy --dataset cifar10

Modes:
    infer, train: median seconds of a batch (a jitted `model.apply`, or a whole training step), ours
        and others' in turns, and their ratio; the share of this machine's matrix products that we
        reach; the seconds of the first step with compilation; the peak memory of our process.
    compile: seconds to trace and to compile one training step, and the peak memory. The loss must
        be finite.
    profile: seconds of a training step and the shares of its operations, and how long this machine
        takes to copy the step's bytes and to compute its multiply-adds.
    traffic: gigabytes that a training and an evaluation step read and write on an H200, how long
        its memory and its matrix products take for them, and the shares of the operations. It needs
        jax's CUDA plugin, but no GPU.
    data: images per second from a data set to batches in memory, and those of torchvision's
        DataLoader and of libjpeg-turbo's decoding alone.
    start: seconds from the command train.py to its first output and its first step, with an empty
        and a filled cache of compiled programs, and the seconds of its imports.
    growth: seconds and memory of a training step for several batch sizes (with and without remat),
        resolutions, depths (ResNet-18 to 152) and numbers of devices, with plots.
    learn: training loss over the first and the last tenth of the first steps on a data set, seconds
        of the first step with compilation, and the peak memory.
    accuracy: seconds of training until the accuracy on the test images is --target.
    dense: seconds and multiply-adds of the map of a picture of twice the network's size, and of the
        same predictions from separate crops. A network that pads sees zeros around each crop, but
        the picture in the map, so its numbers differ.

Peers (--vs):
    torchvision: the better of torch's eager network with channels_last and with the default layout.
        Where torchvision lacks a network, it is the one that the parity tests use.
    torch.compile: the compiled ones too.
    plain: our network with XLA's own operations instead of our kernels.
    float32: our network in float32, beside --dtype bfloat16.

Every measurement runs in a process of its own.
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import concurrent.futures.process
import csv
import dataclasses
import functools
import multiprocessing
import os
import pathlib
import platform
from collections.abc import Callable, Sequence
from typing import Any

# torch's process needs a part of the GPU's memory too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import tyro
from benchmarking.common import Options, Row
from benchmarking.dense import measure_dense
from benchmarking.growth import draw, series
from benchmarking.learning import measure_accuracy, measure_learning
from benchmarking.profiling import measure_profile
from benchmarking.reading import measure_reading
from benchmarking.speed import measure_compilation, measure_speed, suitable_batch_size
from benchmarking.starting import measure_start
from benchmarking.traffic import measure_traffic

from flaxnets import create_model, list_models
from flaxnets.errors import InputError
from flaxnets.runs.files import json_text
from flaxnets.runs.progress import track
from flaxnets.terminal import (
    arguments,
    cache_directory,
    one_sentence_errors,
    quiet,
    reuse_memory,
    versions,
)

MODES: dict[str, Callable[[str, Options], Row]] = {
    "infer": measure_speed,
    "train": measure_speed,
    "compile": measure_compilation,
    "profile": measure_profile,
    "traffic": measure_traffic,
    "data": measure_reading,
    "start": measure_start,
    "learn": measure_learning,
    "accuracy": measure_accuracy,
    "dense": measure_dense,
}


VECTORS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # as /proc/cpuinfo names instructions


def measure(options: Options, arch: str) -> Row:
    """Return the row of one network."""
    quiet()
    reuse_memory()
    if options.mode == "profile":  # the kernels of CUDA graphs have no names
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_command_buffer="
    if options.devices > 1:
        jax.config.update("jax_num_cpu_devices", options.devices)
    if options.all and options.batch_size is None:
        options = dataclasses.replace(options, batch_size=suitable_batch_size(arch))
    return {"arch": arch, "mode": options.mode, **MODES[options.mode](arch, options)}


def plan(options: Options) -> list[tuple[Row, str, Options]]:
    """Return what is measured: the labels of each row, the name of the network, its options."""
    one = (
        options.mode in ("profile", "traffic", "data", "start", "growth", "accuracy")
        and not options.all
    )
    names = options.arch or (("resnet50",) if one else tuple(list_models()))
    for name in names:
        create_model(name)  # raises InputError for a wrong name before anything is measured
    if options.all:
        modes = [dataclasses.replace(options, mode=mode) for mode in ("infer", "train")]
        return [({}, name, of_mode) for name in names for of_mode in modes]
    if options.mode == "growth":
        return [work for name in names for work in series(name, options)]
    return [({}, name, options) for name in names]


def hardware() -> dict[str, Any]:
    """Return the device, the processor, its vector instructions and cores, and versions."""
    cpu = pathlib.Path("/proc/cpuinfo")  # of Linux
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    facts = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    return {
        "device": jax.devices()[0].device_kind,
        "processor": facts.get("model name", platform.processor()),
        # Processors of one name differ in these, and so in speed.
        "vectors": [name for name in VECTORS if name in facts.get("flags", "").split()],
        "cores": multiprocessing.cpu_count(),
        "versions": versions(("torch", "torchvision", "simplejpeg")),
    }


def write(path: pathlib.Path, rows: list[Row], options: Options) -> None:
    """Write the rows with hardware and versions, as .json (with the options) or .csv."""
    if path.suffix == ".json":
        values = {k: str(v) for k, v in dataclasses.asdict(options).items() if v is not None}
        content = {"options": values, "hardware": hardware(), "rows": rows}
        path.write_text(json_text(content, indent=2) + "\n")
        return
    fields = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        file.write(f"# {json_text(hardware())}\n")
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)


def show(row: Row) -> None:
    """Print a row in one line."""

    def text(value: Any) -> str:
        if isinstance(value, dict):  # the largest shares
            return "; ".join(f"{name} {share:.0%}" for name, share in list(value.items())[:12])
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    cells = [
        f"{key.replace('_', ' ')} {text(value)}"
        for key, value in row.items()
        if key not in ("arch", "mode")
    ]
    print(f"{row['arch']:24} {'  '.join(cells)}", flush=True)


def markdown(rows: Sequence[Row]) -> str:
    """Return the table of --all: our seconds, and our time divided by torch's as the ratio."""
    lines = [
        "| network | peer | pixels | batch | inference, s | ratio | training step, s | ratio | "
        "first step, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for infer, train in zip(rows[::2], rows[1::2], strict=False):
        times = (
            f"{row['seconds']:.3g} | {row.get('ratio', float('nan')):.2f}" for row in (infer, train)
        )
        lines.append(
            f"| {infer['arch']} | {infer.get('torch_network', '')} | {infer['image_size']} | "
            f"{infer['batch_size']} | {' | '.join(times)} | {train['first_seconds']:.0f} |"
        )
    return "\n".join(lines)


def main(options: Options) -> None:
    work = plan(options)
    if options.out is not None and options.out.suffix not in (".csv", ".json"):
        raise InputError(f"cannot write {options.out}; expected a name that ends in .csv or .json")
    counts = ("batch_size", "rounds", "steps", "devices", "epochs")
    for name in counts:
        if (value := getattr(options, name)) is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}; expected at least 1")
    if options.devices > 1 and (options.mode != "train" or options.all):
        raise InputError(
            f"--devices is {options.devices}; expected 1, because only --mode train uses several"
        )
    if not 0 < options.target <= 1:
        raise InputError(
            f"--target is {options.target}; expected a share of the images above 0, such as 0.94"
        )
    rows: list[Row] = []
    for label, name, of_row in track(work, "measuring"):
        # A process of its own has its own peak memory and no compiled programs of another row.
        with concurrent.futures.ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn")
        ) as pool:
            try:
                row = pool.submit(functools.partial(measure, of_row), name).result()
            except concurrent.futures.process.BrokenProcessPool as error:
                raise InputError(
                    f"the process that measured {name} was killed, or that of torch; give it more "
                    f"memory or a smaller --batch-size, or see native.log in {cache_directory()}"
                ) from error
        rows.append(label | row)
        show(rows[-1])
        if options.out is not None:
            write(options.out, rows, options)
    if options.all:
        print(markdown(rows))
    if options.mode == "growth" and options.out is not None:
        draw(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    with one_sentence_errors():
        main(tyro.cli(Options, args=arguments(), description=__doc__))
