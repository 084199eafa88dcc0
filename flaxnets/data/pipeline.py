"""From a source to NumPy batches: `{"image": uint8 (N, H, W, C), "label": int32 (N,)}`; rows of
measured features and numbers to predict are float32.

Position decides everything: example `i` of a training stream is augmented with a seed made of
(seed, process, i), and each pass over the data is shuffled with (seed, pass). So the same seed
gives the same batches whatever the number of threads, and a stream can start at any step. The
place of a picture that cannot be read is filled by a rule of its own position alone, too.
"""

# TensorFlow's annotations deny what its functions accept (tensors for integers, and back).
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from flaxnets.data import augmentation
from flaxnets.data.sources import InMemory, Shard, Source
from flaxnets.data.tensorflow import tf
from flaxnets.errors import InputError, InputWarning
from flaxnets.recipes import Preprocessing

Batch = dict[str, np.ndarray]
PREFETCH = 2  # batches ready ahead of the training step
UNREADABLE = (  # what TensorFlow raises for a broken picture, or one that is gone
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.FailedPreconditionError,
    tf.errors.UnknownError,
)


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


def train_image(source: Source, how: Preprocessing, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """The uint8 image that the network is fed in training; `image` is raw, as in the source."""
    if source.kind == "rows":
        return image
    seeds = [tf.random.fold_in(seed, operation) for operation in range(3)]
    if source.image_size is None:
        image = augmentation.random_crop(
            image, how.resize, how.image_size, seeds[0], source.channels
        )
    else:
        image = augmentation.to_uint8(augmentation.resize(image, how.image_size))
        image = augmentation.pad_and_crop(image, how.pad, seeds[0])
    if how.flip and source.flip:
        image = augmentation.random_flip(image, seeds[1])
    if how.pca_std and source.channels == 3:
        image = augmentation.pca_colour(image, seeds[2], how.pca_std)
    return augmentation.to_uint8(image)


def eval_image(source: Source, how: Preprocessing, image: tf.Tensor) -> tf.Tensor:
    """The uint8 image that the network is fed in evaluation."""
    if source.kind == "rows":
        return image
    if image.dtype == tf.string:
        image = augmentation.decode(image, source.channels)
    if source.image_size is None:
        return augmentation.to_uint8(augmentation.center_crop(image, how.resize, how.image_size))
    return augmentation.to_uint8(augmentation.resize(image, how.image_size))


def train_batches(
    source: Source,
    batch_size: int,
    how: Preprocessing,
    *,
    seed: int = 0,
    start_step: int = 0,
    shard: Shard = (0, 1),
    bad: BadImages | None = None,
) -> Iterator[Batch]:
    """Augmented batches of this process without end, from step `start_step` on.

    `batch_size` counts examples over all processes; batches run across the ends of epochs, so no
    example is left out. The place of a picture that cannot be read is taken by the next one in the
    order of the files, augmented as it would have been.

    Raises InputError if `batch_size` cannot be divided, or more pictures than `bad` allows (none)
    cannot be read.
    """
    local = _local_batch_size(batch_size, shard)
    share = source.share("train", shard)
    if share < 1:
        raise InputError(f"process {shard[0]} of {shard[1]} has no training examples")
    size = source.sizes["train"]

    def shuffle_seed(epoch):
        return tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])

    def prepare(index, example):
        base = tf.random.fold_in(tf.stack([tf.constant(seed, tf.int64), shard[0]]), index)
        image = train_image(source, how, example["image"], base)
        return {"image": image, "label": example["label"]}

    def batches(examples, step):
        numbered = examples.enumerate(step * local)
        images = numbered.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return images.batch(local, drop_remainder=True).prefetch(PREFETCH)

    def batches_from(step):
        first_epoch, offset = divmod(step * local, share)

        def epoch(number):
            start = tf.where(number == first_epoch, offset, 0)
            return source.stream("train", shard, shuffle_seed(number), start)

        return batches(tf.data.Dataset.range(first_epoch, 2**31).flat_map(epoch), step)

    def mended(step, readable):
        order = functools.cache(lambda n: _order(source, "train", shard, shuffle_seed(n)))
        chosen = []
        for position in range(step * local, (step + 1) * local):
            prepare_here = functools.partial(prepare, tf.constant(position, tf.int64))
            first = order(position // share)[position % share]
            candidates = itertools.chain(range(first, size), range(first))
            good = (index for index in candidates if readable("train", index, prepare_here))
            chosen.append(next(good, None))
            if chosen[-1] is None:
                raise InputError(f"no training picture of {source.name} is readable")
        return next(_numpy(batches(_of(source, "train", chosen), step)))

    return _mending(batches_from, mended, start_step, source, bad or BadImages())


def eval_batches(
    source: Source,
    batch_size: int,
    how: Preprocessing,
    *,
    split: str = "test",
    shard: Shard = (0, 1),
    bad: BadImages | None = None,
) -> Iterator[Batch]:
    """One pass over `split`: every example once, in a fixed order.

    The last batch is padded with zeros; `"mask"` (N,) is 1.0 for examples and 0.0 for padding and
    for pictures that cannot be read. All processes yield the same number of batches. Raises as
    `train_batches`.
    """
    local = _local_batch_size(batch_size, shard)
    largest = max(source.share(split, (index, shard[1])) for index in range(shard[1]))

    def prepare(example):
        image = eval_image(source, how, example["image"])
        return {"image": image, "label": example["label"], "mask": tf.constant(1.0)}

    def batches(examples):
        images = examples.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return images.batch(local).prefetch(PREFETCH)

    def batches_from(number):
        return batches(source.stream(split, shard, None, number * local))

    def none():
        return {
            key: np.empty((0, *spec.shape[1:]), spec.dtype.as_numpy_dtype)
            for key, spec in batches_from(0).element_spec.items()
        }

    def mended(number, readable):
        indices = _order(source, split, shard, None)[number * local :][:local]
        good = np.array([readable(split, index, prepare) for index in indices])
        batch = next(_numpy(batches(_of(source, split, indices[good]))), none())
        for key, values in batch.items():
            batch[key] = np.zeros((len(good), *values.shape[1:]), values.dtype)
            batch[key][good] = values
        return batch

    found = _mending(batches_from, mended, 0, source, bad or BadImages())
    for _ in range(-(-largest // local)):
        batch = next(found, None) or none()
        missing = local - len(batch["label"])
        yield {
            key: np.pad(value, [(0, missing)] + [(0, 0)] * (value.ndim - 1))
            for key, value in batch.items()
        }


def _local_batch_size(batch_size: int, shard: Shard) -> int:
    if batch_size < 1 or batch_size % shard[1]:
        raise InputError(
            f"batch size {batch_size}; expected a positive multiple of the {shard[1]} process(es)"
        )
    return batch_size // shard[1]


def _numpy(batches: tf.data.Dataset) -> Iterator[Any]:
    options = tf.data.Options()
    options.deterministic = True
    yield from batches.with_options(options).as_numpy_iterator()


def _mending(
    batches_from: Callable[[int], tf.data.Dataset],
    mended: Callable[[int, Callable[..., bool]], Batch],
    number: int,
    source: Source,
    bad: BadImages,
) -> Iterator[Batch]:
    """`batches_from(number)`, but a batch with a picture that cannot be read is what
    `mended(number, readable)` makes of it, and the others go on behind it.

    TensorFlow's decoding error names no file, so each example of the batch is tried; this depends
    on the batch alone, so that a run which starts later makes the same of it.
    """

    def readable(split: str, index: int, prepare: Callable) -> bool:
        assert isinstance(source, InMemory)
        path, label = source.images[split][index], source.labels[split][index]
        try:
            prepare({"image": tf.io.read_file(path), "label": label})
        except UNREADABLE:
            bad.add(str(path))
            return False
        return True

    while True:
        try:
            for batch in _numpy(batches_from(number)):
                yield batch
                number += 1
            return
        except UNREADABLE as error:
            if source.kind != "photographs":
                raise
            if not isinstance(source, InMemory):
                raise InputError(
                    f"a picture of {source.name} cannot be decoded (batch {number}); prepare the "
                    f"data set again"
                ) from error
            batch = mended(number, readable)
        yield batch
        number += 1


def _order(source: Source, split: str, shard: Shard, shuffle_seed: Any) -> np.ndarray:
    assert isinstance(source, InMemory)
    return source.order(split, shard, shuffle_seed).numpy()


def _of(source: Source, split: str, indices: Any) -> tf.data.Dataset:
    assert isinstance(source, InMemory)
    return source.examples(split, tf.constant(indices, tf.int32))
