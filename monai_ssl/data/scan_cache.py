# SPDX-License-Identifier: Apache-2.0
"""What an index remembers between scans, so that only files that changed are read."""

from __future__ import annotations

import hashlib
import hmac
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
    """

    def __init__(self, output: Path | None, salt: bytes):
        self.folder = None if output is None else scan_folder(output)
        check = hmac.new(salt, b"salt check", hashlib.sha256).hexdigest()[:8]
        self.metadata = {"scan_version": SCAN_VERSION, "salt_check": check, "decoders": decoder_signature()}

    def split(self, files: list[tuple[str, int, int]]) -> tuple[dict[str, dict], list[tuple[str, int, int]]]:
        """Rows that are still right, and the files to read."""
        known = self._load()
        rows, todo = {}, []
        for path, size, mtime in files:
            row = known.get(path)
            if row is not None and (row["bytes"], row["mtime_ns"]) == (size, mtime):
                rows[path] = row
            else:
                todo.append((path, size, mtime))
        return rows, todo

    def add(self, rows: list[dict]) -> None:
        """Keep some rows at once, so that an interrupted scan can go on."""
        if self.folder is None or not rows:
            return
        self.folder.mkdir(exist_ok=True)
        number = 1 + max((int(part.stem) for part in self.folder.glob("[0-9]*.parquet")), default=0)
        table = pa.Table.from_pylist(rows, schema=FACTS_SCHEMA.with_metadata(self.metadata))
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
