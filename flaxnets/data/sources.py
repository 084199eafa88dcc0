"""Where examples come from: bundled data, TensorFlow Datasets, a folder of pictures.

A source knows its classes, its splits "train" and "test", and which augmentations keep its labels
true; it streams raw examples `{"image", "label"}`, the image uint8 or an encoded string.
Rows of measured features are float32 images of one pixel, with a channel for each feature.
"""

# TensorFlow's annotations deny what its functions accept (tensors for integers, and back).
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxnets.data.augmentation import decode
from flaxnets.data.tensorflow import tf
from flaxnets.errors import InputError, one_of
from flaxnets.recipes import Kind

Shard = tuple[int, int]  # (this process, number of processes)

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
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
SMALL = 64  # pixels: images up to this size are decoded once and kept in memory
SHUFFLE_BYTES = 2**30  # of encoded examples held for shuffling


@dataclasses.dataclass(frozen=True)
class Source:
    """What the library needs to know of a data set."""

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
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, of pixels in 0..1."""
        if self.name in STATISTICS:
            return STATISTICS[self.name]
        mean, std = IMAGENET_STATISTICS
        return (mean, std) if self.channels == 3 else (mean[:1], std[:1])

    def share(self, split: str, shard: Shard) -> int:
        """How many examples of `split` the process `shard` reads."""
        index, count = shard
        return len(range(index, self.sizes[split], count))

    def stream(
        self, split: str, shard: Shard, shuffle_seed: tf.Tensor | None, start: tf.Tensor | int = 0
    ) -> tf.data.Dataset:
        """One pass over this process's examples, in the order that `shuffle_seed` (two integers)
        gives, or in a fixed one, from the example numbered `start` on.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class InMemory(Source):
    """Examples by index: decoded images, or the paths of pictures."""

    images: Mapping[str, np.ndarray]  # by split: (N, H, W, C) uint8, or (N,) paths
    labels: Mapping[str, np.ndarray]

    def order(self, split: str, shard: Shard, shuffle_seed: tf.Tensor | None) -> tf.Tensor:
        """The indices of `stream`."""
        index, count = shard
        order = tf.range(index, self.sizes[split], count)
        if shuffle_seed is None:
            return order
        return tf.random.experimental.stateless_shuffle(order, shuffle_seed)

    def stream(self, split, shard, shuffle_seed, start=0):
        return self.examples(split, self.order(split, shard, shuffle_seed)[start:])

    def examples(self, split: str, indices: tf.Tensor) -> tf.data.Dataset:
        """Those of the indices."""
        images, labels = tf.constant(self.images[split]), tf.constant(self.labels[split])

        def example(i):
            image = tf.gather(images, i)
            if image.dtype == tf.string:
                image = tf.io.read_file(image)
            return {"image": image, "label": tf.gather(labels, i)}

        return tf.data.Dataset.from_tensor_slices(indices).map(example)


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


@dataclasses.dataclass(frozen=True)
class Records(Source):
    """Encoded photographs in TFRecord files prepared by TensorFlow Datasets."""

    splits: Mapping[str, Any]  # tfds.core.SplitInfo
    features: Any  # tfds.features.FeaturesDict
    keys: tuple[str, str]  # of the image and its label

    def share(self, split, shard):
        index, count = shard
        lengths = self.splits[split].shard_lengths
        if len(lengths) < count:
            return super().share(split, shard)
        return sum(lengths[index::count])

    def stream(self, split, shard, shuffle_seed, start=0):
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
        return records.skip(tf.cast(start, tf.int64)).map(
            self._parse, num_parallel_calls=2, deterministic=True
        )

    def _parse(self, record):
        image, label = self.keys
        skip = {image: _tfds().decode.SkipDecoding()}
        example = self.features.deserialize_example(record, decoders=skip)
        return {"image": example[image], "label": tf.cast(example[label], tf.int32)}


def open_source(name: str, data_dir: str | None = None) -> Source:
    """The data set `name`: one of `BUNDLED`, "folder:PATH", or a TensorFlow Datasets name, prepared
    in `data_dir` (or TFDS_DATA_DIR, or ~/tensorflow_datasets) before. Never downloads.

    Raises InputError if it is unknown, absent or malformed, in one sentence with the remedy.
    """
    if name in BUNDLED:
        return BUNDLED[name]()
    if name.startswith("folder:"):
        return folder(pathlib.Path(name.removeprefix("folder:")))
    return tfds_source(name, data_dir)


def digits() -> InMemory:
    """1,797 scans of handwritten digits, 8x8 (UCI, bundled with scikit-learn), 1,442 for training
    and 355 for testing, stratified: every fifth scan of each digit is tested.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return InMemory(
        name="digits",
        class_names=tuple(map(str, range(10))),
        channels=1,
        image_size=8,
        flip=False,
        **_every_fifth_tested(images, bunch.target.astype(np.int32), bunch.target),
    )


def breast_cancer() -> Rows:
    """569 tumours, malignant or benign, by 30 measures of their cells (UCI, bundled with
    scikit-learn): 456 for training, 113 for testing, stratified.
    """
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    return _rows("breast_cancer", bunch.data, bunch.target.astype(np.int32), bunch.target_names)


def diabetes() -> Rows:
    """442 patients, ten measures each, and the progression of their disease after a year (Efron et
    al. 2004, bundled with scikit-learn): 354 for training, 88 for testing. The target counts
    standard deviations of the training targets from their mean, so that a squared error of 1 is
    that of always answering with the mean.
    """
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes()
    train = _every_fifth_tested(bunch.data, bunch.target, np.zeros(442))["labels"]["train"]
    target = ((bunch.target - train.mean()) / train.std()).astype(np.float32)
    return _rows("diabetes", bunch.data, target, ())


def _rows(name: str, features: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Rows:
    strata = labels if len(class_names) else np.zeros_like(labels)
    images = features.astype(np.float32)[:, None, None]
    return Rows(
        name=name,
        class_names=tuple(map(str, class_names)),
        channels=features.shape[1],
        image_size=1,
        flip=False,
        **_every_fifth_tested(images, labels, strata),
    )


def _every_fifth_tested(images: np.ndarray, labels: np.ndarray, strata: np.ndarray) -> dict:
    """A fixed split: every fifth example of each stratum is tested."""
    occurrence = np.empty(len(labels), int)
    for stratum in np.unique(strata):
        members = strata == stratum
        occurrence[members] = np.arange(np.count_nonzero(members))
    masks = {"train": occurrence % 5 != 4, "test": occurrence % 5 == 4}
    return {
        "sizes": {split: int(mask.sum()) for split, mask in masks.items()},
        "images": {split: images[mask] for split, mask in masks.items()},
        "labels": {split: labels[mask] for split, mask in masks.items()},
    }


BUNDLED = {"digits": digits, "breast_cancer": breast_cancer, "diabetes": diabetes}


def folder(root: pathlib.Path) -> InMemory:
    """Pictures in `root/train/<class>/` and `root/val/<class>/`, as torchvision's ImageFolder."""
    splits = {"train": root / "train", "test": root / "val"}
    for directory in (root, *splits.values()):
        if not directory.is_dir():
            raise InputError(
                f"no directory {directory}; a folder data set has PATH/train/<class>/*.jpg and "
                f"PATH/val/<class>/*.jpg"
            )
    class_names = _subdirectories(splits["train"])
    if not class_names:
        raise InputError(f"{splits['train']} has no class directories")
    paths, labels = {}, {}
    for split, directory in splits.items():
        for name in _subdirectories(directory):
            one_of(class_names, name, f"class in {directory}")
        found = [
            (p, label) for label, c in enumerate(class_names) for p in _pictures(directory / c)
        ]
        paths[split] = np.array([path for path, _ in found])
        labels[split] = np.array([label for _, label in found], np.int32)
    return InMemory(
        name=f"folder:{root}",
        class_names=tuple(class_names),
        sizes={split: len(labels[split]) for split in splits},
        channels=3,
        image_size=None,
        flip=True,
        images=paths,
        labels=labels,
    )


def _subdirectories(directory: pathlib.Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir() if p.is_dir() and p.name[0] != ".")


def _pictures(directory: pathlib.Path) -> list[str]:
    pictures = sorted(
        str(path)
        for path in (directory.iterdir() if directory.is_dir() else ())
        if path.suffix.lower() in PICTURE_SUFFIXES and path.name[0] != "."
    )
    if not pictures:
        raise InputError(
            f"class {directory.name!r} has no pictures in {directory}; expected files that end in "
            f"{', '.join(PICTURE_SUFFIXES)}"
        )
    return pictures


@functools.cache
def _tfds():
    import tensorflow_datasets as tfds  # two seconds that other sources need not wait for

    return tfds


def tfds_source(name: str, data_dir: str | None = None) -> Source:
    """A data set prepared by TensorFlow Datasets; the test split is "validation", else "test"."""
    tfds = _tfds()
    data_dir = str(pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser())
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        one_of(
            [*BUNDLED, "folder:PATH", *tfds.list_builders(with_community_datasets=False)],
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
    records = Records(**base, splits=splits, features=info.features, keys=keys)
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
