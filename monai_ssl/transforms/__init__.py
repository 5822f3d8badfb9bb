# SPDX-License-Identifier: Apache-2.0
"""View transforms: batched, on the images' own device, 2D and 3D; drawn once, applied as often as wanted.

The batched form is the only implementation; :mod:`monai_ssl.transforms.faces` makes MONAI transforms of it.
"""

from __future__ import annotations

from monai_ssl.transforms.band_energy import RandomBandEnergy
from monai_ssl.transforms.base import BatchTransform, Params
from monai_ssl.transforms.bias_field import RandomBiasField
from monai_ssl.transforms.block_drop import RandomBlockDrop
from monai_ssl.transforms.block_mask import (
    block_grid,
    blocks_at,
    blocks_with,
    count_masked,
    draw_block_mask,
    expand_blocks,
)
from monai_ssl.transforms.blockwise_mask import draw_blockwise_mask, masked_counts
from monai_ssl.transforms.blur import RandomGaussianBlur
from monai_ssl.transforms.box_mask import boxes_to_mask
from monai_ssl.transforms.center_resample import CenterResample, RandomCenterResample
from monai_ssl.transforms.correspondence import (
    cell_diagonal,
    draw_overlapping_cells,
    nearest_cells,
    same_place,
)
from monai_ssl.transforms.crop_grid import box_overlap, cut_boxes, draw_box_centers, grid_box_centers
from monai_ssl.transforms.cutout import RandomCutout
from monai_ssl.transforms.faces import RandBatchTransform, RandBatchTransformd, RandViews, RandViewsd
from monai_ssl.transforms.intensity import RandomBrightnessContrast, RandomGamma
from monai_ssl.transforms.intensity_map import RandomIntensityMap
from monai_ssl.transforms.local_shuffle import RandomLocalShuffle
from monai_ssl.transforms.low_resolution import RandomLowResolution
from monai_ssl.transforms.multi_crop import multi_crop_views
from monai_ssl.transforms.noise import RandomGaussianNoise
from monai_ssl.transforms.painting import RandomPainting
from monai_ssl.transforms.presets import c2l_views, convirt_views, evaluation_view, moco_v2_views, radiograph_views
from monai_ssl.transforms.pyramid import AveragePyramid
from monai_ssl.transforms.resample import RandomResample
from monai_ssl.transforms.source_views import SourceViews, modality_views
from monai_ssl.transforms.standardize import IntensityStandardize
from monai_ssl.transforms.turns import RandomMirror, RandomQuarterTurn
from monai_ssl.transforms.ultrasound import RandomDepthGain, RandomSpeckle, ultrasound_views
from monai_ssl.transforms.views import MultiView, ViewChain
from monai_ssl.transforms.volume_presets import masked_views, volume_augmentation, volume_views, whole_views
from monai_ssl.transforms.window import RandomWindow

__all__ = [
    "AveragePyramid",
    "BatchTransform",
    "CenterResample",
    "IntensityStandardize",
    "MultiView",
    "Params",
    "RandBatchTransform",
    "RandBatchTransformd",
    "RandViews",
    "RandViewsd",
    "RandomBandEnergy",
    "RandomBiasField",
    "RandomBlockDrop",
    "RandomBrightnessContrast",
    "RandomCenterResample",
    "RandomCutout",
    "RandomDepthGain",
    "RandomGamma",
    "RandomGaussianBlur",
    "RandomGaussianNoise",
    "RandomIntensityMap",
    "RandomLocalShuffle",
    "RandomLowResolution",
    "RandomMirror",
    "RandomPainting",
    "RandomQuarterTurn",
    "RandomResample",
    "RandomSpeckle",
    "RandomWindow",
    "SourceViews",
    "ViewChain",
    "block_grid",
    "blocks_at",
    "blocks_with",
    "box_overlap",
    "boxes_to_mask",
    "c2l_views",
    "cell_diagonal",
    "convirt_views",
    "count_masked",
    "cut_boxes",
    "draw_block_mask",
    "draw_blockwise_mask",
    "draw_box_centers",
    "draw_overlapping_cells",
    "evaluation_view",
    "expand_blocks",
    "grid_box_centers",
    "masked_counts",
    "masked_views",
    "moco_v2_views",
    "modality_views",
    "multi_crop_views",
    "nearest_cells",
    "radiograph_views",
    "same_place",
    "ultrasound_views",
    "volume_augmentation",
    "volume_views",
    "whole_views",
]
