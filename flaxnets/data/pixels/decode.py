"""Decode pictures of every format that Pillow reads, whole or in part, once or every time.

Pixels are those of Pillow's `convert("RGB")`, or `"L"` for one channel, with one exception: grey
values of 16 bits are scaled to 8, where Pillow saturates. The format is read from the bytes, never
from the name of the file. Training windows of JPEGs take a faster road (`jpeg.py`), which decodes
no row below the window and decodes large pictures at a fraction of their size.
"""

import contextlib
import dataclasses
import functools
import io
import math
import pathlib
from collections.abc import Iterator
from types import ModuleType

import numpy as np
from PIL import ExifTags, Image

from flaxnets.data.decoded import Decoded
from flaxnets.errors import InputError, shown
from flaxnets.recipes import Orientation

MODES = {1: "L", 3: "RGB"}  # Pillow's, by the number of channels
Span = tuple[int, int]  # the first pixel, and the one after the last

# How a stored picture becomes upright, by its EXIF orientation (JEITA CP-3451): whether rows and
# columns are exchanged, then whether rows, then whether columns are reversed.
TURNS = {
    1: (False, False, False), 2: (False, False, True),
    3: (False, True, True), 4: (False, True, False),
    5: (True, False, False), 6: (True, False, True),
    7: (True, True, True), 8: (True, True, False),
}  # fmt: skip

SPARE = 2  # a decoded fraction has at least this many times the needed rows and columns


@functools.cache
def fast_road() -> ModuleType | None:
    """Return `flaxnets.data.pixels.jpeg`, unless a package that it needs is not installed."""
    try:
        from flaxnets.data.pixels import jpeg
    except ImportError:  # a thread that waited while another's import failed has this one
        return None
    return jpeg


class UnreadablePicture(InputError):
    """A file or a stored picture that cannot be decoded; the message names it."""


@dataclasses.dataclass(frozen=True)
class Decode:
    """The first operation of a plan, which makes a `Picture` of bytes or of pixels."""

    channels: int
    """1 (grey) or 3 (RGB)."""
    orientation: Orientation = "upright"
    """Turned upright as EXIF says, or as the pixels are stored (as torchvision's ImageFolder)."""

    def __call__(
        self, raw: bytes | np.ndarray, *, memory: Decoded | None = None, name: str = "the picture"
    ) -> "Picture":
        """Return the picture, which is decoded later. Messages call it `name`; `memory` keeps it
        decoded if there is room.

        Raises UnreadablePicture if Pillow does not read its format, or if it is too large.
        """
        return Picture(raw, self, memory or Decoded(), name)


def read_file(path: pathlib.Path | str) -> bytes:
    """Return the bytes of a file. Raises UnreadablePicture if it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except FileNotFoundError:
        raise UnreadablePicture(f"no file {shown(path)}") from None
    except IsADirectoryError:
        raise UnreadablePicture(f"{shown(path)} is a directory; expected a picture") from None
    except OSError as error:
        raise UnreadablePicture(f"cannot read {shown(path)} ({error.strerror})") from error


class Picture:
    """A picture that is decoded on demand, whole or in windows.

    `size` is its (height, width) after turning.
    """

    def __init__(self, raw: bytes | np.ndarray, decode: Decode, memory: Decoded, name: str):
        self._name, self._memory = name, memory
        self._kept: np.ndarray | None = None  # all pixels as stored, by the fast road
        self._pixels: np.ndarray | None = None  # all pixels, upright, as Pillow has them
        self.size: tuple[int, int]
        if isinstance(raw, np.ndarray):
            self.takes_fast_road, self._pixels = False, raw
            self.size = raw.shape[:2]
            return
        self._encoded, self._mode = raw, _mode(decode)
        self._is_turned = decode.orientation == "upright"
        self._read_header()
        if self.takes_fast_road:
            height, width = self._stored
            self.size = (width, height) if self._turn[0] else (height, width)
        else:
            self.size = self.pixels.shape[:2]

    def _read_header(self) -> None:
        road, orientation = fast_road(), 1
        plain = road and road.plain_size(self._encoded)
        if plain:  # the most common ones, in a third of the time
            height, width, channels = plain
            self.takes_fast_road, self._stored, self._is_grey = True, (height, width), channels == 1
        else:
            with _one_sentence(self._name):
                header = Image.open(io.BytesIO(self._encoded))
            is_common = header.format in ("JPEG", "MPO") and header.mode in ("L", "RGB")
            self.takes_fast_road = is_common and road is not None
            self._stored, self._is_grey = (header.height, header.width), header.mode == "L"
            orientation = _orientation(header) if self.takes_fast_road and self._is_turned else 1
        self._turn = TURNS[orientation]

    @property
    def pixels(self) -> np.ndarray:
        """uint8 (height, width, channels) of the whole picture, exactly as Pillow has it."""
        # Not a functools.cached_property: in Python 3.11 all pictures would share its lock, so that
        # threads would decode in turns.
        if self._pixels is None and not self.takes_fast_road:  # memory keeps what that road gives
            self._pixels = self._memory.get(self._encoded)
        if self._pixels is None:
            self._pixels = as_array(self._decoded())
            if not self.takes_fast_road:
                self._memory.keep(self._encoded, self._pixels)
        return self._pixels

    @property
    def image(self) -> Image.Image:
        """The whole picture as a Pillow image, exactly as Pillow decodes it."""
        return self._decoded() if self.takes_fast_road else as_image(self.pixels)

    def fraction(self, pixels: int, asked: int) -> int:
        """Return the fraction (1, 2, 4 or 8) of height and width at which decoding is enough if
        `pixels` are resized to `asked`: at least twice as many remain.
        """
        if not self.takes_fast_road:
            return 1
        return max((n for n in (2, 4, 8) if SPARE * n * asked <= pixels), default=1)

    def size_at(self, fraction: int) -> tuple[int, int]:
        """Return height and width of the picture decoded to that fraction."""
        height, width = self.size
        return -(-height // fraction), -(-width // fraction)

    def part(self, rows: Span, columns: Span, fraction: int) -> np.ndarray:
        """Return uint8 pixels (rows, columns, channels) of the picture decoded to that fraction.

        Those of a JPEG differ from Pillow's by at most 1/255 if the fraction is 1. Raises
        UnreadablePicture if the picture is damaged.
        """
        if not self.takes_fast_road:
            return self.pixels[slice(*rows), slice(*columns)]
        (height, width), (exchanged, down, across) = self.size_at(fraction), self._turn
        rows = (height - rows[1], height - rows[0]) if down else rows
        columns = (width - columns[1], width - columns[0]) if across else columns
        if exchanged:
            rows, columns = columns, rows
        pixels = self._rows(rows[1], fraction)[slice(*rows), slice(*columns)]
        if exchanged:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if down else 1, :: -1 if across else 1]

    def keep_for(self, smallest: int) -> None:
        """Keep the picture decoded if there is room and no window resized to `smallest` pixels or
        more is ever made from a fraction of it. So a window has the same pixels with and without
        room.
        """
        if not self.takes_fast_road or self.fraction(min(self.size), smallest) > 1:
            return
        self._kept = self._memory.get(self._encoded)
        size = math.prod(self._stored) * len(self._mode)
        if self._kept is None and self._memory.fits(self._encoded, size):
            self._kept = self._rows(self._stored[0], 1)
            self._memory.keep(self._encoded, self._kept)

    def _rows(self, count: int, fraction: int) -> np.ndarray:
        """Return at least the first `count` stored rows of the picture decoded to that fraction. If
        libjpeg-turbo reports damage, Pillow decides.
        """
        if self._kept is not None:  # only where the fraction is always 1
            return self._kept
        road, becomes_grey = fast_road(), self._mode == "L" and not self._is_grey
        assert road is not None
        colours = "GRAY" if self._mode == "L" and self._is_grey else "RGB"
        pixels = road.decode_rows(self._encoded, self._stored, colours, count, fraction)
        if pixels is None:
            return self._drafted(fraction)
        return as_array(Image.fromarray(pixels).convert("L")) if becomes_grey else pixels

    def _drafted(self, fraction: int) -> np.ndarray:
        with _one_sentence(self._name):
            image = Image.open(io.BytesIO(self._encoded))
            image.draft(None, (image.width // fraction, image.height // fraction))
            return as_array(image.convert(self._mode))

    def _decoded(self) -> Image.Image:
        with _one_sentence(self._name):
            image = Image.open(io.BytesIO(self._encoded))
            return _turned(image, self._mode, self._is_turned)


def pixels_of(image: Image.Image, decode: Decode, name: str = "the picture") -> np.ndarray:
    """Return uint8 (height, width, channels) of an opened Pillow image, as `decode` has them of its
    file. Raises UnreadablePicture if it is damaged.
    """
    mode = _mode(decode)
    with _one_sentence(name):
        return as_array(_turned(image, mode, decode.orientation == "upright"))


def _mode(decode: Decode) -> str:
    if decode.channels not in MODES:
        raise InputError(
            f"the network reads {decode.channels} channels; expected 1 or 3 for a picture"
        )
    return MODES[decode.channels]


def _turned(image: Image.Image, mode: str, is_turned: bool) -> Image.Image:
    image.load()
    exchanged, down, across = TURNS[_orientation(image) if is_turned else 1]
    converted = _converted(image, mode)
    if exchanged:
        converted = converted.transpose(Image.Transpose.TRANSPOSE)
    if down:
        converted = converted.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    if across:
        converted = converted.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return converted


@contextlib.contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises into UnreadablePicture."""
    try:
        yield
    except Image.UnidentifiedImageError:
        sentence = f"{shown(name)} is not a picture in a format that Pillow reads"
        raise UnreadablePicture(sentence) from None
    except Image.DecompressionBombError as error:
        sentence = f"{shown(name)} is too large a picture; scale it down first"
        raise UnreadablePicture(sentence) from error
    except Exception as error:  # what decoders raise on broken files is not documented
        reason = " ".join(str(error).split()) or type(error).__name__
        sentence = f"{shown(name)} is not a complete picture ({reason})"
        raise UnreadablePicture(sentence) from error


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 to 8; 1 if there is none, or if it cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a picture with broken EXIF is still readable
        return 1
    return value if value in TURNS else 1


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16"):  # convert would saturate
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "I" and image.format in ("PNG", "PPM"):  # their 16 bits, in 32
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:  # else Pillow warns; the same values
        image = image.convert("RGBA")
    return image.convert(mode)


def as_array(image: Image.Image) -> np.ndarray:
    """Return uint8 (height, width, channels)."""
    return np.asarray(image).reshape(image.height, image.width, -1)


def as_image(pixels: np.ndarray) -> Image.Image:
    """Return a Pillow image of uint8 (height, width, channels), of one channel or three."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
