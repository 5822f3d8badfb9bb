# SPDX-License-Identifier: Apache-2.0
"""The machine that SwAV and its form for several modalities share: projector, prototypes, codes and queue.

Caron et al., arXiv 2006.09882; see :mod:`monai_ssl.methods.swav` for the equations.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from monai_ssl.losses import SwappedPredictionLoss, is_distributed
from monai_ssl.networks import ImageEncoder, MLPHead, Prototypes, SourceQueues, forward_by_size

from .base import SSLMethod

__all__ = ["OnlineClustering"]

logger = logging.getLogger(__name__)

ASSIGNING = 2  # views that give codes: the first two, the large ones


class OnlineClustering(SSLMethod):
    """Encoder, projector, prototypes and a queue for each source of images; subclasses say what the sources are.

    Args:
        encoder: the network to pretrain.
        num_prototypes: K, prototypes that an image is assigned to.
        temperature: t, positive.
        epsilon: of the codes, positive.
        sinkhorn_iterations: rounds of Sinkhorn's normalisation.
        embedding_dim: D, length of the embedding.
        hidden_features: width of the projector's hidden layer (with BatchNorm and ReLU).
        freeze_steps: optimiser steps during which the prototypes do not move; see :class:`Prototypes`.
        queue_size: features of each source that are kept for the assignment, for each of the two large views; 0 is no
            queue. Over all processes: each one holds them all and assigns its share.
        queue_start: share of the training, in [0, 1], after which queues are used, each once it is full.
        queue_start_step: number of optimiser steps that replaces it; None: the share.
        num_sources: S, sources of images.
        own_prototypes: each source has K prototypes of its own; else all share them.
        assign_within_source: each source uses the prototypes alike; else the whole batch does.

    Attributes:
        queue: :class:`SourceQueues`, or None.
        queue_started: whether the time of the queue has come (scalar bool buffer, only with a queue).

    Raises:
        ValueError: a number is out of its range.
    """

    queue_started: Tensor

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        num_prototypes: int,
        temperature: float,
        epsilon: float,
        sinkhorn_iterations: int,
        embedding_dim: int,
        hidden_features: int,
        freeze_steps: int,
        queue_size: int,
        queue_start: float,
        queue_start_step: int | None,
        num_sources: int = 1,
        own_prototypes: bool = False,
        assign_within_source: bool = False,
    ) -> None:
        super().__init__(encoder)
        if queue_size < 0:
            raise ValueError(f"queue_size must not be negative, got {queue_size}")
        if not 0 <= queue_start <= 1:
            raise ValueError(f"queue_start is a share of the training, in [0, 1], got {queue_start}")
        self.head = MLPHead(encoder.num_features, hidden_features, embedding_dim, batch_norm=True)
        self.prototypes = Prototypes(
            num_prototypes * (num_sources if own_prototypes else 1), embedding_dim, freeze_steps
        )
        self.criterion = SwappedPredictionLoss(temperature, epsilon, sinkhorn_iterations)
        self.num_prototypes, self.num_sources = num_prototypes, num_sources
        self.own_prototypes, self.assign_within_source = own_prototypes, assign_within_source
        self.queue_size, self.queue_start, self.queue_start_step = queue_size, queue_start, queue_start_step
        self.queue = SourceQueues(queue_size, ASSIGNING * embedding_dim, num_sources) if queue_size else None
        if queue_size:
            self.register_buffer("queue_started", torch.zeros((), dtype=torch.bool))
        self._queue_in_use: bool | None = False  # mirrors the buffer, so that no step reads it back from the device
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._first_source: Tensor | None = None
        self._compared = False  # the images that are assigned together with the number of prototypes

    def swap(self, views: list[Tensor], source: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Predict the large views' codes from all other views.

        Args:
            views: two large ones (B, C, *spatial) and any number of others, which :func:`check_views` has seen.
            source: (B,) int64, each image's source.

        Returns:
            What a method returns, see :class:`monai_ssl.methods.SwAV`, and the loss (B,) of each image.

        Raises:
            ValueError: the first two views are not of one size.
        """
        if views[0].shape != views[1].shape:
            sizes = " and ".join(str(tuple(view.shape[2:])) for view in views[:ASSIGNING])
            raise ValueError(f"{type(self).__name__} takes two large views of one size first, got {sizes}")
        embeddings = self.embed(views)  # (V, B, D)
        scores = self.score(embeddings, source)  # (V, B, K)
        codes = self.assign(scores[:ASSIGNING].detach(), source)  # (2, B, K)
        losses = self.criterion(scores, codes, reduction="none")  # (B,)
        if not self._compared:
            self._first_source = source
        if self.queue is not None and self.training:
            self._waiting.append((embeddings[:ASSIGNING].detach().transpose(0, 1).flatten(1), source))
        first, second = scores[:ASSIGNING].detach().argmax(dim=2)
        output = {
            "loss": losses.mean(),
            "embedding": embeddings[0].detach(),
            "agreement": (first == second).float().mean(),
            "code_entropy": torch.special.entr(codes).sum(dim=2).mean(),
        }
        return output, losses

    def embed(self, views: list[Tensor]) -> Tensor:
        """Unit embeddings (V, B, D) of views (B, C, *spatial): the encoder size by size, the projector at once."""
        features = torch.cat(forward_by_size(self.encoder, views))  # (V B, F)
        return normalize(self.head(features).float()).unflatten(0, (len(views), -1))

    def score(self, embeddings: Tensor, source: Tensor) -> Tensor:
        """Scores (V, B, K) of embeddings (V, B, D) with the prototypes of the images' sources (B,)."""
        scores = self.prototypes(embeddings.flatten(0, 1)).unflatten(0, embeddings.shape[:2])
        if not self.own_prototypes:
            return scores
        scores = scores.unflatten(2, (self.num_sources, -1))  # (V, B, S, K)
        own = source[None, :, None, None].expand(len(scores), -1, 1, self.num_prototypes)
        return scores.gather(2, own).squeeze(2)

    @torch.no_grad()
    def assign(self, scores: Tensor, source: Tensor) -> Tensor:
        """Codes (2, B, K) of the large views' scores (2, B, K), made together with the queue where that is in use.

        All processes make the same reductions here, whatever sources their images are of.
        """
        groups, num_groups, batch = self._groups(source), self._num_groups, scores.shape[1]
        if self.queue_in_use:
            features, queued = self._queued()
            scores = torch.cat([scores, self.score(features, queued)], 1)  # (2, B + R, K)
            # A queue that is not yet full is a group of its own, which has no influence on the others.
            queue_groups = torch.where(self.queue.full[queued], self._groups(queued), num_groups)
            groups, num_groups = torch.cat([groups, queue_groups]), num_groups + 1
        grouping = (None, 1) if num_groups == 1 else (groups, num_groups)
        return torch.stack([self.criterion.assign(view, *grouping)[:batch] for view in scores])

    @property
    def queue_in_use(self) -> bool:
        """Whether there is a queue whose time has come."""
        if self._queue_in_use is None:
            self._queue_in_use = bool(self.queue_started)
        return self._queue_in_use

    def after_step(self, progress: float) -> None:
        """Bring the prototypes back to unit length; let the waiting features into the queue, and begin to use it."""
        self.prototypes.after_step()
        self._compare_with_prototypes()
        if self.queue is None:
            return
        for features, source in self._waiting:
            self.queue.enqueue(features, source)
        self._waiting.clear()
        if not self.queue_in_use and self._queue_is_due(progress):
            self.queue_started.fill_(True)
            self._queue_in_use = True

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """See :meth:`SSLMethod.parameter_groups`; the prototypes, which have unit length anyway, are not decayed."""
        decayed, others = super().parameter_groups(weight_decay)
        weight = self.prototypes.weight
        decayed["params"] = [parameter for parameter in decayed["params"] if parameter is not weight]
        others["params"].append(weight)
        return [decayed, others]

    @property
    def _num_groups(self) -> int:
        return self.num_sources if self.assign_within_source else 1

    def _groups(self, source: Tensor) -> Tensor:
        """Number (B,) of the images among which each is assigned."""
        return source if self.assign_within_source else torch.zeros_like(source)

    def _queue_is_due(self, progress: float) -> bool:
        if self.queue_start_step is None:
            return progress >= self.queue_start
        return self.prototypes.steps_done >= self.queue_start_step

    def _queued(self) -> tuple[Tensor, Tensor]:
        """This process's share of the queues: features (2, R, D) and their sources (R,)."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)
        share = self.queue.features[:, rank::world]  # (S, R / S, 2 D)
        sources = torch.arange(len(share), device=share.device).repeat_interleave(share.shape[1])
        return share.flatten(0, 1).unflatten(1, (ASSIGNING, -1)).transpose(0, 1), sources

    def _compare_with_prototypes(self) -> None:
        """Say once if fewer images are assigned together than there are prototypes (section 3.1).

        Not in the forward pass, which may get a part of a batch (when its precision is measured, for example).
        """
        if self._first_source is None or self._compared:
            return
        sources = len(self._first_source.unique()) if self.assign_within_source else 1
        batch = len(self._first_source) * (dist.get_world_size() if is_distributed() else 1) // max(sources, 1)
        self._compared, self._first_source = True, None
        if batch + self.queue_size < self.num_prototypes:
            logger.warning(
                "%s divides %d images (%d of the batch%s, %d of the queue) among %d prototypes, which so few can't use "
                "alike: set num_prototypes to %d or fewer, or queue_size to %d or more",
                type(self).__name__,
                batch + self.queue_size,
                batch,
                " for each source" if sources > 1 else "",
                self.queue_size,
                self.num_prototypes,
                batch + self.queue_size,
                self.num_prototypes - batch,
            )

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._queue_in_use = None if self.queue_size else False
