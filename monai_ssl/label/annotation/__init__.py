# SPDX-License-Identifier: Apache-2.0
"""What the labelling app does with a folder of studies: embed, choose, learn, predict; needs no MONAI Label."""

from __future__ import annotations
