# SPDX-License-Identifier: Apache-2.0
"""What the training of a segmentation network starts from, and the network itself."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, ClassVar

from monai.networks import nets
from torch import nn

from monai_ssl.evaluation.starting_point import StartingPoint
from monai_ssl.networks import EncoderDecoder, build_encoder, encoder_architectures

__all__ = ["SegmentationStart", "build_segmenter", "freeze_encoder", "set_encoder_training"]

logger = logging.getLogger(__name__)


def build_segmenter(
    architecture: str, num_classes: int, spatial_dims: int = 3, in_channels: int = 1, **network_args: Any
) -> EncoderDecoder:
    """Build a MONAI segmentation network with one channel for the background and one for each class.

    Args:
        architecture: of :func:`monai_ssl.networks.build_encoder`, one that has a decoder (``"segresnet"``, ``"unet"``,
            ``"dynunet"``, ``"basicunet"``, ``"flexibleunet"``, ...).
        num_classes: K, without the background.
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        network_args: further arguments of the MONAI network. A DynUNet takes ``deep_supervision`` too.

    Returns:
        The adapter around the network ``.net``: (B, C, *spatial) -> (B, 1 + K, *spatial) logits.

    Raises:
        ValueError: an unknown architecture or argument, or one without a decoder.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    arguments = {key: value for key, value in network_args.items() if key != "out_channels"}
    error: Exception | None = None
    try:
        built = build_encoder(architecture, spatial_dims, in_channels, out_channels=1 + num_classes, **arguments)
        if getattr(built, "out_channels", None) is not None:
            return _with_supervised_depths(built) if arguments.get("deep_supervision") else built
    except ValueError as raised:
        if "out_channels" not in str(raised) or architecture not in encoder_architectures():
            raise
        error = raised
    raise ValueError(
        f"a {architecture!r} has no decoder and cannot segment; use architecture 'segresnet', 'unet', 'dynunet', "
        "'basicunet', or 'flexibleunet' (which takes the weights of a ResNet)"
    ) from error


def _with_supervised_depths(built: EncoderDecoder) -> EncoderDecoder:
    """Build a DynUNet again with its heads for deep supervision, which encoders are built without."""
    if not isinstance(built.net, nets.DynUNet):
        return built
    net = nets.DynUNet(built.spatial_dims, built.in_channels, **built.network_args)
    return type(built)(net, built.architecture, built.network_args)


class SegmentationStart(StartingPoint):
    """The segmentation network and its start, from the mode and a file of encoder weights.

    Weights of a ResNet go into a FlexibleUNet with that ResNet inside, unless ``architecture`` says otherwise. Where
    the file has a decoder of the same network, it is loaded too.

    Args:
        mode: ``"frozen"`` (the encoder stays as it is, decoder and head learn), ``"finetune"`` (needs weights),
            ``"scratch"`` (takes none), or None: finetune with weights, else scratch.
        encoder_weights: see :class:`monai_ssl.evaluation.StartingPoint`.
        architecture: None: the one the weights are of, else ``"segresnet"``.
        network_args: further arguments of the network; None: the ones the weights are of.
        patch_size: one side or all, in voxels (D, H, W): what training cuts out and the sliding window looks at. None:
            the size the weights were trained at, else 96.
        spatial_dims: of the images; the weights' own if they say.
        in_channels: likewise.
        channel_policy: see :class:`monai_ssl.evaluation.StartingPoint`.
        spacing_mm: of the prepared volumes, one distance or one for each of (D, H, W); None: what the weights were
            trained at, if they say, else each volume's own.

    Raises:
        ValueError: the mode is unknown or does not go with (no) weights, or the patch does not suit the network.
        FileNotFoundError: there is no such file.
        WeightsFileError: it is damaged.
    """

    modes: ClassVar[tuple[str, str, str]] = ("frozen", "finetune", "scratch")
    other_names: ClassVar[dict[str, str]] = {}
    default_architecture: ClassVar[str] = "segresnet"
    default_size: ClassVar[int] = 96

    def __init__(
        self,
        mode: str | None = None,
        encoder_weights: str | os.PathLike | None = None,
        architecture: str | None = None,
        network_args: dict[str, Any] | None = None,
        patch_size: int | Sequence[int] | None = None,
        spatial_dims: int = 3,
        in_channels: int = 1,
        channel_policy: str = "sum",
        spacing_mm: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            mode,
            encoder_weights,
            architecture,
            network_args,
            patch_size,
            spatial_dims,
            in_channels,
            channel_policy,
            spacing_mm,
        )

    def choose_network(
        self, network: dict[str, Any], architecture: str | None, network_args: dict[str, Any] | None
    ) -> tuple[str, dict[str, Any]]:
        """Return architecture and arguments; a ResNet becomes the backbone of a FlexibleUNet."""
        theirs = network.get("architecture", "")
        if theirs.startswith("resnet") and architecture in (None, "flexibleunet"):
            return "flexibleunet", dict(network_args or {"backbone": theirs})
        return super().choose_network(network, architecture, network_args)

    def build(self, num_classes: int) -> EncoderDecoder:
        """Build the network, load the weights and, in the mode ``"frozen"``, freeze the encoder.

        Torch's global generator makes the rest.

        Args:
            num_classes: K, without the background.

        Raises:
            ValueError: the architecture has no decoder, or the patch's sides are no multiples of what it needs.
            WeightsMismatchError: the weights are of another network.
        """
        encoder = build_segmenter(
            self.architecture, num_classes, self.spatial_dims, self.in_channels, **self.complete_args()
        )
        size = self.preprocessing.image_size
        if any(side % divisor for side, divisor in zip(size, encoder.size_divisor, strict=True)):
            raise ValueError(
                f"patch_size {list(size)} does not suit {self.architecture}: its sides must be multiples of "
                f"{list(encoder.size_divisor)}"
            )
        self.load_into(encoder)
        if self.mode == "frozen":
            freeze_encoder(encoder, True)
        return encoder


def freeze_encoder(encoder: EncoderDecoder, frozen: bool) -> None:
    """Stop or let the encoder's parameters learn; decoder and head are left as they are."""
    for name, parameter in encoder.net.named_parameters():
        if encoder.is_encoder_key(name):
            parameter.requires_grad_(not frozen)


def set_encoder_training(encoder: EncoderDecoder, training: bool) -> None:
    """Put the encoder's layers (normalisation, dropout) into training or evaluation mode; the decoder's stay."""
    for name, module in encoder.net.named_modules():
        if encoder.is_encoder_key(f"{name}.") and next(module.children(), None) is None:
            module.train(training)


def trains_encoder(network: nn.Module) -> bool:
    """Whether any parameter of an adapter's encoder learns."""
    return any(p.requires_grad for name, p in network.net.named_parameters() if network.is_encoder_key(name))
