# SPDX-License-Identifier: Apache-2.0
"""Label maps of volumes: whether one lies on the grid of its image, told from the headers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.grids import corner_distance, same_place
from monai_ssl.data.volume_reader import open_volume

# Raise it when rows of unchanged files would come out different.
LABEL_MAP_VERSION = "1"

LABEL_MAP_SCHEMA = pa.schema(
    [("path", pa.string()), ("bytes", pa.int64()), ("mtime_ns", pa.int64()), ("oriented", pa.bool_())]
    + [("shape", pa.list_(pa.int32())), ("affine", pa.list_(pa.float64()))]
    + [("status", pa.string()), ("reason", pa.string())]
)


def scan_label_map(root: str, file: tuple[str, int, int]) -> dict:
    """Read the header of a label map; nothing that is wrong with it raises.

    Args:
        root: the folder.
        file: relative path, bytes and modification time in ns.

    Returns:
        A row for ``LABEL_MAP_SCHEMA``.
    """
    row = refused_label_map(file, "")
    try:
        opened = open_volume(Path(root, file[0]))
    except UnreadableImageError as error:
        return row | {"reason": f"the label map cannot be used: {error.reason}"}
    except OSError as error:
        return row | {"reason": f"the label map could not be read ({error.strerror or type(error).__name__})"}
    except Exception as error:
        # Headers are hostile: whatever else goes wrong belongs to this file only. The text may quote the header.
        return row | {"reason": f"unexpected {type(error).__name__} while reading the label map"}
    facts = {"shape": list(opened.shape), "affine": opened.affine.ravel().tolist()}
    return row | facts | {"oriented": opened.facts["oriented"], "status": "ok", "reason": None}


def refused_label_map(file: tuple[str, int, int], reason: str) -> dict:
    """Row of a label map (path, bytes, modification time in ns) that cannot be used."""
    facts = dict(zip(("path", "bytes", "mtime_ns"), file, strict=True))
    return dict.fromkeys(LABEL_MAP_SCHEMA.names) | facts | {"status": "refused", "reason": reason}


def grid_difference(
    shape: Sequence[int], affine: np.ndarray | None, other_shape: Sequence[int], other_affine: np.ndarray | None
) -> str | None:
    """Say how the grid of a label map differs from that of its image, or None if both have the same voxels.

    The axes may be stored in another order or direction. See ``same_place`` for how far apart voxels may lie.

    Args:
        shape, affine: of the label map: (D, H, W), and (4, 4) from voxels to mm; None if the file does not say.
        other_shape, other_affine: of the image.

    >>> grid_difference((2, 3, 4), None, (2, 3, 5), None)
    'label map of another grid: shape 2 x 3 x 4 against 2 x 3 x 5 of the image'
    """
    shape, other_shape = tuple(map(int, shape)), tuple(map(int, other_shape))
    shapes = f"label map of another grid: shape {_text(shape)} against {_text(other_shape)} of the image"
    if affine is None or other_affine is None:
        return None if shape == other_shape else shapes
    mapping = np.linalg.inv(other_affine) @ affine  # the label map's voxels to the image's
    turn = np.rint(mapping[:3, :3])
    if not (np.abs(turn).sum(axis=0) == 1).all() or not (np.abs(turn).sum(axis=1) == 1).all():
        return f"{shapes}, and other axes or spacing"
    if tuple(int(side) for side in np.abs(turn) @ shape) != other_shape:
        return shapes
    turned = np.eye(4)
    turned[:3, :3] = turn
    turned[:3, 3] = np.where(turn.sum(axis=1) < 0, np.array(other_shape) - 1, 0)
    affine = affine @ np.linalg.inv(turned)  # of the label map with the image's order of axes
    if same_place(other_shape, affine, other_affine):
        return None
    away = corner_distance(other_shape, affine, other_affine)
    return f"label map of another grid: its corners lie up to {away:.3g} mm from those of the image"


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
