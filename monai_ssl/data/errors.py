# SPDX-License-Identifier: Apache-2.0
"""The one error that says a file cannot be used as an image."""

from __future__ import annotations

from os import PathLike


class UnreadableImageError(ValueError):
    """A file that cannot be used as an image, with a reason that is safe to store and to print.

    The reason is always one of our own short sentences: it never contains header text, names, dates or identifiers.

    Args:
        reason: why, for instance ``"pixel data shorter than the header says (512 of 32768 bytes)"``.
        path: the file; it is put before the reason in the message.
    """

    def __init__(self, reason: str, path: str | PathLike | None = None):
        super().__init__(reason if path is None else f"{path}: {reason}")
        self.reason = reason
        self.path = None if path is None else str(path)

    def __reduce__(self):
        return type(self), (self.reason, self.path)
