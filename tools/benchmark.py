"""Measure networks on this machine, beside torchvision's in the same run.

    python tools/benchmark.py --arch resnet50 vgg19 --mode train --vs torchvision plain
    python tools/benchmark.py --all --out all.csv
    python tools/benchmark.py --mode data --dataset imagenet2012
    python tools/benchmark.py --arch resnet50 --mode growth --out growth.csv
    python tools/benchmark.py --arch airbench94 --mode accuracy --dataset cifar10

Modes:
    infer, train: median seconds of a batch (a jitted `model.apply`, the whole training step), ours
        and others' in turns, ours divided by theirs, the share of this machine's matrix products
        that ours reaches, seconds of the very first step, compilation included, and the peak memory
        of the process before others begin.
    compile: seconds to trace and to compile one training step at the network's native size, whose
        result must be finite, and the peak memory of the process.
    profile: seconds of a training step, of the bytes that it moves and of its multiply-adds as fast
        as this machine copies and multiplies, and the shares of its operations.
    traffic: gigabytes that a training and an evaluation step read and write on an H200, for which
        they are compiled without one (jax's CUDA plugin is needed), the seconds that its memory
        takes for them and its matrix products for the multiply-adds, and the shares of their
        operations.
    data: images a second from a data set to batches in memory, beside torchvision's DataLoader and
        libjpeg-turbo's decoding alone.
    start: seconds from the command train.py to its first output and its first step, without and
        with the cache of compiled programs, and of its imports.
    growth: a training step against batch size, resolution, depth (ResNet-18 to 152) and number of
        devices, its memory with and without remat, and plots of them.
    learn: training loss over the first and the last tenth of the first steps on a data set; seconds
        of the very first, compilation included, and the peak memory of the process.
    accuracy: seconds of training until so many of the test images are right.
    dense: the map of a larger picture, twice the network's size, beside the same predictions from
        separate crops: seconds and multiply-adds of both, and their ratios. The crops have zeros
        for padding where the map has the picture, so the numbers of padded networks differ.

Others (--vs): torchvision's network, the better of eager with channels_last and with torch's
default layout, or with "torch.compile" of the compiled ones too; "plain", ours with XLA's own
operations instead of our kernels (`flaxnets.kernels.platform.plain`). Where torchvision lacks a
network, the one is taken that the parity tests compare ours with.

Every measurement has a process of its own.
"""

if __name__ == "__main__":  # first, for the other imports take seconds
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

# Torch's process needs a part of the GPU's memory too, and so does each of ours in turn.
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


def measure(options: Options, arch: str) -> Row:
    quiet()
    reuse_memory()
    if options.mode == "profile":  # kernels of CUDA graphs have no names
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_command_buffer="
    if options.devices > 1:
        jax.config.update("jax_num_cpu_devices", options.devices)
    if options.all and options.batch_size is None:
        options = dataclasses.replace(options, batch_size=suitable_batch_size(arch))
    return {"arch": arch, "mode": options.mode, **MODES[options.mode](arch, options)}


def plan(options: Options) -> list[tuple[Row, str, Options]]:
    """Yield what is measured: the labels of its row, the network, and the measurement."""
    one = (
        options.mode in ("profile", "traffic", "data", "start", "growth", "accuracy")
        and not options.all
    )
    names = options.arch or (("resnet50",) if one else tuple(list_models()))
    for name in names:
        create_model(name)  # a wrong name is answered before anything is measured
    if options.all:
        modes = [dataclasses.replace(options, mode=mode) for mode in ("infer", "train")]
        return [({}, name, asked) for name in names for asked in modes]
    if options.mode == "growth":
        return [work for name in names for work in series(name, options)]
    return [({}, name, options) for name in names]


def hardware() -> dict[str, Any]:
    cpu = pathlib.Path("/proc/cpuinfo")
    names = [line for line in cpu.read_text().splitlines() if line.startswith("model name")]
    return {
        "device": jax.devices()[0].device_kind,
        "processor": names[0].split(": ")[1] if names else platform.processor(),
        "cores": len(names) or multiprocessing.cpu_count(),
        "versions": versions(("torch", "torchvision", "simplejpeg")),
    }


def write(path: pathlib.Path, rows: list[Row], options: Options) -> None:
    if path.suffix == ".json":
        asked = {k: str(v) for k, v in dataclasses.asdict(options).items() if v is not None}
        found = {"options": asked, "hardware": hardware(), "rows": rows}
        path.write_text(json_text(found, indent=2) + "\n")
        return
    fields = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        file.write(f"# {json_text(hardware())}\n")
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)


def show(row: Row) -> None:
    def text(value: Any) -> str:
        if isinstance(value, dict):  # shares, of which the largest are read
            return "; ".join(f"{name} {share:.0%}" for name, share in list(value.items())[:12])
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    cells = [
        f"{key.replace('_', ' ')} {text(value)}"
        for key, value in row.items()
        if key not in ("arch", "mode")
    ]
    print(f"{row['arch']:24} {'  '.join(cells)}", flush=True)


def markdown(rows: Sequence[Row]) -> str:
    """Return the table of --all: seconds are ours, ratios are our time divided by torch's."""
    lines = [
        "| network | beside | pixels | batch | inference, s | ratio | training step, s | ratio | "
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
            raise InputError(f"{name.replace('_', ' ')} is {value}; expected at least 1")
    if options.devices > 1 and (options.mode != "train" or options.all):
        raise InputError(f"{options.devices} devices; expected 1, but for --mode train")
    if not 0 < options.target <= 1:
        raise InputError(f"target {options.target}; expected a share of the images, such as 0.94")
    rows: list[Row] = []
    for label, name, asked in track(work, "measuring"):
        # Each in its own process, for its own peak memory, and without another's compiled programs.
        with concurrent.futures.ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn")
        ) as pool:
            try:
                row = pool.submit(functools.partial(measure, asked), name).result()
            except concurrent.futures.process.BrokenProcessPool as error:
                raise InputError(
                    f"the process that measured {name} was killed, or torch's was: of too little "
                    f"memory, or see native.log in {cache_directory()}"
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
