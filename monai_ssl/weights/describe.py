# SPDX-License-Identifier: Apache-2.0
"""Say in plain text what a file of weights is and how to use it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from .files import WeightsFileError, read_header
from .image_text import read_image_text
from .imagenet import read_checkpoint
from .imagenet_names import recognise
from .load import read_manifest

__all__ = ["describe_weights"]


def describe_weights(path: str | os.PathLike) -> str:
    """Describe an encoder file of this package, a model of images and text, or a plain checkpoint with known names.

    Of the first two only the header is read.

    Raises:
        FileNotFoundError: no such file.
        WeightsFileError: unreadable.
    """
    try:
        manifest = read_manifest(path)
    except WeightsFileError:
        try:
            return _describe_image_text(Path(path), read_image_text(path)[0])
        except WeightsFileError:
            return _describe_checkpoint(path)
    return _describe_encoder(Path(path), manifest)


def _describe_encoder(path: Path, manifest: dict[str, Any]) -> str:
    network, stem = manifest["network"], manifest["network"]["stem"]
    shapes = [shape for _, shape in read_header(path)[1].values()]
    rows = {
        "file": f"{path}, {path.stat().st_size / 1e6:.2f} MB, written {manifest['created']}",
        "network": f"{network['architecture']} ({network['class']})",
        "input": f"{network['spatial_dims']}D, {network['in_channels']} channel(s)",
        "first layer": f"{stem['key']}, kernel {_size(stem['kernel'])}, stride {_size(stem['stride'])}",
        "features": f"{network['num_features']} (pooled)",
        "tensors": f"{len(shapes)} with {sum(map(math.prod, shapes)):,} values, under MONAI's own names"
        + (", decoder included" if network.get("decoder") else ""),
        "arguments": _value(network["arguments"]),
        "method": f"{manifest['method']} {_value(manifest['method_args']) if manifest['method_args'] else ''}".rstrip(),
        "after": " -> ".join(str(stage.get("method")) for stage in manifest["lineage"] or ())
        or "random initialisation",
        "images seen": _value(manifest["images_seen"]),
        "intensities": _value(manifest["intensity"]),
        "spacing": f"{_size(manifest['spacing_mm'])} mm" if manifest["spacing_mm"] else "not recorded",
        "view size": _size(manifest["patch_size"]) if manifest["patch_size"] else "not recorded",
        "data": _value(manifest["data_fingerprint"]),
        "seeds": _value(manifest["seeds"]),
        "metrics": _value(manifest["metrics"]),
        "versions": _value(manifest["versions"]),
    }
    table = "\n".join(f"{name:<12} {text}" for name, text in rows.items())
    return f"An encoder pretrained with {manifest['method']}\n\n{table}\n\n{_how_to_load(path, network)}"


def _describe_image_text(path: Path, description: dict[str, Any]) -> str:
    manifest, text = description["manifest"], description["text_encoder"]
    network = manifest["network"]
    shapes = [shape for _, shape in read_header(path)[1].values()]
    rows = {
        "file": f"{path}, {path.stat().st_size / 1e6:.2f} MB, written {manifest['created']}",
        "images": f"{network['architecture']}, {network['spatial_dims']}D, {network['in_channels']} channel(s)",
        "text": f"{text.get('kind')}, {text.get('pooling')} pooling",
        "vectors": f"{description['embedding_dim']} numbers",
        "tensors": f"{len(shapes)} with {sum(map(math.prod, shapes)):,} values",
        "images seen": _value(manifest["images_seen"]),
        "view size": _size(manifest["patch_size"]) if manifest["patch_size"] else "not recorded",
        "metrics": _value(manifest["metrics"]),
    }
    table = "\n".join(f"{name:<12} {value}" for name, value in rows.items())
    return (
        f"A model of images and text pretrained with {manifest['method']}\n\n{table}\n\nTo use it:\n\n"
        "    from monai_ssl.weights import load_image_text\n\n"
        f"    model, tokenizer, manifest = load_image_text({str(path)!r})"
    )


def _how_to_load(path: Path, network: dict[str, Any]) -> str:
    arguments = {"spatial_dims": network["spatial_dims"], "in_channels": network["in_channels"], **network["arguments"]}
    shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return (
        "To use it:\n\n"
        "    from monai_ssl.networks import build_classifier\n"
        "    from monai_ssl.weights import load_encoder, open_encoder\n\n"
        f"    encoder = open_encoder({str(path)!r})\n"
        f"    net = build_classifier({network['architecture']!r}, num_classes=2, {shown})\n"
        f"    print(load_encoder(net, {str(path)!r}))\n\n"
        "load_encoder also finds the place inside other MONAI networks with the same layers."
    )


def _describe_checkpoint(path: str | os.PathLike) -> str:
    tensors = read_checkpoint(path)
    known = recognise(tensors)
    size = f"{len(tensors)} tensors with {sum(value.numel() for value in tensors.values()):,} values"
    if known is None:
        shown = ", ".join(list(tensors)[:5])
        return f"{path}: a checkpoint without manifest, {size}, with names that are not known: {shown}, ..."
    naming, inside, prefix = known
    stem = naming.to_monai(inside)[naming.stem_key]
    where = f" under {prefix!r}" if prefix else ""
    return (
        f"{path}: a checkpoint without manifest, {size}, named as {naming.name}{where}; its first layer takes "
        f"{stem.shape[1]} channel(s).\n\nTo use it: monai_ssl.weights.load_imagenet_weights(net, {str(path)!r})"
    )


def _value(value: Any) -> str:
    if value is None or value == {}:
        return "not recorded"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item if isinstance(item, str) else json.dumps(item)}" for key, item in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def _size(values: list) -> str:
    return " x ".join(f"{value:g}" for value in values)
