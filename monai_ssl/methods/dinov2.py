# SPDX-License-Identifier: Apache-2.0
"""DINOv2: iBOT with heads of their own for images and patches, Sinkhorn codes and KoLeo.

Oquab, Darcet, Moutakanni, Vo, Szafraniec et al., *DINOv2: Learning Robust Visual Features without Supervision*, TMLR
2024, arXiv 2304.07193, section 4. Its losses are written out in :mod:`monai_ssl.methods.ibot`. RAD-DINO trains encoders
of radiographs with it (Perez-Garcia et al., arXiv 2401.10815), 3DINO encoders of volumes (Xu et al., npj Digital
Medicine 2025).
"""

from __future__ import annotations

from typing import Literal

from monai_ssl.networks import ViTImageEncoder

from .ibot import IBOT

__all__ = ["DINOv2"]


class DINOv2(IBOT):
    """The objective of DINOv2 on MONAI's ViT, in 2D (RAD-DINO's) or 3D (3DINO's).

    The defaults are the released code's base configuration with the paper's changes to iBOT: untied heads, Sinkhorn
    codes, KoLeo. The recipe beside them: AdamW, learning rate 4e-3 times the root of batch / 1,024, 10 epochs of
    warm-up, cosine, weight decay from 0.04 to 0.4, gradients clipped at 3, 8 small crops. The paper's stochastic depth
    and layer scale are not in MONAI's ViT.

    A pool of some thousand images on one GPU wants less: ``num_outputs`` and ``num_patch_outputs`` of 1,024 to 4,096
    (Sinkhorn hands each output the same share of the codes of one batch, so K far above the batch means little), a
    narrower head (``hidden_features`` 512 to 1,024), a learning rate of 2.5e-4 to 5e-4, batches of 32 images or more,
    since KoLeo and Sinkhorn compare the images of a batch, and weights of :class:`~monai_ssl.methods.MAEViT` to start
    from. For volumes, large crops of 96 voxels a side, small ones of 48 and patches of 16 or 8.

    Args:
        encoder: of ``build_encoder("vit", img_size=...)``; ``interpolate_positions=True`` for small crops.
        num_outputs: K of the images' head.
        num_patch_outputs: K of the patches' head; None: one head serves both.
        koleo_weight: factor of KoLeo.
        momentum: m at the start.
        centering: how codes are kept apart.
        mask_ratio: see :class:`IBOT`, also for the other arguments.
        mask_share: share of the large crops that is masked.
        min_block: smallest hidden block in patches.
        patch_weight: factor of the patches' loss.
        hidden_features: width of the heads' hidden layers.
        bottleneck_features: D, length of the embedding.
        student_temperature: of images and patches.
        teacher_temperature: at the start, and after the warm-up.
        temperature_warmup: share of the training.
        freeze_last_layer: share of the training.
        final_momentum: m at the end.
        center_momentum: of the centres, if ``centering`` is ``"mean"``.

    Raises:
        ValueError: the encoder is no ViT; a number is out of its range; KoLeo finds one image only in the batch.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import build_encoder
        >>> size = {"img_size": 32, "patch_size": 8, "hidden_size": 24, "mlp_dim": 32, "num_heads": 2, "num_layers": 2}
        >>> encoder = build_encoder("vit", 3, interpolate_positions=True, **size)
        >>> method = DINOv2(encoder, num_outputs=64, num_patch_outputs=32, hidden_features=32, bottleneck_features=16)
        >>> views = [torch.rand(2, 1, *[side] * 3) for side in (32, 32, 16)]
        >>> out = method({"views": views})
        >>> out["loss"].backward()
        >>> sorted(name for name in out if name.endswith("loss"))
        ['image_loss', 'koleo_loss', 'loss', 'patch_loss']
    """

    def __init__(
        self,
        encoder: ViTImageEncoder,
        *,
        num_outputs: int = 65536,
        num_patch_outputs: int | None = 65536,
        koleo_weight: float = 0.1,
        momentum: float = 0.992,
        centering: Literal["mean", "sinkhorn"] = "sinkhorn",
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        mask_share: float = 0.5,
        min_block: int = 4,
        patch_weight: float = 1.0,
        hidden_features: int = 2048,
        bottleneck_features: int = 256,
        student_temperature: float = 0.1,
        teacher_temperature: tuple[float, float] = (0.04, 0.07),
        temperature_warmup: float = 0.3,
        freeze_last_layer: float = 0.01,
        final_momentum: float = 1.0,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__(
            encoder,
            num_outputs=num_outputs,
            num_patch_outputs=num_patch_outputs,
            mask_ratio=mask_ratio,
            mask_share=mask_share,
            min_block=min_block,
            patch_weight=patch_weight,
            koleo_weight=koleo_weight,
            hidden_features=hidden_features,
            bottleneck_features=bottleneck_features,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            temperature_warmup=temperature_warmup,
            freeze_last_layer=freeze_last_layer,
            momentum=momentum,
            final_momentum=final_momentum,
            centering=centering,
            center_momentum=center_momentum,
        )
