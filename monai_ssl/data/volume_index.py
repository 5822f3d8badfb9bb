# SPDX-License-Identifier: Apache-2.0
"""The index of volumes: every volume of a folder with what may be known about it, and every refused set of files."""

from __future__ import annotations

import collections
import logging
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from monai_ssl.data.index import counts_text, index_salt, list_files, scan_items, utf8_only
from monai_ssl.data.label_maps import (
    LABEL_MAP_SCHEMA,
    LABEL_MAP_VERSION,
    grid_difference,
    refused_label_map,
    scan_label_map,
)
from monai_ssl.data.labels import join_labels
from monai_ssl.data.scan import IGNORED
from monai_ssl.data.scan_cache import ScanCache
from monai_ssl.data.series import check_series_rules
from monai_ssl.data.tables import write_table
from monai_ssl.data.volume_labels import find_volume_labels, read_volume_labels
from monai_ssl.data.volume_scan import (
    FILE_SCHEMA,
    UNIT_SCHEMA,
    VOLUME_SCAN_VERSION,
    VOLUME_SCHEMA,
    SeriesRules,
    make_units,
    refused_file,
    refused_unit,
    scan_header,
    scan_unit,
)

logger = logging.getLogger(__name__)

# Folders and names that label maps usually have; a warning only, for an image may be called anything.
_LIKE_LABELS = ("labelstr", "labelsts", "labels", "label", "masks", "mask", "seg", "segmentation", "segmentations")


def build_volume_index(
    root: str | Path,
    output: str | Path | None = None,
    *,
    num_workers: int | None = None,
    salt: str | bytes | None = None,
    labels: str | Path | None = None,
    min_slices: int = 3,
    uneven: str = "refuse",
    progress: bool = True,
) -> pa.Table:
    """Scan a folder of volumes into a table; with ``output``, a second scan only reads files that changed.

    The DICOM files of the whole folder are sorted into volumes by patient, study and series (see ``open_series``);
    NIfTI, NRRD and MetaImage files are volumes of their own, one for each entry of a fourth axis. Every volume is
    decoded once and hashed. Files that make no volume become rows with status ``"refused"`` and a reason, those of one
    reason, series and folder together. Files that are no images are counted and left out, and so are hidden ones.
    Names, dates and free text of headers are never read; patient, study and series appear only as salted hashes.

    Args:
        root: folder, searched with all its subfolders.
        output: Parquet file to write. Beside it stand ``<stem>.salt`` (mode 0600) and the folder ``<stem>.scan`` with
            what the scan knows already; an interrupted scan goes on from there. None writes nothing.
        num_workers: processes; 0 works in this process. Default: all CPUs this process may use.
        salt: secret for the identifiers; default: the salt file beside ``output``, made at the first scan (without
            ``output``: random, so that the hashes cannot be compared with those of another call).
        labels: table to join: CSV or Parquet with a column ``file`` (or ``image``), or a Decathlon's ``dataset.json``
            (see ``read_volume_labels``). ``file`` names a file, a DICOM folder, or any file of a DICOM volume. Default:
            such a table at the top of ``root``, if there is exactly one. Files in its column ``label_map`` are no
            volumes; an image whose label map is missing or lies on another grid is refused.
        min_slices: fewest slices of a DICOM volume.
        uneven: ``"refuse"`` or ``"resample"`` missing and unevenly spaced DICOM slices.
        progress: show progress bars with the time left, if on a terminal.

    Returns:
        Table sorted by path with the columns of ``VOLUME_SCHEMA``, ``label_map``, ``group_id`` and the labels' other
        columns. ``path`` is the file, or the folder of a DICOM volume, with ``#k`` where several rows would share it.
        Without a patient, volumes of one study or file have one ``group_id``.

    Raises:
        FileNotFoundError: if ``root`` or the table is not there.
        ValueError: if the folder holds no image, the labels contradict themselves or the folder, or an argument is out
            of range.
    """
    root = Path(root)
    check_series_rules(min_slices, uneven)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder of volumes")
    labels_file = Path(labels) if labels is not None else find_volume_labels(root)
    label_table = None if labels_file is None else read_volume_labels(labels_file, root)
    label_maps = _label_map_files(label_table, root, labels_file)

    output = None if output is None else Path(output)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    salt = index_salt(salt, output)
    files, unopened = list_files(root, skip=output)
    count = len(files) + unopened.total()
    files = [file for file in files if file[0] not in label_maps]

    scan = partial(_scan, output, salt, num_workers, progress)
    read = partial(scan_header, str(root), salt)
    headers: dict[str, dict] = {}
    named = utf8_only(files, refused_file, headers)
    headers |= scan("files", FILE_SCHEMA, ("bytes", "mtime_ns"), read, refused_file, named, unit="file")
    rules = SeriesRules(min_slices, uneven)
    units = make_units(headers.values(), rules)
    read = partial(scan_unit, str(root), rules)
    found = scan("volumes", UNIT_SCHEMA, ("stamp",), read, refused_unit, units, unit="volume", chunk_size=1)

    rows = [row for unit in sorted(units, key=lambda unit: unit.files) for row in found[unit.path]["rows"]]
    rows += [_refused_row(header) for header in headers.values() if header["status"] == "refused"]
    unopened += collections.Counter(
        PurePosixPath(path).suffix.lower() or "no suffix"
        for path, header in headers.items()
        if header["status"] == IGNORED
    )
    if not rows:
        raise ValueError(
            f"{root}: no volumes among its {count} files{counts_text(unopened)}. "
            "Looked for DICOM (any name), NIfTI, NRRD and MetaImage."
        )
    table = _join(_named(rows), label_table, root, salt, labels_file)
    maps = [(name, *facts) for name, facts in label_maps.items() if facts is not None]
    read = partial(scan_label_map, str(root))
    grids = scan("label_maps", LABEL_MAP_SCHEMA, ("bytes", "mtime_ns"), read, refused_label_map, maps, unit="label map")
    table = _check_label_maps(table, grids)
    if output is not None:
        write_table(table, output)
    _report(root, table, unopened)
    return table


def _scan(output, salt, num_workers, progress, part, schema, stamp, read, refuse, items, unit, chunk_size=8) -> dict:
    """One step of the scan: rows by path, of which only those that changed are read."""
    version = f"{VOLUME_SCAN_VERSION}.{LABEL_MAP_VERSION}"
    cache = ScanCache(output, salt, part, schema, version, stamp)
    rows, todo = cache.split(items)
    scan_items(read, refuse, todo, rows, cache, num_workers, progress, unit, chunk_size)
    cache.finish(rows, changed=bool(todo))
    return rows


def _label_map_files(labels: pa.Table | None, root: Path, source: Path | None) -> dict[str, tuple[int, int] | None]:
    """Label maps that the table names, with bytes and modification time in ns, None for one that is not there."""
    if labels is None or "label_map" not in labels.column_names:
        return {}
    found: dict[str, tuple[int, int] | None] = {}
    for name in sorted({name for name in labels["label_map"].to_pylist() if name}):
        try:
            facts = (root / name).stat()
            found[name] = (facts.st_size, facts.st_mtime_ns) if (root / name).is_file() else None
        except OSError:
            found[name] = None
    if found and not any(found.values()):
        raise ValueError(
            f"{source}: none of its {len(found)} label maps is in {root}, for instance {next(iter(found))}"
        )
    return found


def _refused_row(header: dict) -> dict:
    """Row of the index for a file that was refused by its first bytes."""
    facts = {name: header[name] for name in ("path", "kind", "bytes", "mtime_ns", "patient", "study", "series")}
    facts |= {"files": [header["path"]], "status": "refused", "reason": header["reason"]}
    return dict.fromkeys(VOLUME_SCHEMA.names) | facts


def _named(rows: list[dict]) -> list[dict]:
    """Sort the rows and make their paths unique: ``#k`` where several share one; of one volume the path stays bare.

    Each row gets the further key ``place``, the path without ``#k``.
    """
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["path"], []).append(row)
    named = []
    for place in sorted(groups):
        # Volumes first, so that a refused localizer in their folder does not rename them; else the order they were
        # found in, which is that of ``open_volumes``.
        members = sorted(groups[place], key=lambda row: row["volume"] is None)
        volumes = sum(row["volume"] is not None for row in members)
        for number, row in enumerate(members):
            bare = number == 0 and (volumes == 1 or len(members) == 1)
            named.append(row | {"path": place if bare else f"{place}#{number}", "place": place})
    return named


def _join(rows: list[dict], labels: pa.Table | None, root: Path, salt: bytes, source: Path | None) -> pa.Table:
    """Make the table of the rows and join the user's."""
    facts = pa.Table.from_pylist([{k: row[k] for k in VOLUME_SCHEMA.names} for row in rows], schema=VOLUME_SCHEMA)
    names = [[[row["path"]], [row["place"]], row["files"]] for row in rows]
    alone = [row["study"] or row["place"] for row in rows]
    table = join_labels(facts, labels, root, salt, source, names=names, alone=alone)
    terms = [_term(value) for value in table["modality"].to_pylist()]
    place = table.schema.get_field_index("modality")
    table = table.set_column(place, "modality", pa.array(terms, pa.string()))
    if "label_map" not in table.column_names:
        table = table.append_column("label_map", pa.nulls(len(table), pa.string()))
    first = [*VOLUME_SCHEMA.names, "label_map", "group_id"]
    return table.select([*first, *(name for name in table.column_names if name not in first)])


def _term(modality: str | None) -> str | None:
    """DICOM's spelling of a modality: the user's column may say ``mri``."""
    text = (modality or "").strip().upper()
    return {"MRI": "MR", "PET": "PT"}.get(text, text) or None


def _check_label_maps(table: pa.Table, grids: dict[str, dict]) -> pa.Table:
    """Refuse images whose label map is missing, unreadable or on another grid."""
    columns = {name: table[name].to_pylist() for name in ("status", "reason")}
    facts = table.select(["label_map", "status", "oriented", "shape", "affine"]).to_pylist()
    for number, row in enumerate(facts):
        if row["label_map"] is None or row["status"] != "ok":
            continue
        grid = grids.get(row["label_map"])
        if grid is None:
            reason = "the label map that the table names is not there"
        else:
            reason = grid["reason"] or grid_difference(*_grid(grid), *_grid(row))
        if reason is not None:
            columns["status"][number], columns["reason"][number] = "refused", reason
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return table


def _grid(row: dict) -> tuple[list[int], np.ndarray | None]:
    return row["shape"], np.reshape(row["affine"], (4, 4)) if row["oriented"] else None


def _report(root: Path, table: pa.Table, ignored: collections.Counter) -> None:
    """Log what was found, and warn of label maps that no table names."""
    usable = [row for row in table.select(["path", "status"]).to_pylist() if row["status"] == "ok"]
    logger.info("%s: %d volumes, %d refused; left out %d files that are no images%s", root, len(usable),
                len(table) - len(usable), ignored.total(), counts_text(ignored))  # fmt: skip
    like = [row["path"] for row in usable if _like_labels(PurePosixPath(row["path"].lower()))]
    if like and table["label_map"].null_count == len(table):
        logger.warning("%s: %d volumes are named like label maps and taken for images, for instance %s; name them in a "
                       "column label_map, or take them out of the folder", root, len(like), like[0])  # fmt: skip


def _like_labels(path: PurePosixPath) -> bool:
    stem = path.name.partition(".")[0]
    return not set(_LIKE_LABELS).isdisjoint((*path.parent.parts, stem.replace("-", "_").rpartition("_")[2]))
