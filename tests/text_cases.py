# SPDX-License-Identifier: Apache-2.0
"""Sentences, a tokenizer and text encoders that the tests of images with reports share."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from monai_ssl.data import ReportTokenizer
from monai_ssl.networks import TextTransformer

SENTENCES = [
    "No pleural effusion or pneumothorax in the left lung.",
    "Small left pleural effusion.",
    "Small right effusion, no pneumothorax.",
    "The heart is enlarged.",
    "The lungs are clear and the heart is of normal size.",
    "Large opacity in the right lower lobe.",
] * 4


@functools.cache
def small_tokenizer() -> ReportTokenizer:
    return ReportTokenizer.train(SENTENCES, 150, min_frequency=2)


def small_transformer(**options) -> TextTransformer:
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "max_length": 12, "hidden_size": 16, "num_layers": 3, "num_heads": 2}
    return TextTransformer(**(sizes | options))


def write_bert(folder: Path, kind: str = "Bert", **options) -> Path:
    """A tiny model of ``transformers`` in a folder, as a user's own would be."""
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "max_position_embeddings": 16, "pad_token_id": 0} | options
    if kind == "DistilBert":
        sizes |= {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32}
    else:
        sizes |= {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    return folder


def draw_tokens(
    rows: int = 4, length: int = 9, vocab_size: int = 30, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sentences of different lengths, the first one full; padding is 0."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, vocab_size, (rows, length), generator=generator)
    lengths = torch.randint(2, length + 1, (rows, 1), generator=generator)
    lengths[0] = length
    mask = torch.arange(length) < lengths
    return tokens * mask, mask
