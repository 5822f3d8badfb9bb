# SPDX-License-Identifier: Apache-2.0
"""What one encoder, pretrained on several sources at once, gives a linear probe on each of them.

Flat images are asked for a column of labels; of volumes slices are shown, and asked for a column too or, with
``label_map``, for the class that fills most of the slice. Beside it stands the same network untrained.

    python -m benchmarks.modality_probes --encoder_weights encoder.safetensors --sources sources.yaml --cache_dir DATA \
        --labels chest=label ct=malignant mr=label_map ultrasound=label
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch.utils.data import DataLoader, Dataset, Subset

from monai_ssl.data import ImageSource, PadCollate, StoreDataset, VolumeSliceDataset, open_mixture
from monai_ssl.evaluation import Preprocessing, classification_labels, extract_features, linear_probe
from monai_ssl.evaluation.labelled_rows import patients_of
from monai_ssl.metrics import area_under_roc, bootstrap_difference, bootstrap_interval
from monai_ssl.networks import build_encoder
from monai_ssl.weights import open_encoder, read_manifest

SLICES = 6  # of each volume


def question(source: ImageSource, column: str, axis: int) -> tuple[Dataset, np.ndarray, np.ndarray, np.ndarray]:
    """Images of a source with their class (-1: none), patient and split."""
    store = source.store
    splits = np.array([str(value) for value in store.table["split"].to_pylist()])
    if source.kind == "images":
        targets = classification_labels(store, column, where=source.where, splits=("train", "test")).targets
        return StoreDataset(store), targets, patients_of(store.table), splits
    maps = column == "label_map"
    slices = VolumeSliceDataset(store, axis=axis, label_maps=maps)
    codes = np.arange(SLICES * len(slices))
    rows = codes % len(slices)
    if maps:
        targets = np.array([_filling(slices[int(code)]["label_map"]) for code in codes]) - 1
    else:
        targets = classification_labels(store, column, splits=("train", "test")).targets[rows]
    return Subset(slices, codes.tolist()), targets, patients_of(store.table)[rows], splits[rows]


def _filling(label_map: torch.Tensor) -> int:
    counts = torch.bincount(label_map.flatten().long(), minlength=2)[1:]
    return int(counts.argmax()) + 1 if counts.sum() else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder_weights", required=True)
    parser.add_argument("--sources", required=True, help="a configuration with the key 'sources'")
    parser.add_argument("--cache_dir", required=True, help="that of the pretraining")
    parser.add_argument("--labels", nargs="+", required=True, help="SOURCE=COLUMN, or SOURCE=label_map")
    parser.add_argument("--stored_side", type=int, default=256)
    parser.add_argument("--slice_axis", type=int, default=0)
    arguments = parser.parse_args()
    config = ConfigParser(ConfigParser.load_config_file(arguments.sources) | {"stored_side": arguments.stored_side})
    sources = open_mixture(config.get_parsed_content("sources"), arguments.cache_dir, progress=False)
    manifest = read_manifest(arguments.encoder_weights)
    network, view = manifest["network"], Preprocessing.from_manifest(manifest).view()
    torch.manual_seed(0)
    shape = (network["architecture"], network["spatial_dims"], network["in_channels"])
    encoders = {
        "pretrained": open_encoder(arguments.encoder_weights),
        "untrained": build_encoder(*shape, **network["arguments"]),
    }
    print("| source | question | labelled, scored | pretrained | untrained | difference |\n|---|---|---|---|---|---|")
    for name, column in (pair.split("=", 1) for pair in arguments.labels):
        images, targets, patients, splits = question(sources[name], column, arguments.slice_axis)
        train, test = (np.flatnonzero((splits == split) & (targets >= 0)) for split in ("train", "test"))
        chosen = np.concatenate([train, test])
        loader = DataLoader(Subset(images, chosen.tolist()), batch_size=64, collate_fn=PadCollate())
        scores = {}
        for kind, encoder in encoders.items():
            x = extract_features(encoder, loader, view)[0].numpy()
            probe = linear_probe(x[: len(train)], targets[train], groups=patients[train])
            scores[kind] = probe.probabilities(x[len(train) :])
        options = {"groups": patients[test], "n": 1000, "seed": 0}
        shown = [bootstrap_interval(area_under_roc, targets[test], score, **options) for score in scores.values()]
        shown.append(bootstrap_difference(area_under_roc, targets[test], *scores.values(), **options))
        cells = [
            f"{found.value:{sign}.3f} ({found.low:{sign}.3f} to {found.high:{sign}.3f})"
            for found, sign in zip(shown, ("", "", "+"), strict=True)
        ]
        print(f"| {name} | {column} | {len(train)}, {len(test)} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
