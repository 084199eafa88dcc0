"""Read a folder of pictures as a data set, as torchvision's ImageFolder does."""

import collections
import functools
import os
import pathlib
import warnings

import numpy as np
from PIL import Image

from flaxnets.data.source import InMemory
from flaxnets.errors import InputError, InputWarning, one_of, shown

# Formats that Pillow recognises but cannot decode.
ONLY_IDENTIFIED = {"BUFR", "GRIB", "HDF5", "MPEG"}


def folder(root: pathlib.Path) -> InMemory:
    """Return the pictures in `root/train/<class>/` and `root/val/<class>/`, at any depth.

    A file is a picture if Pillow can decode the format of its suffix. Hidden files and hidden
    directories are left out. A directory that several links lead to is read once. One warning
    counts the files that are left out, by suffix.

    Raises InputError if a directory is missing, a class has no pictures, or "val" has a class that
    "train" lacks.
    """
    splits = {"train": root / "train", "test": root / "val"}
    for directory in (root, *splits.values()):
        if not directory.is_dir():
            raise InputError(
                f"no directory {shown(directory)}; a folder data set needs "
                f"PATH/train/<class>/*.jpg and PATH/val/<class>/*.jpg"
            )
    classes = _subdirectories(splits["train"])
    if not classes:
        raise InputError(
            f"{shown(splits['train'])} has no class directories; expected one directory of "
            f"pictures for each class, such as {shown(splits['train'] / 'cat')}"
        )
    paths, labels = {}, {}
    left_out: collections.Counter[str] = collections.Counter()
    for split, directory in splits.items():
        for name in _subdirectories(directory):
            one_of(classes, name, f"class in {shown(directory)}")
        pictures = [_pictures(directory / name, left_out) for name in classes]
        paths[split] = np.array([path for some in pictures for path in some])
        labels[split] = np.repeat(np.arange(len(classes), dtype=np.int32), list(map(len, pictures)))
    if left_out:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in left_out.most_common(8))
        more = f" and {len(left_out) - 8} other suffixes" if len(left_out) > 8 else ""
        warnings.warn(
            f"{left_out.total()} files in {shown(root)} are ignored, because their suffixes are "
            f"not those of pictures: {counts}{more}",
            InputWarning,
            stacklevel=2,
        )
    return InMemory(
        name=f"folder:{root}",
        class_names=tuple(map(shown, classes)),
        sizes={split: len(labels[split]) for split in splits},
        channels=3,
        image_size=None,
        flip=True,
        images=paths,
        labels=labels,
    )


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """Return the suffixes, such as ".jpg", of all formats that this Pillow decodes."""
    return frozenset(
        suffix
        for suffix, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in ONLY_IDENTIFIED
    )


def _subdirectories(directory: pathlib.Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir() if p.is_dir() and p.name[0] != ".")


def _pictures(directory: pathlib.Path, left_out: collections.Counter[str]) -> list[str]:
    """Return a class's paths in torchvision's order; count the other files in `left_out`."""
    pictures, visited = [], set()
    for place, directories, files in os.walk(directory, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:
            directories.clear()  # a link led to a directory that was read before
            continue
        visited.add(real)
        directories[:] = sorted(name for name in directories if name[0] != ".")
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if name[0] == ".":
                left_out["hidden"] += 1
            elif suffix in picture_suffixes():
                pictures.append((place, name))
            else:
                left_out[shown(suffix) or "without a suffix"] += 1
    if not pictures:
        raise InputError(
            f"class {shown(directory.name)!r} has no pictures in {shown(directory)}; expected "
            f"files with the suffix of a picture, such as .jpg, .png or .webp"
        )
    return [os.path.join(*picture) for picture in sorted(pictures)]
