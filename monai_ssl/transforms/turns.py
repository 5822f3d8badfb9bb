# SPDX-License-Identifier: Apache-2.0
"""Mirror and turn by right angles: no interpolation, every voxel keeps its value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from monai_ssl.transforms.base import BatchTransform, Params, check_prob, drawing_device, per_sample
from monai_ssl.transforms.pyramid import AveragePyramid


class RandomMirror(BatchTransform):
    """Mirror along random axes: round by round, while a coin of ``prob`` allows it, along one axis drawn uniformly.

    Two rounds may meet the same axis and undo each other. Defaults and rounds are those of Models Genesis' released
    code (Zhou et al., Medical Image Analysis 2021).

    Args:
        prob: probability that a round takes place, and the next is asked for.
        rounds: rounds at most.

    Raises:
        ValueError: ``prob`` is outside [0, 1] or ``rounds`` below 1.
    """

    spatial: ClassVar[bool] = True
    overwrites: ClassVar[bool] = False

    def __init__(self, prob: float = 0.4, rounds: int = 3) -> None:
        self.prob = check_prob("prob", prob)
        if rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {rounds}")
        self.rounds = int(rounds)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw ``flip`` (B, n) booleans: which axes are mirrored."""
        device = drawing_device(generator, device)
        batch, n = shape[0], len(shape) - 2
        goes_on = torch.rand(batch, self.rounds, generator=generator, device=device) < self.prob
        axis = torch.randint(0, n, (batch, self.rounds), generator=generator, device=device)
        hits = (axis[..., None] == torch.arange(n, device=device)) & goes_on.int().cumprod(1).bool()[..., None]
        return {"flip": hits.sum(1) % 2 == 1}

    def _apply(
        self,
        x: torch.Tensor,
        params: Params,
        interpolation: str = "bilinear",
        pyramid: AveragePyramid | None = None,
    ) -> torch.Tensor:
        for axis in range(x.ndim - 2):
            x = torch.where(per_sample(params["flip"][:, axis], x.ndim), x.flip(2 + axis), x)
        return x


class RandomQuarterTurn(BatchTransform):
    """Turn each image by 0, 90, 180 or 270 degrees, each with the same probability.

    The number of quarter turns is what SwinUNETR's pretraining lets a network tell (Tang et al., CVPR 2022).

    Args:
        axis: in 3D, the spatial axis that is turned about; 0, of (D, H, W), is the body's long axis, so that every
            axial slice turns in its plane. In 2D the image turns and this is not used.

    Raises:
        ValueError: ``axis`` is not 0, 1 or 2; or, when used, the two sides that change places differ.
    """

    spatial: ClassVar[bool] = True
    overwrites: ClassVar[bool] = False

    def __init__(self, axis: int = 0) -> None:
        if axis not in (0, 1, 2):
            raise ValueError(f"axis must be 0, 1 or 2, got {axis}")
        self.axis = axis

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw ``turns`` (B,) within 0 to 3: how often 90 degrees, from the plane's first axis to its second."""
        device = drawing_device(generator, device)
        return {"turns": torch.randint(0, 4, (shape[0],), generator=generator, device=device)}

    def _apply(
        self,
        x: torch.Tensor,
        params: Params,
        interpolation: str = "bilinear",
        pyramid: AveragePyramid | None = None,
    ) -> torch.Tensor:
        plane = [i for i in range(2, x.ndim) if x.ndim == 4 or i != 2 + self.axis]
        if x.shape[plane[0]] != x.shape[plane[1]]:
            raise ValueError(
                f"a quarter turn needs sides of one length in the plane it turns, got images {tuple(x.shape[2:])}"
                + (f" and axis {self.axis}" if x.ndim == 5 else "")
            )
        turns = per_sample(params["turns"], x.ndim)
        result = x
        for count in (1, 2, 3):
            result = torch.where(turns == count, torch.rot90(x, count, plane), result)
        return result
