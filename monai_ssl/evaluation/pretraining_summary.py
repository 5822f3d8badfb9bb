# SPDX-License-Identifier: Apache-2.0
"""The end of a pretraining run: what it made, what that is worth, where it lies and what to do next."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader
from torch.utils.data import Dataset, Subset

from monai_ssl.data.datasets import PadCollate, StoreDataset
from monai_ssl.data.store import ImageStore
from monai_ssl.engines import is_main_process
from monai_ssl.evaluation.features import extract_features
from monai_ssl.evaluation.labels import ClassificationLabels
from monai_ssl.evaluation.place_probe import PlaceProbe
from monai_ssl.evaluation.preprocessing import Preprocessing
from monai_ssl.evaluation.probes import linear_probe, regularisation_rule
from monai_ssl.evaluation.run_facts import describe_lineage, device_name, package_versions
from monai_ssl.metrics import (
    BootstrapInterval,
    area_under_roc,
    bootstrap_difference,
    bootstrap_interval,
    effective_rank,
)
from monai_ssl.networks import ImageEncoder, build_encoder
from monai_ssl.weights import atomic_file, open_encoder, read_manifest

__all__ = ["pretraining_summary"]

_CONFIG = "configs/train.yaml"
_DRAWS = 10  # of few labels


def pretraining_summary(
    weights: str | os.PathLike,
    store: ImageStore,
    pool_rows: Sequence[int] | np.ndarray,
    preprocessing: Preprocessing,
    output_dir: str | os.PathLike,
    *,
    labels: ClassificationLabels | None = None,
    places: PlaceProbe | None = None,
    images: Dataset | None = None,
    split: str = "val",
    seed: int = 0,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    num_workers: int = 0,
    pool_images: int = 2000,
    resamples: int = 1000,
    few_labels: int = 32,
    downstream_bundle: str | os.PathLike = "bundles/radiograph_classification",
    next_arguments: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Judge the encoder in a file against the same network untrained; write and print the verdict.

    A linear probe is fitted to the frozen features of the labelled training images (standardised by the pool's
    statistics) and scored on the images of ``split``, for the encoder and for its untrained twin: the same network with
    the weights that ``seed`` gives it. Intervals and the difference are by patient. Where there are enough, the same
    is told for a tenth of the labels, drawn ten times. Without labels only the effective
    rank of the features is told, which says whether the encoder collapsed, not whether it is useful.

    Args:
        weights: ``encoder.safetensors``.
        store: of the images.
        pool_rows: rows that were pretrained on.
        preprocessing: how images reach the encoder.
        output_dir: gets ``summary.json`` and ``summary.md``; a ``loss_curve.png`` in it is named.
        labels: with the splits ``"train"`` and ``split``; None: there are none.
        places: labelled places of volumes, in place of ``labels``; their patches are then all that is looked at.
        images: what is looked at of each row of the store, such as slices; None: its images, whole.
        split: whose images are scored.
        seed: of the untrained twin and of the draws.
        device: where to compute.
        batch_size: of the feature extraction.
        num_workers: of the loader.
        pool_images: at most so many images of the pool are used.
        resamples: of the bootstrap.
        few_labels: least number of labels in a draw of a tenth; nothing is drawn when twice as many are not there.
        downstream_bundle: for the command that fine-tunes next.
        next_arguments: further overrides of that command; those that are None are left out.

    Returns:
        What ``summary.json`` holds; None in a process that is not the main one.

    Raises:
        FileNotFoundError: there are no weights.
        WeightsFileError: they are damaged.
        ValueError: the labels have no such split.
    """
    if not is_main_process():
        return None
    manifest = read_manifest(weights)
    if places is None:
        pool, view = _drawn(np.asarray(pool_rows), pool_images, seed), preprocessing.view()
        images = StoreDataset(store) if images is None else images
    else:
        labels, images, view = places.labels, places.places, places.view
        pool = labels.rows["train"]
    needed = {"pool": pool}
    if labels is not None:
        if not {"train", split} <= labels.rows.keys():
            raise ValueError(f"the labels need the splits train and {split}, they have {', '.join(labels.rows)}")
        needed |= {"train": labels.rows["train"], split: labels.rows[split]}
    encoders = {"pretrained": open_encoder(weights), "untrained": _untrained(manifest["network"], seed)}
    features = {
        name: _features(encoder, images, needed, view, device, batch_size, num_workers)
        for name, encoder in encoders.items()
    }
    summary: dict[str, Any] = {
        "weights": str(weights),
        "method": manifest["method"],
        "lineage": describe_lineage([*(manifest["lineage"] or ()), manifest]),
        "architecture": manifest["network"]["architecture"],
        "num_features": manifest["network"]["num_features"],
        "images_seen": manifest["images_seen"],
        "pool_images": len(pool_rows),
        "probed": "images" if places is None else "places",
        "seed": seed,
        "device": device_name(device),
        "versions": package_versions(),
        "effective_rank": {
            name: float(effective_rank(torch.from_numpy(found["pool"]), center=True))
            for name, found in features.items()
        },
        "probe": None if labels is None else _probe(features, labels, split, seed, resamples, few_labels),
    }
    summary["verdict"] = _verdict(summary)
    summary["next_command"] = _command(weights, downstream_bundle, next_arguments or {})
    curve = Path(output_dir) / "loss_curve.png"
    summary["loss_curve"] = str(curve) if curve.is_file() else None
    text = _text(summary, Path(weights))
    for name, content in (("summary.json", json.dumps(summary, indent=2)), ("summary.md", _markdown(text, summary))):
        with atomic_file(Path(output_dir) / name) as file:
            file.write(content.encode())
    print(text, flush=True)
    return summary


def _untrained(network: dict[str, Any], seed: int) -> ImageEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(
            network["architecture"], network["spatial_dims"], network["in_channels"], **network["arguments"]
        )


def _drawn(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    return rows if len(rows) <= most else np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def _features(
    encoder: ImageEncoder,
    images: Dataset,
    needed: dict[str, np.ndarray],
    view: Callable[..., torch.Tensor],
    device: torch.device | str,
    batch_size: int,
    num_workers: int,
) -> dict[str, np.ndarray]:
    """Features of each set of rows, every image computed once."""
    rows = np.unique(np.concatenate(list(needed.values())))
    chosen = Subset(images, rows.tolist())
    loader = DataLoader(chosen, batch_size=batch_size, num_workers=num_workers, collate_fn=PadCollate())
    x = extract_features(encoder, loader, view, device)[0].numpy()
    return {name: x[np.searchsorted(rows, wanted)] for name, wanted in needed.items()}


def _probe(
    features: dict[str, dict[str, np.ndarray]],
    labels: ClassificationLabels,
    split: str,
    seed: int,
    resamples: int,
    few_labels: int,
) -> dict[str, Any]:
    train, scored = labels.rows["train"], labels.rows[split]
    truth, groups = labels.targets[scored], labels.groups[scored]
    scores, found = {}, {}
    for name, x in features.items():
        probe = linear_probe(
            x["train"],
            labels.targets[train],
            reference=x["pool"],
            groups=labels.groups[train],
            num_classes=None if labels.multilabel else len(labels.class_names),
            class_names=labels.class_names,
            seed=seed,
        )
        scores[name] = probe.probabilities(x[split])
        found[name] = {"c": probe.c}
    options = {"groups": groups, "n": resamples, "seed": seed}
    for name, score in scores.items():
        found[name] |= _interval(bootstrap_interval, truth, score, options)
    difference = _interval(bootstrap_difference, truth, scores["pretrained"], scores["untrained"], options)
    return {
        "split": split,
        "classes": list(labels.class_names),
        "num_labels": len(train),
        "num_scored": len(scored),
        **found,
        "difference": difference,
        "few_labels": _few_labels(features, labels, split, seed, few_labels),
    }


def _few_labels(
    features: dict[str, dict[str, np.ndarray]], labels: ClassificationLabels, split: str, seed: int, fewest: int
) -> dict[str, Any] | None:
    """The same with a tenth of the labels, drawn by patient several times: there pretraining has most to give."""
    train, truth = labels.rows["train"], labels.targets[labels.rows[split]]
    count = max(fewest, len(train) // 10)
    if 2 * count > len(train):
        return None
    patients, position = np.unique(labels.groups[train], return_inverse=True)
    aucs: dict[str, list[float]] = {name: [] for name in features}
    for draw in range(_DRAWS):
        place = np.random.default_rng([seed, draw]).permutation(len(patients))
        chosen = np.argsort(place[position], kind="stable")[:count]
        if not _has_all_classes(labels.targets[train[chosen]], len(labels.class_names)):
            continue
        for name, x in features.items():
            probe = linear_probe(
                x["train"][chosen],
                labels.targets[train[chosen]],
                reference=x["pool"],
                c=regularisation_rule(count),
                num_classes=None if labels.multilabel else len(labels.class_names),
            )
            aucs[name].append(area_under_roc(truth, probe.probabilities(x[split])))
    if not aucs["pretrained"]:
        return None
    found = {name: {"auc": float(np.mean(a)), "low": min(a), "high": max(a)} for name, a in aucs.items()}
    ahead = sum(a > b for a, b in zip(aucs["pretrained"], aucs["untrained"], strict=True))
    return {"num_labels": count, "draws": len(aucs["pretrained"]), "draws_ahead": ahead, **found}


def _has_all_classes(targets: np.ndarray, count: int) -> bool:
    if targets.ndim == 2:
        return bool(((targets == 1).any(axis=0) & (targets == 0).any(axis=0)).all())
    return len(np.unique(targets[targets >= 0])) == count


def _interval(bootstrap, *arguments: Any) -> dict[str, float | None]:
    """Value and interval; no interval where too few patients carry some class."""
    *arrays, options = arguments
    try:
        found: BootstrapInterval = bootstrap(area_under_roc, *arrays, **options)
        return {"auc": found.value, "low": found.low, "high": found.high}
    except ValueError:
        truth, first, *second = arrays
        value = area_under_roc(truth, first) - (area_under_roc(truth, second[0]) if second else 0.0)
        return {"auc": value, "low": None, "high": None}


def _verdict(summary: dict[str, Any]) -> str:
    rank, untrained = summary["effective_rank"]["pretrained"], summary["effective_rank"]["untrained"]
    if rank < 2:
        return f"The encoder has collapsed: all images get nearly the same features (effective rank {rank:.1f})."
    if summary["probe"] is None:
        return (
            f"No labels: what the encoder is worth for a task is not known. Its features use {rank:.0f} directions "
            f"(the untrained network's {untrained:.0f}), so it has not collapsed."
        )
    difference = summary["probe"]["difference"]
    if difference["low"] is None:
        return "Too few patients carry some class to say how sure the difference to the untrained network is."
    if difference["low"] > 0:
        return "The encoder is better than the untrained network, beyond what the choice of patients explains."
    if difference["high"] < 0:
        return "The encoder is WORSE than the untrained network: do not use it; look at the loss curve and the recipe."
    few = summary["probe"]["few_labels"]
    if few is not None and few["draws_ahead"] == few["draws"] >= _DRAWS // 2:
        return (
            f"With {few['num_labels']} labels the encoder is better than the untrained network in every draw; with all "
            "of them the two can't be told apart."
        )
    return "The encoder can't be told from the untrained network on these images: train longer, or label more of them."


def _command(weights: str | os.PathLike, bundle: str | os.PathLike, arguments: dict[str, Any]) -> str:
    bundle = str(bundle).rstrip("/")
    parts = ["python -m monai.bundle run", f"--bundle_root {shlex.quote(bundle)}"]
    parts.append(f"--config_file {shlex.quote(f'{bundle}/{_CONFIG}')}")
    given = {"encoder_weights": weights, **arguments}
    parts += [f"--{name} {shlex.quote(str(value))}" for name, value in given.items() if value is not None]
    return " ".join(parts)


def _text(summary: dict[str, Any], weights: Path) -> str:
    rank = summary["effective_rank"]
    seen = f", {summary['images_seen']} images seen" if summary["images_seen"] else ""
    size = f"{weights.stat().st_size / 1e6:.1f} MB"
    rows = {
        "encoder": f"{weights} ({summary['architecture']}, {summary['method']}{seen}, {size})",
        "features": f"effective rank {rank['pretrained']:.1f} of {summary['num_features']}, "
        f"untrained {rank['untrained']:.1f}",
    }
    probe = summary["probe"]
    if probe is not None:
        rows["linear probe"] = (
            f"AUC {_with_interval(probe['pretrained'])}, untrained {_with_interval(probe['untrained'])}, difference "
            f"{_with_interval(probe['difference'], '+')} ({probe['num_labels']} labels, {probe['num_scored']} "
            f"{summary['probed']} of {probe['split']})"
        )
        if few := probe["few_labels"]:
            rows["few labels"] = (
                f"AUC {_with_interval(few['pretrained'])}, untrained {_with_interval(few['untrained'])} "
                f"({few['num_labels']} labels, mean and range of {few['draws']} draws)"
            )
    if summary["loss_curve"]:
        rows["loss curve"] = summary["loss_curve"]
    rows["verdict"] = summary["verdict"]
    rows["next"] = summary["next_command"]
    return "\n".join(f"{name:<13} {value}" for name, value in rows.items())


def _markdown(text: str, summary: dict[str, Any]) -> str:
    lines = [f"# {summary['method']} pretraining: what came out", "", "```", text, "```", ""]
    if summary["loss_curve"]:
        lines += [f"![loss curve]({Path(summary['loss_curve']).name})", ""]
    versions = ", ".join(f"{name} {value}" for name, value in summary["versions"].items())
    return "\n".join([*lines, f"Seed {summary['seed']}, {summary['device']}, {versions}.", ""])


def _with_interval(found: dict[str, float | None], sign: str = "") -> str:
    value = f"{found['auc']:{sign}.3f}"
    return value if found["low"] is None else f"{value} ({found['low']:{sign}.3f} to {found['high']:{sign}.3f})"
