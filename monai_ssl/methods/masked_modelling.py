# SPDX-License-Identifier: Apache-2.0
"""What the masked modelling methods share: hide blocks of one view, rebuild it, count the error where it was hidden."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from monai_ssl.losses import MaskedReconstructionLoss
from monai_ssl.networks import ImageEncoder
from monai_ssl.transforms import block_grid, blocks_with, draw_block_mask, expand_blocks

from .base import SSLMethod
from .requirements import one_view

__all__ = ["MaskedModelling"]


class MaskedModelling(SSLMethod):
    """Base of the methods that rebuild the hidden blocks of an image.

    A voxel counts if it is masked and valid. Valid are the voxels that ``batch["valid"]`` says, (B, 1, *spatial) bool
    and of the view's geometry, and that are brighter than ``valid_above``; without either, all. It keeps air around the
    patient, padding and blanked faces out of the loss.

    Args:
        encoder: the network to pretrain.
        mask_ratio: share of the blocks that is hidden, within (0, 1).
        block_size: side of a block in voxels, one number or one for each axis.
        error: ``"squared"`` or ``"absolute"``.
        normalize_targets: rebuild each block after it was brought to mean 0 and standard deviation 1.
        valid_above: voxels whose brightest channel is not above it are not valid, in the view's units; None: no limit.

    Raises:
        ValueError: ``mask_ratio``, ``block_size`` or ``error`` is out of its range.
    """

    masks_valid_blocks_only: ClassVar[bool] = True
    """Choose among the blocks with a valid voxel, so that the number of hidden blocks differs between images."""

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        mask_ratio: float,
        block_size: int | Sequence[int],
        error: Literal["squared", "absolute"],
        normalize_targets: bool,
        valid_above: float | None,
    ) -> None:
        super().__init__(encoder)
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio must be greater than 0 and less than 1, got {mask_ratio}")
        dims = encoder.spatial_dims
        self.block_size = (block_size,) * dims if isinstance(block_size, int) else tuple(block_size)
        if len(self.block_size) != dims or min(self.block_size) < 1:
            raise ValueError(
                f"block_size must be a positive integer or {dims} of them (the encoder is {dims}D), got {block_size}"
            )
        self.mask_ratio = mask_ratio
        self.valid_above = valid_above
        self.criterion = MaskedReconstructionLoss(error, self.block_size if normalize_targets else None)

    @abstractmethod
    def reconstruct(self, x: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Rebuild an image from what is not hidden.

        Args:
            x: (B, C, *spatial), the whole view.
            blocks: (B, 1, *grid) bool, True where hidden.

        Returns:
            The prediction (B, C, *spatial) and the pooled features (B, F) of what was seen.
        """

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; takes one view.

        Returns:
            ``"loss"``, ``"embedding"`` and, without gradient, ``"prediction"``: (B, C, *spatial) in the view's units,
            also where nothing was hidden; ``"mask"``: (B, 1, *spatial) bool, True where hidden; ``"counted"``: share of
            the voxels that made up the loss.

        Raises:
            ValueError: more than one view, or a view of other dimensions, channels or size than the encoder takes.
        """
        x = one_view(self, batch["views"])
        valid = self._valid(x, batch.get("valid"))
        chosen_from = valid if self.masks_valid_blocks_only else None
        blocks = self.draw_blocks(x, chosen_from, batch.get("generator"))
        mask = expand_blocks(blocks, self.block_size)
        prediction, pooled = self.reconstruct(x, blocks)
        counted = mask if valid is None else mask & valid
        return {
            "loss": self.criterion(prediction, x, counted),
            "embedding": normalize(pooled.detach().float()),
            "prediction": self.criterion.in_target_units(prediction.detach().float(), x),
            "mask": mask,
            "counted": counted.float().mean(),
        }

    def draw_blocks(self, x: Tensor, valid: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Draw (B, 1, *grid) bool, True where hidden, for a view (B, C, *spatial)."""
        eligible = None if valid is None else blocks_with(valid, self.block_size)
        grid = block_grid(x.shape[2:], self.block_size)
        return draw_block_mask(len(x), grid, self.mask_ratio, generator, x.device, eligible)

    def _valid(self, x: Tensor, given: Tensor | list[Tensor] | None) -> Tensor | None:
        given = given[0] if isinstance(given, list) else given  # the trainer gives one map for each view
        shape = (len(x), 1, *x.shape[2:])
        if given is not None and (given.dtype != torch.bool or given.shape != shape):
            raise ValueError(f"'valid' must be boolean with shape {shape}, got {given.dtype} {tuple(given.shape)}")
        if self.valid_above is None:
            return given
        bright = x.amax(1, keepdim=True) > self.valid_above
        return bright if given is None else given & bright
