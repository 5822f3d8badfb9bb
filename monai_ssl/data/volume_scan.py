# SPDX-License-Identifier: Apache-2.0
"""Files to rows of an index of volumes: what a worker process does, first file by file, then series by series.

Raw identifiers stay in the process that reads the header: what leaves it are salted hashes, by which files are grouped.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from monai_ssl.data.dicom import dicom_identifiers, quiet_pydicom, read_dicom
from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.hashing import content_hash, hash_identifier
from monai_ssl.data.readers import sniff_kind
from monai_ssl.data.scan import IGNORED, hashed_identifiers
from monai_ssl.data.series import open_series
from monai_ssl.data.volume_files import ITK_SUFFIXES, open_itk_volumes, open_nifti_volumes
from monai_ssl.data.volumes import FoundVolumes, OpenVolume, Refusal, Volume

# Raise it when rows of unchanged files would come out different.
VOLUME_SCAN_VERSION = "1"
_DETACHED = (".mhd", ".nhdr")  # headers, whose voxels lie beside them, usually under the same name
HASHED_ORIENTATION = "SPL"  # so that a study has one content hash however its axes are stored

_IDENTITY = [("patient", pa.string()), ("study", pa.string()), ("series", pa.string())]
_STATUS = [("status", pa.string()), ("reason", pa.string())]

# One row a file: what it is, and to which series it belongs (column group).
FILE_SCHEMA = pa.schema(
    [("path", pa.string()), ("bytes", pa.int64()), ("mtime_ns", pa.int64()), ("kind", pa.string())]
    + [*_IDENTITY, ("group", pa.string()), *_STATUS]
)

# One row a volume or a set of refused files.
VOLUME_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("files", pa.list_(pa.string())),
        ("volume", pa.int32()),
        ("kind", pa.string()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("modality", pa.string()),
        ("body_part", pa.string()),
        ("unit", pa.string()),
        ("oriented", pa.bool_()),
        ("shape", pa.list_(pa.int32())),
        ("spacing_mm", pa.list_(pa.float64())),
        ("orientation", pa.string()),
        ("affine", pa.list_(pa.float64())),
        ("split_by", pa.string()),
        ("min_slices", pa.int32()),
        ("uneven", pa.string()),
        *_IDENTITY,
        ("content_hash", pa.string()),
        *_STATUS,
    ]
)

# What is remembered of a file or series, whose rows depend on nothing else.
UNIT_SCHEMA = pa.schema(
    [("path", pa.string()), ("stamp", pa.string()), *_STATUS, ("rows", pa.list_(pa.struct(list(VOLUME_SCHEMA))))]
)


class Unit(NamedTuple):
    """Files that are read together: one file with volumes, or the DICOM files of one series.

    Args:
        path: the file, or a name of the series that says nothing about it.
        stamp: changes when a file or a rule changes.
        kind: ``"dicom"``, ``"nifti"`` or ``"itk"``.
        files: path relative to the folder, bytes, modification time in ns.
        identity: salted hashes of patient, study and series.
    """

    path: str
    stamp: str
    kind: str
    files: tuple[tuple[str, int, int], ...]
    identity: dict[str, str | None]


@dataclass(frozen=True)
class SeriesRules:
    """How DICOM files become volumes (see ``open_series``)."""

    min_slices: int = 3
    uneven: str = "refuse"


def scan_header(root: str, salt: bytes, file: tuple[str, int, int]) -> dict:
    """Say what a file is and to which series it belongs; nothing that is wrong with it raises.

    Args:
        root: the folder.
        salt: secret for the identifiers.
        file: relative path, bytes and modification time in ns.

    Returns:
        A row for ``FILE_SCHEMA``; status is ``"ok"`` for a file that may hold slices or volumes, ``"refused"``, or
        ``"ignored"`` for a file that is no image and does not claim to be one.
    """
    row = refused_file(file, "")
    path = Path(root, file[0])
    try:
        kind = row["kind"] = "itk" if path.suffix.lower() in ITK_SUFFIXES else sniff_kind(path)
        if kind is None:
            return row | {"status": IGNORED, "reason": None}
        if kind == "dicom":
            with quiet_pydicom():
                identifiers = dicom_identifiers(read_dicom(path, identifiers_only=True))
            row |= hashed_identifiers(identifiers, salt)
            row["group"] = hash_identifier("\0".join(identifiers.values()), salt, "group")
        elif kind not in ("nifti", "itk"):
            return row | {"reason": f"a 2D image ({kind.upper()}), not a volume"}
    except UnreadableImageError as error:
        return row | {"reason": error.reason}
    except PermissionError:
        return row | {"reason": "no permission to read the file"}
    except OSError as error:
        return row | {"reason": f"the file could not be read ({error.strerror or type(error).__name__})"}
    except Exception as error:
        # Headers are hostile: whatever else goes wrong belongs to this file only. The text may quote the header.
        return row | {"reason": f"unexpected {type(error).__name__} while reading"}
    return row | {"status": "ok", "reason": None}


def refused_file(file: tuple[str, int, int], reason: str) -> dict:
    """Row for ``FILE_SCHEMA`` of a file (path, bytes, modification time in ns) that cannot be used."""
    facts = dict(zip(("path", "bytes", "mtime_ns"), file, strict=True))
    return dict.fromkeys(FILE_SCHEMA.names) | facts | {"status": "refused", "reason": reason}


def make_units(rows: Iterable[Mapping[str, Any]], rules: SeriesRules) -> list[Unit]:
    """Group the usable files of ``scan_header`` into what is read together."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    beside: dict[str, list[tuple[str, int, int]]] = {}  # files of one name, for headers whose data is another file
    for row in rows:
        if row["status"] == "ok":
            groups.setdefault(f"series {row['group']}" if row["group"] else row["path"], []).append(row)
        beside.setdefault(_stem(row["path"]), []).append((row["path"], row["bytes"], row["mtime_ns"]))
    units = []
    for name, members in groups.items():
        files = tuple(sorted((row["path"], row["bytes"], row["mtime_ns"]) for row in members))
        first = members[0]
        seen = sorted(beside[_stem(name)]) if name.lower().endswith(_DETACHED) else files
        digest = hashlib.blake2b(repr((seen, rules)).encode(), digest_size=16).hexdigest()
        identity = {key: first[key] for key in ("patient", "study", "series")}
        units.append(Unit(name, digest, first["kind"], files, identity))
    return units


def _stem(path: str) -> str:
    """Path without the ending of the name, whatever dots are in it."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + name.partition(".")[0]


def scan_unit(root: str, rules: SeriesRules, unit: Unit) -> dict:
    """Read a unit to rows of the index, one a volume or set of refused files; nothing that is wrong with it raises.

    Returns:
        A row for ``UNIT_SCHEMA``; its ``rows`` are in the order of ``open_volumes``. Their ``path`` is the one file, or
        the folder that holds all files: several may have the same.
    """
    paths = [Path(root, file) for file, _, _ in unit.files]
    try:
        if unit.kind == "dicom":
            found = open_series(paths, min_slices=rules.min_slices, uneven=rules.uneven)
        else:
            found = open_itk_volumes(paths[0]) if unit.kind == "itk" else open_nifti_volumes(paths[0], keep_open=True)
    except Exception as error:
        return refused_unit(unit, _reason(error))
    facts = dict(zip(paths, unit.files, strict=True))
    rows = []
    for opened, (files, place) in zip(found.volumes, _places(found, paths), strict=True):
        row = _row(unit, [facts[path] for path in files]) | {"volume": place, **_geometry(opened)}
        row["path"] = _place_of([facts[path][0] for path in opened.paths])
        if unit.kind == "dicom":
            row |= {"min_slices": rules.min_slices, "uneven": rules.uneven}
        rows.append(row | _contents(opened))
    for refused, reason in _merged(found.refused):
        rows.append(_row(unit, [facts[path] for path in refused]) | {"status": "refused", "reason": reason})
    fault = next((row["reason"] for row in rows if row["status"] != "ok"), None)
    return _record(unit, rows, fault)


def refused_unit(unit: Unit, reason: str) -> dict:
    """Row for ``UNIT_SCHEMA`` of a unit that cannot be used at all."""
    return _record(unit, [_row(unit, unit.files) | {"status": "refused", "reason": reason}], reason)


def _record(unit: Unit, rows: list[dict], fault: str | None) -> dict:
    status = "ok" if fault is None else "refused"
    return {"path": unit.path, "stamp": unit.stamp, "status": status, "reason": fault, "rows": rows}


def _row(unit: Unit, files: Iterable[tuple[str, int, int]]) -> dict:
    """What is known of some files of a unit before they are read."""
    names, sizes, times = zip(*sorted(files), strict=True)
    facts = {"path": _place_of(names), "files": list(names), "bytes": sum(sizes), "mtime_ns": max(times)}
    return dict.fromkeys(VOLUME_SCHEMA.names) | facts | unit.identity | {"kind": unit.kind}


def _place_of(names: Sequence[str]) -> str:
    """The file, or of several the folder that holds them all, ``"."`` for the indexed folder itself."""
    if len(names) == 1:
        return names[0]
    parts = [PurePosixPath(name).parent.parts for name in names]
    shared = takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))
    return PurePosixPath(*(level[0] for level in shared)).as_posix()


def _places(found: FoundVolumes, all_files: list[Path]) -> list[tuple[Iterable[Path], int]]:
    """For each volume the fewest files that surely give it when they are opened alone, and its place among theirs.

    Volumes that share a file (entries of a fourth axis, frames of one file) come out together, in an order that other
    files may decide: for them it is all files.
    """
    uses = Counter(path for opened in found.volumes for path in opened.paths)
    return [
        (opened.paths, 0) if all(uses[path] == 1 for path in opened.paths) else (all_files, place)
        for place, opened in enumerate(found.volumes)
    ]


def _geometry(opened: OpenVolume) -> dict:
    """Columns that the headers fill."""
    volume = Volume(np.empty(0), opened.affine)
    oriented = opened.facts["oriented"]
    parted = (f"{name}={value}" for name, value in opened.facts["split_by"].items())
    return {
        **{name: opened.facts[name] for name in ("modality", "body_part", "unit", "oriented")},
        "shape": [int(side) for side in opened.shape],
        "spacing_mm": list(volume.spacing_mm),
        "orientation": volume.orientation if oriented else None,
        "affine": opened.affine.ravel().tolist(),
        "split_by": ", ".join(parted) or None,
    }


def _contents(opened: OpenVolume) -> dict:
    """Read a volume once: whether it can be used, and the hash of its values."""
    try:
        volume = opened.read()
        if volume.array.min() == volume.array.max():
            raise UnreadableImageError("all its voxels have the same value")
        if opened.facts["oriented"]:
            volume = volume.to_orientation(HASHED_ORIENTATION)
        return {"content_hash": content_hash(volume.array), "status": "ok", "reason": None}
    except Exception as error:
        return {"status": "refused", "reason": _reason(error)}


def _reason(error: Exception) -> str:
    """Why something cannot be read, without a word of its header."""
    if isinstance(error, UnreadableImageError):
        return error.reason
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, OSError):
        return f"the file could not be read ({error.strerror or type(error).__name__})"
    return f"unexpected {type(error).__name__} while reading"


def _merged(refused: list[Refusal]) -> list[tuple[list[Path], str]]:
    """Refused files with their reason, those of one reason and folder together."""
    sets: dict[tuple[str, Path], set[Path]] = {}
    for refusal in refused:
        reason = refusal.reason
        if refusal.culprit is not None and len(refusal.paths) > 1:
            reason += f" (see {refusal.culprit.name})"
        sets.setdefault((reason, refusal.paths[0].parent), set()).update(refusal.paths)
    return [(sorted(paths), reason) for (reason, _), paths in sets.items()]
