"""Folders of arrays that stand for images: an index of them, and a reader whose ranges are known."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from monai_ssl.data import UnreadableImageError

# Bits by the first letters of a file's name; the values are whole numbers from 0.
BITS = {"byte": 8, "deep": 12, "full": 16}


def read_array(path, frame_rule="middle", crop_borders=False):
    """A reader: ``bad*`` is refused, ``byte*``, ``deep*`` and ``full*`` have 8, 12 and 16 bits, ``part*`` fractions."""
    name = Path(path).name
    if name.startswith("bad"):
        raise UnreadableImageError("made to be refused", path)
    image = np.load(path).astype(np.float32)
    bits = BITS.get(name[:4])
    high = 1.0 if bits is None else float(2**bits - 1)
    spacing = (0.2,) * image.ndim if "spaced" in name else None
    return image, {"value_range": (0.0, high), "value_range_source": "bits_stored", "pixel_spacing_mm": spacing}


def read_array_slowly(path, **options):
    time.sleep(0.05)
    return read_array(path, **options)


def read_array_or_crash(path, **options):
    if Path(path).name.startswith("crash"):
        os._exit(1)
    return read_array(path, **options)


def random_array(shape, bits=12, seed=0, dtype=np.uint16) -> np.ndarray:
    """Smooth, with noise in the lowest bits, using the whole range."""
    rng = np.random.default_rng([seed, *shape])
    ramp = sum(np.linspace(0, 1, side).reshape([-1 if a == axis else 1 for a in range(len(shape))])
               for axis, side in enumerate(shape)) / len(shape)  # fmt: skip
    values = np.clip((ramp + rng.normal(0, 0.01, shape)) * (2**bits - 1), 0, 2**bits - 1)
    values = np.rint(values).astype(dtype)
    values.flat[0], values.flat[-1] = 0, 2**bits - 1
    return values


def write_arrays(folder: Path, arrays: dict[str, np.ndarray], **columns) -> pa.Table:
    """Write arrays as ``<name>.npy`` and return an index of them with further columns."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        np.save(path, array)
        facts = path.stat()
        content = hashlib.md5(array.tobytes()).hexdigest()
        rows.append(
            {"path": path.name, "bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns, "content_hash": content}
            | {"status": "ok", "reason": None}
        )
    schema = [("path", pa.string()), ("bytes", pa.int64()), ("mtime_ns", pa.int64()), ("content_hash", pa.string())]
    table = pa.Table.from_pylist(rows, schema=pa.schema([*schema, ("status", pa.string()), ("reason", pa.string())]))
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return table


def many_arrays(count: int, shape=(40, 30), prefix="deep") -> dict[str, np.ndarray]:
    return {f"{prefix}{i:03d}": random_array(shape, seed=i) for i in range(count)}
