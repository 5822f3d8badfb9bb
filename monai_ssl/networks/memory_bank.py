# SPDX-License-Identifier: Apache-2.0
"""One remembered feature vector for each image of a data set (Wu et al., arXiv 1805.01978, section 3.1)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize

from .gather import gather_rows

__all__ = ["MemoryBank"]


class MemoryBank(nn.Module):
    """A unit vector for each of N images, moved towards what the network makes of the image whenever it is seen.

    Everything is a persistent buffer. In a distributed run the rows of all processes are gathered, and every process
    enters them all: the banks stay equal. Where an image comes several times at once, the mean of its features counts.

    Args:
        size: N, one more than the greatest number of an image: the rows of the whole store, whichever are trained on.
        dim: D.
        momentum: m of ``row <- normalize(m row + (1 - m) feature)``, in [0, 1); an image's first feature is taken as it
            is.

    Attributes:
        features: (N, D) float32, zero for images that were not seen.
        seen: (N,) booleans.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> bank = MemoryBank(size=4, dim=2)
        >>> bank.update(torch.tensor([2]), torch.tensor([[3.0, 0.0]]))
        >>> bank.update(torch.tensor([2]), torch.tensor([[0.0, 1.0]]))
        >>> rows, seen = bank.read(torch.tensor([2, 0]))
        >>> rows[0], seen.tolist()
        (tensor([0.7071, 0.7071]), [True, False])
    """

    features: torch.Tensor
    seen: torch.Tensor

    def __init__(self, size: int, dim: int, momentum: float = 0.5) -> None:
        super().__init__()
        if size < 1 or dim < 1 or not 0 <= momentum < 1:
            raise ValueError(
                f"a memory bank needs a size and a dim of at least 1 and a momentum in [0, 1), got {size}, {dim} and "
                f"{momentum}"
            )
        self.momentum = float(momentum)
        self.register_buffer("features", torch.zeros(size, dim))
        self.register_buffer("seen", torch.zeros(size, dtype=torch.bool))

    @torch.no_grad()
    def read(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return copies of the rows (B, D) of images ``index`` (B,), and whether each was seen.

        Raises:
            ValueError: on a CPU: a number is beyond the bank. Elsewhere, where looking would make the host wait,
                :meth:`update` finds it.
        """
        if index.device.type == "cpu":
            self._check(index)
        index = index.clamp(0, len(self.features) - 1)
        return self.features[index], self.seen[index]

    @torch.no_grad()
    def update(self, index: torch.Tensor, x: torch.Tensor) -> None:
        """Let features (B, D) of images ``index`` (B,) move their rows; after the optimiser's step.

        Raises:
            ValueError: a number is beyond the bank, or shapes do not fit.
        """
        if x.ndim != 2 or x.shape[1] != self.features.shape[1] or index.shape != x.shape[:1]:
            raise ValueError(
                f"the bank takes numbers (B,) and features (B, {self.features.shape[1]}), got {tuple(index.shape)} and "
                f"{tuple(x.shape)}"
            )
        index, x = gather_rows(index)[0], gather_rows(normalize(x.float()))[0]
        self._check(index)
        same = (index[:, None] == index).float()  # an image that is here twice gets one value, in whichever order
        x = same @ x / same.sum(1, keepdim=True)
        moved = self.momentum * self.features[index] + (1 - self.momentum) * x
        self.features[index] = normalize(torch.where(self.seen[index][:, None], moved, x))
        self.seen[index] = True

    def _check(self, index: torch.Tensor) -> None:
        if not index.numel():
            return
        least, greatest = (int(bound) for bound in index.aminmax())
        if least < 0 or greatest >= len(self.features):
            raise ValueError(
                f"the memory bank has room for {len(self.features)} images (num_data), and the batch has numbers from "
                f"{least} to {greatest}: 'index' is a row of the store's table, so give num_data=len(store)"
            )
