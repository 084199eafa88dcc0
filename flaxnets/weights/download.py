"""The files of published weights, downloaded once and verified.

Where torch is installed they are torchvision's own `.pth` files. Without torch they are the
safetensors files in timm's repositories on the Hugging Face Hub that hold the same weights (tags
`tv_in1k` and `tv2_in1k`). They are kept in `~/.cache/flaxnets/weights` (or below XDG_CACHE_HOME).
"""

import hashlib
import http.client
import pathlib
import re
import sys
import urllib.error
from typing import Any, Literal

from flaxnets.errors import InputError, one_of
from flaxnets.terminal import cache_directory
from flaxnets.weights import files
from flaxnets.weights.published import PublishedWeights

Source = Literal["torchvision", "timm"]


def fetch(published: PublishedWeights, source: Source | None = None) -> pathlib.Path:
    """The file of published weights in the user's cache directory, verified, after downloading it
    if it is not there. Never half a file under its name.

    Raises InputError if that fails, or if the weights are a .pth only and torch is not installed.
    """
    if source is not None:
        one_of(("torchvision", "timm"), source, "source")
    arch, name = published.arch, published.name
    if source == "timm" and published.repository is None:
        raise InputError(f"timm has no weights {name} of {arch}; expected source 'torchvision'")
    if source != "timm" and files.torch_is_installed():
        return _from_torchvision(published)
    if source == "torchvision" or published.repository is None:
        raise InputError(
            f"the weights {name} of {arch} are published as a .pth, which takes torch: install it, "
            f"or convert them where it is with tools/convert_torchvision.py"
        )
    return _from_hub(published.repository)


def _directory() -> pathlib.Path:
    directory = cache_directory()
    if directory is None:
        raise InputError(
            "no directory to keep published weights in: XDG_CACHE_HOME or HOME can name one; or "
            "give a file of weights"
        )
    return directory / "weights"


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_torchvision(published: PublishedWeights) -> pathlib.Path:
    from torch import hub

    path = _directory() / f"{published.file}.pth"
    if path.is_file() and _sha256(path).startswith(published.sha256):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        hub.download_url_to_file(published.url, str(path), published.sha256, sys.stderr.isatty())
    except RuntimeError as error:  # torch.hub's only one: the hash
        raise InputError(
            f"{published.url} came broken or incomplete: its SHA-256 does not begin with "
            f"{published.sha256}; try again"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise InputError(_failed(published.url, error)) from error
    return path


def _from_hub(repository: str) -> pathlib.Path:
    import huggingface_hub

    file, directory = "model.safetensors", _directory() / "huggingface"
    cached = huggingface_hub.try_to_load_from_cache(repository, file, cache_dir=directory)
    found = isinstance(cached, str)
    if found and _is_intact(pathlib.Path(cached)):
        return pathlib.Path(cached)
    try:
        path = pathlib.Path(
            huggingface_hub.hf_hub_download(
                repository, file, cache_dir=directory, force_download=found
            )
        )
    except Exception as error:  # its HTTP client's too, which changes between its versions
        raise InputError(_failed(f"{file} of hf.co/{repository}", error)) from error
    if not _is_intact(path):
        path.resolve().unlink()
        raise InputError(
            f"{file} of hf.co/{repository} came broken or incomplete: its SHA-256 is not the "
            f"hub's; try again"
        )
    return path


def _is_intact(path: pathlib.Path) -> bool:
    """The hub names a large file by its SHA-256, and the client links to a file of that name."""
    digest = path.resolve().name
    return not re.fullmatch("[0-9a-f]{64}", digest) or _sha256(path) == digest


def _failed(what: str, error: Any) -> str:
    if type(error) is urllib.error.URLError:
        error = error.reason
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"cannot download {what} ({reason}); give a file on this machine instead"
