"""`import torchvision`, also beside a torch it was not built for.

torchvision's wheel registers shape functions for two operators of its compiled extension while it
is imported. Where that extension does not load (its wheel was built for another torch: a CPU torch
beside the registry's CUDA torchvision), the import fails until the operators are declared. The
classification models need neither. Where torchvision imports, this does nothing more.

    from tools.torchvision_import import torchvision
"""

import importlib

import torch

_LIBRARY = []  # the declarations live as long as the library object


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
