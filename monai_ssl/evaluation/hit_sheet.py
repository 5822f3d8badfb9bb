# SPDX-License-Identifier: Apache-2.0
"""Contact sheets of what a search found: a picture, and an HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Hit", "HitRow", "hit_sheet_html", "hit_sheet_png"]

_RIGHT, _WRONG, _PLAIN, _INK = "#3c8d53", "#d1495b", "#bbbbbb", "#444444"
_MAX_SIDE = 320  # pixels of a picture in the page


@dataclass(frozen=True)
class Hit:
    """One item that was found.

    Attributes:
        pixels: ``(rows, columns)`` in [0, 1].
        similarity: cosine with the query.
        right: whether it is a right one, or None where nobody knows.
        name: file, for the page only; the picture has none.
    """

    pixels: np.ndarray
    similarity: float
    right: bool | None = None
    name: str = ""


@dataclass(frozen=True)
class HitRow:
    """A query and what it found, best first.

    Attributes:
        query: the sentence, or what the query image is.
        hits: of the query.
        pixels: of the query image, or None for a sentence.
    """

    query: str
    hits: Sequence[Hit]
    pixels: np.ndarray | None = None


def hit_sheet_png(rows: Sequence[HitRow], title: str) -> bytes:
    """Draw one line a query: the query, then its hits with their cosines; frames are green where they are right.

    Args:
        rows: one or more.
        title: above the sheet.

    Returns:
        A PNG file.

    Raises:
        ValueError: there is nothing to show.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 1 + max((len(row.hits) for row in rows), default=0)
    if columns == 1:
        raise ValueError("there is no hit to show")
    width, height = 1.7 * columns + 0.3, 2.05 * len(rows) + 0.45  # inches
    figure = Figure(figsize=(width, height), dpi=100)
    figure.suptitle(_plain(title), fontsize=11, color=_INK, y=1 - 0.2 / height)
    # A layout that is found by solving for it would take seconds.
    margins = {"left": 0.1 / width, "right": 1 - 0.1 / width, "top": 1 - 0.45 / height, "bottom": 0.3 / height}
    grid = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={**margins, "wspace": 0.05, "hspace": 0.2})
    for places, row in zip(grid, rows, strict=True):
        for place in places:
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(False)
        words = _plain(textwrap.fill(row.query, 22, max_lines=6, placeholder=" ..."))
        if row.pixels is None:
            places[0].text(0.5, 0.5, words, ha="center", va="center", fontsize=9, color=_INK)
        else:
            _picture(places[0], row.pixels, words, _INK)
        for number, (place, hit) in enumerate(zip(places[1:], row.hits, strict=False), 1):
            color = _PLAIN if hit.right is None else _RIGHT if hit.right else _WRONG
            _picture(place, hit.pixels, f"{number}: {hit.similarity:.3f}", color)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()


def hit_sheet_html(rows: Sequence[HitRow], title: str) -> bytes:
    """Write the same as a page: pictures inside, no scripts, nothing fetched; hits carry their names.

    Args:
        rows: one or more.
        title: of the page.

    Returns:
        A UTF-8 HTML file.
    """
    parts = [
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>{html.escape(title)}</title><style>",
        f"body{{font-family:sans-serif;color:{_INK};margin:1.5em}}.row{{display:flex;flex-wrap:wrap;gap:.8em}}",
        "figure{margin:0;width:180px}img{width:100%;border:3px solid #bbb}figcaption{font-size:80%;",
        f"overflow-wrap:anywhere}}.right img{{border-color:{_RIGHT}}}.wrong img{{border-color:{_WRONG}}}",
        f"</style></head><body><h1>{html.escape(title)}</h1>",
    ]
    for row in rows:
        parts.append(f"<h2>{html.escape(row.query)}</h2><div class='row'>")
        if row.pixels is not None:
            parts.append(_figure(row.pixels, "the query", ""))
        for number, hit in enumerate(row.hits, 1):
            kind = "" if hit.right is None else "right" if hit.right else "wrong"
            words = f"{number}: {hit.similarity:.3f}" + (f", {kind}" if kind else "")
            parts.append(_figure(hit.pixels, f"{words} {hit.name}".strip(), kind))
        parts.append("</div>")
    return "\n".join([*parts, "</body></html>"]).encode()


def _figure(pixels: np.ndarray, caption: str, kind: str) -> str:
    from PIL import Image

    image = Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    picture = io.BytesIO()
    image.save(picture, "PNG")
    data = base64.b64encode(picture.getvalue()).decode()
    words = html.escape(caption, quote=True)
    image_tag = f"<img src='data:image/png;base64,{data}' alt='{words}'>"
    return f"<figure class='{kind}'>{image_tag}<figcaption>{words}</figcaption></figure>"


def _picture(axes, pixels: np.ndarray, caption: str, color: str) -> None:
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1)
    axes.set_xlabel(caption, fontsize=8, color=_INK)
    axes.spines[:].set(visible=True, color=color, linewidth=2.0)


def _plain(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")
