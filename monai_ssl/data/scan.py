# SPDX-License-Identifier: Apache-2.0
"""One file to one row of the index: what a worker process does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.hashing import content_hash, hash_identifier, perceptual_hash, stream_hash
from monai_ssl.data.nifti_slices import stream_blocks
from monai_ssl.data.readers import OpenRadiograph, claimed_kind, open_radiograph, sniff_kind

# Raise it when rows of unchanged files would come out different.
SCAN_VERSION = "1"
IGNORED = "ignored"
CRASHED = "the decoder crashed or was killed on this file"

# What anonymisers write for a patient number. One hash for them all would make all patients one.
_PLACEHOLDERS = frozenset(
    {"anon", "anonymous", "anonymized", "anonymised", "deidentified", "de-identified", "removed", "unknown"}
    | {"none", "null", "n/a", "na", "patient", "patientid", "test"}
)

FACTS_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("kind", pa.string()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("modality", pa.string()),
        ("body_part", pa.string()),
        ("view", pa.string()),
        ("photometric", pa.string()),
        ("transfer_syntax", pa.string()),
        ("bits_stored", pa.int32()),
        ("rows", pa.int32()),
        ("columns", pa.int32()),
        ("frames", pa.int32()),
        ("pixel_spacing_mm", pa.list_(pa.float32())),
        ("patient", pa.string()),
        ("study", pa.string()),
        ("series", pa.string()),
        ("content_hash", pa.string()),
        ("perceptual_hash", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)


def scan_file(root: str, salt: bytes, file: tuple[str, int, int]) -> dict:
    """Read one file to a row of the index; nothing that is wrong with it raises.

    Args:
        root: the folder.
        salt: secret for the identifiers.
        file: relative path, bytes and modification time in ns.

    Returns:
        A row for ``FACTS_SCHEMA``; status is ``"ok"``, ``"refused"``, or ``"ignored"`` for a file that is no image and
        does not claim to be one.
    """
    row = refused_row(file, "")
    path = Path(root, file[0])
    try:
        row["kind"] = claimed_kind(path)
        row["kind"] = sniff_kind(path)
        if row["kind"] is None:
            return row | {"status": IGNORED, "reason": None}
        radiograph = open_radiograph(path)
        row |= {name: value for name, value in radiograph.facts.items() if name in row and _fits(value)}
        row |= hashed_identifiers(radiograph.identifiers, salt)
        row |= _hashes(radiograph)
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


def hashed_identifiers(identifiers: dict[str, str], salt: bytes) -> dict[str, str | None]:
    """Salted hashes of raw identifiers, None for what anonymisers write instead of one.

    Args:
        identifiers: by purpose: ``"patient"``, ``"study"``, ``"series"``.
        salt: the secret.
    """
    return {
        name: None if text.lower() in _PLACEHOLDERS else hash_identifier(text, salt, name)
        for name, text in identifiers.items()
    }


def refused_row(file: tuple[str, int, int], reason: str) -> dict:
    """Row of a file (path, bytes, modification time in ns) that cannot be used."""
    facts = dict(zip(("path", "bytes", "mtime_ns"), file, strict=True))
    return dict.fromkeys(FACTS_SCHEMA.names) | facts | {"status": "refused", "reason": reason}


def _fits(value: object) -> bool:
    """Tell whether a fact fits its column: a broken header may claim any number of frames."""
    return not isinstance(value, int) or abs(value) < 1 << 31


def _hashes(radiograph: OpenRadiograph) -> dict:
    """Content and perceptual hash; a NIfTI volume is hashed as a whole and has no perceptual hash."""
    if radiograph.kind == "nifti" and radiograph.facts["frames"] > 1:
        total = 0

        def counted():
            nonlocal total
            for block in stream_blocks(radiograph.path):
                total += len(block)
                yield block

        digest = stream_hash(counted())
        stored = radiograph.source.dataobj
        expected = int(stored.offset) + int(np.prod(stored.shape, dtype=np.int64)) * stored.dtype.itemsize
        if total < expected:
            raise UnreadableImageError(f"data shorter than the header says ({total} of {expected} bytes)")
        return {"content_hash": digest}
    values, meta = radiograph.decode()
    low, high = meta["value_range"]
    return {
        "content_hash": content_hash(values),
        "perceptual_hash": perceptual_hash(np.clip((values - low) / (high - low), 0.0, 1.0)),
        "pixel_spacing_mm": meta["pixel_spacing_mm"],
    }
