"""Compare the operations and policies of augmentation with torchvision's for PIL images."""

import collections
from random import Random

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from flaxnets import InputError
from flaxnets.data.pixels import policies
from flaxnets.data.pixels.decode import as_array, as_image
from flaxnets.data.pixels.policies import Policy, draw, sub_policies
from tools.torchvision_import import torchvision

autoaugment = torchvision.transforms.autoaugment
POLICIES = ("trivial_augment_wide", "rand_augment", *policies.AUTO_AUGMENT)
SIGNED = {**policies.MOVING, **policies.ENHANCING}


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return sklearn.datasets.load_sample_image("china.jpg")


def operate(name, image, magnitude, interpolation="bilinear"):
    resampling = Image.Resampling[interpolation.upper()]
    return as_array(policies.OPERATIONS[name](as_image(image), float(magnitude), resampling))


def torchvisions(name, image, magnitude, interpolation="bilinear"):
    mode = torchvision.transforms.InterpolationMode(interpolation)
    result = autoaugment._apply_op(as_image(image), name, float(magnitude), mode, None)
    return as_array(result)


def strengths(name, height, width, every=1):
    """Return the magnitudes of all policies, with both signs if an operation has two."""
    values = [np.zeros(1, np.float32)]
    for bins, wide in ((31, True), (31, False), (10, False)):
        values.append(policies.magnitudes(bins, height, width, wide).get(name, values[0])[::every])
    both = np.unique(np.concatenate(values[1:]))
    return np.concatenate([both, -both]) if name in SIGNED else both


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", policies.OPERATION_NAMES)
def test_operations_give_torchvisions_bits(photograph, name, channels, interpolation):
    image = np.ascontiguousarray(photograph[100:140, 60:115, :channels])
    for magnitude in strengths(name, 40, 55, every=2):
        expected = torchvisions(name, image, magnitude, interpolation)
        ours = operate(name, image, magnitude, interpolation)
        np.testing.assert_array_equal(ours, expected, str(magnitude))


@pytest.mark.parametrize("name", policies.OPERATION_NAMES)
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


@pytest.mark.parametrize("size", [(32, 32), (176, 224)])
def test_magnitudes_are_torchvisions(size):
    theirs = {
        (31, True): autoaugment.TrivialAugmentWide()._augmentation_space(31),
        (31, False): autoaugment.RandAugment()._augmentation_space(31, size),
        (10, False): autoaugment.AutoAugment()._augmentation_space(10, size),
    }
    height, width = size
    for (bins, wide), space in theirs.items():
        ours = policies.magnitudes(bins, height, width, wide)
        assert set(ours) == {name for name, (values, _) in space.items() if values.ndim}
        for name, (values, signed) in space.items():
            assert signed == (name in SIGNED)
            if name in ours:
                last_bit = 2**-23 * float(values.max())
                np.testing.assert_allclose(ours[name], values.numpy(), rtol=0, atol=last_bit)
            if name[:9] == "Translate":
                whole = ours[name].astype(int) != values.numpy().astype(int)
                assert not np.delete(whole, 15 if wide else []).any()  # see policies.magnitudes
    posterize = policies.magnitudes(10, height, width, False)["Posterize"]
    assert posterize.tolist() == [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]


def test_sub_policies_are_torchvisions():
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
        for ours, expected in zip(sub_policies(policy, 176, 224), theirs, strict=True):
            for step, (name, probability, magnitude) in zip(ours, expected, strict=True):
                assert step[:2] == (name, probability)
                assert step.magnitude == pytest.approx(magnitude, rel=1e-6)
    wide = sub_policies("trivial_augment_wide", 176, 224)
    names = list(autoaugment.TrivialAugmentWide()._augmentation_space(31))
    assert collections.Counter(plan[0].operation for plan in wide) == dict.fromkeys(names, 31)
    assert (
        len(set(wide)) == 10 * 31 + 7 + 3 * 1
    )  # posterize keeps 2 to 8 bits, three have no strength
    space = autoaugment.RandAugment()._augmentation_space(31, (176, 224))
    chosen = {(name, 1.0, float(v[9]) if v.ndim else 0.0) for name, (v, _) in space.items()}
    pairs = sub_policies("rand_augment", 176, 224)
    assert len(pairs) == len(set(pairs)) == 14 * 14
    for step in {step for pair in pairs for step in pair}:
        assert any(
            step[:2] == one[:2] and step[2] == pytest.approx(one[2], rel=1e-6) for one in chosen
        )
    strong = sub_policies("rand_augment", 176, 224, magnitude=15)
    degrees = {step.magnitude for pair in strong for step in pair if step.operation == "Rotate"}
    assert degrees == {float(space["Rotate"][0][15])}
    with pytest.raises(InputError, match="did you mean 'rand_augment'"):
        sub_policies("random_augment", 32, 32)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", POLICIES)
def test_draws_follow_the_sub_policies(policy):
    """Every operation is as frequent as its policy says; half of the reversible are reversed."""
    count = 4000
    drawn = [draw(policy, 32, 32, Random(i)) for i in range(count)]
    expected: dict[str, float] = collections.defaultdict(float)
    most = max(map(len, sub_policies(policy, 32, 32)))
    for steps in (table := sub_policies(policy, 32, 32)):
        for step in steps:
            expected[step.operation] += step.probability / len(table)
    counts = collections.Counter(name for steps in drawn for name, _ in steps)
    assert set(counts) == {name for name, share in expected.items() if share}
    for name, share in expected.items():  # a mean of up to `most` of them an image
        assert abs(counts[name] / count - share) <= 4 * np.sqrt(most * share / count)
    signs = [np.sign(m) for steps in drawn for name, m in steps if name in SIGNED and m]
    assert abs(np.mean(signs)) < 4 / np.sqrt(len(signs))
    assert all(m >= 0 for steps in drawn for name, m in steps if name not in SIGNED)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_applies_what_it_draws(photograph, policy, channels):
    image = photograph[100:132, 60:92, :channels]
    for seed in range(6):
        expected = image
        for operation, magnitude in draw(policy, 32, 32, Random(seed)):
            expected = operate(operation, expected, magnitude)
        np.testing.assert_array_equal(Policy(policy)(image, Random(seed)), expected)
