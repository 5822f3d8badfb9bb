# SPDX-License-Identifier: Apache-2.0
"""The index: every image of a folder with what may be known about it, and every refused file with its reason."""

from __future__ import annotations

import collections
import logging
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from tqdm.auto import tqdm

from monai_ssl.data.hashing import load_salt
from monai_ssl.data.labels import find_labels_file, join_labels, read_labels
from monai_ssl.data.parallel import WorkerCrash, crash_safe_map
from monai_ssl.data.scan import CRASHED, FACTS_SCHEMA, IGNORED, refused_row, scan_file
from monai_ssl.data.scan_cache import ScanCache, is_utf8, scan_folder
from monai_ssl.data.tables import write_table

logger = logging.getLogger(__name__)

Refuse = Callable[[tuple, str], dict]  # an item and a reason to a row

# Files that are never opened; everything else is sniffed, since DICOM files come with any suffix or none.
_NEVER_IMAGES = frozenset(
    (*(".csv", ".tsv", ".txt", ".md", ".json", ".yaml", ".yml", ".xml", ".html", ".parquet", ".xlsx", ".xls", ".pdf"),)
    + (*(".py", ".ipynb", ".log", ".zip", ".tar", ".npy", ".npz", ".pt", ".pth", ".safetensors", ".b2nd", ".salt"),)
)
_FLUSH_FILES, _FLUSH_SECONDS = 2000, 20.0


def build_index(
    root: str | Path,
    output: str | Path | None = None,
    *,
    num_workers: int | None = None,
    salt: str | bytes | None = None,
    labels: str | Path | None = None,
    progress: bool = True,
) -> pa.Table:
    """Scan a folder of images into a table; with ``output``, a second scan only reads files that changed.

    Every file is opened, decoded once and hashed. A file that cannot be used becomes a row with status ``"refused"``
    and a reason; files that are no images (text, tables) are counted and left out. Hidden files and folders are
    skipped. Names, dates and free text of headers are never read; patient, study and series identifiers appear only
    as salted hashes.

    Args:
        root: folder, searched with all its subfolders.
        output: Parquet file to write. Beside it stand ``<stem>.salt`` (mode 0600) and the folder ``<stem>.scan`` with
            what the scan knows already; an interrupted scan goes on from there. None writes nothing.
        num_workers: processes; 0 works in this process. Default: all CPUs this process may use.
        salt: secret for the identifiers; default: the salt file beside ``output``, made at the first scan (without
            ``output``: random, so that the hashes cannot be compared with those of another call).
        labels: CSV or Parquet with a column ``file`` to join (see ``join_labels``). Default: such a file at the top of
            ``root``, if there is exactly one.
        progress: show a progress bar with the time left, if on a terminal.

    Returns:
        Table sorted by path with the columns of ``FACTS_SCHEMA``, ``group_id`` and the labels' columns.

    Raises:
        FileNotFoundError: if ``root`` is no folder.
        ValueError: if it holds no image, or the labels contradict themselves or the folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder of images")
    labels_file = Path(labels) if labels is not None else find_labels_file(root)
    label_table = None if labels_file is None else read_labels(labels_file)  # faults show before the long scan

    output = None if output is None else Path(output)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    salt = index_salt(salt, output)
    files, unopened = list_files(root, skip=output)
    cache = ScanCache(output, salt)
    rows, todo = cache.split(files)
    read = partial(scan_file, str(root), salt)
    scan_items(read, refused_row, utf8_only(todo, refused_row, rows), rows, cache, num_workers, progress)
    cache.finish(rows, changed=bool(todo))

    facts = pa.Table.from_pylist([rows[path] for path in sorted(rows)], schema=FACTS_SCHEMA)
    ignored = unopened + collections.Counter(
        Path(path).suffix.lower() or "no suffix" for path, row in rows.items() if row["status"] == IGNORED
    )
    facts = facts.filter(pc.not_equal(facts["status"], IGNORED))
    if not len(facts):
        raise ValueError(
            f"{root}: no images among its {len(files) + unopened.total()} files{counts_text(ignored)}. "
            "Looked for DICOM (any name), PNG, JPEG, TIFF, BMP and NIfTI."
        )
    table = join_labels(facts, label_table, root, salt, labels_file)
    if output is not None:
        write_table(table, output)
    logger.info("%s: %s; read anew %d; left out %d files that are no images%s", root, _status(table), len(todo),
                ignored.total(), counts_text(ignored))  # fmt: skip
    return table


def list_files(root: str | Path, skip: Path | None = None) -> tuple[list[tuple[str, int, int]], collections.Counter]:
    """List the files below a folder that may be images, in the order of their paths.

    Links are followed, hidden files and folders are skipped.

    Args:
        root: the folder.
        skip: an index file whose own files (salt, scan folder) are left out.

    Returns:
        ``[(path relative to root with /, bytes, modification time in ns)]``, and the suffixes of the files that are
        certainly no images, counted.
    """
    found, unopened, seen = [], collections.Counter(), set()
    folders = [(str(root), "")]
    skipped = None if skip is None else str(scan_folder(skip).absolute())
    while folders:
        folder, prefix = folders.pop()
        try:
            facts = os.stat(folder)
            if (facts.st_dev, facts.st_ino) in seen or os.path.abspath(folder) == skipped:
                continue  # a link to a folder above would never end
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(folder) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
        except PermissionError:
            logger.warning("%s: no permission to read this folder; it is left out", folder)
            unopened["unreadable folder"] += 1
            continue
        for entry in visible:
            suffix = Path(entry.name).suffix.lower()
            if entry.is_dir():
                folders.append((entry.path, f"{prefix}{entry.name}/"))
            elif suffix in _NEVER_IMAGES:
                unopened[suffix] += 1
            elif entry.is_file():
                facts = entry.stat()
                found.append((f"{prefix}{entry.name}", facts.st_size, facts.st_mtime_ns))
            else:
                unopened["broken link or device"] += 1
    return sorted(found), unopened


def describe_index(table: pa.Table) -> str:
    """Say in a few lines what an index holds: images or volumes by kind, refused files by reason, patients, labels."""
    usable = table.filter(pc.equal(table["status"], "ok"))
    lines = [_status(table)]
    volumes = "volume" in table.column_names
    if volumes and len(usable):
        for name, unit in (("shape", " voxels (D x H x W)"), ("spacing_mm", " mm")):
            lines.append(f"  {name.partition('_')[0]}: {_ranges(usable[name].to_pylist())}{unit}")
        labelled = len(usable) - usable["label_map"].null_count
        lines += [f"  with a label map: {labelled}"] * bool(labelled)
    for name in ("kind", "modality", "unit", "orientation", "view", "split"):
        if name in table.column_names and (volumes or name != "unit"):
            counts = collections.Counter(str(value) for value in usable[name].to_pylist() if value is not None)
            if counts:
                lines.append(f"  {name}: {counts_text(counts)[2:-1]}")
    if "group_id" in table.column_names:
        lines.append(f"  patients or groups: {pc.count_distinct(usable['group_id']).as_py()}")
    refused = table.filter(pc.equal(table["status"], "refused"))
    for reason, count in collections.Counter(refused["reason"].to_pylist()).most_common(12):
        lines.append(f"  refused {count}: {reason}")
    return "\n".join(lines)


def utf8_only(todo: list[tuple], refuse: Refuse, rows: dict[str, dict]) -> list[tuple]:
    """Keep the files whose names are valid UTF-8; the others can be neither stored in a table nor joined with anything.

    Args:
        todo: files, the path first.
        refuse: makes a row of a file and a reason.
        rows: by path; the refused rows are added.
    """
    for path, *facts in todo:
        if not is_utf8(path):
            shown = path.encode("utf-8", "backslashreplace").decode()
            rows[shown] = refuse((shown, *facts), "the file name is not valid UTF-8")
    return [file for file in todo if is_utf8(file[0])]


def _ranges(rows: list[list[float]]) -> str:
    """Least, median and greatest of each axis.

    >>> _ranges([[1, 10], [2, 10], [4, 10]])
    '1-2-4 x 10'
    """
    axes = ((min(axis), statistics.median_low(axis), max(axis)) for axis in zip(*rows, strict=True))
    return " x ".join(f"{a:.3g}" if a == c else f"{a:.3g}-{b:.3g}-{c:.3g}" for a, b, c in axes)


def scan_items(
    read: Callable[[tuple], dict],
    refuse: Refuse,
    todo: list[tuple],
    rows: dict[str, dict],
    cache: ScanCache,
    num_workers: int | None,
    progress: bool,
    unit: str = "file",
    chunk_size: int = 8,
) -> None:
    """Read items to rows in several processes, keeping what is done every few seconds and when interrupted.

    Args:
        read: picklable; makes a row of an item.
        refuse: makes a row of an item and a reason: what happens to an item that a worker crashed on.
        todo: the items.
        rows: by path; what is read is added.
        cache: remembers the rows.
        num_workers, progress: see ``build_index``.
        unit: what the progress bar counts.
        chunk_size: items that a worker takes at once.
    """
    fresh: list[dict] = []
    flushed = time.monotonic()
    results = crash_safe_map(read, todo, num_workers, chunk_size)
    try:
        with tqdm(total=len(todo), desc="index", unit=unit, disable=None if progress else True) as bar:
            for position, row in results:
                row = refuse(todo[position], CRASHED) if isinstance(row, WorkerCrash) else row
                rows[row["path"]] = row
                fresh.append(row)
                bar.update()
                if len(fresh) >= _FLUSH_FILES or time.monotonic() - flushed > _FLUSH_SECONDS:
                    cache.add(fresh)
                    fresh, flushed = [], time.monotonic()
    finally:
        cache.add(fresh)


def index_salt(salt: str | bytes | None, output: Path | None) -> bytes:
    """The secret that was given, else the one beside an index file, else a random one.

    Raises:
        ValueError: if it is empty, or the file beside the index holds none.
    """
    if salt is not None:
        salt = salt.encode() if isinstance(salt, str) else salt
        if not salt:
            raise ValueError("salt is empty; give a secret, or None to have one made")
        return salt
    return os.urandom(32) if output is None else load_salt(output.with_suffix(".salt"))


def counts_text(counter: collections.Counter) -> str:
    """The most frequent entries with their numbers, in brackets; nothing for an empty counter."""
    return f" ({', '.join(f'{name} {count}' for name, count in counter.most_common(8))})" if counter else ""


def _status(table: pa.Table) -> str:
    refused = pc.sum(pc.equal(table["status"], "refused")).as_py() or 0
    noun = "volumes" if "volume" in table.column_names else "images"
    return f"{len(table) - refused} {noun}, {refused} refused"
