# SPDX-License-Identifier: Apache-2.0
"""Random monotone map of intensities along a Bezier curve.

Zhou, Sodha, Pang, Gotway, Liang, *Models Genesis*, Medical Image Analysis 2021, arXiv 2004.07882, "non-linear
transformation".
"""

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
    take,
    uniform,
)

_CURVE_POINTS = 2000  # samples of the curve
_TABLE_CELLS = 1024  # of the map's table, between whose entries is interpolated


class RandomIntensityMap(BatchTransform):
    r"""Map intensities by a cubic Bezier curve from corner to corner, with probability ``prob`` per sample.

    For intensities scaled to [0, 1], with control points :math:`(x_1, y_1), (x_2, y_2)`, all four U(0, 1):

    .. math:: x(s) = 3 (1-s)^2 s\, x_1 + 3 (1-s) s^2 x_2 + s^3, \qquad y(s) \text{ likewise}, \qquad x(s) \mapsto y(s)

    which rises from 0 to 1. With probability ``falling_prob`` it falls instead: :math:`x(s) \mapsto y(1 - s)`. The map
    is looked up in a table of 1,025 entries with linear interpolation; nothing is rounded.

    Args:
        prob: probability of a sample being changed (Models Genesis: 0.9).
        falling_prob: probability of a falling map, which inverts the image.
        value_range: the intensities that become 0 and 1; what lies beyond is mapped as these are.

    Raises:
        ValueError: a probability is outside [0, 1], or ``value_range`` is empty.
    """

    def __init__(self, prob: float = 0.9, falling_prob: float = 0.5, value_range: Sequence[float] = (0.0, 1.0)) -> None:
        self.prob = check_prob("prob", prob)
        self.falling_prob = check_prob("falling_prob", falling_prob)
        self.value_range = check_value_range(value_range)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw ``chosen`` (B,), ``falling`` (B,) and ``points`` (B, 2, 2): x and y of the two control points."""
        device = drawing_device(generator, device)
        return {
            "chosen": chance(shape[0], self.prob, generator, device),
            "falling": chance(shape[0], self.falling_prob, generator, device),
            "points": uniform((shape[0], 2, 2), 0, 1, generator, device),
        }

    def _apply(self, x: torch.Tensor, params: Params, interpolation: str = "bilinear") -> torch.Tensor:
        tables = _tables(params["points"], params["falling"])
        low, high = self.value_range

        def change(part: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
            table = take(tables, rows)  # (B', cells + 1)
            place = ((part.float() - low) * (_TABLE_CELLS / (high - low))).clamp_(0, _TABLE_CELLS).flatten(1)
            cell = place.floor().clamp_(max=_TABLE_CELLS - 1)
            place -= cell
            cell = cell.long()
            mapped = torch.lerp(table.gather(1, cell), table.gather(1, cell + 1), place)
            return mapped.mul_(high - low).add_(low).view(part.shape).to(part.dtype)

        return on_selected(x, params["chosen"], change)


def check_value_range(value: Sequence[float]) -> tuple[float, float]:
    """Return (low, high) with low < high, or say what is wrong with it."""
    low, high = check_range("value_range", value, -float("inf"))
    if low == high:
        raise ValueError(f"value_range must be two numbers a < b, got {tuple(value)}")
    return low, high


def _tables(points: torch.Tensor, falling: torch.Tensor) -> torch.Tensor:
    """(B, cells + 1): the map's values at equal steps of the scaled intensity."""
    s = torch.linspace(0, 1, _CURVE_POINTS, device=points.device)
    basis = torch.stack([3 * (1 - s) ** 2 * s, 3 * (1 - s) * s**2])  # (2, S)
    x, y = (points.transpose(1, 2) @ basis + s**3).unbind(1)  # (B, S) each
    x = x.cummax(1).values.contiguous()  # rising by its formula; by rounding it might not
    y = torch.where(falling[:, None], y.flip(1), y)
    wanted = torch.linspace(0, 1, _TABLE_CELLS + 1, device=points.device).expand(len(points), -1).contiguous()
    right = torch.searchsorted(x, wanted).clamp_(1, _CURVE_POINTS - 1)
    x0, x1, y0, y1 = x.gather(1, right - 1), x.gather(1, right), y.gather(1, right - 1), y.gather(1, right)
    return torch.lerp(y0, y1, ((wanted - x0) / (x1 - x0).clamp(min=1e-9)).clamp_(0, 1))
