"""Test that training, evaluation and classification read pictures of any format by one plan."""

import dataclasses
import io
import itertools
import json
import pathlib
import random
import shutil
from random import Random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
from PIL import Image, ImageOps

from feeds import in_memory, train_batches
from flaxnets import InputError, data, evaluate, pretrained, train
from flaxnets.data import Plan, evaluation_plan, open_source, training_plan
from flaxnets.data.pixels.colour import IMAGENET_EIGENVALUES, IMAGENET_EIGENVECTORS
from flaxnets.data.pixels.crop import CenterCrop, RandomResizedCrop
from flaxnets.data.pixels.decode import Decode, UnreadablePicture, read_file
from flaxnets.data.pixels.resize import Resize
from flaxnets.inference.views import views_of
from flaxnets.recipes import Preprocessing
from flaxnets.training.on_device import cropped, shifted
from prepared import Tiny, TinyPhotos

PHOTO = Image.fromarray(sklearn.datasets.load_sample_image("flower.jpg")).resize((97, 61))

# Formats that Pillow can write, each with its modes.
WRITTEN = {
    "PNG": ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "I;16", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"),
    "PPM": ("1", "L", "RGB"),
    "TGA": ("L", "RGB", "RGBA"),
    "PCX": ("L", "P", "RGB"),
    "JPEG2000": ("L", "RGB"),
    "ICO": ("RGBA",),
    "SGI": ("L", "RGB"),
}
# Formats with the options that make their variants.
OPTIONS = [
    ("JPEG", "RGB", {"progressive": True}),
    ("JPEG", "RGB", {"subsampling": 0}),
    ("JPEG", "RGB", {"subsampling": 1, "restart_marker_blocks": 3}),
    ("JPEG", "RGB", {"icc_profile": b"no profile at all"}),
    ("JPEG", "RGB", {"dpi": (300, 72)}),
    ("PNG", "P", {"transparency": 3}),
    ("PNG", "P", {"transparency": bytes(range(256))}),
    ("PNG", "RGB", {"transparency": (1, 2, 3)}),
    ("GIF", "P", {"transparency": 5}),
    ("PNG", "P", {"bits": 4}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("WEBP", "RGB", {"lossless": True}),
]


def encoded(mode: str, kind: str, size=(97, 61), **options) -> bytes:
    photo = PHOTO.resize(size)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 257)
    elif mode == "LAB":
        image = Image.merge("LAB", photo.split())
    elif options.get("bits") == 4:
        image = photo.quantize(16)
    else:
        image = photo.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def run_length_bmp() -> bytes:
    """Return a run-length encoded BMP with 8 bits, which Pillow reads but cannot write."""
    rows = b"".join(bytes([9, y, 8, 255 - y]) + b"\0\0" for y in range(16)) + b"\0\1"
    palette = b"".join(bytes([i, 255 - i, i // 2, 0]) for i in range(256))
    header = (40, 17, 16, (8 << 16) + 1, 1, len(rows), 0, 0, 256, 0)
    start = 14 + 40 + len(palette)
    return (
        b"BM" + (start + len(rows)).to_bytes(4, "little") + bytes(4) + start.to_bytes(4, "little")
        + b"".join(value.to_bytes(4, "little") for value in header) + palette + rows
    )  # fmt: skip


def cases() -> dict[str, bytes]:
    """Return at least 60 pictures: format x mode x orientation x odd size, some damaged."""
    pictures = {}
    for kind, modes in WRITTEN.items():
        for mode in modes:
            pictures[f"{kind} {mode}"] = encoded(mode, kind)
    for kind, mode, options in OPTIONS:
        name, value = next(iter(options.items()))
        pictures[f"{kind} {mode} {name} {str(value)[:9]}"] = encoded(mode, kind, **options)
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("JPEG", "PNG", "WEBP"):
            pictures[f"{kind} turned {orientation}"] = encoded("RGB", kind, exif=exif, quality=95)
    for size in ((1, 1), (1, 50), (3, 200), (255, 254)):
        for kind in ("JPEG", "PNG"):
            pictures[f"{kind} of {size}"] = encoded("RGB", kind, size)
    pictures["BMP run lengths"] = run_length_bmp()
    frames = [PHOTO.convert("P"), PHOTO.rotate(90).convert("P")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    pictures["GIF of two frames"] = buffer.getvalue()
    jpeg, png = encoded("RGB", "JPEG"), encoded("RGB", "PNG")
    for name, whole in (("JPEG", jpeg), ("PNG", png)):
        pictures[f"{name} trailing"] = whole + b"what a camera left"
        pictures[f"{name} truncated"] = whole[: len(whole) * 2 // 3]
        pictures[f"{name} header alone"] = whole[:40]
    pictures["JPEG without an end"] = jpeg[:-2]
    pictures["JPEG cut and ended"] = jpeg[: len(jpeg) // 2] + b"\xff\xd9"
    pictures["JPEG flipped"] = jpeg[:700] + bytes([jpeg[700] ^ 4]) + jpeg[701:]
    pictures["JPEG a marker within"] = jpeg[:-300] + b"\xff\xc0" + jpeg[-298:]
    pictures |= {"empty": b"", "text": b"not a picture", "zeros": bytes(1000)}
    return pictures


CASES = cases()


def pillows(raw: bytes, channels: int) -> np.ndarray | None:
    """Return the upright picture that Pillow shows; None if it shows nothing."""
    mode = "L" if channels == 1 else "RGB"
    try:
        image = Image.open(io.BytesIO(raw))
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode == "I;16":  # the stated exception
            image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
        elif image.mode == "P":
            image = image.convert("RGBA")  # or Pillow warns of transparency
        return np.asarray(image.convert(mode)).reshape(image.height, image.width, channels)
    except (OSError, SyntaxError, ValueError, EOFError):
        return None


def sentence(function, *arguments) -> str:
    with pytest.raises(UnreadablePicture) as raised:
        function(*arguments)
    return str(raised.value)


def test_there_are_enough_cases():
    assert len(CASES) >= 60
    assert sum(pillows(raw, 3) is None for raw in CASES.values()) >= 6


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_all_roads_see_what_pillow_sees(name, channels, tmp_path):
    """Training, evaluation and classification read the same picture, or all raise one sentence."""
    raw = CASES[name]
    path = tmp_path / "picture.jpg"  # whatever it is
    path.write_bytes(raw)
    expected = pillows(raw, channels)
    decode, random = Decode(channels), Random(0)
    side = 24
    evaluation = Plan((decode, CenterCrop(side, side)))
    whole = Plan((decode, Resize(side)))
    training = Plan((decode, RandomResizedCrop(side)))

    def classified(plan):
        return views_of(read_file(path), plan, "center", name=str(path))["image"][0]

    def part_of_training():
        picture = decode(raw, name=str(path))
        return picture.part((0, picture.size[0]), (0, picture.size[1]), 1)

    if expected is None:
        sentences = {
            sentence(classified, evaluation),
            sentence(classified, whole),
            sentence(lambda: evaluation(raw, name=str(path))),
            sentence(lambda: training(raw, random, name=str(path))),
            sentence(part_of_training),
        }
        assert len(sentences) == 1
        assert sentences.pop().startswith(f"{path} is not a ")
        return
    np.testing.assert_array_equal(decode(raw).pixels, expected)
    image = Image.fromarray(expected.squeeze(-1) if channels == 1 else expected)
    resized = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
    for plan in (evaluation, whole):
        np.testing.assert_array_equal(classified(plan), plan(raw))
        np.testing.assert_array_equal(plan(expected), plan(raw))
    np.testing.assert_array_equal(whole(raw).squeeze(), resized)
    part = part_of_training()
    assert part.shape == expected.shape
    assert np.abs(part.astype(int) - expected).max() <= 1  # 0 but for JPEGs
    if not raw.startswith(b"\xff\xd8"):
        np.testing.assert_array_equal(part, expected)
    assert training(raw, random).shape == (side, side, channels)


# Plans


def every_preprocessing():
    for crop, orientation, interpolation in itertools.product(
        ("random", "random_resized"), ("upright", "stored"), ("bilinear", "bicubic")
    ):
        yield Preprocessing(
            image_size=24, resize=30, crop=crop, orientation=orientation,
            interpolation=interpolation, policy="rand_augment", grayscale=0.2,
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["photographs", "small images", "rows"])
def test_a_plan_is_read_back_from_json(kind):
    source = dataclasses.replace(open_source("digits"), channels=3, flip=True)
    if kind == "photographs":
        source = dataclasses.replace(source, image_size=None)
    if kind == "rows":
        source = open_source("diabetes")
    plans = [training_plan(preprocessing, source) for preprocessing in every_preprocessing()]
    plans += [
        evaluation_plan(preprocessing, source.kind, 3) for preprocessing in every_preprocessing()
    ]
    for plan in plans:
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert len(set(plans)) == {"photographs": 12, "small images": 8, "rows": 1}[kind]
    if kind != "rows":
        assert [row["operation"] for row in plans[0].to_json()][:1] == ["decode"]
        changes = [type(change).__name__ for change in plans[0].changes]
        assert changes[-4:] == ["Flip", "Policy", "Grayscale", "Colour"]


@pytest.mark.parametrize(
    "rows",
    [
        [{"operation": "decode", "channels": 3}],
        [{"operation": "flip"}],
        [{"operation": "decode", "channels": 3}, {"operation": "flip"}],
        [{"operation": "fly"}],
        [{"operation": "decode", "channel": 3}, {"operation": "resize", "size": 3}],
        [{}],
    ],
)
def test_what_is_no_plan(rows):
    with pytest.raises(InputError, match="is not a plan; expected"):
        Plan.from_json(rows)


def test_rows_of_features_are_no_pictures():
    rows = np.ones((1, 1, 30), np.float32)
    np.testing.assert_array_equal(Plan()(rows), rows)
    with pytest.raises(InputError, match="reads rows of features, not pictures; expected a"):
        views_of(CASES["PNG RGB"], Plan(), "center")
    with pytest.raises(InputError, match="pixels and has no ten-crop views"):
        views_of(CASES["PNG RGB"], Plan(), "ten-crop")


def test_what_stays_in_memory_and_what_is_left_to_the_device_is_read_off_the_list():
    small = dataclasses.replace(open_source("digits"), channels=3, flip=True)
    photographs = dataclasses.replace(small, image_size=None)

    def split(source, **values):
        host, device = training_plan(
            Preprocessing(image_size=8, resize=8, **values), source
        ).split()
        return [[type(o).__name__ for o in part] for part in (host.operations, device)]

    assert split(small) == [["Decode", "Resize"], ["PadAndCrop", "Flip", "Colour"]]
    assert split(small, policy="rand_augment") == [
        ["Decode", "Resize", "PadAndCrop", "Flip", "Policy"], ["Colour"]
    ]  # fmt: skip
    assert split(photographs, grayscale=0.1) == [
        ["Decode", "RandomCrop", "Flip", "Grayscale"], ["Colour"]
    ]  # fmt: skip
    assert split(photographs, crop="random_resized", flip="none", pca_std=0.0) == [
        ["Decode", "RandomResizedCrop"], []
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["photographs", "small images"])
def test_the_shift_of_colours_has_its_covariance_in_what_the_network_is_fed(kind, tmp_path):
    """Each component has the deviation 0.1 (Krizhevsky et al. 2012, section 4.1), within 5%.

    Rounded to 1/255 with the pixels, the third component would have 0.27.
    """
    if kind == "photographs":
        for split, name in itertools.product(("train", "val"), ("a", "b")):
            (tmp_path / split / name).mkdir(parents=True)
            PHOTO.save(tmp_path / split / name / "0.jpg")
        source = open_source(f"folder:{tmp_path}")
    else:
        images = np.asarray(PHOTO.resize((8, 8)))[None].repeat(4, 0)
        given = {"images": {"train": images, "test": images}, "channels": 3, "flip": True}
        source = dataclasses.replace(in_memory("digits"), **given, sizes={"train": 4, "test": 4})
        source = dataclasses.replace(source, labels=dict.fromkeys(source.labels, np.arange(4)))
    preprocessing = Preprocessing(image_size=8, resize=9, policy="none", pca_std=0.1)
    plain = dataclasses.replace(preprocessing, pca_std=0.0)
    shifts = []
    both = zip(
        *(train_batches(source, 128, values) for values in (preprocessing, plain)), strict=True
    )

    @jax.jit
    def fed(batch):
        pixels = cropped(batch, preprocessing).astype(jnp.float32) / 255
        return shifted(pixels, batch, 1.0)

    for batch, without in itertools.islice(both, 32):
        difference = np.asarray(fed(batch), np.float64) - np.asarray(fed(without))
        assert np.ptp(difference, axis=(1, 2)).max() < 1e-6  # the same for every pixel
        shifts.append(difference.mean((1, 2)))
    alpha = np.concatenate(shifts) @ np.linalg.inv(IMAGENET_EIGENVECTORS).T / IMAGENET_EIGENVALUES
    np.testing.assert_allclose(np.cov(alpha.T), np.diag([0.01] * 3), atol=0.001)


# Plans of runs


def random_options(draw: random.Random) -> dict[str, int | str]:
    size = draw.randint(28, 44)
    return {
        "--image-size": size,
        "--resize": size + draw.choice([0, 0, 1, 5, 14]),
        "--train-size": draw.choice([0, 28, size]),
        "--crop": draw.choice(["random", "random_resized"]),
        "--interpolation": draw.choice(["bilinear", "bicubic"]),
        "--orientation": draw.choice(["upright", "stored"]),
    }


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Return the names of data sets of every kind, and their directory.

    They are digits, a file of arrays, a folder of JPEG and PNG pictures that EXIF turns, and small
    and large pictures of TensorFlow Datasets.
    """
    root = tmp_path_factory.mktemp("data")
    noise = np.random.default_rng(0).integers(0, 256, (24, 12, 12, 3), np.uint8)
    labels = np.arange(24) % 2
    np.savez(root / "mine.npz", x_train=noise, y_train=labels, x_test=noise[:6], y_test=labels[:6])
    exif = Image.Exif()
    exif[0x0112] = 6
    for split, name in itertools.product(("train", "val"), ("a", "b")):
        (root / "folder" / split / name).mkdir(parents=True)
        for i in range(8 if split == "train" else 3):
            image = PHOTO.rotate(10 * i, expand=True)
            image.save(root / "folder" / split / name / f"{i}.{('jpg', 'png')[i % 2]}", exif=exif)
    for builder in (Tiny, TinyPhotos):
        builder(data_dir=root).download_and_prepare()
    names = ["digits", f"npz:{root}/mine.npz", f"folder:{root}/folder", "tiny", "tiny_photos"]
    return names, str(root)


@pytest.mark.filterwarnings("ignore:a batch of 8 images is larger than the data set")
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.slow
def test_a_run_its_evaluation_and_classification_are_fed_the_same(
    seed, datasets, tmp_path, monkeypatch, train_here
):
    """Inputs are bit-equal for every kind of data set and random values of the preprocessing."""
    names, data_dir = datasets
    dataset, options = names[seed % len(names)], random_options(random.Random(seed))
    fed = {"train": [], "evaluate": []}
    made = data.eval_batches

    def spying(where):
        def eval_batches(*rest, **given):
            for batch in made(*rest, **given):
                fed[where].append({key: np.array(values) for key, values in batch.items()})
                yield batch

        return eval_batches

    monkeypatch.setattr("flaxnets.runs.feed.eval_batches", spying("train"))
    train_here(
        "--arch", "lenet5", "--dataset", dataset, "--epochs", 1, "--workdir", tmp_path,
        "--batch-size", 128 if dataset == "digits" else 8, "--data-dir", data_dir,
        *itertools.chain(*options.items()),
    )  # fmt: skip
    monkeypatch.setattr(data, "eval_batches", spying("evaluate"))
    evaluate.main(evaluate.Options((tmp_path,), data_dir=data_dir))
    images = {
        where: np.concatenate([batch["image"][batch["mask"] == 1] for batch in batches])
        for where, batches in fed.items()
    }
    np.testing.assert_array_equal(images["train"], images["evaluate"])

    source, network = open_source(dataset, data_dir), pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["kind"] == source.kind
    assert Plan.from_json(config["plan"]["evaluation"]) == network.preprocessing
    assert network.preprocessing.orientation == options["--orientation"]
    for (raw, _), expected in zip(source.examples("test"), images["train"], strict=True):
        if isinstance(raw, np.ndarray):  # as a file, which people classify
            buffer = io.BytesIO()
            Image.fromarray(raw.squeeze()).save(buffer, "PNG")
            raw = buffer.getvalue()
        np.testing.assert_array_equal(
            views_of(raw, network.preprocessing, "center")["image"][0], expected
        )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> pathlib.Path:
    """The directory of a run of one epoch."""
    path = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flaxnets.runs.processes.join", lambda processes: None)
        train.main(["--arch", "softmax_regression", "--epochs", "1", "--workdir", str(path)])
    return path


@pytest.mark.parametrize(
    ("dataset", "size", "resize", "window"),
    [
        ("digits", 32, 32, Resize(32)),
        ("npz:mine.npz", 28, 40, Resize(28)),
        ("folder:pictures", 32, 32, CenterCrop(32, 32)),
        ("imagenet2012", 224, 256, CenterCrop(256, 224)),
        ("cifar10", 32, 32, Resize(32)),
    ],
)
def test_a_run_from_before_plans_still_opens(dataset, size, resize, window, finished, tmp_path):
    """Such a config.json has only the values of the preprocessing."""
    file = shutil.copytree(finished, tmp_path / "run") / "config.json"
    config = json.loads(file.read_text())
    for key in ("plan", "kind"):
        del config[key]
    config["dataset"] = dataset
    config["preprocessing"] = {
        "image_size": size, "train_size": 0, "resize": resize, "resize_max": 0, "crop": "random",
        "pad": 4, "flip": True, "policy": "none", "interpolation": "nearest", "pca_std": 0.1,
        "repeats": 1,
    }  # fmt: skip
    config["input_shape"] = [size, size, 1]
    file.write_text(json.dumps(config))
    assert pretrained(tmp_path / "run").preprocessing == Plan((Decode(1, "stored"), window))


def test_a_run_from_before_plans_goes_on(finished, tmp_path, train_here):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    arguments = ["--arch", "softmax_regression", "--workdir", tmp_path]
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for key in ("plan", "kind", "examples"):
        del config[key]
    for key in ("grayscale", "orientation"):
        del config["preprocessing"][key]
    config["preprocessing"]["interpolation"] = "nearest"
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"holds a run with preprocessing .*'pad': 0.*, not"):
        train_here(*arguments, "--epochs", 2, "--pad", 1)
    train_here(*arguments, "--epochs", 2)
    assert json.loads((tmp_path / "summary.json").read_text())["epochs"] == 2
    assert "plan" in json.loads(file.read_text())
