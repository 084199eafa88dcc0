"""Windows of photographs, random in size, shape and place, decoded and resized to one size.

libjpeg-turbo (by simplejpeg, or by TensorFlow) and OpenCV do it in a third of the time that
TensorFlow takes alone, and without Python's lock, hence in threads.
"""

import concurrent.futures
import contextlib
import functools
import math
import os
from random import Random

import cv2
import numpy as np
import simplejpeg

from flaxnets.data.augmentation import DCT, decode
from flaxnets.data.tensorflow import tf

# Szegedy et al. 2014, section 6, as torchvision's RandomResizedCrop has it: the window's share of
# the image's area, its aspect ratio (width to height), and how many are tried.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
TRIES = 10
LOG_RATIO = tuple(math.log(ratio) for ratio in RATIO)
# Bytes of a JPEG of which TensorFlow decodes the window alone. A call of it takes 0.1 ms and holds
# Python's lock; the fifth that it saves of the decoding is less in smaller ones.
LARGE = 2**16
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


def random_resized_crop(encoded: bytes, size: int, channels: int, random: Random) -> np.ndarray:
    """Training: a random window of a photograph, resized to `size` x `size` pixels; uint8 (size,
    size, channels).

    The resampling sees no pixel outside of the window, as in torchvision. Of a JPEG, only a half, a
    quarter or an eighth of the height and the width is decoded as long as that leaves the window
    twice as large as asked; pixels then differ from torchvision's by 1/255 to 2/255 on average.

    Raises what TensorFlow does for a picture that it cannot read.
    """
    if not simplejpeg.is_jpeg(encoded):
        picture = decode(tf.constant(encoded), channels).numpy()
        rows, columns, _ = picture.shape
        top, left, height, width = random_window(rows, columns, random)
        return resize(picture[top : top + height, left : left + width], size)
    full = _jpeg_size(encoded)
    top, left, height, width = random_window(*full, random)
    fraction = max((n for n in (2, 4, 8) if 2 * n * size <= min(height, width)), default=1)
    rows, columns = (-(-pixels // fraction) for pixels in full)
    top, bottom = _covering(top, height, rows, full[0])
    left, right = _covering(left, width, columns, full[1])
    if len(encoded) < LARGE and channels in (1, 3):
        with contextlib.suppress(ValueError):  # a rare kind, or damaged: TensorFlow decides
            picture = simplejpeg.decode_jpeg(
                encoded,
                "RGB" if channels == 3 else "GRAY",
                min_height=rows,
                min_width=columns,
                min_factor=fraction,
            )
            return resize(picture[top:bottom, left:right], size)
    # Colours are interpolated, also from those of the columns beside the window.
    before, after = min(2, left), min(2, columns - right)
    part = [top, left - before, bottom - top, before + right - left + after]
    picture = tf.io.decode_and_crop_jpeg(encoded, part, channels, ratio=fraction, dct_method=DCT)
    return resize(np.asarray(picture)[:, before:][:, : right - left], size)


def _jpeg_size(encoded: bytes) -> tuple[int, int]:
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:  # as above
        height, width, _ = np.asarray(tf.io.extract_jpeg_shape(encoded))
    return int(height), int(width)


def _covering(first: int, count: int, fewer: int, full: int) -> tuple[int, int]:
    """Where the pixels that cover `count` of `full`, from `first` on, begin and end among
    `fewer`.
    """
    return first * fewer // full, -(-(first + count) * fewer // full)


def mirror(image: np.ndarray) -> np.ndarray:
    return cv2.flip(image, 1).reshape(image.shape)  # NumPy's takes twenty times as long


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 image to `size` x `size`, whatever the aspect ratio: bilinear and, where it shrinks,
    antialiased, as PIL and torchvision do it: the pixels of photographs differ by 0.4/255 to
    0.6/255 on average.
    """
    down, across = (pixels / size for pixels in image.shape[:2])
    if down > 1 or across > 1:
        image = cv2.sepFilter2D(
            image, -1, antialiasing(across), antialiasing(down), borderType=cv2.BORDER_REPLICATE
        )
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return resized.reshape(size, size, -1)  # OpenCV leaves a single channel out


def antialiasing(factor: float) -> np.ndarray:
    """The filter that, with bilinear interpolation behind it, shrinks an image by `factor`.

    PIL interpolates with a hat that is `factor` times as wide as the pixels' own. Where the factor
    is a whole number, that hat is exactly the sum of pixels' hats, weighted as the hat itself is at
    the pixels; between two of them the filter is their mixture that has the right variance, as the
    variance of a hat of the width f is f^2 / 6.
    """
    whole = max(int(factor), 1)
    pixels = np.abs(np.arange(-whole, whole + 1))
    narrow, wide = (np.maximum(width - pixels, 0) / width**2 for width in (whole, whole + 1))
    share = (max(factor, 1.0) ** 2 - whole**2) / ((whole + 1) ** 2 - whole**2)
    return (1 - share) * narrow + share * wide
