"""From a source to NumPy batches: `{"image": uint8 (N, H, W, C), "label": int32 (N,)}`; rows of
measured features and numbers to predict are float32.

Position decides everything: example `i` of the training stream of all processes is augmented with a
seed made of (seed, i), and each pass over the data is shuffled with (seed, pass). So the same seed
gives the same batches whatever the number of threads, and a stream can start at any step. Where the
examples have indices (`InMemory`), the batch of all processes is the same for any number of them:
each knows the whole order and takes its part of every batch. Records of TensorFlow Datasets are
divided by file instead, each process in its own order, and read round and round.
"""

# TensorFlow's annotations deny what its functions accept (tensors for integers, and back).
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from collections.abc import Iterator
from typing import Any

import numpy as np

from flaxnets.data import augmentation, policies
from flaxnets.data.sources import InMemory, Shard, Source
from flaxnets.data.tensorflow import tf
from flaxnets.errors import InputError
from flaxnets.recipes import Preprocessing

Batch = dict[str, np.ndarray]
PREFETCH = 2  # batches ready ahead of the training step


def train_image(source: Source, how: Preprocessing, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """The uint8 image that the network is fed in training; `image` is raw, as in the source."""
    if source.kind == "rows":
        return image
    seeds = [tf.random.fold_in(seed, operation) for operation in range(4)]
    size = how.train_size or how.image_size
    if source.image_size is not None:
        image = augmentation.to_uint8(augmentation.resize(image, size))
        image = augmentation.pad_and_crop(image, how.pad, seeds[0])
    elif how.crop == "random_resized":
        image = augmentation.random_resized_crop(image, size, seeds[0], source.channels)
    else:
        image = augmentation.random_crop(image, how.resize, size, seeds[0], source.channels)
    if how.flip and source.flip:
        image = augmentation.random_flip(image, seeds[1])
    if how.policy != "none":
        image = augmentation.to_uint8(image)
        image = policies.apply(how.policy, image, seeds[3], how.interpolation)
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
) -> Iterator[Batch]:
    """Augmented batches of this process without end, from step `start_step` on.

    `batch_size` counts examples over all processes; batches run across the ends of epochs, so no
    example is left out. Process `i` has the `i`-th part of each batch. Where images repeat in an
    epoch (`how.repeats`; Berman et al. 2019, Hoffer et al. 2020), as many batches show only so many
    of the examples, another draw an epoch.

    Raises InputError if `batch_size` cannot be divided, or a picture cannot be decoded.
    """
    local = _local_batch_size(batch_size, shard)
    whole_order = isinstance(source, InMemory)
    read_by, a_step = ((0, 1), batch_size) if whole_order else (shard, local)
    share = source.share("train", read_by)
    if share < 1:
        raise InputError(f"process {shard[0]} of {shard[1]} has no training examples")
    first_epoch, offset = divmod(start_step * a_step, share)
    first = shard[0] * local  # place of this process in the batch
    read = source.reader("train")

    def epoch(number):
        key = tf.stack([tf.constant(seed, tf.int64), number])
        order = source.order("train", read_by, key)
        return order if how.repeats == 1 else _repeated(order, share, a_step, how.repeats)

    def prepare(count, element):
        position = count // local * batch_size + first + count % local
        base = tf.random.fold_in(tf.stack([tf.constant(seed, tf.int64), 0]), position)
        example = read(element)
        image = train_image(source, how, example["image"], base)
        return {"image": image, "label": example["label"]}

    order = tf.data.Dataset.range(first_epoch, 2**31).flat_map(epoch).skip(offset)
    if whole_order and shard[1] > 1:
        order = order.batch(batch_size).map(lambda step: step[first:][:local]).unbatch()
    examples = order.enumerate(start_step * local)
    images = examples.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    batches = images.batch(local, drop_remainder=True).prefetch(PREFETCH)
    return _naming_bad_pictures(_numpy(batches), source)


def _repeated(
    examples: tf.data.Dataset, count: int, batch_size: int, repeats: int
) -> tf.data.Dataset:
    """`count` examples, of which `repeats` successive copies are one; in each batch the copies are
    as far apart as can be, hence on different devices where there are `repeats` of them.

    torchvision's RASampler deals the copies to successive processes, each with one device, and cuts
    an epoch to a multiple of 256 examples.
    """
    distinct = examples.take(-(-count // repeats)).batch(max(1, batch_size // repeats))
    copies = distinct.flat_map(lambda few: tf.data.Dataset.from_tensor_slices(few).repeat(repeats))
    return copies.take(count)


def eval_batches(
    source: Source,
    batch_size: int,
    how: Preprocessing,
    *,
    split: str = "test",
    shard: Shard = (0, 1),
) -> Iterator[Batch]:
    """One pass over `split`: every example once, in a fixed order.

    The last batch is padded with zeros; `"mask"` (N,) is 1.0 for examples and 0.0 for padding. All
    processes yield the same number of batches. Raises as `train_batches`.
    """
    local = _local_batch_size(batch_size, shard)
    largest = max(source.share(split, (index, shard[1])) for index in range(shard[1]))
    examples = source.stream(split, shard, None).map(
        lambda e: {"image": eval_image(source, how, e["image"]), "label": e["label"]},
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    batches = _naming_bad_pictures(_numpy(examples.batch(local).prefetch(PREFETCH)), source)
    for _ in range(-(-largest // local)):
        batch = next(batches, None)
        if batch is None:
            batch = {
                key: np.empty((0, *spec.shape), spec.dtype.as_numpy_dtype)
                for key, spec in examples.element_spec.items()
            }
        count = len(batch["label"])
        batch = {
            key: np.pad(value, [(0, local - count)] + [(0, 0)] * (value.ndim - 1))
            for key, value in batch.items()
        }
        yield batch | {"mask": (np.arange(local) < count).astype(np.float32)}


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


def _naming_bad_pictures(batches: Iterator[Batch], source: Source) -> Iterator[Batch]:
    """TensorFlow's decoding error names no file: look for it, since the run is over anyway."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except tf.errors.InvalidArgumentError as error:
            bad = next(_undecodable(source), None)
            if bad is None:
                raise
            raise InputError(f"{bad} is not a readable picture; remove or replace it") from error
        yield batch


def _undecodable(source: Source) -> Iterator[str]:
    if not isinstance(source, InMemory) or source.image_size is not None:
        return
    for path in (str(path) for paths in source.images.values() for path in paths):
        try:
            augmentation.decode(tf.io.read_file(path), source.channels)
        except tf.errors.InvalidArgumentError:
            yield path
