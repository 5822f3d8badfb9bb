# SPDX-License-Identifier: Apache-2.0
r"""The sum of the squared off-diagonal entries of a product of features, which Barlow Twins and VICReg both penalise.

For features A and B, (N, D), and :math:`C = A^T B`, (D, D):

.. math::
    \sum_{i \neq j} C_{ij}^2 = \lVert C \rVert_F^2 - \sum_i C_{ii}^2, \qquad
    \lVert A^T B \rVert_F^2 = \langle A A^T, B B^T \rangle

The second form needs (N, N) matrices only. With 8,192 dimensions C is 256 MiB and costs :math:`N D^2` products; at
N = 256 the second form is 0.5 MiB and a sixteenth of the products. It subtracts the diagonal from a larger sum, and C
has rank N at most: with N < D / 2 the sum is at least twice the diagonal's part where all :math:`C_{ii}` are alike, so
no digits are lost that matter. Above that C itself is formed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monai_ssl.losses.distributed import all_gather, is_distributed

__all__ = ["gather_pair", "off_diagonal_squares"]


def off_diagonal_squares(a: Tensor, b: Tensor) -> Tensor:
    """Sum over i != j of the squares of ``(a^T b)_ij``, for features (N, D); see the module's text.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # x^T x = [[10, 14], [14, 20]]
        >>> off_diagonal_squares(x, x).item()
        392.0
    """
    size, dim = a.shape
    if 2 * size < dim:
        gram = a @ a.T
        total = (gram * (gram if b is a else b @ b.T)).sum()
        return total - (a * b).sum(dim=0).square().sum()
    product = a.T @ b  # (D, D)
    # All entries but the diagonal's: D - 1 rows of D + 1, whose first column was the diagonal.
    return product.flatten()[:-1].view(dim - 1, dim + 1)[:, 1:].square().sum()


def gather_pair(view_a: Tensor, view_b: Tensor, gather_distributed: bool) -> tuple[Tensor, Tensor]:
    """Check two views' features (B, D) and return those of all processes (N, D), by one exchange.

    Raises:
        ValueError: the shapes differ or are not (B, D), or there are fewer than two samples in all.
    """
    if view_a.ndim != 2 or view_a.shape != view_b.shape:
        raise ValueError(
            f"view_a and view_b must have one shape (B, D), got {tuple(view_a.shape)} and {tuple(view_b.shape)}"
        )
    view_b = view_b.to(view_a.dtype)
    if gather_distributed and is_distributed():
        view_a, view_b = all_gather(torch.stack([view_a, view_b], dim=1)).unbind(dim=1)
    if len(view_a) < 2:
        raise ValueError("statistics of a batch need at least two samples")
    return view_a, view_b
