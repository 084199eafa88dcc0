"""Data sets by their names."""

import importlib.util
import os
import pathlib

from flaxnets.data.bundled import BUNDLED, KINDS, NUMBERS
from flaxnets.data.folder import folder
from flaxnets.data.npz import npz
from flaxnets.data.source import STATISTICS, Source
from flaxnets.errors import InputError
from flaxnets.recipes import Kind

FILES = {"folder": folder, "npz": npz}
KINDS_OF_FILES: dict[str, Kind] = {"folder": "photographs", "npz": "small images"}
PACKAGES = ("tensorflow", "tensorflow_datasets")  # of the extra `tfds`


def open_source(name: str, data_dir: str | None = None) -> Source:
    """Return the data set `name`: one of `BUNDLED`, "folder:PATH", "npz:PATH", or a TensorFlow
    Datasets name, prepared in `data_dir` (or TFDS_DATA_DIR, or ~/tensorflow_datasets) before. Never
    downloads.

    Raises InputError if it is unknown, absent or malformed; the sentence says what to do.
    """
    if name in BUNDLED:
        return BUNDLED[name]()
    kind, colon, path = name.partition(":")
    if colon and kind in FILES:
        return FILES[kind](pathlib.Path(os.path.expanduser(path)))
    missing = [package for package in PACKAGES if not _is_installed(package)]
    if missing:
        raise InputError(
            f"the data set {name!r} needs {' and '.join(missing)}: pip install 'flaxnets[tfds]'; "
            f"without it there are {', '.join(BUNDLED)}, folder:PATH and npz:PATH"
        )
    from flaxnets.data.tfds import tfds_source

    return tfds_source(name, data_dir, (*BUNDLED, *(f"{kind}:PATH" for kind in FILES)))


def kind_of(name: str) -> Kind | None:
    """Return the kind of the data set `name`, from its name alone; nothing is opened. None for a
    TensorFlow Datasets name whose images may have any size.
    """
    if name in KINDS:
        return KINDS[name]
    prefix, colon, _ = name.partition(":")
    if colon and prefix in KINDS_OF_FILES:
        return KINDS_OF_FILES[prefix]
    return "small images" if prefix.split("/")[0] in STATISTICS else None


def has_classes(name: str) -> bool:
    """Return whether the labels of the data set `name` are classes, by its name alone."""
    return name not in NUMBERS


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # its import was forbidden
        return False
