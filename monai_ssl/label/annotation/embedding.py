# SPDX-License-Identifier: Apache-2.0
"""Features of all images of the studies, computed once for each image and encoder, and similar cases by them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import DataLoader

from monai_ssl.data import ImageStore, PadCollate, StoreDataset
from monai_ssl.evaluation import Preprocessing, extract_features
from monai_ssl.evaluation.study.question import encoder_sha256
from monai_ssl.label.annotation.folder import StudiesFolder
from monai_ssl.label.pool import LabelPool
from monai_ssl.label.study.learner import repeated_rows
from monai_ssl.weights import WeightsFileError, open_encoder, read_manifest
from monai_ssl.weights.files import read_header, read_tensors, write_tensors

__all__ = ["EmbeddedImages", "embed_images", "read_embedded", "similar_images"]

logger = logging.getLogger(__name__)

_FILE = "features.safetensors"


@dataclass(frozen=True)
class EmbeddedImages:
    """Features of the images that could be read.

    Attributes:
        ids: of the N images.
        features: ``(N, F)`` float32.
        duplicate_of: ``(N,)`` position of the image that each repeats, -1 for none.
        refused: id to reason of the images that could not be read.
    """

    ids: list[str]
    features: np.ndarray
    duplicate_of: np.ndarray
    refused: dict[str, str]


def embed_images(
    folder: StudiesFolder, images: Mapping[str, str], device: str = "cpu", batch_size: int = 16
) -> tuple[EmbeddedImages, ImageStore]:
    """Compute the features that are missing, and keep all.

    Args:
        folder: of the studies.
        images: path of each image by its id.
        device: where to compute.
        batch_size: images at a time.

    Returns:
        The features, and the store that they are of, in the same order.

    Raises:
        FileNotFoundError: there is no encoder.
        ValueError: no image can be used, or the encoder does not suit them.
    """
    path = folder.encoder
    manifest = read_manifest(path)
    store = folder.open_store(images, manifest)
    preprocessing = Preprocessing.from_manifest(manifest).with_store(store)
    key = f"{encoder_sha256(str(path))} {json.dumps(preprocessing.to_dict(), sort_keys=True)}"
    hashes = store.table["content_hash"].to_pylist()
    known = _known(folder, key)
    missing = np.array([row for row, name in enumerate(hashes) if name not in known], dtype=np.int64)
    if len(missing):
        loader = DataLoader(StoreDataset(store, missing), batch_size=batch_size, num_workers=0, collate_fn=PadCollate())
        computed, _ = extract_features(open_encoder(path), loader, preprocessing.view(), device)
        known |= dict(zip([hashes[row] for row in missing], computed.numpy(), strict=True))
    features = np.stack([known[name] for name in hashes])
    id_of = {str(path).rpartition("/")[2]: name for name, path in images.items()}
    ids = [id_of[name] for name in store.table["path"].to_pylist()]
    refused = {
        id_of.get(row["path"], row["path"]): row["reason"]
        for row in store.refused.select(["path", "reason"]).to_pylist()
    }
    found = EmbeddedImages(ids, features, repeated_rows(store, np.arange(len(store))), refused)
    facts = {"ids": ids, "hashes": hashes, "duplicate_of": found.duplicate_of.tolist(), "refused": refused}
    write_tensors(
        features_path(folder), {"features": torch.from_numpy(features)}, {"key": key, "facts": json.dumps(facts)}
    )
    logger.info("%d images embedded, %d of them new, %d refused", len(ids), len(missing), len(refused))
    return found, store


def read_embedded(folder: StudiesFolder) -> EmbeddedImages | None:
    """Return what :func:`embed_images` kept, None if there is nothing or it is damaged."""
    path = features_path(folder)
    if not path.is_file():
        return None
    try:
        facts = json.loads(read_header(path)[0]["facts"])
        features = read_tensors(path)["features"].numpy()
    except (WeightsFileError, KeyError, ValueError):
        logger.warning("%s is damaged; the images will be embedded anew", path)
        return None
    return EmbeddedImages(facts["ids"], features, np.array(facts["duplicate_of"]), facts["refused"])


def features_path(folder: StudiesFolder) -> Path:
    """Return where the features are."""
    return folder.state / _FILE


def similar_images(embedded: EmbeddedImages, image: str, num: int = 5) -> list[tuple[str, float]]:
    """Return the images nearest to one, with their cosines, nearest first.

    Args:
        embedded: the features.
        image: an id.
        num: images to return.

    Raises:
        ValueError: the image is not embedded, or ``num`` is below 1.
    """
    if image not in embedded.ids:
        raise ValueError(f"there is no embedded image {image!r}: it is not in the studies, or could not be read")
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")
    unit = LabelPool.of_features(embedded.features, np.zeros(len(embedded.ids), dtype=bool)).embeddings
    place = embedded.ids.index(image)
    cosine = unit @ unit[place]
    order = [row for row in np.argsort(-cosine, kind="stable") if row != place][:num]
    return [(embedded.ids[row], round(float(cosine[row]), 4)) for row in order]


def _known(folder: StudiesFolder, key: str) -> dict[str, np.ndarray]:
    """Features by the hash of their image, of this encoder and preparation."""
    path = features_path(folder)
    if not path.is_file():
        return {}
    try:
        header = read_header(path)[0]
        if header.get("key") != key:
            return {}
        return dict(zip(json.loads(header["facts"])["hashes"], read_tensors(path)["features"].numpy(), strict=True))
    except (WeightsFileError, KeyError, ValueError):
        return {}
