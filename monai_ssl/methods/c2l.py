# SPDX-License-Identifier: Apache-2.0
"""C2L, "Comparing to Learn": momentum contrast with mixup of images and of features.

Zhou, Yu, Bian, Hu, Ma, Zheng, *Comparing to Learn: Surpassing ImageNet Pretraining on Radiographs By Comparing Image
Representations*, MICCAI 2020, arXiv 2007.07423, with the details of the released code. With views x1, x2, student f,
teacher g, queue M and n(.) = L2 normalisation::

    q   = f(x1)                         k  = g(x2)
    lam = max(l, 1 - l), l ~ Beta(a, a)                 one number and one permutation pi per batch
    xm1 = lam x1 + (1 - lam) x1[pi]     xm2 = lam x2 + (1 - lam) x2[pi]
    qm  = f(xm1)                        km = g(xm2)     kf = lam k + (1 - lam) k[pi]    (before normalisation)

    L1 = NCE(n(q),  n(k);  M)           homogeneous pair: two views of one image
    L2 = NCE(n(qm), n(km); M)           heterogeneous pair: image mixture against image mixture
    L3 = NCE(n(qm), n(kf); M)           heterogeneous pair: image mixture against feature mixture
    L  = (L1 + L2 + L3) / 3
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from monai_ssl.losses import ConstantZNCELoss, InfoNCELoss
from monai_ssl.networks import ImageEncoder

from .momentum_contrast import MomentumContrast
from .positives import Relatives, contrast_views, relatives
from .requirements import check_views

__all__ = ["C2L"]

TERMS = ("homogeneous", "image_mix", "feature_mix")


class C2L(MomentumContrast):
    """Comparing to learn; each ingredient can be switched off for the ablation.

    The defaults are those of the released code, whose recipe is SGD, learning rate 0.03, momentum 0.9, weight decay
    1e-4 on all parameters, batch 128, the rate divided by ten after epochs 60, 80 and 100 of 120.

    Args:
        encoder: the network to pretrain.
        terms: which of ``"homogeneous"`` (L1), ``"image_mix"`` (L2) and ``"feature_mix"`` (L3) to average.
        mixup_alpha: a of Beta(a, a); 1 draws uniformly.
        criterion: ``"info_nce"``, or ``"nce"``: noise-contrastive estimation with a constant Z.
        num_data: images in the pool; needed by ``"nce"`` only.
        temperature: t, positive.
        keys: who makes the keys. ``"teacher"``: the momentum teacher, without gradient (the paper). ``"student"``: the
            student itself, with gradient; each term is then NT-Xent over both sides of the batch (SimCLR's loss), and
            teacher and queue stand by unused. On pools of some thousand images this learns more, in less time.
        enqueue: which keys enter the queue and when. ``"per_loss"``: each term's keys right after the term, so that L2
            and L3 see this step's keys of the same images as negatives (released code). ``"end_of_step"``: the same
            keys after the step. ``"homogeneous"``: only k, after the step.
        head: see :class:`MomentumContrast`, also for the other arguments.
        embedding_dim: D.
        queue_size: K, shared by the terms.
        momentum: m.
        final_momentum: m at the end of a cosine schedule; None keeps it constant.
        shuffle_batch_norm: Shuffle-BN for the teacher, one permutation for both of its passes.
        in_batch_negatives: the batch's own keys are negatives too; worth it with one process and small queues.
        decay_all: decay biases and normalisation parameters too.
        patient_positives: images of one patient are positives of one another, see :class:`MomentumContrast` for keys
            of the teacher; with keys of the student all of them are, as in :func:`monai_ssl.losses.group_nt_xent`. A
            mixture belongs to the patient of its larger part. None: with keys of the student, where the batch says
            who the patients are.
        exclude_own_patient: no image of the same patient is a negative.

    Raises:
        ValueError: unknown ``terms``, ``criterion`` or ``enqueue``, or ``"nce"`` without ``num_data``.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        terms: Sequence[str] = TERMS,
        mixup_alpha: float = 1.0,
        criterion: Literal["info_nce", "nce"] = "info_nce",
        num_data: int | None = None,
        temperature: float = 0.07,
        keys: Literal["teacher", "student"] = "teacher",
        enqueue: Literal["per_loss", "end_of_step", "homogeneous"] = "per_loss",
        head: str = "linear",
        embedding_dim: int = 128,
        queue_size: int = 16384,
        momentum: float = 0.999,
        final_momentum: float | None = None,
        shuffle_batch_norm: bool = False,
        in_batch_negatives: bool = False,
        decay_all: bool = False,
        patient_positives: bool | None = None,
        exclude_own_patient: bool = False,
    ) -> None:
        if not terms or set(terms) - set(TERMS):
            raise ValueError(f"terms must be one or more of {', '.join(TERMS)}, got {list(terms)}")
        if mixup_alpha <= 0:
            raise ValueError(f"mixup_alpha must be positive, got {mixup_alpha}")
        if keys not in ("teacher", "student"):
            raise ValueError(f"keys must be 'teacher' or 'student', got {keys!r}")
        if keys == "student" and criterion != "info_nce":
            raise ValueError(f"keys of the student need the criterion 'info_nce', got {criterion!r}")
        if enqueue not in ("per_loss", "end_of_step", "homogeneous"):
            raise ValueError(f"enqueue must be 'per_loss', 'end_of_step' or 'homogeneous', got {enqueue!r}")
        super().__init__(
            encoder,
            _build_criterion(criterion, num_data, temperature),
            head=head,
            embedding_dim=embedding_dim,
            queue_size=queue_size,
            momentum=momentum,
            final_momentum=final_momentum,
            shuffle_batch_norm=shuffle_batch_norm,
            in_batch_negatives=in_batch_negatives,
            decay_all=decay_all,
            exclude_own_patient=exclude_own_patient,
        )
        self.patient_positives = patient_positives
        self.terms = tuple(term for term in TERMS if term in terms)
        self.mixup_alpha = mixup_alpha
        self.keys = keys
        self.temperature = temperature
        self.enqueue = enqueue

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; needs two views. Also returns each term by its name, and ``"mix"`` (lam)."""
        x1, x2 = check_views(self, batch["views"])
        related = self._relatives(batch)
        mix, partner = self._draw_mixture(x1.shape[0], x1.device, batch.get("generator"))
        mixed_1, mixed_2 = torch.lerp(x1[partner], x1, mix), torch.lerp(x2[partner], x2, mix)

        embed = self._embed_by_student if self.keys == "student" else self._embed_by_both
        query, key, mixed_query, mixed_key = embed(batch, (x1, x2), (mixed_1, mixed_2))
        pairs = {
            "homogeneous": (query, key),
            "image_mix": (mixed_query, mixed_key),
            "feature_mix": (mixed_query, torch.lerp(key[partner], key, mix.to(key.dtype))),
        }

        losses: dict[str, Tensor] = {}
        for term in self.terms:
            term_query, term_key = pairs[term]
            losses[term] = self._term(term_query, term_key, related)
        if self.enqueue == "homogeneous" and self.keys == "teacher":
            self.enqueue_later(normalize(key.float()), patient=related.patient)
        embedding = mixed_query if query is None else query
        return {
            "loss": torch.stack(list(losses.values())).mean(),
            "embedding": normalize(embedding.detach().float()),
            "mix": mix,
            **{term: loss.detach() for term, loss in losses.items()},
        }

    def after_step(self, progress: float) -> None:
        """See :meth:`MomentumContrast.after_step`; there is nothing to do when the student makes the keys."""
        if self.keys == "teacher":
            super().after_step(progress)

    def _embed_by_both(
        self, batch: dict[str, Any], views: tuple[Tensor, Tensor], mixtures: tuple[Tensor, Tensor]
    ) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
        """Embed queries by the student and keys by the teacher: of the views, then of the mixtures, as needed."""
        query = self.student(views[0]) if "homogeneous" in self.terms else None
        mixed_query = self.student(mixtures[0]) if self.terms != ("homogeneous",) else None
        if "image_mix" not in self.terms:
            return query, *self.teach(batch, views[1]), mixed_query, None
        key, mixed_key = self.teach(batch, views[1], mixtures[1])
        return query, key, mixed_query, mixed_key

    def _embed_by_student(
        self, batch: dict[str, Any], views: tuple[Tensor, Tensor], mixtures: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Embed all by the student.

        Both sides of a pair share one batch: with BatchNorm statistics of its own, each side would carry a trace that
        the network need not look at an image for. Mixtures stay by themselves, as their contrast is lower.
        """
        query, key = self.student(torch.cat(views)).chunk(2)
        if self.terms == ("homogeneous",):
            return query, key, None, None
        if "image_mix" not in self.terms:
            return query, key, self.student(mixtures[0]), None
        return query, key, *self.student(torch.cat(mixtures)).chunk(2)

    def _draw_mixture(
        self, size: int, device: torch.device, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """One lam in [0.5, 1] and one permutation (B,) for the whole batch."""
        # Beta(a, a) is X / (X + Y) of two Gamma(a) variables; torch's own Beta takes no generator.
        gammas = torch._standard_gamma(torch.full((2,), self.mixup_alpha, device=device), generator=generator)
        share = gammas[0] / gammas.sum()
        return torch.maximum(share, 1 - share), torch.randperm(size, device=device, generator=generator)

    def _relatives(self, batch: dict[str, Any]) -> Relatives:
        positives = self.patient_positives
        if positives is None:
            positives = self.keys == "student" and ("group_id" in batch or "positive_id" in batch)
        return relatives(batch, positives, self.exclude_own_patient)

    def _term(self, query: Tensor, key: Tensor, related: Relatives) -> Tensor:
        """One term's loss; then its keys enter the queue, now or after the step."""
        if self.keys == "student":
            return contrast_views(query, key, related, self.temperature)
        query, key = normalize(query.float()), normalize(key.float())
        loss = self.contrast(query, key, related)
        if self.enqueue == "end_of_step":
            self.enqueue_later(key, patient=related.patient)
        elif self.enqueue == "per_loss" and self.training:
            self.queue.enqueue(key, related.patient)
        return loss


def _build_criterion(name: str, num_data: int | None, temperature: float) -> InfoNCELoss | ConstantZNCELoss:
    if name == "info_nce":
        return InfoNCELoss(temperature, normalized=True)
    if name != "nce":
        raise ValueError(f"criterion must be 'info_nce' or 'nce', got {name!r}")
    if num_data is None:
        raise ValueError("the criterion 'nce' needs num_data, the number of images in the pool")
    return ConstantZNCELoss(num_data, temperature, normalized=True)
