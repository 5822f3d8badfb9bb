# SPDX-License-Identifier: Apache-2.0
"""MAE: a vision transformer that sees a quarter of the patches, and a light decoder that predicts the rest.

He, Chen, Xie, Li, Dollar, Girshick, *Masked Autoencoders Are Scalable Vision Learners*, CVPR 2022, arXiv 2111.06377,
section 3. With patches x_i, positions p_i, visible set V, encoder f, decoder g and mask token t::

    z  = f({x_i + p_i : i in V})                            hidden patches cost the encoder nothing
    y  = g(z in the places of V, t in the others)
    L  = mean over hidden patches i of |y_i - n(x_i)|^2     per voxel; n: mean 0, standard deviation 1 in each patch
"""

from __future__ import annotations

import math

from torch import Tensor

from monai_ssl.networks import MaskedTokenDecoder, ViTImageEncoder, tokens_to_image
from monai_ssl.transforms import count_masked

from .masked_modelling import MaskedModelling

__all__ = ["MAEViT"]


class MAEViT(MaskedModelling):
    """Masked autoencoder on MONAI's ViT, in 2D or 3D; the blocks are the ViT's patches.

    The defaults are the paper's, with the normalised targets that its section 3 finds better; beside them AdamW with
    betas 0.9 and 0.95, weight decay 0.05, learning rate 1.5e-4 for each 256 images of a batch, and no augmentation but
    random resized crops. The paper's positions are fixed: ``build_encoder("vit", ..., pos_embed_type="sincos")``.

    All images hide equally many patches. ``valid`` voxels (see :class:`MaskedModelling`) therefore do not decide which
    patches are hidden, only which voxels count.

    Args:
        encoder: of ``build_encoder("vit", img_size=...)``; views must have that size.
        mask_ratio: share of the patches that is hidden, within (0, 1).
        decoder_width: a multiple of ``decoder_heads``.
        decoder_depth: number of the decoder's transformer blocks.
        decoder_heads: its attention heads.
        normalize_targets: predict patches of mean 0 and standard deviation 1.
        valid_above: voxels that are not brighter do not count, in the view's units; None: all count.

    Raises:
        ValueError: the encoder is no ViT; a number is out of its range.

    Example:
        >>> import torch
        >>> from monai_ssl.networks import build_encoder
        >>> encoder = build_encoder("vit", img_size=32, patch_size=8, hidden_size=24, mlp_dim=32, num_heads=2)
        >>> method = MAEViT(encoder, decoder_width=16, decoder_depth=1, decoder_heads=2)
        >>> out = method({"views": [torch.rand(2, 1, 32, 32)]})
        >>> out["mask"].float().mean().item(), tuple(out["prediction"].shape)
        (0.75, (2, 1, 32, 32))
    """

    masks_valid_blocks_only = False

    def __init__(
        self,
        encoder: ViTImageEncoder,
        *,
        mask_ratio: float = 0.75,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        normalize_targets: bool = True,
        valid_above: float | None = None,
    ) -> None:
        if not isinstance(encoder, ViTImageEncoder):
            raise ValueError(f"MAEViT needs a 'vit' encoder, not {encoder.architecture!r}; see MaskedAutoencoderCNN")
        super().__init__(
            encoder,
            mask_ratio=mask_ratio,
            block_size=encoder.patch_size,
            error="squared",
            normalize_targets=normalize_targets,
            valid_above=valid_above,
        )
        voxels = math.prod(encoder.patch_size) * encoder.in_channels
        self.decoder = MaskedTokenDecoder(encoder.num_features, voxels, decoder_width, decoder_depth, decoder_heads)

    def reconstruct(self, x: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`MaskedModelling.reconstruct`."""
        hidden = blocks.flatten(1)  # (B, 1, *grid) -> (B, N)
        visible = hidden.shape[1] - count_masked(hidden.shape[1], self.mask_ratio)
        places = hidden.byte().argsort(dim=1, stable=True)[:, :visible]  # without waiting for the device
        tokens = self.encoder.patch_tokens(x) + self.encoder.positions(x.shape[2:])  # (B, N, F)
        tokens = tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))  # (B, V, F)
        latent = self.encoder.encode_tokens(tokens)
        grid = blocks.shape[2:]
        prediction = tokens_to_image(self.decoder(latent, places, grid), grid, self.block_size)
        return prediction, latent.mean(1)
