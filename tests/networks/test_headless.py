"""Networks without a head, and the last map of each stride, of every family, against torch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
from flaxnets import create_model
from flaxnets.convert import torch_keys
from flaxnets.inference.features import feature_info, pyramid
from flaxnets.models import FAMILIES
from flaxnets.summary import summarize, totals
from networks import CASES, HEADS, TRACED, with_marks

CHANNELS_LAST = ("swin",)  # families whose maps have channels last in torch, too
NORMS = ("bn1", "features.norm0")  # their ReLU is a separate layer in torch


def shapes(variables):
    leaves, keys = jax.tree.leaves(variables), jax.tree.leaves(torch_keys(variables))
    return {key: leaf.shape for key, leaf in zip(keys, leaves, strict=True)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_features_and_maps_are_torchs(family):
    """Features are the input of torch's head; maps are the outputs of its layers of the same names.

    The networks have the few blocks of the comparison of gradients.
    """
    name = next(iter(FAMILIES[family]))
    fields: dict[str, Any] = {"num_classes": 10, **CASES[name].train_fields}
    model, reference = parity.build_pair(name, CASES[name], **fields)
    x = parity.images(CASES[name].train_size, channels=model.input_shape[-1])
    variables = parity.converted(model, reference, x)
    headless = model.headless()
    levels = feature_info(model)
    assert bool(levels) == (family not in ("mlp", "vit"))
    read, theirs = [], {}
    head = reference.get_submodule(HEADS[family])
    head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].clone()))
    for level in levels:
        reference.get_submodule(level.name).register_forward_hook(
            lambda _, __, output, level=level: theirs.setdefault(level, output.clone())
        )
    with torch.no_grad():
        reference.eval()(parity.nchw(x))
    expected = read[0].flatten(2).mean(2) if read[0].ndim == 4 else read[0]

    @jax.jit
    def compute(variables, x):
        strides = [level.stride for level in levels]
        maps = pyramid(model, variables, x, strides, levels) if levels else []
        return headless.apply(variables, x), maps

    ours, maps = compute(variables, x)
    assert ours.shape == (2, model.num_features) == (2, headless.num_features)
    assert parity.relative_error(ours, expected) < 1e-5
    for level, value in zip(levels, maps, strict=True):
        expected = theirs[level]
        if level.name in NORMS:
            expected = expected.relu()
        if level.name == "mlpconv3":  # its last layer is the head
            expected = read[0]
        assert value.shape[-1] == level.channels
        if family not in CHANNELS_LAST:
            expected = expected.movedim(1, -1)
        assert parity.relative_error(value, expected.numpy()) < 1e-5, level
    # It has the variables of the network, except those of the head and of auxiliary heads.
    own = shapes(parity.initial_shapes(headless, x))
    whole = shapes(variables)
    assert own == {key: whole[key] for key in own}
    lacking = {key.rpartition(".")[0] for key in whole.keys() - own}
    assert {key for key in lacking if not key.lower().startswith("aux")} == {HEADS[family]}


@pytest.mark.parametrize("name", ["inception_v4", "inception_resnet_v2"])
def test_timm_has_as_many_features(name):
    import timm

    with torch.device("meta"):
        theirs = timm.create_model(name, pretrained=False, num_classes=0)
    assert create_model(name).num_features == theirs.num_features


@pytest.mark.parametrize("name", with_marks(TRACED))
def test_every_network_can_be_headless_in_any_precision(name):
    model = create_model(name, num_classes=0, dtype=jnp.bfloat16, **TRACED[name])
    *size, channels = model.input_shape
    x = jnp.zeros((2, *size, channels))

    def training(key):
        rngs = {"params": key, "dropout": key}
        return model.init_with_output(rngs, x, train=True)

    features, variables = jax.eval_shape(training, jax.random.key(0))
    assert (features.shape, features.dtype) == ((2, model.num_features), jnp.bfloat16)
    assert model.num_features == create_model(name, **TRACED[name]).num_features
    assert set(variables) <= {"params", "batch_stats", "buffers"}


def test_a_headless_network_can_be_a_map():
    model = create_model("lenet5", num_classes=0, dense=True)
    x = np.random.default_rng(0).normal(size=(1, 28, 36, 1)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    features: Any = model.apply(variables, x)
    assert features.shape == (1, 1, 3, model.num_features) == (1, 1, 3, 84)
    mean: Any = model.clone(dense=False).apply(variables, x)
    np.testing.assert_allclose(features.mean((1, 2)), mean, rtol=1e-6, atol=1e-6)


def test_a_headless_network_has_the_layers_before_its_head():
    whole, headless = (
        totals(summarize(create_model("lenet5", num_classes=n), (28, 28, 1))) for n in (10, 0)
    )
    head = {"parameters": 85 * 10, "multiply_adds": 84 * 10, "neurons": 10}
    assert {key: whole[key] - headless[key] for key in head} == head


def test_auxiliary_heads_are_off():
    for name in ("googlenet", "inception_v3"):
        model = create_model(name, num_classes=0)
        assert (
            model
            == create_model(name).headless()
            == create_model(name, num_classes=0, aux_logits=True)
        )
        assert not model.aux_logits
