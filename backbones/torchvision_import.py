"""The one place that imports torchvision: `from backbones.torchvision_import import torchvision`.

The Linux wheel of torchvision on PyPI is built for CUDA. Beside a CPU-only torch its compiled part cannot load, and
`import torchvision` stops with "operator torchvision::nms does not exist", because Python code of torchvision attaches
itself to two operators of that part. Their schemas alone are enough for models and transforms, so they are declared
here, and only when they are missing; the operators themselves stay unavailable, as HAS_OPERATORS says.
"""

import torch

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::" not in str(error):
        raise
    _operators = torch.library.Library("torchvision", "DEF")  # the declarations live as long as this object
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

import torchvision.models  # the submodules, so that users of this file find them
import torchvision.ops

HAS_OPERATORS = hasattr(torch.ops.torchvision, "deform_conv2d")

__all__ = ["HAS_OPERATORS", "torchvision"]
