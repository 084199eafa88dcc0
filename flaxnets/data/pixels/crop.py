"""Crop pictures: random windows in training, the centre in evaluation, padded crops, and flips.

The first four operations turn a `Picture` into uint8 pixels (height, width, channels), the others
change pixels.
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

# Szegedy et al. 2014, section 6, as torchvision's RandomResizedCrop has it: the window's share of
# the image's area, its aspect ratio (width to height), and how many are tried.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
TRIES = 10
SIDE = 2  # what a generator is for: the side of each image in the first pass
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
    """Return `size` x `size` pixels at `offset` of the image resized to `scaled`, both (height,
    width). If the whole would take too much memory, only that part is resized.
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
    """Return the central (size, size, C) of (H, W, C), at the offset that torchvision rounds to."""
    top, left = (round((side - size) / 2) for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """Training: take a window of random area, aspect ratio and place, and resize it to `size` x
    `size`.

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
    """Draw top, left, height and width of a window of an image of the given size. Of ten windows
    with uniform area and log-uniform aspect ratio the first that fits is taken, at a uniform place;
    if none fits, the largest one in the centre with an allowed ratio.
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
    """Return the span among `fewer` pixels that covers `count` of `full` ones, from `first` on."""
    return first * fewer // full, -(-(first + count) * fewer // full)


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Training: resize the short side to `resize` pixels, or to a random number from there to
    `resize_max`, then take `size` x `size` pixels at a random place.

    Krizhevsky et al. 2012, section 4.1, whose 32 x 32 offsets of a 256-pixel image leave out the
    last row and column; He et al. 2015, section 3.4, for the range.
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
        """Return the crop at `offsets` of the picture resized to `scaled`, both (height, width).
        Only the part that is needed is decoded and resized.
        """
        fraction = picture.fraction(min(picture.size), min(scaled))
        spans, first, factors = [], [], []
        sides = zip(picture.size_at(fraction), scaled, offsets, strict=True)
        for pixels, resized, offset in sides:
            factor = pixels / resized
            reach = max(int(factor), 1) + 1  # of the filter, and of the interpolation after it
            begin = max(math.floor(offset * factor) - reach, 0)
            end = min(math.ceil((offset + self.size) * factor) + reach, pixels)
            spans.append((begin, end))
            first.append((offset + 0.5) * factor - 0.5 - begin)
            factors.append(factor)
        (rows, columns), (down, across), (y, x) = spans, factors, first
        road = fast_road()
        assert road is not None
        return road.sample(picture.part(rows, columns, fraction), self.size, (y, x), (down, across))


# ------------------------------------------------------------ of pixels, on the host or the device


@dataclasses.dataclass(frozen=True)
class PadAndCrop:
    """Zeros on all sides, or the pixels that the edge reflects, then a window of the old size at
    random (He et al. 2015, section 4.2).
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
        """Draw `"offset"`, int32 (count, [y, x]) in 0..2 * pad, for the training step."""
        return {"offset": random.integers(0, 2 * self.pad, (count, 2), np.int32, endpoint=True)}


@dataclasses.dataclass(frozen=True)
class Flip:
    """The mirror image, left for right, with a probability; or alternating, of the same half of the
    images in every other pass over the data and of the other half in between.
    """

    probability: float = 0.5
    alternating: bool = False

    def __call__(self, pixels: np.ndarray, random: Random) -> np.ndarray:
        return mirror(pixels) if random.random() < self.probability else pixels

    def draw(self, random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        """Draw `"mirrored"`, bool (count,), for the training step."""
        return {"mirrored": random.random(count) < self.probability}

    def alternate(self, seed: int, indices: np.ndarray, passes: np.ndarray) -> np.ndarray:
        """Return whether the examples `indices` are mirrored in the passes `passes`, bool (N,)."""
        size = int(indices.max(initial=0)) + 1
        begins = np.random.default_rng([SIDE, seed % 2**64]).random(size) < self.probability
        return begins[indices] ^ (passes % 2 == 1)


def mirror(pixels: np.ndarray) -> np.ndarray:
    """Reverse the columns of (height, width, channels)."""
    road = fast_road()
    return pixels[:, ::-1] if road is None else road.mirror(pixels)
