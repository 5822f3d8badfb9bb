# SPDX-License-Identifier: Apache-2.0
"""An image-text model that knows the toy radiographs: bright squares left or right, and the words for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "left", "right", "normal", "spot", "no", "the", "chest", "is", "a")
SENTENCES = {"normal": "the chest is normal", "left": "a spot left", "right": "a spot right"}
PROMPTS = {"classes": {"normal": ["no spot, normal", "normal chest"], "left": ["left spot"], "right": ["a spot right"]}}


class ToyTokenizer:
    """Words by number."""

    pad_id, unknown_id = 0, 3

    def encode(self, texts: list[str], max_length: int | None = None) -> list[list[int]]:
        found = []
        for text in texts:
            words = text.lower().replace(",", " ").replace(".", " ").split()
            numbers = [1, *(WORDS.index(word) if word in WORDS else self.unknown_id for word in words), 2]
            found.append(numbers if max_length is None else numbers[:max_length])
        return found


class ToyImageText(nn.Module):
    """Vectors of three components: normal, left, right."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = nn.Embedding(len(WORDS), 3)
        self.text_encoder.max_length = 8
        self.image_encoder = nn.Identity()
        self.image_projector = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.text_encoder.weight.fill_(0.01)
            for component, word in enumerate(("normal", "left", "right")):
                self.text_encoder.weight[WORDS.index(word), component] = 1.0
            self.image_projector.weight.copy_(torch.eye(3))

    def embed_images(self, x: Tensor) -> Tensor:
        quarter = x.shape[-1] // 4
        middle = x[:, :, x.shape[2] // 3 : 2 * x.shape[2] // 3]
        sides = [middle[..., place - 3 : place + 3].mean(dim=(1, 2, 3)) for place in (quarter, 3 * quarter)]
        rest = x.mean(dim=(1, 2, 3))
        spots = torch.stack([side - rest for side in sides], dim=1).clamp(min=0)
        normal = (0.3 - spots.amax(dim=1, keepdim=True)).clamp(min=0)
        return normalize(self.image_projector(torch.cat([normal, spots], dim=1)), dim=1)

    def embed_tokens(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        return normalize((self.text_encoder(tokens) * token_mask[..., None]).sum(dim=1), dim=1)
