# SPDX-License-Identifier: Apache-2.0
"""VoCo, volume contrast: tell where in the volume a crop lies, by its similarity to crops from known places.

Wu, Zhuang, Chen, *VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework for 3D Medical Image Analysis*,
CVPR 2024, arXiv 2402.17300, section 3. A view is tiled by N base crops b_j; R crops c_r of their size are cut at random
places. With encoder and projector f, stop-gradient sg, vol(.) a volume::

    z_j  = f(b_j),  p_r = f(c_r)            all resampled to the network's input size
    y_rj = vol(c_r and b_j) / vol(c_r)      sums to 1 over j, as the base crops tile the view
    l_rj = cos(p_r, sg(z_j))

    L_pred = mean over r, j of -log(1 - |y_rj - l_rj|)
    L_reg  = mean over i < j of |cos(z_i, z_j)|
    L      = L_pred + w L_reg               w = 1

The released code differs (``formula="released"``, :func:`monai_ssl.losses.overlap_prediction`,
:func:`monai_ssl.losses.base_orthogonality`), and has a momentum teacher g (``teacher_momentum=0.9``)::

    l_rj = (cos(f(c_r), g(b_j)) + cos(g(c_r), f(b_j))) / 2
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from monai_ssl.losses import BaseOrthogonalityLoss, OverlapPredictionLoss
from monai_ssl.networks import ImageEncoder, MLPHead, MomentumCopy
from monai_ssl.transforms import BatchTransform, box_overlap, cut_boxes, draw_box_centers, grid_box_centers

from .base import SSLMethod
from .requirements import one_view

__all__ = ["VoCo"]


class VoCo(SSLMethod):
    """Predict by how much a random crop overlaps each cell of a grid.

    The method takes one view, as large as the part of the body whose places are to be told apart, and cuts all crops
    itself, on the device, from ``batch["generator"]``: base crops are the cells of the grid, random crops have a cell's
    size and lie within the view. Each is resampled once, anti-aliased. A step costs N + R passes of a crop.

    The defaults are the paper's: 4 x 4 cells in plane, one along the body's axis, crops of 64 voxels a side from views
    of 96 x 384 x 384 (D, H, W), AdamW with learning rate 1e-4. The released code pools all of SwinUNETR's maps for its
    projector; here it gets the encoder's pooled features. It also mirrors, turns and brightens some crops, base crops
    too: ``crop_transform``.

    Args:
        encoder: the network to pretrain.
        grid: cells along each axis; None: 4 x 4 in 2D, 1 x 4 x 4 in 3D.
        crop_size: side(s) of what the network gets, in voxels; one number for all axes.
        num_crops: R, random crops from each view.
        formula: ``"paper"`` or ``"released"``, see above.
        teacher_momentum: m of the teacher's update ``g <- m g + (1 - m) f`` after each step; None: no teacher.
        orthogonality_weight: w.
        hidden_features: width of the projector's two hidden layers, which have BatchNorm.
        embedding_dim: D.
        crop_transform: applied to all crops before the network gets them.

    Raises:
        ValueError: ``formula`` is unknown, a number is out of its range, or ``grid`` or ``crop_size`` has another
            number of axes than the encoder.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import build_encoder
        >>> method = VoCo(build_encoder("resnet18"), grid=(2, 2), crop_size=32)
        >>> out = method({"views": [torch.rand(2, 1, 96, 96)]})
        >>> out["loss"].backward()
        >>> tuple(out["embedding"].shape)
        (2, 2048)
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        grid: Sequence[int] | None = None,
        crop_size: int | Sequence[int] = 64,
        num_crops: int = 2,
        formula: Literal["paper", "released"] = "paper",
        teacher_momentum: float | None = None,
        orthogonality_weight: float = 1.0,
        hidden_features: int = 2048,
        embedding_dim: int = 2048,
        crop_transform: BatchTransform | None = None,
    ) -> None:
        super().__init__(encoder)
        dims = encoder.spatial_dims
        self.grid = (1, 4, 4)[-dims:] if grid is None else tuple(grid)
        self.crop_size = (crop_size,) * dims if isinstance(crop_size, int) else tuple(crop_size)
        for name, value in (("grid", self.grid), ("crop_size", self.crop_size)):
            if len(value) != dims or min(value) < 1:
                raise ValueError(f"{name} needs {dims} positive numbers (the encoder is {dims}D), got {value}")
        if math.prod(self.grid) < 2:
            raise ValueError(f"grid {self.grid} has one cell: there is nothing to tell apart")
        if num_crops < 1:
            raise ValueError(f"num_crops must be at least 1, got {num_crops}")
        if teacher_momentum is not None and not 0 <= teacher_momentum <= 1:
            raise ValueError(f"teacher_momentum must be in [0, 1] or None, got {teacher_momentum}")
        self.num_crops = num_crops
        self.teacher_momentum = teacher_momentum
        self.orthogonality_weight = orthogonality_weight
        self.crop_transform = crop_transform
        self.overlap_criterion = OverlapPredictionLoss(formula)
        self.orthogonality_criterion = BaseOrthogonalityLoss(formula)
        self.head = MLPHead(encoder.num_features, hidden_features, embedding_dim, num_layers=3, batch_norm=True)
        self.teacher = None if teacher_momentum is None else MomentumCopy(nn.Sequential(self.encoder, self.head))

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; takes one view.

        Returns:
            ``"loss"``; ``"embedding"``, of the first random crop; ``"overlap_loss"`` (L_pred), ``"orthogonality_loss"``
            (L_reg); ``"located"``: share of the random crops that are most similar to the base crop which they overlap
            most, 1 / N by chance.

        Raises:
            ValueError: more than one view, or a view of other dimensions or channels than the encoder takes.
        """
        x = one_view(self, batch["views"])
        crops, overlap = self.cut(x, batch.get("generator"))
        flat = crops.flatten(0, 1)  # (B, R + N, C, *size) -> (B (R + N), C, *size): BatchNorm sees all crops
        place, base = self._split(self.head(self.encoder(flat)), len(x))
        if self.teacher is None:
            similarity = _cosines(place, base.detach())
        else:
            taught_place, taught_base = self._split(self.teacher(flat), len(x))
            similarity = (_cosines(place, taught_base) + _cosines(taught_place, base)) / 2
        overlap_loss = self.overlap_criterion(similarity, overlap)
        orthogonality_loss = self.orthogonality_criterion(base)
        return {
            "loss": overlap_loss + self.orthogonality_weight * orthogonality_loss,
            "embedding": normalize(place[:, 0].detach().float()),
            "overlap_loss": overlap_loss.detach(),
            "orthogonality_loss": orthogonality_loss.detach(),
            "located": (similarity.argmax(2) == overlap.argmax(2)).float().mean(),
        }

    def cut(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Cut the crops of views (B, C, *spatial).

        Returns:
            (B, R + N, C, *crop_size), the R random ones first, and the overlaps y (B, R, N) within [0, 1].
        """
        spatial = x.shape[2:]
        sides = [size / cells for size, cells in zip(spatial, self.grid, strict=True)]
        base = grid_box_centers(spatial, self.grid, x.device)
        places = draw_box_centers(len(x), self.num_crops, spatial, sides, generator, x.device)
        centers = torch.cat([places, base.expand(len(x), -1, -1)], 1)
        crops = cut_boxes(x, centers, sides, self.crop_size)
        if self.crop_transform is not None:
            flat = self.crop_transform(crops.flatten(0, 1), generator)
            crops = flat.view(*crops.shape[:2], *flat.shape[1:])
        return crops, box_overlap(places, base, sides)

    def after_step(self, progress: float) -> None:
        """Move the teacher, if there is one, towards the student."""
        if self.teacher is not None:
            self.teacher.update(nn.Sequential(self.encoder, self.head), self.teacher_momentum)

    def _split(self, features: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """(B (R + N), D) -> (B, R, D) of the random crops and (B, N, D) of the base crops."""
        features = features.unflatten(0, (batch, -1)).float()
        return features[:, : self.num_crops], features[:, self.num_crops :]


def _cosines(places: Tensor, bases: Tensor) -> Tensor:
    """(B, R, D) and (B, N, D) -> (B, R, N), in float32 under autocast too."""
    with torch.autocast(places.device.type, enabled=False):
        return normalize(places, dim=2) @ normalize(bases, dim=2).transpose(1, 2)
