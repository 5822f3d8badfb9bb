# SPDX-License-Identifier: Apache-2.0
"""Reconstruction error of what was hidden: mean over the masked voxels only, 2D or 3D.

Squared error and per-patch normalised targets: He et al., *Masked Autoencoders Are Scalable Vision Learners*, CVPR
2022, arXiv 2111.06377, section 3. Absolute error over the masked pixels: Xie et al., *SimMIM*, CVPR 2022, arXiv
2111.09886, section 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from monai_ssl.losses.contrast import full_precision
from monai_ssl.losses.distributed import DistributedKind

__all__ = ["MaskedReconstructionLoss", "masked_reconstruction", "patch_statistics"]

ErrorKind = Literal["squared", "absolute"]


@full_precision
def masked_reconstruction(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    valid: Tensor | None = None,
    *,
    error: ErrorKind = "squared",
    patch_size: Sequence[int] | None = None,
) -> Tensor:
    r"""Mean error over the voxels that are masked and valid.

    .. math::
        L = \frac{1}{C \, |S|} \sum_{c} \sum_{v \in S} |p_{cv} - t_{cv}|^a, \qquad S = \text{mask} \cap \text{valid},

    with a = 2 (squared) or 1 (absolute), S over the whole batch. Computed in float32 (float64 for float64 predictions).
    Voxels outside S have no gradient, whatever they hold, NaN included; an empty S gives 0.

    Args:
        prediction: (B, C, \*spatial).
        target: (B, C, \*spatial), the image before masking; no gradient is needed there.
        mask: (B, 1, \*spatial) bool, True where the network did not see the image.
        valid: (B, 1, \*spatial) bool, True inside the body; None: everywhere.
        error: ``"squared"`` or ``"absolute"``.
        patch_size: sides of the patches within which the target is normalised to mean 0 and standard deviation 1
            (:func:`patch_statistics`); None: the target as it is. Predicting 0 for a normalised target costs 1.

    Returns:
        Scalar, at least 0, in the target's (squared) units.

    Raises:
        ValueError: if shapes do not fit, a mask is not boolean, ``error`` is unknown, or the image is no multiple of
            ``patch_size``.

    Example:
        >>> image, mask = torch.tensor([[[[3.0, 9.0]]]]), torch.tensor([[[[True, False]]]])
        >>> masked_reconstruction(torch.ones(1, 1, 1, 2), image, mask).item()  # (1 - 3) ** 2
        4.0
    """
    _check(prediction, target, mask, valid, error)
    target = target.detach()
    if patch_size is not None:
        mean, std = patch_statistics(target, patch_size)
        target = (target - mean) / std
    counted = mask if valid is None else mask & valid
    # where, not a product: what is not counted may be NaN and still leaves value and gradient alone.
    difference = torch.where(counted, prediction - target, 0.0)
    total = (difference.square() if error == "squared" else difference.abs()).sum()
    return total / (counted.sum() * prediction.shape[1]).clamp(min=1)


def patch_statistics(image: Tensor, patch_size: Sequence[int], eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, over its voxels and channels (MAE, section 3).

    Args:
        image: (B, C, \\*spatial); a multiple of ``patch_size`` along each axis.
        patch_size: sides of a patch in voxels.
        eps: added to the variance, in squared intensities, so that a constant patch becomes 0.

    Returns:
        Mean and standard deviation (biased, positive), each (B, 1, \\*spatial): its patch's value at every voxel.

    Raises:
        ValueError: the image is no multiple of ``patch_size``.
    """
    spatial = image.shape[2:]
    if len(patch_size) != len(spatial) or any(size % side for size, side in zip(spatial, patch_size, strict=True)):
        raise ValueError(f"the image size {tuple(spatial)} must be a multiple of the patch size {tuple(patch_size)}")
    pairs = [n for size, side in zip(spatial, patch_size, strict=True) for n in (size // side, side)]
    apart = image.reshape(*image.shape[:2], *pairs)  # (B, C, grid_0, side_0, grid_1, side_1, ...)
    within = (1, *range(3, apart.ndim, 2))
    variance, mean = torch.var_mean(apart, within, correction=0, keepdim=True)
    full = (len(image), 1, *pairs)
    whole = (len(image), 1, *spatial)
    return mean.expand(full).reshape(whole), (variance + eps).sqrt().expand(full).reshape(whole)


class MaskedReconstructionLoss(nn.Module):
    """Module face of :func:`masked_reconstruction`.

    Under DistributedDataParallel each process averages over its own voxels. The mean over processes is the whole
    batch's loss where all processes count equally many voxels, as they do without ``valid``.

    Args:
        error: ``"squared"`` (MAE) or ``"absolute"`` (SimMIM).
        patch_size: see :func:`masked_reconstruction`.

    Raises:
        ValueError: unknown ``error``.
    """

    distribution: ClassVar[DistributedKind] = "local"

    def __init__(self, error: ErrorKind = "squared", patch_size: Sequence[int] | None = None) -> None:
        super().__init__()
        _check_error(error)
        self.error = error
        self.patch_size = None if patch_size is None else tuple(patch_size)

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor, valid: Tensor | None = None) -> Tensor:
        """Loss of ``prediction`` (B, C, \\*spatial); see :func:`masked_reconstruction`."""
        return masked_reconstruction(prediction, target, mask, valid, error=self.error, patch_size=self.patch_size)

    def in_target_units(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Undo the normalisation of the target: (B, C, \\*spatial) predictions in the image's own range, to look at."""
        if self.patch_size is None:
            return prediction
        mean, std = patch_statistics(target, self.patch_size)
        return prediction * std + mean

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"error={self.error!r}, patch_size={self.patch_size}"


def _check_error(error: str) -> None:
    if error not in ("squared", "absolute"):
        raise ValueError(f"error must be 'squared' or 'absolute', got {error!r}")


def _check(prediction: Tensor, target: Tensor, mask: Tensor, valid: Tensor | None, error: str) -> None:
    _check_error(error)
    if prediction.ndim not in (4, 5) or prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must have one shape (B, C, *spatial), got {tuple(prediction.shape)} and "
            f"{tuple(target.shape)}"
        )
    expected = (len(target), 1, *target.shape[2:])
    for name, value in (("mask", mask), ("valid", valid)):
        if value is not None and (value.dtype != torch.bool or value.shape != expected):
            raise ValueError(f"{name} must be boolean with shape {expected}, got {value.dtype} {tuple(value.shape)}")
