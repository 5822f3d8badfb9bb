# SPDX-License-Identifier: Apache-2.0
"""The whole examination as text."""

from __future__ import annotations

import sys
from pathlib import Path

import monai_ssl
from monai_ssl.doctor.machine import machine_section
from monai_ssl.doctor.packages import decoder_section, package_section
from monai_ssl.doctor.speed import reading_section, step_section
from monai_ssl.engines import named_device

__all__ = ["examine"]


def examine(
    folder: str | Path | None = None,
    device: str = "auto",
    architecture: str = "resnet18",
    size: int = 224,
    batch_size: int = 8,
) -> str:
    """Look at packages, decoders and the machine, time reading, views and a step, and say what to change.

    Args:
        folder: of images or a store, to measure its disk and reading; None: the current folder, and made-up images.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        architecture: for ``build_encoder``.
        size: side of the views in pixels.
        batch_size: images in the timed step.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: an argument is unknown or out of range, or the folder holds no image.
    """
    if folder is not None and not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    where = named_device(device)
    print("measuring, about half a minute ...", file=sys.stderr)
    reading, rate = reading_section(None if folder is None else Path(folder))
    sections = [
        package_section(),
        decoder_section(),
        machine_section(Path(folder or ".").absolute(), where),
        reading,
        step_section(where, architecture, size, batch_size, rate),
    ]
    advice = [text for section in sections for text in section.advice]
    lines = ["what to change", *(f"  * {text}" for text in advice)] if advice else ["nothing to change"]
    return "\n\n".join([f"monai_ssl {monai_ssl.__version__}", *map(str, sections), "\n".join(lines)])
