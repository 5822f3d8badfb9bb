# SPDX-License-Identifier: Apache-2.0
"""Segment new volumes: a label map on each file's own grid, and one table of volumes in ml and of what was refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys

from monai_ssl.data.store import ImageStore
from monai_ssl.evaluation.model_handlers import refused_files
from monai_ssl.evaluation.segmentation_card import read_segmenter_card
from monai_ssl.evaluation.source_grid import restore_class_numbers, write_label_map
from monai_ssl.weights import atomic_file

__all__ = ["SegmentationWriter"]

_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".dicom", ".ima")


class SegmentationWriter:
    """Writes a NIfTI label map for each volume, in the voxels of its file, and ``predictions.json``.

    A label map has the path of its volume below ``folder``, with ``_seg.nii.gz`` at its end; of a DICOM volume it is
    the folder's. Its values are 1 .. K in the order of the classes, which the JSON file names.

    Args:
        model_path: of the weights.
        store: of the volumes.
        folder: of the label maps.
        path: of the JSON file.
    """

    def __init__(
        self,
        model_path: str | os.PathLike,
        store: ImageStore,
        folder: str | os.PathLike,
        path: str | os.PathLike,
    ) -> None:
        self.model_path, self.store, self.folder, self.path = model_path, store, Path(folder), Path(path)
        self._written: list[dict[str, Any]] = []
        self._names = label_map_names(store.table["path"].to_pylist())

    def attach(self, engine: Engine) -> None:
        """Follow an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._take)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, _: Engine) -> None:
        self._written = []
        self._card = read_segmenter_card(self.model_path)

    def _take(self, engine: Engine) -> None:
        row = int(engine.state.batch["index"][0])
        shape, affine = self.store.source_grid(row)
        logits = engine.state.output[CommonKeys.PRED][0].detach()
        numbers = restore_class_numbers(logits, self.store.affine(row), shape, affine)
        name = self._names[row]
        write_label_map(self.folder / name, numbers, affine)
        voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
        counts = np.bincount(numbers.ravel(), minlength=1 + len(self._card.class_names))
        self._written.append(
            {
                "path": self.store.table["path"][row].as_py(),
                "label_map": name,
                "ml": {
                    class_name: _rounded(count * voxel_ml)
                    for class_name, count in zip(self._card.class_names, counts[1:].tolist(), strict=True)
                },
            }
        )

    def _finish(self, engine: Engine) -> None:
        card = self._card
        content = {
            "model": {
                "architecture": card.architecture,
                "classes": {name: number for number, name in enumerate(card.class_names, 1)},
                "lineage": card.lineage_in_words,
                "weights_sha256": card.weights_sha256,
            },
            "preprocessing": card.preprocessing,
            "volumes": self._written,
            "refused": refused_files(self.store),
        }
        with atomic_file(self.path) as file:
            file.write(json.dumps(content, indent=1).encode())
        refused = len(self.store.refused)
        print(f"{len(self._written)} volumes segmented, {refused} refused: {self.path}", flush=True)


def label_map_names(paths: list[str]) -> list[str]:
    """Return a path for the label map of each volume, all different.

    Args:
        paths: of an index: a file or a folder, ``#k`` at the end where several volumes share it.
    """
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        place, mark, number = path.rpartition("#")
        whole = PurePosixPath(place if mark and number.isdigit() else path)
        stem = next((whole.name[: -len(end)] for end in _SUFFIXES if whole.name.lower().endswith(end)), whole.name)
        stem = (stem or "volume") + (f"_{number}" if mark and number.isdigit() else "")
        name, more = (whole.parent / f"{stem}_seg.nii.gz").as_posix(), 1
        while name.lower() in taken:
            more += 1
            name = (whole.parent / f"{stem}_{more}_seg.nii.gz").as_posix()
        taken.add(name.lower())
        names.append(name)
    return names


def _rounded(value: float, digits: int = 4) -> float:
    """Round to so many digits that count."""
    return 0.0 if value == 0 else round(value, digits - 1 - math.floor(math.log10(abs(value))))
