# SPDX-License-Identifier: Apache-2.0
"""Crop, turn, mirror and scale as one interpolation: the random geometry of views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch

from monai_ssl.transforms.base import (
    BatchTransform,
    Params,
    chance,
    check_prob,
    check_range,
    drawing_device,
    per_sample,
    uniform,
)
from monai_ssl.transforms.free_form import BEYOND, GREATEST_SHARE
from monai_ssl.transforms.pyramid import AveragePyramid
from monai_ssl.transforms.sampling import box_positions, sample_boxes

_TRIES = 10  # as torchvision's RandomResizedCrop


class _BoxTransform(BatchTransform):
    """What the two resamplings share: an output size and the sampler."""

    spatial: ClassVar[bool] = True
    overwrites: ClassVar[bool] = False

    def __init__(self, size: int | Sequence[int], padding: str) -> None:
        self.size = int(size) if isinstance(size, int) else tuple(int(n) for n in size)
        if min([self.size] if isinstance(self.size, int) else self.size) < 1:
            raise ValueError(f"size must be positive, got {size}")
        if padding not in ("border", "zeros"):
            raise ValueError(f'padding must be "border" or "zeros", not {padding!r}')
        self.padding = padding

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(B, C, *size)."""
        spatial = shape[2:]
        size = (self.size,) * len(spatial) if isinstance(self.size, int) else self.size
        if len(size) != len(spatial):
            raise ValueError(f"size {size} does not fit a batch of shape {tuple(shape)}: give one number per axis")
        return (*shape[:2], *size)

    def positions(self, shape: Sequence[int], params: Params, grid: Sequence[int] | None = None) -> torch.Tensor:
        """Where in the batch's canvas the view is read, see :func:`monai_ssl.transforms.sampling.box_positions`.

        Args:
            shape: shape of the batch, (B, C, *spatial).
            params: what ``draw`` returned.
            grid: cells along each axis that tile the view; None: its pixels.

        Returns:
            (B, spatial_dims, *grid) float32 in pixels from the canvas's outer edge; NaN outside the image.
        """
        size = self.output_shape(shape)[2:]
        return box_positions(params, size, size if grid is None else tuple(grid))

    def _apply(
        self,
        x: torch.Tensor,
        params: Params,
        interpolation: str = "bilinear",
        pyramid: AveragePyramid | None = None,
    ) -> torch.Tensor:
        return sample_boxes(x, params, self.output_shape(x.shape)[2:], interpolation, self.padding, pyramid)


def _extent_of(shape: Sequence[int], extent: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """(B, n) valid pixels of each image: what was given, else the whole canvas."""
    spatial = tuple(shape[2:])
    if extent is None:
        return torch.tensor([spatial], device=device).expand(shape[0], -1)
    if tuple(extent.shape) != (shape[0], len(spatial)):
        raise ValueError(f"extent must have shape {(shape[0], len(spatial))}, got {tuple(extent.shape)}")
    return extent.to(device)


def _not_negative(**values: float) -> tuple[float, ...]:
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    return tuple(float(value) for value in values.values())


def _checked_flips(flip_prob: float | Sequence[float]) -> float | tuple[float, ...]:
    if isinstance(flip_prob, (int, float)):
        return check_prob("flip_prob", flip_prob)
    return tuple(check_prob("flip_prob", p) for p in flip_prob)


def _drawn_pose(
    batch: int,
    n: int,
    rotation_deg: float,
    flip_prob: float | tuple[float, ...],
    in_plane: bool,
    generator: torch.Generator | None,
    device: torch.device,
) -> Params:
    """Draw ``angle_deg`` and ``flip`` and, in 3D, the ``axis`` of the turn."""
    probs = (0.0,) * (n - 1) + (flip_prob,) if isinstance(flip_prob, float) else flip_prob
    if len(probs) != n:
        raise ValueError(f"flip_prob {flip_prob} must be one number or one for each of {n} axes")
    params = {
        "angle_deg": uniform((batch,), -rotation_deg, rotation_deg, generator, device),
        "flip": torch.stack([chance(batch, p, generator, device) for p in probs], 1),
    }
    if n == 3 and in_plane:
        params["axis"] = torch.tensor([1.0, 0.0, 0.0], device=device).expand(batch, 3)
    elif n == 3:
        axis = torch.randn(batch, 3, generator=generator, device=device)
        params["axis"] = torch.nn.functional.normalize(axis, dim=1)
    return params


class RandomResample(_BoxTransform):
    """Random resized crop, rotation, flips and shift in one anti-aliased interpolation.

    Per sample, with n spatial axes and an image of ``extent`` pixels:

    * 2D crop, as torchvision's RandomResizedCrop: area = U(scale) of the image's, width / height = exp(U(log ratio)).
      3D crop: volume = U(scale) of the image's; sides = (volume share)^(1/3) * exp(e_i - mean e) of the image's own
      sides, with e_i ~ U(log ratio) / 2 for each axis, so that the box follows the array's shape, whatever the voxels.
      The first of 10 draws that fits into the image is taken; if none does, the largest box of an allowed shape.
      With ``zoom`` instead: sides = size / exp(U(log zoom)) pixels of the image, whatever its extent, times
      exp(e_i - mean e) as above; pixels keep their size in mm up to the zoom. A box that is longer than the image
      reaches beyond it at both ends alike. It begins at a whole pixel, so a zoom of 1 alone changes no value.
    * position: uniform over all where the box lies within the extent. No pixel beyond the extent is read as long as
      there is no turn and no shift.
    * turn: angle ~ U(-rotation_deg, rotation_deg) about the box's centre, in pixel space (no shear, whatever the
      shape); in 3D about an axis that is uniform on the sphere, in array index space, or with ``in_plane`` about the
      first axis. What the turned box covers beyond the crop is taken from the image itself, not filled in.
    * flips: axis i is mirrored with its probability.
    * shift: the box moves by U(-translate, translate) of its sides, also beyond the image.
    * size: the content is magnified by U(rescale) about the box's centre, whose sides shrink or grow by it, also beyond
      the image. With turn and shift this is the affine part of torchvision's RandomAffine after the crop.
    * elastic: a free-form deformation of the view by cubic B-splines (Rueckert et al., IEEE TMI 18(8), 1999), on a
      lattice of ``elastic_cells`` cells along each axis: control points move by ``a * cell * U(-1, 1)`` along each
      axis, with a ~ U(0, elastic) per sample. Up to 0.4 nothing folds (Choi & Lee, Graphical Models 62, 2000).

    Anti-aliasing by an average-pool pyramid: see :func:`monai_ssl.transforms.sampling.sample_boxes`.

    Args:
        size: side(s) of the view in pixels; one number for all axes.
        scale: least and greatest share of the image's area or volume, within (0, 1].
        ratio: least and greatest width / height (2D), stretch between two axes (3D).
        rotation_deg: greatest angle in degrees.
        flip_prob: one number mirrors the last axis (left-right) alone; a sequence has one for each axis.
        translate: greatest shift as a share of the crop's side.
        padding: "border" repeats the image's edge beyond the image, "zeros" fills in 0. Zeros draw a wedge that gives
            the angle away; radiographs have dark margins anyway, which "border" continues.
        zoom: least and greatest magnification; replaces ``scale``.
        in_plane: turn and deform 3D images within their slices (across the first axis) only. Where voxels are longer
            along the first axis than within slices, a turn out of the slices in index space would shear the patient.
        elastic: greatest move of a control point as a share of a cell, within [0, 0.4]; 0 is off.
        elastic_cells: cells of the lattice along each axis.
        rescale: least and greatest magnification after the crop; 1 and 1 leave the crop as it is.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        scale: Sequence[float] = (0.2, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        rotation_deg: float = 0.0,
        flip_prob: float | Sequence[float] = 0.0,
        translate: float = 0.0,
        padding: str = "border",
        zoom: Sequence[float] | None = None,
        in_plane: bool = False,
        elastic: float = 0.0,
        elastic_cells: int = 4,
        rescale: Sequence[float] = (1.0, 1.0),
    ) -> None:
        super().__init__(size, padding)
        self.scale = check_range("scale", scale, 1e-6, 1.0)
        self.ratio = check_range("ratio", ratio, 1e-3)
        self.rotation_deg, self.translate = _not_negative(rotation_deg=rotation_deg, translate=translate)
        self.flip_prob = _checked_flips(flip_prob)
        self.zoom = None if zoom is None else check_range("zoom", zoom, 1e-3)
        self.in_plane = bool(in_plane)
        if not 0 <= elastic <= GREATEST_SHARE or elastic_cells < 1:
            raise ValueError(
                f"elastic must be within [0, {GREATEST_SHARE}] and elastic_cells >= 1, "
                f"got {elastic} and {elastic_cells}"
            )
        self.elastic = float(elastic)
        self.elastic_cells = int(elastic_cells)
        self.rescale = check_range("rescale", rescale, 1e-3)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw ``center``, ``crop`` and ``extent`` (pixels), ``flip``, ``angle_deg`` and, in 3D, ``axis``.

        With ``elastic`` also that: (B, n, *lattice) displacements of the control points in pixels of the view.
        """
        device = drawing_device(generator, device)
        size = self.output_shape(shape)[2:]
        batch, n = shape[0], len(shape) - 2
        extent = _extent_of(shape, extent, device)
        sides = extent.float()
        crop = self._draw_crop(sides, generator) if self.zoom is None else self._draw_zoomed(sides, size, generator)
        corner = uniform((batch, n), 0, 1, generator, device) * (sides - crop)
        if self.zoom is not None:  # at whole pixels, so that a zoom of 1 shows them as they are
            corner = torch.where(crop > sides, (sides - crop) / 2, corner).round()
        center = crop / 2 + corner
        if self.translate:
            center = center + uniform((batch, n), -self.translate, self.translate, generator, device) * crop
        if self.rescale != (1.0, 1.0):
            crop = crop / uniform((batch, 1), *self.rescale, generator, device)
        params = {
            "center": center,
            "crop": crop,
            "extent": extent,
            **_drawn_pose(batch, n, self.rotation_deg, self.flip_prob, self.in_plane, generator, device),
        }
        if self.elastic:
            share = uniform((batch, n, *[self.elastic_cells + BEYOND] * n), -1, 1, generator, device)
            share *= per_sample(uniform((batch,), 0, self.elastic, generator, device), share.ndim)
            cell = sides.new_tensor([0.0 if self.in_plane and n == 3 and i == 0 else m for i, m in enumerate(size)])
            params["elastic"] = share * (cell / self.elastic_cells).view(-1, *[1] * n)
        return params

    def _draw_zoomed(self, sides: torch.Tensor, size: Sequence[int], generator: torch.Generator | None) -> torch.Tensor:
        """(B, n) sides of a box whose pixels are the image's, magnified by ``zoom``."""
        batch, n = sides.shape
        (low, high), bounds = (math.log(z) for z in self.zoom), [math.log(r) for r in self.ratio]
        smaller = uniform((batch, 1), -high, -low, generator, sides.device)
        stretch = uniform((batch, n), *bounds, generator, sides.device) / 2
        return sides.new_tensor(size) * (smaller + stretch - stretch.mean(1, keepdim=True)).exp()

    def _draw_crop(self, sides: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """(B, n) sides of a box that fits into ``sides``."""
        batch, n = sides.shape
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        share = uniform((batch, _TRIES, 1), *self.scale, generator, sides.device) ** (1 / n)
        if n == 2:
            stretch = uniform((batch, _TRIES, 1), low, high, generator, sides.device) / 2
            whole = sides.prod(1, keepdim=True).sqrt().expand(-1, 2)
            tries = whole[:, None] * share * torch.cat([-stretch, stretch], 2).exp()  # (B, tries, 2)
            # Whole image, made less oblong until width / height is allowed.
            shape = (sides[:, 1] / sides[:, 0]).clamp(*self.ratio)
            rest = torch.stack([sides[:, 1] / shape, sides[:, 0] * shape], 1).minimum(sides)
        else:
            stretch = uniform((batch, _TRIES, n), low, high, generator, sides.device) / 2
            tries = sides[:, None] * share * (stretch - stretch.mean(2, keepdim=True)).exp()
            rest = sides
        fits = (tries <= sides[:, None] * (1 + 1e-6)).all(2)  # (B, tries); a whole image fits in spite of rounding
        first = fits.float().argmax(1)
        crop = tries.gather(1, first[:, None, None].expand(-1, 1, n)).squeeze(1).minimum(sides)
        return torch.where(fits.any(1, keepdim=True), crop, rest)
