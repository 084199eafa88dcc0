"""From a source to NumPy batches: `{"image": uint8 (N, H, W, C), "label": int32 (N,)}`; rows of
measured features and numbers to predict are float32.

Position decides everything: example `i` of the training stream of all processes is augmented with a
seed made of (seed, i), crops that are left to the training step are drawn with (seed, step), and
each pass over the data is shuffled with (seed, pass). So the same seed gives the same batches
whatever the number of threads, and a stream can start at any step. Where the examples have indices
(`InMemory`), the batch of all processes is the same for any number of them: each knows the whole
order and takes its part of every batch. Records of TensorFlow Datasets are divided by file instead,
each process in its own order, and read round and round.

What is in memory is taken from there by NumPy, here: small images for training once all of them
have the size that a network is fed, those for evaluation resized batch by batch. Whatever has to be
read, decoded or recoloured is `flaxnets.data.streams`', which imports TensorFlow.
"""

import concurrent.futures
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, TypeGuard

import numpy as np
from PIL import Image

from flaxnets.data.decoded import Batch, Decoded
from flaxnets.data.sources import InMemory, Shard, Source
from flaxnets.errors import InputError, InputWarning
from flaxnets.recipes import Preprocessing

Keep = Callable[[np.ndarray], Callable[[np.ndarray], Any]]

MAX_RESIZED = 2**30  # bytes of training images; more are resized anew in every epoch
TOGETHER = 32  # images that a thread resizes at once; a batch of evaluation has several such parts


class BadImages:
    """Pictures of a folder that cannot be read. Each is warned of once, and handed to `found`; one
    more than `maximum` raises InputError.
    """

    def __init__(
        self,
        maximum: int = 0,
        paths: Iterable[str] = (),
        found: Callable[[str], None] | None = None,
    ):
        self.maximum = maximum
        self.paths = list(paths)
        self._found = found

    def add(self, path: str) -> None:
        if path in self.paths:
            return
        if len(self.paths) >= self.maximum:
            others = f", after {len(self.paths)} others" if self.paths else ""
            raise InputError(
                f"{path} is not a readable picture{others}; remove or replace it, or allow more "
                f"with --max-bad-images"
            )
        self.paths.append(path)
        if self._found is not None:
            self._found(path)
        warnings.warn(f"{path} is not a readable picture; skipped", InputWarning, stacklevel=2)


def train_batches(
    source: Source,
    batch_size: int,
    how: Preprocessing,
    *,
    seed: int = 0,
    start_step: int = 0,
    shard: Shard = (0, 1),
    bad: BadImages | None = None,
    keep: Keep | None = None,
    decoded: Decoded | None = None,
) -> Iterator[Batch]:
    """Augmented batches of this process without end, from step `start_step` on.

    `batch_size` counts examples over all processes; batches run across the ends of epochs, so no
    example is left out. Process `i` has the `i`-th part of each batch. Where images repeat in an
    epoch (`how.repeats`; Berman et al. 2019, Hoffer et al. 2020), as many batches show only so many
    of the examples, another draw an epoch. The place of a picture that cannot be read is taken by
    the next one in the order of the files, augmented as it would have been.

    Small images that are only resized, padded, cropped and mirrored come resized from memory, and
    the training step crops them (`flaxnets.training.augmentation.cropped`): the batch then has
    `"offset"`, int32 (N, [y, x]) in 0..2 * pad, and `"mirrored"`, bool (N,). `keep(images)` says
    how they are taken from those of all examples, by their indices (`DataParallel.keep`).

    Photographs are decoded once as far as `decoded` has room for them, the others in every epoch;
    the batches are the same.

    Raises InputError if `batch_size` cannot be divided, or more pictures than `bad` allows (none)
    cannot be read.
    """
    local = _local_batch_size(batch_size, shard)
    as_fed = training_as_fed(source, how)
    if as_fed is not None:
        places = slice(shard[0] * local, (shard[0] + 1) * local)
        return _whole_images(as_fed, batch_size, how, seed, start_step, places, keep)
    bad, decoded = bad or BadImages(), decoded or Decoded()
    return _streams().train_batches(source, batch_size, how, seed, start_step, shard, bad, decoded)


def eval_batches(
    source: Source,
    batch_size: int,
    how: Preprocessing,
    *,
    split: str = "test",
    start_batch: int = 0,
    shard: Shard = (0, 1),
    bad: BadImages | None = None,
) -> Iterator[Batch]:
    """One pass over `split`, from batch `start_batch` on: every example once, in a fixed order.

    The last batch is padded with zeros; `"mask"` (N,) is 1.0 for examples and 0.0 for padding and
    for pictures that cannot be read. All processes yield the same number of batches. Raises as
    `train_batches`.
    """
    local = _local_batch_size(batch_size, shard)
    largest = max(source.share(split, (index, shard[1])) for index in range(shard[1]))
    numbers = range(start_batch, -(-largest // local))
    if _is_in_memory(source):
        batches = _one_pass(source, how.image_size, local, numbers, split, shard)
    else:
        bad = bad or BadImages()
        batches = _streams().eval_batches(source, local, numbers, how, split, shard, bad)
    for batch in batches:
        missing = local - len(batch["label"])
        yield {
            key: np.pad(value, [(0, missing)] + [(0, 0)] * (value.ndim - 1))
            for key, value in batch.items()
        }


def _streams() -> ModuleType:
    try:
        from flaxnets.data import streams
    except ModuleNotFoundError as error:
        raise InputError(
            f"images that are read or changed in every epoch need {error.name}, which is not "
            f"installed"
        ) from error
    return streams


def training_as_fed(source: Source, how: Preprocessing) -> InMemory | None:
    """The source with its training images as the network is fed them, where training takes them
    from memory and crops and mirrors them at most.
    """
    if not _is_in_memory(source) or how.repeats > 1 or is_recoloured(source, how):
        return None
    size = how.train_size or how.image_size
    if source.kind == "rows" or source.image_size == size:
        return source
    if source.sizes["train"] * size**2 * source.channels > MAX_RESIZED:
        return None
    images = {**source.images, "train": _resized(source.images["train"], size)}
    return dataclasses.replace(source, images=images)


def is_recoloured(source: Source, how: Preprocessing) -> bool:
    """Whether training changes the colours of images."""
    if source.kind == "rows":
        return False
    return how.policy != "none" or bool(how.pca_std and source.channels == 3)


def _is_in_memory(source: Source) -> TypeGuard[InMemory]:
    """Whether memory has its examples, not the paths of pictures."""
    return isinstance(source, InMemory) and source.kind != "photographs"


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 (N, size, size, C), with the bits of torchvision's Resize of pictures: bilinear, and
    antialiased where they shrink. In threads.
    """
    resized = np.empty((len(images), size, size, images.shape[-1]), np.uint8)

    def resize(first: int) -> None:
        some = slice(first, first + TOGETHER)
        planes = images[some].transpose(0, 3, 1, 2)
        resized[some] = _turned(_turned(planes, size), size).transpose(0, 2, 3, 1)

    with concurrent.futures.ThreadPoolExecutor() as threads:
        list(threads.map(resize, range(0, len(images), TOGETHER)))  # raises what a thread did
    return resized


def _turned(planes: np.ndarray, size: int) -> np.ndarray:
    """(..., H, W) to (..., size, H): rows resized, for columns. They are Pillow's as one picture,
    because a call for each takes longer than the resizing.
    """
    picture = Image.fromarray(planes.reshape(-1, planes.shape[-1]))
    rows = np.asarray(picture.resize((size, picture.height), Image.Resampling.BILINEAR))
    return rows.reshape(*planes.shape[:-1], size).swapaxes(-1, -2)


def _whole_images(
    source: InMemory,
    batch_size: int,
    how: Preprocessing,
    seed: int,
    start_step: int,
    places: slice,
    keep: Keep | None,
) -> Iterator[Batch]:
    images, labels = source.images["train"], source.labels["train"]
    take = images.__getitem__ if keep is None else keep(images)
    steps = _shuffled(len(labels), batch_size, seed, start_step)
    for step, indices in enumerate(steps, start_step):
        own = indices[places]
        crops = _crops(source, how, batch_size, (seed, step))
        crops = {key: values[places] for key, values in crops.items()}
        yield {"image": take(own), "label": labels[own], **crops}


def _one_pass(
    source: InMemory, size: int, local: int, numbers: range, split: str, shard: Shard
) -> Iterator[Batch]:
    """The batches of these numbers, of which the last may be short, or empty."""
    own = np.arange(source.sizes[split])[shard[0] :: shard[1]]
    for number in numbers:
        few = own[number * local :][:local]
        images, labels = source.images[split][few], source.labels[split][few]
        if source.kind != "rows" and source.image_size != size:
            images = _resized(images, size)
        yield {"image": images, "label": labels, "mask": np.ones(len(few), np.float32)}


def _shuffled(count: int, batch_size: int, seed: int, start_step: int) -> Iterator[np.ndarray]:
    """The indices of one batch after another; one shuffled pass over `count` examples follows
    another.
    """
    number, offset = divmod(start_step * batch_size, count)
    ahead = _random(PASS, seed, number).permutation(count)[offset:]
    while True:
        while len(ahead) < batch_size:
            number += 1
            ahead = np.concatenate([ahead, _random(PASS, seed, number).permutation(count)])
        yield ahead[:batch_size]
        ahead = ahead[batch_size:]


def _crops(source: Source, how: Preprocessing, batch_size: int, seed: tuple[int, int]) -> Batch:
    """Of a batch of all processes: where each padded image is cropped, and whether mirrored."""
    flip = how.flip and source.flip
    if source.kind == "rows" or not (how.pad or flip):
        return {}
    random = _random(CROPS, *seed)
    return {
        "offset": random.integers(0, 2 * how.pad, (batch_size, 2), np.int32, endpoint=True),
        "mirrored": random.random(batch_size) < (0.5 if flip else 0.0),
    }


PASS, CROPS = 0, 1  # what a generator is for


def _random(*seed: int) -> np.random.Generator:
    return np.random.default_rng([number % 2**64 for number in seed])


def _local_batch_size(batch_size: int, shard: Shard) -> int:
    if batch_size < 1 or batch_size % shard[1]:
        raise InputError(
            f"batch size {batch_size}; expected a positive multiple of the {shard[1]} process(es)"
        )
    return batch_size // shard[1]
