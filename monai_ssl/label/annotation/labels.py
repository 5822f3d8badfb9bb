# SPDX-License-Identifier: Apache-2.0
"""Labels that annotators save: label maps on the image's grid, or a JSON file with a class or findings; checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

__all__ = ["ClassLabels", "check_label", "class_labels"]

_NAME = re.compile(r"[\w][\w .+-]{0,63}")
_PLAIN = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_TOLERANCE_MM = 1e-2


def check_label(image: str | Path, label: str | Path) -> None:
    """Check that a label can be used with its image.

    A JSON file holds ``{"label": "name"}`` (a class) or ``{"findings": ["name", ...]}`` (any number of them); anything
    else is a label map, which must have the image's size and, in NIfTI, its place.

    Raises:
        ValueError: it can't be read, holds something else, or is of another grid.
    """
    image, label = Path(image), Path(label)
    if label.suffix.lower() == ".json":
        _read_classes(label)
        return
    size, affine = _grid(label, "the label")
    own_size, own_affine = _grid(image, "the image")
    if size != own_size:
        raise ValueError(
            f"the label is of another grid: it has {_sides(size)} voxels, its image {_sides(own_size)}; save it on the "
            "image's own grid"
        )
    if affine is not None and own_affine is not None:
        corners = np.array([[i, j, k, 1] for i in (0, size[0]) for j in (0, size[1]) for k in (0, size[2])]).T
        far = np.abs((affine - own_affine) @ corners)[:3].max()
        if far > _TOLERANCE_MM:
            raise ValueError(
                f"the label is of another grid: its voxels lie up to {far:.2f} mm from the image's; save it on the "
                "image's own grid"
            )


class ClassLabels:
    """Classes or findings of some images.

    Attributes:
        class_names: K names, sorted.
        targets: ``{id: class number}`` or, of findings, ``{id: (K,) of 0 and 1}``.
        multilabel: whether they are findings.
    """

    def __init__(self, given: Mapping[str, str | Sequence[str]]) -> None:
        kinds = {isinstance(value, str) for value in given.values()}
        if len(kinds) > 1:
            raise ValueError("some images have one class ('label') and others 'findings'; use one of the two for all")
        self.multilabel = kinds == {False}
        names = {name for value in given.values() for name in ([value] if isinstance(value, str) else value)}
        self.class_names = sorted(names)
        number = {name: k for k, name in enumerate(self.class_names)}
        self.targets: dict[str, Any] = {}
        for image, value in given.items():
            if isinstance(value, str):
                self.targets[image] = number[value]
            else:
                self.targets[image] = np.isin(np.arange(len(number)), [number[name] for name in value]).astype(np.int64)

    def array(self, ids: Sequence[str]) -> np.ndarray:
        """Return targets of images in an order: ``(N,)`` or ``(N, K)``, -1 for images without a label."""
        missing = np.full(len(self.class_names), -1) if self.multilabel else -1
        return np.array([self.targets.get(image, missing) for image in ids], dtype=np.int64)


def class_labels(paths: Mapping[str, str]) -> ClassLabels:
    """Read the JSON labels of some images; label maps are left out.

    Args:
        paths: of each image's label, by its id.

    Raises:
        ValueError: no label is a class, a file is damaged (it is named), or classes and findings are mixed.
    """
    given = {image: _read_classes(Path(path)) for image, path in paths.items() if str(path).lower().endswith(".json")}
    if not given:
        raise ValueError(
            'no image has a class yet: save a JSON file such as {"label": "normal"} or {"findings": []} as its label'
        )
    return ClassLabels(given)


def _read_classes(path: Path) -> str | list[str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        raise ValueError(f"the label {path.name} is no JSON file") from None
    found = None
    if isinstance(content, dict):
        if isinstance(content.get("label"), str):
            found = content["label"]
        elif isinstance(content.get("findings"), list):
            found = sorted(set(map(str, content["findings"])))
    if found is None or not all(_NAME.fullmatch(name) for name in ([found] if isinstance(found, str) else found)):
        raise ValueError(
            f'the label {path.name} must be {{"label": "name"}} or {{"findings": ["name", ...]}} with names of at most '
            "64 letters, digits, spaces, '.', '+', '-' and '_'"
        )
    return found


def _grid(path: Path, what: str) -> tuple[tuple[int, ...], np.ndarray | None]:
    """Size in the file's own order of axes, and the affine where the file has one."""
    try:
        if path.name.lower().endswith((".nii", ".nii.gz")):
            file = nib.load(path)
            size = tuple(int(side) for side in file.shape)
            size = size[:3] if len(size) == 4 and size[3] == 1 else size
            return size, file.affine if len(size) == 3 else None
        if path.suffix.lower() in _PLAIN:
            with Image.open(path) as picture:
                return picture.size, None
        if path.suffix.lower() == ".nrrd":
            import nrrd  # a need of MONAI Label itself

            header = nrrd.read_header(str(path))
            return tuple(int(side) for side in header["sizes"][-3:]), None
    except Exception:
        raise ValueError(f"{what} {path.name} can't be read: it is damaged, or no {path.suffix} file") from None
    raise ValueError(f"{what} {path.name} is of a kind that is not taken; use NIfTI, NRRD, PNG, TIFF or JSON")


def _sides(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
