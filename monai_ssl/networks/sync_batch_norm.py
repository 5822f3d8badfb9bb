# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation with statistics over all processes, on any device.

``torch.nn.SyncBatchNorm`` refuses tensors on the CPU (and ``DistributedDataParallel`` refuses such layers there), so a
gloo run could not normalise over the whole batch. :class:`SynchronizedBatchNorm` is a small one that runs anywhere;
:func:`convert_sync_batch_norm` takes torch's where a GPU has the kernels for it.

Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1 and the backward formulas of section 3; the statistics of
the processes are combined by the parallel variance formula of Chan, Golub and LeVeque 1979.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["SynchronizedBatchNorm", "convert_sync_batch_norm"]


def _combine_moments(x: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and number of values per channel over all processes; x is (B, C, *S) float32."""
    dims = [d for d in range(x.ndim) if d != 1]
    var, mean = torch.var_mean(x, dims, correction=0)
    count = x.new_tensor([x.numel() // x.shape[1]])
    local = torch.cat([mean, var * count, count])  # (2C + 1,)
    gathered = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, local, group)
    means, squares, counts = torch.stack(gathered).double().split([mean.numel(), mean.numel(), 1], dim=1)  # (W, .)
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    var = (squares + counts * (means - mean) ** 2).sum(0) / total
    return mean.to(x.dtype), var.to(x.dtype), total.to(x.dtype)


class _NormalizeOverProcesses(Function):
    """y = (x - mean) / sqrt(var + eps) with the moments of all processes, differentiable through them."""

    @staticmethod
    def forward(ctx, x, eps, group):
        mean, var, total = _combine_moments(x, group)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        inverse_std = torch.rsqrt(var + eps).view(shape)
        normalized = (x - mean.view(shape)) * inverse_std
        ctx.save_for_backward(normalized, inverse_std, total)
        ctx.group = group
        ctx.mark_non_differentiable(mean, var, total)
        return normalized, mean, var, total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        normalized, inverse_std, total = ctx.saved_tensors
        dims = [d for d in range(grad.ndim) if d != 1]
        sums = torch.stack([grad.sum(dims), (grad * normalized).sum(dims)])  # (2, C)
        dist.all_reduce(sums, group=ctx.group)
        mean_grad, mean_grad_x = (sums / total).view(2, 1, -1, *(1,) * (grad.ndim - 2))
        return inverse_std * (grad - mean_grad - normalized * mean_grad_x), None, None


class SynchronizedBatchNorm(_BatchNorm):
    """Batch normalisation over the batches of all processes; parameters, buffers and keys are BatchNorm's.

    Outside a process group, with one process, or in evaluation mode it is ordinary batch normalisation. Every process
    must run the same layers in the same order. Input (B, C, \\*S), any dtype; the moments are float32.

    Args:
        num_features: channels.
        process_group: processes that share statistics; None means all.
        options: of ``torch.nn.BatchNorm2d``.
    """

    def __init__(self, num_features: int, *, process_group: dist.ProcessGroup | None = None, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.process_group = process_group

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"batch normalisation takes (B, C, *S), got {tuple(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (B, C, \\*S)."""
        self._check_input_dim(x)
        synchronized = (
            self.training
            and dist.is_available()
            and dist.is_initialized()
            and dist.get_world_size(self.process_group) > 1
        )
        average = self.momentum or 0.0
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # cumulative average, as in torch
                average = 1.0 / self.num_batches_tracked.item()
        if not synchronized:
            statistics = (self.running_mean, self.running_var)
            use_batch = self.training or self.running_mean is None
            return functional.batch_norm(x, *statistics, self.weight, self.bias, use_batch, average, self.eps)
        normalized, mean, var, total = _NormalizeOverProcesses.apply(x.float(), self.eps, self.process_group)
        if self.track_running_stats:
            with torch.no_grad():
                self.running_mean.lerp_(mean, average)
                self.running_var.lerp_(var * total / (total - 1), average)
        if self.affine:
            shape = (1, -1) + (1,) * (x.ndim - 2)
            normalized = normalized * self.weight.view(shape) + self.bias.view(shape)
        return normalized.to(x.dtype)


def convert_sync_batch_norm(module: nn.Module, process_group: dist.ProcessGroup | None = None) -> nn.Module:
    """Replace every BatchNorm1d/2d/3d inside ``module`` by a synchronised one, in place where it can.

    On a CUDA device that is ``torch.nn.SyncBatchNorm``, elsewhere :class:`SynchronizedBatchNorm`. Parameters and
    buffers are the same objects afterwards, so an optimiser built before stays valid, and so do the keys.

    Args:
        module: network to convert.
        process_group: processes that share statistics; None means all.

    Returns:
        ``module`` itself, or its replacement when it is a batch normalisation.
    """
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        options = {"eps": module.eps, "momentum": module.momentum, "affine": False, "track_running_stats": False}
        on_gpu = any(t.is_cuda for t in (*module.parameters(), *module.buffers()))
        kind = nn.SyncBatchNorm if on_gpu else SynchronizedBatchNorm
        converted = kind(module.num_features, process_group=process_group, **options)
        converted.affine, converted.track_running_stats = module.affine, module.track_running_stats
        for name in ("weight", "bias"):
            setattr(converted, name, getattr(module, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            converted._buffers[name] = getattr(module, name)
        return converted.train(module.training)
    for name, child in module.named_children():
        replacement = convert_sync_batch_norm(child, process_group)
        if replacement is not child:
            setattr(module, name, replacement)
    return module
