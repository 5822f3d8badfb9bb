# SPDX-License-Identifier: Apache-2.0
"""Positives and false negatives that metadata knows: images of one patient, one study, the other breast or view.

Two images of one patient show the same anatomy: to push them apart teaches the wrong thing, and to pull them together
teaches more than another crop of one image can. A batch says who belongs together by two entries of integers (B,):

* ``"group_id"``: the patient. Images of one patient are never told from one another.
* ``"positive_id"``: images with equal numbers are positives of one another. They must be of one patient, but may be
  fewer than all of it: one study, or one image of each breast (:func:`monai_ssl.data.positive_groups` makes such
  numbers). Where it is missing, ``"group_id"`` serves.

A negative number means: not known. Such an image has no relatives.

How this relates to MICLe, multi-instance contrastive learning (Azizi et al., *Big Self-Supervised Models Advance
Medical Image Classification*, ICCV 2021, arXiv 2101.05224): MICLe draws two distinct images of a case, views each of
them once, and takes the two views as the pair of SimCLR's loss; a case with one image gives two views of it. That is
:func:`partners`: pair view 1 with ``view_2[partner]``. The contrastive methods here keep the pair of views of one image
besides, and take the relatives as further positives: NT-Xent by its form with groups (Khosla et al., arXiv 2004.11362,
equation 2), the momentum methods by the partner's key.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from monai_ssl.losses import group_nt_xent, is_distributed, nt_xent

__all__ = ["Relatives", "contrast_views", "partners", "relatives"]


class Relatives(NamedTuple):
    """Who is a positive of whom in a batch, and who is never a negative; see :func:`relatives`.

    Args:
        positive: (B,) int64, equal for positives; None where views of one image are the only ones.
        patient: (B,) int64, equal for images that are never negatives of one another; None where all others are.
    """

    positive: Tensor | None = None
    patient: Tensor | None = None

    def partners(self, generator: torch.Generator | None = None) -> Tensor | None:
        """A further positive (B,) of each image, see :func:`partners`; None where metadata gives no positives."""
        return None if self.positive is None else partners(self.positive, generator)


def relatives(batch: dict[str, Any], patient_positives: bool, exclude_own_patient: bool) -> Relatives:
    """Read from a batch what two options of the contrastive methods ask for.

    Args:
        batch: with ``"views"``, and ``"group_id"`` (B,), the number of each image's patient; perhaps ``"positive_id"``
            (B,), equal for images of one patient that are positives of one another, see
            :func:`monai_ssl.data.positive_groups`. Where it is missing the whole patient is. A negative number means:
            not known; such an image has no relatives.
        patient_positives: images of one ``"positive_id"``, or else of one ``"group_id"``, are positives. The rest of
            their patient is no negative either, as with the other option.
        exclude_own_patient: images of one ``"group_id"`` are no negatives of one another. Not for batches in which
            other places of the same volume are the negatives that are to teach anatomy.

    Returns:
        Numbers in which every image that is not known to have relatives stands alone.

    Raises:
        ValueError: an option is on, and the batch has no such entry, or not one integer for each image.
    """
    if not (patient_positives or exclude_own_patient):
        return Relatives()
    option = "patient_positives" if patient_positives else "exclude_own_patient"
    names = [name for name in ("group_id", "positive_id") if name in batch]
    if not names or (names == ["positive_id"] and not patient_positives):
        raise ValueError(
            f"{option}=True needs batch['group_id'], the number of each image's patient: give the dataset "
            "label_columns=['group_id'], or switch the option off"
        )
    size = len(batch["views"][0])
    ids = {}
    for name in names:
        value = batch[name]
        if not isinstance(value, Tensor) or value.shape != (size,) or value.is_floating_point():
            found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"batch[{name!r}] must hold {size} integers, one for each image; got {found}")
        ids[name] = _alone_where_unknown(value.to(torch.int64))
    patient = ids.get("group_id", ids.get("positive_id"))
    return Relatives(ids.get("positive_id", patient) if patient_positives else None, patient)


def partners(groups: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Choose for each image another one of its group, in the same batch; itself where there is none.

    Any method of two views gets positives from metadata by it, also one without negatives (BYOL, SimSiam, VICReg):
    ``view_2[partners(groups)]``, or the target network's embedding of it, is the positive of view 1. Within each group
    the choice is a permutation: everybody is somebody's partner once. Nothing is read back from the device.

    Args:
        groups: (B,) integers; equal numbers belong together, a negative one to nobody.
        generator: source of a random choice, on the device of ``groups``. None: the next one of the group, in the order
            of the batch; with two of a group, as :class:`monai_ssl.data.EpochSampler` pairs them, it is the only one.

    Returns:
        (B,) int64, places in the batch.

    Example:
        >>> partners(torch.tensor([7, 3, 7, 7, 5])).tolist()
        [2, 1, 3, 0, 4]
    """
    size = len(groups)
    order = torch.arange(size, device=groups.device)
    if generator is not None:
        order = torch.randperm(size, generator=generator, device=groups.device)
    rank = torch.arange(size, device=groups.device, dtype=torch.int32)
    shuffled = groups[order]
    related = (shuffled[:, None] == shuffled) & (shuffled >= 0)[:, None]
    steps = (rank - rank[:, None]).sub_(1).remainder_(size).add_(1)  # (B, B): how far on the other is; oneself: B
    nearest = steps.masked_fill_(~related, size).amin(dim=1)
    return torch.empty_like(order).scatter_(0, order, order[(rank + nearest) % size])


def contrast_views(view_a: Tensor, view_b: Tensor, related: Relatives, temperature: float | Tensor) -> Tensor:
    """NT-Xent of two views' embeddings (B, D), not normalised, over all processes, with relatives heeded.

    Raises:
        ValueError: see :func:`monai_ssl.losses.nt_xent`.
    """
    options = {"temperature": temperature, "gather_distributed": True}
    if related.patient is None:
        return nt_xent(view_a, view_b, **options)
    positive = related.positive
    if positive is None:
        positive = _alone_where_unknown(torch.full_like(related.patient, -1))
    return group_nt_xent(view_a, view_b, positive, exclude=related.patient, **options)


def _alone_where_unknown(ids: Tensor) -> Tensor:
    """Give each negative number's place a number of its own in all processes, below -1, the unknown of queues."""
    first = torch.distributed.get_rank() * len(ids) if is_distributed() else 0
    return torch.where(ids < 0, -2 - first - torch.arange(len(ids), device=ids.device), ids)
