# SPDX-License-Identifier: Apache-2.0
"""Answer a user's mistake in a bundle with this package's own message, not with MONAI's traceback around it.

``python -m monai.bundle`` resolves a configuration in nested calls and wraps every error of a component in one or more
of its own ("Failed to instantiate component ..."). What a user needs is the message inside.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import TracebackType

__all__ = ["explain_errors"]

TRACEBACK = "MONAI_SSL_TRACEBACK"


def explain_errors() -> None:
    """From now on let errors that this package raises on purpose end the program with their message alone.

    Write ``"$monai_ssl.engines.explain_errors()"`` first into ``initialize`` of a bundle. It acts under ``python -m
    monai.bundle`` only, and not with the environment variable ``MONAI_SSL_TRACEBACK=1``; any other error keeps its
    traceback.
    """
    main = getattr(sys.modules["__main__"], "__spec__", None)
    under_bundle = main is not None and main.name.startswith("monai.bundle")
    if under_bundle and os.environ.get(TRACEBACK) != "1" and not isinstance(sys.excepthook, _PlainHook):
        sys.excepthook = _PlainHook(sys.excepthook)


class _PlainHook:
    """Prints the message of our own error in a chain, else calls the hook that was there before."""

    def __init__(self, before) -> None:
        self.before = before

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        own = own_error(error)
        if own is None:
            self.before(kind, error, trace)
            return
        print(f"error: {own}\n({TRACEBACK}=1 shows the whole traceback)", file=sys.stderr)


def own_error(error: BaseException) -> BaseException | None:
    """Return the outermost error of a chain that code of this package raised on purpose, or None.

    On purpose are ``ValueError``, ``OSError`` and ``RuntimeError`` whose ``raise`` stands in this package.
    """
    for one in _chain(error):
        if isinstance(one, (ValueError, OSError, RuntimeError)) and _module_of(one).split(".")[0] == "monai_ssl":
            return one
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _module_of(error: BaseException) -> str:
    """Name of the module whose code raised the error."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__", ""))
