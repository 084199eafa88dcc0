"""The references of all families, one file each, gathered by network and family.

- `CASES` has the case of each network.
- `SMALL` has a cheap network of each class, for `test_contract.py`.
- `HEADS` has the module of torch that reads the features, by family. If a map is its input, the
  features are the mean of the map.

The tests beside these files state what the comparison does not.
"""

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any

import pytest

from flaxnets.models import VARIANTS

FAMILIES = {
    module.name: importlib.import_module(f"{__name__}.{module.name}")
    for module in pkgutil.iter_modules(__path__)
    if not module.name.startswith("test_")
}
CASES = {name: case for family in FAMILIES.values() for name, case in family.CASES.items()}
SMALL = {
    name: small
    for family in FAMILIES.values()
    for name, small in getattr(family, "SMALL", {}).items()
}
HEADS = {name: family.HEAD for name, family in FAMILIES.items()}
# Before every commit a network of each family is tried; deeper variants are slow, and networks of
# many modules, which take seconds to trace and to compile.
MANY_MODULES = {
    "densenet121", "googlenet", "bn_inception", "inception_v3", "inception_v4",
    "inception_resnet_v1", "inception_resnet_v2", "efficientnet_v2_s", "swin_v2_t", "maxvit_t",
}  # fmt: skip
SLOW = {name for name, case in CASES.items() if case.deeper} | MANY_MODULES


def with_marks(names: Iterable[str]) -> list[Any]:
    """Return the networks as parameters of a test, those of `SLOW` marked."""
    marks = {name: [pytest.mark.slow] for name in SLOW}
    return [pytest.param(name, marks=marks.get(name, [])) for name in names]


EVERY_NETWORK = with_marks(CASES)
# The first network of each class.
CLASSES = list({build.func: name for name, build in reversed(VARIANTS.items())}.values())[::-1]
# Fields that make a network of each class cheap to trace: those of `SMALL`, else none.
TRACED = {name: small.fields for name, small in SMALL.items()} | {
    name: {} for name in CLASSES if VARIANTS[name].func not in {VARIANTS[n].func for n in SMALL}
}
