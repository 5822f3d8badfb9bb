# SPDX-License-Identifier: Apache-2.0
"""A gather that keeps gradients, right under DistributedDataParallel's averaging of gradients.

Let rank ``r`` of ``W`` return the loss ``L_r`` and let the loss of the whole batch be ``L = mean_r L_r``. A row ``x``
of rank ``s`` enters every ``L_r`` through the gather, so ``dL/dx = (1/W) sum_r dL_r/dx``. DistributedDataParallel
supplies the ``1/W``; the backward pass of the gather therefore supplies the plain **sum** over ranks. Dividing here
as well, or returning only the own rank's part, are the two classic mistakes (gradients wrong by ``1/W``, or blind to
the other ranks' losses). The same sum is right when every rank computes the identical whole-batch loss.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["DistributedKind", "all_gather", "is_distributed"]

DistributedKind = Literal["local", "gathers_negatives", "reduces_statistics"]
"""How a loss spreads over processes.

* ``local``: every rank's loss depends on its own rows (and on state that is equal on all ranks) only.
* ``gathers_negatives``: rows of the other ranks enter as negatives, with gradient.
* ``reduces_statistics``: a number estimated from the batch is made equal on all ranks.
"""


def is_distributed() -> bool:
    """Whether a process group of more than one process is initialised."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_gather(x: Tensor) -> Tensor:
    """Concatenate the tensors of all ranks along the first dimension, in the order of the ranks.

    Gradients flow to every rank (see the module's text). Without a process group of several processes ``x`` is
    returned as it is. All ranks must call it, with the same shape and dtype.

    Args:
        x: ``(B, ...)``; the own rows become rows ``rank * B`` to ``(rank + 1) * B`` of the result.

    Returns:
        ``(world_size * B, ...)``.

    Raises:
        ValueError: if the ranks hold different numbers of rows (DistributedDataParallel weighs every rank alike, so
            the mean over ranks would not be the mean over the batch).
    """
    if not is_distributed():
        return x
    rows = torch.tensor([x.shape[0]], device=x.device)
    counts = torch.cat(_gather(rows)).tolist()
    if len(set(counts)) > 1:
        raise ValueError(
            f"the processes hold batches of different sizes {counts}; give every process the same number of samples "
            "(drop_last=True in the loader)"
        )
    return _AllGather.apply(x)


def _gather(x: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x)
    return parts


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return torch.cat(_gather(x.contiguous()))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()  # all_reduce works in place and the incoming gradient is not ours
        dist.all_reduce(grad, op=dist.ReduceOp.SUM)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]
