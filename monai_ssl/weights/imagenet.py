# SPDX-License-Identifier: Apache-2.0
"""Start from a local checkpoint of torchvision, timm or the like, such as supervised ImageNet training."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from torch import nn

from .files import WeightsFileError, read_tensors
from .imagenet_names import NAMINGS, recognise
from .match import EncoderTensors, transfer
from .report import LoadReport

__all__ = ["load_imagenet_weights", "read_checkpoint"]

_NESTED = ("state_dict", "model_state_dict", "model", "network", "net", "weights")


def load_imagenet_weights(
    net: nn.Module, path: str | os.PathLike, channel_policy: str | None = "sum", min_coverage: float = 0.9
) -> LoadReport:
    """Load a checkpoint with torchvision's or timm's names into a MONAI network; the classifier is left out.

    Known are torchvision's and timm's ResNet, torchvision's DenseNet (old and new names), EfficientNet and ViT, timm's
    ViT, and lukemelas' EfficientNet. A ViT's position embeddings are interpolated to the network's grid; its query, key
    and value biases need a network built with ``qkv_bias=True``. Nothing is downloaded and nothing but tensors is
    unpickled.

    The weights expect images as the checkpoint's network got them, usually standardised per channel.

    Args:
        net: an encoder, or any network with the encoder inside; changed in place, untouched after an error.
        path: a local ``.pth``/``.pt`` state dictionary (plain, or under ``state_dict``, ``model``, ...) or
            ``.safetensors`` file.
        channel_policy: how the three input channels become the network's
            (:func:`monai_ssl.weights.adapt_channels`); None refuses.
        min_coverage: as in :func:`monai_ssl.weights.load_encoder`.

    Returns:
        What became of each tensor.

    Raises:
        FileNotFoundError: no such file.
        WeightsFileError: unreadable, with objects other than tensors, or with names that are not known.
        WeightsMismatchError: too little fits, or the first layer does not.
    """
    tensors = read_checkpoint(path)
    known = recognise(tensors)
    if known is None:
        shown = ", ".join(list(tensors)[:3])
        raise WeightsFileError(
            f"the names in {path} ({shown}, ...) are not known; known are: {', '.join(n.name for n in NAMINGS)}"
        )
    naming, inside, prefix = known
    found = EncoderTensors(
        source=str(path),
        tensors=naming.to_monai(inside),
        stem_key=naming.stem_key,
        architecture=naming.name,
        stem_stride=naming.stem_stride,
        notes=[note for note in (naming.note, prefix and f"taken from under {prefix!r} of the file") if note],
        lineage=(
            {
                "method": "checkpoint",
                "naming": naming.name,
                "sha256": _sha256(path),
                "channel_policy": channel_policy,
            },
        ),
    )
    return transfer(net, found, min_coverage, channel_policy)


def read_checkpoint(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Return the tensors of a state dictionary in a ``.pth``, ``.pt`` or ``.safetensors`` file, on the CPU.

    Only tensors and plain containers are unpickled (``weights_only=True``), so that a file can't run code.

    Raises:
        FileNotFoundError: no such file.
        WeightsFileError: unreadable, with other objects inside, or without tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsFileError(
            f"{path} was refused: it is damaged, no PyTorch checkpoint, or holds objects other than tensors, which "
            f"could run code when loaded ({reason[:200]}). Ask for a plain state dictionary or a .safetensors file"
        ) from error
    for name in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    items = content.items() if isinstance(content, dict) else ()
    tensors = {str(key): value for key, value in items if isinstance(value, torch.Tensor)}
    if not tensors:
        raise WeightsFileError(f"{path} holds no state dictionary (names and tensors)")
    return tensors


def _sha256(path: str | os.PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
