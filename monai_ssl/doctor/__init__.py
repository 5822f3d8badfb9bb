# SPDX-License-Identifier: Apache-2.0
"""Doctor: look at an installation and its machine, measure it, and say what to change."""

from __future__ import annotations

from monai_ssl.doctor.report import examine

__all__ = ["examine"]
