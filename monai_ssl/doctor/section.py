# SPDX-License-Identifier: Apache-2.0
"""One part of the doctor's report: facts by name, and advice that follows from them."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field

__all__ = ["Section"]

_NAME_WIDTH, _TEXT_WIDTH = 20, 96


@dataclass
class Section:
    """Facts and advice under a title."""

    title: str
    rows: list[tuple[str, str]] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    def add(self, name: str, text: str) -> None:
        """Add a fact of one or several lines."""
        self.rows.append((name, text))

    def advise(self, text: str) -> None:
        """Add something to change."""
        self.advice.append(text)

    def __str__(self) -> str:
        lines = [self.title]
        for name, text in self.rows:
            for line in text.splitlines():
                # A table's line has runs of blanks and stays as it is.
                for part in [line] if "   " in line else textwrap.wrap(line, _TEXT_WIDTH):
                    lines.append(f"  {name:<{_NAME_WIDTH}}{part}")
                    name = ""
        return "\n".join(lines)
