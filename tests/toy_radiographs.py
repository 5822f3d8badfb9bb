# SPDX-License-Identifier: Apache-2.0
"""A folder of tiny made-up images with labels, for tests of evaluation and of bundles."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = ("train", "train", "train", "val", "test")
LABELS = ("normal", "left", "right")


def make_toy_radiographs(folder: Path, num_patients: int = 30, side: int = 48) -> Path:
    """Two images a patient; "left" and "right" have a bright square there, so a few steps of training find it.

    ``labels.csv``: file, patient_id, split, label (three classes), sick (0/1), spot_left, spot_right (0/1), site.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(num_patients):
        label = LABELS[patient % 3]
        for image in range(2):
            height, width = side, side + 4 * (patient % 3)
            pixels = rng.normal(90, 25, (height, width))
            if label != "normal":
                column = width // 4 if label == "left" else 3 * width // 4
                pixels[height // 3 : 2 * height // 3, column - 6 : column + 6] += 110
            name = f"p{patient:02d}_{image}.png"
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name)
            rows.append(
                {
                    "file": name,
                    "patient_id": f"P{patient}",
                    "split": SPLITS[(patient // 3) % len(SPLITS)],
                    "label": label,
                    "sick": int(label != "normal"),
                    "spot_left": int(label == "left"),
                    "spot_right": int(label == "right"),
                    "site": "A" if patient < num_patients // 2 else "B",
                }
            )
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder
