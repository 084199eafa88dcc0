"""Test pipelines on real pictures (scikit-learn's photographs and digits) and generated files."""

import collections
import dataclasses
import itertools
import os
import pathlib
import warnings
from typing import Any

import numpy as np
import pytest
import simplejpeg
import sklearn.datasets
from PIL import Image

from feeds import eval_batches, in_memory, train_batches
from flaxnets import InputError, data, train
from flaxnets.data import open_source, threads
from flaxnets.data.folder import picture_suffixes
from flaxnets.data.npz import ARRAYS
from flaxnets.errors import InputWarning
from flaxnets.recipes import Preprocessing
from prepared import Tiny, TinyPhotos, noise
from tools.rgb_pca import principal_components, rgb_covariance
from tools.torchvision_import import torchvision

SMALL = Preprocessing(image_size=32, resize=32, pad=2)


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    """Return two JPEG files of 640x427 pixels."""
    directory = pathlib.Path(sklearn.datasets.__file__).parent / "images"
    return [(directory / name).read_bytes() for name in ("china.jpg", "flower.jpg")]


@pytest.fixture
def pictures(tmp_path, photographs) -> pathlib.Path:
    """Return a folder of two classes, each with three training pictures and one test picture."""
    for split, count in (("train", 3), ("val", 1)):
        for name, encoded in zip(("china", "flower"), photographs, strict=True):
            directory = tmp_path / split / name
            directory.mkdir(parents=True)
            for i in range(count):
                (directory / f"{i}.jpg").write_bytes(encoded)
    return tmp_path


# Evaluation


@pytest.mark.parametrize("batch_size", [8, 64, 355, 1000])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_example_is_counted_once(batch_size, processes):
    source = in_memory("digits")
    seen, numbers = [], set()
    for index in range(processes):
        size = batch_size * processes
        batches = list(eval_batches(source, size, SMALL, shard=(index, processes)))
        numbers.add(len(batches))
        for batch in batches:
            assert batch["image"].shape == (batch_size, 32, 32, 1)
            assert batch["label"].shape == batch["mask"].shape == (batch_size,)
            assert not batch["image"][batch["mask"] == 0].any()
            seen.append(batch["label"][batch["mask"] == 1])
    assert len(numbers) == 1  # processes must step together
    np.testing.assert_array_equal(
        np.bincount(np.concatenate(seen)), np.bincount(source.labels["test"])
    )


# Training


def test_rgb_components_are_exact():
    images = [noise(7, 9, seed) // (seed + 1) for seed in range(3)]
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    count, covariance = rgb_covariance(images)
    assert count == len(pixels)
    np.testing.assert_allclose(covariance, np.cov(pixels.T, bias=True), rtol=1e-12)
    values, vectors = principal_components(covariance)
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, covariance, rtol=1e-9)
    assert values[0] > values[1] > values[2] > 0


def test_same_seed_same_batches_from_any_step_on():
    source = letters()
    stream = list(itertools.islice(train_batches(source, 15, SMALL, seed=5), 31))
    for start in (0, 7, 30):  # 2.67 batches are an epoch
        again = next(train_batches(source, 15, SMALL, seed=5, start_step=start))
        assert again.keys() == {"image", "label", "offset", "mirrored", "colour"}
        for key in again:
            np.testing.assert_array_equal(again[key], stream[start][key])
    other = next(train_batches(source, 15, SMALL, seed=6))
    assert (other["label"] != stream[0]["label"]).any()
    assert stream[0]["image"].dtype == np.uint8
    assert stream[0]["label"].dtype == np.int32


def test_an_epoch_has_every_example_and_the_next_other_augmentation():
    epochs = list(itertools.islice(train_batches(letters(), 40, SMALL), 4))
    for batch in epochs:
        np.testing.assert_array_equal(np.sort(batch["label"]), np.arange(40))
    orders = {tuple(batch["label"]) for batch in epochs}
    assert len(orders) == 4
    for key in ("offset", "mirrored", "colour"):
        assert len({b[key][np.argmin(b["label"])].tobytes() for b in epochs}) > 1


def letters(flip=True):
    """Return forty images of 8x8 pixels, each with its own label and none equal to its mirror."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    splits = ("train", "test")
    return dataclasses.replace(
        in_memory("digits"),
        name="letters",
        channels=3,
        flip=flip,
        sizes=dict.fromkeys(splits, 40),
        images=dict.fromkeys(splits, images),
        labels=dict.fromkeys(splits, np.arange(40, dtype=np.int32)),
    )


WHOLE = Preprocessing(image_size=8, resize=8, pad=1, pca_std=0.0)


def test_small_images_come_whole_with_the_places_of_their_crops():
    source = letters()
    stream = list(itertools.islice(train_batches(source, 16, WHOLE, seed=3), 100))
    for batch in stream:
        np.testing.assert_array_equal(batch["image"], source.images["train"][batch["label"]])
    places = collections.Counter(
        (*offset, mirror)
        for batch in stream
        for offset, mirror in zip(batch["offset"].tolist(), batch["mirrored"].tolist(), strict=True)
    )
    assert set(places) == set(itertools.product(range(3), range(3), (False, True)))
    assert min(places.values()) > 1600 / 18 * 0.6
    epoch = np.concatenate([batch["label"] for batch in stream[:5]])
    np.testing.assert_array_equal(np.sort(epoch), np.repeat(np.arange(40), 2))
    for start in (0, 7, 99):
        again = next(train_batches(source, 16, WHOLE, seed=3, start_step=start))
        assert again.keys() == {"image", "label", "offset", "mirrored"}
        for key, values in again.items():
            np.testing.assert_array_equal(values, stream[start][key])
    parts = [next(train_batches(source, 16, WHOLE, seed=3, shard=(i, 4))) for i in range(4)]
    for key, values in stream[0].items():
        np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), values)


@pytest.mark.parametrize("batch_size", [16, 40, 64])
@pytest.mark.parametrize("processes", [1, 3])
def test_small_images_are_evaluated_as_they_are_in_memory(batch_size, processes):
    source = letters()
    for index in range(processes):
        own = np.arange(40)[index::processes]
        shard, size = (index, processes), batch_size * processes
        batches = list(eval_batches(source, size, WHOLE, shard=shard))
        assert all(len(batch["image"]) == batch_size for batch in batches)
        together = {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
        assert together["mask"].sum() == len(own)
        assert not together["image"][len(own) :].any()
        np.testing.assert_array_equal(together["label"][: len(own)], own)
        np.testing.assert_array_equal(together["image"][: len(own)], source.images["train"][own])


@pytest.mark.parametrize(
    ("change", "flip", "keys"),
    [
        ({}, False, {"offset"}),
        ({"flip": "none", "pad": 0}, True, set()),
        ({"pad": 0}, True, {"mirrored"}),
        ({"image_size": 12}, True, {"offset", "mirrored"}),
        ({"train_size": 6}, True, {"offset", "mirrored"}),
        ({"pca_std": 0.1}, True, {"offset", "mirrored", "colour"}),
        ({"policy": "trivial_augment_wide"}, True, set()),
        ({"grayscale": 0.1, "pca_std": 0.1}, True, {"colour"}),
    ],
)
def test_the_step_crops_where_nothing_else_changes_an_image(change, flip, keys):
    preprocessing = dataclasses.replace(WHOLE, **change)
    batch = next(train_batches(letters(flip), 16, preprocessing))
    assert batch.keys() == {"image", "label"} | keys
    size = preprocessing.train_size or preprocessing.image_size
    assert batch["image"].shape == (16, size, size, 3)


def test_alternating_flips_show_both_sides_of_every_image_in_two_passes():
    """A batch may span two passes, and a stream that starts later continues identically."""
    preprocessing = dataclasses.replace(WHOLE, flip="alternating")
    source = letters(True)
    size = source.sizes["train"]
    batches = list(itertools.islice(train_batches(source, 16, preprocessing), 2 * size // 16))
    sides = np.concatenate([batch["mirrored"] for batch in batches])
    order = np.concatenate(
        list(itertools.islice(source.training_order(16, 0, 0, (0, 1), 1), len(batches)))
    )
    first, second = (np.empty(size, bool) for _ in range(2))
    first[order[:size]], second[order[size:]] = sides[:size], sides[size:]
    np.testing.assert_array_equal(first, ~second)
    assert 0.2 < first.mean() < 0.8
    later = next(train_batches(source, 16, preprocessing, start_step=3))
    np.testing.assert_array_equal(later["mirrored"], batches[3]["mirrored"])
    halves = [
        next(train_batches(source, 16, preprocessing, shard=(i, 2)))["mirrored"] for i in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(halves), batches[0]["mirrored"])


def test_images_that_are_changed_on_the_host_are_not_flipped_in_alternation():
    preprocessing = dataclasses.replace(WHOLE, flip="alternating", policy="trivial_augment_wide")
    with pytest.raises(InputError, match="expected the flip 'random'"):
        next(train_batches(letters(True), 16, preprocessing))


def test_more_small_images_than_memory_is_given_are_resized_in_every_epoch(monkeypatch):
    source, preprocessing = letters(), dataclasses.replace(WHOLE, image_size=12, pad=0, flip="none")
    kept = next(train_batches(source, 40, preprocessing))
    plan = data.training_plan(preprocessing, source)
    resized = data.training_as_fed(source, plan)
    assert resized is not None
    assert resized.images["train"].nbytes == 40 * 12 * 12 * 3
    monkeypatch.setattr("flaxnets.data.pipeline.MAX_IN_MEMORY", 40 * 12 * 12 * 3 - 1)
    assert data.training_as_fed(source, plan) is None
    streamed = next(train_batches(source, 40, preprocessing))
    for key, values in kept.items():
        np.testing.assert_array_equal(streamed[key], values)


def test_processes_share_the_examples():
    source = in_memory("digits")
    shares = [source.share("train", (index, 4)) for index in range(4)]
    assert sum(shares) == source.sizes["train"] == 1442
    orders = [list(source.evaluation_order("train", (i, 4))) for i in range(4)]
    assert [len(order) for order in orders] == shares
    assert sorted(itertools.chain(*orders)) == list(range(1442))


def test_digits_are_split_by_class_and_never_mirrored():
    source = in_memory("digits")
    assert source.sizes == {"train": 1442, "test": 355}
    assert not source.flip
    assert np.bincount(source.labels["test"]).min() == 34
    pixels = source.images["train"] / 255
    (mean,), (std,) = source.statistics
    assert abs(pixels.mean() - mean) < 1e-3
    assert abs(pixels.std() - std) < 1e-3


def test_rows_of_features_are_standardised_by_the_training_split():
    cancer, diabetes = in_memory("breast_cancer"), in_memory("diabetes")
    assert (cancer.kind, diabetes.kind) == ("rows", "rows")
    assert cancer.class_names == ("malignant", "benign")
    assert diabetes.class_names == ()
    assert cancer.sizes == {"train": 456, "test": 113}
    assert diabetes.sizes == {"train": 354, "test": 88}
    target = diabetes.labels["train"]
    assert target.mean() == pytest.approx(0, abs=1e-6)
    assert target.std() == pytest.approx(1, abs=1e-6)
    for source, features in ((cancer, 30), (diabetes, 10)):
        batch = next(train_batches(source, 32, SMALL))
        assert batch["image"].shape == (32, 1, 1, features)
        assert batch["image"].dtype == np.float32
        assert batch["label"].dtype == source.labels["train"].dtype
        mean, std = source.statistics
        fed = (source.images["train"] - mean) / std
        np.testing.assert_allclose(fed.mean((0, 1, 2)), 0, atol=1e-6)
        np.testing.assert_allclose(fed.std((0, 1, 2)), 1, atol=1e-6)
        rows = {row.tobytes() for split in source.images.values() for row in split}
        assert {row.tobytes() for row in batch["image"]} <= rows  # fed as they are


def test_a_process_without_examples_has_batches_like_the_others():
    """Three processes share 88 rows: the first has one row more than the others."""
    source = open_source("diabetes")
    parts = [list(eval_batches(source, 87, SMALL, shard=(i, 3))) for i in range(3)]
    assert [[int(batch["mask"].sum()) for batch in part] for part in parts] == [
        [29, 1], [29, 0], [29, 0]
    ]  # fmt: skip
    for part in parts[1:]:
        for key, values in part[1].items():
            assert (values.shape, values.dtype) == (parts[0][1][key].shape, parts[0][1][key].dtype)


# Folders


def test_a_folder_of_pictures(pictures):
    source = open_source(f"folder:{pictures}")
    assert source.class_names == ("china", "flower")
    assert source.sizes == {"train": 6, "test": 2}
    batch = next(train_batches(source, 6, Preprocessing()))
    assert batch["image"].shape == (6, 224, 224, 3)
    assert len({image.tobytes() for image in batch["image"]}) == 6
    (test,) = eval_batches(source, 2, Preprocessing())
    np.testing.assert_array_equal(test["label"], [0, 1])


@pytest.mark.parametrize("crop", ["random", "random_resized"])
@pytest.mark.parametrize("content", [b"no picture", b"", "half"])
def test_an_unreadable_picture_is_named(pictures, content, crop):
    bad = pictures / "train" / "china" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:20_000] if content == "half" else content)
    source = open_source(f"folder:{pictures}")
    with pytest.raises(InputError, match=f"{bad} is not a (complete )?picture .*; remove or repl"):
        next(train_batches(source, 6, Preprocessing(crop=crop)))


@pytest.mark.parametrize("fitting", [0, 1, 3])
@pytest.mark.parametrize("dataset", ["folder", "digits"])
def test_what_fits_of_an_evaluation_is_made_once(pictures, dataset, fitting):
    source = open_source(f"folder:{pictures}" if dataset == "folder" else dataset)
    size = source.sizes["train"] // 5 * 2  # the last batch is padded
    preprocessing = Preprocessing(image_size=32, resize=36)
    plan = data.evaluation_plan(preprocessing, source.kind, source.channels)
    made = []

    def batches_from(first):
        batches = data.eval_batches(source, size, plan, split="train", start_batch=first)
        for number, batch in enumerate(batches, first):
            made.append(number)
            yield batch

    whole = list(batches_from(0))
    assert len(whole) == 3
    nbytes = sum(values.nbytes for values in whole[0].values())
    one_pass = data.Decoded((fitting + 1) * nbytes - 1).repeatable(batches_from)
    made.clear()
    next(one_pass())  # a pass that ends early
    for _ in range(2):
        for batch, expected in zip(one_pass(), whole, strict=True):
            assert set(batch) == set(expected)
            for key, values in expected.items():
                np.testing.assert_array_equal(batch[key], values)
    assert made == {0: [0, 0, 1, 2, 0, 1, 2], 1: [0, 1, 2, 1, 2], 3: [0, 1, 2]}[fitting]


@pytest.mark.parametrize(("gigabytes", "begun"), [("2", [0, 1]), ("0", [0, 0])])
def test_a_run_keeps_its_test_images(tmp_path, monkeypatch, gigabytes, begun):
    """The second evaluation starts after the only batch."""
    starts = []

    made = data.eval_batches

    def spying(*rest, start_batch, **options):
        starts.append(start_batch)
        return made(*rest, start_batch=start_batch, **options)

    monkeypatch.setattr("flaxnets.runs.feed.eval_batches", spying)
    monkeypatch.setattr("flaxnets.runs.processes.join", lambda processes: None)
    train.main(
        ["--arch", "softmax_regression", "--epochs", "2", "--batch-size", "360",
         "--workdir", str(tmp_path), "--decoded-gigabytes", gigabytes, "--no-compilation-cache"]
    )  # fmt: skip
    assert starts == begun


@pytest.mark.parametrize("policy", ["none", "rand_augment"])
def test_windows_are_the_same_from_any_step_on_and_in_any_process(pictures, policy):
    source = open_source(f"folder:{pictures}")
    preprocessing = Preprocessing(image_size=32, resize=32, crop="random_resized", policy=policy)
    whole = list(itertools.islice(train_batches(source, 4, preprocessing, seed=5), 6))
    images = np.concatenate([batch["image"] for batch in whole])
    assert images.shape == (24, 32, 32, 3)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 24
    for step in (0, 4):
        again = next(train_batches(source, 4, preprocessing, seed=5, start_step=step))
        parts = [
            next(train_batches(source, 4, preprocessing, seed=5, start_step=step, shard=(i, 2)))
            for i in range(2)
        ]
        for key, values in whole[step].items():
            np.testing.assert_array_equal(again[key], values)
            np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), values)


@pytest.mark.parametrize("crop", ["random", "random_resized"])
@pytest.mark.parametrize("fitting", [0, 1, 2])
def test_photographs_that_fit_are_decoded_once(pictures, photographs, monkeypatch, fitting, crop):
    """Three copies of each of two pictures share an entry, because the key is the file's bytes."""
    decoded = collections.Counter()
    decode = simplejpeg.decode_jpeg

    def spying(encoded, *rest, **options):
        decoded[encoded[-1000:]] += 1  # the header may say fewer rows
        return decode(encoded, *rest, **options)

    threads.threads().shutdown()  # ends decoding ahead for other tests
    threads.threads.cache_clear()
    monkeypatch.setattr(simplejpeg, "decode_jpeg", spying)
    source = open_source(f"folder:{pictures}")
    preprocessing = Preprocessing(image_size=200, resize=220, crop=crop)
    room = fitting * (max(map(len, photographs)) + 640 * 427 * 3)
    begun = train_batches(source, 6, preprocessing, decoded=data.Decoded(room))
    batches = list(itertools.islice(begun, 8))
    fewest, most = sorted(decoded.values())
    assert fewest <= threads.CORES if fitting else fewest >= 24  # two threads may meet
    assert most <= threads.CORES if fitting == 2 else most >= 24  # some batches are made ahead
    for batch, expected in zip(batches, train_batches(source, 6, preprocessing), strict=False):
        np.testing.assert_array_equal(batch["image"], expected["image"])


def test_a_folder_is_read_as_torchvision_reads_it(tmp_path, photographs):
    """Subdirectories, links and all suffixes that Pillow reads are included; others are counted."""
    image = Image.fromarray(noise(9, 8))
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name / "deep" / "er").mkdir(parents=True)
            image.save(tmp_path / split / name / "deep" / "er" / "0.PNG")
            image.save(tmp_path / split / name / "9.webp")
    inside = tmp_path / "train" / "a"
    (inside / "deep-1").mkdir()
    for name in ("1.jpg", "deep/2.tiff", "deep/3.ppm", "deep-1/4.bmp"):
        image.save(inside / name)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    image.save(elsewhere / "5.gif")
    (inside / "linked").symlink_to(elsewhere)
    (inside / "linked" / "round").symlink_to(inside)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = in_memory(f"folder:{tmp_path}")
    folder = torchvision.datasets.ImageFolder
    for split, name in (("train", "train"), ("test", "val")):
        if name == "train":
            (elsewhere / "round").unlink()  # torchvision would follow this link for ever
        theirs = folder(
            str(tmp_path / name),
            is_valid_file=lambda path: path.lower().endswith(tuple(picture_suffixes())),
        )
        assert source.images[split].tolist() == [path for path, _ in theirs.samples]
        assert source.labels[split].tolist() == theirs.targets
    for name in ("notes.txt", "Thumbs.db", "more.txt", "deep/.hidden.jpg", "deep/README"):
        (inside / name).write_bytes(b"")
    sentence = "5 files in .* are ignored, .* not those of pictures: 2 .txt, 1 .db, 1 hidden, 1 wit"
    with pytest.warns(InputWarning, match=sentence):
        assert open_source(f"folder:{tmp_path}").sizes == source.sizes


def test_file_names_of_any_bytes(tmp_path):
    image = Image.fromarray(noise(9, 8))
    for split in ("train", "val"):
        for name in (b"caf\xe9", b"b"):
            directory = os.path.join(os.fsencode(tmp_path), split.encode(), name)
            os.makedirs(directory)
            image.save(os.path.join(directory, b"\xff.png"))
    source = open_source(f"folder:{tmp_path}")
    assert source.class_names == ("b", "caf\\xe9")
    preprocessing = Preprocessing(image_size=8, resize=8)
    assert next(train_batches(source, 2, preprocessing))["image"].shape == (2, 8, 8, 3)
    bad = os.path.join(os.fsencode(tmp_path), b"val", b"b", b"\xff.png")
    pathlib.Path(os.fsdecode(bad)).write_bytes(b"")
    with pytest.raises(InputError, match=r"val/b/\\xff.png is not a picture in a format that"):
        list(eval_batches(source, 2, preprocessing))


def test_wrong_folders_get_one_sentence(pictures):
    with pytest.raises(InputError, match="no directory /nowhere; a folder data set needs"):
        open_source("folder:/nowhere")
    (pictures / "train" / "empty").mkdir()
    with pytest.raises(InputError, match="class 'empty' has no pictures in"):
        open_source(f"folder:{pictures}")
    (pictures / "train" / "empty").rmdir()
    (pictures / "val" / "flowr").mkdir()
    with pytest.raises(InputError, match=r"unknown class in .*val 'flowr'; did you mean 'flower'"):
        open_source(f"folder:{pictures}")


# Arrays


KERAS, MEDMNIST = ARRAYS


def arrays(names=KERAS, size=(12, 12, 3), classes=4):
    """Return arrays of nine training images and five test images."""
    images = np.random.default_rng(0).integers(0, 256, (14, *size), np.uint8)
    labels = np.arange(14) % classes
    return dict(zip(names, (images[:9], labels[:9], images[9:], labels[9:]), strict=True))


def save(file: pathlib.Path, arrays: dict[str, Any]) -> None:
    np.savez_compressed(file, **arrays)


@pytest.mark.parametrize("names", ARRAYS)
@pytest.mark.parametrize("size", [(12, 12), (12, 12, 1), (12, 12, 3)])
@pytest.mark.parametrize("column", [True, False])  # MedMNIST's labels are (N, 1)
def test_a_file_of_arrays(names, size, column, tmp_path):
    given = arrays(names, size)
    for name in names[1::2]:
        given[name] = given[name][:, None] if column else given[name]
    save(tmp_path / "mine.npz", given)
    source = open_source(f"npz:{tmp_path}/mine.npz")
    assert (source.name, source.kind, source.image_size) == ("mine", "small images", 12)
    assert source.class_names == ("0", "1", "2", "3")
    assert source.sizes == {"train": 9, "test": 5}
    assert source.channels == (3 if size[2:] == (3,) else 1)
    assert source.flip
    preprocessing = Preprocessing(image_size=12, resize=12, flip="none", pad=0, pca_std=0.0)
    batch = next(train_batches(source, 9, preprocessing))
    (tested,) = eval_batches(source, 5, preprocessing)
    for split, found in ((0, batch), (2, tested)):
        images, labels = given[names[split]], given[names[split + 1]].reshape(-1)
        expected = {(image.tobytes(), label) for image, label in zip(images, labels, strict=True)}
        pairs = zip(found["image"], found["label"], strict=True)
        assert {(image.tobytes(), label) for image, label in pairs} == expected
        assert found["image"].shape[1:] == (12, 12, source.channels)


def test_the_name_of_a_file_of_arrays_says_what_it_is(tmp_path):
    for name in ("mnist", "letters"):
        save(tmp_path / f"{name}.npz", arrays(size=(28, 28)))
    mnist, letters = (open_source(f"npz:{tmp_path}/{name}.npz") for name in ("mnist", "letters"))
    assert not mnist.flip
    assert mnist.statistics == ((0.1307,), (0.3081,))
    assert letters.flip
    assert letters.statistics == ((0.485,), (0.229,))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"y_test": None}, "has the arrays x_train, y_train, x_test; expected x_train, y_train"),
        ({"x_test": np.zeros((5, 12, 12, 3))}, "x_test of .* is float64 .*; expected uint8"),
        ({"x_train": np.zeros((9, 2), np.uint8)}, r"x_train of .* is uint8 \(9, 2\); expected"),
        ({"x_test": np.zeros((5, 8, 8, 3), np.uint8)}, r"\(12, 12, 3\) and .* \(8, 8, 3\); expec"),
        ({"y_train": np.arange(8)}, r"the labels of x_train .* are int64 \(8,\); expected 9 who"),
        ({"y_train": np.zeros(9)}, "the labels of x_train .* are float64 .*; expected 9 whole"),
        ({"y_test": np.arange(5) - 1}, "labels of x_test in .* range from -1 to 3; expected class"),
        ({"y_test": np.arange(5) + 99_997}, "from 99997 to 100001; .* classes from 0 to 99,999"),
        ({"y_test": np.array([None] * 5)}, "cannot read .*mine.npz: it is not a .npz file"),
    ],
)
def test_wrong_arrays_get_one_sentence(change, sentence, tmp_path):
    given = {key: value for key, value in (arrays() | change).items() if value is not None}
    np.savez(tmp_path / "mine.npz", **given)
    with pytest.raises(InputError, match=sentence):
        open_source(f"npz:{tmp_path}/mine.npz")


@pytest.mark.parametrize("content", [b"", b"no arrays", b"PK\x03\x04 half of one"])
def test_files_that_hold_no_arrays_get_one_sentence(content, tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*mine.npz: No such file or directory"):
        open_source(f"npz:{tmp_path}/mine.npz")
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read .*mine.npz: it is not a .npz file"):
        open_source(f"npz:{tmp_path}/mine.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"cannot read .*one.npy: it is not a .npz file"):
        open_source(f"npz:{tmp_path}/one.npy")


# TensorFlow Datasets


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    for builder in (Tiny, TinyPhotos):
        builder(data_dir=directory).download_and_prepare()
    return str(directory)


def test_small_images_of_tfds_are_kept_decoded(prepared):
    source = in_memory("tiny", prepared)
    assert source.image_size == 16
    assert source.class_names == ("left", "right")
    assert source.sizes == {"train": 7, "test": 3}
    kept = {image.tobytes() for image in source.images["train"]}
    assert kept == {noise(16, 16, i).tobytes() for i in range(7)}
    batch = next(train_batches(source, 4, SMALL))
    assert batch["image"].shape == (4, 32, 32, 3)


def test_photographs_of_tfds_are_streamed(prepared):
    source = open_source("tiny_photos", prepared)
    assert source.image_size is None
    first = next(train_batches(source, 7, Preprocessing()))
    assert first["image"].shape == (7, 224, 224, 3)
    assert sorted(first["label"]) == [0, 0, 0, 0, 1, 1, 1]
    (batch,) = eval_batches(source, 4, Preprocessing())
    assert batch["mask"].tolist() == [1, 1, 1, 0]
    orders = [list(source.evaluation_order("train", (i, 2))) for i in range(2)]
    assert [len(order) for order in orders] == [4, 3]
    stream = list(itertools.islice(train_batches(source, 3, Preprocessing()), 6))
    again = next(train_batches(source, 3, Preprocessing(), start_step=5))
    np.testing.assert_array_equal(again["image"], stream[5]["image"])


def test_wrong_data_sets_get_one_sentence(tmp_path):
    with pytest.raises(InputError, match="unknown data set 'cifr10'; did you mean 'cifar10'"):
        open_source("cifr10", str(tmp_path))
    with pytest.raises(InputError, match=r"'mnist' is not prepared in .*; run 'tfds build mnis"):
        open_source("mnist", str(tmp_path))


def test_batches_that_cannot_be_divided():
    source = in_memory("digits")
    with pytest.raises(InputError, match=r"batch size 0 .*; expected .* multiple, such as 1$"):
        next(train_batches(source, 0, SMALL))
    with pytest.raises(InputError, match=r"batch size 5 does not divide over 2 .* as 6$"):
        next(train_batches(source, 5, SMALL, shard=(0, 2)))
