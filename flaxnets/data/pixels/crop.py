"""Crop pictures: random windows in training, the centre in evaluation, padded crops, and flips.

`CenterCrop`, `RandomResizedCrop` and `RandomCrop` turn a `Picture` into uint8 pixels (height,
width, channels). `PadAndCrop` and `Flip` change pixels.
"""

import dataclasses
import math
from random import Random
from typing import ClassVar

import numpy as np
from PIL import Image

from flaxnets.data.pixels.decode import Picture, Span, as_array, fast_road
from flaxnets.data.pixels.resize import (
    MAX_RESIZED,
    resize,
    resize_window,
    short_side_size,
)
from flaxnets.recipes import Interpolation, Padding

# Szegedy et al. 2014, section 6, as torchvision's RandomResizedCrop implements it: the window's
# share of the image's area, its aspect ratio (width to height), and the number of tries.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
TRIES = 10
# First word of the generator's seed that decides which images are mirrored in the first pass.
SIDE = 2
LOG_RATIO = tuple(math.log(ratio) for ratio in RATIO)


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """Evaluation: resize the short side to `resize` pixels, then take the central `size` x `size`.

    Bit-equal to torchvision's `ImageClassification` (transforms/_presets.py).
    """

    resize: int
    size: int
    interpolation: Interpolation = "bilinear"
    is_random: ClassVar[bool] = False

    def __call__(self, picture: Picture, random: Random) -> np.ndarray:
        image = picture.image
        scaled = short_side_size(image.height, image.width, self.resize)
        top, left = (round((side - self.size) / 2) for side in scaled)
        return crop_of_scaled(image, scaled, (top, left), self.size, self.interpolation)


def crop_of_scaled(
    image: Image.Image,
    scaled: tuple[int, int],
    offset: tuple[int, int],
    size: int,
    interpolation: Interpolation,
) -> np.ndarray:
    """Return `size` x `size` pixels at `offset` (top, left) of the image resized to `scaled`.

    `scaled` is (height, width). If the whole resized image would take too much memory, only the
    crop is computed.
    """
    top, left = offset
    if scaled[0] * scaled[1] <= MAX_RESIZED:
        pixels = as_array(resize(image, scaled, interpolation))
        return pixels[top : top + size, left : left + size]
    down, across = image.height / scaled[0], image.width / scaled[1]
    box = across * left, down * top, across * (left + size), down * (top + size)
    resampling = Image.Resampling[interpolation.upper()]
    return as_array(image.resize((size, size), resampling, box))


def center(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return the central (size, size, C) of (H, W, C); the offset is rounded as in torchvision."""
    top, left = (round((side - size) / 2) for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """Training: resize a window of random area, aspect ratio and position to `size` x `size`.

    As in torchvision, the resampling reads no pixel outside the window.
    """

    size: int
    interpolation: Interpolation = "bilinear"
    is_random: ClassVar[bool] = True

    def __call__(self, picture: Picture, random: Random) -> np.ndarray:
        picture.keep_for(self.size)
        top, left, height, width = random_window(*picture.size, random)
        fraction = picture.fraction(min(height, width), self.size)
        full, fewer = picture.size, picture.size_at(fraction)
        rows = _covering(top, height, fewer[0], full[0])
        columns = _covering(left, width, fewer[1], full[1])
        pixels = picture.part(rows, columns, fraction)
        return resize_window(pixels, self.size, self.interpolation, picture.takes_fast_road)


def random_window(height: int, width: int, random: Random) -> tuple[int, int, int, int]:
    """Draw the window (top, left, height, width) of an image of size `height` x `width`.

    Up to `TRIES` windows with uniform area and log-uniform aspect ratio are drawn. The first that
    fits is placed uniformly. If none fits, the result is the largest central window with an allowed
    ratio.
    """
    for _ in range(TRIES):
        area = height * width * random.uniform(*AREA)
        ratio = math.exp(random.uniform(*LOG_RATIO))
        rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = random.randint(0, height - rows), random.randint(0, width - columns)
            return top, left, rows, columns
    rows = round(min(height, width / RATIO[0]))
    columns = round(min(width, height * RATIO[1]))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _covering(first: int, count: int, fewer: int, full: int) -> Span:
    """Return the span of a side reduced to `fewer` pixels that covers part of the `full` side.

    The part is `count` pixels, from pixel `first` on.
    """
    return first * fewer // full, -(-(first + count) * fewer // full)


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Training: resize the short side, then take `size` x `size` pixels at a random position.

    The short side gets `resize` pixels, or with `resize_max` a random number between the two (He et
    al. 2015, section 3.4). The crop is that of Krizhevsky et al. 2012, section 4.1: its 32 x 32
    offsets in a 256-pixel image leave out the last row and column.
    """

    resize: int
    size: int
    resize_max: int = 0
    interpolation: Interpolation = "bilinear"
    is_random: ClassVar[bool] = True

    def __call__(self, picture: Picture, random: Random) -> np.ndarray:
        picture.keep_for(self.resize)
        short = random.randint(self.resize, max(self.resize_max, self.resize))
        height, width = short_side_size(*picture.size, short)
        top, left = (random.randrange(max(side - self.size, 1)) for side in (height, width))
        if picture.takes_fast_road and self.interpolation == "bilinear":
            return self._sampled(picture, (height, width), (top, left))
        return crop_of_scaled(
            picture.image, (height, width), (top, left), self.size, self.interpolation
        )

    def _sampled(
        self, picture: Picture, scaled: tuple[int, int], offsets: tuple[int, int]
    ) -> np.ndarray:
        """Return the crop at `offsets` (top, left) of the picture resized to `scaled`.

        `scaled` is (height, width). Only the part that is needed is decoded and resized.
        """
        fraction = picture.fraction(min(picture.size), min(scaled))
        spans, first, factors = [], [], []
        sides = zip(picture.size_at(fraction), scaled, offsets, strict=True)
        for pixels, resized, offset in sides:
            factor = pixels / resized
            reach = max(int(factor), 1) + 1  # pixels that filter and interpolation read beyond it
            begin = max(math.floor(offset * factor) - reach, 0)
            end = min(math.ceil((offset + self.size) * factor) + reach, pixels)
            spans.append((begin, end))
            first.append((offset + 0.5) * factor - 0.5 - begin)
            factors.append(factor)
        (rows, columns), (down, across), (y, x) = spans, factors, first
        road = fast_road()
        assert road is not None
        return road.sample(picture.part(rows, columns, fraction), self.size, (y, x), (down, across))


# ------------------------------------------------- changes of pixels, on the host or on the device


@dataclasses.dataclass(frozen=True)
class PadAndCrop:
    """Pad all sides with zeros or reflected pixels, then take a random window of the old size.

    From He et al. 2015, section 4.2.
    """

    pad: int
    padding: Padding = "zeros"

    def __call__(self, pixels: np.ndarray, random: Random) -> np.ndarray:
        height, width, _ = pixels.shape
        top, left = (random.randint(0, 2 * self.pad) for _ in range(2))
        mode = "constant" if self.padding == "zeros" else "reflect"
        padded = np.pad(pixels, [(self.pad, self.pad), (self.pad, self.pad), (0, 0)], mode)
        return padded[top : top + height, left : left + width]

    def draw(self, random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        """Draw `"offset"`, int32 (count, [y, x]) in 0..2 * pad, which the training step uses."""
        return {"offset": random.integers(0, 2 * self.pad, (count, 2), np.int32, endpoint=True)}


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirror pixels, left for right, with a probability.

    With `alternating` one random half of the images is mirrored in every other pass over the data,
    and the other half in the passes between.
    """

    probability: float = 0.5
    alternating: bool = False

    def __call__(self, pixels: np.ndarray, random: Random) -> np.ndarray:
        return mirror(pixels) if random.random() < self.probability else pixels

    def draw(self, random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        """Draw `"mirrored"`, bool (count,), which the training step uses."""
        return {"mirrored": random.random(count) < self.probability}

    def alternate(self, seed: int, indices: np.ndarray, passes: np.ndarray) -> np.ndarray:
        """Return whether each example is mirrored in its pass, bool (N,), for `alternating`.

        Args:
            seed: seed of the run.
            indices: (N,), index of each example in the data set.
            passes: (N,), number of the pass in which it is read.
        """
        size = int(indices.max(initial=0)) + 1
        begins = np.random.default_rng([SIDE, seed % 2**64]).random(size) < self.probability
        return begins[indices] ^ (passes % 2 == 1)


def mirror(pixels: np.ndarray) -> np.ndarray:
    """Reverse the columns of (height, width, channels)."""
    road = fast_road()
    return pixels[:, ::-1] if road is None else road.mirror(pixels)
