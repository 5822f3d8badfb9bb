# SPDX-License-Identifier: Apache-2.0
"""What the app learns: an encoder from all images, a classifier or a segmentation network from the labelled ones.

A model takes the place of the last one when its training is over; one that was stopped leaves the last one as it was.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from monai_ssl.data import ImageStore
from monai_ssl.evaluation import (
    ClassificationLabels,
    ClassifierCard,
    SegmentationLabels,
    StartingPoint,
    fit_head,
    save_classifier,
    segmentation_labels,
)
from monai_ssl.evaluation.study.training_cells import train_bundle
from monai_ssl.label.annotation.bundles import allowed_settings
from monai_ssl.label.annotation.folder import StudiesFolder
from monai_ssl.label.annotation.labels import ClassLabels, class_labels
from monai_ssl.weights import atomic_file

__all__ = ["learn_classes", "learn_masks", "pretrain_encoder", "volume_labels"]

_MAX_SIDE = 512  # of prepared radiographs, open_radiographs' own default


def pretrain_encoder(
    folder: StudiesFolder, images: Mapping[str, str], bundle: Path, request: Mapping[str, Any]
) -> dict[str, Any]:
    """Pretrain on all images, labelled or not, going on from the present encoder if there is one.

    Args:
        folder: of the studies.
        images: path of each image by its id.
        bundle: of a self-supervised pretraining.
        request: settings, see ``allowed_settings``.

    Returns:
        What to tell the client.

    Raises:
        ValueError, RuntimeError, OSError: what the run ended with.
    """
    wanted = allowed_settings(request)
    run = _fresh(folder.state / "runs" / "pretraining")
    settings: dict[str, Any] = {"cache_dir": str(folder.state / "pretraining_data")}
    try:
        settings["encoder_weights"] = str(folder.encoder)
        settings["store"] = folder.open_store(images)
        settings["pool_rows"] = np.arange(len(settings["store"]))
    except FileNotFoundError:  # the first encoder of these images: the bundle prepares them its own way
        settings["dataset_dir"] = str(folder.link_images(images))
    _train(bundle, run, settings | wanted)
    _publish(run / "encoder.safetensors", folder.state / "encoder.safetensors")
    shutil.rmtree(run, ignore_errors=True)
    return {"images": len(images)}


def learn_classes(
    folder: StudiesFolder,
    images: Mapping[str, str],
    labels: Mapping[str, str],
    request: Mapping[str, Any],
    bundle: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Learn a classifier from the labelled images: a linear probe on the encoder, or the bundle's fine-tuning.

    Args:
        folder: of the studies.
        images: path of each image by its id.
        labels: path of each label by the image's id.
        request: ``mode`` (``"linear"`` or ``"finetune"``) and settings of the bundle.
        bundle: of a classification; only fine-tuning needs it.
        device: where to compute.

    Raises:
        ValueError: there are too few labels, or what the run ended with.
    """
    wanted, mode = allowed_settings(request), request.get("mode") or "linear"
    if mode not in ("linear", "finetune"):
        raise ValueError("mode must be 'linear' or 'finetune'")
    if mode == "finetune" and bundle is None:
        raise ValueError("mode 'finetune' needs a classification bundle: start the server with --bundle")
    given = class_labels(labels)
    if len(given.class_names) < (1 if given.multilabel else 2):
        raise ValueError(f"all labelled images are {given.class_names[0] if given.class_names else 'without findings'}")
    store = folder.open_store(images)
    question = _question(store, images, given)
    start = StartingPoint("linear" if mode == "linear" else "finetune", folder.encoder)
    preprocessing = start.preprocessing.with_store(store)
    target = folder.model("classification")
    if mode == "linear":
        network = start.build(len(question.class_names))
        fit_head(network, start, store, question, preprocessing.view(), device=device)
        max_side = _MAX_SIDE if store.spatial_dims == 2 else None
        card = ClassifierCard.describe(start, question, preprocessing, max_side, 0)
        made = _fresh(folder.state / "runs" / "classification") / "model.pt"
        save_classifier(network, card, made)
    else:
        run = _fresh(folder.state / "runs" / "classification")
        settings = {
            "store": store,
            "labels": question,
            "encoder_weights": str(folder.encoder),
            "mode": "finetune",
            "keep": "last",  # to keep the best would need labels that are not learned from
            "run": ["@head", "$@train::trainer.run()"],
            "val_interval": 1,
        }
        _train(bundle, run, settings | wanted)
        made = run / "model.pt"
    _publish_model(made, target)
    return {"labelled": len(given.targets), "classes": given.class_names, "mode": mode}


def learn_masks(
    folder: StudiesFolder,
    images: Mapping[str, str],
    labels: Mapping[str, str],
    request: Mapping[str, Any],
    bundle: Path,
) -> dict[str, Any]:
    """Fine-tune the bundle's segmentation network from the encoder, with the labelled volumes.

    Args:
        folder: of the studies.
        images: path of each image by its id.
        labels: path of each label map by the image's id.
        request: settings of the bundle.
        bundle: of a segmentation.

    Raises:
        ValueError: there is no label map yet, or what the run ended with.
    """
    wanted = allowed_settings(request)
    maps = {image: path for image, path in labels.items() if not path.lower().endswith(".json") and image in images}
    if not maps:
        raise ValueError("no image has a label map yet: label one, then train")
    data = _fresh(folder.state / "runs" / "segmentation_data")
    rows = []
    for number, (image, path) in enumerate(sorted(maps.items())):
        names = [f"{kind}/{number:05d}{''.join(Path(file).suffixes[-2:])}" for kind, file in
                 (("volumes", images[image]), ("label_maps", path))]  # fmt: skip
        for name, file in zip(names, (images[image], path), strict=True):
            (data / name).parent.mkdir(exist_ok=True)
            os.symlink(Path(file).resolve(), data / name)
        rows.append({"file": names[0], "label_map": names[1]})
    with open(data / "labels.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file", "label_map"])
        writer.writeheader()
        writer.writerows(rows)
    run = _fresh(folder.state / "runs" / "segmentation")
    settings = {
        "dataset_dir": str(data),
        "cache_dir": str(run / "data"),
        "labels": {
            "_target_": "monai_ssl.label.annotation.training.volume_labels",
            "store": "@store",
            "classes": "@classes",
        },
        "encoder_weights": str(folder.encoder),
        "mode": "finetune",
        "keep": "last",
        "run": ["$@train::trainer.run()"],
        "val_interval": 1,
    }
    if folder.modality:
        settings["modality"] = folder.modality
    _train(bundle, run, settings | wanted)
    _publish_model(run / "model.pt", folder.model("segmentation"))
    return {"labelled": len(maps)}


def volume_labels(store: ImageStore, classes: Any = None) -> SegmentationLabels:
    """Return the question of a store of which every volume is learned from."""
    labels = segmentation_labels(store, classes, splits=("all",))
    rows = labels.rows["all"]
    return replace(labels, rows=dict.fromkeys(("train", "val", "test", "pool"), rows))


def _question(store: ImageStore, images: Mapping[str, str], given: ClassLabels) -> ClassificationLabels:
    """The question of all labelled images of a store; all others are its pool."""
    id_of = {Path(path).name: image for image, path in images.items()}
    names = store.table["path"].to_pylist()
    targets = given.array([id_of[name] for name in names])
    known = np.flatnonzero(targets[:, 0] >= 0 if given.multilabel else targets >= 0)
    if not len(known):
        raise ValueError("none of the labelled images can be read")
    task = "multilabel" if given.multilabel else "binary" if len(given.class_names) == 2 else "multiclass"
    groups = np.array([str(value) for value in store.table["group_id"].to_pylist()])
    rows = {**dict.fromkeys(("train", "val", "test"), known), "pool": np.arange(len(names))}
    return ClassificationLabels(task, given.class_names, targets, groups, rows, 1.0, "", "", "label")


def _train(bundle: Path, run: Path, settings: dict[str, Any]) -> None:
    log = run / "log.txt"
    own = {"bundle_root": str(bundle), "output_dir": str(run)}
    train_bundle(bundle / "configs/train.yaml", log, **own, **settings)


def _fresh(run: Path) -> Path:
    """An empty folder; what a training that was killed left there is removed."""
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    return run


def _publish_model(made: Path, target: Path) -> None:
    """Put the card and the weights in the place of the last ones; the card's hash tells a pair that is not one."""
    for suffix in (".pt", ".json"):
        _publish(made.with_suffix(suffix), target.with_suffix(suffix))
    shutil.rmtree(made.parent, ignore_errors=True)


def _publish(made: Path, target: Path) -> None:
    with atomic_file(target) as file:
        file.write(made.read_bytes())
