"""Import torchvision, even if it was built for another torch.

    from tools.torchvision_import import torchvision

While it is imported, torchvision registers shape functions for two operators of its compiled
extension. The extension does not load if its wheel was built for another torch, such as the
registry's CUDA torchvision with a CPU torch. Then the import fails unless the operators are
declared first, which this module does. The classification models need neither operator.
"""

import importlib

import torch

_LIBRARY = []  # keeps the library object alive, and with it the declarations


def _import():
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    _LIBRARY.append(library)
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")


torchvision = _import()
