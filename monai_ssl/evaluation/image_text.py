# SPDX-License-Identifier: Apache-2.0
"""Images and sentences as unit vectors of one space, and a network that has learnt nothing to compare with."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from monai_ssl.data.datasets import PadCollate
from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.intensity import IntensityPolicy
from monai_ssl.data.prepare import read_prepared
from monai_ssl.evaluation.features import extract_features

if TYPE_CHECKING:
    from monai_ssl.transforms import ViewChain

__all__ = ["ImageTower", "embed_files", "embed_images", "embed_text_groups", "embed_texts", "untrained_copy"]


class ImageTower(nn.Module):
    """The image side of an image-text model as a network of its own: (B, C, \\*spatial) to unit vectors (B, D).

    Args:
        model: has ``image_encoder`` and ``image_projector``; an :class:`monai_ssl.networks.ImageTextModel`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.image_encoder, self.image_projector = model.image_encoder, model.image_projector

    def forward(self, x: Tensor) -> Tensor:
        """Return the vectors, float32."""
        return normalize(self.image_projector(self.image_encoder(x)).float(), dim=1)


class _ImageSide(nn.Module):
    """What runs the image side of any model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        return self.model.embed_images(x)


def embed_images(
    model: nn.Module,
    loader: Iterable[dict[str, Any]],
    view: ViewChain | None = None,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> tuple[Tensor, Tensor]:
    """Compute the vector of every image of a loader.

    Args:
        model: has ``embed_images``.
        loader: see :func:`monai_ssl.evaluation.extract_features`, as the other arguments.
        view: brings whole images to the network's size, see :meth:`monai_ssl.evaluation.Preprocessing.view`.
        device: where to compute.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.

    Returns:
        Unit vectors ``(N, D)`` float32 and row numbers ``(N,)`` int64, on the CPU.

    Raises:
        ValueError: there is no image, or a vector is not finite.
    """
    return extract_features(_ImageSide(model), loader, view, device, precision)


def embed_files(
    model: nn.Module,
    files: Sequence[str | Path],
    view: ViewChain | None = None,
    device: torch.device | str = "cpu",
    *,
    policy: IntensityPolicy | None = None,
    max_side: int = 512,
    batch_size: int = 32,
    **reading: Any,
) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
    """Compute the vectors of image files as if they had been prepared, without a store.

    Args:
        model: has ``embed_images``.
        files: radiographs.
        view: see :func:`embed_images`.
        device: where to compute.
        policy: what becomes black and white, see :func:`monai_ssl.data.prepare_store`.
        max_side: longest side in pixels before the view.
        batch_size: images at once.
        reading: further arguments of :func:`monai_ssl.data.read_prepared`.

    Returns:
        Unit vectors ``(M, D)``, the places ``(M,)`` in ``files`` that they are of, and the files that could not be
        read with the reasons.

    Raises:
        ValueError: none could be read; the first reason is named.
    """
    refused: list[tuple[str, str]] = []

    def batches() -> Iterator[dict[str, Any]]:
        collate, items = PadCollate(), []
        for place, path in enumerate(files):
            try:
                pixels = read_prepared(path, policy, max_side, **reading)[0]
            except (UnreadableImageError, OSError) as error:
                refused.append((str(path), getattr(error, "reason", str(error))))
                continue
            items.append({"image": torch.from_numpy(pixels)[None], "index": place})
            if len(items) == batch_size:
                yield collate(items)
                items = []
        if items:
            yield collate(items)

    try:
        vectors, places = embed_images(model, batches(), view, device)
    except ValueError as error:
        if len(refused) == len(files) and refused:
            raise ValueError(f"none of {len(files)} files can be read; {refused[0][0]}: {refused[0][1]}") from error
        raise
    return vectors, places, refused


@torch.no_grad()
def embed_texts(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    device: torch.device | str = "cpu",
    batch_size: int = 128,
) -> Tensor:
    """Compute the vector of every text, in evaluation mode; equal texts are computed once.

    Args:
        model: has ``embed_tokens``, and ``text_encoder.max_length``, beyond which a text is cut.
        tokenizer: has ``encode`` and ``pad_id``.
        texts: sentences.
        device: where to compute.
        batch_size: texts at once.

    Returns:
        Unit vectors ``(T, D)`` float32, on the CPU.

    Raises:
        ValueError: there is no text, one is empty, or a vector is not finite.
    """
    if not len(texts) or not all(text.strip() for text in texts):
        raise ValueError(f"{sum(not text.strip() for text in texts)} of {len(texts)} texts are empty")
    place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    encoded = tokenizer.encode(list(place), max_length=model.text_encoder.max_length)
    order = sorted(range(len(encoded)), key=lambda number: len(encoded[number]))  # like lengths need little padding
    was_training, vectors = model.training, [None] * len(encoded)
    model.to(device).eval()
    try:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            longest = max(len(encoded[number]) for number in batch)
            tokens = torch.full((len(batch), longest), tokenizer.pad_id, dtype=torch.int64)
            mask = torch.zeros(len(batch), longest, dtype=torch.bool)
            for row, number in enumerate(batch):
                length = len(encoded[number])
                tokens[row, :length], mask[row, :length] = torch.tensor(encoded[number]), True
            embedded = model.embed_tokens(tokens.to(device), mask.to(device)).float().cpu()
            for number, vector in zip(batch, embedded, strict=True):
                vectors[number] = vector
    finally:
        model.train(was_training)
    found = torch.stack([vectors[place[text]] for text in texts])
    if not found.isfinite().all():
        raise ValueError(f"{int((~found.isfinite()).any(1).sum())} of {len(found)} texts have vectors that are NaN")
    return found


def embed_text_groups(
    model: nn.Module, tokenizer: Any, groups: Sequence[Sequence[str]], device: torch.device | str = "cpu"
) -> Tensor:
    """Compute one vector for each group of sentences: the mean of their unit vectors, at unit length again.

    So a report is the mean of its sentences, and a class that of its prompts (Radford et al., *CLIP*, ICML 2021,
    section 3.1.4).

    Args:
        model: see :func:`embed_texts`, as the others.
        tokenizer: likewise.
        groups: G groups of one or more sentences.
        device: where to compute.

    Returns:
        Unit vectors ``(G, D)`` float32.

    Raises:
        ValueError: a group is empty; see also :func:`embed_texts`.
    """
    empty = [number for number, group in enumerate(groups) if not len(group)]
    if empty:
        raise ValueError(f"{len(empty)} of {len(groups)} groups have no sentence, for instance number {empty[0]}")
    vectors = embed_texts(model, tokenizer, [text for group in groups for text in group], device)
    parts = vectors.split([len(group) for group in groups])
    return normalize(torch.stack([part.mean(dim=0) for part in parts]), dim=1)


def untrained_copy(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return the same network as it is before any training: what a figure has to be better than.

    Every layer draws its weights anew by its own rule; parameters that belong to no such layer (a class token, a
    position embedding) are drawn from N(0, 0.02^2), as vision transformers do.

    Args:
        model: is left as it is.
        seed: of the weights, which are the same on any device; the global generators are left as they were.
    """
    device = next(model.parameters()).device
    fresh = copy.deepcopy(model).cpu()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if reset is not None:
                reset()
            else:
                for parameter in module.parameters(recurse=False):
                    nn.init.trunc_normal_(parameter, std=0.02)
    return fresh.to(device)
