# SPDX-License-Identifier: Apache-2.0
"""The contrast of images with their texts, in both directions.

Zhang, Jiang, Miura, Manning, Langlotz, *Contrastive Learning of Medical Visual Representations from Paired Images and
Text* (ConVIRT), MLHC 2022, arXiv 2010.00747, equations 2 to 4; with a learned temperature that of CLIP (Radford et al.,
ICML 2021, arXiv 2103.00020, section 2.3).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from monai_ssl.losses.contrast import check_temperature, full_precision, log_sum_exp_of_products
from monai_ssl.losses.distributed import DistributedKind, all_gather, is_distributed

__all__ = ["ImageTextContrastLoss", "image_text_contrast"]


@full_precision
def image_text_contrast(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    temperature: float | Tensor = 0.1,
    image_to_text_weight: float = 0.75,
    *,
    study_id: Tensor | None = None,
    text_id: Tensor | None = None,
    normalized: bool = False,
    gather_distributed: bool = False,
) -> Tensor:
    r"""Tell an image's text from the batch's other texts, and a text's image from the other images.

    With :math:`s_{ij} = \cos(v_i, u_j) / t` of images v and texts u, and the weight :math:`\lambda`:

    .. math::
        L = \frac 1 N \sum_i \Big[ \lambda \big(\log \sum_j e^{s_{ij}} - s_{ii}\big)
            + (1 - \lambda) \big(\log \sum_j e^{s_{ji}} - s_{ii}\big) \Big]

    Computed in float32 (float64 for float64 embeddings) as ``softplus(log sum over j != i - s_ii)``, which keeps the
    small losses of easy pairs exact. With equal embeddings it is ``log N``, with random ones about
    ``log N + 1 / (2 D t^2)``.

    Args:
        image_embeddings: v, (B, D).
        text_embeddings: u, (B, D), row i belongs to image i.
        temperature: t, a positive number, or a scalar tensor if it is learned.
        image_to_text_weight: lambda, in [0, 1]; 1 asks for each image's text only.
        study_id: (B,) integers. Another image's text, and another text's image, of the same study are no negatives:
            they describe the same patient at the same time. A negative number belongs to no study.
        text_id: (B,) integers, equal for texts of the same words. The target is then the same for all pairs of equal
            texts (a share each), since nothing tells them apart; they count as positives within a study too. Equal
            texts with exactly equal embeddings give the same loss as without it; dropout makes them differ. A negative
            number is equal to none.
        normalized: the rows already have unit length and are used as they are.
        gather_distributed: in a group of ``W`` processes, contrast the own B pairs with all ``W B``; the mean of the
            processes' losses is then the loss of the whole batch, and so are the gradients.

    Returns:
        Scalar.

    Raises:
        ValueError: if shapes differ, there is only one pair (no negatives), or a number is out of its range.

    Example:
        >>> x = torch.eye(4)
        >>> round(image_text_contrast(x, x, temperature=1.0).item(), 4)  # log(1 + 3 exp(-1))
        0.7437
        >>> round(image_text_contrast(x, x, 1.0, study_id=torch.tensor([5, 5, 6, 6])).item(), 4)  # 2 negatives left
        0.5514
    """
    check_temperature(temperature)
    _check_weight(image_to_text_weight)
    images, texts = image_embeddings, text_embeddings
    if images.ndim != 2 or images.shape != texts.shape:
        raise ValueError(
            f"images and texts must have embeddings of one shape (B, D), got {tuple(images.shape)} and "
            f"{tuple(texts.shape)}"
        )
    if not normalized:
        images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    gather = gather_distributed and is_distributed()
    all_images, all_texts = (all_gather(images), all_gather(texts)) if gather else (images, texts)
    first = dist.get_rank() * len(images) if gather else 0  # where the own pairs begin
    if len(all_images) < 2:
        raise ValueError("the contrast of images and texts needs at least two pairs: with one there are no negatives")

    same_text = _equal_ids("text_id", text_id, len(images), gather)
    ignored = _equal_ids("study_id", study_id, len(images), gather)
    if same_text is not None:
        same_text.diagonal(first).fill_(True)
        ignored = None if ignored is None else ignored & ~same_text
    pairs = (first, ignored, same_text)
    to_text = _one_way(images / temperature, all_texts, *pairs)
    to_image = _one_way(texts / temperature, all_images, *pairs)
    return (image_to_text_weight * to_text + (1 - image_to_text_weight) * to_image).mean()


def _one_way(
    anchors: Tensor, candidates: Tensor, first: int, ignored: Tensor | None, positive: Tensor | None
) -> Tensor:
    """Cross-entropy (B,) of each anchor's logits over the candidates (N, D); its own one is number ``first + i``."""

    def exclude_(logits: Tensor) -> None:  # finite, so that a row without negatives gives 0 and not NaN
        lowest = torch.finfo(logits.dtype).min
        logits.diagonal(first).fill_(lowest)
        if ignored is not None:
            logits.masked_fill_(ignored, lowest)

    own = (anchors * candidates[first : first + len(anchors)]).sum(dim=1)
    loss = F.softplus(log_sum_exp_of_products(anchors, candidates, exclude_) - own)
    if positive is not None:  # log sum exp - mean over the positives
        share = positive.to(anchors.dtype) / positive.sum(dim=1, keepdim=True)  # (B, N)
        loss = loss + own - (anchors * (share @ candidates)).sum(dim=1)
    return loss


def _equal_ids(name: str, ids: Tensor | None, size: int, gather: bool) -> Tensor | None:
    """(B, N) bool: whose number is the own one's."""
    if ids is None:
        return None
    if ids.shape != (size,) or ids.is_floating_point():
        raise ValueError(f"{name} must hold {size} integers, one for each pair; got {ids.dtype} {tuple(ids.shape)}")
    everyone = all_gather(ids) if gather else ids
    return (ids[:, None] == everyone) & (ids >= 0)[:, None]


def _check_weight(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise ValueError(f"image_to_text_weight must be in [0, 1], got {weight}")


class ImageTextContrastLoss(nn.Module):
    """Module face of :func:`image_text_contrast`; it can learn the temperature.

    A learned temperature is CLIP's: the parameter is ``log(1 / t)``, held at or below log 100 so that the training
    stays stable. It has no dimension, so that :meth:`SSLMethod.parameter_groups` lets it be without weight decay.

    Args:
        temperature: positive; 0.1 in ConVIRT, and 0.07, at the start, in CLIP.
        image_to_text_weight: 0.75 in ConVIRT, 0.5 in CLIP.
        learn_temperature: learn it.
        gather_distributed: use the pairs of all processes as negatives.
        normalized: the rows given to ``forward`` already have unit length.

    Raises:
        ValueError: a number is out of its range; a temperature to learn below 0.01.
    """

    distribution: ClassVar[DistributedKind] = "gathers_negatives"
    LARGEST_SCALE: ClassVar[float] = 100.0

    def __init__(
        self,
        temperature: float = 0.1,
        image_to_text_weight: float = 0.75,
        learn_temperature: bool = False,
        gather_distributed: bool = True,
        normalized: bool = False,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        _check_weight(image_to_text_weight)
        if learn_temperature and temperature * self.LARGEST_SCALE < 1:
            raise ValueError(f"a learned temperature starts at 1 / {self.LARGEST_SCALE:g} or above, got {temperature}")
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature))) if learn_temperature else None
        self._temperature = temperature
        self.image_to_text_weight = image_to_text_weight
        self.gather_distributed = gather_distributed
        self.normalized = normalized

    @property
    def temperature(self) -> float | Tensor:
        """The temperature; a scalar tensor with gradient where it is learned."""
        if self.log_scale is None:
            return self._temperature
        with torch.no_grad():  # the parameter itself is held: from beyond the limit no gradient would lead back
            self.log_scale.data.clamp_(max=math.log(self.LARGEST_SCALE))
        return torch.exp(-self.log_scale)

    def forward(
        self,
        image_embeddings: Tensor,
        text_embeddings: Tensor,
        study_id: Tensor | None = None,
        text_id: Tensor | None = None,
    ) -> Tensor:
        """Loss of ``image_embeddings`` (B, D) and ``text_embeddings`` (B, D); see :func:`image_text_contrast`.

        In evaluation mode the other processes' pairs are left out, so that one process can measure alone.
        """
        return image_text_contrast(
            image_embeddings,
            text_embeddings,
            self.temperature,
            self.image_to_text_weight,
            study_id=study_id,
            text_id=text_id,
            normalized=self.normalized,
            gather_distributed=self.gather_distributed and self.training,
        )

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return (
            f"temperature={float(torch.as_tensor(self.temperature).detach()):g}, learned={self.log_scale is not None}, "
            f"image_to_text_weight={self.image_to_text_weight}, gather_distributed={self.gather_distributed}, "
            f"normalized={self.normalized}"
        )
