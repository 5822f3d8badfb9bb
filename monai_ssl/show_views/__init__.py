# SPDX-License-Identifier: Apache-2.0
"""Contact sheets of views: what a policy makes of some images or volumes, with the crops drawn where they were cut."""

from __future__ import annotations

from monai_ssl.show_views.drawing import describe_draw
from monai_ssl.show_views.image_sheet import VIEW_PRESETS, save_view_sheet
from monai_ssl.show_views.images import ShownImage, some_images
from monai_ssl.show_views.volume_sheet import VOLUME_PRESETS, save_volume_sheet
from monai_ssl.show_views.volumes import ShownVolume, some_volumes

__all__ = [
    "VIEW_PRESETS",
    "VOLUME_PRESETS",
    "ShownImage",
    "ShownVolume",
    "describe_draw",
    "save_view_sheet",
    "save_volume_sheet",
    "some_images",
    "some_volumes",
]
