# SPDX-License-Identifier: Apache-2.0
"""Whole images brought to one size, in one of several ways: without chance, and with a little of it for training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from monai_ssl.transforms.base import Params, check_range, drawing_device, uniform
from monai_ssl.transforms.resample import _BoxTransform, _checked_flips, _drawn_pose, _extent_of, _not_negative

FITS = ("stretch", "pad", "crop", "native")


class CenterResample(_BoxTransform):
    """The whole image brought to one size, without chance: for evaluation and inference.

    Args:
        size: side(s) of the result in pixels; one number for all axes.
        fit: "stretch" scales each axis on its own; "pad" keeps the aspect ratio and fills in zeros at both ends of the
            shorter side; "crop" keeps the aspect ratio and cuts off both ends of the longer one; "native" keeps the
            pixels as they are and, along each axis, cuts off or fills in zeros at both ends, so that what is seen has
            the same size in mm for all images of one spacing. Where that cannot be shared evenly between both ends, the
            box begins half a pixel nearer to the array's origin, so that nothing lies between two pixels.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, size: int | Sequence[int], fit: str = "stretch") -> None:
        super().__init__(size, "zeros" if fit in ("pad", "native") else "border")
        if fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}, not {fit!r}")
        self.fit = fit

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """The same keys as :class:`RandomResample`, without chance."""
        device = drawing_device(generator, device)
        size = self.output_shape(shape)[2:]
        extent = _extent_of(shape, extent, device)
        sides = extent.float()
        target = torch.tensor(size, dtype=torch.float32, device=device).expand_as(sides)
        center, crop = sides / 2, sides
        if self.fit == "native":
            center, crop = ((sides - target) / 2).floor() + target / 2, target
        elif self.fit != "stretch":
            shrink = sides / target
            crop = (shrink.amax(1) if self.fit == "pad" else shrink.amin(1))[:, None] * target
        params = {
            "center": center,
            "crop": crop,
            "extent": extent,
            "angle_deg": sides.new_zeros(shape[0]),
            "flip": torch.zeros_like(extent, dtype=torch.bool),
        }
        if len(size) == 3:
            params["axis"] = sides.new_tensor([1.0, 0.0, 0.0]).expand(shape[0], 3)
        return params


class RandomCenterResample(CenterResample):
    """What :class:`CenterResample` shows, zoomed, moved, turned and mirrored a little: for training on whole images.

    Per sample the box of ``CenterResample``, whatever its ``fit``, is changed, so that nearly the whole of it is seen:

    * zoom: its sides are divided by exp(U(log zoom)), the same factor along all axes, so the proportions stay.
    * shift: it moves by U(-translate, translate) of its sides along each axis.
    * turn and flips: as in :class:`RandomResample`.

    Args:
        size: side(s) of the view in pixels; one number for all axes.
        fit: see :class:`CenterResample`; it also says what is beyond the image, zeros or its edge continued.
        zoom: least and greatest magnification.
        translate: greatest shift as a share of the box's side.
        rotation_deg: greatest angle in degrees.
        flip_prob: one number mirrors the last axis (left-right) alone; a sequence has one for each axis.
        in_plane: turn 3D images within their slices (across the first axis) only, see :class:`RandomResample`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        fit: str = "stretch",
        zoom: Sequence[float] = (1.0, 1.0),
        translate: float = 0.0,
        rotation_deg: float = 0.0,
        flip_prob: float | Sequence[float] = 0.0,
        in_plane: bool = True,
    ) -> None:
        super().__init__(size, fit)
        self.zoom = check_range("zoom", zoom, 1e-3)
        self.rotation_deg, self.translate = _not_negative(rotation_deg=rotation_deg, translate=translate)
        self.flip_prob = _checked_flips(flip_prob)
        self.in_plane = bool(in_plane)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw the keys of :class:`RandomResample`."""
        params = super().draw(shape, generator, device, extent)
        center, crop = params["center"], params["crop"]
        batch, n = crop.shape
        low, high = (math.log(value) for value in self.zoom)
        crop = crop * uniform((batch, 1), -high, -low, generator, crop.device).exp()
        shift = uniform((batch, n), -self.translate, self.translate, generator, crop.device) * crop
        pose = _drawn_pose(batch, n, self.rotation_deg, self.flip_prob, self.in_plane, generator, crop.device)
        return {**params, "center": center + shift, "crop": crop, **pose}
