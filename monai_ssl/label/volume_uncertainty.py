# SPDX-License-Identifier: Apache-2.0
"""How unsure a segmentation network is about whole volumes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from monai.data import DataLoader
from torch import Tensor, nn

from monai_ssl.data import PadCollate, StoreDataset
from monai_ssl.data.store import ImageStore
from monai_ssl.evaluation import load_segmenter, read_segmenter_card
from monai_ssl.label.entropy import entropy_uncertainty
from monai_ssl.label.epistemic import epistemic_uncertainty
from monai_ssl.label.margin import margin_uncertainty

__all__ = ["dropout_on", "volume_uncertainty"]

_MEASURES = {"margin": margin_uncertainty, "entropy": entropy_uncertainty}


@torch.no_grad()
def volume_uncertainty(
    model_path: Path,
    store: ImageStore,
    rows: np.ndarray,
    kinds: Collection[str],
    *,
    members: int = 10,
    device: str = "cpu",
) -> dict[str, np.ndarray]:
    """Return the mean uncertainty of the voxels of each volume.

    Args:
        model_path: of the network's weights, with its card beside them.
        store: of the volumes.
        rows: ``(N,)`` rows of the store.
        kinds: some of ``"margin"``, ``"entropy"`` and ``"epistemic"``.
        members: passes with dropout, for the last.
        device: where to compute.

    Returns:
        Kind to ``(N,)`` scores.

    Raises:
        FileNotFoundError, WeightsFileError: see :func:`monai_ssl.evaluation.load_segmenter`.
        ValueError: ``"epistemic"`` is wanted of a network without dropout.
    """
    card = read_segmenter_card(model_path)
    network = card.build()
    load_segmenter(network, model_path)
    network.to(device).eval()
    inferer = card.inferer()

    def probabilities(image: Tensor) -> np.ndarray:
        p = inferer(image, network).float().softmax(dim=1)  # (1, C, *spatial)
        return p.flatten(2).transpose(1, 2).double().cpu().numpy()  # (1, voxels, C)

    found = {kind: np.full(len(rows), np.nan) for kind in kinds}
    loader = DataLoader(StoreDataset(store, rows), batch_size=1, num_workers=0, collate_fn=PadCollate())
    for place, batch in enumerate(loader if len(rows) else ()):
        image = batch["image"].to(device)
        if asked := _MEASURES.keys() & set(kinds):
            p = probabilities(image)
            for kind in asked:
                found[kind][place] = _MEASURES[kind](p)[0]
        if "epistemic" in kinds:
            with dropout_on(network):
                passes = np.stack([probabilities(image) for _ in range(members)])
            found["epistemic"][place] = epistemic_uncertainty(passes)[0]
    return found


@contextmanager
def dropout_on(network: nn.Module) -> Iterator[None]:
    """Let a network's dropout draw; the rest stays in evaluation mode.

    Raises:
        ValueError: it has no dropout.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.modules.dropout._DropoutNd) and module.p]
    if not layers:
        raise ValueError(
            "the strategy 'epistemic' needs a network with dropout: give it some by network_args (dropout_prob of a "
            "SegResNet, dropout of a UNet), or leave the strategy out"
        )
    modes = [layer.training for layer in layers]
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.train(mode)
