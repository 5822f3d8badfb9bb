# SPDX-License-Identifier: Apache-2.0
"""SwinUNETR's pretraining: fill in what was cut out, tell how the image was turned, and recognise the other copy.

Tang, Yang, Li, Roth, Landman, Xu, Nath, Hatamizadeh, *Self-Supervised Pre-Training of Swin Transformers for 3D Medical
Image Analysis*, CVPR 2022, arXiv 2111.14791, section 3.2, with the details of the released code. For a view x, two
copies i = 1, 2::

    x_i  = x turned by r_i quarter turns about the body's axis, r_i drawn from {0, 1, 2, 3}
    c_i  = x_i with boxes of it replaced by noise, and others by boxes of another image of the batch
    h_i  = last feature map of the encoder on c_i;   m_i = its mean over places

    L_inpaint  = mean over voxels and both copies of |decoder(h_i) - x_i|
    L_rotate   = mean over both copies of the cross-entropy of r_i and rotation_head(m_i)      log 4 at the start
    L_contrast = NT-Xent of contrast_head(m_1) and contrast_head(m_2), temperature 0.5
    L          = L_inpaint + L_contrast + L_rotate
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from monai_ssl.losses import NTXentLoss, masked_reconstruction
from monai_ssl.networks import ImageEncoder, MLPHead, UpsamplingHead, measure_stride
from monai_ssl.transforms import RandomBlockDrop, RandomQuarterTurn

from .base import SSLMethod
from .requirements import check_size, check_view

__all__ = ["SwinUNETRPretext"]


class SwinUNETRPretext(SSLMethod):
    """Three tasks on one encoder's last feature map: in-painting, rotation, contrast.

    Made for ``build_encoder("swinunetr", spatial_dims=3)``, whose file goes into MONAI's ``SwinUNETR``, but any encoder
    serves. Give it without its own decoder. The defaults are those of the released code, which AdamW at learning rate
    4e-4, weight decay 0.1 and views of 96 voxels a side go with; differences to it that are not options: the rotation
    and contrastive heads get the pooled map unless ``head_features="token"``, both copies go through the network as one
    batch, and the image that boxes are taken from is always another one, whole.

    Args:
        encoder: the network to pretrain.
        weights: of the in-painting, the contrastive and the rotation loss.
        temperature: of NT-Xent.
        rotation_axis: see :class:`~monai_ssl.transforms.RandomQuarterTurn`. 0 is the body's long axis (the paper); the
            released code turns about its first axis, left-right, which is 2 here.
        error_on: ``"all"`` voxels (released code) or the ``"hidden"`` ones (the paper).
        head_features: what the rotation and the contrastive head get of the last map: its ``"mean"``, or, as in the
            released code, one ``"token"`` each: the map's first and second place.
        rotation_head: ``"linear"`` (released code), or ``"mlp"`` with one hidden layer of the encoder's width (the
            paper speaks of an MLP).
        decoder: how the map is brought to the image's size, see :class:`~monai_ssl.networks.UpsamplingHead`: ``"vae"``
            and ``"deconv"`` step by step, ``"large_kernel_deconv"`` in one (one transposed convolution: the paper).
        embedding_dim: D of the contrastive head.
        drop: cuts out, with its noise; the default is the released code's. ``RandomBlockDrop(share=(0.3, 0.3))`` is the
            paper's share.
        mix: fill further boxes, drawn as ``drop`` draws them, from another image of the batch.
        value_range: the views' least and greatest intensity, between which the noise lies.

    Raises:
        ValueError: an unknown word, or a number out of its range.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import build_encoder
        >>> _ = torch.manual_seed(1)
        >>> method = SwinUNETRPretext(build_encoder("resnet18"))
        >>> out = method({"views": [torch.rand(4, 1, 64, 64)]})
        >>> out["loss"].backward()
        >>> abs(out["rotation"].item() - 1.386) < 0.5
        True
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        weights: Sequence[float] = (1.0, 1.0, 1.0),
        temperature: float = 0.5,
        rotation_axis: int = 0,
        error_on: Literal["all", "hidden"] = "all",
        head_features: Literal["mean", "token"] = "mean",
        rotation_head: Literal["linear", "mlp"] = "linear",
        decoder: Literal["vae", "deconv", "large_kernel_deconv"] = "vae",
        embedding_dim: int = 512,
        drop: RandomBlockDrop | None = None,
        mix: bool = True,
        value_range: Sequence[float] = (0.0, 1.0),
    ) -> None:
        super().__init__(encoder)
        if len(weights) != 3 or min(weights) < 0:
            raise ValueError(f"weights must be three numbers >= 0 (in-painting, contrast, rotation), got {weights}")
        for name, value, allowed in (
            ("error_on", error_on, ("all", "hidden")),
            ("head_features", head_features, ("mean", "token")),
            ("rotation_head", rotation_head, ("linear", "mlp")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be {allowed[0]!r} or {allowed[1]!r}, got {value!r}")
        width = encoder.num_features
        self.weights = tuple(float(weight) for weight in weights)
        self.error_on, self.head_features = error_on, head_features
        self.turn = RandomQuarterTurn(rotation_axis)
        self.drop = drop or RandomBlockDrop(value_range=value_range)
        self.mix = RandomBlockDrop(self.drop.share, self.drop.sides, fill=0.0) if mix else None
        self.size_divisor = measure_stride(encoder)
        self.rotation_head = nn.Linear(width, 4) if rotation_head == "linear" else MLPHead(width, width, 4)
        self.contrast_head = nn.Linear(width, embedding_dim)
        self.decoder = UpsamplingHead(width, encoder.in_channels, self.size_divisor, decoder)
        self.contrast_criterion = NTXentLoss(temperature)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; takes one view, of which both copies are made, or two, one for each.

        Returns:
            ``"loss"``, ``"embedding"``; the three losses ``"inpainting"``, ``"contrast"`` and ``"rotation"``;
            ``"rotation_accuracy"``, 1/4 by chance; and of the first copy, without gradient and (B, C, *spatial),
            ``"target"``, ``"corrupted"`` and ``"prediction"``.

        Raises:
            ValueError: more than two views, a view of other dimensions, channels or size than the encoder takes, or,
                in one process, a single image.
        """
        target, turns, corrupted, hidden = self._copies(batch["views"], batch.get("generator"))
        last = self.encoder.feature_maps(corrupted)[-1]
        size = len(last) // 2
        if self.head_features == "mean":
            for_rotation = for_contrast = last.flatten(2).mean(2)  # (2B, F, *spatial) -> (2B, F)
        else:
            for_rotation, for_contrast = last.flatten(2)[:, :, :2].unbind(2)
        logits = self.rotation_head(for_rotation).float()
        views = self.contrast_head(for_contrast)
        prediction = self.decoder(last)
        losses = {
            "inpainting": masked_reconstruction(prediction, target, hidden, error="absolute"),
            "contrast": self.contrast_criterion(views[:size], views[size:]),
            "rotation": cross_entropy(logits, turns),
        }
        return {
            "loss": sum(weight * loss for weight, loss in zip(self.weights, losses.values(), strict=True)),
            "embedding": normalize(views[:size].detach().float()),
            **{name: loss.detach() for name, loss in losses.items()},
            "rotation_accuracy": (logits.argmax(1) == turns).float().mean(),
            "target": target[:size],
            "corrupted": corrupted[:size],
            "prediction": prediction[:size].detach().float(),
        }

    @torch.no_grad()
    def _copies(self, views: list[Tensor], generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Turned copies (2B, C, *spatial), their turns (2B,), what the network sees, and where the error counts."""
        if len(views) not in (1, 2):
            raise ValueError(f"SwinUNETRPretext takes one view of each image, or two, got {len(views)}")
        for view in views:
            check_view(self, view)
            check_size(view, self.size_divisor)
        x = torch.cat([views[0], views[-1]])
        turning = self.turn.draw(x.shape, generator, x.device)
        target = self.turn.apply(x, turning)
        dropping = self.drop.draw(x.shape, generator, x.device)
        corrupted = self.drop.apply(target, dropping)
        hidden = self.drop.hidden(dropping, x.shape[2:])
        if self.mix is not None:
            mixed = self.mix.hidden(self.mix.draw(x.shape, generator, x.device), x.shape[2:])
            partner = _partners(len(views[0]), generator, x.device)
            corrupted = torch.where(mixed, target[partner], corrupted)
            hidden = hidden | mixed
        if self.error_on == "all":
            hidden = torch.ones_like(hidden)
        return target, turning["turns"], corrupted, hidden


def _partners(size: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """(2B,) for each copy a copy of another image, with the same place in the row of copies; of one image, itself."""
    place = torch.arange(size, device=device)
    step = torch.randint(1, max(2, size), (2, size), generator=generator, device=device)
    return ((place + step) % size + torch.tensor([[0], [size]], device=device)).flatten()
