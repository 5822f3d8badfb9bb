# SPDX-License-Identifier: Apache-2.0
"""Compute the vectors of a store's images once; go on after an interruption, and do only what is new."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from monai_ssl.data.datasets import PadCollate, StoreDataset
from monai_ssl.data.files import folder_lock, write_whole
from monai_ssl.data.store import ImageStore
from monai_ssl.evaluation import OpenImageText, embed_images
from monai_ssl.search.embedded_folder import EmbeddedFolder, known_vectors, write_array, write_index

__all__ = ["embed_folder"]

logger = logging.getLogger(__name__)

_PARTS, _KEY = "parts", "key.json"
_SECONDS = 20.0  # between two parts: what an interruption can cost


def embed_folder(
    store: ImageStore,
    index_dir: str | Path,
    opened: OpenImageText,
    model_file: str | Path,
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    progress: bool = True,
) -> EmbeddedFolder:
    """Embed the images of a store and write the index.

    Images whose vectors are there already, from an older index or an interrupted call of the same model and
    preprocessing, are not computed again. Two processes with the same folder take turns.

    Args:
        store: of flat images.
        index_dir: folder of the index; it is made.
        opened: the model, see :func:`monai_ssl.evaluation.open_image_text`.
        model_file: where searches find the model.
        batch_size: images at once.
        num_workers: processes that read.
        device: where to compute.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        progress: show a progress bar, if on a terminal.

    Raises:
        ValueError: the store was prepared otherwise than the model's images, or holds volumes.
    """
    if store.spatial_dims != 2:
        raise ValueError(f"{store.folder} holds volumes; only flat images can be searched")
    preprocessing = opened.preprocessing.with_store(store)
    key = {"model_sha256": opened.fingerprint, "precision": precision, "preprocessing": preprocessing.to_dict()}
    items = store.table["store_item"].to_pylist()
    folder = Path(index_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder, lambda: logger.info("%s: waiting for another process", folder)):
        parts = _Parts(folder / _PARTS, key)
        known = known_vectors(folder, key, items) | parts.read()
        todo = [row for row, item in enumerate(items) if item not in known]
        logger.info("%s: %d of %d images to embed", folder, len(todo), len(items))
        if todo:
            loader = DataLoader(StoreDataset(store, todo), batch_size, num_workers=num_workers, collate_fn=PadCollate())
            bar = tqdm(total=len(todo), unit="images", disable=None if progress else True)
            for vectors, rows in _chunks(loader, opened, preprocessing.view(), device, precision):
                names = [items[row] for row in rows]
                parts.write(vectors, names)
                known |= dict(zip(names, vectors, strict=True))
                bar.update(len(names))
            bar.close()
        write_index(folder, store, np.stack([known[item] for item in items]), key, model_file)
        parts.clear()
    return EmbeddedFolder(folder)


def _chunks(
    loader: DataLoader, opened: OpenImageText, view: Any, device: torch.device | str, precision: str
) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Vectors and rows of some seconds' work at a time."""
    vectors, rows, started = [], [], time.monotonic()
    for batch in loader:
        some, index = embed_images(opened.model, [batch], view, device, precision)
        vectors.append(some.numpy())
        rows += index.tolist()
        if time.monotonic() - started > _SECONDS:
            yield np.concatenate(vectors), rows
            vectors, rows, started = [], [], time.monotonic()
    if rows:
        yield np.concatenate(vectors), rows


class _Parts:
    """Vectors of an embedding that is not finished, of one key."""

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        self.folder = folder
        text = json.dumps(key, sort_keys=True)
        try:
            same = (folder / _KEY).read_text(encoding="utf-8") == text
        except FileNotFoundError:
            same = False
        if not same:
            self.clear()
            folder.mkdir()
            write_whole(folder / _KEY, text.encode())

    def read(self) -> dict[str, np.ndarray]:
        """Vectors by item; a part without its names is not there."""
        found: dict[str, np.ndarray] = {}
        for names in sorted(self.folder.glob("*.txt")):
            found |= dict(
                zip(
                    names.read_text(encoding="utf-8").splitlines(),
                    np.load(names.with_suffix(".npy"), allow_pickle=False),
                    strict=True,
                )
            )
        return found

    def write(self, vectors: np.ndarray, names: list[str]) -> None:
        """Add a part: first the vectors, then the names."""
        path = self.folder / f"{len(list(self.folder.glob('*.txt'))):06d}.txt"
        write_array(path.with_suffix(".npy"), vectors)
        write_whole(path, "\n".join(names).encode())

    def clear(self) -> None:
        """Forget all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)
