"""Pictures from files to the pixels that a network reads: Pillow and NumPy."""

import dataclasses
import math
import pathlib
from typing import BinaryIO, Literal, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from flaxnets.errors import InputError

Statistics: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
MAX_READ = 2**22  # pixels that a network reads at once, as a map
MAX_RESIZED = 2**26  # pixels of a picture after scaling, 256 MiB in Pillow


@dataclasses.dataclass(frozen=True)
class Preset:
    """torchvision's `ImageClassification` (transforms/_presets.py): the short side scaled to
    `resize` pixels, the central `crop` x `crop`, (x - mean) / std of pixels in 0..1.

    Without `resize` the whole picture becomes `crop` x `crop` whatever its proportions, as networks
    for small images are fed.
    """

    crop: int = 224
    resize: int | None = 256
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # both with antialiasing
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @property
    def statistics(self) -> Statistics:
        return self.mean, self.std


def read_picture(
    file: pathlib.Path | BinaryIO, channels: int = 3, *, rotate: bool = True, name: str = ""
) -> Image.Image:
    """A picture in RGB, or grey for one channel, from any format that Pillow reads.

    Colours convert as by `PIL.Image.convert`, like in torchvision's data sets: alpha is dropped. 16
    bits are cut to 8. `rotate` turns the picture as its EXIF orientation says, which the usual
    evaluation on ImageNet does not. `name` stands for a `file` that has none in messages.

    Raises InputError if the file is absent, no picture, incomplete, or larger than Pillow's limit
    of 179 million pixels.
    """
    name = name or str(file)
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise InputError(f"the network reads {channels} channels; expected 1 or 3 for a picture")
    try:
        with Image.open(file) as image:
            if image.mode.startswith("I;16"):  # convert would saturate
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            elif image.mode == "P":  # first, or transparency in a palette is warned about
                image = image.convert("RGBA")
            return (ImageOps.exif_transpose(image) if rotate else image).convert(mode)
    except FileNotFoundError:
        raise InputError(f"no file {name}") from None
    except IsADirectoryError:
        raise InputError(f"{name} is a directory; expected a picture") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{name} is not a picture in a format that Pillow reads") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large a picture; scale it down first") from error
    # What decoders raise on broken files is not documented.
    except (OSError, SyntaxError, ValueError, EOFError, TypeError) as error:
        raise InputError(f"{name} is not a complete picture ({error})") from error


def resize(
    image: Image.Image, size: tuple[int, int], interpolation: str = "bilinear"
) -> Image.Image:
    """To `size` (height, width), with antialiasing. Raises InputError above `MAX_RESIZED`."""
    height, width = size
    if height * width > MAX_RESIZED:
        raise InputError(
            f"a picture of {image.width}x{image.height} pixels is too long: scaled for the network "
            f"it would have {width}x{height}; cut it first"
        )
    return image.resize((width, height), Image.Resampling[interpolation.upper()])


def scale_short_side(
    image: Image.Image, short: int, interpolation: str = "bilinear"
) -> Image.Image:
    """The short side to `short` pixels, the long one rounded down, as torchvision does."""
    shortest = min(image.size)
    size = (short * image.height // shortest, short * image.width // shortest)
    return resize(image, size, interpolation)


def cover(
    image: Image.Image, size: tuple[int, ...], interpolation: str = "bilinear"
) -> Image.Image:
    """Scaled until it covers `size` (height, width), and cut to it around the centre."""
    height, width = size
    scale = max(height / image.height, width / image.width)
    scaled = (max(height, round(scale * image.height)), max(width, round(scale * image.width)))
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    return resize(image, scaled, interpolation).crop((left, top, left + width, top + height))


def as_array(image: Image.Image) -> np.ndarray:
    """uint8 (height, width, channels)."""
    return np.asarray(image).reshape(image.height, image.width, -1)


def own_statistics(image: Image.Image) -> Statistics:
    """Statistics with which `(x - mean) / std` becomes `0.5 + 0.5 * (x - m) / s`, where m and s are
    the mean and the standard deviation (of a sample, as torch's) of all values of the picture.

    A picture of one colour becomes 0.5.
    """
    counts = np.array(image.histogram()).reshape(-1, 256).sum(0)
    values = np.arange(256) / 255
    total = counts.sum()
    m = (counts * values).sum() / total
    s = math.sqrt((counts * (values - m) ** 2).sum() / max(total - 1, 1)) or 1.0
    channels = len(image.getbands())
    return (m - s,) * channels, (2 * s,) * channels
