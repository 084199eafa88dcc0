"""Measure images per second from a data set to uint8 batches, cropped at random and mirrored."""

import collections
import concurrent.futures
import functools
import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from benchmarking.common import Options, Row, installed, spread
from flaxnets import create_model, data
from flaxnets.data.threads import CORES
from flaxnets.recipes import Preprocessing
from flaxnets.training.on_device import cropped

ROOM = 4 * 10**9  # bytes for photographs that are decoded once
Rate = Callable[[], float]  # measures images per second


def measure_reading(arch: str, options: Options) -> Row:
    """Return the images per second of several readers, measured in turns.

    The readers are ours; a torchvision DataLoader with one worker per core; for photographs,
    decoding alone by libjpeg-turbo with one thread per core; and ours after an epoch that left
    decoded photographs in memory ("decoded once", if a round is at least an epoch).

    Photographs are cropped at random areas and aspect ratios and resized to the network's input.
    Images in memory are padded by 4 pixels and cropped (ours on the device, as in the training
    step). A reader starts again in each round, and its first batch does not count. A reader that is
    not installed has no figures.
    """
    source = data.open_source(options.dataset, options.data_dir)
    side = source.image_size or options.image_size or create_model(arch).input_shape[0]
    flip = "random" if source.flip else "none"
    values = Preprocessing(side, resize=side, crop="random_resized", flip=flip, pca_std=0.0)
    size, steps = options.batch_size or 64, options.steps
    stream = itertools.islice(source.examples("train"), size * (steps + 1))
    examples = [(raw, int(label)) for raw, label in stream]
    plan = data.training_plan(values, source)
    readers: dict[str, Rate] = {"ours": functools.partial(_ours, source, plan, values, size, steps)}
    if installed("torch", "torchvision"):
        readers["torchvision"] = functools.partial(_torchs, examples, values, size, steps)
    if source.kind == "photographs":
        readers["libjpeg_turbo"] = functools.partial(_decoding, examples, size * steps)
        if source.sizes["train"] <= size * steps:
            readers["decoded_once"] = functools.partial(_decoded_once, source, plan, size, steps)
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(1 + options.rounds):
        for name, rate in readers.items():
            rates[name].append(rate())
    median = {name: statistics.median(values[1:]) for name, values in rates.items()}
    return {
        "dataset": options.dataset,
        "batch_size": size,
        "image_size": side,
        "images_per_second": median["ours"],
        "spread": spread(rates["ours"][1:]),
        **{f"{name}_per_second": median[name] for name in median if name != "ours"},
        **{f"ratio_to_{name}": median["ours"] / median[name] for name in median if name != "ours"},
    }


def _rate(batches: Iterator[Any], size: int, steps: int) -> float:
    """Return the images per second of `steps` batches of `size`, after one that does not count."""
    next(batches)
    start = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return size * steps / (time.perf_counter() - start)


def _ours(
    source: data.Source, plan: data.Plan, values: Preprocessing, size: int, steps: int
) -> float:
    on_device = jax.jit(lambda batch: cropped(batch, values))
    batches = data.train_batches(source, size, plan)
    if source.kind != "photographs":
        batches = (jax.block_until_ready(on_device(batch)) for batch in batches)
    return _rate(batches, size, steps)


def _decoded_once(source: data.Source, plan: data.Plan, size: int, steps: int) -> float:
    batches = data.train_batches(source, size, plan, decoded=data.Decoded(ROOM))
    epoch = itertools.islice(batches, -(-source.sizes["train"] // size))
    collections.deque(epoch, maxlen=0)
    return _rate(batches, size, steps)


class Examples:
    """A data set for torch's DataLoader, whose workers import torchvision themselves."""

    def __init__(self, examples: list[tuple[Any, int]], values: Preprocessing, count: int):
        self.examples, self.values, self.count = examples, values, count

    def __len__(self) -> int:
        return self.count

    @functools.cached_property
    def transform(self) -> Callable[[Any], Any]:
        from torchvision_import import torchvision

        transforms, side = torchvision.transforms, self.values.image_size
        photographs = isinstance(self.examples[0][0], bytes)
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(side)
                if photographs
                else transforms.RandomCrop(side, self.values.pad),
                transforms.RandomHorizontalFlip(0.5 if self.values.flip == "random" else 0.0),
                transforms.PILToTensor(),
            ]
        )

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        raw, label = self.examples[index % len(self.examples)]
        if isinstance(raw, bytes):
            image = Image.open(io.BytesIO(raw)).convert("RGB")
        else:
            image = Image.fromarray(raw.squeeze())
        return self.transform(image), label


def _torchs(examples: list[tuple[Any, int]], values: Preprocessing, size: int, steps: int) -> float:
    from torch.utils.data import DataLoader

    loader = DataLoader(
        Examples(examples, values, size * (steps + 1)),  # pyright: ignore[reportArgumentType]
        batch_size=size,
        num_workers=CORES,
        multiprocessing_context="spawn",  # a fork of JAX's threads may hang
    )
    return _rate(iter(loader), size, steps)


def _decoding(examples: list[tuple[Any, int]], count: int) -> float:
    import simplejpeg

    pictures = [examples[i % len(examples)][0] for i in range(count)]
    with concurrent.futures.ThreadPoolExecutor(CORES) as pool:
        list(pool.map(simplejpeg.decode_jpeg, pictures[:64]))
        start = time.perf_counter()
        collections.deque(pool.map(simplejpeg.decode_jpeg, pictures), maxlen=0)  # keeps none
        return count / (time.perf_counter() - start)
