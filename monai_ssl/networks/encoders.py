# SPDX-License-Identifier: Apache-2.0
"""The image encoder: a real MONAI network, its pooled feature vector and its pyramid of feature maps.

A network class is supported by one small subclass of :class:`ImageEncoder`; ``ImageEncoder(net)`` finds it. To add
one::

    class SENetImageEncoder(ImageEncoder, wraps=nets.SENet, names=("senet154",)):
        head_prefixes = ("last_linear.",)
        ...

Networks that also decode have a base of their own, :class:`~monai_ssl.networks.EncoderDecoder`.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

import torch
from torch import nn

__all__ = ["ImageEncoder", "build_classifier", "build_encoder", "encoder_architectures"]


class ImageEncoder(nn.Module):
    """A MONAI network seen as an encoder.

    ``ImageEncoder(net)`` returns the subclass for the class of ``net``. The network stays reachable, unchanged, as
    ``.net``, and :meth:`encoder_state_dict` has exactly its keys, so that weights move to and from plain MONAI networks
    without renaming. A classification head that ``net`` carries is kept but not used; :func:`build_encoder` makes
    networks without one. Every subclass can be given to ``torch.jit.script``, where its docstring does not say that it
    can't.

    Args:
        net: a network of a supported class.
        architecture: the name it was built under, as :func:`build_encoder` takes it. Default: its class name.
        network_args: the further arguments it was built with (plain JSON values).

    Attributes:
        net: the MONAI network.
        num_features: F, the length of the pooled vector.
        spatial_dims: 2 or 3.
        in_channels: channels of the input image.
        architecture: see above.
        network_args: ``build_encoder(architecture, spatial_dims, in_channels, **network_args)`` builds it again.
        lineage: one dictionary for each earlier training stage the weights went through, oldest first.

    Raises:
        ValueError: no adapter knows the class of ``net``, or ``network_args`` holds something other than JSON values.
    """

    head_prefixes: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the keys of ``net`` that belong to a task head, not to the encoder."""

    decoder_prefixes: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the keys of ``net`` that belong to a decoder which does not depend on the task."""

    stem_key: ClassVar[str] = ""
    """Key of the first convolution's weight, (out, in_channels, *kernel): what changes with the input channels."""

    _adapters: ClassVar[dict[type[nn.Module], type[ImageEncoder]]] = {}
    _architectures: ClassVar[dict[str, type[ImageEncoder]]] = {}

    def __init_subclass__(cls, wraps: type[nn.Module] | None = None, names: tuple[str, ...] = ()) -> None:
        super().__init_subclass__()
        if wraps is not None:
            ImageEncoder._adapters[wraps] = cls
            ImageEncoder._architectures.update(dict.fromkeys(names, cls))

    def __new__(cls, net: nn.Module | None = None, *args: Any, **kwargs: Any) -> ImageEncoder:
        """Make an object of the subclass that knows the class of ``net``."""
        if cls is ImageEncoder:
            cls = ImageEncoder.adapter_of(net)
            if cls is None:
                known = ", ".join(sorted(base.__name__ for base in ImageEncoder._adapters))
                raise ValueError(
                    f"ImageEncoder knows no network of class {type(net).__name__}; it knows {known} and subclasses"
                )
        return super().__new__(cls)

    def __init__(
        self, net: nn.Module, architecture: str | None = None, network_args: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.net = net
        self.architecture = architecture or type(net).__name__
        self.network_args = _plain_json(network_args or {})
        self.lineage: tuple[dict[str, Any], ...] = ()
        self.num_features = self.count_features(net)
        stem = net.get_parameter(self.stem_key)
        self.spatial_dims = stem.ndim - 2
        self.in_channels = stem.shape[1]

    @staticmethod
    def count_features(net: nn.Module) -> int:
        """Return the length of the pooled feature vector of ``net``."""
        raise NotImplementedError

    @classmethod
    def make_network(
        cls, architecture: str, spatial_dims: int, in_channels: int, num_classes: int | None, **network_args: Any
    ) -> nn.Module:
        """Build the MONAI network: without a head for ``num_classes=None``, else as a classifier."""
        raise NotImplementedError

    @classmethod
    def complete_args(cls, spatial_dims: int, network_args: dict[str, Any]) -> dict[str, Any]:
        """Return ``network_args`` with this package's own defaults filled in."""
        return dict(network_args)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the pooled features (B, F) of images (B, C, *spatial)."""
        raise NotImplementedError

    def feature_maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the pyramid of feature maps (B, C_i, *spatial_i), finest first."""
        raise NotImplementedError

    @staticmethod
    def adapter_of(net: nn.Module | None) -> type[ImageEncoder] | None:
        """Return the subclass that knows the class of ``net``, or None."""
        known = (ImageEncoder._adapters.get(base) for base in type(net).__mro__)
        return next((adapter for adapter in known if adapter is not None), None)

    @classmethod
    def is_encoder_key(cls, key: str) -> bool:
        """Tell whether a key of ``net.state_dict()`` belongs to the encoder (not to its decoder or task head)."""
        return not key.startswith(cls.head_prefixes + cls.decoder_prefixes)

    def encoder_state_dict(self, with_decoder: bool = False) -> dict[str, torch.Tensor]:
        """Return the weights and buffers under MONAI's own keys, without the task head.

        Args:
            with_decoder: the decoder's too, if there is one.
        """
        decoder = self.decoder_prefixes if with_decoder else ()
        return {
            key: value
            for key, value in self.net.state_dict().items()
            if self.is_encoder_key(key) or (decoder and key.startswith(decoder))
        }

    def extra_repr(self) -> str:
        """Return what ``print`` shows beside the network."""
        return (
            f"architecture={self.architecture!r}, spatial_dims={self.spatial_dims}, in_channels={self.in_channels}, "
            f"num_features={self.num_features}"
        )


def build_encoder(architecture: str, spatial_dims: int = 2, in_channels: int = 1, **network_args: Any) -> ImageEncoder:
    """Build a MONAI network without its head, as an encoder.

    Args:
        architecture: one of :func:`encoder_architectures`, for example ``"resnet18"``, ``"densenet121"``,
            ``"efficientnet-b0"`` or ``"vit"``.
        spatial_dims: 2 or 3.
        in_channels: channels of the input image.
        network_args: further arguments of the MONAI network. A ResNet's stem has ``conv1_t_stride=2`` unless given (as
            in the paper and in torchvision; MONAI's own default of 1 costs four times the time); a ViT needs
            ``img_size``; a segmentation network (``"segresnet"``, ``"unet"``, ``"basicunet"``, ``"dynunet"``,
            ``"flexibleunet"``, ``"swinunetr"``, ...) keeps its decoder if ``out_channels`` is given.

    Returns:
        The encoder, randomly initialised as MONAI does it.

    Raises:
        ValueError: an unknown architecture, number of dimensions or argument.

    Example:
        >>> encoder = build_encoder("resnet18", spatial_dims=2)
        >>> encoder(torch.rand(4, 1, 64, 64)).shape
        torch.Size([4, 512])
        >>> [tuple(m.shape[1:]) for m in encoder.feature_maps(torch.rand(4, 1, 64, 64))][::4]
        [(64, 32, 32), (512, 2, 2)]
    """
    adapter, arguments = _resolve(architecture, spatial_dims, network_args)
    net = _make(adapter, architecture, spatial_dims, in_channels, None, arguments)
    return adapter(net, architecture, arguments)


def build_classifier(
    architecture: str, num_classes: int, spatial_dims: int = 2, in_channels: int = 1, **network_args: Any
) -> nn.Module:
    """Build the MONAI classification network whose backbone has the keys of :func:`build_encoder`'s.

    It pools the features as the encoder does and ends in one linear layer: (B, C, *spatial) -> (B, num_classes) logits.
    EfficientNet keeps MONAI's dropout before that layer.

    Args:
        architecture: as for :func:`build_encoder`.
        num_classes: number of logits.
        spatial_dims: 2 or 3.
        in_channels: channels of the input image.
        network_args: as for :func:`build_encoder`; pass the same to load its weights.

    Raises:
        ValueError: an unknown architecture, number of dimensions or argument.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    adapter, arguments = _resolve(architecture, spatial_dims, network_args)
    return _make(adapter, architecture, spatial_dims, in_channels, num_classes, arguments)


def encoder_architectures() -> list[str]:
    """Return the names that :func:`build_encoder` and :func:`build_classifier` take."""
    return sorted(ImageEncoder._architectures)


def _resolve(architecture: str, spatial_dims: int, network_args: dict) -> tuple[type[ImageEncoder], dict[str, Any]]:
    if architecture not in ImageEncoder._architectures:
        raise ValueError(f"unknown architecture {architecture!r}; known are {', '.join(encoder_architectures())}")
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
    if "pretrained" in network_args:
        raise ValueError("pretrained is not taken here: build first, then use monai_ssl.weights to load a local file")
    adapter = ImageEncoder._architectures[architecture]
    return adapter, adapter.complete_args(spatial_dims, network_args)


def _make(
    adapter: type[ImageEncoder],
    architecture: str,
    spatial_dims: int,
    in_channels: int,
    num_classes: int | None,
    arguments: dict[str, Any],
) -> nn.Module:
    try:
        return adapter.make_network(architecture, spatial_dims, in_channels, num_classes, **arguments)
    except TypeError as error:
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise ValueError(f"MONAI's {architecture} can't be built with {given}: {error}") from error


def _plain_json(arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(arguments))
    except TypeError as error:
        raise ValueError(
            f"network arguments must be numbers, strings, lists or dictionaries, so that they can be stored with the "
            f"weights: {error}"
        ) from error
