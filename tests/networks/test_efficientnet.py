"""What comparison with torch's logits does not show about EfficientNets and RegNets."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
from flaxnets import create_model
from flaxnets.blocks import StochasticDepth
from flaxnets.models.efficientnet_lite import STAGES, pad_same
from networks import efficientnet, regnet
from tools.torchvision_import import torchvision

NARROW_REGNET = {"depths": (1, 1), "widths": (32, 64), "group_width": 8}


@pytest.mark.parametrize(
    ("name", "reference", "fields"),
    [
        ("efficientnet_b0", efficientnet.efficientnet, {"stages": efficientnet.NARROW}),
        ("efficientnet_v2_s", efficientnet.efficientnet, {"stages": efficientnet.NARROW_V2}),
        ("regnet_y_400mf", regnet.regnet, NARROW_REGNET),
    ],
)
def test_initial_values_are_torchvisions(name, reference, fields):
    if "stages" in fields:
        fields = fields | {"first_features": 16}
    model = create_model(name, **fields)
    x = parity.images(32)
    assert parity.unlike_initial_values(model, reference(name, **fields), x) == []


def test_initial_values_of_lite_are_timms():
    """timm takes each filter of a depthwise convolution as a layer with one output."""
    import timm

    model = create_model("efficientnet_lite0", stages=STAGES[:3])
    reference: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    del reference.blocks[3:], reference.conv_head
    assert parity.unlike_initial_values(model, reference, parity.images(32)) == []


def stochastic_depth_rates(name: str, **fields) -> list[float]:
    rates = []

    def record(next_function, args, kwargs, context):
        if isinstance(context.module, StochasticDepth) and context.method_name == "__call__":
            rates.append(context.module.rate)
        return next_function(*args, **kwargs)

    model = create_model(name, **fields)
    with nn.intercept_methods(record):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return rates


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_v2_s"])
def test_rates_of_stochastic_depth_are_torchvisions(name):
    with torch.device("meta"):
        reference = torchvision.models.get_model(name, weights=None)
    theirs = [
        module.stochastic_depth.p
        for module in reference.modules()
        if getattr(module, "use_res_connect", False)
    ]
    assert stochastic_depth_rates(name) == pytest.approx(theirs)


def test_rates_of_stochastic_depth_of_lite_are_timms():
    import timm

    reference: Any = timm.create_model(
        "tf_efficientnet_lite1", pretrained=False, drop_path_rate=0.2
    )
    theirs = [
        module.drop_path.drop_prob
        for module in reference.modules()
        if getattr(module, "has_skip", False)
    ]
    assert stochastic_depth_rates("efficientnet_lite1") == pytest.approx(theirs)


def test_stochastic_depth_leaves_branches_out_in_training_alone():
    """Evaluation does not depend on the rate; training does."""
    fields = {"stages": efficientnet.NARROW_V2[:1], "first_features": 16, "num_classes": 3}
    model = create_model("efficientnet_v2_s", **fields, dropout_rate=0.0)
    x = parity.images(32)
    variables = jax.jit(model.init)(jax.random.key(0), x)

    def logits(key, rate, train):
        clone = model.clone(stochastic_depth_rate=rate)
        return clone.apply(variables, x, train, rngs={"dropout": jax.random.key(key)},
                           mutable=["batch_stats"])[0]  # fmt: skip

    same = logits(0, 0.0, True)
    np.testing.assert_array_equal(logits(0, 0.9, False), logits(1, 0.0, False))
    several = np.stack([logits(key, 0.9, True) for key in range(8)])
    assert len(np.unique(several[:, 0, 0])) > 1  # rate 0.45 in the second block
    assert not np.allclose(several, same)


@pytest.mark.parametrize("size", [7, 8, 9])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (3, 2), (5, 2), (1, 2)])
def test_padding_is_tensorflows(size, kernel_size, stride):
    """XLA's own "SAME" padding is TensorFlow's."""
    x = np.rint(8 * parity.images(size, channels=2))  # sums of these are exact
    window = (1, kernel_size, kernel_size, 1), (1, stride, stride, 1)
    expected = jax.lax.reduce_window(x, 0.0, jax.lax.add, *window, "SAME")
    padded = pad_same(jnp.asarray(x), kernel_size, stride)
    ours = jax.lax.reduce_window(padded, 0.0, jax.lax.add, *window, "VALID")
    np.testing.assert_array_equal(ours, expected)


def test_stages_of_regnet_are_torchvisions():
    for name in regnet.PARAMETERS:
        model, theirs = create_model(name), regnet.block_params(name)
        assert (list(model.depths), list(model.widths)) == (theirs.depths, theirs.widths)
        groups = [min(model.group_width, width) for width in model.widths]
        assert (groups, model.squeeze) == (theirs.group_widths, theirs.se_ratio or 0.0)


def test_a_stride_is_projected_on_a_map_of_one_pixel_too():
    """The stem has as many channels as the first stage, and both maps have one pixel."""
    model = create_model("regnet_x_400mf", depths=(1,), widths=(32,))
    shapes = [parity.initial_shapes(model, parity.images(size)) for size in (1, 32)]
    assert shapes[0] == shapes[1]
