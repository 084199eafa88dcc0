"""Augmentation against torchvision: of an image in tf.data, and of a batch on the device."""

import collections
import importlib
import io
import itertools
from random import Random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
import torch
from jax.sharding import Mesh, PartitionSpec
from PIL import Image

from flaxnets import InputError
from flaxnets.data import eval_batches, open_source, photographs, policies, train_batches, windows
from flaxnets.data.images import train_image
from flaxnets.data.streams import UNREADABLE
from flaxnets.data.tensorflow import tf
from flaxnets.recipes import Preprocessing
from flaxnets.training import augmentation as on_device
from tools.torchvision_import import torchvision

autoaugment = torchvision.transforms.autoaugment
v2 = importlib.import_module("torchvision.transforms.v2")
SMALL = Preprocessing(image_size=32, resize=32, pad=2)
POLICIES = ("trivial_augment_wide", "rand_augment", *policies.AUTO_AUGMENT)


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return sklearn.datasets.load_sample_image("china.jpg")


# Windows of photographs


def draw(height: int, width: int, count: int) -> np.ndarray:
    """[y, x, height, width] of `count` windows."""
    return np.array([windows.random_window(height, width, Random(i)) for i in range(count)])


@pytest.mark.parametrize("size", [(300, 400), (64, 200), (200, 64), (33, 33)])
def test_windows_are_distributed_as_torchvisions(size):
    ours = draw(*size, 3000)
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
    found = draw(*size, 50)
    assert (found[:, 2 + long] <= 27).all()  # 20 * 4 / 3
    assert tuple(expected) in {tuple(window) for window in found.tolist()}


def picture(image: np.ndarray, suffix: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, suffix, **options)
    return buffer.getvalue()


def photograph_of(encoded: bytes, channels: int = 3, room: int = 0) -> photographs.Photograph:
    return photographs.Photograph(encoded, channels, 64, photographs.Decoded(room))


def torchvisions_window(image: np.ndarray, seed: int, size: int) -> np.ndarray:
    top, left, height, width = windows.random_window(*image.shape[:2], Random(seed))
    resized_crop = torchvision.transforms.functional.resized_crop
    return np.asarray(resized_crop(Image.fromarray(image), top, left, height, width, [size, size]))


def differences(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, int]:
    """Mean and maximum."""
    difference = np.abs(ours.astype(int) - theirs)
    return difference.mean(), difference.max()


def torchvisions_crop(image: np.ndarray, seed: int, short: int, size: int) -> np.ndarray:
    random, pil = Random(seed), Image.fromarray(image)
    resized = np.asarray(torchvision.transforms.functional.resize(pil, short))
    top, left = (random.randrange(max(side - size, 1)) for side in resized.shape[:2])
    return resized[top : top + size, left : left + size]


@pytest.mark.parametrize("room", [0, 10**6])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_windows_of_a_jpeg_are_those_of_its_decoded_image(photograph, subsampling, mode, room):
    """Decoded for each, and from memory."""
    image = np.asarray(Image.fromarray(photograph[:201, :307]).convert(mode))
    channels = 3 if mode == "RGB" else 1
    encoded = picture(image, "JPEG", **({"subsampling": subsampling} if channels == 3 else {}))
    decoded = np.asarray(Image.open(io.BytesIO(encoded)))
    ours = photograph_of(encoded, channels, room)
    same = photograph_of(picture(decoded), channels)
    for seed in range(10):
        for crop, theirs in (
            (
                lambda of, random: windows.random_resized_crop(of, 64, random),
                torchvisions_window(decoded, seed, 64),
            ),
            (
                lambda of, random: windows.random_crop(of, 110, 64, random),
                torchvisions_crop(decoded, seed, 110, 64),
            ),
        ):
            found = crop(ours, Random(seed))
            assert found.shape == (64, 64, channels)
            np.testing.assert_array_equal(found, crop(same, Random(seed)))
            assert differences(found.squeeze(), theirs)[0] < 2


@pytest.mark.parametrize(
    ("short", "size", "most"), [(427, 400, 0), (600, 576, 1), (213, 200, 2), (256, 224, None)]
)
def test_a_random_crop_is_torchvisions(photograph, short, size, most):
    """Exactly but for rounding where nothing shrinks, or to whole fractions; close in between."""
    image = photograph[:426] if short == 213 else photograph
    for seed in range(4):
        found = windows.random_crop(photograph_of(picture(image)), short, size, Random(seed))
        mean, largest = differences(found, torchvisions_crop(image, seed, short, size))
        assert mean < 1.2
        assert most is None or largest <= most


@pytest.mark.parametrize("size", [(448, 448), (672, 448), (100, 130), (224, 224), (300, 500)])
def test_resizing_is_torchvisions(photograph, size):
    """Exactly but for rounding where nothing shrinks, or to whole fractions; close in between."""
    image = np.asarray(Image.fromarray(photograph).resize(size[::-1]))
    theirs = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR))
    ours = windows.resize(image, 224)
    mean, most = differences(ours[2:-2, 2:-2], theirs[2:-2, 2:-2])
    exact = all(side <= 224 or side % 224 == 0 for side in size)
    assert mean < (0.4 if exact else 1.2)
    assert not exact or most <= 2
    without = torch.nn.functional.interpolate(
        torch.tensor(image.transpose(2, 0, 1)[None]), (224, 224), mode="bilinear"
    )
    aliased = without[0].numpy().transpose(1, 2, 0)
    assert max(size) <= 224 or mean < 0.6 * differences(aliased, theirs)[0]


@pytest.mark.parametrize("factor", [1.0, 1.2, 1.7, 2.0, 2.6, 5.3])
def test_the_filter_has_the_width_of_pils(factor):
    """A hat of the width f has the variance f^2 / 6; interpolation brings 1 / 6 of it."""
    weights = windows.hats(factor)
    reach = np.arange(len(weights)) - len(weights) // 2
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    assert (weights * reach**2).sum() == pytest.approx((factor**2 - 1) / 6)


@pytest.mark.parametrize("known", [True, False])
def test_large_photographs_are_decoded_in_part(photograph, monkeypatch, known):
    """By simplejpeg, and by TensorFlow where that does not know the kind."""
    large = np.asarray(Image.fromarray(photograph).resize((2560, 1708), Image.Resampling.BICUBIC))
    encoded, fractions = picture(large, "JPEG", quality=95), set()
    decoder, fraction = (photographs.simplejpeg, "min_factor") if known else (tf.io, "ratio")
    decode = decoder.decode_jpeg

    def spying(*arguments, **options):
        fractions.add(options[fraction])
        return decode(*arguments, **options)

    def unknown(*_, **__):
        raise ValueError

    monkeypatch.setattr(photographs.simplejpeg, "decode_jpeg", unknown)
    monkeypatch.setattr(decoder, "decode_jpeg", spying)
    for seed in range(12):
        ours = windows.random_resized_crop(photograph_of(encoded), 100, Random(seed))
        # A window begins and ends at a pixel of what is decoded: up to half of a pixel elsewhere.
        assert differences(ours, torchvisions_window(large, seed, 100))[0] < 3
    assert fractions == {2, 4}

    fractions.clear()
    for short in (150, 300, 450):
        ours = windows.random_crop(photograph_of(encoded), short, 100, Random(short))
        assert differences(ours, torchvisions_crop(large, short, short, 100))[0] < 2
    assert fractions == {4, 2, 1}


def thumbnail(image: np.ndarray) -> bytes:
    """An APP1 segment with a JPEG of the same size in it, as cameras write one."""
    inside = picture(image, "JPEG", quality=20)
    return b"\xff\xe1" + (len(inside) + 2).to_bytes(2, "big") + inside


@pytest.mark.parametrize("fraction", [1, 2, 4, 8])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 2}, {"thumbnail": True}]
)
def test_rows_below_a_window_are_not_decoded(photograph, options, subsampling, fraction):
    image = photograph[:203, :301]
    encoded = picture(image, "JPEG", subsampling=subsampling, **options)
    if "thumbnail" in options:
        encoded = encoded[:2] + thumbnail(image) + encoded[2:]
    ours = photograph_of(encoded)
    whole = ours._rows(203, fraction)
    assert len(whole) == -(-203 // fraction)
    for count in range(1, len(whole) + 1, 5):
        rows = ours._rows(count, fraction)
        assert len(rows) == min(count + 2, len(whole))
        np.testing.assert_array_equal(rows[:count], whole[:count])


def test_what_is_behind_the_rows_of_a_jpeg(photograph):
    """Damage there is found, and where the picture may end elsewhere all of it is decoded."""
    encoded = picture(photograph[:200, :300], "JPEG")
    part = photograph_of(encoded).part((0, 20), (0, 300), 1)
    trailing = photograph_of(encoded + b"camera")
    np.testing.assert_array_equal(trailing.part((0, 20), (0, 300), 1), part)
    assert len(trailing._rows(20, 1)) == 200
    filled = photograph_of(encoded[:2] + b"\xff" + encoded[2:])  # a marker may begin with more
    np.testing.assert_array_equal(filled.part((0, 20), (0, 300), 1), part)
    with pytest.raises(UNREADABLE):
        photograph_of(encoded[:-2000]).part((0, 20), (0, 300), 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "BMP", "GIF"])
def test_windows_of_any_picture(photograph, mode, suffix):
    if mode == "CMYK" and suffix != "JPEG":
        return
    buffer = io.BytesIO()
    Image.fromarray(photograph[:90, :120]).convert(mode).save(buffer, suffix)
    shown = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
    for seed in range(4):
        ours = windows.random_resized_crop(photograph_of(buffer.getvalue()), 60, Random(seed))
        assert differences(ours, torchvisions_window(shown, seed, 60))[0] < 1.5
        ours = windows.random_crop(photograph_of(buffer.getvalue()), 70, 60, Random(seed))
        assert differences(ours, torchvisions_crop(shown, seed, 70, 60))[0] < 1.5


def test_mirror_images(photograph):
    np.testing.assert_array_equal(windows.mirror(photograph), photograph[:, ::-1])
    grey = photograph[..., :1]
    np.testing.assert_array_equal(windows.mirror(grey), grey[:, ::-1])


# Operations


def operate(name, image, magnitude, interpolation="nearest"):
    extra = {"interpolation": interpolation} if name in policies.MOVING else {}
    return policies.OPERATIONS[name](tf.constant(image), tf.constant(magnitude), **extra).numpy()


def torchvisions(name, image, magnitude, interpolation="nearest"):
    mode = torchvision.transforms.InterpolationMode(interpolation)
    pil = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
    result = autoaugment._apply_op(pil, name, float(magnitude), mode, None)
    return np.asarray(result).reshape(image.shape)


def strengths(name, height, width, every=1):
    """Magnitudes of all policies, both signs where there are two."""
    found = [np.zeros(1, np.float32)]
    for bins, wide in ((31, True), (31, False), (10, False)):
        found.append(policies.magnitudes(bins, height, width, wide).get(name, found[0])[::every])
    values = np.unique(np.concatenate(found[1:]))
    signed = {**policies.MOVING, **policies.ENHANCING}
    return np.concatenate([values, -values]) if name in signed else values


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", policies.NAMES)
def test_operations_give_torchvisions_bits(photograph, name, channels):
    image = np.ascontiguousarray(photograph[100:140, 60:115, :channels])
    for magnitude in strengths(name, 40, 55, every=2):
        expected = torchvisions(name, image, magnitude)
        np.testing.assert_array_equal(operate(name, image, magnitude), expected, str(magnitude))


@pytest.mark.parametrize("name", policies.NAMES)
def test_operations_on_odd_images(name):
    random = np.random.default_rng(0)
    for image in (
        np.full((8, 8, 3), 7, np.uint8),
        random.integers(90, 93, (33, 32, 3), np.uint8),
        random.integers(0, 256, (64, 64, 1), np.uint8),
    ):
        magnitude = strengths(name, *image.shape[:2])[-1]
        expected = torchvisions(name, image, magnitude)
        np.testing.assert_array_equal(operate(name, image, magnitude), expected)


@pytest.mark.parametrize("name", policies.MOVING)
def test_bilinear_operations_give_torchvisions_bits(photograph, name):
    """But for rotations, where the last bit of a coordinate decides a truncation now and then."""
    image = photograph[100:140, 60:115]
    different = total = 0
    for magnitude in strengths(name, 40, 55, every=2):
        expected = torchvisions(name, image, magnitude, "bilinear").astype(int)
        difference = np.abs(operate(name, image, magnitude, "bilinear") - expected)
        assert difference.max() <= (1 if name == "Rotate" else 0)
        different, total = different + np.count_nonzero(difference), total + difference.size
    assert different <= total * 1e-5


def test_operations_are_the_same_eagerly_and_in_tf_data(photograph):
    image = photograph[100:140, 60:115]
    for interpolation in ("nearest", "bilinear"):

        def all_operations(shift, interpolation=interpolation):
            return {
                name: operation(
                    tf.ensure_shape(image + tf.cast(shift, tf.uint8), image.shape),
                    tf.constant(3.3) / 4 + tf.cast(shift, tf.float32),
                    **({"interpolation": interpolation} if name in policies.MOVING else {}),
                )
                for name, operation in policies.OPERATIONS.items()
            }

        for i, found in enumerate(tf.data.Dataset.range(2).map(all_operations)):
            for name, expected in all_operations(tf.constant(i)).items():
                np.testing.assert_array_equal(found[name], expected, err_msg=name)


# Policies


@pytest.mark.parametrize("size", [(32, 32), (176, 224)])
def test_magnitudes_are_torchvisions(size):
    theirs = {
        (31, True): autoaugment.TrivialAugmentWide()._augmentation_space(31),
        (31, False): autoaugment.RandAugment()._augmentation_space(31, size),
        (10, False): autoaugment.AutoAugment()._augmentation_space(10, size),
    }
    for (bins, wide), space in theirs.items():
        ours = policies.magnitudes(bins, *size, wide)
        assert set(ours) == {name for name, (values, _) in space.items() if values.ndim}
        for name, (values, signed) in space.items():
            assert signed == (name in {**policies.MOVING, **policies.ENHANCING})
            if name in ours:
                last_bit = 2**-23 * float(values.max())
                np.testing.assert_allclose(ours[name], values.numpy(), rtol=0, atol=last_bit)
            if name[:9] == "Translate":
                whole = ours[name].astype(int) != values.numpy().astype(int)
                assert not np.delete(whole, 15 if wide else []).any()  # see policies.magnitudes
    assert ours["Posterize"].tolist() == [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]


def test_plans_are_torchvisions():
    for policy in policies.AUTO_AUGMENT:
        kind = autoaugment.AutoAugmentPolicy(policy.removeprefix("auto_augment_"))
        space = autoaugment.AutoAugment()._augmentation_space(10, (176, 224))
        theirs = [
            [
                (name, p, 0.0 if index is None else float(space[name][0][index]))
                for name, p, index in pair
            ]
            for pair in autoaugment.AutoAugment()._get_policies(kind)
        ]
        for ours, expected in zip(policies.plans(policy, 176, 224), theirs, strict=True):
            for step, (name, probability, magnitude) in zip(ours, expected, strict=True):
                assert step[:2] == (name, probability)
                assert step.magnitude == pytest.approx(magnitude, rel=1e-6)
    wide = policies.plans("trivial_augment_wide", 176, 224)
    names = list(autoaugment.TrivialAugmentWide()._augmentation_space(31))
    assert collections.Counter(plan[0].operation for plan in wide) == dict.fromkeys(names, 31)
    assert (
        len(set(wide)) == 10 * 31 + 7 + 3 * 1
    )  # posterize keeps 2 to 8 bits, three have no strength
    space = autoaugment.RandAugment()._augmentation_space(31, (176, 224))
    chosen = {(name, 1.0, float(v[9]) if v.ndim else 0.0) for name, (v, _) in space.items()}
    pairs = policies.plans("rand_augment", 176, 224)
    assert len(pairs) == len(set(pairs)) == 14 * 14
    for step in {step for pair in pairs for step in pair}:
        assert any(
            step[:2] == one[:2] and step[2] == pytest.approx(one[2], rel=1e-6) for one in chosen
        )
    with pytest.raises(InputError, match="did you mean 'rand_augment'"):
        policies.plans("random_augment", 32, 32)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", POLICIES)
def test_draws_follow_the_plans(policy):
    """Every operation as often as its plans ask for, half of the reversible ones reversed."""
    count = 4000
    draws = tf.data.Dataset.range(count).map(lambda i: policies.draw(policy, 32, 32, [i, 3]))
    drawn = [np.array(column) for column in zip(*draws.as_numpy_iterator(), strict=True)]
    operation, magnitude = drawn
    plans = policies.plans(policy, 32, 32)
    for position in range(operation.shape[1]):
        expected = collections.Counter()
        for plan in plans:
            step = plan[position]
            expected[step.operation] += step.probability / len(plans)
        expected["Identity"] = 1 - sum(v for k, v in expected.items() if k != "Identity")
        for index, name in enumerate(policies.NAMES):
            share = expected[name]
            found = (operation[:, position] == index).mean()
            assert abs(found - share) <= 4 * np.sqrt(share * (1 - share) / count)
    moved = np.isin(operation, [policies.NAMES.index(n) for n in policies.MOVING])
    signs = np.sign(magnitude[moved & (magnitude != 0)])
    assert abs(signs.mean()) < 4 / np.sqrt(signs.size)
    rest = [policies.NAMES.index(n) for n in ("Identity", "Posterize", "Solarize", "Invert")]
    assert (magnitude[np.isin(operation, rest)] >= 0).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_applies_what_it_draws(photograph, policy, channels):
    image = tf.constant(photograph[100:132, 60:92, :channels])
    views = tf.data.Dataset.range(6).map(lambda i: policies.apply(policy, image, [i, 5]))
    for i, view in enumerate(views.as_numpy_iterator()):
        expected = image.numpy()
        for operation, magnitude in zip(*policies.draw(policy, 32, 32, [i, 5]), strict=True):
            expected = operate(policies.NAMES[int(operation)], expected, magnitude)
        np.testing.assert_array_equal(view, expected)


# Batches


def numbered(count: int):
    """The first digits, labelled by their position."""
    source = open_source("digits")
    return type(source)(
        **{
            **vars(source),
            "sizes": {"train": count, "test": 10},
            "images": {split: images[:count] for split, images in source.images.items()},
            "labels": {split: np.arange(count, dtype=np.int32) for split in source.labels},
        }
    )


@pytest.mark.parametrize(("repeats", "batch_size"), [(2, 8), (4, 8), (3, 8), (4, 3)])
def test_repeated_augmentation(repeats, batch_size):
    """An epoch has its number of examples, so many of them distinct, each augmented anew."""
    how = Preprocessing(image_size=32, resize=32, policy="trivial_augment_wide", repeats=repeats)
    source, size = numbered(48), 48
    steps = 2 * size // batch_size
    batches = list(itertools.islice(train_batches(source, batch_size, how, seed=1), steps))
    labels = np.concatenate([batch["label"] for batch in batches])
    images = np.concatenate([batch["image"] for batch in batches])
    epochs = labels.reshape(2, size)
    for epoch in epochs:
        values, counts = np.unique(epoch, return_counts=True)
        assert (len(values), counts.tolist()) == (size // repeats, [repeats] * len(values))
        for value in values:
            apart = np.diff(np.flatnonzero(epoch == value))
            assert (apart == max(1, batch_size // repeats)).all()
    assert (np.sort(epochs[0]) != np.sort(epochs[1])).any()
    assert len({image.tobytes() for image in images}) > 0.9 * len(images)
    for start in (1, steps - 1):
        again = next(train_batches(source, batch_size, how, seed=1, start_step=start))
        np.testing.assert_array_equal(again["label"], batches[start]["label"])
        np.testing.assert_array_equal(again["image"], batches[start]["image"])


def test_repeated_augmentation_over_processes_and_devices():
    """Four copies of each image of a batch, each on another of eight devices in two processes."""
    how = Preprocessing(image_size=8, resize=8, repeats=4)
    streams = [train_batches(numbered(64), 16, how, shard=(process, 2)) for process in range(2)]
    seen = set()
    for parts in itertools.islice(zip(*streams, strict=True), 4):
        devices = np.concatenate([part["label"] for part in parts]).reshape(8, 2)
        assert all(len(set(labels)) == 2 for labels in devices)
        values, counts = np.unique(devices, return_counts=True)
        assert counts.tolist() == [4] * 4
        assert not seen & {*values.tolist()}
        seen |= {*values.tolist()}
    assert len(seen) == 64 // 4


def test_an_odd_number_of_examples_is_repeated_to_the_same_epoch():
    how = Preprocessing(image_size=8, resize=8, repeats=3)
    stream = train_batches(numbered(10), 10, how)
    for batch in itertools.islice(stream, 3):
        assert np.unique(batch["label"], return_counts=True)[1].max() == 3
        assert len(set(batch["label"])) == 4


def test_training_at_another_size_than_evaluation():
    source = open_source("digits")
    how = Preprocessing(image_size=32, resize=36, train_size=24, policy="rand_augment")
    assert next(train_batches(source, 4, how))["image"].shape == (4, 24, 24, 1)
    assert next(eval_batches(source, 4, how))["image"].shape == (4, 32, 32, 1)


@pytest.mark.parametrize("crop", ["random", "random_resized"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_photographs_are_cropped_then_changed_by_the_policy(photograph, crop, interpolation):
    source = open_source("digits")
    source = type(source)(**{**vars(source), "image_size": None, "channels": 3, "flip": False})
    plain = Preprocessing(image_size=64, resize=72, train_size=48, crop=crop, pca_std=0.0)
    how = Preprocessing(
        **{**vars(plain), "policy": "trivial_augment_wide", "interpolation": interpolation}
    )
    encoded = tf.constant(picture(photograph))
    for i in range(5):
        seed = tf.constant([i, 9], tf.int64)
        cropped, changed = (train_image(source, one, encoded, seed) for one in (plain, how))
        assert changed.dtype == tf.uint8
        assert changed.shape == (48, 48, 3)
        seed = tf.random.fold_in(seed, 3)
        expected = policies.apply("trivial_augment_wide", cropped, seed, interpolation)
        np.testing.assert_array_equal(changed, expected)


def test_preprocessing_that_no_image_can_have():
    for how, sentence in [
        (Preprocessing(repeats=0), "repeats is 0; expected a positive number"),
        (Preprocessing(train_size=-1), "train size is -1; expected zero or more"),
        (Preprocessing(train_size=288), "resize 256 is smaller than the image size 288"),
    ]:
        with pytest.raises(InputError, match=sentence):
            how.check()
    Preprocessing(crop="random_resized", train_size=288).check()


# On the device


def images_and_targets(count=8, size=(12, 20)):
    random = np.random.default_rng(0)
    images = random.normal(size=(count, *size, 3)).astype(np.float32)
    targets = np.eye(5, dtype=np.float32)[random.integers(0, 5, count)]
    return images, targets


def test_erased_rectangles_are_distributed_as_torchvisions():
    count, height, width = 4000, 24, 40
    ones = jnp.ones((count, height, width, 1))
    erased = np.asarray(jax.jit(on_device.random_erasing)(ones, jax.random.key(0), 0.25))[..., 0]
    holes = erased == 0
    assert set(np.unique(erased)) == {0, 1}
    assert abs(holes.any((1, 2)).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / count)
    holes = holes[holes.any((1, 2))]
    heights, widths = holes.any(2).sum(1), holes.any(1).sum(1)
    np.testing.assert_array_equal(holes.sum((1, 2)), heights * widths)  # whole rectangles
    tops, lefts = holes.any(2).argmax(1), holes.any(1).argmax(1)
    torch.manual_seed(0)
    erase = torchvision.transforms.RandomErasing
    theirs = np.array(
        [
            erase.get_params(torch.ones(1, height, width), (0.02, 0.33), (0.3, 3.3), [0.0])[:4]
            for _ in range(len(holes))
        ]
    )
    for ours, their in zip((tops, lefts, heights, widths), theirs.T, strict=True):
        values = np.unique(np.concatenate([ours, their]))
        below = [
            np.searchsorted(np.sort(one), values, "right") / len(holes) for one in (ours, their)
        ]
        assert np.abs(below[0] - below[1]).max() < 0.09  # Kolmogorov-Smirnov: once in 1000
    areas = heights * widths / (height * width)
    assert 0.015 < areas.min() < 0.03 < 0.3 < areas.max() < 0.35


def test_pixels_outside_of_an_erased_rectangle_keep_their_bits():
    images, _ = images_and_targets(64)
    for probability in (0.0, 1.0):
        erased = np.asarray(on_device.random_erasing(images, jax.random.key(1), probability))
        kept = (erased == images).all(-1)
        assert (erased[~kept] == 0).all()
        assert (~kept).any((1, 2)).all() == bool(probability)
        assert kept.any((1, 2)).all()


def test_a_rectangle_that_never_fits_erases_nothing():
    images = np.ones((64, 1, 100, 3), np.float32)
    np.testing.assert_array_equal(on_device.random_erasing(images, jax.random.key(0), 1.0), images)


def torchvisions_mixing(transform, images, targets):
    nchw = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    mixed, labels = transform(nchw, torch.from_numpy(targets.copy()))
    return mixed.numpy().transpose(0, 2, 3, 1), labels.numpy()


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_is_torchvisions(monkeypatch, alpha):
    images, targets = images_and_targets()
    for seed in range(5):
        key = jax.random.key(seed)
        share = float(jax.random.beta(key, alpha, alpha))
        transform = v2.MixUp(alpha=alpha)
        monkeypatch.setattr(transform, "make_params", lambda _, share=share: {"lam": share})
        found = jax.jit(on_device.mixup, static_argnums=3)(images, targets, key, alpha)
        for ours, theirs in zip(
            found, torchvisions_mixing(transform, images, targets), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-7)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_cutmix_is_torchvisions(monkeypatch, alpha):
    images, targets = images_and_targets()
    areas = []
    for seed in range(20):
        key = jax.random.key(seed)
        shares, centres = jax.random.split(key)
        share = float(jax.random.beta(shares, alpha, alpha))
        y, x = jax.random.randint(centres, (2,), 0, jnp.array(images.shape[1:3])).tolist()
        transform = v2.CutMix(alpha=alpha)
        monkeypatch.setattr(transform._dist, "sample", lambda _, share=share: torch.tensor([share]))
        drawn = iter([x, y])  # torchvision draws the column first
        monkeypatch.setattr(
            torch, "randint", lambda *_, drawn=drawn, **__: torch.tensor([next(drawn)])
        )
        found = jax.jit(on_device.cutmix, static_argnums=3)(images, targets, key, alpha)
        theirs = torchvisions_mixing(transform, images, targets)
        np.testing.assert_array_equal(found[0], theirs[0])  # pixels keep their bits
        np.testing.assert_allclose(found[1], theirs[1], rtol=0, atol=2e-7)
        areas.append(float((np.asarray(found[0]) != images).any(-1).mean()))
    assert len(set(areas)) > 10


def test_mixing_coefficients_are_beta_distributed():
    images = jnp.stack([jnp.ones((2, 2, 1)), jnp.zeros((2, 2, 1))])
    keys = jax.random.split(jax.random.key(0), 1000)
    mixed = jax.vmap(lambda key: on_device.mixup(images, jnp.eye(2), key, 0.2)[1][0, 0])(keys)
    assert float(mixed.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(mixed.var()) == pytest.approx(1 / (4 * 1.4), rel=0.1)  # of Beta(0.2, 0.2)


def test_one_of_both_mixings_at_random():
    images, targets = images_and_targets()
    apply = jax.jit(on_device.mixup_or_cutmix, static_argnums=(3, 4))
    cut = []
    for seed in range(40):
        mixed, labels = (
            np.asarray(a) for a in apply(images, targets, jax.random.key(seed), 1.0, 1.0)
        )
        np.testing.assert_allclose(labels.sum(1), 1, rtol=1e-6)
        pixels = (mixed == images) | (mixed == np.roll(images, 1, 0))
        cut.append(bool(pixels.all()))
    assert 9 < sum(cut) < 31
    key = jax.random.key(0)
    same = on_device.mixup_or_cutmix(images, targets, key, 0.0, 0.0)
    assert same[0] is images
    assert same[1] is targets
    only = np.asarray(apply(images, targets, key, 0.0, 1.0)[0])
    assert ((only == images) | (only == np.roll(images, 1, 0))).all()


def test_each_device_augments_its_own_part():
    """Under shard_map a device gives what it would give alone."""
    images, targets = images_and_targets(8)

    def augment(images, targets, keys):
        first, second = jax.random.split(keys[0])
        images, targets = on_device.cutmix(images, targets, first, 1.0)
        return on_device.random_erasing(images, second, 0.5), targets

    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))
    split = PartitionSpec("batch")
    keys = jax.random.split(jax.random.key(0), 2)
    mapped = jax.shard_map(augment, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    found = jax.jit(mapped)(images, targets, keys)
    alone = jax.jit(augment)
    parts = [alone(images[i : i + 4], targets[i : i + 4], keys[i // 4 :]) for i in (0, 4)]
    for ours, expected in zip(found, zip(*parts, strict=True), strict=True):
        np.testing.assert_allclose(ours, np.concatenate(expected), rtol=0, atol=5e-7)


@pytest.mark.parametrize("pad", [0, 2, 4])
def test_crops_and_mirror_images_are_slices(pad):
    images = np.random.default_rng(0).integers(0, 256, (40, 9, 7, 3), np.uint8)
    random = np.random.default_rng(1)
    offsets, mirrored = random.integers(0, 2 * pad + 1, (40, 2)), random.random(40) < 0.5
    found = jax.jit(on_device.crop_and_flip, static_argnums=3)(images, offsets, mirrored, pad)
    assert found.dtype == jnp.uint8
    for image, (y, x), mirror, ours in zip(images, offsets, mirrored, found, strict=True):
        padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))[y : y + 9, x : x + 7]
        np.testing.assert_array_equal(ours, padded[:, ::-1] if mirror else padded)
