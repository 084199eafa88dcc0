"""Make training windows of JPEGs by the fast road: libjpeg-turbo (simplejpeg) and OpenCV.

No row below a window is decoded. Resizing takes a third of Pillow's time, and its pixels differ by
1/255 on average. If the two packages are not installed, Pillow does everything.

Both release Python's lock while they compute. OpenCV takes it again to allocate a result, so it is
given the arrays that it fills: with 16 threads the lock limits the rate.
"""

import math
import re

import cv2
import numpy as np
import simplejpeg

cv2.setNumThreads(1)  # images are made by a thread for each core

END = b"\xff\xd9"  # the last marker of a JPEG
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers before a JPEG's height and width
# Markers of segments that leave the pixels as they are: tables, comments, and an application's data
# other than EXIF and XMP (0xE1), which may turn the picture.
PASSED = frozenset(bytes([code]) for code in (0xDB, 0xC4, 0xFE, 0xE0, *range(0xE2, 0xF0)))
MAX_PLAIN = 2**26  # pixels; Pillow warns of larger pictures
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # a marker that ends a JPEG's scan


def plain_size(encoded: bytes) -> tuple[int, int, int] | None:
    """Return height, width and channels (1 or 3) of a JPEG with a plain header: without EXIF, other
    colours or an unusual size. Return None for all others, which Pillow opens.
    """
    at, segment = 2, encoded[2:4]
    while segment[:1] == b"\xff" and segment[1:] in PASSED:
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
        segment = encoded[at : at + 2]
    if segment not in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2") or encoded[:2] != b"\xff\xd8":
        return None
    height = int.from_bytes(encoded[at + 5 : at + 7], "big")
    width = int.from_bytes(encoded[at + 7 : at + 9], "big")
    bits, channels = encoded[at + 4 : at + 5], encoded[at + 9 : at + 10]
    if bits != b"\x08" or channels not in (b"\1", b"\3") or not 0 < height * width < MAX_PLAIN:
        return None
    return height, width, channels[0]


def decode_rows(
    encoded: bytes, size: tuple[int, int], colours: str, count: int, fraction: int
) -> np.ndarray | None:
    """Decode at least the first `count` rows of a JPEG to a fraction of height and width.

    Args:
        encoded: the JPEG.
        size: its (height, width).
        colours: "RGB", or "GRAY" for a grey one.
        count: rows of the result that are needed.
        fraction: 1, 2, 4 or 8.

    Returns:
        uint8 (rows, columns, channels); None if libjpeg-turbo reports damage.
    """
    height, width = size
    needed = (count + 2) * fraction  # colours are interpolated, also from those of rows below
    if needed < height:
        encoded, height = _cut(encoded, height, needed)
    try:
        return simplejpeg.decode_jpeg(
            encoded,
            colours,
            min_height=-(-height // fraction),
            min_width=-(-width // fraction),
            min_factor=fraction,
            strict=height == size[0],  # the rows that follow are not missing by damage
        )
    except ValueError:
        return None


def _cut(encoded: bytes, height: int, rows: int) -> tuple[bytes, int]:
    """Return the JPEG with `rows` as the height in its header, and that height; the decoder stops
    there. Return both unchanged if the header is unusual, if the picture may end elsewhere, or if
    the scan of a baseline JPEG is interrupted: decoding the whole reports that.
    """
    at = 2
    while encoded[at : at + 1] == b"\xff" and encoded[at + 1] not in FRAMES:
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    place = slice(at + 5, at + 7)
    if encoded[at : at + 1] != b"\xff" or encoded[place] != height.to_bytes(2, "big"):
        return encoded, height
    is_progressive = encoded[at + 1] not in (0xC0, 0xC1)
    if not encoded.endswith(END) or (not is_progressive and not _has_one_scan(encoded, at)):
        return encoded, height
    unchanged = memoryview(encoded)  # whose parts are not copied twice
    parts = unchanged[: place.start], rows.to_bytes(2, "big"), unchanged[place.stop :]
    return b"".join(parts), rows


def _has_one_scan(encoded: bytes, at: int) -> bool:
    """Return whether nothing but the end follows the first scan after the segment at `at`."""
    while encoded[at : at + 1] == b"\xff" and encoded[at + 1] != 0xDA:
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    match = MARKER.search(encoded, at)
    return match is not None and match.start() == len(encoded) - len(END)


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 (height, width, channels) to `size` x `size`, bilinear and antialiased.

    Pixels differ from Pillow's by 0.6/255 on average over windows of photographs, and by 2/255 in
    the worst window of a sharp one.
    """
    height, width = pixels.shape[:2]
    pixels = antialiased(pixels, height / size, width / size)
    resized = np.empty((size, size, pixels.shape[2]), np.uint8)
    cv2.resize(pixels, (size, size), resized, interpolation=cv2.INTER_LINEAR)
    return resized


def sample(
    pixels: np.ndarray, size: int, first: tuple[float, float], factors: tuple[float, float]
) -> np.ndarray:
    """Return `size` x `size` pixels, bilinear and antialiased, from (y, x) `first` on and `factors`
    pixels apart.
    """
    (y, x), (down, across) = first, factors
    crop = np.empty((size, size, pixels.shape[2]), np.uint8)
    cv2.warpAffine(
        antialiased(pixels, down, across),
        np.array([[across, 0, x], [0, down, y]]),
        (size, size),
        crop,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return crop


def mirror(pixels: np.ndarray) -> np.ndarray:
    """Reverse the columns of (height, width, channels), in a twentieth of NumPy's time."""
    mirrored = np.empty(pixels.shape, np.uint8)
    cv2.flip(pixels, 1, mirrored)
    return mirrored


def antialiased(pixels: np.ndarray, down: float, across: float) -> np.ndarray:
    """Filter pixels so that bilinear interpolation can shrink them by these factors."""
    if down <= 1 and across <= 1:
        return pixels
    # OpenCV takes twice as long for a column of one value as for one of three.
    column = hats(down) if down > 1 else np.array([0.0, 1.0, 0.0])
    filtered = np.empty(pixels.shape, np.uint8)
    cv2.sepFilter2D(pixels, -1, hats(across), column, filtered, borderType=cv2.BORDER_REPLICATE)
    return filtered


def hats(factor: float) -> np.ndarray:
    """Return the filter that, followed by bilinear interpolation, shrinks an image by `factor`.

    Pillow interpolates with a hat `factor` times as wide as a pixel. The filter samples that hat at
    the pixels; its outermost values make the sum one. It is exact for whole factors and close in
    between.
    """
    reach = max(math.ceil(factor) - 1, 0)
    side = [(1 - distance / factor) / factor for distance in range(1, reach)]
    centre = 1 / factor if reach else 1.0
    outermost = [(1 - centre - 2 * sum(side)) / 2] if reach else []
    return np.array([*outermost, *reversed(side), centre, *side, *outermost])
