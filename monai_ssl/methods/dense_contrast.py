# SPDX-License-Identifier: Apache-2.0
"""Dense contrast: tell the points of an image apart, and know each again in another view.

Xie, Lin, Zhang, Cao, Lin, Hu, *Propagate Yourself: Exploring Pixel-Level Consistency for Unsupervised Visual
Representation Learning*, CVPR 2021, arXiv 2011.10043, section 3.1 (PixContrast). With student f, teacher g, x_i the
features of f at the point i of view 1, x'_j those of g at the point j of view 2, t a temperature::

    A(i, j) = 1 if dist(i, j) <= T, else 0                                                              equation 1
    L_1 = mean over points i of -log( sum_j A(i, j) exp(cos(x_i, x'_j) / t) / sum_j exp(cos(x_i, x'_j) / t) )       2
    L_dense = (L_1 + L_2) / 2,   L_2: f on view 2, g on view 1

The distance of two points is that of their places in the image, in diagonals of a cell of the feature map there (of the
larger cell, where the views have other scales). Points whose place the other view does not show are not in the mean.

The global term is Wang, Zhang, Shen, Kong, Li, *Dense Contrastive Learning for Self-Supervised Visual Pre-Training*,
CVPR 2021, arXiv 2011.09157, equation 3, with w = 0.5 there::

    L = (1 - w) L_dense + w L_global,   L_global: MoCo's InfoNCE of whole images against a queue

On the output of a decoder this is Pinheiro, Almahairi, Benmalek, Golemo, Courville, *Unsupervised Learning of Dense
Visual Representations* (VADeR), NeurIPS 2020, arXiv 2011.05499, with the points of one's own image as negatives.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from monai_ssl.losses import InfoNCELoss, PointContrastLoss
from monai_ssl.networks import (
    EncoderDecoder,
    FeatureQueue,
    ImageEncoder,
    MLPHead,
    MomentumCopy,
    cosine_momentum,
    measure_maps,
)
from monai_ssl.transforms import cell_diagonal, draw_overlapping_cells, nearest_cells, same_place

from .base import SSLMethod
from .requirements import check_momentum, check_size, check_views

__all__ = ["DenseContrast"]


class DenseContrast(SSLMethod):
    """Contrast the points of two overlapping views on a feature map or on a decoder's output, for segmentation.

    Which points show the same place is known from the views' own draw, ``batch["positions"]``: the trainer gives them,
    if the views are a :class:`~monai_ssl.transforms.MultiView`; in a loop of your own they are
    ``views.positions(image.shape, params, method.positions_stride)``. Turns, flips, scales and elastic deformations
    count. A map of up to ``num_points`` cells takes part as a whole, as in the paper. Of a larger one, points are drawn
    in the part that both views show, each with the nearest cell of the other view; they are positives and negatives of
    one another. An image whose views do not meet adds nothing.

    Networks with a decoder are pretrained whole: build them with ``out_channels=32`` or so; the layer that makes these
    channels is a task's head and is left out of the file, ``EncoderExport(with_decoder=True)`` keeps the rest.

    The defaults are PixPro's, which go with LARS, learning rate 1.0 at batch 256 (scaled linearly, batch 1,024), weight
    decay 1e-5, 100 to 400 epochs of ImageNet, on ResNet-50's last map. A start for some thousand images: AdamW, 1e-3,
    weight decay 0.05; radiographs of 224 pixels in batches of 32 with ``hidden_features=512``; volumes of 96 voxels a
    side in batches of 2 to 8, with ``momentum=0.95`` where the training has only a few thousand steps. Crops should
    overlap: ``min_scale`` of the views 0.3 or more.

    Args:
        encoder: the network to pretrain.
        level: the map whose cells are the points: ``"decoder"``, or a level of the pyramid, -1 the last. None: the
            decoder's output if there is a decoder, else the last. An inner level needs the global term, or the stages
            after it would learn nothing.
        temperature: t.
        max_distance: T, in diagonals of a cell.
        num_points: points of each view at most.
        hidden_features: width of the hidden layer of the heads, which have BatchNorm in between.
        embedding_dim: D, features of a point.
        momentum: m of the teacher's update ``g <- m g + (1 - m) f``, in [0, 1].
        final_momentum: where a cosine schedule takes m by the end of the training; None keeps it constant.
        global_weight: w in [0, 1); 0 is PixPro without, 0.5 DenseCL.
        global_temperature: of the global term.
        global_dim: features of an image in the global term.
        queue_size: keys of images kept as negatives of the global term; on a small pool below the number of images.

    Attributes:
        positions_stride: pixels of a view to one cell of the map, along each axis.

    Raises:
        ValueError: a number is out of its range; the encoder has no such level or no decoder; or some layers of it
            would get no gradient.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import build_encoder
        >>> from monai_ssl.transforms import volume_views
        >>> method = DenseContrast(build_encoder("segresnet", out_channels=16), num_points=64)
        >>> views, image = volume_views(32, spatial_dims=2), torch.rand(4, 1, 48, 48)
        >>> params = views.draw(image.shape)
        >>> places = views.positions(image.shape, params, method.positions_stride)
        >>> out = method({"views": views.apply(image, params), "positions": places})
        >>> out["loss"].backward()
        >>> tuple(places[0].shape), method.positions_stride
        ((4, 2, 32, 32), (1, 1))
    """

    wants_positions: ClassVar[bool] = True

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        level: int | Literal["decoder"] | None = None,
        temperature: float = 0.3,
        max_distance: float = 0.7,
        num_points: int = 512,
        hidden_features: int = 2048,
        embedding_dim: int = 256,
        momentum: float = 0.99,
        final_momentum: float | None = 1.0,
        global_weight: float = 0.0,
        global_temperature: float = 0.2,
        global_dim: int = 128,
        queue_size: int = 65536,
    ) -> None:
        super().__init__(encoder)
        check_momentum(momentum=momentum, final_momentum=final_momentum)
        if not max_distance > 0 or num_points < 2 or not 0 <= global_weight < 1:
            raise ValueError(
                f"max_distance must be positive, num_points at least 2 and global_weight in [0, 1), got "
                f"{max_distance}, {num_points} and {global_weight}"
            )
        self.level, channels, self.positions_stride = _chosen_map(encoder, level, global_weight > 0)
        self.max_distance, self.num_points, self.global_weight = max_distance, num_points, float(global_weight)
        self.momentum = momentum
        self.final_momentum = momentum if final_momentum is None else final_momentum
        self.point_head = MLPHead(channels, hidden_features, embedding_dim, batch_norm=True)
        self.criterion = PointContrastLoss(temperature, normalized=True)
        self.global_head = self.queue = None
        if global_weight:
            width = measure_maps(encoder)[-1][0]
            self.global_head = MLPHead(width, width, global_dim)
            self.global_criterion = InfoNCELoss(global_temperature, normalized=True)
            self.queue = FeatureQueue(queue_size, global_dim)
        self.teacher = MomentumCopy(self._branch())
        self._waiting_keys: list[Tensor] = []

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; needs two views of one size and their positions.

        Returns:
            ``"loss"``; ``"embedding"``, the mean of the last map of view 1; ``"dense_loss"`` and, if there is one,
            ``"global_loss"``; ``"overlap"``: share of the images that have a pair of points; ``"matched"``: share of
            the points in a pair whose most similar point of the other view is one of their positives.

        Raises:
            ValueError: other than two views, of one size that the network and the stride divide; or no positions.
        """
        views, positions = batch["views"], batch.get("positions")
        self._check(views, positions)
        cells, positive = self._pairs(positions, batch.get("generator"))
        x, grid = torch.cat(views), tuple(positions[0].shape[2:])
        points, image, features = self._branch()(x, cells, grid)
        with torch.no_grad():
            keys, image_keys, _ = self.teacher(x, cells, grid)
        (q_1, q_2), (k_1, k_2) = points.chunk(2), keys.chunk(2)
        dense = (self.criterion(q_1, k_2, positive) + self.criterion(q_2, k_1, positive.mT)) / 2
        loss, watched = dense, {"dense_loss": dense.detach()}
        if self.global_weight:
            (i_1, i_2), (g_1, g_2) = image.chunk(2), image_keys.chunk(2)
            negatives = self.queue.features
            whole = (self.global_criterion(i_1, g_2, negatives) + self.global_criterion(i_2, g_1, negatives)) / 2
            loss = (1 - self.global_weight) * dense + self.global_weight * whole
            watched["global_loss"] = whole.detach()
            if self.training:
                self._waiting_keys.append(image_keys)
        paired = positive.any(2)
        return {
            "loss": loss,
            "embedding": normalize(features[: len(views[0])].detach().float()),
            **watched,
            "overlap": paired.any(1).float().mean(),
            "matched": _matched(q_1.detach(), k_2, positive, paired),
        }

    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student and let the waiting keys into the queue."""
        momentum = cosine_momentum(self.momentum, self.final_momentum, progress)
        self.teacher.update(self._branch(), momentum)
        if self._waiting_keys:
            self.queue.enqueue(torch.cat(self._waiting_keys))
            self._waiting_keys.clear()

    @torch.no_grad()
    def _pairs(self, positions: list[Tensor], generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Numbers of the cells that take part, (2B, P), and which of them show the same place, (B, P, P)."""
        flat = [places.flatten(2) for places in positions]  # (B, n, *grid) -> (B, n, cells)
        count = flat[0].shape[2]
        if count <= self.num_points:
            cells = [torch.arange(count, device=flat[0].device).expand(len(flat[0]), -1)] * 2
            points = flat
        else:
            first = draw_overlapping_cells(*positions, self.num_points, generator)
            points = [_taken(flat[0], first)]
            cells = [first, nearest_cells(points[0], positions[1])]
            points.append(_taken(flat[1], cells[1]))
        diagonal = torch.maximum(cell_diagonal(positions[0]), cell_diagonal(positions[1]))
        return torch.cat(cells), same_place(*points, self.max_distance * diagonal)

    def _branch(self) -> _Branch:
        """The student; made anew, so that its parameters are this method's own and no second time in its state."""
        return _Branch(self.encoder, self.point_head, self.global_head, self.level)

    def _check(self, views: list[Tensor], positions: list[Tensor] | None) -> None:
        check_views(self, views)
        if views[0].shape != views[1].shape:
            raise ValueError(
                f"DenseContrast takes two views of one size, got {', '.join(str(tuple(v.shape[2:])) for v in views)}"
            )
        check_size(views[0], getattr(self.encoder, "size_divisor", self.positions_stride))
        if positions is None:
            raise ValueError(
                "DenseContrast needs batch['positions']: train with PretrainTrainer and views of "
                "monai_ssl.transforms.MultiView, or give views.positions(image.shape, params, method.positions_stride)"
            )
        size = views[0].shape[2:]
        expected = (len(views[0]), len(size), *(n // s for n, s in zip(size, self.positions_stride, strict=True)))
        if [tuple(places.shape) for places in positions] != [expected] * 2:
            raise ValueError(
                f"DenseContrast needs positions of shape {expected} for each view (its positions_stride is "
                f"{self.positions_stride}), got {', '.join(str(tuple(places.shape)) for places in positions)}"
            )


class _Branch(nn.Module):
    """Encoder, perhaps decoder, and heads: views (N, C, *spatial) to features of some of their points."""

    def __init__(self, encoder: ImageEncoder, point_head: nn.Module, global_head: nn.Module | None, level) -> None:
        super().__init__()
        self.encoder, self.point_head, self.global_head, self.level = encoder, point_head, global_head, level

    def forward(self, x: Tensor, cells: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return unit features (N, P, D) of ``cells`` (N, P), those of the images or None, and (N, F) pooled ones."""
        maps = self.encoder.feature_maps(x)
        chosen = self.encoder.decode(maps) if self.level == "decoder" else maps[self.level]
        if tuple(chosen.shape[2:]) != grid:
            raise ValueError(
                f"views of {tuple(x.shape[2:])} make a map of {tuple(chosen.shape[2:])} cells and positions of {grid}: "
                "make the views' sides multiples of the network's whole stride"
            )
        points = _taken(chosen.flatten(2), cells).transpose(1, 2)  # (N, C, cells) -> (N, P, C)
        points = self.point_head(points.flatten(0, 1)).unflatten(0, cells.shape)  # BatchNorm sees all points
        pooled = maps[-1].flatten(2).mean(2)
        image = None if self.global_head is None else normalize(self.global_head(pooled).float())
        return normalize(points.float(), dim=2), image, pooled


def _taken(values: Tensor, cells: Tensor) -> Tensor:
    """(N, C, cells) and numbers (N, P) -> (N, C, P)."""
    return values.gather(2, cells[:, None].expand(-1, values.shape[1], -1))


@torch.no_grad()
def _matched(query: Tensor, key: Tensor, positive: Tensor, paired: Tensor) -> Tensor:
    with torch.autocast(query.device.type, enabled=False):
        best = (query @ key.mT).argmax(2, keepdim=True)  # (B, P, 1)
    right = positive.gather(2, best).squeeze(2)
    return (right & paired).sum() / paired.sum().clamp(min=1)


def _chosen_map(encoder: ImageEncoder, level: int | str | None, whole: bool) -> tuple[int | str, int, tuple[int, ...]]:
    """The level, its channels and its stride; refuses what would leave layers without gradient."""
    decodes = isinstance(encoder, EncoderDecoder) and encoder.out_channels is not None
    level = level if level is not None else "decoder" if decodes else -1
    if level == "decoder":
        if not decodes:
            raise ValueError(
                f"level='decoder' needs a network with a decoder: build_encoder('segresnet', ..., out_channels=32); "
                f"this {encoder.architecture!r} has none"
            )
        return level, encoder.out_channels, (1,) * encoder.spatial_dims
    if not isinstance(level, int):
        raise ValueError(f"level must be 'decoder', a number or None, got {level!r}")
    if decodes:
        raise ValueError(
            f"level={level} leaves the decoder of this {encoder.architecture!r} without gradient: take "
            "level='decoder', or build the network without out_channels"
        )
    if level != -1 and not whole:
        raise ValueError(f"level={level} leaves the layers after it without gradient: level=-1, or global_weight=0.5")
    maps = measure_maps(encoder)
    if not -len(maps) <= level < len(maps):
        raise ValueError(f"the pyramid of {encoder.architecture!r} has {len(maps)} levels, there is no level {level}")
    return level, *maps[level]
