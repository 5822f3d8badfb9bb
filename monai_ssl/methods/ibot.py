# SPDX-License-Identifier: Apache-2.0
"""iBOT: DINO, and the same among patches: predict the teacher's code of each patch that the student can't see.

Zhou, Wei, Wang, Shen, Xie, Yuille, Kong, *iBOT: Image BERT Pre-Training with Online Tokenizer*, ICLR 2022, arXiv
2111.07832, section 3.1 and algorithm 1. With the large crops x1, x2, hidden patches M_a of half of them, the
student's states f and the teacher's g, heads h and centres as in DINO::

    L_image = DINO's loss, the student's large crops with the patches M_a hidden
    L_patch = mean over crops a with hidden patches, mean over i in M_a, of -sum_k q_ai[k] log p_ai[k]
              q_ai = code of patch i from g(x_a), which sees all;  p_ai = softmax(h(f(x_a without M_a))_i / w)
    L       = L_image + L_patch

DINOv2 (:class:`~monai_ssl.methods.DINOv2`) adds KoLeo, on the pooled features z of each large crop by itself::

    L      += 0.1 sum over a of KoLeo({z_a of all images})
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from monai_ssl.losses import KoLeoLoss, TeacherCodes, distillation, patch_distillation
from monai_ssl.networks import DINOHead, MomentumCopy, ViTImageEncoder, forward_by_size
from monai_ssl.transforms import draw_blockwise_mask, masked_counts

from .requirements import multi_crop
from .self_distillation import SelfDistillation

__all__ = ["IBOT"]


class IBOT(SelfDistillation):
    """Predict the teacher's codes of other crops, and of hidden patches of the same crop, with MONAI's ViT in 2D or 3D.

    The paper's image-level loss is on the class token. Here the mean of the patch tokens stands for it, as MONAI's
    plain ViT and the one in UNETR have no class token. The centre of the patches' codes is taken over the hidden ones
    only, so that the teacher's head need not see the others. Small views need ``interpolate_positions=True`` in the
    encoder.

    The defaults are the paper's; the recipe beside them is DINO's (:class:`~monai_ssl.methods.DINO`), also what is said
    there of small pools. ViTs on some thousand images want small patches (8 pixels), and masked modelling
    (:class:`~monai_ssl.methods.MAEViT`) first, whose weights this can start from.

    Args:
        encoder: of ``build_encoder("vit", img_size=...)``.
        num_outputs: K of the head.
        num_patch_outputs: K of the patches' head; None: one head, the paper's choice, serves both.
        mask_ratio: lowest and highest share of a masked crop's patches that is hidden.
        mask_share: share of the large crops that is masked.
        min_block: smallest hidden block in patches, see :func:`monai_ssl.transforms.draw_blockwise_mask`.
        patch_weight: factor of L_patch. 0.5 is what the released codes of iBOT and DINOv2 come to: they divide by all
            large crops, of which half has no hidden patch.
        koleo_weight: factor of KoLeo; 0 in iBOT. Needs two images a batch.
        hidden_features: see :class:`SelfDistillation`, also for the other arguments.
        bottleneck_features: D, length of the embedding.
        student_temperature: of images and patches.
        teacher_temperature: of images and patches.
        temperature_warmup: share of the training; 30 of 100 epochs in the released code.
        freeze_last_layer: share of the training.
        momentum: m at the start.
        final_momentum: m at the end.
        centering: how codes are kept apart, of images and of patches each.
        center_momentum: of both centres.

    Raises:
        ValueError: the encoder is no ViT; a number is out of its range.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import build_encoder
        >>> encoder = build_encoder("vit", img_size=32, patch_size=8, hidden_size=24, mlp_dim=32, num_heads=2)
        >>> method = IBOT(encoder, num_outputs=64, hidden_features=32, bottleneck_features=16)
        >>> out = method({"views": [torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32)]})
        >>> out["hidden_patches"].shape, out["hidden_patches"].sum((1, 2, 3)).sort().values.tolist()
        (torch.Size([4, 1, 4, 4]), [0, 0, 3, 6])
    """

    def __init__(
        self,
        encoder: ViTImageEncoder,
        *,
        num_outputs: int = 8192,
        num_patch_outputs: int | None = None,
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        mask_share: float = 0.5,
        min_block: int = 4,
        patch_weight: float = 1.0,
        koleo_weight: float = 0.0,
        hidden_features: int = 2048,
        bottleneck_features: int = 256,
        student_temperature: float = 0.1,
        teacher_temperature: tuple[float, float] = (0.04, 0.07),
        temperature_warmup: float = 0.3,
        freeze_last_layer: float = 0.01,
        momentum: float = 0.996,
        final_momentum: float = 1.0,
        centering: Literal["mean", "sinkhorn"] = "mean",
        center_momentum: float = 0.9,
    ) -> None:
        name = type(self).__name__
        if not isinstance(encoder, ViTImageEncoder):
            raise ValueError(f"{name} needs a 'vit' encoder, not {encoder.architecture!r}; DINO takes any")
        if patch_weight < 0 or koleo_weight < 0:
            raise ValueError(f"the weights must be at least 0, got patch {patch_weight} and koleo {koleo_weight}")
        masked_counts(2, 2, mask_share, mask_ratio)  # says what is wrong with them
        super().__init__(
            encoder,
            num_outputs=num_outputs,
            hidden_features=hidden_features,
            bottleneck_features=bottleneck_features,
            head_batch_norm=False,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            temperature_warmup=temperature_warmup,
            freeze_last_layer=freeze_last_layer,
            momentum=momentum,
            final_momentum=final_momentum,
            centering=centering,
            center_momentum=center_momentum,
        )
        self.mask_ratio = tuple(mask_ratio)
        self.mask_share = mask_share
        self.min_block = min_block
        self.patch_weight = patch_weight
        self.koleo_weight = koleo_weight
        # One axis, so that it is not decayed.
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(encoder.num_features), std=0.02))
        self.patch_codes = TeacherCodes(num_patch_outputs or num_outputs, centering, center_momentum)
        self.patch_head: DINOHead | None = None
        self.patch_teacher: MomentumCopy | None = None  # of the patches' own head, where they have one
        if num_patch_outputs is not None:
            self.patch_head = DINOHead(encoder.num_features, num_patch_outputs, hidden_features, bottleneck_features)
            self.patch_teacher = MomentumCopy(self.patch_head)
        self.koleo = KoLeoLoss()

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; takes two large views of one size, then any number of smaller ones.

        Returns:
            ``"loss"``; ``"embedding"`` and ``"embedding_pair"``: (B, D), unit vectors, before the head's last layer, of
            the two large views with patches hidden; ``"hidden_patches"``: (2 B, 1, *grid) bool, True where a patch of
            the large views, the first view's images first, was hidden; ``"image_loss"``, ``"patch_loss"`` and, if it
            has a weight, ``"koleo_loss"``; what :meth:`SelfDistillation.health` tells of the image codes.

        Raises:
            ValueError: the views are not so, or do not fit the encoder.
        """
        large, small = multi_crop(self, batch["views"])
        mask, places, weights = self.draw_mask(large, batch.get("generator"))
        codes, patch_codes = self.teach(large, places)

        states = self.encoder.encode_hidden(large, mask.flatten(1), self.mask_token)  # (2 B, N, F)
        pooled = states.mean(1)
        features = torch.cat([pooled, *(forward_by_size(self.encoder, small) if small else [])])  # (V B, F)
        embedded = self.head.embed(features)
        frozen, views = self.last_layer_is_frozen, 2 + len(small)
        scores = self.head.score(embedded, frozen).unflatten(0, (views, -1))  # (V, B, K)
        patch_scores = (self.patch_head or self.head)(states.flatten(0, 1)[places], frozen)  # (M, K)

        image_loss = distillation(scores, codes, self.student_temperature)
        patch_loss = patch_distillation(patch_scores, patch_codes, weights, self.student_temperature)
        loss = image_loss + self.patch_weight * patch_loss
        parts = {"image_loss": image_loss.detach(), "patch_loss": patch_loss.detach()}
        if self.koleo_weight:
            koleo_loss = sum(self.koleo(z) for z in pooled.chunk(2))  # crops of one image may lie together
            loss = loss + self.koleo_weight * koleo_loss
            parts["koleo_loss"] = koleo_loss.detach()
        first, second = embedded.detach().unflatten(0, (views, -1))[:2]
        health = self.health(codes, image_loss)
        return {"loss": loss, "embedding": first, "embedding_pair": second, "hidden_patches": mask, **parts, **health}

    def draw_mask(self, large: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Draw which patches of large views (2 B, C, *spatial) are hidden.

        Returns:
            (2 B, 1, *grid) bool, True where hidden; (M,) int64, the places of the M hidden patches among all 2 B N, in
            order; (M,) float32, what each of them counts in L_patch.
        """
        grid = [size // side for size, side in zip(large.shape[2:], self.encoder.patch_size, strict=True)]
        counts = masked_counts(len(large), math.prod(grid), self.mask_share, self.mask_ratio)
        mask = draw_blockwise_mask(counts, grid, generator, large.device, self.min_block)
        order = torch.randperm(len(large), generator=generator, device=large.device)
        mask = mask[order]  # counts come in order
        hidden = mask.flatten(1)  # (2 B, N)
        masked_crops = sum(count > 0 for count in counts)
        each = hidden / (masked_crops * hidden.sum(1, keepdim=True).clamp(min=1))
        # How many are hidden is known, so that the device need not be waited for.
        places = hidden.flatten().byte().argsort(stable=True, descending=True)[: sum(counts)]
        return mask, places, each.flatten()[places]

    @torch.no_grad()
    def teach(self, large: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes (2, B, K) of whole large views (2 B, C, *spatial), and (M, K) of their patches ``places``."""
        encoder, head = self.teacher.module["encoder"], self.teacher.module["head"]
        patch_head = head if self.patch_teacher is None else self.patch_teacher
        states = encoder.encode_tokens(encoder.patch_tokens(large) + encoder.positions(large.shape[2:]))  # (2 B, N, F)
        codes = self.codes(head(states.mean(1)).unflatten(0, (2, -1)), self.teacher_temperature)
        return codes, self.patch_codes(patch_head(states.flatten(0, 1)[places]), self.teacher_temperature)

    def after_step(self, progress: float) -> None:
        """See :meth:`SelfDistillation.after_step`; also the patches' head and centre."""
        if self.patch_teacher is not None:
            self.patch_teacher.update(self.patch_head, self.teacher_momentum(progress))
        self.patch_codes.update()
        super().after_step(progress)
