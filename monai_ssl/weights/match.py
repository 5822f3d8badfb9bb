# SPDX-License-Identifier: Apache-2.0
"""Find where in a network a set of encoder tensors belongs, and what each tensor would become there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from monai_ssl.networks import ImageEncoder, patch_grid, resize_positions

from .adapt import CHANNEL_POLICIES, adapt_channels, equal_sided_grid
from .report import LoadReport, WeightsMismatchError

__all__ = ["EncoderTensors", "transfer"]

# A bias that stands before a BatchNorm or is absent from the other network: 0 is what its absence means.
_ZERO_BIAS = re.compile(r"downsample\.0\.bias$|attn\.qkv\.bias$")
# Not part of any coverage: counters, and a layer that MONAI's ViT makes and never uses.
_IGNORED = re.compile(r"num_batches_tracked$|norm_cross_attn\.")


@dataclass
class EncoderTensors:
    """The encoder tensors of a file, under MONAI's keys, and what is known of the network they come from.

    Attributes:
        source: path of the file.
        tensors: MONAI's keys and their values.
        stem_key: key of the first convolution's weight.
        architecture: a name for messages.
        stem_stride: stride of the first convolution, or None if not known.
        grid: patches along each axis that the position embeddings stand for, or None: equal along all axes.
        notes: for the report.
        lineage: training stages the tensors went through, oldest first.
        decoder: beginnings of the keys of a decoder, which a network may do without.
    """

    source: str
    tensors: dict[str, torch.Tensor]
    stem_key: str
    architecture: str
    stem_stride: Sequence[int] | None = None
    grid: Sequence[int] | None = None
    notes: list[str] = field(default_factory=list)
    lineage: tuple[dict[str, Any], ...] = ()
    decoder: tuple[str, ...] = ()


def transfer(
    target: nn.Module,
    found: EncoderTensors,
    min_coverage: float,
    channel_policy: str | None,
) -> LoadReport:
    """Copy the tensors into the part of ``target`` where they fit, all or (on an error) none.

    Args:
        target: an :class:`ImageEncoder` or any network that has the encoder in it.
        found: the file's tensors.
        min_coverage: smallest accepted part, by bytes, of the network's encoder **and** of the file that must be
            loaded. The network's encoder is every tensor beside and below the file's top-level names (``layer1``,
            ``features``, ...), so a task head does not count.
        channel_policy: what to do when the first layer has another number of input channels; None refuses.

    Returns:
        The report. An :class:`ImageEncoder` also takes over ``found.lineage``.

    Raises:
        WeightsMismatchError: coverage below the threshold, a first layer that does not fit, or two places that fit.
        ValueError: unknown policy or a threshold outside [0, 1].
    """
    if channel_policy is not None and channel_policy not in CHANNEL_POLICIES:
        raise ValueError(f"channel policy must be one of {', '.join(CHANNEL_POLICIES)}, got {channel_policy!r}")
    if not 0 <= min_coverage <= 1:
        raise ValueError(f"min_coverage must be in [0, 1], got {min_coverage}")
    net = target.net if isinstance(target, ImageEncoder) else target
    state = net.state_dict()
    prefix = _locate(net, state, found)
    report = LoadReport(
        found.source, type(net).__name__, prefix.rstrip("."), notes=list(found.notes), lineage=found.lineage
    )
    theirs = _wanted_tensors(found, state, prefix, report)
    outside = _outside_encoder(net.get_submodule(prefix.rstrip(".")), theirs)
    tops = {key.partition(".")[0] for key in theirs}
    below = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    ours = {k: v for k, v in below.items() if k.partition(".")[0] in tops and not k.startswith(outside)}
    grid = patch_grid(target.network_args, target.spatial_dims) if isinstance(target, ImageEncoder) else None
    new = _adapt(theirs, ours, found, channel_policy, grid, report)
    file_bytes = _sort(theirs, ours, new, prefix, report)
    report.kept = _other_tensors(state, report)
    _note_differences(net, prefix, ours, found, report)
    net_bytes = sum(report.loaded.values()) + sum(report.missing.values()) + report.mismatched_bytes
    report.net_coverage = sum(report.loaded.values()) / max(net_bytes, 1)
    report.file_coverage = file_bytes / max(sum(v.nbytes for k, v in theirs.items() if not _IGNORED.search(k)), 1)
    _refuse_poor_fit(report, prefix + found.stem_key, min_coverage, found)
    with torch.no_grad():
        for key, value in new.items():
            state[prefix + key].copy_(value)
    if isinstance(target, ImageEncoder):
        target.lineage = found.lineage
    return report


def _locate(net: nn.Module, state: dict[str, torch.Tensor], found: EncoderTensors) -> str:
    """Return the prefix under which the most bytes fit."""
    fits = {}
    for name, _ in net.named_modules():
        prefix = f"{name}." if name else ""
        shared = [key for key in found.tensors if prefix + key in state]
        equal = sum(found.tensors[k].nbytes for k in shared if found.tensors[k].shape == state[prefix + k].shape)
        if shared:
            fits[prefix] = (equal, len(shared))
    best = max(fits, key=fits.__getitem__, default="")
    if not fits or not fits[best][0]:
        message = (
            f"no tensor of {found.source} ({found.architecture}, {len(found.tensors)} tensors) fits into this "
            f"{type(net).__name__}; build the network the weights belong to (describe_weights tells which)"
        )
        raise WeightsMismatchError(message, LoadReport(found.source, type(net).__name__))
    equals = [prefix.rstrip(".") for prefix in fits if fits[prefix] == fits[best]]
    if len(equals) > 1 and 2 * fits[best][0] > sum(value.nbytes for value in found.tensors.values()):
        raise WeightsMismatchError(
            f"{found.source} fits {' and '.join(equals)} of this {type(net).__name__} equally well; "
            f"pass the one that is meant, for example net.{equals[0]}",
            LoadReport(found.source, type(net).__name__),
        )
    return best


def _wanted_tensors(
    found: EncoderTensors, state: dict[str, torch.Tensor], prefix: str, report: LoadReport
) -> dict[str, torch.Tensor]:
    """Return the file's tensors, without those of a decoder if the network has none."""
    beginnings = tuple(prefix + part for part in found.decoder)
    if not found.decoder or any(key.startswith(beginnings) for key in state):
        return dict(found.tensors)
    kept = {key: value for key, value in found.tensors.items() if not key.startswith(found.decoder)}
    if len(kept) < len(found.tensors):
        report.notes.append(f"the file's decoder ({len(found.tensors) - len(kept)} tensors) has no place here")
    return kept


def _outside_encoder(net: nn.Module, theirs: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """Beginnings of the keys of ``net`` that the file can't be asked for: its head, and a decoder only it has."""
    adapter = ImageEncoder.adapter_of(net)
    if adapter is None:
        return ()
    has_decoder = any(key.startswith(adapter.decoder_prefixes) for key in theirs)
    return adapter.head_prefixes + (() if has_decoder else adapter.decoder_prefixes)


def _adapt(
    theirs: dict[str, torch.Tensor],
    ours: dict[str, torch.Tensor],
    found: EncoderTensors,
    channel_policy: str | None,
    target_grid: Sequence[int] | None,
    report: LoadReport,
) -> dict[str, torch.Tensor]:
    """Return the new values of our tensors; record those that are not plainly the file's."""
    new = {key: value for key, value in theirs.items() if key in ours and ours[key].shape == value.shape}
    stem = found.stem_key
    if stem in theirs and stem in ours and stem not in new and channel_policy:
        old, wanted = theirs[stem], ours[stem]
        change = (old.shape[1], wanted.shape[1])
        for key in [key for key in theirs if key in ours and key not in new]:  # the stem, and a shortcut around it
            a, b = theirs[key].shape, ours[key].shape
            if len(a) == len(b) == old.ndim and (a[1], b[1]) == change and a[:1] + a[2:] == b[:1] + b[2:]:
                new[key] = adapt_channels(theirs[key], wanted.shape[1], channel_policy)
                report.adapted[key] = f"{change[0]} -> {change[1]} input channels, policy {channel_policy!r}"
    for key in [key for key in theirs if key in ours and key not in new]:
        if key.endswith("position_embeddings") and theirs[key].shape[2] == ours[key].shape[2]:
            dims = theirs[stem].ndim - 2
            grids = (
                found.grid or equal_sided_grid(theirs[key].shape[1], dims),
                target_grid or equal_sided_grid(ours[key].shape[1], dims),
            )
            if None not in grids:
                new[key] = resize_positions(theirs[key], *grids)
                report.adapted[key] = f"interpolated from a grid of {list(grids[0])} to {list(grids[1])} patches"
    for key in [key for key in ours if key not in theirs]:
        if _ZERO_BIAS.search(key):
            new[key] = torch.zeros_like(ours[key])
            report.adapted[key] = "set to 0: the file's network has no such bias"
    for key in [key for key in theirs if key not in ours]:
        mean_key = key.replace("downsample.0.bias", "downsample.1.running_mean")
        if mean_key != key and mean_key in new:
            # BatchNorm(conv(x) + b) with mean m is BatchNorm(conv(x)) with mean m - b.
            new[mean_key] = new[mean_key] - theirs.pop(key)
            report.adapted[mean_key] = "took up the bias of the shortcut's convolution, which is absent here"
    return new


def _sort(
    theirs: dict[str, torch.Tensor],
    ours: dict[str, torch.Tensor],
    new: dict[str, torch.Tensor],
    prefix: str,
    report: LoadReport,
) -> int:
    """Fill in the report's four lists and return how many bytes of the file are loaded."""
    for key, value in ours.items():
        if key in new:
            report.loaded[prefix + key] = value.nbytes
        elif key in theirs:
            report.mismatched[prefix + key] = (tuple(theirs[key].shape), tuple(value.shape))
            report.mismatched_bytes += value.nbytes
        elif not _IGNORED.search(key):
            report.missing[prefix + key] = value.nbytes
    report.unexpected = {k: v.nbytes for k, v in theirs.items() if k not in ours and not _IGNORED.search(k)}
    report.adapted = {prefix + key: how for key, how in report.adapted.items()}
    return sum(value.nbytes for key, value in theirs.items() if key in new and not _IGNORED.search(key))


def _other_tensors(state: dict[str, torch.Tensor], report: LoadReport) -> dict[str, int]:
    """The network's tensors that the report says nothing of yet; further names of one tensor (DynUNet) count once."""
    named = report.loaded.keys() | report.missing.keys() | report.mismatched.keys()
    seen = {state[key].data_ptr() for key in named}
    others = {}
    for key, value in state.items():
        if key not in named and not _IGNORED.search(key) and value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            others[key] = value.nbytes
    return others


def _note_differences(
    net: nn.Module, prefix: str, ours: dict[str, torch.Tensor], found: EncoderTensors, report: LoadReport
) -> None:
    stem = net.get_submodule((prefix + found.stem_key).rpartition(".")[0]) if found.stem_key in ours else None
    stride = tuple(getattr(stem, "stride", ()))
    if stride and found.stem_stride and stride != tuple(found.stem_stride):
        report.notes.append(
            f"the first convolution has stride {list(stride)} here, {list(found.stem_stride)} where the weights come "
            "from: the features differ (MONAI's ResNet takes conv1_t_stride=2)"
        )
    if any("downsample" in key for key in report.unexpected):
        report.notes.append(
            "this network has no weights in its shortcuts: its features differ from the pretrained ones "
            "(pretrain with shortcut_type='A' for it, or build it with shortcut_type='B')"
        )
    if any("downsample" in key for key in report.missing):
        report.notes.append(
            "the weights come from a network without weights in its shortcuts; those of this one stay as they were, so "
            "its features differ (build it with shortcut_type='A')"
        )
    if any(key.endswith("attn.qkv.bias") for key in report.unexpected):
        report.notes.append("this ViT has no query, key and value biases: build it with qkv_bias=True")


def _refuse_poor_fit(report: LoadReport, stem: str, min_coverage: float, found: EncoderTensors) -> None:
    problem = ""
    if stem in report.mismatched:
        theirs, ours = report.mismatched[stem]
        problem = f"the first layer does not fit ({stem}: file {list(theirs)}, net {list(ours)})"
        if theirs[:1] + theirs[2:] == ours[:1] + ours[2:]:
            problem += f"; choose what to do with {theirs[1]} -> {ours[1]} input channels: "
            problem += f"channel_policy={' | '.join(repr(policy) for policy in CHANNEL_POLICIES)}"
    elif stem not in report.loaded:
        problem = f"the first layer ({stem}) is not in {'the file' if stem in report.missing else 'the network'}"
    elif report.coverage < min_coverage:
        problem = f"only {report.coverage:.1%} fit, at least {min_coverage:.1%} must"
        problem += "; with_decoder=False loads the encoder only" if found.decoder else ""
    if problem:
        message = f"the weights ({found.architecture}) were not loaded: {problem}\n{report}"
        raise WeightsMismatchError(message, report)
