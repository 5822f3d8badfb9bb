# SPDX-License-Identifier: Apache-2.0
"""What a downstream training starts from: a network, its weights, and how images must reach it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from monai_ssl.evaluation.preprocessing import Preprocessing, checked_spacing, shown_spacing
from monai_ssl.networks import build_classifier
from monai_ssl.weights import LoadReport, WeightsFileError, load_encoder, load_imagenet_weights, read_manifest

__all__ = ["MODES", "StartingPoint"]

logger = logging.getLogger(__name__)

MODES = ("linear", "finetune", "scratch")


class StartingPoint:
    """The network and its start, from the mode and a file of encoder weights.

    Args:
        mode: ``"linear"`` or ``"frozen"`` (a linear layer on the frozen encoder; without weights a random one),
            ``"finetune"`` (needs weights), ``"scratch"`` (takes none), or None: finetune with weights, else scratch.
        encoder_weights: a file of :func:`monai_ssl.weights.save_encoder`, or a local ImageNet checkpoint.
        architecture: None: the one the weights are of, else ``"resnet18"``.
        network_args: further arguments of the network; None: the ones the weights are of.
        image_size: one side or all, in pixels; None: the size the weights were trained at, else 128.
        spatial_dims: of the images; the weights' own if they say.
        in_channels: likewise.
        channel_policy: for an ImageNet checkpoint, see :func:`monai_ssl.weights.load_imagenet_weights`.
        spacing_mm: of volumes, one distance or one for each axis; None: what the weights were trained at, if they say.
        fit: how whole images are brought to ``image_size``, see :class:`monai_ssl.transforms.CenterResample`; None: as
            the weights say, else ``"stretch"``.

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

    modes: ClassVar[tuple[str, str, str]] = MODES
    """The frozen encoder's, then ``"finetune"`` and ``"scratch"``."""

    other_names: ClassVar[dict[str, str]] = {"frozen": "linear"}
    """Other words for a mode."""

    default_architecture: ClassVar[str] = "resnet18"
    default_size: ClassVar[int] = 128

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
        spacing_mm: float | Sequence[float] | None = None,
        fit: str | None = None,
    ) -> None:
        frozen = self.modes[0]
        mode = mode or ("finetune" if encoder_weights else "scratch")
        mode = self.other_names.get(mode, mode)
        if mode not in self.modes:
            raise ValueError(f"mode must be one of {', '.join(self.modes)}, got {mode!r}")
        if mode == "finetune" and not encoder_weights:
            raise ValueError("mode 'finetune' needs encoder_weights; mode 'scratch' trains from random weights")
        if mode == "scratch" and encoder_weights:
            raise ValueError(
                f"mode 'scratch' takes no encoder_weights; use 'finetune' or {frozen!r}, or leave them out"
            )
        self.created = time.time()
        self.mode, self.encoder_weights, self.channel_policy = mode, encoder_weights, channel_policy
        self.manifest = _manifest_of(encoder_weights)
        network = self.manifest["network"] if self.manifest else {}
        self.architecture, self.network_args = self.choose_network(network, architecture, network_args)
        self.spatial_dims = network.get("spatial_dims", spatial_dims)
        self.in_channels = network.get("in_channels", in_channels)
        self.preprocessing = self._preprocessing(self._all_sides(image_size), spacing_mm, fit)
        self.lineage: tuple[dict[str, Any], ...] = ()
        self.report: LoadReport | None = None
        if mode == frozen and not encoder_weights:
            logger.warning("mode %r without encoder_weights: this measures the features of a random network", frozen)

    def choose_network(
        self, network: dict[str, Any], architecture: str | None, network_args: dict[str, Any] | None
    ) -> tuple[str, dict[str, Any]]:
        """Return architecture and further arguments: what was asked for, else what the weights are of.

        Args:
            network: the manifest's entry, or empty.
            architecture: as asked for.
            network_args: as asked for.
        """
        name = architecture or network.get("architecture", self.default_architecture)
        same = name == network.get("architecture")
        arguments = dict(network_args or (network["arguments"] if same else {}))
        arguments.pop("out_channels", None)  # of the decoder that the weights were trained with: the classes decide
        return name, arguments

    def build(self, num_classes: int) -> nn.Module:
        """Build the classifier and load the weights; torch's global generator makes the rest.

        Raises:
            WeightsMismatchError: the weights are of another network.
        """
        return self.load_into(
            build_classifier(
                self.architecture, num_classes, self.spatial_dims, self.in_channels, **self.complete_args()
            )
        )

    def load_into(self, net: nn.Module) -> nn.Module:
        """Load the weights, if there are any, into a network that was built for them, and return it.

        Raises:
            WeightsMismatchError: the weights are of another network.
        """
        if self.encoder_weights:
            if self.manifest:
                self.report = load_encoder(net, self.encoder_weights)
            else:
                self.report = load_imagenet_weights(net, self.encoder_weights, self.channel_policy)
            self.lineage = self.report.lineage
            logger.info("%s", self.report)
        return net

    def _preprocessing(
        self, size: tuple[int, ...] | None, spacing_mm: float | Sequence[float] | None, fit: str | None
    ) -> Preprocessing:
        if self.manifest:
            found = Preprocessing.from_manifest(self.manifest, size)
        else:
            found = Preprocessing(size or (self.default_size,) * self.spatial_dims)
        if fit is not None:
            found = Preprocessing.from_dict({**found.to_dict(), "fit": fit})
        if spacing_mm is None:
            return found
        wanted = checked_spacing(spacing_mm, self.spatial_dims)
        if found.spacing_mm not in (None, wanted):
            logger.warning(
                "the weights were trained at %s; here volumes have %s",
                shown_spacing(found.spacing_mm),
                shown_spacing(wanted),
            )
        return replace(found, spacing_mm=wanted)

    def _all_sides(self, image_size: int | Sequence[int] | None) -> tuple[int, ...] | None:
        if image_size is None:
            return None
        sides = (image_size,) * self.spatial_dims if isinstance(image_size, int) else tuple(image_size)
        if len(sides) != self.spatial_dims or min(sides) < 1:
            raise ValueError(f"image_size must be one side or {self.spatial_dims} sides in pixels, got {image_size}")
        return sides

    def complete_args(self) -> dict[str, Any]:
        """Return the network's further arguments; vision transformers are built for the size that images have here."""
        if self.architecture not in ("vit", "unetr"):
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
