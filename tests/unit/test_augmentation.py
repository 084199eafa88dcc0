"""Test augmentation of batches: repeated, at another size, and on the device as torchvision's."""

import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import Mesh, PartitionSpec

from feeds import eval_batches, in_memory, train_batches
from flaxnets import InputError
from flaxnets.data import open_source
from flaxnets.recipes import Preprocessing
from flaxnets.training import batch_augmentation as on_device
from flaxnets.training.on_device import crop_and_flip
from tools.torchvision_import import torchvision

v2 = importlib.import_module("torchvision.transforms.v2")

# Batches


def numbered(count: int):
    """Return the first digits, each labelled by its position."""
    source = in_memory("digits")
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
    """An epoch has its number of examples; each copy of a distinct one is augmented by itself."""
    preprocessing = Preprocessing(
        image_size=32, resize=32, policy="trivial_augment_wide", repeats=repeats
    )
    source, size = numbered(48), 48
    steps = 2 * size // batch_size
    batches = list(
        itertools.islice(train_batches(source, batch_size, preprocessing, seed=1), steps)
    )
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
        again = next(train_batches(source, batch_size, preprocessing, seed=1, start_step=start))
        np.testing.assert_array_equal(again["label"], batches[start]["label"])
        np.testing.assert_array_equal(again["image"], batches[start]["image"])


def test_repeated_augmentation_over_processes_and_devices():
    """The four copies of an image are on four of the eight devices of two processes."""
    preprocessing = Preprocessing(image_size=8, resize=8, repeats=4)
    streams = [
        train_batches(numbered(64), 16, preprocessing, shard=(process, 2)) for process in range(2)
    ]
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
    preprocessing = Preprocessing(image_size=8, resize=8, repeats=3)
    stream = train_batches(numbered(10), 10, preprocessing)
    for batch in itertools.islice(stream, 3):
        assert np.unique(batch["label"], return_counts=True)[1].max() == 3
        assert len(set(batch["label"])) == 4


def test_training_at_another_size_than_evaluation():
    source = open_source("digits")
    preprocessing = Preprocessing(image_size=32, resize=36, train_size=24, policy="rand_augment")
    assert next(train_batches(source, 4, preprocessing))["image"].shape == (4, 24, 24, 1)
    assert next(eval_batches(source, 4, preprocessing))["image"].shape == (4, 32, 32, 1)


def test_preprocessing_that_no_image_can_have():
    for preprocessing, sentence in [
        (Preprocessing(repeats=0), "repeats is 0; expected a positive number"),
        (Preprocessing(train_size=-1), "train size is -1; expected zero or more"),
        (Preprocessing(grayscale=1.5), "grayscale is 1.5; expected a number from 0 to 1"),
        (Preprocessing(train_size=288), "resize 256 is smaller than the crop of 288 pixels"),
    ]:
        with pytest.raises(InputError, match=sentence):
            preprocessing.check()
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
    images = jnp.asarray(images_and_targets(64)[0])
    for probability in (0.0, 1.0):
        erased = np.asarray(on_device.random_erasing(images, jax.random.key(1), probability))
        kept = (erased == images).all(-1)
        assert (erased[~kept] == 0).all()
        assert (~kept).any((1, 2)).all() == bool(probability)
        assert kept.any((1, 2)).all()


def test_a_rectangle_that_never_fits_erases_nothing():
    images = np.ones((64, 1, 100, 3), np.float32)
    erased = on_device.random_erasing(jnp.asarray(images), jax.random.key(0), 1.0)
    np.testing.assert_array_equal(erased, images)


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
    given = jnp.asarray(images), jnp.asarray(targets)
    same = on_device.mixup_or_cutmix(*given, key, 0.0, 0.0)
    assert same[0] is given[0]
    assert same[1] is given[1]
    only = np.asarray(apply(images, targets, key, 0.0, 1.0)[0])
    assert ((only == images) | (only == np.roll(images, 1, 0))).all()


def test_each_device_augments_its_own_part():
    """Under shard_map each device computes what it would compute alone."""
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
    found = jax.jit(crop_and_flip, static_argnums=3)(images, offsets, mirrored, pad)
    assert found.dtype == jnp.uint8
    for image, (y, x), mirror, ours in zip(images, offsets, mirrored, found, strict=True):
        padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))[y : y + 9, x : x + 7]
        np.testing.assert_array_equal(ours, padded[:, ::-1] if mirror else padded)
