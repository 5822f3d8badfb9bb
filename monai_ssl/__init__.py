# SPDX-License-Identifier: Apache-2.0
"""Self-supervised learning on medical images, as MONAI parts and bundles.

Importing this package loads nothing heavy; a room (``monai_ssl.transforms``, ``monai_ssl.losses``, ...) is imported
when it is first asked for, so that ``import monai_ssl`` is all that a bundle's expressions need.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__version__ = "0.1.0"

_ROOMS = (
    "data",
    "engines",
    "evaluation",
    "handlers",
    "label",
    "losses",
    "methods",
    "metrics",
    "networks",
    "search",
    "transforms",
    "weights",
)


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return importlib.import_module(f"monai_ssl.{name}")
    raise AttributeError(f"module 'monai_ssl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
