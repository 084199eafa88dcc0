"""Where examples come from: bundled data, arrays in a file, a folder of pictures, TensorFlow
Datasets (`flaxnets.data.prepared`).

A source knows its classes, its splits "train" and "test", and which augmentations keep its labels
true; it streams raw examples `{"image", "label"}`, the image uint8 or an encoded string.
Rows of measured features are float32 images of one pixel, with a channel for each feature.
Streams are TensorFlow's; what is in memory can be had without it.
"""

# scikit-learn's annotations have results that are not asked for here, TensorFlow's deny integers.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

import dataclasses
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flaxnets.errors import InputError, one_of
from flaxnets.recipes import Kind

if TYPE_CHECKING:
    from flaxnets.data.tensorflow import tf

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

    def order(
        self, split: str, shard: Shard, shuffle_seed: "tf.Tensor | None"
    ) -> "tf.data.Dataset":
        """One pass over this process's examples, in the order that `shuffle_seed` (two integers)
        gives, or in a fixed one, each as something small that `reader` turns into the example.
        """
        raise NotImplementedError

    def reader(self, split: str) -> "Callable[[tf.Tensor], dict[str, tf.Tensor]]":
        """From an element of `order`, or a batch of them, to the raw example, or examples."""
        raise NotImplementedError

    def stream(
        self, split: str, shard: Shard, shuffle_seed: "tf.Tensor | None"
    ) -> "tf.data.Dataset":
        """The raw examples in their `order`."""
        return self.order(split, shard, shuffle_seed).map(self.reader(split))


@dataclasses.dataclass(frozen=True)
class InMemory(Source):
    """Examples by index: decoded images, or the paths of pictures."""

    images: Mapping[str, np.ndarray]  # by split: (N, H, W, C) uint8, or (N,) paths
    labels: Mapping[str, np.ndarray]

    def order(self, split, shard, shuffle_seed):
        from flaxnets.data.tensorflow import tf

        index, count = shard
        indices = tf.range(self.sizes[split])
        if shuffle_seed is not None:
            indices = tf.random.experimental.stateless_shuffle(indices, shuffle_seed)
        return tf.data.Dataset.from_tensor_slices(indices[index::count])

    def reader(self, split):
        from flaxnets.data.tensorflow import tf

        images, labels = tf.constant(self.images[split]), tf.constant(self.labels[split])

        def examples(i):
            found = tf.gather(images, i)
            if found.dtype == tf.string:
                read = tf.io.read_file
                found = tf.map_fn(read, found) if found.shape.rank else read(found)
            return {"image": found, "label": tf.gather(labels, i)}

        return examples


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


def open_source(name: str, data_dir: str | None = None) -> Source:
    """The data set `name`: one of `BUNDLED`, "folder:PATH", "npz:PATH", or a TensorFlow Datasets
    name, prepared in `data_dir` (or TFDS_DATA_DIR, or ~/tensorflow_datasets) before. Never
    downloads.

    Raises InputError if it is unknown, absent or malformed, in one sentence with the remedy.
    """
    if name in BUNDLED:
        return BUNDLED[name]()
    kind, colon, path = name.partition(":")
    if colon and kind in FILES:
        return FILES[kind](pathlib.Path(os.path.expanduser(path)))
    try:
        from flaxnets.data.prepared import tfds_source
    except ModuleNotFoundError as error:
        raise InputError(
            f"the data set {name} needs {error.name}, which is not installed; without it there are "
            f"{', '.join(BUNDLED)} and npz:PATH"
        ) from error
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


MAX_CLASSES = 100_000  # each has a name, and a row of the last layer
# Names of images and labels, for training and for testing: Keras' files, and MedMNIST's.
ARRAYS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)


def npz(path: pathlib.Path) -> InMemory:
    """Images in a file of NumPy's, uint8 (N, size, size) or (N, size, size, 1 or 3), and their
    classes, whole numbers from 0, under the names of one of `ARRAYS`.

    The name of the file decides, where it is that of a known data set, what its pixels are
    normalised by and whether they may be mirrored.
    """
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            found = list(file)
            names = next((names for names in ARRAYS if set(names) <= set(found)), ())
            arrays = [file[name] for name in names]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot read {path}: no .npz file of numbers") from error
    if not names:
        raise InputError(
            f"{path} has the arrays {', '.join(found) or 'none'}; expected "
            f"{' or '.join(', '.join(names) for names in ARRAYS)}"
        )
    for name, images, labels in zip(names[::2], arrays[::2], arrays[1::2], strict=True):
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) == 0:
            raise InputError(
                f"{name} of {path} is {images.dtype} {images.shape}; expected uint8 (N, size, "
                f"size) or (N, size, size, channels)"
            )
        if labels.dtype.kind not in "iu" or labels.size != len(images):
            raise InputError(
                f"the labels of {name} in {path} are {labels.dtype} {labels.shape}; expected "
                f"{len(images)} whole numbers"
            )
        if labels.min() < 0 or labels.max() >= MAX_CLASSES:
            raise InputError(
                f"the labels of {name} in {path} are from {labels.min()} to {labels.max()}; "
                f"expected classes from 0 to less than {MAX_CLASSES:,}"
            )
    train, test = (images if images.ndim == 4 else images[..., None] for images in arrays[::2])
    height, width, channels = train.shape[1:]
    if height != width or channels not in (1, 3) or test.shape[1:] != train.shape[1:]:
        raise InputError(
            f"{path} has images of {train.shape[1:]} and {test.shape[1:]}; expected squares of one "
            f"size, of 1 or 3 channels"
        )
    labels = {"train": arrays[1], "test": arrays[3]}
    classes = 1 + max(int(values.max()) for values in labels.values())
    return InMemory(
        name=path.stem,
        class_names=tuple(map(str, range(classes))),
        sizes={split: len(values) for split, values in labels.items()},
        channels=channels,
        image_size=height,
        flip=path.stem not in NOT_MIRRORED,
        images={"train": train, "test": test},
        labels={split: values.reshape(-1).astype(np.int32) for split, values in labels.items()},
    )


FILES = {"folder": folder, "npz": npz}
