"""Measure on a GPU how soon CIFAR-10 is learned, and how fast the input pipeline is."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import io
import itertools
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator
from random import Random
from typing import Any

import jax
import numpy as np

from benchmarking import learning
from benchmarking.common import Options, Row
from flaxnets import data
from flaxnets.data.pixels.decode import fast_road
from flaxnets.recipes import Preprocessing, recipe_for
from flaxnets.terminal import reuse_memory
from flaxnets.training.on_device import cropped
from flaxnets.training.parallel import DataParallel


def cifar(file: str, tiny: bool) -> Iterator[Row]:
    """Measure the training of airbench94 on CIFAR-10 in bfloat16, for ten seeds.

    It is the measurement of `benchmark.py --mode accuracy`. Without a file of CIFAR-10, the digits
    are learned.
    """
    dataset = f"npz:{decoded(file)}" if file else "digits"
    options = Options(mode="accuracy", dataset=dataset, dtype="bfloat16", target=1.0)
    arch = "airbench94"
    if tiny:
        arch, options = "lenet5", dataclasses.replace(options, batch_size=64, epochs=1)
    for seed in range(1 if tiny else 10):
        with contextlib.redirect_stdout(sys.stderr):  # progress goes to the log
            row = learning.measure_accuracy(arch, options, seed)
        yield row


def decoded(file: str) -> pathlib.Path:
    """Write the data set that `tools/gpu_carry.py` packed as a .npz of pixels; return its path."""
    from PIL import Image

    def pixels(encoded: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))

    arrays = {}
    with np.load(file) as packed, concurrent.futures.ThreadPoolExecutor() as pool:
        for split in ("train", "test"):
            ends = packed[f"ends_{split}"]
            encoded = packed[f"encoded_{split}"].tobytes()
            starts = np.concatenate([[0], ends[:-1]])
            parts = [encoded[a:b] for a, b in zip(starts, ends, strict=True)]
            arrays[f"x_{split}"] = np.stack(list(pool.map(pixels, parts)))
            arrays[f"y_{split}"] = packed[f"labels_{split}"]
    path = pathlib.Path(tempfile.mkdtemp()) / "cifar10.npz"
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    return path


def feed(file: str, tiny: bool) -> Iterator[Row]:
    """Measure the images per second of the input pipeline.

    First JPEGs of 500x375 pixels become windows of 224. Then images of 32 pixels, which stay in the
    device's memory, are cropped there. `file` is not used.
    """
    reuse_memory()  # as the scripts do
    count, steps = (16, 2) if tiny else (256, 24)
    with tempfile.TemporaryDirectory() as directory:
        _write_photographs(pathlib.Path(directory))
        source = data.open_source(f"folder:{directory}")
        preprocessing = Preprocessing(224, resize=224, crop="random_resized", pca_std=0.0)
        plan = data.training_plan(preprocessing, source)
        batches = data.train_batches(source, count, plan)
        rate = _rate(batches, count, steps)
        host, _ = plan.split()
        raw, _ = source.read("train", 0)
        start = time.perf_counter()
        for index in range(100):
            host(raw, Random(index))
        yield {
            "of": "JPEG",
            "cores": os.cpu_count(),
            "images_per_second": rate,
            "milliseconds_alone": (time.perf_counter() - start) * 10,
            "fast_road": fast_road() is not None,
        }
    random = np.random.default_rng(0)
    path = pathlib.Path(tempfile.mkdtemp()) / "cifar10.npz"
    images = random.integers(0, 256, (5000, 32, 32, 3), np.uint8)
    labels = random.integers(0, 10, 5000)
    np.savez(path, x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10])
    source = data.open_source(f"npz:{path}")
    preprocessing = recipe_for("wrn_16_4", source.kind).preprocessing
    on_device = jax.jit(lambda batch: cropped(batch, preprocessing))
    parallel = DataParallel(devices=jax.devices()[:1])
    plan = data.training_plan(preprocessing, source)
    batches = data.train_batches(source, count, plan, keep=parallel.keep)
    ready = (jax.block_until_ready(on_device(parallel.shard(batch))) for batch in batches)
    yield {"of": "memory", "images_per_second": _rate(ready, count, 10 * steps)}


def _rate(batches: Iterator[Any], size: int, steps: int) -> float:
    """Return the images per second of `steps` batches of `size`, after two that do not count."""
    for _ in range(2):
        next(batches)
    start = time.perf_counter()
    collections.deque(itertools.islice(batches, steps), maxlen=0)
    return size * steps / (time.perf_counter() - start)


def _write_photographs(directory: pathlib.Path) -> None:
    """Write crops of scikit-learn's two photographs, with the pixels and bytes of ImageNet's."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    for split, number in (("train", 64), ("val", 1)):
        for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
            folder = directory / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                row, column = random.integers(0, 427 - 375), random.integers(0, 640 - 500)
                window = pixels[row : row + 375, column : column + 500]
                Image.fromarray(window).save(folder / f"{index}.jpg", quality=92)
