"""How each network is trained: a row a network, from its paper or from torchvision.

`recipe_for(arch, kind)` gives the row, and `experiments/train.py` overrides any value of it.
Photographs, small images (up to 64 pixels: digits, MNIST, CIFAR) and rows of measured features
have a table each.
"""

from dataclasses import replace
from typing import Literal, TypeAlias

from flaxnets.errors import InputError, one_of
from flaxnets.recipes.papers import PAPERS
from flaxnets.recipes.recipe import (
    Crop,
    Flip,
    Interpolation,
    Kind,
    Loss,
    Orientation,
    Padding,
    PolicyName,
    Preprocessing,
    Recipe,
    Statistics,
    Views,
)
from flaxnets.recipes.torchvision import VERSIONS

__all__ = [
    "Crop",
    "Flip",
    "Interpolation",
    "Kind",
    "Loss",
    "Orientation",
    "Padding",
    "PolicyName",
    "Preprocessing",
    "Recipe",
    "Statistics",
    "Version",
    "Views",
    "recipe_for",
]

Version: TypeAlias = Literal["paper", "torchvision-v1", "torchvision-v2"]


def recipe_for(arch: str, kind: Kind, version: Version = "paper") -> Recipe:
    """The row of `arch` for data of that kind: its paper's, or one of torchvision's commands.

    Those are for photographs: small images keep the size and the padding of the paper's row.
    "torchvision-v1" is how its weights IMAGENET1K_V1 came about, and "torchvision-v2" how
    IMAGENET1K_V2 did; the second is here for every network.

    Raises InputError for an unknown architecture, one that does not read such data, or one that
    torchvision did not train that way.
    """
    table = PAPERS[kind]
    if one_of(PAPERS["small images"], arch, "architecture") not in table:
        raise InputError(f"{arch} does not read {kind}; expected one of {', '.join(table)}")
    row = table[arch]
    if version == "paper":
        return row
    rows = VERSIONS[version]
    if kind == "rows" or arch not in rows:
        what = f"rows of features with {arch}" if kind == "rows" else arch
        raise InputError(f"recipe {version} does not train {what}; expected the recipe paper")
    preprocessing, usual = rows[arch].preprocessing, Preprocessing.image_size
    has_own_size = preprocessing.image_size != usual or row.preprocessing.image_size == usual
    if kind == "small images" or not has_own_size:
        size, resize, pad = (getattr(row.preprocessing, n) for n in ("image_size", "resize", "pad"))
        preprocessing = replace(
            preprocessing, image_size=size, resize=resize, pad=pad, train_size=0
        )
    return replace(rows[arch], preprocessing=preprocessing)
