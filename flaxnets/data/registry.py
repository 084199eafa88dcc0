"""Open data sets by name."""

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
TFDS_PACKAGES = ("tensorflow", "tensorflow_datasets")  # installed by the extra `tfds`


def open_source(name: str, data_dir: str | None = None) -> Source:
    """Return the data set `name`: one of `BUNDLED`, "folder:PATH", "npz:PATH" or a TFDS name.

    A data set of TensorFlow Datasets (TFDS) must have been prepared in `data_dir` (default:
    TFDS_DATA_DIR, else ~/tensorflow_datasets). Nothing is downloaded.

    Raises InputError if the data set is unknown, absent or malformed; the message says what to do.
    """
    if name in BUNDLED:
        return BUNDLED[name]()
    kind, colon, path = name.partition(":")
    if colon and kind in FILES:
        return FILES[kind](pathlib.Path(os.path.expanduser(path)))
    missing = [package for package in TFDS_PACKAGES if not _is_installed(package)]
    if missing:
        raise InputError(
            f"the data set {name!r} needs {' and '.join(missing)}; run "
            f"pip install 'flaxnets[tfds]', or choose {', '.join(BUNDLED)}, folder:PATH or npz:PATH"
        )
    from flaxnets.data.tfds import tfds_source

    return tfds_source(name, data_dir, (*BUNDLED, *(f"{kind}:PATH" for kind in FILES)))


def kind_of(name: str) -> Kind | None:
    """Return the kind of the data set `name` without opening it.

    None for a TensorFlow Datasets name whose images may have any size.
    """
    if name in KINDS:
        return KINDS[name]
    prefix, colon, _ = name.partition(":")
    if colon and prefix in KINDS_OF_FILES:
        return KINDS_OF_FILES[prefix]
    return "small images" if prefix.split("/")[0] in STATISTICS else None


def has_classes(name: str) -> bool:
    """Return whether the labels of the data set `name` are classes, without opening it."""
    return name not in NUMBERS


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # its import was forbidden
        return False
