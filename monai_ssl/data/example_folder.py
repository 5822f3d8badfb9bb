# SPDX-License-Identifier: Apache-2.0
"""A folder of example data: made once, whole or not at all, never among somebody else's files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_ssl.data.files import PARTIAL, folder_lock, is_disk_full, write_whole
from monai_ssl.data.parallel import default_workers
from monai_ssl.data.phantom_patient import random_stream

_SPLIT_PATTERN = ("train", "train", "test", "train", "val", "train", "train", "test", "train", "train")
_MARKER = "complete.json"


@dataclass(frozen=True)
class ExampleFolder:
    """Where example data go, and what they are.

    Args:
        folder: where to write; made if missing.
        what: name of the data for messages, for instance ``"example radiographs"``.
        image_folders: subfolders of the images; what lies in them is counted to tell whether the folder is whole.
        tables: names of the other files.
        parameters: what the content depends on; JSON values.
    """

    folder: Path
    what: str
    image_folders: tuple[str, ...]
    tables: tuple[str, ...]
    parameters: dict

    def fill(self, make: Callable[[], Iterable[str]]) -> Path:
        """Make the data, or return at once when the folder already holds the same ones.

        Args:
            make: writes everything into ``folder`` and returns the relative names of the files in ``image_folders``.
                Files of an earlier cohort that it does not name are deleted, if their names begin with ``EXAMPLE-`` or
                lie in a folder whose name does. The marker ``complete.json`` is written last of all.

        Raises:
            ValueError: if the folder holds something that was not made here.
            RuntimeError: if the folder cannot be written.
        """
        if self._is_complete():
            return self.folder
        if self.folder.exists():
            self._refuse_foreign()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with folder_lock(self.folder):
                if not self._is_complete():  # another process may have made it meanwhile
                    self._make(make)
        except OSError as error:
            reason = "the disk is full; free some space" if is_disk_full(error) else error.strerror or str(error)
            raise RuntimeError(f"{self.folder}: the {self.what} cannot be written: {reason}") from error
        return self.folder

    def _is_complete(self) -> bool:
        try:
            marker = json.loads((self.folder / _MARKER).read_text())
        except (OSError, ValueError):
            return False
        return marker.get("parameters") == self.parameters and marker.get("files") == len(self._files())

    def _files(self) -> list[Path]:
        """Files in the folders of images, whole and partial ones."""
        found = [path for name in self.image_folders for path in (self.folder / name).rglob("*")]
        return [path for path in found if path.is_file()]

    def _refuse_foreign(self) -> None:
        """Never write among somebody else's files."""
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; give a folder for the {self.what}")
        own = {*self.image_folders, *self.tables, _MARKER, ".lock"}
        names = sorted(path.name for path in self.folder.iterdir())
        foreign = [name for name in names if name not in own and not name.endswith(PARTIAL)]
        if foreign:
            raise ValueError(f"{self.folder} holds other things, such as {foreign[0]}; give an empty or a new folder")

    def _make(self, make: Callable[[], Iterable[str]]) -> None:
        for name in self.image_folders:
            (self.folder / name).mkdir(exist_ok=True)
        (self.folder / _MARKER).unlink(missing_ok=True)
        wanted = {self.folder / name for name in make()}
        for path in self._files():  # of an earlier, different or interrupted cohort
            own = any(part.startswith(("EXAMPLE-", ".EXAMPLE-")) for part in path.relative_to(self.folder).parts)
            if own and path not in wanted:
                path.unlink()
                if path.parent.name.startswith("EXAMPLE-") and not any(path.parent.iterdir()):
                    path.parent.rmdir()
        marker = {"parameters": self.parameters, "files": len(wanted)}
        write_whole(self.folder / _MARKER, json.dumps(marker, indent=1).encode())


def map_patients(make_one: Callable[[int], Any], num_patients: int, num_workers: int | None) -> list[Any]:
    """Call ``make_one`` with each patient's number in threads; results in order. An error ends the work at once.

    Args:
        make_one: takes 0 to ``num_patients - 1``.
        num_patients: how many.
        num_workers: threads; None for one per core, at most 8.
    """
    pool = ThreadPoolExecutor(num_workers or min(8, default_workers()))
    try:
        return list(pool.map(make_one, range(num_patients)))
    finally:
        pool.shutdown(cancel_futures=True)


def check_num_patients(num_patients: int) -> None:
    """Raise unless there are enough patients for three splits.

    Raises:
        ValueError: if there are fewer than 10.
    """
    if num_patients < len(_SPLIT_PATTERN):
        raise ValueError(f"num_patients is {num_patients}: at least 10 are needed to fill train, val and test")


def deal_splits(kinds: dict[str, str], seed: int) -> dict[str, str]:
    """Split patients 70 / 10 / 20 %: dealt out in turn after sorting by kind, so each kind is spread over the splits.

    Args:
        kinds: what each patient shows.
        seed: names the cohort.

    Returns:
        ``train``, ``val`` or ``test`` of each patient.
    """
    order = random_stream(seed, "split").permutation(len(kinds))
    rank = dict(zip(kinds, order.tolist(), strict=True))
    dealt = sorted(kinds, key=lambda patient: (kinds[patient], rank[patient]))
    return {patient: _SPLIT_PATTERN[place % len(_SPLIT_PATTERN)] for place, patient in enumerate(dealt)}


def write_table(path: Path, columns: Sequence[str], rows: Iterable[dict]) -> None:
    """Write rows as CSV, whole or not at all."""
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, table.getvalue().encode())
