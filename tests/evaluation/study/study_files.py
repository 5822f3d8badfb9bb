# SPDX-License-Identifier: Apache-2.0
"""Tiny studies for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from monai_ssl.evaluation.study import Study, read_study

BUNDLES = Path(__file__).parents[3] / "bundles"
QUICK = {
    "max_epochs": 3,
    "steps_per_epoch": 2,
    "batch_size": 8,
    "precision": "fp32",
    "channels_last": False,
    "resamples": 20,
    "store::num_workers": 0,
    "store::progress": False,
}


def write_study(folder: Path, task: dict[str, Any], **content: Any) -> Path:
    """Write ``study.yaml`` with one task, the bundle's name instead of its folder."""
    task = {**task, "bundle": str(BUNDLES / task["bundle"])}
    whole = {"output_dir": str(folder / "study"), "tasks": {"toy": task}, "resamples": 40, **content}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


def radiograph_task(images: Path, **settings: Any) -> dict[str, Any]:
    """Left, right or nothing, on the toy radiographs."""
    quick = {"dataset_dir": str(images), "label_column": "label", "store::drop_duplicates": False, **QUICK}
    return {"bundle": "radiograph_classification", **quick, **settings}


def toy_study(folder: Path, images: Path, encoder: Path | None, task: dict[str, Any] | None = None, **content) -> Study:
    """Read a study of the toy radiographs."""
    encoders = {} if encoder is None else {"c2l": str(encoder)}
    return read_study(write_study(folder, radiograph_task(images, **(task or {})), encoders=encoders, **content))
