# SPDX-License-Identifier: Apache-2.0
"""Small made-up data sets for studies of sources and targets, of which it is known who is related to whom.

``stripes`` (which way do they run) is akin to the target ``fibres``, ``dots`` (how large are they) to the target
``cells``; ``rings`` (rings or rays) to neither.
"""

from __future__ import annotations

import io
import os
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from monai_ssl.data.example_folder import ExampleFolder, write_table
from monai_ssl.data.files import write_whole
from monai_ssl.data.phantom_patient import random_stream

__all__ = ["EXAMPLE_SOURCES", "EXAMPLE_TARGETS", "make_example_sets"]

EXAMPLE_SOURCES = ("stripes", "dots", "rings")
"""Names of the sets to pretrain on."""

EXAMPLE_TARGETS = ("fibres", "cells")
"""Names of the sets to predict."""

_CLASSES = {
    "stripes": ("along", "across", "oblique"),
    "dots": ("small", "middle", "large"),
    "rings": ("rings", "rays"),
    "fibres": ("flat", "steep"),
    "cells": ("small", "large"),
}
_IMAGES = 2  # of one patient
_CONTENT_VERSION = 1  # raise it when the pictures change


def make_example_sets(
    folder: str | os.PathLike, num_patients: int = 60, target_patients: int = 40, size: int = 48, seed: int = 0
) -> Path:
    """Write the five sets, each a folder with images (PNG) and ``labels.csv``; return at once if they are there.

    Args:
        folder: where to write; made if missing. It must not hold anything else.
        num_patients: of each source; two images each.
        target_patients: of each target: few, so that pretraining counts.
        size: rows and columns, at least 16.
        seed: names the sets.

    Returns:
        The folder.

    Raises:
        ValueError: a number is too small, or the folder holds something that was not made here.
        RuntimeError: the folder cannot be written.
    """
    if min(num_patients, target_patients) < 6 or size < 16:
        raise ValueError("the example sets need at least 6 patients and 16 pixels")
    folder = Path(folder)
    parameters = {
        "content_version": _CONTENT_VERSION,
        "num_patients": num_patients,
        "target_patients": target_patients,
        "size": size,
        "seed": seed,
    }
    place = ExampleFolder(folder, "example data sets", tuple(_CLASSES), (), parameters)
    return place.fill(partial(_make, folder, parameters))


def _make(folder: Path, parameters: dict) -> list[str]:
    written = []
    for name, classes in _CLASSES.items():
        rows = []
        count = parameters["target_patients" if name in EXAMPLE_TARGETS else "num_patients"]
        for patient in range(count):
            label = patient % len(classes)
            for image in range(_IMAGES):
                rng = random_stream(parameters["seed"], name, patient, image)
                file = f"EXAMPLE-{patient + 1:04d}_{image + 1}.png"
                picture = io.BytesIO()
                Image.fromarray(_draw(name, label, parameters["size"], rng)).save(picture, "PNG")
                write_whole(folder / name / file, picture.getvalue(), sync=False)
                rows.append({"file": file, "patient_id": f"EXAMPLE-{patient + 1:04d}", "label": classes[label]})
        write_table(folder / name / "labels.csv", ["file", "patient_id", "label"], rows)
        written += [f"{name}/{row['file']}" for row in rows] + [f"{name}/labels.csv"]
    return written


def _draw(name: str, label: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size) uint8."""
    y, x = (np.mgrid[:size, :size] - size / 2) / size  # -0.5 to 0.5
    if name == "stripes":
        pattern = _waves(x, y, (0, 90, 45)[label] + rng.normal(0, 6), rng.uniform(5, 9), rng)
    elif name == "fibres":
        pattern = _waves(x, y, (25, 65)[label] + rng.normal(0, 6), rng.uniform(4, 7), rng) ** 3
    elif name == "rings":
        radius, angle = np.hypot(x - rng.uniform(-0.2, 0.2), y - rng.uniform(-0.2, 0.2)), np.arctan2(y, x)
        phase = rng.uniform(0, 2 * np.pi)
        wave = 2 * np.pi * rng.uniform(5, 8) * radius if label == 0 else int(rng.integers(5, 9)) * angle
        pattern = np.sin(wave + phase)
    else:
        radius = ((0.05, 0.085, 0.13) if name == "dots" else (0.06, 0.1))[label] * rng.uniform(0.9, 1.1)
        pattern = np.zeros_like(x)
        for _ in range(int(rng.integers(4, 9))):  # as many of each size: brightness alone does not tell
            distance = np.hypot(x - rng.uniform(-0.45, 0.45), y - rng.uniform(-0.45, 0.45))
            pattern = np.maximum(pattern, np.clip(4 * (1 - distance / radius), 0, 1))
        pattern = 2 * pattern - 1 if name == "dots" else 1 - 2 * pattern  # cells are dark on light
    noise = rng.normal(0, 0.5 if name in EXAMPLE_TARGETS else 0.3, x.shape)
    grey = rng.uniform(100, 150) + rng.uniform(25, 45) * pattern + 45 * noise
    return np.clip(grey, 0, 255).astype(np.uint8)


def _waves(x: np.ndarray, y: np.ndarray, degrees: float, cycles: float, rng: np.random.Generator) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.sin(2 * np.pi * cycles * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 2 * np.pi))
