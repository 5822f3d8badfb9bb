# SPDX-License-Identifier: Apache-2.0
"""A folder of images as vectors on the disk, and the images nearest to a vector.

The search is exact: one matrix product over all vectors, mapped from the file. Of 100,000 vectors of 512 numbers that
takes 17 ms on one core of a server and never misses; faiss's flat index takes 17 ms and usearch's 15 ms.
Their graphs (HNSW) answer in 0.2 to 0.5 ms and find 998 of 1,000 neighbours, but take half a minute to three minutes to
build, and nobody notices the difference of 17 ms behind the text encoder's own 10 to 100 ms. So there is no further
dependency; with many millions of images, give the vectors of this folder to such a library.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from monai_ssl.data.files import write_whole
from monai_ssl.data.store import ImageStore
from monai_ssl.data.tables import read_table, require_columns, write_table

__all__ = ["EmbeddedFolder", "SearchHit"]

FACTS_NAME, FORMAT = "search_index.json", 1
COLUMNS = ("path", "group_id", "store_item")
_FACTS = {"format", "key", "build", "model_file", "store", "vectors", "table", "count", "width"}


@dataclass(frozen=True)
class SearchHit:
    """An image that was found.

    Attributes:
        row: of the index, and of the store it was made of.
        path: of the image's file, below its folder.
        group_id: hash of the patient.
        similarity: cosine with the query.
    """

    row: int
    path: str
    group_id: str
    similarity: float


class EmbeddedFolder:
    """What :func:`monai_ssl.search.embed_folder` made: a vector and a line of a table for each image.

    Args:
        folder: of the index.

    Attributes:
        vectors: ``(N, D)`` float32 unit vectors, mapped from the disk.
        table: ``path`` (below the folder of images), ``group_id`` (hash of the patient) and ``store_item``.
        key: what the vectors depend on: SHA-256 of the model's file, and the preprocessing.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: its files are damaged or from a newer version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        facts = read_facts(self.folder)
        if facts is None:
            raise FileNotFoundError(
                f"{self.folder} holds no search index: 'python -m monai_ssl embed FOLDER {self.folder} --model_file "
                "image_text.safetensors' makes one"
            )
        self.key: dict[str, Any] = facts["key"]
        self.store_folder, self.model_file = (_absolute(self.folder, facts[name]) for name in ("store", "model_file"))
        try:
            self.vectors = np.load(self.folder / facts["vectors"], mmap_mode="r", allow_pickle=False)
            self.table = read_table(self.folder / facts["table"])
            require_columns(self.table, COLUMNS, facts["table"])
            fits = self.vectors.shape == (len(self.table), facts["width"]) and len(self.table) == facts["count"]
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.folder}: the search index is damaged ({error}); delete it and embed again"
            ) from error
        if not fits:
            raise ValueError(f"{self.folder}: vectors and table of the search index do not fit; embed again")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.table)

    def nearest(self, vector: np.ndarray, count: int) -> list[SearchHit]:
        """Find the images whose vectors are nearest to one.

        Args:
            vector: ``(D,)``, of unit length.
            count: how many at most.

        Returns:
            Best first; equally near ones in the order of the index.

        Raises:
            ValueError: the vector is of another space, or ``count`` below 1.
        """
        vector = np.asarray(vector, dtype=np.float32)
        if vector.shape != self.vectors.shape[1:] or count < 1:
            raise ValueError(f"a vector of {vector.shape} and {count} hits do not fit an index of {self.vectors.shape}")
        cosines = self.vectors @ vector
        count = min(count, len(cosines))
        last = np.partition(cosines, -count)[-count]
        rows = np.flatnonzero(cosines >= last)  # with all that tie for the last place
        rows = rows[np.argsort(-cosines[rows], kind="stable")][:count]
        lines = self.table.take(pa.array(rows)).to_pylist()
        return [
            SearchHit(int(row), line["path"], line["group_id"], float(cosines[row]))
            for row, line in zip(rows, lines, strict=True)
        ]

    def open_store(self) -> ImageStore | None:
        """Open the store of the images, or return None where it is not there (any more).

        Raises:
            ValueError: the store has other images now; it says how many came and went.
        """
        try:
            store = ImageStore(self.store_folder)
        except FileNotFoundError:
            return None
        mine, theirs = self.table["store_item"].to_pylist(), store.table["store_item"].to_pylist()
        if mine != theirs:
            came, gone = len(set(theirs) - set(mine)), len(set(mine) - set(theirs))
            changed = f"{came} images came and {gone} went" if came or gone else "its images are in another order"
            raise ValueError(
                f"{self.folder} is out of date: in {self.store_folder} {changed} since; embed again, what is done is "
                "kept"
            )
        return store

    def describe(self) -> str:
        """Say in a line what the index holds."""
        return (
            f"{self.folder}: search index of {len(self)} images, vectors of {self.vectors.shape[1]} numbers by the "
            f"model {self.key['model_sha256'][:16]}"
        )


def read_facts(folder: Path) -> dict[str, Any] | None:
    """Read ``search_index.json``, or None if there is none.

    Raises:
        ValueError: it is damaged or from a newer version.
    """
    path = folder / FACTS_NAME
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged; delete it and embed again") from error
    if not isinstance(facts, dict) or facts.get("format", 0) > FORMAT or not facts.keys() >= _FACTS:
        raise ValueError(f"{path} is damaged or was written by a newer monai_ssl; embed again")
    return facts


def write_index(
    folder: Path, store: ImageStore, vectors: np.ndarray, key: dict[str, Any], model_file: str | Path
) -> None:
    """Write an index: readers see the old one or the new one, never a part of both.

    Args:
        folder: of the index.
        store: of the images, all of them.
        vectors: ``(N, D)`` float32, in the order of the store.
        key: see :class:`EmbeddedFolder`.
        model_file: of the model.
    """
    table = store.table.select(list(COLUMNS))
    named = json.dumps(key, sort_keys=True) + "\n".join(table["store_item"].to_pylist())
    build = hashlib.sha256(named.encode()).hexdigest()[:16]
    facts = {"format": FORMAT, "key": key, "build": build, "count": len(table), "width": vectors.shape[1]}
    facts |= {"vectors": f"vectors_{build}.npy", "table": f"rows_{build}.parquet"}
    facts |= {"store": _relative(store.folder, folder), "model_file": _relative(model_file, folder)}
    write_array(folder / facts["vectors"], vectors)
    write_table(table, folder / facts["table"])
    write_whole(folder / FACTS_NAME, json.dumps(facts, indent=1).encode())
    for old in (*folder.glob("vectors_*.npy"), *folder.glob("rows_*.parquet")):
        if old.name not in (facts["vectors"], facts["table"]):
            old.unlink(missing_ok=True)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a ``.npy`` file, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def known_vectors(folder: Path, key: dict[str, Any], items: Sequence[str]) -> dict[str, np.ndarray]:
    """Vectors that an older index of the same key has of these items."""
    try:
        old = EmbeddedFolder(folder)
    except (FileNotFoundError, ValueError):
        return {}
    if old.key != key:
        return {}
    wanted = set(items)
    found = zip(old.table["store_item"].to_pylist(), old.vectors, strict=True)
    return {item: np.array(vector) for item, vector in found if item in wanted}


def _relative(path: str | Path, folder: Path) -> str:
    """A path as seen from the index, so that both can be moved together."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return Path(path).absolute().as_posix()


def _absolute(folder: Path, path: str) -> Path:
    return Path(os.path.normpath(folder / path))
