# SPDX-License-Identifier: Apache-2.0
r"""Self-distillation: the student predicts the teacher's soft code of another crop, or of the patches it can't see.

Caron, Touvron, Misra, Jegou, Mairal, Bojanowski, Joulin, *Emerging Properties in Self-Supervised Vision Transformers
(DINO)*, ICCV 2021, arXiv 2104.14294, equations 1 to 4; for masked patches Zhou et al., *iBOT*, ICLR 2022, arXiv
2111.07832, section 3.1. With the K outputs t of the teacher and s of the student, a centre c, temperatures u and w::

    q = softmax((t - c) / u)             the code: centred against one output winning, sharpened against uniformity
    L = mean over pairs of crops (a large, b any other) of -sum_k q_a[k] log softmax(s_b / w)[k]
    c <- m c + (1 - m) mean(t)           after each step, over all images and large crops of all processes

DINOv2 (Oquab et al., arXiv 2304.07193, section 4) makes the codes by Sinkhorn iterations on t / u instead.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from monai_ssl.losses.contrast import check_temperature, full_precision
from monai_ssl.losses.distributed import DistributedKind, is_distributed
from monai_ssl.losses.sinkhorn import sinkhorn

__all__ = ["TeacherCodes", "distillation", "patch_distillation"]


@full_precision
def distillation(student: Tensor, codes: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of every crop to the codes of all large crops but itself (DINO, equations 1 to 3).

    The mean over the ``G (V - 1)`` pairs and the images. Computed in float32 (float64 for float64). With equal outputs
    it is log K.

    Args:
        student: ``(V, B, K)``, the student's outputs, crop by crop, the large ones first; not normalised in any way.
        codes: ``(G, B, K)``, the teacher's codes of the G large crops, rows that sum to 1 (:class:`TeacherCodes`). They
            get no gradient.
        temperature: of the student, positive.

    Returns:
        Scalar, at least 0; differentiable once.

    Raises:
        ValueError: shapes do not fit, there are fewer than two crops, or the temperature is not positive.

    Example:
        >>> loss = distillation(torch.zeros(4, 3, 8), torch.full((2, 3, 8), 1 / 8))
        >>> round(loss.exp().item(), 4)
        8.0
    """
    check_temperature(temperature)
    if student.ndim != 3 or codes.ndim != 3 or student.shape[1:] != codes.shape[1:]:
        raise ValueError(
            f"student and codes must have shapes (V, B, K) and (G, B, K), got {tuple(student.shape)} and "
            f"{tuple(codes.shape)}"
        )
    views, large = len(student), len(codes)
    if views < 2 or not 0 < large <= views:
        raise ValueError(f"distillation needs two crops or more and a code of some of them, got {views} and {large}")
    each = _CrossEntropy.apply(student, codes, temperature, True)  # (V, B)
    return each.sum() / (large * (views - 1) * student.shape[1])


@full_precision
def patch_distillation(
    student: Tensor, codes: Tensor, weights: Tensor | None = None, temperature: float = 0.1
) -> Tensor:
    """Cross-entropy of masked patches to the teacher's codes of the same patches, unmasked (iBOT, section 3.1).

    Args:
        student: ``(M, K)``, the student's outputs at the masked patches of all images.
        codes: ``(M, K)``, the teacher's codes there, rows that sum to 1; no gradient.
        weights: ``(M,)``, to sum the patches with. iBOT averages over the masked patches of each image, then over
            images: a patch of an image with n masked ones weighs ``1 / (n * images)``. None: ``1 / M``.
        temperature: of the student, positive.

    Returns:
        Scalar, at least 0; differentiable once.

    Raises:
        ValueError: shapes do not fit, or the temperature is not positive.
    """
    check_temperature(temperature)
    if student.ndim != 2 or student.shape != codes.shape:
        raise ValueError(
            f"student and codes must have one shape (M, K), got {tuple(student.shape)} and {tuple(codes.shape)}"
        )
    if weights is not None and weights.shape != student.shape[:1]:
        raise ValueError(f"weights must have shape ({len(student)},), got {tuple(weights.shape)}")
    each = _CrossEntropy.apply(student[None], codes[None], temperature, False)[0]  # (M,)
    return each.mean() if weights is None else (each * weights).sum()


class TeacherCodes(nn.Module):
    """Turn the teacher's outputs into codes, and keep the centre that this takes.

    Calling it changes nothing but what waits for :meth:`update`, which is to be called after the optimiser step. The
    centre is a persistent buffer. With several calls before an update (accumulation) all of them count.

    Args:
        num_outputs: K.
        centering: ``"mean"``: subtract a running mean (DINO, iBOT). ``"sinkhorn"``: Sinkhorn iterations over the rows
            of all processes, without a centre (DINOv2).
        momentum: m of the centre, in [0, 1]; 0.9 in DINO and iBOT.
        iterations: of Sinkhorn; 3 in DINOv2.

    Attributes:
        center: (K,) float32; of no length with ``"sinkhorn"``.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> codes = TeacherCodes(num_outputs=4)
        >>> outputs = torch.tensor([[3.0, 1.0, 1.0, 1.0]])
        >>> for _ in range(100):
        ...     _ = codes(outputs, temperature=1.0)
        ...     codes.update()
        >>> codes(outputs, temperature=1.0).mul(100).round().tolist()  # what all images have is no code
        [[25.0, 25.0, 25.0, 25.0]]
    """

    distribution: ClassVar[DistributedKind] = "reduces_statistics"
    center: Tensor

    def __init__(
        self,
        num_outputs: int,
        centering: Literal["mean", "sinkhorn"] = "mean",
        momentum: float = 0.9,
        iterations: int = 3,
    ) -> None:
        super().__init__()
        if centering not in ("mean", "sinkhorn"):
            raise ValueError(f"centering must be 'mean' or 'sinkhorn', got {centering!r}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum of the centre must be in [0, 1], got {momentum}")
        if num_outputs < 1 or iterations < 1:
            raise ValueError(f"num_outputs and iterations must be at least 1, got {num_outputs} and {iterations}")
        self.centering = centering
        self.momentum = momentum
        self.iterations = iterations
        self.register_buffer("center", torch.zeros(num_outputs if centering == "mean" else 0))
        self._waiting: list[Tensor] = []

    @torch.no_grad()
    def forward(self, outputs: Tensor, temperature: float) -> Tensor:
        """Return codes ``(..., K)`` in float32 (float64 for float64) of the teacher's outputs ``(..., K)``.

        Args:
            outputs: of all images and large crops, or of all masked patches.
            temperature: of the teacher, positive.

        Raises:
            ValueError: the temperature is not positive.
        """
        check_temperature(temperature)
        outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
        flat = outputs.flatten(0, -2)  # (N, K)
        if self.centering == "sinkhorn":
            return sinkhorn(flat, temperature, self.iterations).view(outputs.shape)
        if self.training:
            self._waiting.append(flat.mean(0).to(self.center.dtype))
        return (outputs - self.center).div_(temperature).softmax(-1)

    @torch.no_grad()
    def update(self) -> None:
        """Move the centre towards the mean of the outputs since the last update, of all processes."""
        if not self._waiting:
            return
        mean = torch.stack(self._waiting).mean(0)
        self._waiting.clear()
        if is_distributed():
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        self.center.lerp_(mean, 1 - self.momentum)

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        rest = f"momentum={self.momentum}" if self.centering == "mean" else f"iterations={self.iterations}"
        return f"centering={self.centering!r}, {rest}"


class _CrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies of each view to the codes, of the first views if so wished without their own.

    With the outputs (V, N, K) it holds one tensor of their size, their gradient, which the forward pass already knows;
    plain log-softmax, product and autograd hold three.
    """

    @staticmethod
    def forward(ctx, student: Tensor, codes: Tensor, temperature: float, leave_out_own: bool) -> Tensor:
        codes = codes.to(student.dtype)
        masses = codes.sum(-1)  # (G, N): 1 each
        entropies = []
        gradient = student / temperature
        for view, scores in enumerate(gradient):
            targets = [code for code in range(len(codes)) if not (leave_out_own and code == view)]
            weight = masses[targets].sum(0)  # (N,): the number of codes
            scores.sub_(scores.amax(1, keepdim=True))
            products = sum(torch.einsum("nk,nk->n", codes[code], scores) for code in targets)
            total = scores.exp_().sum(1)  # (N,)
            entropies.append(weight * total.log() - products)
            if ctx.needs_input_grad[0]:
                scores.mul_((weight / total)[:, None])
                for code in targets:
                    scores.sub_(codes[code])
                scores.div_(temperature)
        ctx.save_for_backward(gradient)
        return torch.stack(entropies)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        return grad[..., None] * ctx.saved_tensors[0], None, None, None
