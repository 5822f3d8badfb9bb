# SPDX-License-Identifier: Apache-2.0
"""Hybrid supervision: a self-supervised loss on all images and a supervised one on those that have labels.

Ghesu et al., *Contrastive self-supervised learning from 100 million medical images with optional supervision*, J. Med.
Imaging 9(6) 064503, 2022 (arXiv 2201.01283). **How the paper combines the two is not stated where we could read it:
what follows is our reading.** One backbone f, the self-supervised method's heads g and the tasks' heads h, one joint
step, labels optional for each image (and each finding and voxel)::

    L = L_ssl(f, g; all images) + w(p) L_task(f, h; images with labels)

    w(p) = w_0 + (w_1 - w_0) clamp((p - a) / (b - a), 0, 1)         p: share of the training that is done

The two ends are exact. With w = 0 throughout, the step is that of the self-supervised method bit for bit, BatchNorm
statistics included: no supervised pass is made. Where the self-supervised loss is restricted to unlabelled images and
there is none, the step is that of :class:`monai_ssl.methods.Supervised` with the loss times w.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from monai_ssl.losses import is_distributed
from monai_ssl.networks import ImageEncoder

from .base import SSLMethod
from .supervised_heads import SupervisedHeads
from .supervised_tasks import SupervisedTask

__all__ = ["Hybrid"]


class Hybrid(SSLMethod):
    """Any self-supervised method, and supervised tasks on the same encoder.

    A step costs one pass of the encoder more than the method alone, over one view of all images: those without label
    are masked out of the loss, not out of the batch, so nothing waits for the device and BatchNorm's statistics are
    those of the whole batch.

    The export has the backbone (and the network's own decoder, if asked); the tasks' heads are in the training's
    checkpoint only, under ``heads.tasks.<name>.head``, not in ``encoder.safetensors``.

    Settings: those of the method, optimiser and rate included. A handful of labels is soon learned by heart: compare a
    weight of 0.1 with 1. Where the views crop so hard that a finding may be cut away, give the tasks a milder view of
    their own (``own_view``). With few labels in many images, let the batch be large enough to hold some: a batch
    without any is fine, its supervised part is 0.

    Args:
        method: any :class:`SSLMethod`. Its encoder is the encoder.
        tasks: one or more of :class:`ClassTask`, :class:`FindingsTask` and :class:`SegmentationTask`.
        weight: w_0, at least 0.
        final_weight: w_1; None keeps w_0 throughout.
        ramp: a and b, within [0, 1].
        self_supervised_on: ``"all"``: every image (the formula above; nothing waits for the device, all processes have
            batches of one size, and the labelled images are good images too). ``"unlabelled"``: only the images without
            a label of any task. Their number must be known, which costs a wait for the device in each step; in
            several processes each uses as many as the process that has fewest, and the trainer needs
            ``find_unused_parameters``. Below 2 of them the self-supervised part is left out.
        own_view: the last view is for the tasks alone, and the method gets the others. Otherwise the tasks take the
            first view.

    Attributes:
        progress: share of the training that is done, kept with the state, so that a ramp resumes.

    Raises:
        ValueError: a number is out of its range, ``self_supervised_on`` is unknown, or, with ``"unlabelled"``, a weight
            of 0 would leave labelled images without any use.

    Example:
        >>> import torch
        >>> from monai_ssl.methods import ClassTask, MoCoV2
        >>> from monai_ssl.networks import build_encoder
        >>> moco = MoCoV2(build_encoder("resnet18"), queue_size=64)
        >>> method = Hybrid(moco, ClassTask("label", num_classes=2), weight=0.5)
        >>> views = [torch.rand(4, 1, 32, 32), torch.rand(4, 1, 32, 32)]
        >>> out = method({"views": views, "label": torch.tensor([0, 1, -1, -1])})
        >>> out["loss"].backward()
        >>> method.after_step(progress=0.1)
        >>> bool(out["loss"] == out["ssl_loss"] + 0.5 * out["task_loss"]), out["labelled"].item()
        (True, 0.5)
    """

    def __init__(
        self,
        method: SSLMethod,
        tasks: SupervisedTask | Sequence[SupervisedTask],
        *,
        weight: float = 1.0,
        final_weight: float | None = None,
        ramp: tuple[float, float] = (0.0, 1.0),
        self_supervised_on: Literal["all", "unlabelled"] = "all",
        own_view: bool = False,
    ) -> None:
        nn.Module.__init__(self)  # not the base's: the encoder stays the method's, and is in the state once
        self.method = method
        final_weight = weight if final_weight is None else final_weight
        start, end = ramp
        if not 0 <= weight < math.inf or not 0 <= final_weight < math.inf or not 0 <= start < end <= 1:
            raise ValueError(
                "weight and final_weight must be at least 0 and ramp two ascending shares within [0, 1], got "
                f"{weight}, {final_weight} and {tuple(ramp)}"
            )
        if self_supervised_on not in ("all", "unlabelled"):
            raise ValueError(f"self_supervised_on must be 'all' or 'unlabelled', got {self_supervised_on!r}")
        self.supervises = weight > 0 or final_weight > 0
        if self_supervised_on == "unlabelled" and not self.supervises:
            raise ValueError("weight 0 with self_supervised_on='unlabelled' would not use labelled images at all")
        self.weight, self.final_weight, self.ramp = float(weight), float(final_weight), (float(start), float(end))
        self.self_supervised_on, self.own_view = self_supervised_on, own_view
        self.heads = SupervisedHeads(method.encoder, tasks)
        # Without a supervised pass the heads get no gradient: DistributedDataParallel and the optimiser shall not ask.
        self.heads.requires_grad_(self.supervises)
        self.register_buffer("progress", torch.zeros(()))

    @property
    def encoder(self) -> ImageEncoder:
        """The method's encoder."""
        return self.method.encoder

    @property
    def method_name(self) -> str:
        """What the manifest says."""
        return f"Hybrid({self.method.method_name})" if self.supervises else self.method.method_name

    @property
    def wants_positions(self) -> bool:
        """Whether the method asks for the views' positions."""
        return getattr(self.method, "wants_positions", False)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; labels are entries of the batch, see the tasks.

        Returns:
            All that the method returns, with its loss as ``"ssl_loss"``; ``"loss"``, ``"task_loss"`` (before the
            weight), ``"task_weight"``, and the tasks' scores as :meth:`SupervisedHeads.forward` names them (an entry of
            the method with such a name becomes ``"ssl_..."``). With ``self_supervised_on="unlabelled"`` the
            ``"embedding"`` is the pooled features, of all images.

        Raises:
            ValueError: a label is missing or, on the CPU, of no class; also what the method raises.
        """
        view = len(batch["views"]) - 1 if self.own_view else 0
        for_method = self._for_method(batch, view)
        out = {} if for_method is None else dict(self.method(for_method))
        ssl_loss = out.pop("loss", None)
        if not self.supervises:
            return {"loss": ssl_loss, **out, "ssl_loss": ssl_loss.detach()}
        task_loss, told = self.heads(self.encoder, batch, view)
        weight = self.task_weight()
        loss = weight * task_loss
        if ssl_loss is not None:
            loss = ssl_loss + loss
            told["ssl_loss"] = ssl_loss.detach()
        if self.self_supervised_on == "all":
            told["embedding"] = out.pop("embedding", told["embedding"])
        else:
            _fit_to_all_images(out, for_method)
        told |= {"task_loss": task_loss.detach(), "task_weight": weight}
        return {"loss": loss, **{f"ssl_{key}" if key in told else key: value for key, value in out.items()}, **told}

    def task_weight(self) -> Tensor:
        """Return w(p), a scalar on the method's device."""
        start, end = self.ramp
        share = ((self.progress - start) / (end - start)).clamp(0, 1)
        return self.weight + (self.final_weight - self.weight) * share

    def after_step(self, progress: float) -> None:
        """Update the method's teacher and queue, and the weight's progress."""
        self.method.after_step(progress)
        self.progress.fill_(progress)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the method's own groups, then those of the tasks' heads, if there is a supervised pass."""
        trainable = [parameter for parameter in self.heads.parameters() if parameter.requires_grad]
        heads = [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return [*self.method.parameter_groups(weight_decay), *(group for group in heads if group["params"])]

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """See :meth:`SSLMethod.check_batch`: refuse labels of no class."""
        self.method.check_batch(batch)
        if self.supervises:
            self.heads.check(batch)

    def _for_method(self, batch: dict[str, Any], view: int) -> dict[str, Any] | None:
        """The batch as the method gets it: its views and its images; None if there are too few."""
        unlabelled = ~self.heads.known(batch, view) if self.self_supervised_on == "unlabelled" else None
        if self.own_view:
            count = len(batch["views"])
            if count < 2:
                raise ValueError("own_view takes the last view for the tasks: there must be two views or more")
            batch = {
                key: value[:-1] if isinstance(value, list) and len(value) == count and _is_tensors(value) else value
                for key, value in batch.items()
            }
        if unlabelled is None:
            return batch
        rows = unlabelled.nonzero().flatten()  # waits for the device: the shapes that follow depend on it
        count = torch.tensor([len(rows)], device=rows.device)
        if is_distributed():
            dist.all_reduce(count, op=dist.ReduceOp.MIN)
            rows = rows[: int(count)]
        if len(rows) < 2:
            return None
        size = len(unlabelled)
        return batch if len(rows) == size else {key: _taken(value, rows, size) for key, value in batch.items()}


def _taken(value: Any, rows: Tensor, size: int) -> Any:
    """Take rows of what has an entry for each of ``size`` images: a tensor, or a list of such."""
    if isinstance(value, list):
        return [_taken(item, rows, size) for item in value]
    return value[rows] if isinstance(value, Tensor) and value.shape[:1] == (size,) else value


def _fit_to_all_images(out: dict[str, Tensor], for_method: dict[str, Any] | None) -> None:
    """Drop or complete what handlers would lay beside the whole batch, where the method saw a part of it."""
    for key in ("embedding", "embedding_pair"):
        out.pop(key, None)
    if "prediction" in out:
        out.setdefault("target", for_method["views"][0])


def _is_tensors(value: list) -> bool:
    return all(isinstance(item, Tensor) for item in value)
