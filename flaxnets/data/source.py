"""What the library needs to know about a data set, and how it gives raw examples.

A source knows its classes, its splits "train" and "test", and which augmentations keep its labels
true. A raw example is a picture, uint8 (height, width, channels) or the bytes of a file, or a row
of measured features: a float32 image of one pixel, with a channel for each feature.
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

# Mean and standard deviation of pixels in 0..1, a channel.
IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's
STATISTICS = {
    "digits": ((0.305,), (0.376,)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
# A mirrored digit or letter is another one, or none.
NOT_MIRRORED = ("digits", "mnist", "kmnist", "emnist", "svhn_cropped", "omniglot", "visual_domain")
PASS = 0  # what a generator is for: the order of a pass over the data


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set: `InMemory` has its examples by index, `flaxnets.data.tfds.Records` as a stream.

    An element stands for an example until it is read: an index, or a record.
    """

    name: str
    class_names: tuple[str, ...]  # none where the label is a number (float32)
    sizes: Mapping[str, int]  # examples in "train" and "test"
    channels: int
    image_size: int | None  # pixels of small square images; None for photographs of any size
    flip: bool  # whether a mirror image keeps its label

    @property
    def kind(self) -> Kind:
        return "photographs" if self.image_size is None else "small images"

    @property
    def statistics(self) -> Statistics:
        """Mean and standard deviation of each channel, of pixels in 0..1."""
        if self.name in STATISTICS:
            return STATISTICS[self.name]
        mean, std = IMAGENET_STATISTICS
        return (mean, std) if self.channels == 3 else (mean[:1], std[:1])

    def share(self, split: str, shard: Shard) -> int:
        """Return how many examples of `split` the process `shard` reads in evaluation."""
        index, count = shard
        return len(range(index, self.sizes[split], count))

    def training_order(
        self, batch_size: int, seed: int, start_step: int, shard: Shard, repeats: int
    ) -> Iterator[Any]:
        """Yield this process's elements of each batch, from a given step on, without end. Batches
        run across the ends of passes, and every pass has its own order.
        """
        raise NotImplementedError

    def evaluation_order(self, split: str, shard: Shard, first: int = 0) -> Iterable[Any]:
        """Return this process's elements in their fixed order, without the `first` ones."""
        raise NotImplementedError

    def read(self, split: str, element: Any) -> Raw:
        """Return the raw example of an element. Raises UnreadablePicture if its file is gone."""
        raise NotImplementedError

    def title(self, split: str, element: Any) -> str:
        """Return what an example is called in messages."""
        raise NotImplementedError

    def examples(self, split: str) -> Iterator[Raw]:
        """Yield all raw examples of a split in their fixed order."""
        for element in self.evaluation_order(split, (0, 1)):
            yield self.read(split, element)


@dataclasses.dataclass(frozen=True)
class InMemory(Source):
    """Examples by index: pixels, or the paths of pictures."""

    images: Mapping[str, np.ndarray]  # by split: (N, H, W, C) uint8, or (N,) paths
    labels: Mapping[str, np.ndarray]

    @property
    def has_pixels(self) -> bool:
        """True if memory has the pixels, False if it has the paths of pictures."""
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
    """Measured features: images float32 (N, 1, 1, features)."""

    @property
    def kind(self) -> Kind:
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
    """Yield `count` elements: every element `repeats` times. In each batch the copies are as far
    apart as possible, so that they are on different devices if there are `repeats` of those.

    Repeated augmentation (Berman et al. 2019, Hoffer et al. 2020). torchvision's RASampler deals
    the copies to successive processes, each with one device, and cuts an epoch to a multiple of 256
    examples.
    """
    distinct = itertools.islice(elements, -(-count // repeats))
    some = max(1, batch_size // repeats)
    groups = iter(lambda: list(itertools.islice(distinct, some)), [])
    return itertools.islice((one for few in groups for one in few * repeats), count)


def local_batch_size(batch_size: int, shard: Shard) -> int:
    """Return how many examples of a batch each process has. Raises InputError if that is no whole
    number.
    """
    if batch_size < 1 or batch_size % shard[1]:
        raise InputError(
            f"batch size {batch_size}; expected a positive multiple of the {shard[1]} process(es)"
        )
    return batch_size // shard[1]
