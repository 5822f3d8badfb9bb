# SPDX-License-Identifier: Apache-2.0
"""Supervised pretraining: the stage that a chain begins with, or is compared with.

Labels of a large set train the backbone first, as supervised ImageNet training does for most networks that fine-tune
(findings (i) and (iii) of Verma & Tapaswi, arXiv 2211.12931). With heads h_t on the encoder f and the loss of each
task over its known labels only (:mod:`monai_ssl.losses.masked_labels`)::

    L = sum over tasks t of w_t L_t(h_t(f(x)), y_t)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from monai_ssl.networks import ImageEncoder

from .base import SSLMethod
from .requirements import check_view
from .supervised_heads import SupervisedHeads
from .supervised_tasks import SupervisedTask

__all__ = ["Supervised"]


class Supervised(SSLMethod):
    """Train an encoder by labels, with the trainer, the views and the export of self-supervised pretraining.

    The exported file has the backbone (and the network's own decoder, if asked) and **no head**: a later stage makes
    new ones. The heads stay in the training's checkpoint, under ``heads.tasks.<name>.head``; to fine-tune a classifier
    that is to be used, take the classification bundles.

    Settings: as for fine-tuning, with weaker views than contrastive methods take, so that the class survives. A start
    for some thousand images on one GPU: AdamW, learning rate 1e-3, weight decay 0.05, batch 64, cosine schedule.

    Args:
        encoder: the network to train.
        tasks: one or more of :class:`ClassTask`, :class:`FindingsTask` and :class:`SegmentationTask`.

    Raises:
        ValueError: see the tasks.

    Example:
        >>> import torch
        >>> from monai_ssl.methods import ClassTask
        >>> from monai_ssl.networks import build_encoder
        >>> method = Supervised(build_encoder("resnet18"), ClassTask("label", num_classes=3))
        >>> out = method({"views": [torch.rand(4, 1, 32, 32)], "label": torch.tensor([0, 2, -1, 1])})
        >>> out["loss"].backward()
        >>> round(out["labelled"].item(), 2)
        0.75
    """

    def __init__(self, encoder: ImageEncoder, tasks: SupervisedTask | Sequence[SupervisedTask]) -> None:
        super().__init__(encoder)
        self.heads = SupervisedHeads(encoder, tasks)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute the loss of the first view; labels are entries of the batch, see the tasks.

        Returns:
            ``"loss"``, and what :meth:`SupervisedHeads.forward` names. A batch without any label has loss and gradients
            of zero.

        Raises:
            ValueError: the view does not fit the encoder, a label is missing or, on the CPU, of no class.
        """
        check_view(self, batch["views"][0])
        loss, out = self.heads(self.encoder, batch, 0)
        return {"loss": loss, **out}

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """See :meth:`SSLMethod.check_batch`: refuse labels of no class."""
        self.heads.check(batch)
