"""Networks give maps, at the offsets of the last pool and at several scales."""

import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from flaxnets import InputError, create_model, list_models, pretrained, to_torch
from flaxnets import dense as draw
from flaxnets.inference.dense import (
    SIX_SCALES,
    average_maps,
    cell_stride,
    convolutionize,
    map_shape,
    multi_scale,
    probability_maps,
)
from flaxnets.inference.features import features
from flaxnets.layers import (
    BatchNorm,
    Conv,
    Linear,
    Sequential,
    adaptive_avg_pool,
    average_positions,
    avg_pool,
    max_pool,
)
from flaxnets.models import FAMILIES
from flaxnets.training.on_device import normalize
from networks import CASES

# Narrow networks, where a field sets the width.
OVERFEAT = {"channels": (6, 16, 32, 64, 64), "hidden_features": (48, 64)}
NARROW = {
    "lenet5": {},
    "alexnet": {"hidden_features": 16},
    "alexnet_2012": {"hidden_features": 16},
    "vgg11": {"hidden_features": 16},
    "overfeat_fast": OVERFEAT,
}


def initialized(model, *shape: int, dtype: type = np.float32):
    """Return images (1, *shape) and random variables, including biases and statistics."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        if leaf.ndim > 1:
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return rng.normal(0, deviation, leaf.shape).astype(dtype)
        return rng.uniform(0.1, 1, leaf.shape).astype(dtype)

    x = rng.normal(size=(1, *shape)).astype(dtype)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jnp.asarray(x), jax.tree.map(fill, shapes)


def close(ours, expected, tolerance=1e-5):
    assert ours.shape == expected.shape
    return np.abs(ours - expected).max() <= tolerance * np.abs(expected).max()


# --------------------------------------------------------------------------- networks


@pytest.mark.parametrize("name", list_models())
def test_every_network_of_maps_can_be_convolutionized(name):
    model = create_model(name, num_classes=7)
    if not hasattr(model, "dense"):
        with pytest.raises(InputError, match=r"\w+ reads its input at one size and has no map"):
            convolutionize(model)
        return
    assert convolutionize(model) == model.clone(dense=True)


FIRST = [next(iter(FAMILIES[family])) for family in FAMILIES if family not in
         ("mlp", "vit", "maxvit")]  # fmt: skip


@pytest.mark.parametrize("name", FIRST)
def test_every_family_has_a_map_that_grows_with_the_picture(name):
    """With the few and narrow blocks of the comparison of gradients."""
    model = create_model(name, **{"num_classes": 7, **CASES[name].train_fields})
    *size, channels = model.input_shape
    rows, columns = map_shape(model, (*size, channels))
    assert min(rows, columns) >= 1
    more_rows, more_columns = map_shape(model, (size[0] + 576, size[1] + 1152, channels))
    assert more_columns - columns == 2 * (more_rows - rows) > 0


@pytest.mark.parametrize("name", NARROW)
def test_a_single_cell_is_the_networks_logits(name):
    model = create_model(name, num_classes=3, **NARROW[name])
    x, variables = initialized(model, *model.input_shape)
    scores = jax.jit(convolutionize(model).apply)(variables, x)
    assert scores.shape == (1, 1, 1, 3)
    np.testing.assert_array_equal(scores[:, 0, 0], jax.jit(model.apply)(variables, x))


# The receptive field of the features: cell i reads pixels 32 i - reach to 32 i - reach + field.
# AlexNet has 11/4 (kernel / stride), 3/2, 5/1, 3/2, three times 3/1, 3/2: its field is 195 pixels,
# its padding 66. VGG-11's are 150 and 59. In crops of these sizes, the cells `inside` read no zero.
@pytest.mark.parametrize(
    ("name", "size", "reach", "field", "inside"),
    [
        ("alexnet", 288, 66, 195, [3, 4]),
        pytest.param("vgg11", 224, 59, 150, [2, 3, 4], marks=pytest.mark.slow),
    ],
)
def test_padding_reaches_the_cells_whose_field_crosses_the_border_and_no_others(
    name, size, reach, field, inside
):
    """Features of a crop and of the picture agree in the cells that read no padding, and no others.

    The picture continues where the crop is padded with zeros. At 224 pixels every cell of AlexNet
    reads zeros.
    """
    model = create_model(name, num_classes=3, dense=True, **NARROW[name])
    x, variables = initialized(model, size + 64, size + 64, 3)
    crop = x[:, 32 : 32 + size, 32 : 32 + size]

    @jax.jit
    def compute(x):
        outputs = features(model, variables, x, ["features", "classifier"])
        return outputs["features"], outputs["classifier"]

    (of_picture, logits), (of_crop, crop_logits) = compute(x), compute(crop)
    cells = size // 32 - (name == "alexnet")  # AlexNet's last cell is cut off
    of_picture = of_picture[:, 1 : 1 + cells, 1 : 1 + cells]
    assert of_crop.shape == of_picture.shape
    error = np.abs(of_picture - of_crop).max((0, 3)) / np.abs(of_crop).max()
    whole = [32 * i >= reach and 32 * i - reach + field <= size for i in range(cells)]
    assert [i for i in range(cells) if whole[i]] == inside
    np.testing.assert_array_equal(error < 1e-5, np.logical_and.outer(whole, whole))
    # So no logit of AlexNet or VGG equals that of its crop exactly.
    assert not close(logits[:, 1, 1], crop_logits[:, 0, 0], 1e-3)


@pytest.mark.parametrize(
    ("name", "fields"), [("resnet18", {"depths": (1, 1, 1, 1)}), ("resnet20_cifar", {"depth": 8})]
)
def test_average_then_linear_is_linear_then_average(name, fields):
    with jax.enable_x64():
        model = create_model(name, num_classes=5, dtype=jnp.float64, **fields)
        x, variables = initialized(model, 64, 96, 3, dtype=np.float64)
        both = jax.jit(lambda x: [m.apply(variables, x) for m in (model, convolutionize(model))])
        logits, scores = both(x)  # logits come from averaged features
        assert scores.shape == {"resnet18": (1, 2, 3, 5), "resnet20_cifar": (1, 16, 24, 5)}[name]
        assert np.asarray(scores).std((1, 2)).min() > 0  # the cells differ
        assert close(scores.mean((1, 2)), logits, 1e-13)


# --------------------------------------------------------------------------- lists of layers


def torchs_flatten(x):
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


def flatten(x):
    return x.reshape(x.shape[0], -1)


class Head(nn.Module):
    """A module that flattens inside, as many do."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(5)(flatten(x))))


FEATURES = [Conv(4, 3), nn.relu, max_pool(2)]  # 12x10 pixels to 5x4
HEADS = {
    "ours": [flatten, Linear(5), nn.relu, Linear(3)],
    "flax's": [flatten, nn.Dense(5), nn.relu, nn.Dense(3)],
    "torch's order": [torchs_flatten, nn.Dropout(0.5, deterministic=True), nn.Dense(3)],
    "normalised": [flatten, BatchNorm(True), nn.relu, nn.Dense(3), nn.log_softmax],
    "patch": [Linear(5, patch=(5, 4)), nn.relu, Linear(3), average_positions],
    "global average": [lambda x: x.mean((1, 2)), nn.Dense(3)],
    "adaptive pool": [adaptive_avg_pool((2, 3)), flatten, nn.Dense(3)],
    "module": [Head()],
    "nested": [flatten, Sequential([nn.Dense(5), nn.relu, nn.Dense(3)])],
    "convolutions": [Conv(3, (5, 4))],
    "average pool": [avg_pool((5, 4), 1), Linear(3)],
}


@pytest.mark.parametrize(
    ("head", "wrapped"),
    [*((head, Sequential) for head in HEADS), ("flax's", nn.Sequential), ("patch", nn.Sequential)],
)
def test_a_list_of_layers_becomes_a_map_with_the_same_variables(head, wrapped):
    network = wrapped([*FEATURES, *HEADS[head]])
    x, variables = initialized(network, 12, 10, 2)
    dense = convolutionize(network, (12, 10, 2))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, dict(jax.eval_shape(dense.init, jax.random.key(1), x))
    )
    scores: Any = dense.apply(variables, x)
    assert scores.shape == (1, 1, 1, 3)
    np.testing.assert_array_equal(scores.reshape(1, 3), network.apply(variables, x).reshape(1, 3))

    larger = np.random.default_rng(2).normal(size=(2, 18, 16, 2)).astype(np.float32)
    scores, apply = jax.jit(dense.apply)(variables, larger), jax.jit(network.apply)
    assert scores.shape == (2, 4, 4, 3)
    for row, column in np.ndindex(4, 4):
        crop = larger[:, 2 * row : 2 * row + 12, 2 * column : 2 * column + 10]
        expected: Any = apply(variables, crop)
        assert close(scores[:, row, column], expected.reshape(2, 3))


def test_a_plain_list_is_a_sequential():
    layers = [*FEATURES, *HEADS["ours"]]
    x, variables = initialized(Sequential(layers), 12, 10, 2)
    scores: Any = convolutionize(layers, (12, 10, 2)).apply(variables, x)
    np.testing.assert_array_equal(scores[0, 0], Sequential(layers).apply(variables, x))


def test_what_cannot_be_a_map():
    layers = [*FEATURES, *HEADS["ours"]]
    for size in (None, (12, 10)):
        with pytest.raises(InputError, match=r"; expected the \(height, width, channels\) of the"):
            convolutionize(layers, size)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="Dense reads its input at one size and has no map"):
        convolutionize(nn.Dense(3))
    _, variables = initialized(Sequential(layers), 12, 10, 2)
    dense = convolutionize(layers, (12, 10, 2))
    with pytest.raises(InputError, match="head reads 5x4 positions of a feature map of 4x7; use"):
        dense.apply(variables, jnp.zeros((1, 11, 16, 2)))


# --------------------------------------------------------------------------- offset pooling


# The last pool (window, stride), its index in `features`, and the patch after it. With these image
# sizes all offsets of the pool have positions, but unequal numbers of them.
@pytest.mark.parametrize(
    ("name", "window", "stride", "index", "patch", "size"),
    [
        ("alexnet", 3, 2, 12, 6, 256),
        pytest.param("alexnet_2012", 3, 2, 14, 6, 256, marks=pytest.mark.slow),
        pytest.param("vgg11", 2, 2, 20, 7, 256, marks=pytest.mark.slow),
        ("overfeat_fast", 2, 2, 12, 6, 263),
    ],
)
def test_offset_pooling_is_the_map_of_each_offset_interleaved(
    name, window, stride, index, patch, size
):
    """Sermanet et al. 2013, section 3.3 and Figure 3, steps b to e (step c at each offset)."""
    model = create_model(name, num_classes=3, dense=True, **NARROW[name])
    x, variables = initialized(model, size, size, 3)

    @jax.jit  # one program computes once what the networks share
    def compute(variables, x):
        unpooled = features(model, variables, x, [f"features.{index - 1}"])
        fine = model.clone(offset_pooling=True)
        mean = fine.clone(dense=False)
        networks = (model, fine, mean)
        return *unpooled.values(), *(network.apply(variables, x) for network in networks)

    unpooled, plain, fine, mean = compute(variables, x)
    hidden = model.hidden_features
    first, second = hidden if isinstance(hidden, tuple) else (hidden, hidden)
    params = variables["params"]["classifier"]
    one, two, three = sorted(params)
    expected = np.full(fine.shape, np.nan)
    for down, right in np.ndindex(stride, stride):
        y: Any = max_pool(window, stride)(unpooled[:, down:, right:])
        y = Linear(first, patch=(patch, patch)).apply({"params": params[one]}, y)
        y = Linear(second).apply({"params": params[two]}, nn.relu(y))
        y = nn.relu(y)
        y = Linear(3).apply({"params": params[three]}, y)
        expected[:, down::stride, right::stride] = y
    assert close(fine, expected)
    assert close(fine[:, ::stride, ::stride], plain)
    assert min(fine.shape[1:3]) == 3
    assert close(mean, fine.mean((1, 2)))  # without `dense`: the mean of the map


@pytest.mark.parametrize(
    ("name", "fields", "pixels"),
    [
        ("lenet5", {}, 4), ("mcdnn_mnist", {}, 6), ("resnet18", {}, 32), ("highway_mlp", {}, 1),
        ("alexnet", {}, 32), ("alexnet", {"offset_pooling": True}, 16),
        ("vgg16", {}, 32), ("vgg16", {"offset_pooling": True}, 16),
        ("overfeat_fast", {}, 32), ("overfeat_fast", {"offset_pooling": True}, 16),
        ("overfeat_accurate", {}, 36), ("overfeat_accurate", {"offset_pooling": True}, 12),
    ],
)  # fmt: skip
def test_pixels_between_cells(name, fields, pixels):
    model = create_model(name, **fields)
    assert cell_stride(model, model.input_shape) == (pixels, pixels)


# --------------------------------------------------------------------------- several scales


def test_six_scales_have_the_maps_of_table_5():
    """Maps have the sizes of arXiv:1312.6229, Table 5, "Classifier map" (pre- and post-reshape).

    The former are those at each of 3x3 offsets, the latter are interleaved.
    """
    coarse = [(1, 1), (2, 3), (3, 5), (5, 7), (6, 8), (7, 10)]
    model = create_model("overfeat_accurate")
    fine = model.clone(offset_pooling=True)
    assert [map_shape(model, (*size, 3)) for size in SIX_SCALES] == coarse
    assert [map_shape(fine, (*size, 3)) for size in SIX_SCALES] == [
        (3 * height, 3 * width) for height, width in coarse
    ]


def test_several_scales_are_maxima_over_positions_averaged():
    """Section 3.3: the maximum of each class over the crops of a scale and flip, then the mean."""
    model = create_model("lenet5")
    _, variables = initialized(model, 28, 28, 1)
    keys = jax.random.split(jax.random.key(0))
    sizes = [(28, 28), (40, 36)]
    scales = [jax.random.normal(k, (2, *size, 1)) for k, size in zip(keys, sizes, strict=True)]
    apply, vectors = jax.jit(model.apply), []
    for (height, width), images in zip(sizes, scales, strict=True):
        for x in (images, images[:, :, ::-1]):
            crops = [
                apply(variables, x[:, i : i + 28, j : j + 28])
                for i in range(0, height - 27, 4)
                for j in range(0, width - 27, 4)
            ]
            vectors.append(jax.nn.softmax(jnp.stack(crops)).max(0))
    scores = jax.jit(functools.partial(multi_scale, model))(variables, scales)
    assert close(scores, jnp.mean(jnp.stack(vectors), 0))


def test_maps_of_mirror_images_are_mirrored_back():
    model = create_model("lenet5")
    x, variables = initialized(model, 28, 44, 1)
    apply = jax.jit(model.apply)
    straight, mirrored = jax.jit(functools.partial(probability_maps, model))(variables, x)
    assert straight.shape == mirrored.shape == (1, 1, 5, 10)
    for column in range(5):
        crop = x[:, :, 4 * column : 4 * column + 28]
        for scores, picture in ((straight, crop), (mirrored, crop[:, :, ::-1])):
            expected = jax.nn.softmax(apply(variables, picture))
            assert close(scores[:, 0, column], expected)


def test_maps_of_several_scales_lie_over_each_other():
    """Maps of a plane, sampled at the cells of each scale, have that plane as their mean.

    Beyond its outermost cells a map is constant.
    """
    sizes, counts = [(100, 150), (200, 300)], [(3, 5), (5, 7)]
    # Positions of cells 20 pixels apart, as fractions of the picture.
    places = [
        [(np.arange(n) - (n - 1) / 2) * 20 / side for n, side in zip(count, size, strict=True)]
        for count, size in zip(counts, sizes, strict=True)
    ]
    maps = [np.stack(np.meshgrid(*axes, indexing="ij"), -1) for axes in places]
    np.testing.assert_allclose(average_maps(maps, sizes), maps[-1], atol=1e-12)
    wide = average_maps(maps[::-1], sizes[::-1])  # the finer map is the smaller one
    np.testing.assert_allclose(wide[1, 1:-1], maps[0][1, 1:-1], atol=1e-12)
    np.testing.assert_allclose(wide[0, 0, 0], (maps[0][0, 0, 0] + maps[1][0, 0, 0]) / 2)


# --------------------------------------------------------------------------- scripts


@pytest.fixture
def lenet(tmp_path):
    """Return options for a LeNet-5 with random weights and a picture, and the network itself."""
    model = create_model("lenet5")
    _, variables = initialized(model, 28, 28, 1)
    save_file(to_torch(variables), tmp_path / "lenet5.safetensors")
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    options = {
        "picture": tmp_path / "picture.png",
        "arch": "lenet5",
        "checkpoint": tmp_path / "lenet5.safetensors",
        "class_": "class 7",
        "out": tmp_path / "map.png",
    }
    return options, model, variables, pixels


def test_a_picture_is_drawn_with_its_map(lenet, capsys):
    options, model, variables, pixels = lenet
    draw.main(draw.Options(**options, image_size=40))
    lines = capsys.readouterr().out.splitlines()

    statistics = pretrained("lenet5", options["checkpoint"]).statistics
    x = normalize(jnp.asarray(pixels)[None, ..., None], *statistics)
    maps = jax.jit(functools.partial(probability_maps, model))(variables, x)
    probabilities = np.asarray(maps[0][0])
    assert lines[0] == "4x9 cells, 4 pixels apart, of 60x40 pixels"
    row, column = np.unravel_index(probabilities[..., 7].argmax(), (4, 9))
    highest = probabilities[row, column, 7]
    assert lines[1] == f"class 7: {highest:.2%} at most, in row {row + 1}, column {column + 1}"
    printed = {line.split(maxsplit=1)[1]: int(line.split()[0]) for line in lines[3:]}
    classes, counts = np.unique(probabilities.argmax(2), return_counts=True)
    assert printed == {f"class {i}": n for i, n in zip(classes, counts, strict=True)}
    with Image.open(options["out"]) as drawn:
        assert drawn.width > drawn.height > 200

    draw.main(draw.Options(**options, scales=6))  # 28 * 461 / 221 = 58 pixels
    assert capsys.readouterr().out.startswith("8x15 cells, 4 pixels apart, of 87x58 pixels\n")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"class_": "clas 7"}, "unknown class 'clas 7'; did you mean 'class 7'?"),
        ({"arch": None}, "no network given; expected --arch NAME or --workdir DIR"),
        ({"out": pathlib.Path("map.pgn")}, "unknown format of a figure 'pgn'; did you mean 'png'?"),
        ({"image_size": 0}, "--image-size is 0; expected at least 1"),
        (
            {"image_size": 2000},
            "the picture has 6,000,000 pixels when its short side is scaled to 2000; expected at "
            "most 4,194,304, so cut it or give a smaller --image-size",
        ),
        (
            {"image_size": 99, "scales": 6},
            "--image-size 99 is given with --scales 6, which has its own sizes; leave out one of "
            "them",
        ),
        (
            {"workdir": pathlib.Path("run")},
            "--workdir names a network with its weights; leave out --arch, --weights, "
            "--checkpoint and --ema",
        ),
    ],
)
def test_a_picture_that_cannot_be_drawn(lenet, wrong, sentence):
    with pytest.raises(InputError) as raised:
        draw.main(draw.Options(**{**lenet[0], **wrong}))
    assert str(raised.value) == sentence
