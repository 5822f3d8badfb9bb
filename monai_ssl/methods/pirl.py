# SPDX-License-Identifier: Apache-2.0
"""PIRL: an image's features should not tell that it was cut into a jigsaw puzzle.

Misra, van der Maaten, *Self-Supervised Learning of Pretext-Invariant Representations*, CVPR 2020, arXiv 1912.01991,
sections 2.2 and 2.3. I is an image, I_t the patches of its grid in random order, f(v_I) the image's features by encoder
and linear head, g(v_It) those of the patches by the same encoder: each patch to D numbers, all of them one after the
other, to D by a second linear layer. A memory bank holds m_I, the moving mean of f(v_I) over the epochs::

    NCE(m, v) = -log( exp(cos(m_I, v) / t) / (exp(cos(m_I, v) / t) + sum over I' of exp(cos(m_I', v) / t)) )
    L         = w NCE(m_I, g(v_It)) + (1 - w) NCE(m_I, f(v_I))                                           equation 5
    m_I      <- normalize(m_momentum m_I + (1 - m_momentum) f(v_I))

NCE is the first term of equation 4. The second, which asks the negatives' probabilities to be small once more, is left
out: they sum to one with that of the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from monai_ssl.losses import InfoNCELoss
from monai_ssl.networks import ImageEncoder, LinearHead, MemoryBank, measure_stride
from monai_ssl.transforms import cut_boxes, grid_box_centers

from .base import SSLMethod
from .requirements import check_views

__all__ = ["PIRL"]


class PIRL(SSLMethod):
    """Recognise an image, and its jigsaw puzzle, among remembered features of other images.

    The defaults are the paper's: nine patches (3 x 3) of 64 pixels from cells of 85, 128 features, temperature 0.07,
    32,000 negatives; the recipe beside them is SGD, learning rate 0.12 falling to 1.2e-4 along a cosine, batches of
    1,024, 800 epochs. In 3D, for which the paper has nothing, 2 x 2 x 2 patches. A start for some thousand images:
    AdamW, 1e-3, weight decay 0.05, batches of 64, temperature 0.1.

    An image that comes for the first time is its own memory, and only images that were seen serve as negatives, so the
    loss begins near 0 and rises during the first epoch, towards log(negatives + 1).

    Args:
        encoder: the network to pretrain.
        num_data: number of rows of the memory: ``len(store)``, as ``batch["index"]`` numbers the rows of the store's
            table, whichever of them are trained on.
        grid: patches along each axis; None: 3 x 3 in 2D, 2 x 2 x 2 in 3D.
        patch_share: side of a patch as a share of its cell's; it lies anywhere in the cell.
        patch_size: side(s) of what the network gets, in voxels; None: the patch's own, rounded up to a multiple of the
            network's stride. A ViT needs its ``img_size``.
        embedding_dim: D.
        temperature: t.
        num_negatives: images drawn for each batch as negatives; all, where there are no more.
        bank_momentum: m_momentum.
        puzzle_weight: w in [0, 1].

    Raises:
        ValueError: a number is out of its range, or ``grid`` has another number of axes than the encoder.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import build_encoder
        >>> method = PIRL(build_encoder("resnet18"), num_data=100)
        >>> batch = {"views": [torch.rand(4, 1, 96, 96)], "index": torch.tensor([7, 3, 99, 12])}
        >>> method(batch)["loss"].backward()
        >>> method.after_step(progress=0.1)
        >>> int(method.bank.seen.sum())
        4
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        num_data: int,
        *,
        grid: Sequence[int] | None = None,
        patch_share: float = 64 / 85,
        patch_size: int | Sequence[int] | None = None,
        embedding_dim: int = 128,
        temperature: float = 0.07,
        num_negatives: int = 32000,
        bank_momentum: float = 0.5,
        puzzle_weight: float = 0.5,
    ) -> None:
        super().__init__(encoder)
        dims = encoder.spatial_dims
        self.grid = ((3, 3) if dims == 2 else (2, 2, 2)) if grid is None else tuple(grid)
        if len(self.grid) != dims or min(self.grid) < 1:
            raise ValueError(f"grid needs {dims} positive numbers (the encoder is {dims}D), got {grid}")
        if not 0 < patch_share <= 1 or not 0 <= puzzle_weight <= 1 or num_negatives < 1:
            raise ValueError(
                f"patch_share must be in (0, 1], puzzle_weight in [0, 1] and num_negatives at least 1, got "
                f"{patch_share}, {puzzle_weight} and {num_negatives}"
            )
        self.patch_share, self.puzzle_weight, self.num_negatives = patch_share, puzzle_weight, num_negatives
        self.patch_size = (patch_size,) * dims if isinstance(patch_size, int) else patch_size and tuple(patch_size)
        self.stride = measure_stride(encoder)
        patches = math.prod(self.grid)
        self.image_head = LinearHead(encoder.num_features, embedding_dim)
        self.patch_head = LinearHead(encoder.num_features, embedding_dim)
        self.puzzle_head = LinearHead(patches * embedding_dim, embedding_dim)
        self.criterion = InfoNCELoss(temperature, normalized=True)
        self.bank = MemoryBank(num_data, embedding_dim, bank_momentum)
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; takes one view, or two, of which the second is cut; and ``batch["index"]``.

        Returns:
            ``"loss"``, ``"embedding"`` (f), ``"image_loss"``, ``"puzzle_loss"``, and ``"remembered"``: share of the
            batch's images that were seen before.

        Raises:
            ValueError: more than two views, or views of other dimensions or channels than the encoder takes; no index,
                or one beyond ``num_data``.
        """
        views, index, generator = batch["views"], batch.get("index"), batch.get("generator")
        check_views(self, views, least=1)
        if index is None:
            raise ValueError("PIRL needs batch['index'], the number of each image, to find what it remembers of it")
        image = normalize(self.image_head(self.encoder(views[0])).float())
        puzzle = self.solve(self.cut(views[-1], generator), generator)
        remembered, known = self.bank.read(index)
        remembered = torch.where(known[:, None], remembered, image.detach())
        negatives, mask = self._negatives(index, generator)
        puzzle_loss = self.criterion(puzzle, remembered, negatives, mask)
        image_loss = self.criterion(image, remembered, negatives, mask)
        if self.training:
            self._waiting.append((index, image.detach()))
        return {
            "loss": self.puzzle_weight * puzzle_loss + (1 - self.puzzle_weight) * image_loss,
            "embedding": image.detach(),
            "image_loss": image_loss.detach(),
            "puzzle_loss": puzzle_loss.detach(),
            "remembered": known.float().mean(),
        }

    @torch.no_grad()
    def cut(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Cut a patch at a random place of each cell: (B, C, *spatial) -> (B, patches, C, *patch size)."""
        cells = [size / count for size, count in zip(x.shape[2:], self.grid, strict=True)]
        sides = [self.patch_share * cell for cell in cells]
        size = self.patch_size or [math.ceil(n / s - 1e-6) * s for n, s in zip(sides, self.stride, strict=True)]
        centers = grid_box_centers(x.shape[2:], self.grid, x.device)
        room = torch.tensor([cell - side for cell, side in zip(cells, sides, strict=True)], device=x.device)
        lot = torch.rand(len(x), *centers.shape, generator=generator, device=x.device) - 0.5
        return cut_boxes(x, centers + lot * room, sides, size)

    def solve(self, patches: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Unit features (B, D) of patches (B, N, C, *size), which come in a random order, another for each image."""
        features = self.patch_head(self.encoder(patches.flatten(0, 1))).unflatten(0, patches.shape[:2])  # (B, N, D)
        lot = torch.rand(features.shape[:2], generator=generator, device=features.device)
        order = lot.argsort(1)[..., None].expand_as(features)
        return normalize(self.puzzle_head(features.gather(1, order).flatten(1)).float())

    def after_step(self, progress: float) -> None:
        """Let the memory of the batch's images move."""
        if self._waiting:
            index, features = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
            self._waiting.clear()
            self.bank.update(index, features)

    def _negatives(self, index: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Remembered features (K, D), and (B, K) where they do not count: the image's own, and of none seen so far."""
        size = len(self.bank.features)
        if size <= self.num_negatives + 1:
            number = torch.arange(size, device=index.device)
            return self.bank.features, (index[:, None] == number) | ~self.bank.seen
        number = torch.randint(size, (self.num_negatives,), generator=generator, device=index.device)
        features, seen = self.bank.read(number)
        return features, (index[:, None] == number) | ~seen
