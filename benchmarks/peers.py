# SPDX-License-Identifier: Apache-2.0
"""The libraries we compare with. One that is not here, or that does not import, prints one line and is skipped."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

# Declared so that torchvision's Python part imports without its compiled one; nothing here ever calls them.
_TORCHVISION_OPS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a library takes its operators along when it is collected


@functools.cache
def lightly(submodule: str = "lightly") -> ModuleType | None:
    """Return lightly or one of its modules; None, after one line, if it cannot be used."""
    if submodule != "lightly":
        return None if lightly() is None else importlib.import_module(submodule)
    try:
        _let_torchvision_import()
        package = importlib.import_module("lightly")
        for part in ("lightly.data", "lightly.loss", "lightly.models.modules.heads", "lightly.transforms"):
            importlib.import_module(part)
    except Exception as error:  # a missing package, or versions that do not fit each other
        reason = (str(error).splitlines() or [""])[0]
        print(f"skipped: lightly ({type(error).__name__}: {reason}); see benchmarks/requirements.txt", flush=True)
        return None
    return package


def _let_torchvision_import() -> None:
    """Declare torchvision's operators if its compiled part does not fit this torch.

    PyPI's torchvision is built for the CUDA torch; beside a CPU torch its ``_C.so`` does not load, and then its Python
    part fails to import for want of the operators' names ("operator torchvision::nms does not exist").
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or _declared:
        return
    for compiled in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(compiled))
            return
        except OSError:
            continue
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _TORCHVISION_OPS:
        library.define(schema)
    _declared.append(library)
