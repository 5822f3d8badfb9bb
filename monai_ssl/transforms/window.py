# SPDX-License-Identifier: Apache-2.0
"""Random window of CT images: another level and width, as a viewer would set them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_ssl.transforms.base import (
    BatchTransform,
    Params,
    chance,
    check_prob,
    check_range,
    drawing_device,
    on_selected,
    per_sample,
    uniform,
)


class RandomWindow(BatchTransform):
    """Look at a CT image through a narrower window, with probability ``prob`` per sample, else leave it alone.

    The image holds the values of ``limits_hu`` as [0, 1]. With width w ~ U(width_hu) and level l ~ U(level_hu), what
    lies between ``l - w / 2`` and ``l + w / 2`` HU becomes [0, 1], and what lies beyond is clipped to 0 and 1 (DICOM
    PS3.3 section C.11.2.1.3, the linear exact function). A window that reaches over the limits shows clipped values
    there.

    Args:
        limits_hu: values in HU that are 0 and 1 in the image: those of the store's intensity policy.
        width_hu: least and greatest width. None: a half to all of the limits.
        level_hu: least and greatest level, within the limits. None: wherever the window lies within the limits.
        prob: probability of a sample being changed.

    Example:
        >>> lung = RandomWindow((-1000, 1000), width_hu=(1500, 1500), level_hu=(-600, -600), prob=1)
        >>> lung(torch.full((1, 1, 2, 2), 0.2))[0, 0, 0, 0].item()  # -600 HU
        0.5
    """

    def __init__(
        self,
        limits_hu: Sequence[float],
        width_hu: Sequence[float] | None = None,
        level_hu: Sequence[float] | None = None,
        prob: float = 0.5,
    ) -> None:
        self.limits_hu = check_range("limits_hu", limits_hu, float("-inf"))
        whole = self.limits_hu[1] - self.limits_hu[0]
        if whole <= 0:
            raise ValueError(f"limits_hu must be two different numbers, got {tuple(limits_hu)}")
        self.width_hu = check_range("width_hu", (whole / 2, whole) if width_hu is None else width_hu, 1e-3)
        self.level_hu = None if level_hu is None else check_range("level_hu", level_hu, *self.limits_hu)
        if level_hu is None and self.width_hu[1] > whole:
            raise ValueError(f"a window of {self.width_hu[1]} HU does not fit into limits_hu {self.limits_hu}")
        self.prob = check_prob("prob", prob)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw ``level_hu`` and ``width_hu``, (B,) each; those of the limits where the sample is left alone."""
        device = drawing_device(generator, device)
        low, high = self.limits_hu
        chosen = chance(shape[0], self.prob, generator, device)
        width = uniform((shape[0],), *self.width_hu, generator, device)
        place = uniform((shape[0],), 0, 1, generator, device)
        if self.level_hu is None:
            level = low + width / 2 + place * (high - low - width)
        else:
            level = self.level_hu[0] + place * (self.level_hu[1] - self.level_hu[0])
        return {
            "level_hu": torch.where(chosen, level, (low + high) / 2),
            "width_hu": torch.where(chosen, width, high - low),
        }

    def _apply(self, x: torch.Tensor, params: Params, interpolation: str = "bilinear") -> torch.Tensor:
        low, high = self.limits_hu
        level, width = params["level_hu"], params["width_hu"]
        factor = (high - low) / width
        offset = (low - (level - width / 2)) / width

        def change(part: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
            a, b = (per_sample(value[rows], x.ndim).to(x.dtype) for value in (factor, offset))
            return part.mul_(a).add_(b).clamp_(0, 1)

        return on_selected(x, (width != high - low) | (level != (low + high) / 2), change)
