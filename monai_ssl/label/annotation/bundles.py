# SPDX-License-Identifier: Apache-2.0
"""Which bundles the app was given, and which of their settings a request may change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

__all__ = ["allowed_settings", "bundle_kind", "sorted_bundles"]

_LABELS = {"classification_labels": "classification", "segmentation_labels": "segmentation"}
# A request may set numbers and plain words, nothing that MONAI's parser would run, read or look up.
_NUMBERS = ("max_epochs", "steps_per_epoch", "batch_size", "learning_rate", "seed")
_WORDS = ("modality",)
_WORD = re.compile(r"[A-Za-z]{1,16}")


def bundle_kind(bundle: str | Path) -> str:
    """Return ``"pretraining"``, ``"classification"`` or ``"segmentation"``.

    Raises:
        FileNotFoundError: the folder has no ``configs/train.yaml``.
    """
    file = Path(bundle) / "configs/train.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{bundle} is no bundle that can be trained: there is no {file}")
    target = str((ConfigParser.load_config_file(str(file)).get("labels") or {}).get("_target_", ""))
    return _LABELS.get(target.rsplit(".", 1)[-1], "pretraining")


def sorted_bundles(bundles: list[str]) -> dict[str, Path]:
    """Return one bundle of each kind.

    Raises:
        FileNotFoundError: see :func:`bundle_kind`.
        ValueError: two are of one kind.
    """
    found: dict[str, Path] = {}
    for bundle in bundles:
        kind = bundle_kind(bundle)
        if kind in found:
            raise ValueError(f"{found[kind]} and {bundle} are both for {kind}; give one")
        found[kind] = Path(bundle).resolve()
    return found


def allowed_settings(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a training that a request may change; keys that are not settings are left out.

    Raises:
        ValueError: a setting is not of its kind (a number, a word).
    """
    found = {}
    for key in (*_NUMBERS, *_WORDS):
        value = request.get(key)
        if value is None or value == "":
            continue
        if key in _NUMBERS:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e7:
                raise ValueError(f"{key} must be a number from 0, got {value!r}"[:200])
        elif not isinstance(value, str) or not _WORD.fullmatch(value):
            raise ValueError(f"{key} must be a word such as 'MR', got {value!r}"[:200])
        found[key] = value
    return found
