# SPDX-License-Identifier: Apache-2.0
"""One page of HTML that needs nothing else: pictures are inside, nothing is fetched, nothing runs."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["HtmlPage"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72em; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.25em; margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 1em 0; font-size: 0.9em; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25em 0.7em; border-bottom: 1px solid #e5e5e5; text-align: right; }
th { background: #f6f6f6; } th:first-child, td:first-child { text-align: left; }
caption { text-align: left; color: #555; padding-bottom: 0.4em; }
figure { margin: 1em 0; } img { max-width: 100%; } figcaption, .note { color: #555; font-size: 0.9em; }
.verdict { background: #f2f6fa; border-left: 4px solid #4477aa; padding: 0.6em 1em; }
.warning { background: #fff6e5; border-left: 4px solid #cc8800; padding: 0.6em 1em; }
"""


class HtmlPage:
    """Collects headings, paragraphs, tables and pictures; all text is escaped.

    Args:
        title: of the page.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        """Start a section."""
        self.parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str, kind: str = "") -> None:
        """Add a paragraph; ``kind`` is ``"note"``, ``"verdict"``, ``"warning"`` or empty."""
        attribute = f' class="{escape(kind)}"' if kind else ""
        self.parts.append(f"<p{attribute}>{escape(text)}</p>")

    def table(
        self, columns: Mapping[str, str | Callable[[Any], Any]], rows: Sequence[Mapping[str, Any]], caption: str = ""
    ) -> None:
        """Add a table.

        Args:
            columns: heading -> key of a row, or function of a row. Numbers get three digits after the point, None a
                dash.
            rows: its lines.
            caption: above.
        """
        lines = [f"<caption>{escape(caption)}</caption>"] if caption else []
        lines.append("<thead><tr>" + "".join(f"<th>{escape(name)}</th>" for name in columns) + "</tr></thead><tbody>")
        for row in rows:
            cells = [row[take] if isinstance(take, str) else take(row) for take in columns.values()]
            lines.append("<tr>" + "".join(f"<td>{escape(shown(cell))}</td>" for cell in cells) + "</tr>")
        self.parts.append("<table>" + "\n".join(lines) + "</tbody></table>")

    def picture(self, png: bytes, caption: str) -> None:
        """Add a PNG picture."""
        data = base64.b64encode(png).decode()
        self.parts.append(
            f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def __str__(self) -> str:
        body = "\n".join(self.parts)
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
            "style-src 'unsafe-inline'\">"
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
        )


def shown(value: Any) -> str:
    """Write a cell of a table.

    >>> shown(0.12345), shown(3), shown(None), shown(float("nan"))
    ('0.123', '3', '-', '-')
    """
    if value is None or value != value:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
