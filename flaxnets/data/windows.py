"""Random windows of photographs, resized to one size.

OpenCV and libjpeg-turbo (`flaxnets.data.photographs`) do it in a third of the time that TensorFlow
takes alone, and without Python's lock, hence in threads.
"""

import concurrent.futures
import functools
import math
import os
from random import Random

import cv2
import numpy as np

from flaxnets.data.photographs import Photograph, Span

# Szegedy et al. 2014, section 6, as torchvision's RandomResizedCrop has it: the window's share of
# the image's area, its aspect ratio (width to height), and how many are tried.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
TRIES = 10
LOG_RATIO = tuple(math.log(ratio) for ratio in RATIO)
# That this process may use.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def threads() -> concurrent.futures.Executor:
    """One for each core."""
    cv2.setNumThreads(1)  # these are the threads
    return concurrent.futures.ThreadPoolExecutor(CORES)


def random_window(height: int, width: int, random: Random) -> tuple[int, int, int, int]:
    """Top, left, height and width of a window of an image of the given size: the first of ten that
    fits, their areas uniform and the logarithms of their aspect ratios too; else the largest one in
    the centre that has an allowed ratio. The place is uniform.
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


def random_resized_crop(photograph: Photograph, size: int, random: Random) -> np.ndarray:
    """Training: a random window of the picture, resized to `size` x `size` pixels; uint8 (size,
    size, channels).

    The resampling sees no pixel outside of the window, as in torchvision.
    """
    top, left, height, width = random_window(*photograph.size, random)
    fraction = photograph.fraction(min(height, width), size)
    full, fewer = photograph.size, photograph.size_at(fraction)
    rows = _covering(top, height, fewer[0], full[0])
    columns = _covering(left, width, fewer[1], full[1])
    return resize(photograph.part(rows, columns, fraction), size)


def _covering(first: int, count: int, fewer: int, full: int) -> Span:
    """Where the pixels that cover `count` of `full`, from `first` on, begin and end among
    `fewer`.
    """
    return first * fewer // full, -(-(first + count) * fewer // full)


def random_crop(photograph: Photograph, short: int, size: int, random: Random) -> np.ndarray:
    """Training: the picture resized to a short side of `short` pixels, of which `size` x `size` at
    random (Krizhevsky et al. 2012, section 4.1, whose 32 x 32 offsets of a 256-pixel image leave
    out the last row and column); uint8 (size, size, channels).

    Equal to resizing all of the picture, of which no more is decoded and resized than is needed.
    """
    least = min(photograph.size)
    fraction = photograph.fraction(least, short)
    spans, first, factors = [], [], []
    for full, pixels in zip(photograph.size, photograph.size_at(fraction), strict=True):
        resized = short * full // least  # as in `augmentation.short_side_size`
        offset, factor = random.randrange(max(resized - size, 1)), pixels / resized
        reach = max(int(factor), 1) + 1  # of the filter, and of the interpolation behind it
        begin = max(math.floor(offset * factor) - reach, 0)
        end = min(math.ceil((offset + size) * factor) + reach, pixels)
        spans.append((begin, end))
        first.append((offset + 0.5) * factor - 0.5 - begin)
        factors.append(factor)
    (rows, columns), (down, across), (y, x) = spans, factors, first
    part = antialiased(photograph.part(rows, columns, fraction), down, across)
    crop = cv2.warpAffine(
        part,
        np.array([[across, 0, x], [0, down, y]]),
        (size, size),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return crop.reshape(size, size, -1)  # OpenCV leaves a single channel out


def mirror(image: np.ndarray) -> np.ndarray:
    return cv2.flip(image, 1).reshape(image.shape)  # NumPy's takes twenty times as long


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 image to `size` x `size`, whatever the aspect ratio: bilinear and, where it shrinks,
    antialiased, as PIL and torchvision do it: the pixels of photographs differ by 0.4/255 to
    0.6/255 on average.
    """
    height, width = image.shape[:2]
    image = antialiased(image, height / size, width / size)
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return resized.reshape(size, size, -1)  # as above


def antialiased(image: np.ndarray, down: float, across: float) -> np.ndarray:
    """The image, filtered so that bilinear interpolation can shrink it by these factors."""
    if down <= 1 and across <= 1:
        return image
    return cv2.sepFilter2D(image, -1, hats(across), hats(down), borderType=cv2.BORDER_REPLICATE)


def hats(factor: float) -> np.ndarray:
    """The filter that, with bilinear interpolation behind it, shrinks an image by `factor`.

    PIL interpolates with a hat that is `factor` times as wide as the pixels' own. Where the factor
    is a whole number, that hat is exactly the sum of pixels' hats, weighted as the hat itself is at
    the pixels; between two of them the filter is their mixture that has the right variance, as the
    variance of a hat of the width f is f^2 / 6.
    """
    whole = max(int(factor), 1)
    share = (max(factor, 1.0) ** 2 - whole**2) / ((whole + 1) ** 2 - whole**2)

    def mixture(distance: int) -> float:
        narrow, wide = (max(width - distance, 0) / width**2 for width in (whole, whole + 1))
        return (1 - share) * narrow + share * wide

    side = [mixture(distance) for distance in range(whole, 0, -1)]
    return np.array([*side, mixture(0), *reversed(side)])  # NumPy's operations take three times
