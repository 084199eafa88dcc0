"""Activations by name equal those of torch's hooks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
from flaxnets import InputError
from flaxnets.inference.features import feature_names, features
from flaxnets.initializers import drawn
from networks import CASES


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        ("alexnet", ["features.3", "features.4", "features", "classifier.5", "classifier.6"]),
        ("resnet18", ["conv1", "bn1", "layer2.0.downsample.1", "layer2.1.bn2", "layer3", "fc"]),
        ("densenet_bc_100_12", ["features.denseblock1.denselayer2.conv1", "features.norm5"]),
    ],
)
@pytest.mark.slow
def test_activations_are_those_of_torchs_hooks(arch, names):
    fields: dict[str, Any] = {"num_classes": 10, **CASES[arch].train_fields}
    model, reference = parity.build_pair(arch, CASES[arch], **fields)
    x = parity.images(min(64, model.input_shape[0]))
    variables = parity.converted(model, reference, x)
    theirs = {}
    for name in names:
        reference.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: theirs.update({name: output.detach().clone()})
        )
    with torch.no_grad():
        reference.eval()(parity.nchw(x))

    @jax.jit
    def compute(variables, x):
        outputs = features(model, variables, x, names)
        assert list(outputs) == names
        return outputs

    ours = compute(variables, x)
    for name, value in ours.items():
        expected = np.moveaxis(theirs[name].numpy(), 1, -1)
        assert parity.relative_error(np.squeeze(value), np.squeeze(expected)) < 1e-5, name


def test_an_unknown_layer_gets_the_nearest_name():
    model, _ = parity.build_pair("lenet5", CASES["lenet5"])
    x = jnp.zeros((1, 28, 28, 1))
    variables = drawn(model.init)(jax.random.key(0), x)
    assert "intermediates" not in variables
    parts = {"features": 6, "classifier": 5}
    expected = {f"{part}.{i}" for part, count in parts.items() for i in range(count)}
    assert set(feature_names(model, variables, x)) == expected | set(parts)
    with pytest.raises(InputError, match=r"unknown layer 'feature.0'; did you mean 'features.0'\?"):
        features(model, variables, x, ["feature.0"])
