"""Measure how fast a network is on a GPU, beside torch.compile; its variants; its operations."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np

from benchmarking import speed
from benchmarking.common import Contender, Options, Row, alternate, peak_gigabytes, spread, timed
from benchmarking.profiling import TRACED, large_copy, nanoseconds_of_steps
from benchmarking.speed import Ours, matrix_product, multiply_adds, side_of_product
from benchmarking.traffic import traffic
from flaxnets.kernels.platform import Kernel, plain

ROUNDS = 5
BATCH = {"vgg19": 128}  # images of networks for which 256 do not fit into memory with torch's


def _options(arch: str, tiny: bool) -> Options:
    """Return the options of a measurement in bfloat16."""
    return Options(batch_size=2 if tiny else BATCH.get(arch, 256), dtype="bfloat16")


def speeds(arch: str, tiny: bool) -> Iterator[Row]:
    """Measure training step and inference in bfloat16, beside torch.compile's, in turns.

    ResNet-50 is also measured without our kernels ("plain"). If memory is not enough, the batch is
    halved until it is.
    """
    count = _options(arch, tiny).batch_size or 0
    while True:
        try:
            yield from _speeds(arch, count, tiny)
            return
        except Exception as error:  # jax's and torch's, in this process and in the other
            if "memory" not in str(error).lower() and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            count //= 2
            jax.clear_caches()
            yield {"out_of_memory": f"{type(error).__name__}; next with {count} images"}


def _speeds(arch: str, count: int, tiny: bool) -> Iterator[Row]:
    """Do what `speeds` does, with `count` images."""
    options = dataclasses.replace(_options(arch, tiny), batch_size=count)
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        start = time.perf_counter()
        ours = Ours(arch, options)
        theirs = {
            mode: other.submit(prepare_torch, arch, ours.images, mode, tiny)
            for mode in ("train", "infer")
        }  # they compile at the same time
        copied, copy = large_copy()
        limits = {"copy": copy, "product": matrix_product("bfloat16")}
        ceiling = {key: statistics.median(v) for key, v in alternate(limits, 3).items()}
        for mode in ("train", "infer"):
            compiled = {"ours": _compile(ours, mode)}
            first = time.perf_counter() - start
            if arch == "resnet50":
                with plain():
                    compiled["plain"] = _compile(Ours(arch, options), mode)
            contenders = {name: contender for name, (contender, _) in compiled.items()}
            contenders["ours"]()
            peak = peak_gigabytes()
            torch_first = theirs[mode].result()
            contenders["torch.compile"] = functools.partial(run_torch, other, mode)
            seconds = alternate(contenders, 2 if tiny else ROUNDS)
            median = {name: statistics.median(values) for name, values in seconds.items()}
            moved = {name: sum(nbytes for *_, nbytes in traffic(c.as_text()))
                     for name, (_, c) in compiled.items()}  # fmt: skip
            passes = 3 if mode == "train" else 1
            products = passes * multiply_adds(arch, ours.input_shape) * count
            bound = {
                "bytes": moved["ours"] * ceiling["copy"] / copied,
                "products": products * ceiling["product"] / side_of_product() ** 3,
            }
            yield {
                "mode": mode,
                "batch_size": count,
                "image_size": ours.input_shape[0],
                **{f"{name}_images_per_second": count / value for name, value in median.items()},
                **{f"{name}_spread": spread(values) for name, values in seconds.items()},
                "speed_over_torch": median["torch.compile"] / median["ours"],
                "share_of_byte_bound": bound["bytes"] / median["ours"],
                "share_of_product_bound": bound["products"] / median["ours"],
                "gigabytes_moved": moved["ours"] / 1e9,
                "peak_gigabytes": peak,
                "torch_peak_gigabytes": other.submit(torch_peak).result(),
                "gigabytes_per_second": copied / ceiling["copy"] / 1e9,
                "teraflops": 2 * side_of_product() ** 3 / ceiling["product"] / 1e12,
                "first_seconds": first,
                "torch_first_seconds": torch_first,
            }


def _compile(ours: Ours, mode: str) -> tuple[Contender, Any]:
    """Return a contender that queues calls and waits for the last one, and its program."""
    if mode == "train":
        ours.train_step = compiled = ours.train_step.lower(ours.state, ours.batch).compile()
        return timed(ours.queue_train, lambda: jax.block_until_ready(ours.state)), compiled
    variables = ours.state.variables
    compiled = ours.forward.lower(variables, ours.batch["image"]).compile()
    latest = []

    def queue() -> None:
        latest[:] = [compiled(variables, ours.batch["image"])]

    return timed(queue, lambda: jax.block_until_ready(latest)), compiled


_theirs: dict[str, Contender] = {}  # filled in torch's process


def prepare_torch(arch: str, images: np.ndarray, mode: Any, tiny: bool) -> float:
    """Prepare torch.compile's network, and return the seconds until its second step is done."""
    import torch

    if torch.cuda.is_available():  # the rest of the memory is for our network
        torch.cuda.set_per_process_memory_fraction(0.45)
    start = time.perf_counter()
    options = Options(mode=mode, batch_size=len(images), dtype="bfloat16", vs=("torch.compile",))
    network = speed.torch_network(arch)
    assert network is not None
    with (
        mock.patch.object(torch, "compile", lambda model: model)
        if tiny
        else contextlib.nullcontext()
    ):
        contenders = speed.torchs(network[1], images, options, torch.cuda.is_available())
    _theirs[mode] = contenders["compiled channels_last"]
    _theirs[mode]()
    return time.perf_counter() - start


def run_torch(other: concurrent.futures.ProcessPoolExecutor, mode: str) -> float:
    """Return the seconds of a step of torch's network, measured in the process that has it."""
    return other.submit(_run, mode).result()


def _run(mode: str) -> float:
    return _theirs[mode]()


def torch_peak() -> float | None:
    """Return the peak memory of torch on the GPU in GiB; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return peak


Without = dict[str, Kernel | None]  # variants by the kernel that is left out
BATCH_NORMS: dict[str, Without] = {
    "infer": {"ours": None, "unfolded": "folding", "xla_stem": "convolution"},
    "train": {"ours": None, "unfolded": "folding", "xla_norms": "normalization",
              "xla_pools": "pooling", "xla_relu": "activation", "xla_stem": "convolution"},
}  # fmt: skip
LAYER_NORMS: dict[str, Without] = {
    "train": {"ours": None, "xla_norms": "normalization", "xla_attention": "attention",
              "xla_convolutions": "convolution"},
}  # fmt: skip


def variants(arch: str, tiny: bool) -> Iterator[Row]:
    """Measure the gain of folding and of our kernels: each is left out alone.

    A row has the seconds of a step and the gigabytes that it moves, beside those of all kernels.
    """
    options = _options(arch, tiny)
    has_layer_norms = arch.startswith(("convnext", "maxvit", "swin", "vit"))
    for mode, left_out in (LAYER_NORMS if has_layer_norms else BATCH_NORMS).items():
        compiled = {}
        for name, kernel in left_out.items():
            with plain(kernel) if kernel else contextlib.nullcontext():
                compiled[name] = _compile(Ours(arch, options), mode)
        contenders = {name: contender for name, (contender, _) in compiled.items()}
        seconds = alternate(contenders, 2 if tiny else ROUNDS)
        moved = {name: sum(nbytes for *_, nbytes in traffic(c.as_text()))
                 for name, (_, c) in compiled.items()}  # fmt: skip
        for name, values in seconds.items():
            median = statistics.median(values)
            yield {
                "mode": mode,
                "variant": name,
                "batch_size": options.batch_size,
                "seconds": median,
                "spread": spread(values),
                "over_ours": median / statistics.median(seconds["ours"]),
                "gigabytes_moved": moved[name] / 1e9,
                "bytes_over_ours": moved[name] / moved["ours"],
            }


def profile(arch: str, tiny: bool) -> Iterator[Row]:
    """Measure the ten longest operations of a training step: their share, bytes and rates."""
    ours = Ours(arch, _options(arch, tiny))
    ours.train_step = compiled = ours.train_step.lower(ours.state, ours.batch).compile()
    for _ in range(3):
        ours.train()
    nanoseconds = nanoseconds_of_steps(ours)
    kinds = {name: (kind, size) for name, kind, size in traffic(compiled.as_text())}
    total = nanoseconds.total()
    yield {"busy_seconds": total / TRACED / 1e9, "operations": len(nanoseconds)}
    by_kind: collections.Counter[str] = collections.Counter()
    for name, duration in nanoseconds.items():
        by_kind[kinds.get(name, ("unnamed", 0))[0]] += duration
    yield {"shares": {kind: value / total for kind, value in by_kind.most_common(15)}}
    for name, duration in nanoseconds.most_common(10):
        kind, size = kinds.get(name, ("unnamed", 0))
        seconds = duration / TRACED / 1e9
        yield {
            "operation": name,
            "kind": kind,
            "milliseconds": seconds * 1e3,
            "share": duration / total,
            "gigabytes": size / 1e9,
            "gigabytes_per_second": size / seconds / 1e9,
        }
