"""Facts about the networks for small devices that the comparison with torch does not state."""

import collections
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
from flaxnets import create_model, to_torch
from flaxnets.blocks import hard_swish, round_channels
from flaxnets.inference.features import feature_info, pyramid
from flaxnets.initializers import drawn
from flaxnets.layers import BatchNorm, Conv
from flaxnets.models.shufflenet_v2 import ShuffleUnit
from networks import CASES, SMALL
from tools.torchvision_import import torchvision

NAMES = (
    "squeezenet1_0", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small",
    "shufflenet_v2_x1_0", "mnasnet1_0",
)  # fmt: skip


def initial(model):
    return drawn(model.init)(jax.random.key(0), jnp.zeros((1, *model.input_shape)))


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(3, 8), (12, 16), (8.8, 8), (16 * 0.75, 16), (83, 80), (84, 88), (18, 24), (36, 40)],
)
def test_channels_are_rounded_to_eighths_but_lose_no_more_than_a_tenth(channels, expected):
    """18 is nearer to 16, but 16 is only 0.89 of it."""
    from torchvision.models._utils import _make_divisible

    assert round_channels(channels) == _make_divisible(channels, 8) == expected


@pytest.mark.parametrize("width", [0.35, 0.75, 1.4])
@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"])
def test_a_width_scales_as_torchvisions(name, width):
    model = create_model(name, width=width, num_classes=10)
    variables = parity.initial_shapes(model, np.zeros((1, 32, 32, 3)))
    with torch.device("meta"):
        theirs = torchvision.models.get_model(
            name, weights=None, width_mult=width, num_classes=10
        ).state_dict()
    shapes = {key: value.shape for key, value in torch_shapes(variables).items()}
    expected = {k: tuple(v.shape) for k, v in theirs.items() if "num_batches" not in k}
    assert shapes == expected


def torch_shapes(variables):
    return to_torch(jax.tree.map(lambda leaf: np.empty(leaf.shape, bool), variables))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("squeezenet1_1", {}),
        ("mobilenet_v2", CASES["mobilenet_v2"].train_fields),
        ("mobilenet_v3_small", CASES["mobilenet_v3_small"].train_fields),
        ("shufflenet_v2_x1_0", CASES["shufflenet_v2_x1_0"].train_fields),
        ("mnasnet0_5", {}),
    ],
)
@pytest.mark.slow
def test_initial_values_are_distributed_as_torchvisions(name, fields):
    """Compare mean, deviation and largest value of every array. The largest value tells normal from
    uniform values.
    """
    fields = fields | {"num_classes": 300}
    whole = functools.partial(torchvision.models.get_model, name, weights=None)
    build = whole if len(fields) == 1 else CASES[name].reference
    assert build is not None
    torch.manual_seed(0)
    theirs = build(**fields).state_dict()
    for key, value in to_torch(initial(create_model(name, **fields))).items():
        other = theirs[key].numpy()
        if not other.any():
            assert not value.any(), key
            continue
        tolerance = 6 * max(other.std(), value.std()) / np.sqrt(value.size)  # standard errors
        assert abs(value.std() - other.std()) <= tolerance, key
        assert abs(value.mean() - other.mean()) <= tolerance, key
        if value.size > 300 and other.std() > 0:
            is_uniform = abs(other).max() < 2 * other.std()
            assert (abs(value).max() < 2 * value.std()) == is_uniform, key


@pytest.mark.parametrize("name", NAMES)
def test_maps_have_the_strides_of_most_networks(name):
    """SqueezeNet is the exception: its deepest map has stride 16."""
    levels = feature_info(create_model(name))
    expected = {
        "squeezenet1_0": [(2, 96), (4, 256), (8, 512), (16, 512)],
        "squeezenet1_1": [(2, 64), (4, 128), (8, 256), (16, 512)],
        "mobilenet_v2": [(2, 16), (4, 24), (8, 32), (16, 96), (32, 1280)],
        "mobilenet_v3_large": [(2, 16), (4, 24), (8, 40), (16, 112), (32, 960)],
        "mobilenet_v3_small": [(2, 16), (4, 16), (8, 24), (16, 48), (32, 576)],
        "shufflenet_v2_x1_0": [(2, 24), (4, 24), (8, 116), (16, 232), (32, 1024)],
        "mnasnet1_0": [(2, 16), (4, 24), (8, 40), (16, 96), (32, 1280)],
    }[name]
    assert [(level.stride, level.channels) for level in levels] == expected
    head = ("classifier", "fc")
    assert not any(level.name.startswith(head) for level in levels)


def test_every_cell_of_mobilenet_v3s_map_is_the_head_at_it():
    case = SMALL["mobilenet_v3_large"]
    model = create_model("mobilenet_v3_large", num_classes=3, **case.fields)
    x = parity.images(case.size)
    variables = initial(model)
    (last_level,) = feature_info(model)[-1:]

    @jax.jit
    def compute(variables, x):
        (features,) = pyramid(model, variables, x, [last_level.stride], [last_level])
        return features, model.clone(dense=True).apply(variables, x)

    features, scores = compute(variables, x)
    first, last = (variables["params"]["classifier"][index] for index in "03")
    hidden = hard_swish(features @ first["kernel"] + first["bias"])
    expected = hidden @ last["kernel"] + last["bias"]
    assert scores.shape == (2, 8, 8, 3)
    assert parity.relative_error(scores, expected) < 1e-5

    @jax.jit
    def of_one_position(variables, x):
        return model.apply(variables, x), model.clone(dense=True).apply(variables, x)

    logits, map_of_one = of_one_position(variables, x[:, :4, :4])
    assert map_of_one.shape == (2, 1, 1, 3)
    assert parity.relative_error(map_of_one[:, 0, 0], logits) < 1e-5


def test_features_are_what_squeezenets_head_reads():
    """They are the mean of the last fire module's map. The ReLU after the head does not change
    them.
    """
    model = create_model("squeezenet1_0", num_classes=0, **SMALL["squeezenet1_0"].fields)
    x = parity.images(45)
    variables = initial(model)
    assert set(variables["params"]) == {"features"}

    @jax.jit
    def compute(variables, x):
        return model.apply(variables, x), pyramid(model, variables, x, strides=[8])

    features, (last,) = compute(variables, x)
    assert features.shape == (2, model.num_features) == (2, 16)
    assert parity.relative_error(features, last.mean((1, 2))) < 1e-5


def test_half_of_the_channels_pass_a_unit_at_the_even_places():
    conv = functools.partial(Conv, use_bias=False)
    norm = functools.partial(BatchNorm, use_running_average=True)
    x = parity.images(4, channels=6)
    y: Any = ShuffleUnit(6, 1, conv, norm).init_with_output(jax.random.key(0), x)[0]
    np.testing.assert_array_equal(y[..., ::2], x[..., :3])
    assert (y[..., 1::2] >= 0).all()


def test_torch_loads_mnasnet_with_its_version():
    case = CASES["mnasnet1_0"]
    assert case.reference is not None
    model = create_model("mnasnet1_0", num_classes=10, **case.train_fields)
    variables = initial(model)
    weights: Any = collections.OrderedDict(
        (key, torch.from_numpy(value)) for key, value in to_torch(variables).items()
    )
    reference = case.reference(num_classes=10, **case.train_fields)
    with pytest.raises(ValueError, match="version should be set to 1 or 2 instead of None"):
        reference.load_state_dict(weights)
    weights._metadata = {"": {"version": 2}}
    reference.load_state_dict(weights)
    assert parity.logits_error(model, reference, parity.images(64), variables) < 1e-5
