"""Read a data set from a file of NumPy arrays."""

import pathlib
import zipfile
import zlib

import numpy as np

from flaxnets.data.source import NOT_MIRRORED, InMemory
from flaxnets.errors import InputError

MAX_CLASSES = 100_000  # each class needs a name and a row of the last layer
# Names of the arrays of images and labels in files of Keras and of MedMNIST.
ARRAYS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)


def npz(path: pathlib.Path) -> InMemory:
    """Return the images and labels of a NumPy file, whose arrays have the names in `ARRAYS`.

    Images are uint8 (N, size, size) or (N, size, size, 1 or 3). Labels are whole numbers from 0.
    The name of a known data set (`mnist.npz`) decides how pixels are normalised and whether images
    may be mirrored.

    Raises InputError if the file cannot be read, or its arrays have other names, types or shapes.
    """
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            present = list(file)
            names = next((names for names in ARRAYS if set(names) <= set(present)), ())
            arrays = [file[name] for name in names]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"cannot read {path}: it is not a .npz file of numbers; write it with numpy.savez"
        ) from error
    if not names:
        raise InputError(
            f"{path} has the arrays {', '.join(present) or 'none'}; expected "
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
                f"the labels of {name} in {path} range from {labels.min()} to {labels.max()}; "
                f"expected classes from 0 to {MAX_CLASSES - 1:,}"
            )
    train, test = (images if images.ndim == 4 else images[..., None] for images in arrays[::2])
    height, width, channels = train.shape[1:]
    if height != width or channels not in (1, 3) or test.shape[1:] != train.shape[1:]:
        raise InputError(
            f"{path} has training images of {train.shape[1:]} and test images of {test.shape[1:]}; "
            f"expected square images of one size with 1 or 3 channels"
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
