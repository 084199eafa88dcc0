"""What each family is compared with: one file of `CASES` a family, gathered here. The tests beside
them state what comparison does not.
"""

import importlib
import pkgutil

import pytest

from flaxnets.models import VARIANTS

CASES = {
    name: case
    for module in pkgutil.iter_modules(__path__)
    if not module.name.startswith("test_")
    for name, case in importlib.import_module(f"{__name__}.{module.name}").CASES.items()
}
# For tests that trace a network whole: deeper variants are slow, and networks of many modules.
MANY_MODULES = {
    "densenet121", "inception_v3", "inception_v4", "inception_resnet_v1", "inception_resnet_v2",
}  # fmt: skip
EVERY_NETWORK = [
    pytest.param(name, marks=[pytest.mark.slow] if case.deeper or name in MANY_MODULES else [])
    for name, case in CASES.items()
]
# The first network of each class.
CLASSES = list({build.func: name for name, build in reversed(VARIANTS.items())}.values())[::-1]
