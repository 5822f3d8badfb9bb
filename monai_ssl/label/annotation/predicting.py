# SPDX-License-Identifier: Apache-2.0
"""What the app's models say of one image."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader

from monai_ssl.data import (
    ImageStore,
    PadCollate,
    StoreDataset,
    UnreadableImageError,
    open_radiograph,
    open_volume,
)
from monai_ssl.evaluation import (
    ModelCard,
    load_classifier,
    load_segmenter,
    open_unlabelled,
    open_unlabelled_volumes,
    read_classifier_card,
    read_segmenter_card,
    restore_class_numbers,
    write_label_map,
)

__all__ = ["classify_image", "segment_volume"]


@torch.no_grad()
def classify_image(model_path: Path, image: str | Path, device: str = "cpu") -> dict[str, float]:
    """Return the probability of each class.

    Args:
        model_path: of a classifier, with its card beside it.
        image: file.
        device: where to compute.

    Raises:
        FileNotFoundError, WeightsFileError: there is no such model, or it is damaged.
        ValueError: the image can't be read.
    """
    card = read_classifier_card(model_path)
    network = card.build()
    load_classifier(network, model_path)
    with tempfile.TemporaryDirectory() as work:
        batch = _batch(_store_of(image, card, Path(work)))
    view = card.prepared().view()(batch["image"].to(device), None, batch["extent"].to(device))
    p = card.probabilities(network.to(device).eval()(view))[0]
    return {name: round(float(value), 6) for name, value in zip(card.class_names, p, strict=True)}


@torch.no_grad()
def segment_volume(model_path: Path, image: str | Path, output: str | Path, device: str = "cpu") -> dict[str, Any]:
    """Write the label map of a volume in the voxels of its file.

    Args:
        model_path: of a segmentation network, with its card beside it.
        image: file.
        output: ``.nii.gz`` to write.
        device: where to compute.

    Returns:
        ``{"classes": {name: value in the label map}}``.

    Raises:
        FileNotFoundError, WeightsFileError: there is no such model, or it is damaged.
        ValueError: the volume can't be read.
    """
    card = read_segmenter_card(model_path)
    network = card.build()
    load_segmenter(network, model_path)
    with tempfile.TemporaryDirectory() as work:
        store = _store_of(image, card, Path(work))
        logits = card.inferer()(_batch(store)["image"].to(device), network.to(device).eval())[0]
        shape, affine = store.source_grid(0)
        write_label_map(output, restore_class_numbers(logits, store.affine(0), shape, affine), affine)
    return {"classes": {name: number for number, name in enumerate(card.class_names, 1)}}


def _store_of(image: str | Path, card: ModelCard, work: Path) -> ImageStore:
    folder = work / "image"
    folder.mkdir()
    image = Path(image).resolve()
    (folder / image.name).symlink_to(image)
    flat = card.spatial_dims == 2
    try:
        (open_radiograph if flat else open_volume)(image)
        return (open_unlabelled if flat else open_unlabelled_volumes)(folder, work / "data", card, num_workers=0)
    except UnreadableImageError as error:
        raise ValueError(f"{image.name} can't be used: {error.reason}") from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{image.name} can't be used: {error}") from error


def _batch(store: ImageStore) -> dict[str, Any]:
    return next(iter(DataLoader(StoreDataset(store, [0]), batch_size=1, num_workers=0, collate_fn=PadCollate())))
