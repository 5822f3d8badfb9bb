# SPDX-License-Identifier: Apache-2.0
"""Refuse misspelt overrides of a bundle.

``monai.bundle run --learning_rte 0.1`` is accepted by MONAI without a word: the new key ``learning_rte`` is set and
nobody reads it. :func:`refuse_unknown_keys`, first in a bundle's ``initialize``, compares the keys of the running
configuration with those of the bundle's own files.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.bundle import ConfigExpression, ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

__all__ = ["refuse_unknown_keys"]

_RUN_ARGUMENTS = ("config_file", "meta_file", "logging_file", "args_file", "run_id", "init_id", "final_id", "tracking")
_TRACKING_KEYS = DEFAULT_MLFLOW_SETTINGS["configs"].keys() - {"trainer", "validator", "evaluator"}


@dataclass
class _Known:
    """Keys that the files give a dictionary of the configuration."""

    children: dict[str, _Known] = field(default_factory=dict)
    open: bool = False  # takes any key: a component's arguments, or a dictionary that a file leaves empty or computes

    def add(self, value: Any) -> None:
        self.open |= ConfigExpression.is_expression(value)
        if isinstance(value, dict):
            self.open |= not value or "_target_" in value
            for key, child in value.items():
                self.at(str(key)).add(child)

    def at(self, identifier: str) -> _Known:
        node = self
        for key in identifier.lstrip("+").replace("#", "::").split("::"):
            node = node.children.setdefault(key, _Known())
        return node


def refuse_unknown_keys(bundle_root: str | os.PathLike) -> None:
    """Stop if the running bundle configuration has a key that none of its files knows.

    Put it first into ``initialize``: ``{_target_: monai_ssl.engines.refuse_unknown_keys, bundle_root: "@bundle_root"}``
    (or, after an import, as an expression). Checked are the keys at the top and those inside plain dictionaries; a
    component, with all its arguments, checks itself. Known are the keys of all files in ``configs`` of the bundle, and
    of the files that were given.

    Args:
        bundle_root: folder of the bundle.

    Raises:
        ValueError: a key is unknown; the message names it and the nearest known one. Under ``python -m monai.bundle``
            it is a ``SystemExit`` with the same message instead, which spares the user the traceback.
        RuntimeError: called outside a bundle's configuration.
    """
    parser, files = _running_parser()
    folder = Path(bundle_root) / "configs"
    files |= {path for suffix in ConfigParser.suffixes for path in folder.glob(f"*.{suffix}")}
    known = _Known()
    for path in sorted(files):
        if path.name != "metadata.json":
            for key, value in ConfigParser.load_config_file(str(path)).items():
                known.at(key).add(value)
    config = {key: value for key, value in parser.config.items() if key != ConfigParser.meta_key}
    if config.keys() >= _TRACKING_KEYS:  # --tracking added its own settings
        for key in _TRACKING_KEYS:
            known.at(key).open = True
    problems = list(_unknown(config, known, ""))
    if problems:
        _fail("\n".join(problems))


def _unknown(config: dict[str, Any], known: _Known, prefix: str) -> Iterator[str]:
    for key, value in config.items():
        name = f"{prefix}{key}"
        child = known.children.get(str(key))
        if child is None:
            if not known.open:
                yield _message(str(key), name, known, prefix)
        elif isinstance(value, dict) and "_target_" not in value and child.children:
            yield from _unknown(value, child, f"{name}::")


def _message(key: str, name: str, known: _Known, prefix: str) -> str:
    choices = [*known.children, *(() if prefix else _RUN_ARGUMENTS)]
    near = difflib.get_close_matches(key, choices, 1, cutoff=0.5)
    if near:
        return f"this bundle has no key {name!r}: did you mean {prefix + near[0]!r}?"
    return f"this bundle has no key {name!r}; there are {', '.join(sorted(known.children))}"


def _running_parser() -> tuple[ConfigParser, set[Path]]:
    """The parser that is evaluating this call, and the configuration files named by its callers.

    MONAI hands neither to an expression, so they are looked up in the calling functions' variables.
    """
    parser, files = None, set()
    frame = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if parser is None and isinstance(owner, ConfigParser):
            parser = owner
        if isinstance(owner, ConfigWorkflow) and owner.parser is parser:
            folder = Path(owner.config_root_path)
            files |= {path for suffix in ConfigParser.suffixes for path in folder.glob(f"*.{suffix}")}
        if parser is not None and frame.f_globals.get("__name__") == "monai.bundle.scripts":
            files |= set(_paths(frame.f_locals.get("config_file")))
        frame = frame.f_back
    if parser is None:
        raise RuntimeError("refuse_unknown_keys belongs into the 'initialize' of a bundle's configuration")
    return parser, files


def _paths(given: Any) -> Iterator[Path]:
    names = given.split(",") if isinstance(given, str) else given if isinstance(given, (list, tuple)) else ()
    for name in names:
        if Path(name).is_file():
            yield Path(name)


def _fail(message: str) -> None:
    main = getattr(sys.modules["__main__"], "__spec__", None)
    if main is not None and main.name.startswith("monai.bundle"):
        raise SystemExit(message)
    raise ValueError(message)
