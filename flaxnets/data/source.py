"""Describe a data set and give its raw examples: a source.

A source knows its classes, its splits "train" and "test", and which augmentations keep its labels
true. A raw example is a picture or a row of measured features. A picture is the bytes of a file or
uint8 (height, width, channels). A row is a float32 image of one pixel with a channel per feature.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from flaxnets.data.pixels.decode import read_file
from flaxnets.errors import InputError
from flaxnets.recipes import Kind, Statistics

Shard = tuple[int, int]  # (this process, number of processes)
Raw = tuple[bytes | np.ndarray, Any]  # an example and its label
Element = TypeVar("Element")

# Mean and standard deviation of each channel, of pixels in 0..1.
IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's
STATISTICS = {
    "digits": ((0.305,), (0.376,)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
# A mirrored digit or letter is a different one, or none at all.
NOT_MIRRORED = ("digits", "mnist", "kmnist", "emnist", "svhn_cropped", "omniglot", "visual_domain")
PASS = 0  # first word of the seed of a generator: the order of a pass over the data


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set. `InMemory` has examples by index, `flaxnets.data.tfds.Records` as a stream.

    An element, an index or a record, stands for an example until the example is read.
    """

    name: str
    class_names: tuple[str, ...]  # empty if labels are numbers (float32)
    sizes: Mapping[str, int]  # examples in "train" and "test"
    channels: int
    image_size: int | None  # pixels of small square images; None for photographs of any size
    flip: bool  # whether a mirror image keeps its label

    @property
    def kind(self) -> Kind:
        """The kind of data, which decides the recipe."""
        return "photographs" if self.image_size is None else "small images"

    @property
    def statistics(self) -> Statistics:
        """Mean and standard deviation of each channel, of pixels in 0..1."""
        if self.name in STATISTICS:
            return STATISTICS[self.name]
        mean, std = IMAGENET_STATISTICS
        return (mean, std) if self.channels == 3 else (mean[:1], std[:1])

    def share(self, split: str, shard: Shard) -> int:
        """Return the number of examples of `split` that process `shard` reads in evaluation."""
        index, count = shard
        return len(range(index, self.sizes[split], count))

    def training_order(
        self, batch_size: int, seed: int, start_step: int, shard: Shard, repeats: int
    ) -> Iterator[Any]:
        """Yield this process's elements of each batch, from step `start_step` on, without end.

        Every pass over the data has its own order. A batch may contain the end of one pass and the
        beginning of the next.
        """
        raise NotImplementedError

    def evaluation_order(self, split: str, shard: Shard, first: int = 0) -> Iterable[Any]:
        """Return this process's elements in their fixed order, from number `first` on."""
        raise NotImplementedError

    def read(self, split: str, element: Any) -> Raw:
        """Return the raw example of an element.

        Raises UnreadablePicture if its file cannot be read.
        """
        raise NotImplementedError

    def title(self, split: str, element: Any) -> str:
        """Return the name of an example in messages."""
        raise NotImplementedError

    def examples(self, split: str) -> Iterator[Raw]:
        """Yield all raw examples of a split in their fixed order."""
        for element in self.evaluation_order(split, (0, 1)):
            yield self.read(split, element)


@dataclasses.dataclass(frozen=True)
class InMemory(Source):
    """A data set whose examples are found by index: pixels, or paths of pictures."""

    images: Mapping[str, np.ndarray]  # by split: (N, H, W, C) uint8, or (N,) paths
    labels: Mapping[str, np.ndarray]

    @property
    def has_pixels(self) -> bool:
        """True if `images` holds pixels, False if it holds paths of pictures."""
        return self.images["train"].dtype.kind != "U"

    def training_order(
        self, batch_size: int, seed: int, start_step: int, shard: Shard, repeats: int
    ) -> Iterator[Any]:
        index, count = shard
        local = batch_size // count
        size = len(self.labels["train"])

        def one_pass(number: int) -> np.ndarray:
            order = np.random.default_rng([PASS, seed % 2**64, number]).permutation(size)
            if repeats == 1:
                return order
            return np.array(list(repeated(order.tolist(), size, batch_size, repeats)))

        number, offset = divmod(start_step * batch_size, size)
        ahead = one_pass(number)[offset:]
        while True:
            while len(ahead) < batch_size:
                number += 1
                ahead = np.concatenate([ahead, one_pass(number)])
            yield ahead[index * local : (index + 1) * local]
            ahead = ahead[batch_size:]

    def evaluation_order(self, split, shard, first=0):
        index, count = shard
        return range(self.sizes[split])[index::count][first:]

    def read(self, split, element):
        image = self.images[split][element]
        raw = image if self.has_pixels else read_file(str(image))
        return raw, self.labels[split][element]

    def title(self, split, element):
        if self.has_pixels:
            return f"{split} image {element} of {self.name}"
        return str(self.images[split][element])


@dataclasses.dataclass(frozen=True)
class Rows(InMemory):
    """Measured features, as images float32 (N, 1, 1, features)."""

    @property
    def kind(self) -> Kind:
        """The kind of data, which decides the recipe."""
        return "rows"

    @property
    def statistics(self):
        """Mean and standard deviation of each feature over the training rows."""
        rows = self.images["train"].astype(np.float64)
        mean, std = rows.mean((0, 1, 2)), rows.std((0, 1, 2))
        return tuple(mean.tolist()), tuple(std.tolist())


def repeated(
    elements: Iterable[Element], count: int, batch_size: int, repeats: int
) -> Iterator[Element]:
    """Yield `count` elements, in which every element occurs `repeats` times: repeated augmentation.

    In each batch the copies of an element are as far apart as possible. With at least `repeats`
    devices they are therefore on different ones.

    From Berman et al. 2019 and Hoffer et al. 2020. torchvision's RASampler deals the copies to
    successive processes, each with one device, and cuts an epoch to a multiple of 256 examples.
    """
    distinct = itertools.islice(elements, -(-count // repeats))
    some = max(1, batch_size // repeats)
    groups = iter(lambda: list(itertools.islice(distinct, some)), [])
    return itertools.islice((one for few in groups for one in few * repeats), count)


def local_batch_size(batch_size: int, shard: Shard) -> int:
    """Return the number of examples of a batch that each process has.

    Raises InputError if the batch does not divide evenly over the processes.
    """
    if batch_size < 1 or batch_size % shard[1]:
        processes = f"{shard[1]} process{'es' if shard[1] > 1 else ''}"
        raise InputError(
            f"batch size {batch_size} does not divide over {processes}; expected a positive "
            f"multiple, such as {-(-max(batch_size, 1) // shard[1]) * shard[1]}"
        )
    return batch_size // shard[1]
