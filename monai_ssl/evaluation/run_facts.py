# SPDX-License-Identifier: Apache-2.0
"""What every report says about the run it comes from, and the small pieces that all reports are written with."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import monai_ssl
from monai_ssl.metrics import bootstrap_interval
from monai_ssl.weights import atomic_file

__all__ = ["RunFacts", "describe_lineage", "device_name", "package_versions"]


def package_versions() -> dict[str, str]:
    """Return the versions that a figure depends on."""
    names = ("monai", "torch", "numpy", "scikit-learn")
    own = {"monai_ssl": monai_ssl.__version__, "python": platform.python_version()}
    return own | {name: version(name) for name in names}


def device_name(device: torch.device | str) -> str:
    """Return the device in words: ``"cpu (2 threads)"`` or the name of the GPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def describe_lineage(lineage: Sequence[dict[str, Any]]) -> str:
    """Name the training stages that weights went through, oldest first; ``"random"`` without any.

    >>> describe_lineage([{"method": "ImageNet"}, {"method": "C2L", "images_seen": 64000}])
    'ImageNet > C2L (64000 images seen)'
    """
    stages = []
    for stage in lineage:
        seen = stage.get("images_seen")
        stages.append(str(stage.get("method", "unknown")) + (f" ({seen} images seen)" if seen else ""))
    return " > ".join(stages) or "random"


@dataclass(frozen=True)
class RunFacts:
    """What every row of a report says about the run it comes from.

    Attributes:
        mode: ``"linear"``, ``"finetune"``, ``"scratch"``, or what else was evaluated.
        lineage: what the encoder went through before, see :func:`describe_lineage`.
        label_fraction: share of the training labels, or their number.
        num_labels: labelled images used.
        seed: of the run.
        split_hash: of the split of patients into train, val and test.
        wall_time_s: of the run up to the report.
        device: see :func:`device_name`.
        versions: see :func:`package_versions`.
    """

    mode: str
    lineage: str
    label_fraction: float
    num_labels: int
    seed: int
    split_hash: str
    wall_time_s: float
    device: str
    versions: dict[str, str] = field(default_factory=package_versions)


def bounded_value(
    name: str, metric: Callable[..., float], *arrays: np.ndarray, **options: Any
) -> dict[str, float | None]:
    """Return ``name``, ``name_low`` and ``name_high``; no interval where too few patients define the metric.

    Args:
        name: of the figure.
        metric: function of the arrays.
        arrays: see :func:`monai_ssl.metrics.bootstrap_interval`.
        options: likewise.
    """
    value = float(metric(*arrays))
    try:
        interval = bootstrap_interval(metric, *arrays, **options)
    except ValueError:
        return {name: value, f"{name}_low": None, f"{name}_high": None}
    return {name: value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def shown_number(value: float | None, digits: int = 3) -> str:
    """Write a number for a table; ``-`` for none and for NaN."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def shown_interval(row: Mapping[str, Any], name: str, digits: int = 3) -> str:
    """Write the interval of a figure of :func:`bounded_value`."""
    return f"{shown_number(row[f'{name}_low'], digits)} to {shown_number(row[f'{name}_high'], digits)}"


def table_line(cells: Sequence[Any]) -> str:
    """Write one line of a Markdown table."""
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def run_lines(row: Mapping[str, Any]) -> list[str]:
    """Write the section of a Markdown report that says what run it is of.

    Args:
        row: any row of the report; it carries the :class:`RunFacts`.
    """
    names = ("mode", "lineage", "label_fraction", "num_labels", "seed", "split_hash", "wall_time_s", "device")
    versions = ", ".join(f"{name} {value}" for name, value in row["versions"].items())
    return ["## The run", "", *(f"- {name}: {row[name]}" for name in names), f"- versions: {versions}", ""]


def write_report_files(
    folder: str | os.PathLike,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    data: Mapping[str, Any],
    markdown: str,
    others: Mapping[str, bytes],
) -> Path:
    """Write ``name.json`` (the data), ``name.csv`` (the rows), ``name.md`` and ``name`` + suffix for the others.

    Returns:
        The path of the Markdown file.
    """
    folder = Path(folder)
    contents = {
        ".json": json.dumps(data, indent=2).encode(),
        ".csv": csv_bytes([{**row, "versions": json.dumps(row["versions"])} for row in rows]),
        ".md": markdown.encode(),
        **others,
    }
    for suffix, content in contents.items():
        with atomic_file(folder / f"{name}{suffix}") as file:
            file.write(content)
    return folder / f"{name}.md"


def csv_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Write rows of the same keys as CSV."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
