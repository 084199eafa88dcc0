"""AlexNet's networks for CIFAR-10, in the variants that the paper compares."""

import jax
import numpy as np
import pytest

import parity
from flaxnets import create_model, to_torch
from flaxnets.initializers import drawn
from networks import CASES

NAMES = ["alexnet_cifar", "alexnet_cifar_local"]


@pytest.mark.parametrize("name", NAMES)
def test_tanh_without_response_norm_is_torchs(name):
    """The variants of Figure 1 and section 3.3."""
    fields = {"activation": "tanh", "response_norm": False}
    model, reference = parity.build_pair(name, CASES[name], **fields)
    x = parity.images(model.input_shape[0])
    assert parity.logits_error(model, reference, x) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_response_norm_matters_for_pixels_in_0_to_255(name):
    model = create_model(name)
    x = 60 * parity.images(model.input_shape[0])
    variables = drawn(model.init)(jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: 100 * leaf, variables)
    plain = model.clone(response_norm=False)
    ours, without = (jax.jit(m.apply)(variables, x) for m in (model, plain))
    assert parity.relative_error(ours, without) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights_are_cuda_convnets(name):
    """Biases are zero, and deviations are those of its files."""
    model = create_model(name)
    x = parity.images(model.input_shape[0])
    start = to_torch(drawn(model.init)(jax.random.key(0), x))
    deviations = {
        "alexnet_cifar": [1e-4, 0.01, 0.01, 0.01],
        "alexnet_cifar_local": [1e-4, 0.01, 0.04, 0.04, 0.01],
    }
    weights = {key: value for key, value in start.items() if key.endswith("weight")}
    assert len(weights) == len(deviations[name])
    assert not any(value.any() for key, value in start.items() if key.endswith("bias"))
    keys = sorted(weights, key=lambda key: (key.startswith("fc"), len(key), key))
    for key, expected in zip(keys, deviations[name], strict=True):
        value = weights[key]
        assert abs(value.std() / expected - 1) < 4 / np.sqrt(2 * value.size), key
