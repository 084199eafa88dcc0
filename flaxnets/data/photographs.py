"""Photographs decoded: whole or in part, anew each time or once.

libjpeg-turbo does it, by simplejpeg, which leaves Python's lock to other threads, or by TensorFlow.
"""

import math
import threading

import numpy as np
import simplejpeg

from flaxnets.data.augmentation import DCT, decode
from flaxnets.data.tensorflow import tf

# Bytes of a JPEG of which TensorFlow decodes the part alone. A call of it takes 0.1 ms and holds
# Python's lock; the fifth that it saves of the decoding is less in smaller ones.
LARGE = 2**16

Span = tuple[int, int]  # of pixels: the first, and the one behind the last


class Decoded:
    """Whole decoded pictures by their encoded bytes: the first ones that come, as many as fit
    `room` bytes.
    """

    def __init__(self, room: int = 0):
        self.room = room
        self._pictures: dict[bytes, np.ndarray] = {}
        self._lock = threading.Lock()

    def get(self, encoded: bytes) -> np.ndarray | None:
        return self._pictures.get(encoded)

    def fits(self, encoded: bytes, pixels: int) -> bool:
        return len(encoded) + pixels <= self.room

    def keep(self, encoded: bytes, picture: np.ndarray) -> None:
        with self._lock:
            if encoded not in self._pictures and self.fits(encoded, picture.nbytes):
                self.room -= len(encoded) + picture.nbytes
                self._pictures[encoded] = picture


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
            self.picture = self._whole(1)
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
        if picture is None and len(self.encoded) < LARGE:
            picture = self._whole(fraction)
        if picture is not None:
            return picture[slice(*rows), slice(*columns)]
        # Colours are interpolated, also from those of the columns beside the part.
        left, right = max(columns[0] - 2, 0), min(columns[1] + 2, self.size_at(fraction)[1])
        window = [rows[0], left, rows[1] - rows[0], right - left]
        part = tf.io.decode_and_crop_jpeg(
            self.encoded, window, self.channels, ratio=fraction, dct_method=DCT
        )
        return np.asarray(part)[:, columns[0] - left :][:, : columns[1] - columns[0]]

    def _whole(self, fraction: int) -> np.ndarray | None:
        """None of a rare kind, or a damaged one: TensorFlow decides."""
        if self.channels not in (1, 3):
            return None
        height, width = self.size_at(fraction)
        try:
            return simplejpeg.decode_jpeg(
                self.encoded,
                "RGB" if self.channels == 3 else "GRAY",
                min_height=height,
                min_width=width,
                min_factor=fraction,
            )
        except ValueError:
            return None


def _jpeg_size(encoded: bytes) -> tuple[int, int]:
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:  # a rare kind, or damaged: TensorFlow decides
        height, width, _ = np.asarray(tf.io.extract_jpeg_shape(encoded))
    return int(height), int(width)
