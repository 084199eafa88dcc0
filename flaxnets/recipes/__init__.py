"""Recipes: how each network is trained, from its paper or from torchvision.

`recipe_for(arch, kind)` returns a network's recipe, and `train.py` can override any value of it.
There is one table for each kind of data: photographs, small images (up to 64 pixels: digits, MNIST,
CIFAR) and rows of measured features.
"""

from dataclasses import replace
from typing import Literal, TypeAlias

from flaxnets.errors import InputError, one_of
from flaxnets.recipes.papers import PAPERS
from flaxnets.recipes.recipe import (
    Crop,
    FlipKind,
    Interpolation,
    Kind,
    Loss,
    Orientation,
    Padding,
    PolicyName,
    Preprocessing,
    Recipe,
    RunViews,
    Statistics,
)
from flaxnets.recipes.torchvision import VERSIONS

__all__ = [
    "Crop",
    "FlipKind",
    "Interpolation",
    "Kind",
    "Loss",
    "Orientation",
    "Padding",
    "PolicyName",
    "Preprocessing",
    "Recipe",
    "RunViews",
    "Statistics",
    "Version",
    "recipe_for",
]

Version: TypeAlias = Literal["paper", "torchvision-v1", "torchvision-v2"]


def recipe_for(arch: str, kind: Kind, version: Version = "paper") -> Recipe:
    """Return the recipe of a network for a kind of data.

        recipe_for("resnet50", "photographs").learning_rate  # 0.1
        recipe_for("resnet50", "photographs", "torchvision-v2").epochs  # 600

    Args:
        arch: name of the network.
        kind: "photographs", "small images" (up to 64 pixels) or "rows" (of measured features).
        version: "paper"; "torchvision-v1", the command that trained its weights IMAGENET1K_V1; or
            "torchvision-v2", that of IMAGENET1K_V2, for every network. torchvision's commands are
            for photographs: for small images they keep size and padding of the paper's recipe.

    Raises:
        InputError: the network is unknown, does not read such data, or torchvision did not train it
            that way.
    """
    table = PAPERS[kind]
    if one_of(PAPERS["small images"], arch, "architecture") not in table:
        what = "rows of features" if kind == "rows" else kind
        raise InputError(f"{arch} does not read {what}; expected one of {', '.join(table)}")
    row = table[arch]
    if version == "paper":
        return row
    rows = VERSIONS[version]
    if kind == "rows" or arch not in rows:
        what = f"rows of features with {arch}" if kind == "rows" else arch
        raise InputError(f"recipe {version} does not train {what}; expected recipe 'paper'")
    preprocessing, usual = rows[arch].preprocessing, Preprocessing.image_size
    has_own_size = preprocessing.image_size != usual or row.preprocessing.image_size == usual
    if kind == "small images" or not has_own_size:
        size, resize, pad = (getattr(row.preprocessing, n) for n in ("image_size", "resize", "pad"))
        preprocessing = replace(
            preprocessing, image_size=size, resize=resize, pad=pad, train_size=0
        )
    return replace(rows[arch], preprocessing=preprocessing)
