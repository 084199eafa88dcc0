"""Data sets by their names."""

import importlib.util
import os
import pathlib

from flaxnets.data.bundled import BUNDLED
from flaxnets.data.folder import folder
from flaxnets.data.npz import npz
from flaxnets.data.source import Source
from flaxnets.errors import InputError

FILES = {"folder": folder, "npz": npz}
PACKAGES = ("tensorflow", "tensorflow_datasets")  # of the extra `tfds`


def open_source(name: str, data_dir: str | None = None) -> Source:
    """Return the data set `name`: one of `BUNDLED`, "folder:PATH", "npz:PATH", or a TensorFlow
    Datasets name, prepared in `data_dir` (or TFDS_DATA_DIR, or ~/tensorflow_datasets) before. Never
    downloads.

    Raises InputError if it is unknown, absent or malformed, in one sentence with the remedy.
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


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # its import was forbidden
        return False
