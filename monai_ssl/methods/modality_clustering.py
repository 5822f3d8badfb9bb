# SPDX-License-Identifier: Apache-2.0
r"""Online clustering of images of several modalities at once.

Ghesu, Georgescu, Mansoor, Yoo, Neumann, Patel, Vishwanath, Balter, Cao, Grbic, Comaniciu, *Self-supervised Learning
from 100 Million Medical Images*, arXiv 2201.01283: radiographs, CT, MR and ultrasound in one training by the swapped
prediction of cluster codes, see :mod:`monai_ssl.methods.swav` for the equations. How modalities are kept apart is our
reading, not the paper's text.

Sinkhorn's equal use of all prototypes acts on whatever is assigned together. A mixed batch would be divided by modality
first: an image's nearest prototype would tell its modality, and little else. So the codes are made within each source:

.. math::
    q_i = \mathrm{Sinkhorn}(\{ s_j / \epsilon : \mathrm{source}_j = \mathrm{source}_i \})_i

over the batch and the source's own queue, and each source uses its prototypes alike. Prototypes are shared by all
sources, or each source has K of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from monai_ssl.networks import ImageEncoder

from .online_clustering import OnlineClustering
from .requirements import check_views

__all__ = ["ModalityClustering"]


class ModalityClustering(OnlineClustering):
    """SwAV on images of several sources: modalities, body parts, scanners.

    ``batch["source"]``, (B,) int64, gives the number of each image's source. A batch may hold one source or a mixture;
    a source that is missing adds nothing. In several processes each may hold other sources. Every image counts alike
    in the loss: how much a source counts is decided by how batches are sampled.

    The defaults and the recipes are SwAV's (:class:`SwAV`), also for some thousand images; the 100-million paper's own
    numbers are not known to us. Assigned together is here one source's part of the batch, with its queue: in a mixed
    batch of 64 with four sources 16 images, for which 64 prototypes are too many without ``queue_size``.

    Args:
        encoder: the network to pretrain.
        num_sources: S.
        prototypes: "shared" by all sources, or "per_source": ``num_prototypes`` for each.
        assign_within: "source": each source uses the prototypes alike. "batch": the whole batch does, and may divide
            them by source; for comparison. Without a queue both are the same for batches of one source each.
        source_names: of the S sources, for the log; None: "source_0", "source_1", ...
        num_prototypes: K; see :class:`SwAV`, also for the other arguments.
        temperature: t.
        epsilon: of the codes.
        sinkhorn_iterations: rounds of Sinkhorn's normalisation.
        embedding_dim: D.
        hidden_features: width of the projector's hidden layer.
        freeze_steps: optimiser steps during which the prototypes do not move.
        queue_size: features kept for *each source*; 0 is no queue. Each source's is used once it is full.
        queue_start: share of the training after which queues are used.
        queue_start_step: number of optimiser steps that replaces it.

    Attributes:
        last_losses: (S,) buffer, each source's loss in the latest step that had images of it; before the first: log K.

    Raises:
        ValueError: an option is unknown, a number out of its range, or prototypes of each source are to be assigned
            over the whole batch.

    Example:
        >>> from monai_ssl.networks import build_encoder
        >>> method = ModalityClustering(build_encoder("resnet18"), 2, num_prototypes=4, hidden_features=64)
        >>> views = [torch.rand(8, 1, 32, 32) for _ in range(2)]
        >>> out = method({"views": views, "source": torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])})
        >>> sorted(name for name in out if name.startswith("loss"))
        ['loss', 'loss_source_0', 'loss_source_1']
    """

    last_losses: Tensor

    def __init__(
        self,
        encoder: ImageEncoder,
        num_sources: int,
        *,
        prototypes: Literal["shared", "per_source"] = "shared",
        assign_within: Literal["source", "batch"] = "source",
        source_names: Sequence[str] | None = None,
        num_prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        embedding_dim: int = 128,
        hidden_features: int = 2048,
        freeze_steps: int = 313,
        queue_size: int = 0,
        queue_start: float = 0.075,
        queue_start_step: int | None = None,
    ) -> None:
        if num_sources < 1:
            raise ValueError(f"num_sources must be at least 1, got {num_sources}")
        if prototypes not in ("shared", "per_source"):
            raise ValueError(f"prototypes must be 'shared' or 'per_source', got {prototypes!r}")
        if assign_within not in ("source", "batch"):
            raise ValueError(f"assign_within must be 'source' or 'batch', got {assign_within!r}")
        if prototypes == "per_source" and assign_within == "batch":
            raise ValueError("prototypes 'per_source' can only be assigned within their source: assign_within='source'")
        names = [f"source_{number}" for number in range(num_sources)] if source_names is None else list(source_names)
        if len(names) != num_sources or len(set(names)) < num_sources:
            raise ValueError(f"source_names must be {num_sources} different names, got {names}")
        super().__init__(
            encoder,
            num_prototypes=num_prototypes,
            temperature=temperature,
            epsilon=epsilon,
            sinkhorn_iterations=sinkhorn_iterations,
            embedding_dim=embedding_dim,
            hidden_features=hidden_features,
            freeze_steps=freeze_steps,
            queue_size=queue_size,
            queue_start=queue_start,
            queue_start_step=queue_start_step,
            num_sources=num_sources,
            own_prototypes=prototypes == "per_source",
            assign_within_source=assign_within == "source",
        )
        self.source_names = names
        self.register_buffer("last_losses", torch.full((num_sources,), math.log(num_prototypes)))
        self._new_losses: Tensor | None = None
        self._sources_checked = False

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward` and :meth:`SwAV.forward`; needs ``batch["source"]`` (B,) beside the views.

        Also returns each source's loss, ``"loss_<name>"``: of this process's images, or the latest there was.

        Raises:
            ValueError: there is no ``"source"``, or its shape, type or numbers do not fit; and as :class:`SwAV`.
        """
        views = check_views(self, batch["views"], most=None)
        source = self._checked_source(batch.get("source"), views[0])
        output, losses = self.swap(views, source)
        member = (source == torch.arange(self.num_sources, device=source.device)[:, None]).to(losses.dtype)  # (S, B)
        count = member.sum(dim=1)
        # No matrix product: autocast would round it to its type.
        mean = (member * losses.detach()).sum(dim=1) / count.clamp(min=1)
        self._new_losses = torch.where(count > 0, mean, self.last_losses)
        return output | {f"loss_{name}": loss for name, loss in zip(self.source_names, self._new_losses, strict=True)}

    def after_step(self, progress: float) -> None:
        """See :class:`OnlineClustering`; also keeps each source's loss for batches that lack the source."""
        super().after_step(progress)
        if self._new_losses is not None:
            self.last_losses.copy_(self._new_losses)
            self._new_losses = None

    def _checked_source(self, source: Tensor | None, view: Tensor) -> Tensor:
        if source is None:
            raise ValueError(
                "ModalityClustering needs each image's source in batch['source'], (B,) int64, which the batch does not "
                "have"
            )
        if source.shape != view.shape[:1] or source.dtype != torch.int64:
            raise ValueError(
                f"batch['source'] must be int64 of shape ({len(view)},), got {source.dtype} {tuple(source.shape)}"
            )
        # Looked at in every step on a CPU, elsewhere in the first one only: it makes the host wait for the device.
        if source.device.type == "cpu" or not self._sources_checked:
            if len(source) and not 0 <= int(source.min()) <= int(source.max()) < self.num_sources:
                raise ValueError(
                    f"batch['source'] must hold numbers from 0 to {self.num_sources - 1} (num_sources="
                    f"{self.num_sources}), got {sorted(set(source.tolist()))}"
                )
            self._sources_checked = True
        return source
