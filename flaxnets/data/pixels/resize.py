"""Resize pictures as Pillow does, with antialiasing: one by one, many at once, or faster.

`torchvision.transforms.Resize` of a PIL image is Pillow's; so is timm's.
"""

import concurrent.futures
import dataclasses
from random import Random
from typing import ClassVar

import numpy as np
from PIL import Image

from flaxnets.data.pixels.decode import Picture, as_array, as_image, fast_road
from flaxnets.errors import InputError
from flaxnets.recipes import Interpolation

MAX_RESIZED = 2**26  # pixels of a picture after scaling, 256 MiB in Pillow
TOGETHER = 32  # images that a thread resizes at once


def resize(
    image: Image.Image, size: tuple[int, int], interpolation: Interpolation = "bilinear"
) -> Image.Image:
    """Resize to `size` (height, width). Raises InputError above `MAX_RESIZED` pixels."""
    height, width = size
    if height * width > MAX_RESIZED:
        raise InputError(
            f"a picture of {image.width}x{image.height} pixels is too long: scaled for the network "
            f"it would have {width}x{height}; cut it first"
        )
    return image.resize((width, height), Image.Resampling[interpolation.upper()])


def short_side_size(height: int, width: int, short: int) -> tuple[int, int]:
    """Return the (height, width) of an image scaled to a short side of `short` pixels; the long one
    is rounded down, as in torchvision (transforms/functional.py, `_compute_resized_output_size`).
    """
    least = min(height, width)
    return short * height // least, short * width // least


def scale_short_side(
    image: Image.Image, short: int, interpolation: Interpolation = "bilinear"
) -> Image.Image:
    """Resize so that the short side has `short` pixels."""
    return resize(image, short_side_size(image.height, image.width, short), interpolation)


def cover(
    image: Image.Image, size: tuple[int, ...], interpolation: Interpolation = "bilinear"
) -> Image.Image:
    """Scale until the image covers `size` (height, width), and cut it to that around the centre."""
    height, width = size
    scale = max(height / image.height, width / image.width)
    scaled = (max(height, round(scale * image.height)), max(width, round(scale * image.width)))
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    return resize(image, scaled, interpolation).crop((left, top, left + width, top + height))


@dataclasses.dataclass(frozen=True)
class Resize:
    """Resize the whole picture to `size` x `size` pixels, whatever its proportions."""

    size: int
    interpolation: Interpolation = "bilinear"
    is_random: ClassVar[bool] = False

    def __call__(self, picture: Picture, random: Random) -> np.ndarray:
        if picture.size == (self.size, self.size):
            return picture.pixels
        return as_array(resize(picture.image, (self.size, self.size), self.interpolation))

    def many(self, images: np.ndarray) -> np.ndarray:
        """Resize uint8 images (N, H, W, C) in threads, with the same bits as one by one.

        A call of Pillow takes longer than to resize a small image, so many are passed as one.
        """
        if images.shape[1:3] == (self.size, self.size):
            return images
        resized = np.empty((len(images), self.size, self.size, images.shape[-1]), np.uint8)

        def part(first: int) -> None:
            some = slice(first, first + TOGETHER)
            planes = images[some].transpose(0, 3, 1, 2)
            resized[some] = self._turned(self._turned(planes)).transpose(0, 2, 3, 1)

        with concurrent.futures.ThreadPoolExecutor() as threads:
            list(threads.map(part, range(0, len(images), TOGETHER)))  # raises a thread's exception
        return resized

    def _turned(self, planes: np.ndarray) -> np.ndarray:
        """Resize rows and exchange the axes: (..., H, W) becomes (..., size, H)."""
        picture = Image.fromarray(planes.reshape(-1, planes.shape[-1]))
        resampling = Image.Resampling[self.interpolation.upper()]
        rows = np.asarray(picture.resize((self.size, picture.height), resampling))
        return rows.reshape(*planes.shape[:-1], self.size).swapaxes(-1, -2)


def resize_window(
    pixels: np.ndarray, size: int, interpolation: Interpolation, by_fast_road: bool
) -> np.ndarray:
    """Resize a decoded window, uint8 (height, width, channels), to `size` x `size` pixels: exactly
    as Pillow does, or closely by the fast road, which is bilinear.
    """
    road = fast_road() if by_fast_road and interpolation == "bilinear" else None
    if road is not None:
        return road.resize(pixels, size)
    return as_array(resize(as_image(pixels), (size, size), interpolation))
