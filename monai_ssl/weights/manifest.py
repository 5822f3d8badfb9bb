# SPDX-License-Identifier: Apache-2.0
"""The manifest: what a file of weights says about itself (one JSON object in the safetensors header)."""

from __future__ import annotations

import difflib
import json
import math
import platform
import re
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any, NamedTuple

import monai_ssl
from monai_ssl.networks import ImageEncoder

__all__ = ["MANIFEST_FIELDS", "ManifestField", "build_manifest", "check_manifest", "stage_summary"]

SCHEMA = 1
_LONGEST_STRING = 300
# Absolute paths name users, projects and patients: /x/y, ~/x, C:\x, \\server\x, file://x.
_PATH = re.compile(r"(?:^|[\s'\"=(])(?:/[^/\s]+/|~/|[A-Za-z]:[\\/]|\\\\|file://)")


class ManifestField(NamedTuple):
    """One field: its JSON type, who fills it in, and what it means."""

    kind: str
    automatic: bool
    meaning: str


MANIFEST_FIELDS: dict[str, ManifestField] = {
    "schema": ManifestField("integer", True, "version of this table"),
    "created": ManifestField("string", True, "date and time (UTC, ISO 8601)"),
    "network": ManifestField("object", True, "class, architecture, dimensions, channels, arguments and stem"),
    "versions": ManifestField("object", True, "of monai_ssl, monai, torch, numpy and python"),
    "method": ManifestField("string", False, "name of the self-supervised method"),
    "method_args": ManifestField("object", False, "the method's arguments"),
    "lineage": ManifestField("list of objects", False, "earlier training stages, oldest first"),
    "intensity": ManifestField("object", False, "how images must be prepared: policy, value range, mean, std"),
    "spacing_mm": ManifestField("list of numbers", False, "pixel or voxel spacing of the training images"),
    "orientation": ManifestField("string", False, "patient's ends that the array axes run to, for volumes"),
    "patch_size": ManifestField("list of numbers", False, "size of the training views in pixels, array order"),
    "images_seen": ManifestField("integer", False, "images read in training, repetitions counted"),
    "data_fingerprint": ManifestField("string", False, "hash of the list of training images"),
    "seeds": ManifestField("object", False, "named seeds"),
    "metrics": ManifestField("object", False, "what was measured on the encoder"),
}

_KINDS: dict[str, Callable[[Any], bool]] = {
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "string": lambda v: isinstance(v, str),
    "object": lambda v: isinstance(v, dict),
    "list of numbers": lambda v: isinstance(v, list) and all(isinstance(x, (int, float)) for x in v),
    "list of objects": lambda v: isinstance(v, list) and all(isinstance(x, dict) for x in v),
}


def build_manifest(encoder: ImageEncoder, fields: dict[str, Any], with_decoder: bool = False) -> dict[str, Any]:
    """Complete the caller's fields with what is known of the encoder and the environment.

    Args:
        encoder: its network, arguments and lineage are recorded.
        fields: of :data:`MANIFEST_FIELDS`, those that are not automatic; ``method`` is required, the others may be left
            out (they are stored as null, "not recorded"). NumPy numbers and tuples become JSON; numbers that are not
            finite become null.
        with_decoder: the file will hold the decoder's tensors too.

    Returns:
        A checked manifest.

    Raises:
        ValueError: see :func:`check_manifest`; also an automatic field among ``fields``, or no ``method``.
    """
    given = sorted(key for key in fields if key in MANIFEST_FIELDS and MANIFEST_FIELDS[key].automatic)
    if given:
        raise ValueError(f"the manifest's fields {', '.join(given)} are filled in from the encoder; leave them out")
    if not fields.get("method"):
        raise ValueError("the manifest needs the name of the method, for example {'method': 'C2L'}")
    manifest = dict.fromkeys(MANIFEST_FIELDS) | {"lineage": list(encoder.lineage)} | _plain(fields)
    manifest |= {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "network": _describe_network(encoder, with_decoder),
        "versions": {name: version(name) for name in ("monai", "torch", "numpy")}
        | {"monai_ssl": monai_ssl.__version__, "python": platform.python_version()},
    }
    check_manifest(manifest)
    return manifest


def check_manifest(manifest: dict[str, Any]) -> None:
    """Check the names and types of a manifest's fields, and that it carries no paths or long free text.

    A caller may check its own fields early with it, before hours of training.

    Raises:
        ValueError: an unknown field (the nearest name is given), a wrong type, text of more than 300 characters, or an
            absolute path (it may name a person).
    """
    for key, value in manifest.items():
        if key not in MANIFEST_FIELDS:
            near = difflib.get_close_matches(key, MANIFEST_FIELDS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(MANIFEST_FIELDS)}"
            raise ValueError(f"a manifest has no field {key!r}{hint}")
        kind = MANIFEST_FIELDS[key].kind
        if value is not None and not _KINDS[kind](value):
            raise ValueError(f"the manifest's {key!r} must be {kind} or null, got {type(value).__name__}")
        _check_text(key, value)


def stage_summary(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the entry that a manifest's own training stage gets in the lineage of the next."""
    kept = ("method", "method_args", "images_seen", "data_fingerprint", "created")
    summary = {key: manifest[key] for key in kept if manifest.get(key) is not None}
    return summary | {"architecture": manifest["network"]["architecture"]}


def _describe_network(encoder: ImageEncoder, with_decoder: bool) -> dict[str, Any]:
    # out_channels asks build_encoder for a decoder: where the file has none, neither will what is built from it.
    arguments = {k: v for k, v in encoder.network_args.items() if with_decoder or k != "out_channels"}
    decoder = {"decoder": list(encoder.decoder_prefixes)} if with_decoder else {}
    stem = encoder.net.get_submodule(encoder.stem_key.rpartition(".")[0])
    return {
        "class": f"{type(encoder.net).__module__}.{type(encoder.net).__qualname__}",
        "architecture": encoder.architecture,
        "spatial_dims": encoder.spatial_dims,
        "in_channels": encoder.in_channels,
        "num_features": encoder.num_features,
        "arguments": arguments,
        "stem": {"key": encoder.stem_key, "kernel": list(stem.kernel_size), "stride": list(stem.stride)},
        **decoder,
    }


def _plain(value: Any) -> Any:
    """Turn tuples, NumPy and torch numbers into JSON values; numbers that are not finite into null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    try:
        json.dumps(value)
    except TypeError as error:
        raise ValueError(f"a manifest holds numbers, text, lists and objects, not {type(value).__name__}") from error
    return value


def _check_text(key: str, value: Any) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _check_text(key, name)
            _check_text(key, item)
    elif isinstance(value, list):
        for item in value:
            _check_text(key, item)
    elif isinstance(value, str):
        if len(value) > _LONGEST_STRING:
            raise ValueError(f"the manifest's {key!r} holds text of {len(value)} characters; at most {_LONGEST_STRING}")
        if _PATH.search(value):
            raise ValueError(f"the manifest's {key!r} holds an absolute path, which may name a person; leave it out")
