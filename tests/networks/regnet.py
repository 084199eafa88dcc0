"""torchvision's RegNets. The smallest of each kind is compared whole, the others with a block or
two a stage. They are trained with few and narrow stages.
"""

import functools
from collections.abc import Sequence
from unittest import mock

import torch
from torch import nn

from parity import Case, Small
from tools.torchvision_import import torchvision

PARAMETERS = {
    "regnet_x_400mf": 5_495_976,
    "regnet_x_800mf": 7_259_656,
    "regnet_x_1_6gf": 9_190_136,
    "regnet_x_3_2gf": 15_296_552,
    "regnet_x_8gf": 39_572_648,
    "regnet_x_16gf": 54_278_536,
    "regnet_x_32gf": 107_811_560,
    "regnet_y_400mf": 4_344_144,
    "regnet_y_800mf": 6_432_512,
    "regnet_y_1_6gf": 11_202_430,
    "regnet_y_3_2gf": 19_436_338,
    "regnet_y_8gf": 39_381_472,
    "regnet_y_16gf": 83_590_140,
    "regnet_y_32gf": 145_046_770,
    "regnet_y_128gf": 644_812_894,
}


def block_params(name: str):
    """Return torchvision's own stages. It rounds tensors for them, which the meta device cannot
    do.
    """

    def no_network(params, *_, **__):
        return params

    with torch.device("cpu"), mock.patch.object(torchvision.models.regnet, "_regnet", no_network):
        return torchvision.models.get_model(name, weights=None)


def regnet(
    name: str,
    num_classes: int = 1000,
    depths: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    group_width: int | None = None,
) -> nn.Module:
    params = block_params(name)
    params.depths = depths or params.depths
    params.widths = widths or params.widths
    if group_width:
        params.group_widths = [min(group_width, width) for width in params.widths]
    return torchvision.models.RegNet(params, num_classes)


# The last stage of the largest network alone has 126 M parameters.
CUT = {"regnet_y_128gf": {"depths": (1, 2, 1), "widths": (528, 1056, 2904)}}
NARROW = {"depths": (1, 2, 2), "widths": (8, 24, 48), "group_width": 12}
CASES = {
    name: Case(
        count,
        sizes=(224, 97) if name.endswith("_400mf") else (64,),
        cut_fields={} if name.endswith("_400mf") else CUT.get(name, {"depths": (1, 2, 1, 1)}),
        train_size=32,
        train_fields=NARROW,
        deeper=not name.endswith("_400mf"),
        reference=functools.partial(regnet, name),
    )
    for name, count in PARAMETERS.items()
}
SMALL = {"regnet_y_400mf": Small(NARROW, 64, 4, 1, recomputed=5)}
HEAD = "fc"
