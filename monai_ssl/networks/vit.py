# SPDX-License-Identifier: Apache-2.0
"""Vision transformer as an encoder (Dosovitskiy et al., arXiv 2010.11929; MONAI's 2D and 3D implementation)."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks import nets
from torch import nn

from .encoders import ImageEncoder
from .patch_positions import patch_grid, resize_positions

__all__ = ["MeanTokenViT", "ViTImageEncoder", "drop_unused_norms"]


def drop_unused_norms(net: nets.ViT) -> None:
    """Freeze the layer that MONAI makes for cross attention even where there is none: idle, it would stop DDP."""
    for block in net.blocks:
        block.norm_cross_attn.requires_grad_(False)


class MeanTokenViT(nets.ViT):
    """MONAI's ViT with a linear classifier on the mean of the patch tokens.

    MONAI's own classification mode reads a class token, which the plain ViT (and UNETR's) does not have, ends in a tanh
    and returns a tuple. This one has the plain ViT's keys and ``classification_head``, and returns (B, num_classes).

    Args:
        num_classes: number of logits.
        network_args: arguments of ``monai.networks.nets.ViT``, with ``classification`` left out.
    """

    def __init__(self, num_classes: int, **network_args: Any) -> None:
        super().__init__(**network_args)
        self.classification_head = nn.Linear(self.norm.normalized_shape[0], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, num_classes) of images (B, C, *spatial)."""
        x = self.patch_embedding(x)  # (B, tokens, F)
        for block in self.blocks:
            x = block(x)
        return self.classification_head(self.norm(x).mean(1))


class ViTImageEncoder(ImageEncoder, wraps=nets.ViT, names=("vit",)):
    """Mean of the patch tokens after the final normalisation, at the image size the ViT was built for or at any.

    The mean of the tokens is taken, not a class token, because MONAI's plain ViT and UNETR's have no class token, so
    that one set of keys serves both; a class token that ``net`` has takes part in the attention and is left out of the
    mean. The pyramid has four maps of one resolution: after a quarter, half and three quarters of the blocks (3, 6 and
    9 of 12, as UNETR, arXiv 2103.10504, reads them) and after the final normalisation.

    ``build_encoder("vit", img_size=...)`` has MONAI's ViT-B sizes and ``patch_size=16`` unless given. ImageNet weights
    need ``qkv_bias=True`` to be complete.

    Images of another size than ``img_size`` are an error, unless ``interpolate_positions=True`` asks for them, as the
    small crops of DINO need. The position embeddings are then interpolated to the image's grid of patches (cubic in 2D,
    linear in 3D; what does not fill a patch at the far end of an axis is left out). At ``img_size`` nothing changes.
    ``build_classifier`` takes the argument too, so that it can be handed what the encoder was built with, but its
    network keeps to ``img_size``.

    Attributes:
        patch_size: sides of a patch in voxels.
        grid: patches along each axis of an image of ``img_size``; only their number where the arguments do not tell.
        interpolate_positions: see above.
    """

    head_prefixes = ("classification_head.",)
    stem_key = "patch_embedding.patch_embeddings.weight"

    def __init__(
        self, net: nn.Module, architecture: str | None = None, network_args: dict[str, Any] | None = None
    ) -> None:
        if net.patch_embedding.proj_type != "conv":
            raise ValueError(
                f"a ViT encoder needs proj_type='conv', this network has {net.patch_embedding.proj_type!r}"
            )
        super().__init__(net, architecture, network_args)
        self.patch_size = tuple(net.patch_embedding.patch_embeddings.kernel_size)
        self._steps = list(self.patch_size)  # TorchScript can't run over a tuple
        known = patch_grid(self.network_args, self.spatial_dims)
        self.grid = list(known or net.patch_embedding.position_embeddings.shape[1:2])
        self.interpolate_positions = bool(self.network_args.get("interpolate_positions", False))
        if self.interpolate_positions and known is None:
            raise ValueError("interpolate_positions needs the network's img_size and patch_size in network_args too")

    @staticmethod
    def count_features(net: nn.Module) -> int:
        """Return the width of the tokens."""
        return net.norm.normalized_shape[0]

    @classmethod
    def complete_args(cls, spatial_dims: int, network_args: dict[str, Any]) -> dict[str, Any]:
        """Fill in the patch size; ask for the image size."""
        if "img_size" not in network_args:
            raise ValueError("a vit needs img_size, the size of its input images, for example img_size=224")
        return {"patch_size": 16, **network_args}

    @classmethod
    def make_network(
        cls, architecture: str, spatial_dims: int, in_channels: int, num_classes: int | None, **network_args: Any
    ) -> nn.Module:
        """Build MONAI's ViT without class token, or :class:`MeanTokenViT`."""
        common = {"in_channels": in_channels, "spatial_dims": spatial_dims, **network_args}
        common.pop("interpolate_positions", None)  # the encoder's, not MONAI's
        net = nets.ViT(**common) if num_classes is None else MeanTokenViT(num_classes, **common)
        drop_unused_norms(net)
        return net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the pooled features (B, F) of images (B, C, *spatial)."""
        return self.encode_tokens(self.patch_tokens(x) + self.positions(x.shape[2:])).mean(1)

    def patch_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """Return one token (B, tokens, F) for each patch of images (B, C, *spatial), without its position.

        Raises:
            ValueError: the images are of another size than the ViT was built for, and it does not interpolate.
        """
        x = self.net.patch_embedding.patch_embeddings(x).flatten(2).transpose(1, 2)  # (B, F, *grid) -> (B, tokens, F)
        built_for = self.net.patch_embedding.position_embeddings.shape[1]
        if x.shape[1] != built_for and not self.interpolate_positions:
            raise ValueError(
                f"the images make {x.shape[1]} patches, but this ViT was built (img_size) for {built_for}; "
                "interpolate_positions=True lets it take other sizes"
            )
        return x

    def positions(self, size: list[int] | None = None) -> torch.Tensor:
        """Return the position embeddings (1, tokens, F) for images of ``size`` voxels; None: of ``img_size``."""
        positions = self.net.patch_embedding.position_embeddings
        if size is None or not self.interpolate_positions:
            return positions
        return resize_positions(positions, self.grid, [n // self._steps[axis] for axis, n in enumerate(size)])

    def encode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the normalised last states (B, tokens, F) of tokens with positions, which may be some of an image."""
        x = self._start(tokens)
        for block in self.net.blocks:
            x = block(x)
        return self._patches(self.net.norm(x))

    def encode_hidden(self, x: torch.Tensor, hidden: torch.Tensor, mask_token: torch.Tensor) -> torch.Tensor:
        """Return the normalised last states (B, tokens, F) of images some of whose patches are hidden.

        Args:
            x: (B, C, *spatial).
            hidden: (B, tokens) bool, True where a patch's token is replaced before its position is added.
            mask_token: (F,), what replaces it.
        """
        tokens = self.patch_tokens(x)
        tokens = torch.where(hidden[..., None], mask_token.to(tokens.dtype), tokens)
        return self.encode_tokens(tokens + self.positions(x.shape[2:]))

    def feature_maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return four maps (B, F, *grid), where grid is the image size divided by the patch size."""
        grid = [size // step for size, step in zip(x.shape[2:], self.patch_size, strict=True)]
        states = [self._start(self.patch_tokens(x) + self.positions(x.shape[2:]))]  # states[i]: after i blocks
        for block in self.net.blocks:
            states.append(block(states[-1]))
        depth = len(self.net.blocks)
        levels = [states[depth // 4], states[depth // 2], states[3 * depth // 4], self.net.norm(states[-1])]
        # (B, tokens, F) -> (B, F, tokens) -> (B, F, *grid)
        return [self._patches(level).transpose(1, 2).unflatten(2, grid) for level in levels]

    def _start(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.net.patch_embedding.dropout(tokens)
        if hasattr(self.net, "cls_token"):
            x = torch.cat((self.net.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        return x

    def _patches(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, 1:] if hasattr(self.net, "cls_token") else tokens
