# SPDX-License-Identifier: Apache-2.0
"""Self-supervised methods: one method, one file."""

from __future__ import annotations

from .base import SSLMethod
from .c2l import C2L
from .moco_v2 import MoCoV2
from .momentum_contrast import MomentumContrast

__all__ = ["C2L", "MoCoV2", "MomentumContrast", "SSLMethod"]
