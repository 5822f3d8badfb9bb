# SPDX-License-Identifier: Apache-2.0
"""RotNet: tell by how much an image was turned.

Gidaris, Singh, Komodakis, *Unsupervised Representation Learning by Predicting Image Rotations*, ICLR 2018, arXiv
1803.07728, section 3.1, equations 1 to 3. With encoder f, linear layer h, and g(x, y) the image x under turn y of K::

    L = mean over images x of (1 / K) sum over y of the cross-entropy of h(f(g(x, y))) and y       log K at the start

K = 4: the turns by 0, 90, 180 and 270 degrees. In 3D these are turns about one axis, or K = 10: no turn, and three
about each of the three axes (Taleb et al., *3D Self-Supervised Methods for Medical Imaging*, NeurIPS 2020, arXiv
2006.03829, section 3.3).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from monai_ssl.networks import ImageEncoder
from monai_ssl.transforms import RandomQuarterTurn

from .base import SSLMethod
from .requirements import one_view

__all__ = ["RotationPrediction"]


class RotationPrediction(SSLMethod):
    """Tell the quarter turns of an image from its features.

    The task asks what the image shows and how that lies in the body: it needs images that all lie alike, and views that
    are not turned by much nor mirrored up and down. What is seen without any anatomy gives it away: letters burnt in, a
    table, black bars along two sides. Easier than a contrast and weaker for it, it is a cheap baseline, and in 3D a
    part of SwinUNETR's pretraining, :class:`SwinUNETRPretext`.

    The paper trains with SGD, learning rate 0.1 (divided by 5 after 30, 60 and 80 of 100 epochs), momentum 0.9, weight
    decay 5e-4, batches of 128 images in all four turns. A start for some thousand images: AdamW, 1e-3, weight decay
    0.05, batches of 32, in 3D of 2 to 4 with ``copies="one"``.

    Args:
        encoder: the network to pretrain.
        turns: in 3D: ``"axis"``, four about one axis, or ``"axes"``, ten about all three.
        axis: in 3D: the axis of ``"axis"``, see :class:`~monai_ssl.transforms.RandomQuarterTurn`; 0 is the body's.
        copies: ``"all"``: a batch holds every image in all K turns (the paper, which found it better); ``"one"``: in
            one turn, drawn for each image, at a K-th of the cost.

    Raises:
        ValueError: an unknown word.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import build_encoder
        >>> method = RotationPrediction(build_encoder("resnet18"))
        >>> out = method({"views": [torch.rand(4, 1, 64, 64)]})
        >>> out["loss"].backward()
        >>> tuple(out["embedding"].shape), abs(out["loss"].item() - 1.386) < 0.3
        ((4, 512), True)
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        turns: Literal["axis", "axes"] = "axis",
        axis: int = 0,
        copies: Literal["all", "one"] = "all",
    ) -> None:
        super().__init__(encoder)
        for name, value, allowed in (("turns", turns, ("axis", "axes")), ("copies", copies, ("all", "one"))):
            if value not in allowed:
                raise ValueError(f"{name} must be {allowed[0]!r} or {allowed[1]!r}, got {value!r}")
        self.copies = copies
        axes = (0, 1, 2) if turns == "axes" and encoder.spatial_dims == 3 else (axis,)
        self.quarter_turns = [RandomQuarterTurn(about) for about in axes]
        self.num_turns = 1 + 3 * len(axes)
        self.head = nn.Linear(encoder.num_features, self.num_turns)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """See :meth:`SSLMethod.forward`; takes one view, whose sides are equal in the planes that turn.

        Returns:
            ``"loss"``; ``"embedding"`` of the images, as they come or in their one turn; ``"rotation_accuracy"``, 1 / K
            by chance.

        Raises:
            ValueError: more than one view, or one of other dimensions, channels or sides.
        """
        x = one_view(self, batch["views"])
        if self.copies == "all":
            turn = torch.arange(self.num_turns, device=x.device).repeat_interleave(len(x))
            turned = self.turn(x.repeat(self.num_turns, *[1] * (x.ndim - 1)), turn)
        else:
            turn = torch.randint(self.num_turns, (len(x),), generator=batch.get("generator"), device=x.device)
            turned = self.turn(x, turn)
        features = self.encoder(turned)
        logits = self.head(features).float()
        return {
            "loss": cross_entropy(logits, turn),
            "embedding": normalize(features[: len(x)].detach().float()),
            "rotation_accuracy": (logits.argmax(1) == turn).float().mean(),
        }

    @torch.no_grad()
    def turn(self, x: Tensor, turn: Tensor) -> Tensor:
        """Turn each image of (N, C, *spatial) by its number (N,): 0 not, then 1 to 3 quarters about each axis."""
        for place, quarter_turn in enumerate(self.quarter_turns):
            quarters = turn - 3 * place
            x = quarter_turn.apply(x, {"turns": torch.where((quarters > 0) & (quarters < 4), quarters, 0)})
        return x
