"""What comparison with torch's logits does not show about ConvNeXt."""

from typing import Any

import parity
from flaxnets import create_model
from flaxnets.blocks import rates_by_depth
from networks.convnext import SIZES, convnext
from tools.torchvision_import import torchvision


def test_initial_values_are_torchvisions():
    fields: dict[str, Any] = {"channels": (16, 24, 32, 48), "depths": (1, 1, 2, 1)}
    model = create_model("convnext_tiny", **fields)
    reference = convnext("tiny", vary=False, **fields)
    assert parity.unlike_initial_values(model, reference, parity.images(32)) == []


def test_rates_of_stochastic_depth_are_torchvisions():
    reference = torchvision.models.convnext_small(weights=None)
    kind = torchvision.ops.StochasticDepth
    theirs = [module.p for module in reference.modules() if isinstance(module, kind)]
    model = create_model("convnext_small")
    assert rates_by_depth(model.stochastic_depth_rate, sum(SIZES["small"][1])) == theirs
