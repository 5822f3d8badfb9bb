# SPDX-License-Identifier: Apache-2.0
"""Prepare: decode every image of an index once and put it into a store, restartably and in several processes."""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.files import PARTIAL, folder_lock, is_disk_full, write_whole
from monai_ssl.data.intensity import IntensityPolicy, RadiographIntensity
from monai_ssl.data.items import encode, item_facts, shrink, shrunk_shape, write_item
from monai_ssl.data.parallel import WorkerCrash, crash_safe_map
from monai_ssl.data.readers import read_radiograph
from monai_ssl.data.scan import CRASHED
from monai_ssl.data.store import FACTS_NAME, STORE_SCHEMA, TABLE_NAME, ImageStore, megabytes, read_facts
from monai_ssl.data.tables import read_table, require_columns, write_table

logger = logging.getLogger(__name__)

# Raise it when the same file and recipe would come out different.
STORE_FORMAT = 1
_DISK_FULL = "disk full"

Reader = Callable[..., tuple[np.ndarray, dict]]


@dataclass(frozen=True)
class _Job:
    """What is the same for all images of a run; goes to the workers."""

    root: Path
    folder: Path
    max_side: int
    policy: IntensityPolicy
    reader: Reader
    options: dict[str, Any]


def prepare_store(
    table_or_index_path: pa.Table | str | Path,
    root: str | Path,
    store_dir: str | Path,
    *,
    max_side: int = 512,
    policy: IntensityPolicy | None = None,
    frame_rule: str | int = "middle",
    crop_borders: bool = False,
    num_workers: int | None = None,
    max_refused_fraction: float = 0.5,
    reader: Reader = read_radiograph,
    progress: bool = True,
) -> ImageStore:
    """Decode the images of an index once into a store; run it again to go on after an interruption.

    Each image keeps its aspect ratio; one whose longest side is above ``max_side`` is shrunk by area averaging in
    floating point, none is enlarged. Images that are there already (same content, same recipe) are kept as they are.
    With another recipe (size, policy, reader) the images go to another subfolder, never among the old ones.

    A file that cannot be used becomes a refused row with a reason. Two processes that prepare the same folder at the
    same time take turns.

    Args:
        table_or_index_path: what ``build_index`` gave, or its file.
        root: the folder the index was made of.
        store_dir: folder for the store; it is made.
        max_side: longest side in pixels.
        policy: what becomes 0 and 1. Default: ``RadiographIntensity()``.
        frame_rule: which frame of a multi-frame image (see ``read_radiograph``).
        crop_borders: cut uniform borders off before shrinking.
        num_workers: processes; 0 works in this process. Default: all CPUs this process may use.
        max_refused_fraction: stop if more than this share of the images is refused while preparing.
        reader: called as ``reader(path, frame_rule=..., crop_borders=...)``; returns physical values, 2D or 3D, and
            ``meta`` for the policy (``pixel_spacing_mm`` is kept). It is known by its name: rename it if it changes.
        progress: show a progress bar with the time left, and a line at the end.

    Raises:
        FileNotFoundError: if the folder or the index is not there.
        ValueError: if the index lacks a column or holds no usable image, or an argument is out of range.
        RuntimeError: if too many images are refused, or the disk is full. What was prepared is kept.
    """
    table = _checked_index(table_or_index_path)
    root, store_dir = Path(root), Path(store_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder of images")
    if max_side < 1 or not 0 <= max_refused_fraction <= 1:
        raise ValueError(f"max_side is {max_side} (1 or more), max_refused_fraction {max_refused_fraction} (0 to 1)")
    policy = RadiographIntensity() if policy is None else policy
    options = {"frame_rule": frame_rule, "crop_borders": crop_borders}
    recipe = {
        "format": STORE_FORMAT,
        "max_side": max_side,
        "policy": policy.to_dict(),
        "reader": {"name": getattr(reader, "__qualname__", type(reader).__qualname__), **options},
    }
    recipe_id = hashlib.blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=6).hexdigest()
    try:
        store_dir.mkdir(parents=True, exist_ok=True)
        with folder_lock(store_dir, partial(_say, f"{store_dir}: another process prepares it; waiting", progress)):
            _announce_change(store_dir, recipe, recipe_id, progress)
            items = f"items-{recipe_id}"
            job = _Job(root, store_dir / items, max_side, policy, reader, options)
            results = _run(job, table, num_workers, max_refused_fraction, progress)
            _finish(table, results, items, store_dir, recipe, recipe_id)
    except OSError as error:
        if is_disk_full(error):
            raise _disk_full(store_dir) from error
        raise
    return ImageStore(store_dir)


def _checked_index(source: pa.Table | str | Path) -> pa.Table:
    table = source if isinstance(source, pa.Table) else read_table(source)
    require_columns(table, ["path", "status", "reason", "content_hash", "bytes", "mtime_ns"], "the index")
    table = table.drop_columns([name for name in STORE_SCHEMA.names if name in table.column_names])
    hashes = [
        h for h, s in zip(table["content_hash"].to_pylist(), table["status"].to_pylist(), strict=True) if s == "ok"
    ]
    if not hashes:
        raise ValueError("the index holds no usable image (status 'ok'); look at its column 'reason'")
    if not all(isinstance(h, str) and re.fullmatch("[0-9a-f]{8,128}", h) for h in hashes):
        raise ValueError("the index has usable rows without a content_hash; build it again")
    return table


def _announce_change(store_dir: Path, recipe: dict, recipe_id: str, progress: bool) -> None:
    """Tell that the recipe differs from that of the finished store, and what in it."""
    before = read_facts(store_dir)
    if before is None or before["recipe_id"] == recipe_id:
        return
    old = before["recipe"]
    changed = [f"{key} {old.get(key)} -> {value}" for key, value in recipe.items() if old.get(key) != value]
    _say(
        f"{store_dir} was prepared differently ({'; '.join(changed)}). The images are prepared anew in "
        f"items-{recipe_id}; the old ones stay in items-{before['recipe_id']} until you delete that folder",
        progress,
    )


def _run(job: _Job, table: pa.Table, num_workers: int | None, max_refused: float, progress: bool) -> dict[str, dict]:
    """Prepare what is missing; returns for each item name what the worker said."""
    tasks = list({_item_name(row): row for row in reversed(_usable(table))}.values())[::-1]
    names = [_item_name(row) for row in tasks]
    for name in {name[:2] for name in names}:
        (job.folder / name).mkdir(parents=True, exist_ok=True)
    for rest in job.folder.glob(f"*/.*{PARTIAL}"):  # left by a killed run
        rest.unlink(missing_ok=True)

    results: dict[str, dict] = {}
    refused: dict[str, str] = {}
    started = time.monotonic()
    work = crash_safe_map(partial(_prepare_one, job), tasks, num_workers)
    try:
        with tqdm(total=len(tasks), desc="prepare", unit="image", disable=None if progress else True) as bar:
            for position, result in work:
                result = {"reason": CRASHED} if isinstance(result, WorkerCrash) else result
                if result.get("reason") == _DISK_FULL:
                    raise _disk_full(job.folder)
                results[names[position]] = result
                if "reason" in result:
                    refused[tasks[position]["path"]] = result["reason"]
                    if len(refused) > max_refused * len(tasks):
                        raise _too_many(job.root, refused, len(tasks), max_refused)
                bar.update()
    except KeyboardInterrupt:
        _say(
            f"interrupted: {len(results)} of {len(tasks)} images are prepared; the same command goes on from there",
            True,
        )
        raise
    finally:
        work.close()
    if len(refused) == len(tasks):
        raise _too_many(job.root, refused, len(tasks), max_refused)
    _say(_summary(tasks, names, results, len(refused), time.monotonic() - started), progress)
    return results


def _prepare_one(job: _Job, row: dict[str, Any]) -> dict[str, Any]:
    """Make one item unless it is there; runs in a worker. Returns the item's facts, or a ``reason``."""
    target = job.folder / _item_name(row)
    try:
        return item_facts(target) | {"kept": True}
    except (FileNotFoundError, RuntimeError):
        pass  # not there, or cut short by a power failure: make it
    path = job.root / row["path"]
    try:
        status = path.stat()
        if (status.st_size, status.st_mtime_ns) != (row["bytes"], row["mtime_ns"]):
            return {"reason": "the file changed since it was indexed; build the index again"}
        image, meta = job.reader(path, **job.options)
        image = np.asarray(image, dtype=np.float32)
        limits = job.policy.limits(image, meta)
        shape = shrunk_shape(image.shape, job.max_side)
        stored, levels = encode(shrink(image, shape), limits)
    except UnreadableImageError as error:
        return {"reason": error.reason}
    except FileNotFoundError:
        return {"reason": "the file is gone since it was indexed; build the index again"}
    except MemoryError:
        return {"reason": "not enough memory to decode it"}
    except OSError as error:
        return {"reason": f"the file could not be read ({error.strerror or type(error).__name__})"}
    except Exception as error:
        # Whatever else goes wrong belongs to this file only. The error's text may quote the header.
        return {"reason": f"unexpected {type(error).__name__} while reading"}
    spacing = meta.get("pixel_spacing_mm")
    if spacing is not None:
        spacing = [float(mm) * old / new for mm, old, new in zip(spacing, image.shape, shape, strict=True)]
    try:
        write_item(target, stored, levels, limits=[float(limit) for limit in limits], spacing_mm=spacing)
    except OSError as error:
        if is_disk_full(error):
            return {"reason": _DISK_FULL}
        raise
    return item_facts(target)


def _item_name(row: dict[str, Any]) -> str:
    """File of a row below the items' folder. The size tells apart equal pixels with different headers (windows)."""
    return f"{row['content_hash'][:2]}/{row['content_hash']}-{row['bytes'] or 0:x}.b2nd"


def _usable(table: pa.Table) -> list[dict[str, Any]]:
    rows = table.select(["path", "status", "content_hash", "bytes", "mtime_ns"]).to_pylist()
    return [row for row in rows if row["status"] == "ok"]


def _finish(
    table: pa.Table, results: dict[str, dict], items: str, store_dir: Path, recipe: dict, recipe_id: str
) -> None:
    """Write the table and then the facts; readers see the old store until both are there."""
    columns: dict[str, list] = {name: [] for name in ("status", "reason", *STORE_SCHEMA.names)}
    for row in table.select(["path", "status", "reason", "content_hash", "bytes"]).to_pylist():
        name = _item_name(row) if row["status"] == "ok" else None
        facts = results[name] if name else {"reason": row["reason"]}
        reason = facts.get("reason")
        columns["status"].append(row["status"] if name is None else "refused" if "reason" in facts else "ok")
        columns["reason"].append(reason)
        columns["store_item"].append(None if "reason" in facts else f"{items}/{name}")
        for column in STORE_SCHEMA.names[1:]:
            columns[column].append(facts.get(column.removeprefix("store_")))
    for name in ("status", "reason"):
        position = table.schema.get_field_index(name)
        table = table.set_column(position, name, pa.array(columns[name], pa.string()))
    for field in STORE_SCHEMA:
        table = table.append_column(field, pa.array(columns[field.name], field.type))
    write_table(table.replace_schema_metadata({"recipe_id": recipe_id}), store_dir / TABLE_NAME)
    facts = {"recipe_id": recipe_id, "recipe": recipe, "images": columns["status"].count("ok")}
    write_whole(store_dir / FACTS_NAME, json.dumps(facts, indent=2).encode())


def _summary(tasks: list[dict], names: list[str], results: dict[str, dict], refused: int, seconds: float) -> str:
    done = [(row["bytes"] or 0, results[name]) for row, name in zip(tasks, names, strict=True)]
    done = [(source, facts) for source, facts in done if "reason" not in facts]
    kept = sum(facts.get("kept", False) for _, facts in done)
    stored, source = sum(facts["bytes"] for _, facts in done), sum(source for source, _ in done)
    ratio = f" ({stored / source:.2f} of the sources' {megabytes(source)})" if source else ""
    made = len(done) - kept
    return (
        f"prepared {made} images in {seconds:.1f} s ({made / max(seconds, 1e-9):.0f} a second), "
        f"kept {kept} that were there, refused {refused}; {megabytes(stored)} on disk{ratio}"
    )


def _too_many(root: Path, refused: dict[str, str], total: int, limit: float) -> RuntimeError:
    reasons = collections.Counter(refused.values()).most_common(4)
    examples = ", ".join(list(refused)[:3])
    return RuntimeError(
        f"{root}: {len(refused)} of {total} images were refused (allowed: {limit:.0%}): "
        + "; ".join(f"{count} x {reason}" for reason, count in reasons)
        + f". For instance {examples}. Check the folder, or raise max_refused_fraction"
    )


def _disk_full(folder: Path) -> RuntimeError:
    return RuntimeError(
        f"{folder}: the disk is full. What was prepared is kept and whole; "
        "free some space and run the same command again"
    )


def _say(message: str, show: bool) -> None:
    """Log a message; where nobody set logging up, print it if wanted."""
    if logger.isEnabledFor(logging.INFO):
        logger.info(message)
    elif show:
        print(message, file=sys.stderr)
