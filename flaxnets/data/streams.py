"""Batches of images that are read, decoded or recoloured, and of small ones that are too many to be
kept resized. tf.data does most of it; random windows of photographs are decoded and resized by
threads of Python behind it (`flaxnets.data.windows`).

What `flaxnets.data.pipeline` promises holds here. The place of a picture that cannot be read is
filled by a rule of its own position alone, too.
"""

# TensorFlow's annotations deny what its functions accept (tensors for integers, and back).
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import collections
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from flaxnets.data import windows
from flaxnets.data.decoded import Batch, Decoded
from flaxnets.data.images import eval_image, recolour, train_image, window_image
from flaxnets.data.pipeline import BadImages, is_recoloured
from flaxnets.data.sources import InMemory, Shard, Source
from flaxnets.data.tensorflow import tf
from flaxnets.errors import InputError
from flaxnets.recipes import Preprocessing

PREFETCH = 2  # batches ready ahead of the training step
UNREADABLE = (  # what is raised for a broken picture, or one that is gone
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.FailedPreconditionError,
    tf.errors.UnknownError,
)


def train_batches(
    source: Source,
    batch_size: int,
    how: Preprocessing,
    seed: int,
    start_step: int,
    shard: Shard,
    bad: BadImages,
    decoded: Decoded,
) -> Iterator[Batch]:
    """As `flaxnets.data.pipeline.train_batches`, every image changed before it is handed over."""
    local = batch_size // shard[1]
    whole_order = isinstance(source, InMemory)
    read_by, a_step = ((0, 1), batch_size) if whole_order else (shard, local)
    share = source.share("train", read_by)
    if share < 1:
        raise InputError(f"process {shard[0]} of {shard[1]} has no training examples")
    first = shard[0] * local  # place of this process in the batch
    read = source.reader("train")

    def epoch(number):
        key = tf.stack([tf.constant(seed, tf.int64), number])
        order = source.order("train", read_by, key)
        return order if how.repeats == 1 else _repeated(order, share, a_step, how.repeats)

    def order_from(step):
        first_epoch, offset = divmod(step * a_step, share)
        order = tf.data.Dataset.range(first_epoch, 2**31).flat_map(epoch).skip(offset)
        if whole_order and shard[1] > 1:
            order = order.batch(batch_size).map(lambda step: step[first:][:local]).unbatch()
        return order

    def prepare(count, element):
        position = count // local * batch_size + first + count % local
        base = tf.random.fold_in(tf.stack([tf.constant(seed, tf.int64), 0]), position)
        example = read(element)
        return example | {"image": train_image(source, how, example["image"], base)}

    size = how.train_size or how.image_size
    are_photographs = source.kind == "photographs"
    recoloured = tf.function(functools.partial(recolour, source, how))

    def window(step, place, encoded):
        base = seed, step * batch_size + first + place
        image = window_image(source, how, encoded, base, decoded)
        if is_recoloured(source, how):
            image = recoloured(image, tf.constant(base, tf.int64)).numpy()
        return image

    def batches(order, step):
        apply = functools.partial(
            tf.data.Dataset.map, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        if are_photographs:  # all of a batch are read at once
            encoded = _numpy(apply(order.batch(local, drop_remainder=True), read))
            return _in_threads(encoded, step, (size, size, source.channels), window)
        images = apply(order.enumerate(step * local), prepare)
        return _numpy(images.batch(local, drop_remainder=True).prefetch(PREFETCH))

    def prepare_at(step, place, element):
        if are_photographs:
            return window(step, place, read(element)["image"].numpy())
        return prepare(tf.constant(step * local + place, tf.int64), element)

    def batches_from(step):
        return batches(order_from(step), step)

    def mended(step, readable):
        size, chosen = source.sizes["train"], []
        for place, index in enumerate(order_from(step).take(local).as_numpy_iterator()):
            prepare_here = functools.partial(prepare_at, step, place)
            candidates = itertools.chain(range(index, size), range(index))
            chosen.append(next((i for i in candidates if readable(i, prepare_here)), None))
            if chosen[-1] is None:
                raise InputError(f"no training picture of {source.name} is readable")
        return next(batches(_indices(chosen), step))

    return _mending(batches_from, mended, start_step, source, "train", bad)


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
    local: int,
    numbers: range,
    how: Preprocessing,
    split: str,
    shard: Shard,
    bad: BadImages,
) -> Iterator[Batch]:
    """As `flaxnets.data.pipeline.eval_batches`, of photographs: the batches of these numbers, of
    `local` examples, of which the last may be short, or empty.
    """
    order, read = source.order(split, shard, None), source.reader(split)

    def prepare(element):
        example = read(element)
        image = eval_image(source, how, example["image"])
        return {"image": image, "label": example["label"], "mask": tf.constant(1.0)}

    def batches(elements):
        images = elements.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return images.batch(local).prefetch(PREFETCH)

    def batches_from(number):
        return _numpy(batches(order.skip(number * local)))

    def none():
        return {
            key: np.empty((0, *spec.shape[1:]), spec.dtype.as_numpy_dtype)
            for key, spec in batches(order).element_spec.items()
        }

    def mended(number, readable):
        indices = list(order.skip(number * local).take(local).as_numpy_iterator())
        good = np.array([readable(index, prepare) for index in indices])
        batch = next(_numpy(batches(_indices(np.array(indices)[good]))), none())
        for key, values in batch.items():
            batch[key] = np.zeros((len(good), *values.shape[1:]), values.dtype)
            batch[key][good] = values
        return batch

    found = _mending(batches_from, mended, numbers.start, source, split, bad)
    for _ in numbers:
        yield next(found, None) or none()


def _numpy(batches: tf.data.Dataset) -> Iterator[Any]:
    options = tf.data.Options()
    options.deterministic = True
    yield from batches.with_options(options).as_numpy_iterator()


def _in_threads(
    batches: Iterator[Batch],
    step: int,
    shape: Sequence[int],
    change: Callable[[int, int, Any], np.ndarray],
) -> Iterator[Batch]:
    """The batches, of which the first is that of `step`, with `change(step, place, image)`, of the
    given shape, for their images: by threads, ahead as far as tf.data.
    """
    count = windows.CORES

    def begin(step: int, batch: Batch) -> tuple[Batch, Iterator[None]]:
        encoded = batch["image"]
        images = np.empty((len(encoded), *shape), np.uint8)

        def part(first: int) -> None:  # one task for many images: to hand one over takes a while
            for place in range(first, len(images), count):
                images[place] = change(step, place, encoded[place])

        return batch | {"image": images}, windows.threads().map(part, range(count))

    def complete(batch: Batch, parts: Iterator[None]) -> Batch:
        for _ in parts:  # raises what a thread did
            continue
        return batch

    ahead = collections.deque()
    for number, batch in enumerate(batches, step):
        ahead.append(begin(number, batch))
        if len(ahead) > PREFETCH:
            yield complete(*ahead.popleft())
    for begun in ahead:
        yield complete(*begun)


def _mending(
    batches_from: Callable[[int], Iterator[Batch]],
    mended: Callable[[int, Callable[..., bool]], Batch],
    number: int,
    source: Source,
    split: str,
    bad: BadImages,
) -> Iterator[Batch]:
    """`batches_from(number)`, but a batch with a picture that cannot be read is what
    `mended(number, readable)` makes of it, and the others go on behind it.

    TensorFlow's decoding error names no file, so each example of the batch is tried; this depends
    on the batch alone, so that a run which starts later makes the same of it.
    """

    def readable(index: int, prepare: Callable) -> bool:
        assert isinstance(source, InMemory)
        try:
            prepare(tf.constant(index, tf.int32))
        except UNREADABLE:
            bad.add(str(source.images[split][index]))
            return False
        return True

    stream = batches_from(number)
    while True:
        try:
            batch = next(stream, None)
        except UNREADABLE as error:
            if source.kind != "photographs":
                raise
            if not isinstance(source, InMemory):
                raise InputError(
                    f"a picture of {source.name} cannot be decoded (batch {number}); prepare the "
                    f"data set again"
                ) from error
            batch = mended(number, readable)
            stream = batches_from(number + 1)
        if batch is None:
            return
        yield batch
        number += 1


def _indices(values: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(tf.constant(values, tf.int32))
