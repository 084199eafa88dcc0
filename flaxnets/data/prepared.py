"""Data sets that TensorFlow Datasets has prepared: photographs as records, read from their files;
small images decoded once, and kept in memory.
"""

# TensorFlow's annotations deny what its functions accept (tensors for integers, and back).
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from flaxnets.data.augmentation import decode
from flaxnets.data.sources import BUNDLED, FILES, NOT_MIRRORED, InMemory, Source
from flaxnets.data.tensorflow import tf
from flaxnets.errors import InputError, one_of

SMALL = 64  # pixels: images up to this size are kept decoded
SHUFFLE_BYTES = 2**30  # of encoded examples held for shuffling


@dataclasses.dataclass(frozen=True)
class Records(Source):
    """Encoded photographs in TFRecord files prepared by TensorFlow Datasets."""

    splits: Mapping[str, Any]  # tfds.core.SplitInfo
    keys: tuple[str, str]  # of the image and its label

    def share(self, split, shard):
        index, count = shard
        lengths = self.splits[split].shard_lengths
        if len(lengths) < count:
            return super().share(split, shard)
        return sum(lengths[index::count])

    def order(self, split, shard, shuffle_seed):
        index, count = shard
        info = self.splits[split]
        paths = [str(path) for path in info.filepaths]
        by_file = len(paths) >= count
        files = tf.data.Dataset.from_tensor_slices(paths[index::count] if by_file else paths)
        read = tf.data.TFRecordDataset
        if shuffle_seed is None:
            records = files.interleave(read, cycle_length=1)
            records = records if by_file else records.shard(count, index)
        else:
            seed = tf.cast(shuffle_seed[0] * 1_000_003 + shuffle_seed[1], tf.int64)
            files = files.shuffle(len(paths), seed, reshuffle_each_iteration=False)
            records = files.interleave(
                read, cycle_length=16, num_parallel_calls=4, deterministic=True
            )
            records = records if by_file else records.shard(count, index)
            held = max(1, SHUFFLE_BYTES * info.num_examples // max(info.num_bytes, 1))
            buffer = min(held, info.num_examples)
            records = records.shuffle(buffer, seed, reshuffle_each_iteration=False)
        return records

    def reader(self, split):
        image, label = self.keys
        features = {
            image: tf.io.FixedLenFeature((), tf.string),
            label: tf.io.FixedLenFeature((), tf.int64),
        }

        def examples(records):
            parsed = tf.io.parse_example(records, features)
            return {"image": parsed[image], "label": tf.cast(parsed[label], tf.int32)}

        return examples


def tfds_source(name: str, data_dir: str | None = None) -> Source:
    """A data set prepared by TensorFlow Datasets; the test split is "validation", else "test"."""
    data_dir = str(pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser())
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        one_of(
            [
                *BUNDLED,
                *(f"{kind}:PATH" for kind in FILES),
                *tfds.list_builders(with_community_datasets=False),
            ],
            name.split("/")[0].split(":")[0],
            "data set",
        )
        raise InputError(
            f"data set {name!r} is not prepared in {data_dir}; where there is a network, run "
            f"'tfds build {name} --data_dir {data_dir}' once, or pass --data-dir"
        ) from None
    info = builder.info
    keys = info.supervised_keys
    if not (
        keys is not None
        and isinstance(info.features[keys[0]], tfds.features.Image)
        and isinstance(info.features[keys[1]], tfds.features.ClassLabel)
    ):
        raise InputError(f"data set {name!r} does not map an image to a class: {info.features}")
    test = next((split for split in ("validation", "test") if split in info.splits), None)
    if "train" not in info.splits or test is None:
        raise InputError(
            f"data set {name!r} has the splits {', '.join(info.splits)}; expected train and test"
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
    images, labels = {}, {}
    for split, size in records.sizes.items():
        images[split] = np.empty((size, *[records.image_size] * 2, records.channels), np.uint8)
        labels[split] = np.empty(size, np.int32)
        decoded = records.stream(split, (0, 1), None).map(
            lambda example: (decode(example["image"], records.channels), example["label"]),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        first = 0
        for batch_images, batch_labels in decoded.batch(1000).as_numpy_iterator():
            last = first + len(batch_labels)
            images[split][first:last], labels[split][first:last] = batch_images, batch_labels
            first = last
    return InMemory(**base, images=images, labels=labels)
