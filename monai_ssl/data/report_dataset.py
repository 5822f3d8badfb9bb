# SPDX-License-Identifier: Apache-2.0
"""Images with one sentence of their report, drawn anew each time, and the batch of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from monai_ssl.data.datasets import PadCollate, PaddedItems, StoreDataset
from monai_ssl.data.reports import Reports
from monai_ssl.data.store import ImageStore

__all__ = ["ReportCollate", "ReportDataset"]

_STREAM = 0x7E87  # keeps these draws apart from those of places in volumes


class _Tokenizer(Protocol):
    def encode(self, texts: list[str], max_length: int | None = None) -> list[list[int]]: ...


class ReportDataset(Dataset):
    """Items of images with ``"tokens"`` (T,) int64 of one sentence, ``"study_id"`` and ``"text_id"`` (int).

    The text view of ConVIRT (Zhang et al. 2022, arXiv 2010.00747, section 3.2): one sentence of the image's report,
    each equally likely, drawn anew every time the image is read.

    An index is a code: ``dataset[draw * len(dataset) + i]`` is item ``i`` with the sentence drawn from (seed, draw, row
    of the store) and nothing else, so neither the workers nor a resumed run change it. :class:`StudySampler` yields
    such codes, with the epoch as the draw, and so does :class:`PatchSampler`. ``dataset[i]`` is draw 0: with a sampler
    that yields plain indices, such as :class:`EpochSampler`, an image keeps one sentence for ever (which is right for
    validation).

    Args:
        store: the images.
        reports: of the same store.
        tokenizer: has ``encode(texts, max_length) -> lists of token numbers``, such as ``ReportTokenizer``. Every
            different sentence is encoded once, here.
        rows: rows of ``store.table`` to use, or a mask; each must have a report (``reports.among(rows)`` leaves out
            those without). None: all that have one.
        seed: seed of the sentences.
        max_length: most tokens of a sentence; longer ones are cut and counted in ``num_cut``.
        images: what gives the images instead: a ``StoreDataset`` of the same store, with labels and a cache, say, or a
            ``VolumePatchDataset`` or ``VolumeSliceDataset``, which get the draw too. It then has the rows.

    Attributes:
        images: the dataset of the images.
        rows: rows of the store, by item.
        num_cut: different sentences that were cut.
        draws_anew: an index is such a code.

    Raises:
        ValueError: if rows have no report, the reports or the images are of another store, or a sentence is encoded to
            nothing.
    """

    draws_anew: ClassVar[bool] = True

    def __init__(
        self,
        store: ImageStore,
        reports: Reports,
        tokenizer: _Tokenizer,
        rows: Sequence[int] | np.ndarray | None = None,
        seed: int = 0,
        *,
        max_length: int | None = None,
        images: StoreDataset | None = None,
    ):
        if seed < 0:
            raise ValueError(f"seed is {seed}; use 0 or more")
        if len(reports.sentences) != len(store):
            raise ValueError(
                f"the reports are of {len(reports.sentences)} images, the store {store.folder} has {len(store)}"
            )
        if images is None:
            images = StoreDataset(store, reports.rows if rows is None else rows)
        elif images.store.folder != store.folder or rows is not None:
            raise ValueError("images must be of the same store, and have the rows: give rows to it, not here")
        self.images = images
        self.store = store
        self.rows = images.rows
        self.seed = seed
        without = [int(row) for row in self.rows if not reports.sentences[row]]
        if without:
            raise ValueError(
                f"{len(without)} of {len(self.rows)} rows have no report (row {without[0]} first, reports.refused says "
                "why); reports.among(rows) leaves them out"
            )
        taken = sorted({"tokens", "study_id", "text_id"} & images.labels.keys())
        if taken:
            raise ValueError(
                f"a label column cannot be called {taken[0]!r}: the batch uses that name; rename the column"
            )
        self.study = reports.study[self.rows]
        self._encode(reports, tokenizer, max_length)

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return getattr(self.images, "spatial_dims", self.store.spatial_dims)

    @property
    def labels(self) -> dict[str, torch.Tensor]:
        """For each label column of the images a tensor with one entry an item."""
        return self.images.labels

    @property
    def classes(self) -> dict[str, list[str]]:
        """For each label column of text its classes."""
        return self.images.classes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, code: int) -> dict[str, Any]:
        return self.__getitems__([code])[0]

    def __getitems__(self, codes: Sequence[int]) -> PaddedItems:
        """Fetch a batch at once, see ``StoreDataset``."""
        draws, numbers = zip(*(self._split(code) for code in codes), strict=True)
        items = self.images.__getitems__(codes if getattr(self.images, "draws_anew", False) else numbers)
        for item, draw, i in zip(items, draws, numbers, strict=True):
            item |= self._text(draw, i)
        return items

    def _split(self, code: int) -> tuple[int, int]:
        if code < 0:
            raise IndexError(f"{code}: a code is draw * {len(self)} + item, 0 or more")
        return divmod(int(code), len(self))

    def _text(self, draw: int, i: int) -> dict[str, Any]:
        """One sentence of item ``i``."""
        first, last = self._sentence_starts[i : i + 2]
        random = np.random.default_rng([self.seed, _STREAM, draw, int(self.rows[i])])
        text = int(self._texts[random.integers(first, last)])
        tokens = self._tokens[self._token_starts[text] : self._token_starts[text + 1]]
        return {"tokens": torch.from_numpy(tokens.astype(np.int64)), "study_id": int(self.study[i]), "text_id": text}

    def _encode(self, reports: Reports, tokenizer: _Tokenizer, max_length: int | None) -> None:
        """Keep all tokens in a few arrays, which forked workers share. Sentences of equal tokens are one text."""
        sentences = reports.texts(self.rows)
        encoded = tokenizer.encode(sentences)
        self.num_cut = 0
        if max_length is not None:
            long = [place for place, tokens in enumerate(encoded) if len(tokens) > max_length]
            self.num_cut = len(long)
            for place, tokens in zip(long, tokenizer.encode([sentences[p] for p in long], max_length), strict=True):
                encoded[place] = tokens
        if not all(encoded):
            raise ValueError(
                f"the tokenizer gives no token for {sum(not own for own in encoded)} of {len(encoded)} sentences"
            )
        numbers: dict[tuple[int, ...], int] = {}
        text_of = {
            sentence: numbers.setdefault(tuple(tokens), len(numbers))
            for sentence, tokens in zip(sentences, encoded, strict=True)
        }
        self._tokens = np.concatenate([np.array(tokens, dtype=np.int32) for tokens in numbers])
        self._token_starts = np.cumsum([0, *map(len, numbers)])
        own = [[text_of[sentence] for sentence in reports.sentences[row]] for row in self.rows]
        self._texts = np.array([text for texts in own for text in texts], dtype=np.int32)
        self._sentence_starts = np.cumsum([0, *map(len, own)])


class ReportCollate(PadCollate):
    """``PadCollate`` for items of :class:`ReportDataset`.

    Beside the images the batch has ``"tokens"`` (B, T) int64, padded to its longest sentence, ``"token_mask"`` (B, T)
    bool, true where a token is real, ``"study_id"`` and ``"text_id"`` (B,) int64.

    Args:
        pad_id: number of the padding token: ``tokenizer.pad_id``.
    """

    def __init__(self, pad_id: int):
        self.pad_id = pad_id

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Raises:
            ValueError: see ``PadCollate``.
        """
        rest: list[dict[str, Any]] = [{key: item[key] for key in item if key != "tokens"} for item in items]
        if isinstance(items, PaddedItems):
            rest = PaddedItems(rest, items.canvases, items.extent)
        batch = super().__call__(rest)
        lengths = torch.tensor([len(item["tokens"]) for item in items])
        batch["token_mask"] = torch.arange(int(lengths.max())) < lengths[:, None]
        batch["tokens"] = torch.full(batch["token_mask"].shape, self.pad_id, dtype=torch.int64)
        batch["tokens"][batch["token_mask"]] = torch.cat([item["tokens"] for item in items])
        return batch
