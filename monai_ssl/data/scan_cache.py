# SPDX-License-Identifier: Apache-2.0
"""What an index remembers between scans, so that only files that changed are read."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from monai_ssl.data.decoders import decoder_signature
from monai_ssl.data.scan import CRASHED, FACTS_SCHEMA, SCAN_VERSION
from monai_ssl.data.tables import read_table, write_table


class ScanCache:
    """Rows of earlier scans in ``<stem>.scan``: part files that are added as the scan goes and merged at its end.

    A row is used again if the file's size and modification time are the same, the salt is the same, and the reading
    code has not changed; refused files are read again when other decoders are installed.

    Args:
        output: the index file; None remembers nothing.
        salt: the secret; only a check value of it is stored.
        part: subfolder, for an index that is scanned in several steps.
        schema: of the rows; with ``path``, ``status`` and ``reason``.
        version: raise it when rows of unchanged files would come out different.
        stamp: columns that tell whether what a path names has changed.
    """

    def __init__(
        self,
        output: Path | None,
        salt: bytes,
        part: str = "",
        schema: pa.Schema = FACTS_SCHEMA,
        version: str = SCAN_VERSION,
        stamp: tuple[str, ...] = ("bytes", "mtime_ns"),
    ):
        self.folder = None if output is None else scan_folder(output) / part
        self.schema, self.stamp = schema, stamp
        check = hmac.new(salt, b"salt check", hashlib.sha256).hexdigest()[:8]
        self.metadata = {"scan_version": version, "salt_check": check, "decoders": decoder_signature()}

    def split(self, items: Iterable[tuple]) -> tuple[dict[str, dict], list[tuple]]:
        """Rows that are still right, and the items to read; an item starts with its path and its stamp."""
        known = self._load()
        rows, todo = {}, []
        for item in items:
            row = known.get(item[0])
            if row is not None and tuple(row[name] for name in self.stamp) == item[1 : 1 + len(self.stamp)]:
                rows[item[0]] = row
            else:
                todo.append(item)
        return rows, todo

    def add(self, rows: list[dict]) -> None:
        """Keep some rows at once, so that an interrupted scan can go on."""
        if self.folder is None or not rows:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(part.stem) for part in self.folder.glob("[0-9]*.parquet")), default=0)
        table = pa.Table.from_pylist(rows, schema=self.schema.with_metadata(self.metadata))
        write_table(table, self.folder / f"{number:06d}.parquet")

    def finish(self, rows: dict[str, dict], changed: bool) -> None:
        """Merge all parts into one, unless there is only one and nothing is new."""
        if self.folder is None:
            return
        old = list(self.folder.glob("[0-9]*.parquet"))
        if len(old) == 1 and not changed:
            return
        self.add([row for row in rows.values() if is_utf8(row["path"])])
        for part in old:
            part.unlink(missing_ok=True)

    def _load(self) -> dict[str, dict]:
        if self.folder is None or not self.folder.is_dir():
            return {}
        known: dict[str, dict] = {}
        for part in sorted(self.folder.glob("[0-9]*.parquet")):
            try:
                table = read_table(part)
            except ValueError:
                part.unlink(missing_ok=True)  # its files are simply read again
                continue
            facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            if any(facts.get(key) != self.metadata[key] for key in ("scan_version", "salt_check")):
                continue
            same_decoders = facts.get("decoders") == self.metadata["decoders"]
            for row in table.to_pylist():
                # A crash may have been the machine's fault; a new decoder may read what the old ones refused.
                again = row["reason"] == CRASHED or (row["status"] == "refused" and not same_decoders)
                if not again:
                    known[row["path"]] = row
        return known


def scan_folder(output: Path) -> Path:
    """Folder beside an index file that holds what the scans know."""
    return output.with_suffix(".scan")


def is_utf8(text: str) -> bool:
    """Tell whether a file name can be stored in a table."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
