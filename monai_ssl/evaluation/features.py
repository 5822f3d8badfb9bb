# SPDX-License-Identifier: Apache-2.0
"""Run a frozen encoder over images, once, and keep its features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from monai_ssl.networks import ImageEncoder

__all__ = ["extract_features"]

_TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@torch.no_grad()
def extract_features(
    encoder: ImageEncoder,
    loader: Iterable[dict[str, Any]],
    view: Callable[..., Tensor] | None = None,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    layers: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute one feature vector for each image of a loader, in evaluation mode.

    Args:
        encoder: is moved to ``device``, and left in the mode (training, evaluation) it was in.
        loader: yields ``{"image": (B, C, *spatial), "index": (B,), "extent": (B, spatial_dims), ...}``; ``extent`` may
            be absent.
        view: called as ``view(image, None, extent)`` on the device, for example
            :func:`monai_ssl.transforms.evaluation_view`. None: images are taken as they are.
        device: where to compute.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``: the autocast type of the device.
        layers: None for the encoder's own pooled vector; or indices into its pyramid of feature maps (finest first,
            negative from the end), whose means over space are put side by side: ``(-2, -1)`` adds the last but one
            stage, which helps probes with many labels.

    Returns:
        Features ``(N, F)`` float32 and image numbers ``(N,)`` int64, both on the CPU, in the loader's order.

    Raises:
        ValueError: the loader yields no batch, a name or index is unknown, or a feature is not finite.
    """
    if precision not in _TYPES:
        raise ValueError(f"precision must be one of {', '.join(_TYPES)}, got {precision!r}")
    device = torch.device(device)
    was_training = encoder.training
    encoder.to(device).eval()
    features, index = [], []
    try:
        for batch in loader:
            image = batch["image"].to(device, non_blocking=True)
            if view is not None:
                extent = batch.get("extent")
                image = view(image, None, None if extent is None else extent.to(device))
            with _autocast(device, precision):
                vectors = encoder(image) if layers is None else _pooled_maps(encoder, image, layers)
            features.append(vectors.float().cpu())
            index.append(torch.as_tensor(batch["index"]).long().cpu())
    finally:
        encoder.train(was_training)
    if not features:
        raise ValueError("there are no images to compute features of: the loader is empty")
    features, index = torch.cat(features), torch.cat(index)
    if not features.isfinite().all():
        bad = int((~features.isfinite()).any(dim=1).sum())
        raise ValueError(f"{bad} of {len(features)} images have features that are NaN or infinite; try precision fp32")
    return features, index


def _autocast(device: torch.device, precision: str):
    dtype = _TYPES[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _pooled_maps(encoder: ImageEncoder, image: Tensor, layers: Sequence[int]) -> Tensor:
    maps = encoder.feature_maps(image)
    wrong = [layer for layer in layers if not -len(maps) <= layer < len(maps)]
    if wrong or not layers:
        raise ValueError(f"layers must be indices of {encoder.architecture}'s {len(maps)} feature maps, got {layers}")
    # (B, C_i, *spatial_i) -> (B, C_i), side by side (B, sum of C_i)
    return torch.cat([maps[layer].float().flatten(2).mean(2) for layer in layers], dim=1)
