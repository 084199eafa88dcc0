"""A picture's own statistics, and how many pixels a network reads at once."""

import math

import numpy as np
from PIL import Image

from flaxnets.recipes import Statistics

MAX_READ = 2**22  # pixels that a network reads at once, as a map


def own_statistics(image: Image.Image) -> Statistics:
    """Return the statistics with which `(x - mean) / std` becomes `0.5 + 0.5 * (x - m) / s`, where
    m and s are the mean and the standard deviation (of a sample, as torch's) of all values of the
    picture.

    A picture of one colour becomes 0.5.
    """
    counts = np.array(image.histogram()).reshape(-1, 256).sum(0)
    values = np.arange(256) / 255
    total = counts.sum()
    m = (counts * values).sum() / total
    s = math.sqrt((counts * (values - m) ** 2).sum() / max(total - 1, 1)) or 1.0
    channels = len(image.getbands())
    return (m - s,) * channels, (2 * s,) * channels
