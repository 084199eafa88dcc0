"""Windows that move over a map, and positions within one."""

import jax
import numpy as np

from flaxnets.errors import InputError

Pair = tuple[int, int]  # of rows and columns


def check_fits(x: jax.Array, window: Pair, padding: Pair = (0, 0), overhang: Pair = (0, 0)) -> None:
    """Raise InputError instead of an empty result if `x` (N, H, W, C) is smaller than a window.

    `padding` counts pixels on both sides, `overhang` further ones at the far end.
    """
    height, width = x.shape[1:3]
    rows, columns = height + 2 * padding[0] + overhang[0], width + 2 * padding[1] + overhang[1]
    if rows < window[0] or columns < window[1]:
        raise InputError(
            f"the images are too small for this network: a window of {window[0]}x{window[1]} does "
            f"not fit a feature map of {height}x{width}; use larger images"
        )


def relative_position_index(side: int) -> np.ndarray:
    """Return the row (side^2, side^2), int64, of a table of the (2 side - 1)^2 offsets between two
    positions of a square window, from the second to the first, all in reading order.
    """
    coordinates = np.indices((side, side)).reshape(2, -1)
    rows, columns = coordinates[:, :, None] - coordinates[:, None] + side - 1
    return rows * (2 * side - 1) + columns
