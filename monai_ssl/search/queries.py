# SPDX-License-Identifier: Apache-2.0
"""Ask an index: by a sentence or by an image, with a sheet of what was found."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from monai_ssl.data import ImageStore, policy_from_dict, read_prepared
from monai_ssl.data.files import write_whole
from monai_ssl.evaluation import (
    Hit,
    HitRow,
    OpenImageText,
    embed_files,
    embed_texts,
    hit_sheet_html,
    hit_sheet_png,
    open_image_text,
)
from monai_ssl.evaluation.preprocessing import Preprocessing
from monai_ssl.search.embedded_folder import EmbeddedFolder, SearchHit

__all__ = ["SearchAnswer", "open_model_of", "search_by_image", "search_by_text"]


@dataclass(frozen=True)
class SearchAnswer:
    """What was asked and found.

    Attributes:
        query: the sentence, or the name of the query image's file.
        hits: best first.
        notes: what to know about the answer, for the terminal.
        pixels: of the query image, or None.
    """

    query: str
    hits: list[SearchHit]
    notes: Sequence[str] = ()
    pixels: np.ndarray | None = None

    def table(self) -> str:
        """Return the hits as lines for people: rank, cosine, patient's hash, path."""
        lines = [f"{'':>4} {'cosine':>7}  {'patient':<20}  path"]
        lines += [
            f"{rank:>4} {hit.similarity:>7.3f}  {hit.group_id or '-':<20}  {hit.path}"
            for rank, hit in enumerate(self.hits, 1)
        ]
        return "\n".join(lines)

    def save(self, output: str | Path, store: ImageStore | None) -> list[Path]:
        """Write the hits as CSV and, where the store is there, as a sheet (PNG) and a page (HTML).

        Args:
            output: files to write, without suffix (``.png``, ``.html`` and ``.csv`` are taken off).
            store: of the images.

        Returns:
            The files.
        """
        stem = Path(output)
        stem = stem.with_suffix("") if stem.suffix.lower() in (".png", ".html", ".csv") else stem
        stem.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["rank", "cosine", "group_id", "path"])
        writer.writerows([n, f"{hit.similarity:.6f}", hit.group_id, hit.path] for n, hit in enumerate(self.hits, 1))
        contents = {".csv": text.getvalue().encode()}
        if store is not None:
            hits = [Hit(store.read(hit.row), hit.similarity, None, hit.path) for hit in self.hits]
            rows, title = [HitRow(self.query, hits, self.pixels)], f"{len(hits)} nearest images"
            contents |= {".png": hit_sheet_png(rows, title), ".html": hit_sheet_html(rows, title)}
        for suffix, content in contents.items():
            write_whole(stem.with_name(stem.name + suffix), content)
        return [stem.with_name(stem.name + suffix) for suffix in contents]


def search_by_text(
    index: EmbeddedFolder, opened: OpenImageText, text: str, count: int = 12, device: torch.device | str = "cpu"
) -> SearchAnswer:
    """Find the images that a sentence describes.

    Args:
        index: of the folder.
        opened: the model that the index was made with, see :func:`open_model_of`.
        text: a sentence as it might stand in a report; that is what the model knows.
        count: of hits.
        device: where to compute.

    Raises:
        ValueError: the sentence is empty, or the model knows none of its words.
    """
    if not text.strip():
        raise ValueError("the text to search for is empty")
    tokens = opened.tokenizer.encode([text], max_length=None)[0]
    inner = tokens[1:-1]  # without the first and the last, which every sentence has
    unknown, notes = inner.count(opened.tokenizer.unknown_id), []
    if unknown == len(inner):
        raise ValueError("the model knows none of the words of this text; its reports had none of them")
    if unknown:
        notes.append(f"{unknown} of {len(inner)} pieces of the text are unknown to the model")
    if len(tokens) > opened.model.text_encoder.max_length:
        notes.append(f"the text was cut after {opened.model.text_encoder.max_length} pieces; shorter is better")
    vector = embed_texts(opened.model, opened.tokenizer, [text], device)[0].numpy()
    return SearchAnswer(text.strip(), index.nearest(vector, count), notes)


def search_by_image(
    index: EmbeddedFolder, opened: OpenImageText, image: str | Path, count: int = 12, device: torch.device | str = "cpu"
) -> SearchAnswer:
    """Find the images that are most like one.

    Args:
        index: of the folder.
        opened: the model that the index was made with.
        image: any radiograph that the package reads; it is prepared as the index's images were.
        count: of hits.
        device: where to compute.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no usable image (an ``UnreadableImageError`` with the reason).
    """
    preprocessing = Preprocessing.from_dict(index.key["preprocessing"])
    store = index.open_store()
    recipe = {} if store is None else store.recipe
    reading = {"max_side": recipe.get("max_side", 512), "policy": policy_from_dict(preprocessing.policy)}
    reading["crop_borders"] = (recipe.get("reader") or {}).get("crop_borders", False)
    pixels, _ = read_prepared(image, **reading)  # its own error is the clearest
    vector = embed_files(opened.model, [image], preprocessing.view(), device, **reading)[0][0].numpy()
    return SearchAnswer(Path(image).name, index.nearest(vector, count), pixels=pixels)


def open_model_of(index: EmbeddedFolder, model_file: str | Path | None = None) -> OpenImageText:
    """Open the model that an index was made with.

    Args:
        index: of the folder.
        model_file: where it is now; None: where it was.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: these are other weights.
    """
    path = Path(model_file) if model_file is not None else index.model_file
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the model of {index.folder} is not there (any more); give it by --model_file")
    opened = open_image_text(path, tuple(index.key["preprocessing"]["image_size"]))
    if opened.fingerprint != index.key["model_sha256"]:
        raise ValueError(
            f"{index.folder} was made with other weights than those of {path} ({index.key['model_sha256'][:16]} and "
            f"{opened.fingerprint[:16]}); embed the folder again"
        )
    return opened
