# SPDX-License-Identifier: Apache-2.0
"""What every self-supervised method offers to the trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from monai_ssl.networks import ImageEncoder

__all__ = ["SSLMethod"]


class SSLMethod(nn.Module, ABC):
    """A network with its heads, teachers and losses: everything between a batch of views and a scalar to minimise.

    The trainer draws the views, calls the method, minimises ``"loss"`` and calls :meth:`after_step` after each
    optimiser step. All state (teacher, queue, prototypes) lives in parameters and persistent buffers, so that
    ``state_dict()`` is all a checkpoint needs.

    Args:
        encoder: the network to pretrain; what is exported at the end.
    """

    wants_positions: ClassVar[bool] = False
    """Whether ``batch["positions"]`` is wanted: where in the image each view was read."""

    positions_stride: int | Sequence[int] = 1
    """Pixels of a view, along each axis, to one position: by how much the method's feature map is smaller."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    @abstractmethod
    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute the loss of one batch.

        Args:
            batch: ``"views"``: list of tensors (B, C, *spatial), all views of the same B images; ``"index"``: (B,)
                int64 numbers of the images; ``"generator"``: ``torch.Generator`` on the views' device, or None. With
                ``wants_positions`` also ``"positions"``: for each view a float32 tensor (B, spatial_dims, *view size /
                positions_stride), in pixels of the image, NaN outside it; see
                :meth:`monai_ssl.transforms.ViewChain.positions`.

        Returns:
            ``"loss"``: scalar with gradient; ``"embedding"``: (B, D) unit vectors without gradient, for monitors; other
            entries have no gradient: scalars are logged under their names, larger tensors can be looked at. A method
            that rebuilds images gives ``"prediction"``, (B, C, *spatial), and, where they are not the first view
            itself, ``"target"`` and ``"corrupted"`` (or ``"mask"``, True where the view was hidden): TensorBoard
            shows them side by side.
        """

    @property
    def method_name(self) -> str:
        """The method's name in the manifest and in the lineage of later stages."""
        return type(self).__name__

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Refuse a batch that can't be used; called with what the loader gave, where looking costs no waiting.

        Args:
            batch: before it moves to the device and before there are views.

        Raises:
            ValueError: what is wrong and what to do.
        """

    def after_step(self, progress: float) -> None:
        """Update what no gradient updates (teacher, queue), once after each optimiser step.

        Args:
            progress: share of the training's optimiser steps that are done, in (0, 1].
        """

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return trainable parameters for an optimiser; biases and normalisation parameters are not decayed.

        A group may have the entry ``"constant_lr": True``: the trainer's schedule then leaves its learning rate alone.

        Args:
            weight_decay: decay of the weights (parameters of two and more dimensions).
        """
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]
