# SPDX-License-Identifier: Apache-2.0
"""What all sheets share: checked arguments, an empty figure, words for what was drawn, a file written whole."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from monai_ssl.data.files import write_whole
from monai_ssl.transforms import Params, RandomCutout, RandomResample, ViewChain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#d1495b", "#2e86ab", "#3c8d53", "#d98324", "#7a5195", "#8c6d46", "#4d5d6c", "#c06c9b")
INK = "#444444"


def check_sheet(output: str | Path, preset: str, presets: Iterable[str], size: tuple[int, ...], num_views: int) -> Path:
    """Return the file to write.

    Raises:
        ValueError: an argument is out of its range.
    """
    output = Path(output)
    if output.suffix.lower() != ".png":
        raise ValueError(f"the sheet is a PNG file; {output} does not end in .png")
    if not 1 <= num_views <= len(COLORS) or not all(8 <= side <= 2048 for side in size):
        sides = " x ".join(map(str, size))
        raise ValueError(f"num_views is {num_views} (1 to {len(COLORS)}), size {sides} (8 to 2048)")
    if preset not in presets:
        raise ValueError(f"there is no preset {preset!r}; there are {', '.join(presets)}")
    return output


def empty_figure(columns: int, inches: float, title: str) -> Figure:
    """A figure for a grid of pictures that is so many inches high, with a title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.25 * columns + 0.3, inches + 0.55), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=12, color=INK)
    return figure


def write_sheet(figure: Figure, output: Path) -> Path:
    """Write the figure as PNG, whole or not at all, and return the file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, buffer.getvalue())
    return output


def describe_draw(chain: ViewChain, params: Params) -> str:
    """Say in a few short lines what was drawn for the first sample of a batch."""
    words: list[str] = []
    for number, transform in enumerate(chain.transforms):
        mine = {key.partition(".")[2]: value[0] for key, value in params.items() if key.startswith(f"{number}.")}
        if isinstance(transform, RandomResample):
            words += _geometry(mine)
        factors = {name: mine[name] for name in ("brightness", "contrast", "gamma") if name in mine}
        words += [f"{name} {value:.2f}" for name, value in factors.items() if abs(value - 1) >= 0.005]
        if "width_hu" in mine and (transform.apply(torch.full((1, 1, 1, 1), 0.25), _first(mine)) != 0.25).any():
            words.append(f"window {mine['level_hu']:.0f} ± {mine['width_hu'] / 2:.0f} HU")
        if "coefficients" in mine and mine["coefficients"].any():
            field = transform.apply(torch.ones(1, 1, *[9] * mine["coefficients"].ndim), _first(mine))
            words.append(f"bias field {field.min():.2f} to {field.max():.2f}")
        if "zoom" in mine and (mine["zoom"] < 1).any():
            words.append("resolution " + _axes(f"{share:.0%}" for share in mine["zoom"].tolist()))
        if "sigma" in mine and (mine["sigma"] > 0).any():
            words.append("blur " + _axes(f"{sigma:.1f}" for sigma in mine["sigma"].reshape(-1).tolist()) + " px")
        words += [f"noise {mine['std']:.2f}"] if mine.get("std", 0) > 0 else []
        words += [f"{transform.holes} holes"] if isinstance(transform, RandomCutout) else []
    lines = [""]
    for word in words:
        joined = f"{lines[-1]}, {word}" if lines[-1] else word
        lines = [*lines[:-1], joined] if len(joined) <= 36 else [*lines, word]
    return "\n".join(lines).strip("\n")


def _geometry(mine: Params) -> list[str]:
    """Words for the draw of a resampling."""
    share = float(mine["crop"].prod() / mine["extent"].prod())
    words = [f"{share:.0%} of the {'area' if len(mine['crop']) == 2 else 'volume'}"]
    words += [f"turned {mine['angle_deg']:+.0f}°"] if abs(mine["angle_deg"]) >= 0.5 else []
    words += ["mirrored"] if mine["flip"].any() else []
    if "elastic" in mine and (most := float(mine["elastic"].abs().max())) >= 0.05:
        words.append(f"control points moved by {most:.1f} px")
    return words


def _axes(values: Iterable[str]) -> str:
    """Values of the axes; one word if they are the same."""
    values = list(values)
    return values[0] if len(set(values)) == 1 else " x ".join(values)


def _first(mine: Params) -> Params:
    """Parameters of one sample as those of a batch of one."""
    return {name: value[None] for name, value in mine.items()}
