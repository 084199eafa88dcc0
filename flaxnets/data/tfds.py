"""Read data sets that TensorFlow Datasets has prepared.

Photographs are read as records from their files. Small images are decoded once and kept in memory.

This is the only module that imports TensorFlow. It does so silently and on the CPU, so that the
GPUs are left to JAX. The import takes seconds and starts threads.
"""

# TensorFlow's annotations reject arguments that its functions accept (tensors for integers).
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import concurrent.futures
import contextlib
import dataclasses
import itertools
import logging
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flaxnets.data.pixels.decode import Decode
from flaxnets.data.source import (
    NOT_MIRRORED,
    InMemory,
    Raw,
    Shard,
    Source,
    local_batch_size,
    repeated,
)
from flaxnets.errors import InputError, one_of

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@contextlib.contextmanager
def _stderr_closed():
    """Silence messages that TensorFlow's C++ code prints at every log level."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


with _stderr_closed():
    import tensorflow as tf
    import tensorflow_datasets as tfds

    tf.config.set_visible_devices([], "GPU")  # otherwise TensorFlow takes all of their memory
    tf.constant(0)

logging.getLogger("tensorflow").setLevel(logging.ERROR)

PARSED_TOGETHER = 128  # records in one call
SMALL = 64  # pixels: images up to this size are kept decoded
SHUFFLE_BYTES = 2**30  # encoded examples held for shuffling


@dataclasses.dataclass(frozen=True)
class Records(Source):
    """Encoded photographs in TFRecord files prepared by TensorFlow Datasets."""

    splits: Mapping[str, Any]  # tfds.core.SplitInfo
    keys: tuple[str, str]  # names of the image and of its label in a record

    def share(self, split, shard):
        index, count = shard
        lengths = self.splits[split].shard_lengths
        if len(lengths) < count:
            return super().share(split, shard)
        return sum(lengths[index::count])

    def training_order(self, batch_size, seed, start_step, shard, repeats):
        local, share = local_batch_size(batch_size, shard), self.share("train", shard)
        number, offset = divmod(start_step * local, share)
        passes = self._passes(shard, seed, number, -(-share // repeats))
        if repeats == 1:
            stream = _parsed(passes.skip(offset), self.keys)
        else:
            distinct = _parsed(passes, self.keys)
            copies = (repeated(distinct, share, local, repeats) for _ in itertools.count())
            stream = itertools.islice(itertools.chain.from_iterable(copies), offset, None)
        return iter(lambda: list(itertools.islice(stream, local)), [])

    def evaluation_order(self, split, shard, first=0):
        return _parsed(self._records(split, shard, None).skip(first), self.keys)

    def read(self, split, element):
        return element

    def title(self, split, element):
        return f"a {split} picture of {self.name}"

    def _passes(self, shard: Shard, seed: int, first: int, records: int) -> tf.data.Dataset:
        """Return one stream of the passes over the training records from number `first` on: the
        first `records` of each pass, whose order depends on (seed, number).

        It is one data set, because to build one for each pass takes 50 ms.
        """
        mixed = seed * 1_000_003 % 2**63

        def one_pass(number: tf.Tensor) -> tf.data.Dataset:
            of_pass = tf.bitwise.bitwise_and(mixed + number, 2**63 - 1)
            return self._records("train", shard, of_pass).take(records)

        numbers = tf.data.Dataset.range(first, 2**62)
        return numbers.flat_map(tf.autograph.experimental.do_not_convert(one_pass))

    def _records(self, split: str, shard: Shard, seed: tf.Tensor | None) -> tf.data.Dataset:
        """Return one pass over this process's records, shuffled if there is a seed.

        Each process reads whole files if there are enough of them, otherwise every n-th record.
        """
        index, count = shard
        info = self.splits[split]
        paths = [str(path) for path in info.filepaths]
        by_file = len(paths) >= count
        files = tf.data.Dataset.from_tensor_slices(paths[index::count] if by_file else paths)
        read = tf.data.TFRecordDataset
        if seed is None:
            records = files.interleave(read, cycle_length=1)
            return records if by_file else records.shard(count, index)
        files = files.shuffle(len(paths), seed, reshuffle_each_iteration=False)
        records = files.interleave(read, cycle_length=16, num_parallel_calls=4, deterministic=True)
        records = records if by_file else records.shard(count, index)
        held = max(1, SHUFFLE_BYTES * info.num_examples // max(info.num_bytes, 1))
        buffer = min(held, info.num_examples)
        return records.shuffle(buffer, seed, reshuffle_each_iteration=False)


def _parsed(records: tf.data.Dataset, keys: tuple[str, str]) -> Iterator[Raw]:
    """Yield the encoded picture and the label of each serialised record."""
    image, label = keys
    features = {
        image: tf.io.FixedLenFeature((), tf.string),
        label: tf.io.FixedLenFeature((), tf.int64),
    }
    options = tf.data.Options()
    options.deterministic = True
    parsed = records.batch(PARSED_TOGETHER).map(
        lambda some: tf.io.parse_example(some, features), num_parallel_calls=1
    )
    for some in parsed.prefetch(2).with_options(options).as_numpy_iterator():
        yield from zip(some[image], some[label].astype(np.int32), strict=True)


def tfds_source(name: str, data_dir: str | None = None, others: Sequence[str] = ()) -> Source:
    """Return a data set that TensorFlow Datasets has prepared in `data_dir`.

    The test split is "validation" if there is one, otherwise "test". `others` are names of data
    sets of this library, which a message may suggest.

    Raises InputError if the data set is unknown or not prepared, or does not map images to classes.
    """
    data_dir = str(pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser())
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        one_of(
            [
                *others,
                *tfds.list_builders(with_community_datasets=False),
            ],
            name.split("/")[0].split(":")[0],
            "data set",
        )
        raise InputError(
            f"data set {name!r} is not prepared in {data_dir}; run "
            f"'tfds build {name} --data_dir {data_dir}' once on a machine with internet access, or "
            f"give another data directory"
        ) from None
    info = builder.info
    keys = info.supervised_keys
    if not (
        keys is not None
        and isinstance(info.features[keys[0]], tfds.features.Image)
        and isinstance(info.features[keys[1]], tfds.features.ClassLabel)
    ):
        raise InputError(
            f"data set {name!r} has the features {', '.join(info.features)}; expected one that "
            f"maps an image to a class, such as cifar10"
        )
    test = next((split for split in ("validation", "test") if split in info.splits), None)
    if "train" not in info.splits or test is None:
        raise InputError(
            f"data set {name!r} has the splits {', '.join(info.splits)}; expected train, and "
            f"validation or test"
        )
    splits = {"train": info.splits["train"], "test": info.splits[test]}
    height, width, channels = info.features[keys[0]].shape
    base = {
        "name": info.name,
        "class_names": tuple(info.features[keys[1]].names),
        "sizes": {split: part.num_examples for split, part in splits.items()},
        "channels": channels or 3,
        "image_size": height if height == width and (height or SMALL + 1) <= SMALL else None,
        "flip": info.name not in NOT_MIRRORED,
    }
    records = Records(**base, splits=splits, keys=keys)
    return records if records.image_size is None else _in_memory(records, base)


def _in_memory(records: Records, base: dict) -> InMemory:
    """Return `records` with all pictures decoded, in threads."""
    images, labels = {}, {}
    decode = Decode(records.channels, "stored")

    def picture(raw: Raw) -> np.ndarray:
        return decode(raw[0], name=f"a picture of {records.name}").pixels

    for split, size in records.sizes.items():
        images[split] = np.empty((size, *[records.image_size] * 2, records.channels), np.uint8)
        labels[split] = np.empty(size, np.int32)
        examples = enumerate(records.examples(split))
        with concurrent.futures.ThreadPoolExecutor() as threads:
            while some := list(itertools.islice(examples, PARSED_TOGETHER)):
                pixels = threads.map(picture, [raw for _, raw in some])
                for (index, (_, label)), image in zip(some, pixels, strict=True):
                    images[split][index], labels[split][index] = image, label
    return InMemory(**base, images=images, labels=labels)
