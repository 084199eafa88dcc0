"""Compare pixels with Pillow's and torchvision's: decoded, turned, resized, cropped, coloured."""

import concurrent.futures
import io
import threading
from random import Random

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image, ImageOps

from flaxnets import InputError
from flaxnets.data.decoded import Decoded
from flaxnets.data.pixels import jpeg
from flaxnets.data.pixels.colour import (
    IMAGENET_EIGENVALUES,
    IMAGENET_EIGENVECTORS,
    Colour,
    Grayscale,
)
from flaxnets.data.pixels.crop import (
    CenterCrop,
    Flip,
    PadAndCrop,
    RandomCrop,
    RandomResizedCrop,
    center,
    mirror,
    random_window,
)
from flaxnets.data.pixels.decode import Decode, Picture, UnreadablePicture, as_array, read_file
from flaxnets.data.pixels.jpeg import hats
from flaxnets.data.pixels.resize import (
    Interpolation,
    Resize,
    cover,
    resize_window,
    scale_short_side,
    short_side_size,
)
from tools.torchvision_import import torchvision

functional = torchvision.transforms.functional
BILINEAR = Image.Resampling.BILINEAR


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return sklearn.datasets.load_sample_image("china.jpg")


def saved(image: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(encoded: bytes, channels: int = 3, room: int = 0) -> Picture:
    return Decode(channels)(encoded, memory=Decoded(room))


def differences(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, int]:
    """Return the mean and the maximum of the absolute differences."""
    difference = np.abs(ours.astype(int) - theirs)
    return difference.mean(), difference.max()


# Decoding


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_is_turned_as_its_exif_says(orientation, kind):
    """Pillow's exif_transpose gives the same: the corner that EXIF calls top left is first."""
    image = np.full((16, 32, 3), 128, np.uint8)
    rows, columns = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (1, 0),
                     7: (1, 1), 8: (0, 1)}[orientation]  # fmt: skip
    image[rows * 8 : rows * 8 + 8, columns * 16 : columns * 16 + 16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = saved(image, kind, exif=exif, quality=100)
    pillows = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    picture = Decode(3)(encoded)
    np.testing.assert_array_equal(picture.pixels, pillows.convert("RGB"))
    height, width = picture.size
    assert (height, width) == ((32, 16) if orientation > 4 else (16, 32))
    assert picture.pixels[0, 0].min() > 240
    assert picture.pixels[0, -1].max() < 140
    if kind != "TIFF":  # which Pillow itself turns
        assert Decode(3, "stored")(encoded).size == (16, 32)
    for fraction in (1, 2):  # on the road of training windows, too
        size = picture.size_at(fraction) if kind == "JPEG" else picture.size
        whole = picture.part((0, size[0]), (0, size[1]), fraction)
        part = picture.part((1, size[0] - 2), (2, size[1] - 1), fraction)
        np.testing.assert_array_equal(part, whole[1:-2, 2:-1])
        if fraction == 1:
            assert differences(whole, picture.pixels)[1] <= 1
        assert whole[0, 0].min() > 240
        assert whole[0, -1].max() < 140


def test_broken_exif_turns_nothing(photograph):
    encoded = saved(photograph[:50, :60], "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff")
    np.testing.assert_array_equal(
        Decode(3)(encoded).pixels, Image.open(io.BytesIO(encoded)).convert("RGB")
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_threads_decode_at_the_same_time(photograph, monkeypatch, kind):
    both, decoded = threading.Barrier(2), Picture._decoded

    def meeting(self):
        both.wait(timeout=20)
        return decoded(self)

    monkeypatch.setattr(Picture, "_decoded", meeting)
    encoded = saved(photograph[:20, :30], kind)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda encoded: opened(encoded).pixels, [encoded] * 2)
    np.testing.assert_array_equal(first, second)


def test_a_plain_header_is_read_without_pillow(photograph):
    """Profiles and comments leave pixels as they are; EXIF may turn them."""
    described = saved(photograph, "JPEG", icc_profile=b"profile", comment=b"a temple")
    assert jpeg.plain_size(described) == (427, 640, 3)
    assert jpeg.plain_size(saved(photograph[..., 0], "JPEG")) == (427, 640, 1)
    assert jpeg.plain_size(saved(photograph, "JPEG", exif=Image.Exif())) is None
    assert jpeg.plain_size(saved(Image.fromarray(photograph).convert("CMYK"), "JPEG")) is None


def test_sixteen_bits_are_scaled():
    """Images of 16 bits are the one exception to Pillow's convert, which saturates them."""
    deep = np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27
    for kind in ("PNG", "TIFF", "PPM"):
        encoded = saved(deep, kind)
        for channels in (1, 3):
            pixels = Decode(channels)(encoded).pixels
            np.testing.assert_array_equal(pixels, np.stack([deep // 256] * channels, -1))


def test_files_that_cannot_be_read(tmp_path):
    for path, sentence in (
        (tmp_path / "absent.jpg", f"no file {tmp_path}/absent.jpg"),
        (tmp_path, f"{tmp_path} is a directory; expected a picture"),
    ):
        with pytest.raises(UnreadablePicture) as raised:
            read_file(path)
        assert str(raised.value) == sentence
    with pytest.raises(InputError, match="the network reads 5 channels; expected 1 or 3"):
        Decode(5)(saved(np.zeros((2, 2), np.uint8)))


@pytest.mark.parametrize("fraction", [1, 2, 4, 8])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 2}, {"thumbnail": True}]
)
def test_rows_below_a_window_are_not_decoded(photograph, options, subsampling, fraction):
    image = photograph[:203, :301]
    encoded = saved(image, "JPEG", subsampling=subsampling, **options)
    if "thumbnail" in options:
        encoded = encoded[:2] + thumbnail(image) + encoded[2:]
    picture = opened(encoded)
    whole = picture._rows(203, fraction)
    assert len(whole) == -(-203 // fraction)
    for count in range(1, len(whole) + 1, 5):
        rows = picture._rows(count, fraction)
        assert len(rows) == min(count + 2, len(whole))
        np.testing.assert_array_equal(rows[:count], whole[:count])


def thumbnail(image: np.ndarray) -> bytes:
    """Return an APP1 segment that contains a JPEG of the same size, as cameras write it."""
    inside = saved(image, "JPEG", quality=20)
    return b"\xff\xe1" + (len(inside) + 2).to_bytes(2, "big") + inside


def test_what_follows_the_rows_of_a_jpeg(photograph):
    """Damage after the rows is found; a picture that may end elsewhere is decoded completely."""
    encoded = saved(photograph[:200, :300], "JPEG")
    part = opened(encoded).part((0, 20), (0, 300), 1)
    trailing = opened(encoded + b"camera")
    np.testing.assert_array_equal(trailing.part((0, 20), (0, 300), 1), part)
    assert len(trailing._rows(20, 1)) == 200
    filled = opened(encoded[:2] + b"\xff" + encoded[2:])  # a marker may begin with more
    np.testing.assert_array_equal(filled.part((0, 20), (0, 300), 1), part)
    late = len(encoded) * 9 // 10
    no_marker = encoded[:late] + b"\xff\xc4\x00\x00" + encoded[late:]
    for damaged in (encoded[:-2000], no_marker):
        with pytest.raises(UnreadablePicture, match="the picture is not a complete picture"):
            opened(damaged).part((0, 20), (0, 300), 1)


@pytest.mark.parametrize("known", [True, False])
def test_large_photographs_are_decoded_in_part(photograph, monkeypatch, known):
    """libjpeg-turbo decodes the part; if it reports damage, Pillow decodes the picture."""
    large = np.asarray(Image.fromarray(photograph).resize((2560, 1708), Image.Resampling.BICUBIC))
    encoded, fractions = saved(large, "JPEG", quality=95), set()
    decode, drafted = jpeg.simplejpeg.decode_jpeg, Picture._drafted

    def spying(*arguments, **options):
        fractions.add(options["min_factor"])
        if not known:
            raise ValueError
        return decode(*arguments, **options)

    def draft(self, fraction):
        assert not known
        pixels = drafted(self, fraction)
        assert pixels.shape[:2] == self.size_at(fraction)
        return pixels

    monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", spying)
    monkeypatch.setattr(Picture, "_drafted", draft)
    for seed in range(12):
        ours = RandomResizedCrop(100)(opened(encoded), Random(seed))
        # A window begins and ends at a decoded pixel, up to half of a pixel away.
        assert differences(ours, torchvisions_window(large, seed, 100))[0] < 3
    assert fractions == {2, 4}
    fractions.clear()
    for short in (150, 300, 450):
        ours = RandomCrop(short, 100)(opened(encoded), Random(short))
        assert differences(ours, torchvisions_crop(large, short, short, 100))[0] < 2
    assert fractions == {4, 2, 1}


def test_a_photograph_that_is_decoded_smaller_at_times_is_never_kept(photograph):
    """If it were kept, the same window would sometimes have other pixels."""
    encoded = saved(photograph, "JPEG")
    memory = Decoded(10**7)
    for smallest in (106, 107):  # 4 * 106 <= 427
        Decode(3)(encoded, memory=memory).keep_for(smallest)
        assert (memory.get(encoded) is not None) == (smallest == 107)


# Resizing


def test_small_images_are_resized_as_torchvision_does_it():
    """Forty images are resized in two parts."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    for channels in (1, 3):
        some = images[..., :channels]
        for size in (6, 8, 12):
            for interpolation in ("bilinear", "bicubic"):
                mode = torchvision.transforms.InterpolationMode(interpolation)
                resize = Resize(size, interpolation)
                expected = [
                    np.asarray(functional.resize(Image.fromarray(x.squeeze()), [size, size], mode))
                    for x in some
                ]
                found = resize.many(some)
                np.testing.assert_array_equal(found.squeeze(), expected)
                alone = [resize(Decode(channels)(image), Random(0)) for image in some]
                np.testing.assert_array_equal(found, alone)


@pytest.mark.parametrize("size", [(448, 448), (672, 448), (100, 130), (224, 224), (300, 500)])
def test_windows_of_jpegs_are_resized_nearly_as_torchvision_does_it(photograph, size):
    """They differ by rounding alone unless a scale is a fraction below 1; then they are close."""
    image = np.asarray(Image.fromarray(photograph).resize(size[::-1]))
    theirs = np.asarray(Image.fromarray(image).resize((224, 224), BILINEAR))
    ours = resize_window(image, 224, "bilinear", by_fast_road=True)
    mean, most = differences(ours[2:-2, 2:-2], theirs[2:-2, 2:-2])
    exact = all(side <= 224 or side % 224 == 0 for side in size)
    assert mean < (0.4 if exact else 1.2)
    assert not exact or most <= 2
    without = torch.nn.functional.interpolate(
        torch.tensor(image.transpose(2, 0, 1)[None]), (224, 224), mode="bilinear"
    )
    aliased = without[0].numpy().transpose(1, 2, 0)
    assert max(size) <= 224 or mean < 0.6 * differences(aliased, theirs)[0]
    exact_ones: tuple[tuple[Interpolation, bool], ...] = (("bilinear", False), ("bicubic", True))
    for interpolation, fast in exact_ones:  # these are Pillow's
        pillows = Image.fromarray(image).resize((224, 224), Image.Resampling[interpolation.upper()])
        np.testing.assert_array_equal(resize_window(image, 224, interpolation, fast), pillows)


@pytest.mark.parametrize("factor", [1.0, 1.2, 1.7, 2.0, 2.6, 3.0, 5.3])
def test_the_filter_is_pils_hat_at_the_pixels(factor):
    weights = hats(factor)
    reach = np.arange(len(weights)) - len(weights) // 2
    assert weights.sum() == pytest.approx(1)
    hat = np.maximum(1 - np.abs(reach) / factor, 0) / factor
    inner = slice(1, -1) if len(weights) > 1 else slice(None)
    np.testing.assert_allclose(weights[inner], hat[inner])
    assert (weights > 0).all()
    if factor == round(factor):
        np.testing.assert_allclose(weights, hat)


def test_windows_of_photographs_are_close_to_torchvisions(photograph):
    means = []
    rows, columns = photograph.shape[:2]
    for seed in range(60):
        top, left, height, width = random_window(rows, columns, Random(seed))
        window = np.ascontiguousarray(photograph[top : top + height, left : left + width])
        theirs = np.asarray(Image.fromarray(window).resize((224, 224), BILINEAR))
        means.append(
            differences(resize_window(window, 224, "bilinear", by_fast_road=True), theirs)[0]
        )
    assert np.mean(means) < 1.0
    assert np.max(means) < 2.0


def test_cover_fills_the_size_without_distortion(photograph):
    image = Image.fromarray(np.mgrid[:100, :300][1].astype(np.uint16).clip(0, 255).astype(np.uint8))
    covered = np.asarray(cover(image, (50, 60))).astype(float)  # half the size, columns 90..210
    assert covered.shape == (50, 60)
    np.testing.assert_allclose(np.diff(covered, axis=1)[:, 1:-1], 2, atol=1)
    np.testing.assert_allclose(covered[0, [0, -1]], [90.5, 208.5], atol=1)
    assert cover(Image.fromarray(photograph), (245, 999)).size == (999, 245)


# Crops


@pytest.mark.parametrize(("height", "width"), [(301, 500), (500, 301), (256, 256), (100, 143)])
def test_the_centre_is_torchvisions(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    pil = functional.resize(Image.fromarray(image), 256)
    assert pil.size[::-1] == short_side_size(height, width, 256)
    theirs = np.asarray(functional.center_crop(pil, 224))
    for raw in (image, saved(image)):
        ours = CenterCrop(256, 224)(Decode(3)(raw), Random(0))
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(
        center(as_array(scale_short_side(Image.fromarray(image), 256)), 224), theirs
    )


def draw(height: int, width: int, count: int) -> np.ndarray:
    """Return [y, x, height, width] of `count` windows."""
    return np.array([random_window(height, width, Random(i)) for i in range(count)])


@pytest.mark.parametrize("size", [(300, 400), (64, 200), (200, 64), (33, 33)])
def test_windows_are_distributed_as_torchvisions(size):
    height, width = size
    ours = draw(height, width, 3000)
    image, crop = torch.empty(1, *size), torchvision.transforms.RandomResizedCrop
    torch.manual_seed(0)
    draws = (crop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000))
    theirs = np.array(list(draws))
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= size).all()
    for measure in (lambda w: w[:, 2] * w[:, 3], lambda w: w[:, 2] / w[:, 3], *np.eye(4)):
        both = [measure(w) if callable(measure) else w @ measure for w in (ours, theirs)]
        values = np.unique(np.concatenate(both))
        below = [np.searchsorted(np.sort(one), values, "right") / 3000 for one in both]
        assert np.abs(below[0] - below[1]).max() < 0.05  # Kolmogorov-Smirnov: once in 1000


@pytest.mark.parametrize("size", [(20, 900), (900, 20)])
def test_a_window_that_never_fits_is_the_largest_in_the_centre(size):
    image, crop = torch.empty(1, *size), torchvision.transforms.RandomResizedCrop
    expected = crop.get_params(image, [1.0, 1.0], [3 / 4, 4 / 3])
    long = int(np.argmax(size))
    height, width = size
    windows = draw(height, width, 50)
    assert (windows[:, 2 + long] <= 27).all()  # 20 * 4 / 3
    assert tuple(expected) in {tuple(window) for window in windows.tolist()}


def torchvisions_window(
    image: np.ndarray, seed: int, size: int, interpolation: str = "bilinear"
) -> np.ndarray:
    height, width = image.shape[:2]
    window = random_window(height, width, Random(seed))
    mode = torchvision.transforms.InterpolationMode(interpolation)
    cut = functional.resized_crop(Image.fromarray(image), *window, [size, size], mode)
    return np.asarray(cut)


def torchvisions_crop(
    image: np.ndarray, seed: int, short: int, size: int, interpolation: str = "bilinear"
) -> np.ndarray:
    random = Random(seed)
    assert random.randint(short, short) == short
    mode = torchvision.transforms.InterpolationMode(interpolation)
    resized = np.asarray(functional.resize(Image.fromarray(image), short, mode))
    top, left = (random.randrange(max(side - size, 1)) for side in resized.shape[:2])
    return resized[top : top + size, left : left + size]


@pytest.mark.parametrize("room", [0, 10**6])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("channels", [1, 3])
def test_windows_of_a_jpeg(photograph, subsampling, mode, room, channels):
    """Windows are equal whether memory keeps the picture or not, and close to torchvision's."""
    image = Image.fromarray(photograph[:201, :307]).convert(mode)
    encoded = saved(image, "JPEG", **({"subsampling": subsampling} if mode == "RGB" else {}))
    decoded = np.asarray(Image.open(io.BytesIO(encoded)).convert("L" if channels == 1 else "RGB"))
    picture = opened(encoded, channels, room)
    assert differences(picture.part((0, 201), (0, 307), 1).squeeze(), decoded)[1] <= 1
    for seed in range(6):
        for crop, theirs in (
            (RandomResizedCrop(64), torchvisions_window(decoded, seed, 64)),
            (RandomCrop(110, 64), torchvisions_crop(decoded, seed, 110, 64)),
        ):
            ours = crop(picture, Random(seed))
            assert ours.shape == (64, 64, channels)
            np.testing.assert_array_equal(ours, crop(opened(encoded, channels), Random(seed)))
            assert differences(ours.squeeze(), theirs)[0] < 2


@pytest.mark.parametrize(
    ("short", "size", "most"), [(427, 400, 1), (600, 576, 2), (213, 200, 3), (256, 224, None)]
)
def test_a_random_crop_of_a_jpeg_is_torchvisions(photograph, short, size, most):
    """They differ by rounding alone unless the scale is a fraction below 1; then they are close."""
    encoded = saved(photograph[:426] if short == 213 else photograph, "JPEG")
    image = np.asarray(Image.open(io.BytesIO(encoded)))
    for seed in range(4):
        ours = RandomCrop(short, size)(opened(encoded), Random(seed))
        mean, largest = differences(ours, torchvisions_crop(image, seed, short, size))
        assert mean < 1.2
        assert most is None or largest <= most


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "JPEG"])
def test_windows_of_other_pictures_have_torchvisions_bits(photograph, kind, interpolation):
    """A JPEG in CMYK is one of the other pictures."""
    image = Image.fromarray(photograph[:90, :120]).convert("CMYK" if kind == "JPEG" else "RGB")
    encoded = saved(image, kind)
    shown = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    for seed in range(4):
        ours = RandomResizedCrop(60, interpolation)(opened(encoded), Random(seed))
        theirs = torchvisions_window(shown, seed, 60, interpolation)
        np.testing.assert_array_equal(ours, theirs)
        ours = RandomCrop(70, 60, interpolation=interpolation)(opened(encoded), Random(seed))
        theirs = torchvisions_crop(shown, seed, 70, 60, interpolation)
        np.testing.assert_array_equal(ours, theirs)


def test_bicubic_windows_of_a_jpeg_are_torchvisions(photograph):
    encoded = saved(photograph, "JPEG")
    shown = np.asarray(Image.open(io.BytesIO(encoded)))
    for seed in range(4):
        ours = RandomResizedCrop(180, "bicubic")(opened(encoded), Random(seed))
        assert differences(ours, torchvisions_window(shown, seed, 180, "bicubic"))[1] <= 2
        ours = RandomCrop(256, 224, interpolation="bicubic")(opened(encoded), Random(seed))
        np.testing.assert_array_equal(ours, torchvisions_crop(shown, seed, 256, 224, "bicubic"))


def test_a_picture_of_one_row_is_cropped(photograph):
    """A very long picture is cropped too, because only a part of it is resized."""
    row = np.tile(photograph[:1], (1, 40, 1))
    for crop in (RandomCrop(64, 64), CenterCrop(64, 64)):
        pixels = crop(opened(saved(row)), Random(3))
        assert pixels.shape == (64, 64, 3)
        assert (np.ptp(pixels, axis=0) == 0).all()  # one row, hence equal columns


def test_krizhevskys_2048_crops_and_reflections():
    """Section 4.1 has 32 x 32 offsets and their reflections; here in 64 pixels instead of 256."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 1), np.uint8)
    picture, crop, flip = opened(saved(image.squeeze()), 1), RandomCrop(64, 32), Flip()

    def corner(i):  # 8x8 pixels of noise tell every view apart
        random = Random(i)
        return flip(crop(picture, random), random)[:8, :8]

    seen = {corner(i).tobytes() for i in range(25_000)}
    views = [image[y : y + 32, x : x + 32] for y in range(32) for x in range(32)]
    expected = {view[:8, :8].tobytes() for cut in views for view in (cut, cut[:, ::-1])}
    assert len(expected) == 2048
    assert seen == expected


def test_the_short_side_is_drawn_where_a_range_is_given(monkeypatch):
    """The range of He et al. 2015, section 3.4, is from 256 to 480 pixels."""
    drawn = set()

    def spying(height, width, short):
        drawn.add(short)
        return short_side_size(height, width, short)

    monkeypatch.setattr("flaxnets.data.pixels.crop.short_side_size", spying)
    picture = opened(saved(np.zeros((60, 50, 3), np.uint8), "JPEG"))
    for i in range(60):
        assert RandomCrop(36, 32, 40)(picture, Random(i)).shape == (32, 32, 3)
    assert drawn == set(range(36, 41))


def test_mirror_images(photograph):
    np.testing.assert_array_equal(mirror(photograph), photograph[:, ::-1])
    grey = photograph[..., :1]
    np.testing.assert_array_equal(mirror(grey), grey[:, ::-1])
    turned = [Flip()(grey, Random(i))[0, 0] == grey[0, -1] for i in range(1000)]
    assert 400 < np.sum(turned) < 600
    draws = Flip().draw(np.random.default_rng(0), 1000)["mirrored"]
    assert 400 < draws.sum() < 600


def test_padded_crops(photograph):
    image = photograph[:9, :7]
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    places = {padded[y : y + 9, x : x + 7].tobytes() for y in range(5) for x in range(5)}
    assert {PadAndCrop(2)(image, Random(i)).tobytes() for i in range(500)} == places
    offsets = PadAndCrop(2).draw(np.random.default_rng(0), 500)["offset"]
    assert offsets.dtype == np.int32
    assert {tuple(offset) for offset in offsets.tolist()} == {
        (y, x) for y in range(5) for x in range(5)
    }


# Colours


def test_some_images_become_grey(photograph):
    """torchvision's RandomGrayscale with a probability of 0.3 gives equal pixels."""
    image = photograph[:9, :7]
    grey = np.asarray(functional.rgb_to_grayscale(Image.fromarray(image), 3))
    results = [Grayscale(0.3)(image, Random(i)) for i in range(1000)]
    changed = [not np.array_equal(result, image) for result in results]
    assert abs(np.mean(changed) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 1000)
    np.testing.assert_array_equal(results[int(np.argmax(changed))], grey)


def test_colours_shift_along_the_components():
    """Shifts are drawn for the training step; `test_plan.py` follows them through the pipeline."""
    shifts = Colour(0.1).draw(np.random.default_rng(0), 4000)["colour"]
    alpha = shifts @ np.linalg.inv(IMAGENET_EIGENVECTORS).T / IMAGENET_EIGENVALUES
    np.testing.assert_allclose(alpha.std(0), 0.1, rtol=0.05)
    np.testing.assert_allclose(alpha.mean(0), 0, atol=0.008)
    grey = np.full((2, 2, 3), 128, np.uint8)
    shown = np.stack([Colour(0.1)(grey, Random(i)) for i in range(2000)]).astype(float)
    assert (shown == shown[:, :1, :1]).all()  # the same for every pixel
    covariance = np.cov(255 * shifts.T)
    found = np.cov(shown[:, 0, 0].T)  # rounded to whole numbers: 1/12 more
    np.testing.assert_allclose(found, covariance, atol=0.12 * covariance.max())


def test_imagenets_components_are_orthonormal():
    vectors = IMAGENET_EIGENVECTORS
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=2e-4)
