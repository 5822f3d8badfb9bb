# SPDX-License-Identifier: Apache-2.0
"""What a downstream training starts from: a network, its weights, and how images must reach it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

from torch import nn

from monai_ssl.evaluation.preprocessing import Preprocessing
from monai_ssl.networks import build_classifier
from monai_ssl.weights import LoadReport, WeightsFileError, load_encoder, load_imagenet_weights, read_manifest

__all__ = ["MODES", "StartingPoint"]

logger = logging.getLogger(__name__)

MODES = ("linear", "finetune", "scratch")
_DEFAULT_SIZE = 128


class StartingPoint:
    """The network and its start, from the mode and a file of encoder weights.

    Args:
        mode: ``"linear"`` (frozen encoder; without weights a random one), ``"finetune"`` (needs weights), ``"scratch"``
            (takes none), or None: finetune with weights, else scratch.
        encoder_weights: a file of :func:`monai_ssl.weights.save_encoder`, or a local ImageNet checkpoint.
        architecture: None: the one the weights are of, else ``"resnet18"``.
        network_args: further arguments of the network; None: the ones the weights are of.
        image_size: one side or all, in pixels; None: the size the weights were trained at, else 128.
        spatial_dims: of the images; the weights' own if they say.
        in_channels: likewise.
        channel_policy: for an ImageNet checkpoint, see :func:`monai_ssl.weights.load_imagenet_weights`.

    Attributes:
        manifest: of the weights, or None.
        preprocessing: how images must reach the network.
        lineage: earlier training stages; complete after :meth:`build`.
        created: time at which this was made, in seconds since 1970.
        report: what became of the weights' tensors in :meth:`build`, or None.

    Raises:
        ValueError: the mode is unknown or does not go with (no) weights.
        FileNotFoundError: there is no such file.
        WeightsFileError: it is damaged.
    """

    def __init__(
        self,
        mode: str | None = None,
        encoder_weights: str | os.PathLike | None = None,
        architecture: str | None = None,
        network_args: dict[str, Any] | None = None,
        image_size: int | Sequence[int] | None = None,
        spatial_dims: int = 2,
        in_channels: int = 1,
        channel_policy: str = "sum",
    ) -> None:
        mode = mode or ("finetune" if encoder_weights else "scratch")
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if mode == "finetune" and not encoder_weights:
            raise ValueError("mode 'finetune' needs encoder_weights; mode 'scratch' trains from random weights")
        if mode == "scratch" and encoder_weights:
            raise ValueError("mode 'scratch' takes no encoder_weights; use 'finetune' or 'linear', or leave them out")
        self.created = time.time()
        self.mode, self.encoder_weights, self.channel_policy = mode, encoder_weights, channel_policy
        self.manifest = _manifest_of(encoder_weights)
        network = self.manifest["network"] if self.manifest else {}
        self.architecture = architecture or network.get("architecture", "resnet18")
        same = self.architecture == network.get("architecture")
        self.network_args = dict(network_args or (network["arguments"] if same else {}))
        self.spatial_dims = network.get("spatial_dims", spatial_dims)
        self.in_channels = network.get("in_channels", in_channels)
        size = self._all_sides(image_size)
        self.preprocessing = (
            Preprocessing.from_manifest(self.manifest, size)
            if self.manifest
            else Preprocessing(size or (_DEFAULT_SIZE,) * self.spatial_dims)
        )
        self.lineage: tuple[dict[str, Any], ...] = ()
        self.report: LoadReport | None = None
        if mode == "linear" and not encoder_weights:
            logger.warning("mode 'linear' without encoder_weights: this measures the features of a random network")

    def build(self, num_classes: int) -> nn.Module:
        """Build the classifier and load the weights; torch's global generator makes the rest.

        Raises:
            WeightsMismatchError: the weights are of another network.
        """
        net = build_classifier(
            self.architecture, num_classes, self.spatial_dims, self.in_channels, **self.complete_args()
        )
        if self.encoder_weights:
            if self.manifest:
                self.report = load_encoder(net, self.encoder_weights)
            else:
                self.report = load_imagenet_weights(net, self.encoder_weights, self.channel_policy)
            self.lineage = self.report.lineage
            logger.info("%s", self.report)
        return net

    def _all_sides(self, image_size: int | Sequence[int] | None) -> tuple[int, ...] | None:
        if image_size is None:
            return None
        sides = (image_size,) * self.spatial_dims if isinstance(image_size, int) else tuple(image_size)
        if len(sides) != self.spatial_dims or min(sides) < 1:
            raise ValueError(f"image_size must be one side or {self.spatial_dims} sides in pixels, got {image_size}")
        return sides

    def complete_args(self) -> dict[str, Any]:
        """Return the network's further arguments; a ViT is built for the size that images will have here."""
        if self.architecture != "vit":
            return self.network_args
        return {**self.network_args, "img_size": list(self.preprocessing.image_size)}


def _manifest_of(path: str | os.PathLike | None) -> dict[str, Any] | None:
    """The manifest, or None without a file or for a plain checkpoint, which tells nothing about itself."""
    if not path:
        return None
    try:
        return read_manifest(path)
    except WeightsFileError:
        if str(path).endswith((".pth", ".pt")):
            return None
        raise
