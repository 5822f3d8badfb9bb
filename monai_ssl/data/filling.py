# SPDX-License-Identifier: Apache-2.0
"""The engine that fills a store: restartable, in several processes, one at a time in a folder, faults counted.

What an item is made of, and how, is the business of an ``ItemMaker``: images in ``monai_ssl.data.prepare``, volumes
with their label maps in ``monai_ssl.data.volume_items``.
"""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import re
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from tqdm.auto import tqdm

from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.files import PARTIAL, folder_lock, is_disk_full, write_whole
from monai_ssl.data.parallel import WorkerCrash, crash_safe_map
from monai_ssl.data.scan import CRASHED
from monai_ssl.data.store import (
    FACTS_NAME,
    STORE_SCHEMA,
    TABLE_NAME,
    VOLUME_STORE_SCHEMA,
    ImageStore,
    megabytes,
    read_facts,
)
from monai_ssl.data.tables import read_table, require_columns, write_table

logger = logging.getLogger(__name__)

_DISK_FULL = "disk full"
_INDEX_COLUMNS = ("path", "status", "reason", "content_hash", "bytes", "mtime_ns")


class ItemMaker:
    """How one kind of item is named, read and written; goes to the workers, so it must be picklable.

    Attributes:
        columns: columns of the index it needs beside ``path``, ``content_hash``, ``bytes`` and ``mtime_ns``.
        schema: columns of the store's table it gives; ``store_item`` comes first, and names that end in ``_item`` are
            files relative to the items' folder.
        noun: what an item is called.
        batch: items a worker gets at once.
    """

    columns: ClassVar[tuple[str, ...]] = ()
    schema: ClassVar[pa.Schema] = STORE_SCHEMA
    noun: ClassVar[str] = "image"
    batch: ClassVar[int] = 8

    def name(self, row: dict[str, Any]) -> str:
        """File of a row below the items' folder. Equal names mean equal items: all that decides goes into it."""
        raise NotImplementedError

    def facts(self, target: Path, row: dict[str, Any]) -> dict[str, Any]:
        """Read what is known of a finished item, or a ``reason`` to refuse it.

        Raises:
            FileNotFoundError, RuntimeError: if it is not there, or not whole.
        """
        raise NotImplementedError

    def read(self, row: dict[str, Any]) -> Any:
        """Decode and convert the source of a row.

        Raises:
            UnreadableImageError: if it is not usable; other errors count as refusals too.
        """
        raise NotImplementedError

    def write(self, target: Path, content: Any) -> None:
        """Write what ``read`` gave; ``facts`` finds it from then on."""
        raise NotImplementedError


def fill_store(
    maker: ItemMaker,
    source: pa.Table | str | Path,
    root: str | Path,
    store_dir: str | Path,
    *,
    recipe: dict[str, Any],
    num_workers: int | None,
    max_refused_fraction: float,
    progress: bool,
) -> ImageStore:
    """Make the items of an index that are missing, and write the store's table and facts.

    Args:
        maker: what to make.
        source: the index, or its file.
        root: folder of the sources.
        store_dir: folder of the store; it is made.
        recipe: JSON values that say how items are made; another recipe has a folder of its own.
        num_workers, max_refused_fraction, progress: see ``prepare_store``.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: see ``prepare_store``.
    """
    table = _checked_index(source, maker)
    root, store_dir = Path(root), Path(store_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder of images")
    if not 0 <= max_refused_fraction <= 1:
        raise ValueError(f"max_refused_fraction is {max_refused_fraction}; use 0 to 1")
    recipe_id = hashlib.blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=6).hexdigest()
    try:
        store_dir.mkdir(parents=True, exist_ok=True)
        with folder_lock(store_dir, partial(_say, f"{store_dir}: another process prepares it; waiting", progress)):
            _announce_change(store_dir, recipe, recipe_id, progress)
            items = f"items-{recipe_id}"
            rows = table.select([*_INDEX_COLUMNS, *maker.columns]).to_pylist()
            names = [maker.name(row) if row["status"] == "ok" else None for row in rows]
            results = _run(maker, root, store_dir / items, rows, names, num_workers, max_refused_fraction, progress)
            _finish(maker, table, rows, names, results, items, store_dir, recipe, recipe_id)
    except OSError as error:
        if is_disk_full(error):
            raise _disk_full(store_dir) from error
        raise
    return ImageStore(store_dir)


def _checked_index(source: pa.Table | str | Path, maker: ItemMaker) -> pa.Table:
    table = source if isinstance(source, pa.Table) else read_table(source)
    require_columns(table, [*_INDEX_COLUMNS, *maker.columns], "the index")
    ours = [*STORE_SCHEMA.names, *VOLUME_STORE_SCHEMA.names]
    table = table.drop_columns([name for name in ours if name in table.column_names])
    hashes = [
        h for h, s in zip(table["content_hash"].to_pylist(), table["status"].to_pylist(), strict=True) if s == "ok"
    ]
    if not hashes:
        raise ValueError(f"the index holds no usable {maker.noun} (status 'ok'); look at its column 'reason'")
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


def _run(
    maker: ItemMaker,
    root: Path,
    folder: Path,
    rows: list[dict[str, Any]],
    names: list[str | None],
    num_workers: int | None,
    max_refused: float,
    progress: bool,
) -> dict[str, dict]:
    """Make what is missing; returns for each item name what the worker said."""
    tasks: dict[str, dict[str, Any]] = {}
    for name, row in zip(names, rows, strict=True):
        if name is not None:
            tasks.setdefault(name, row)  # rows of equal content share an item
    for part in {name[:2] for name in tasks}:
        (folder / part).mkdir(parents=True, exist_ok=True)
    for rest in folder.glob(f"*/.*{PARTIAL}"):  # left by a killed run
        rest.unlink(missing_ok=True)

    results: dict[str, dict] = {}
    refused: dict[str, str] = {}
    started = time.monotonic()
    todo = list(tasks)
    work = crash_safe_map(
        partial(_make_one, maker), [(folder / name, tasks[name]) for name in todo], num_workers, maker.batch
    )
    try:
        with tqdm(total=len(todo), desc="prepare", unit=maker.noun, disable=None if progress else True) as bar:
            for position, result in work:
                result = {"reason": CRASHED} if isinstance(result, WorkerCrash) else result
                if result.get("reason") == _DISK_FULL:
                    raise _disk_full(folder)
                name = todo[position]
                results[name] = result
                if "reason" in result:
                    refused[tasks[name]["path"]] = result["reason"]
                    if len(refused) > max_refused * len(todo):
                        raise _too_many(maker, root, refused, len(todo), max_refused)
                bar.update()
    except KeyboardInterrupt:
        _say(
            f"interrupted: {len(results)} of {len(todo)} {maker.noun}s are prepared; "
            "the same command goes on from there",
            True,
        )
        raise
    finally:
        work.close()
    if len(refused) == len(todo):
        raise _too_many(maker, root, refused, len(todo), max_refused)
    _say(_summary(maker, tasks, results, len(refused), time.monotonic() - started), progress)
    return results


def _make_one(maker: ItemMaker, task: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    """Make one item unless it is there; runs in a worker. Returns the item's facts, or a ``reason``."""
    target, row = task
    try:
        return maker.facts(target, row) | {"kept": True}
    except (FileNotFoundError, RuntimeError):
        pass  # not there, or cut short by a power failure: make it
    try:
        content = maker.read(row)
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
    try:
        maker.write(target, content)
    except OSError as error:
        if is_disk_full(error):
            return {"reason": _DISK_FULL}
        raise
    return maker.facts(target, row)


def _finish(
    maker: ItemMaker,
    table: pa.Table,
    rows: list[dict[str, Any]],
    names: list[str | None],
    results: dict[str, dict],
    items: str,
    store_dir: Path,
    recipe: dict,
    recipe_id: str,
) -> None:
    """Write the table and then the facts; readers see the old store until both are there."""
    columns: dict[str, list] = {name: [] for name in ("status", "reason", *maker.schema.names)}
    for row, name in zip(rows, names, strict=True):
        facts = {"reason": row["reason"]} if name is None else results[name] | {"item": name}
        refused = "reason" in facts
        columns["status"].append(row["status"] if name is None else "refused" if refused else "ok")
        columns["reason"].append(facts.get("reason"))
        for column in maker.schema.names:
            value = None if refused else facts.get(column.removeprefix("store_"))
            columns[column].append(f"{items}/{value}" if value is not None and column.endswith("_item") else value)
    for name in ("status", "reason"):
        position = table.schema.get_field_index(name)
        table = table.set_column(position, name, pa.array(columns[name], pa.string()))
    for field in maker.schema:
        table = table.append_column(field, pa.array(columns[field.name], field.type))
    write_table(table.replace_schema_metadata({"recipe_id": recipe_id}), store_dir / TABLE_NAME)
    facts = {"recipe_id": recipe_id, "recipe": recipe, "images": columns["status"].count("ok")}
    write_whole(store_dir / FACTS_NAME, json.dumps(facts, indent=2).encode())


def _summary(maker: ItemMaker, tasks: dict[str, dict], results: dict[str, dict], refused: int, seconds: float) -> str:
    done = [(row["bytes"] or 0, results[name]) for name, row in tasks.items() if "reason" not in results[name]]
    kept = sum(facts.get("kept", False) for _, facts in done)
    stored, source = sum(facts["bytes"] for _, facts in done), sum(source for source, _ in done)
    ratio = f" ({stored / source:.2f} of the sources' {megabytes(source)})" if source else ""
    made = len(done) - kept
    return (
        f"prepared {made} {maker.noun}s in {seconds:.1f} s ({made / max(seconds, 1e-9):.3g} a second), "
        f"kept {kept} that were there, refused {refused}; {megabytes(stored)} on disk{ratio}"
    )


def _too_many(maker: ItemMaker, root: Path, refused: dict[str, str], total: int, limit: float) -> RuntimeError:
    reasons = collections.Counter(refused.values()).most_common(4)
    examples = ", ".join(list(refused)[:3])
    return RuntimeError(
        f"{root}: {len(refused)} of {total} {maker.noun}s were refused (allowed: {limit:.0%}): "
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
