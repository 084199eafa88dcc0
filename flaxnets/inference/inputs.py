"""Turn the pictures that users pass to a network into raw images that its plan reads."""

import math
import os
import pathlib
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from flaxnets.data.pixels.decode import pixels_of, read_file
from flaxnets.data.plan import Plan
from flaxnets.errors import InputError
from flaxnets.recipes import Statistics

Picture: TypeAlias = "str | pathlib.Path | bytes | Image.Image | np.ndarray"
MAX_READ = 2**22  # largest number of pixels that a network reads at once, as a map


def as_list(pictures: Any, plan: Plan) -> tuple[list[Picture], bool]:
    """Return pictures as a list, and whether a single one was passed.

    Args:
        pictures: a path, the bytes of a file, a Pillow image, an array (height, width, channels),
            or a row of features (C,) for a plan of rows; or several of them, in a list or in an
            array with one more axis.
        plan: the network's preprocessing.

    Raises:
        InputError: the list is empty.
    """
    if hasattr(pictures, "ndim"):
        axes = 3 if plan.operations else 1
        is_single = pictures.ndim <= axes
    else:
        is_single = isinstance(pictures, str | os.PathLike | bytes | Image.Image)
        is_single = is_single or not hasattr(pictures, "__iter__")
    pictures = [pictures] if is_single else list(pictures)
    if not pictures:
        raise InputError("no picture given; expected at least one")
    return pictures, is_single


def as_raw(picture: Any, plan: Plan, name: str) -> bytes | np.ndarray:
    """Return what `plan` reads: the bytes of a file, pixels, or a row of features.

    Raises InputError if it is not a picture, or an array that does not hold pixels. Messages call
    the picture `name`.
    """
    if isinstance(picture, str | os.PathLike):
        return read_file(pathlib.Path(picture))
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Image.Image):
        return pixels_of(picture, plan.decode, name)
    if not hasattr(picture, "ndim"):
        raise InputError(
            f"{name} is of type {type(picture).__name__}; expected a path, the bytes of a file, a "
            "Pillow image or an array"
        )
    values = np.asarray(picture)
    if not plan.operations:
        if values.dtype.kind not in "iuf":
            raise InputError(f"{name} is an array of {values.dtype}; expected a row of numbers")
        return values.astype(np.float32).reshape(1, 1, -1)
    channels = plan.decode.channels
    if values.ndim == 2:
        values = values[..., None]
    is_map = values.ndim == 3 and values.size > 0 and values.dtype == np.uint8
    if not is_map or values.shape[-1] not in (1, 2, 3, 4, channels):
        raise InputError(
            f"{name} is an array of {values.dtype} and shape {values.shape}; expected uint8 values "
            f"0..255 of shape (height, width, {channels})"
        )
    if values.shape[-1] == channels:
        return values
    image = Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
    return pixels_of(image, plan.decode, name)


def name_of(picture: Any, index: int | None) -> str:
    """Return the name of a picture in messages; `index` is its position among several."""
    if isinstance(picture, str | os.PathLike):
        return str(picture)
    return "the picture" if index is None else f"picture {index}"


def check_size(size: tuple[int, int]) -> None:
    """Raise InputError if a picture of a (height, width) is too large to be read at once."""
    height, width = size
    if width * height > MAX_READ:
        raise InputError(
            f"{width}x{height} pixels are too many to be read at once; expected at most "
            f"{MAX_READ:,}, so scale the picture down or cut it"
        )


def own_statistics(image: Image.Image) -> Statistics:
    """Return statistics that normalise a picture by its own values.

    With them `(x - mean) / std` equals `0.5 + 0.5 * (x - m) / s`, where m and s are the mean and
    the standard deviation (of a sample, as torch's) of all values of the picture. A picture of one
    colour becomes 0.5 everywhere.
    """
    counts = np.array(image.histogram()).reshape(-1, 256).sum(0)
    values = np.arange(256) / 255
    total = counts.sum()
    m = (counts * values).sum() / total
    s = math.sqrt((counts * (values - m) ** 2).sum() / max(total - 1, 1)) or 1.0
    channels = len(image.getbands())
    return (m - s,) * channels, (2 * s,) * channels
