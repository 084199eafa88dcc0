"""Photographs decoded: whole or in part, anew each time or once.

libjpeg-turbo does it, by simplejpeg, which leaves Python's lock to other threads, or by TensorFlow.
"""

import math

import numpy as np
import simplejpeg

from flaxnets.data.augmentation import DCT, decode
from flaxnets.data.decoded import Decoded
from flaxnets.data.tensorflow import tf

END = b"\xff\xd9"  # of a JPEG
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the markers before a JPEG's height and width

Span = tuple[int, int]  # of pixels: the first, and the one behind the last


class Photograph:
    """An encoded picture, of which parts are decoded when they are asked for, unless `decoded` has
    it or takes it.

    Of a JPEG, only a half, a quarter or an eighth of the height and the width is decoded as long as
    that leaves what is asked for twice as large as it is resized to, `smallest` pixels or more;
    pixels then differ from torchvision's by 1/255 to 2/255 on average.

    Raises what TensorFlow does for a picture that it cannot read.
    """

    def __init__(self, encoded: bytes, channels: int, smallest: int, decoded: Decoded):
        self.encoded, self.channels = encoded, channels
        self.picture = decoded.get(encoded)
        if self.picture is None and not simplejpeg.is_jpeg(encoded):
            self.picture = decode(tf.constant(encoded), channels).numpy()
            decoded.keep(encoded, self.picture)
        if self.picture is not None:
            self.size: tuple[int, int] = self.picture.shape[:2]
            return
        self.size = _jpeg_size(encoded)
        # One that is decoded to a fraction for some windows is so whether or not there is room.
        is_always_whole = self.fraction(min(self.size), smallest) == 1
        if is_always_whole and decoded.fits(encoded, math.prod(self.size) * channels):
            self.picture = self._rows(self.size[0], 1)
            if self.picture is not None:
                decoded.keep(encoded, self.picture)

    def fraction(self, pixels: int, asked: int) -> int:
        """Of height and width that need be decoded, where `asked` are made of so many pixels."""
        if self.picture is not None:
            return 1
        return max((n for n in (2, 4, 8) if 2 * n * asked <= pixels), default=1)

    def size_at(self, fraction: int) -> tuple[int, int]:
        """Height and width of the picture decoded to that fraction."""
        height, width = self.size
        return -(-height // fraction), -(-width // fraction)

    def part(self, rows: Span, columns: Span, fraction: int) -> np.ndarray:
        """uint8 pixels (rows, columns, channels) of the picture decoded to that fraction."""
        picture = self.picture
        if picture is None:
            picture = self._rows(rows[1], fraction)
        if picture is None:
            picture = np.asarray(
                tf.io.decode_jpeg(self.encoded, self.channels, ratio=fraction, dct_method=DCT)
            )
        return picture[slice(*rows), slice(*columns)]

    def _rows(self, count: int, fraction: int) -> np.ndarray | None:
        """The first `count` rows and maybe more of the picture decoded to that fraction. None of a
        rare kind, or a damaged one: TensorFlow decides.
        """
        if self.channels not in (1, 3):
            return None
        encoded, (height, width) = self.encoded, self.size
        needed = (count + 2) * fraction  # colours are interpolated, also from those of rows below
        if needed < height and encoded.endswith(END):
            encoded, height = _cut(encoded, height, needed)
        try:
            return simplejpeg.decode_jpeg(
                encoded,
                "RGB" if self.channels == 3 else "GRAY",
                min_height=-(-height // fraction),
                min_width=-(-width // fraction),
                min_factor=fraction,
                strict=height == self.size[0],  # what follows the rows is no damage
            )
        except ValueError:
            return None


def _cut(encoded: bytes, height: int, rows: int) -> tuple[bytes, int]:
    """The JPEG with `rows` for the height in its header, and its height now: the decoder stops
    there. As it is, where the header is not what it is thought to be.
    """
    at = 2
    while encoded[at : at + 1] == b"\xff" and encoded[at + 1] not in FRAMES:
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    found = slice(at + 5, at + 7)
    if encoded[at : at + 1] != b"\xff" or encoded[found] != height.to_bytes(2, "big"):
        return encoded, height
    return encoded[: found.start] + rows.to_bytes(2, "big") + encoded[found.stop :], rows


def _jpeg_size(encoded: bytes) -> tuple[int, int]:
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:  # a rare kind, or damaged: TensorFlow decides
        height, width, _ = np.asarray(tf.io.extract_jpeg_shape(encoded))
    return int(height), int(width)
