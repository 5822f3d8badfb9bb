# SPDX-License-Identifier: Apache-2.0
"""DICOM files to volumes: which slices belong together, and which make no volume.

The rules, in their order:

1. Files are grouped by patient, study and series identifier. What is no slice (localizer, screenshot, secondary
   capture, report, colour, no position) is refused and its series goes on without it.
2. Slices of another size, pixel spacing or orientation than most of their series are refused. Where no geometry holds
   more than half of the slices, as in a localizer of three planes, the series is refused.
3. Where positions repeat, the series holds several volumes (or copies). The elements of ``SPLIT_BY`` are tried in their
   order; one parts the slices if it takes several values at each repeated position, and no more values than positions
   repeat. What is left is parted by order: the k-th slice of each position, by TriggerTime, AcquisitionNumber and
   InstanceNumber, belongs to volume k. Slices with the same position and the same stored pixels are copies: one stays,
   the others are refused.
4. A stack of uneven spacing is parted by SliceThickness if each part is even.
5. A volume with fewer than ``min_slices`` slices, or with a slice whose pixels are cut off, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.slices import SPLIT_BY, Slice, read_slices
from monai_ssl.data.stacks import UNEVEN_RULES, Stack, lay_out, read_stack
from monai_ssl.data.volumes import FoundVolumes, OpenVolume, Refusal

_SAME_PLACE_MM = 0.01
_SAME_ORIENTATION = 1e-3  # per component of the unit vectors: half a millimetre at 500 mm
_ORDER = ("TriggerTime", "AcquisitionNumber")


def open_series(paths: Iterable[str | Path], *, min_slices: int = 3, uneven: str = "refuse") -> FoundVolumes:
    """Sort DICOM files into volumes by their headers; the voxels are decoded by ``OpenVolume.read``.

    Args:
        paths: DICOM files of any number of series, single frame or multi-frame, in any order.
        min_slices: fewest slices of a volume; at least 2. With the default 3 there are two gaps to compare.
        uneven: what to do where slices are missing or unevenly spaced: ``"refuse"``, or ``"resample"`` to interpolate
            them linearly on an even grid.

    Returns:
        The volumes, ordered by file name and then by the element that parts them, and every refused file.

    Raises:
        ValueError: if an argument is out of range.
    """
    check_series_rules(min_slices, uneven)
    series: dict[tuple[str, ...], list[Slice]] = {}
    found = FoundVolumes([], [])
    for path in sorted(map(Path, paths)):
        try:
            identifiers, slices = read_slices(path)
            series.setdefault(identifiers, []).extend(slices)
        except UnreadableImageError as error:
            reason = error.reason
        except OSError as error:
            reason = f"the file could not be read ({error.strerror or type(error).__name__})"
        except Exception as error:
            # Headers are hostile: whatever else goes wrong belongs to this file only. The text may quote the header.
            reason = f"unexpected {type(error).__name__} while reading"
        else:
            continue
        found.refused.append(Refusal((path,), reason, path))
    for slices in series.values():
        _open_one_series(slices, min_slices, uneven, found)
    return found


def check_series_rules(min_slices: int, uneven: str) -> None:
    """Raise unless the arguments of ``open_series`` are in their range.

    Raises:
        ValueError: naming the argument.
    """
    if min_slices < 2:
        raise ValueError(f"min_slices is {min_slices}; a volume has at least 2")
    if uneven not in UNEVEN_RULES:
        raise ValueError(f"uneven is {uneven!r}; use 'refuse' or 'resample'")


def _open_one_series(slices: list[Slice], min_slices: int, uneven: str, found: FoundVolumes) -> None:
    """Add the volumes and the refusals of one series to ``found``."""
    groups = _by_geometry(slices)
    main = max(groups, key=len)
    if 2 * len(main) <= len(slices):
        found.refused.append(
            Refusal(
                _files(slices),
                f"{len(slices)} slices of {len(groups)} sizes, pixel spacings or orientations, "
                "none of which holds most of them: a localizer, not a volume",
            )
        )
        return
    for group in groups:
        if group is not main:
            reason = "a slice of another size, pixel spacing or orientation than most of its series"
            found.refused.append(Refusal(_files(group), reason))
    for part, split_by in _split_by_elements(main):
        try:
            volumes = _split_by_order(part)
        except UnreadableImageError as error:
            found.refused.append(Refusal(_files(part), error.reason))
            continue
        kept = {item for volume in volumes for item in volume}
        if copies := [item for item in part if item not in kept]:
            found.refused.append(Refusal(_files(copies), "a copy of another slice"))
        for rank, volume in enumerate(volumes):
            order = {"order": rank} if len(volumes) > 1 else {}
            try:
                _check_whole(volume, min_slices)
                for stack, thickness in _lay_out(volume, min_slices, uneven):
                    found.volumes.append(_open_volume(stack, split_by | order | thickness, len(copies)))
            except UnreadableImageError as error:
                culprit = Path(error.path) if error.path else None
                found.refused.append(Refusal(_files(volume), error.reason, culprit))


def _open_volume(stack: Stack, split_by: dict, copies: int) -> OpenVolume:
    """Describe a stack as a volume to be read; nothing of the header but the listed facts is kept."""
    stack = replace(stack, slices=tuple(replace(item, splits={}) for item in stack.slices))  # text ends here
    first = stack.slices[0]
    facts = {
        "kind": "dicom",
        "modality": first.facts["modality"],
        "body_part": first.facts["body_part"],
        "unit": _common([item.facts["unit"] for item in stack.slices]),
        "oriented": True,
        "slices": len(stack.slices),
        "copies_dropped": copies,
        "slice_thickness_mm": _common([item.thickness for item in stack.slices]),
        "tilt_degrees": stack.tilt_degrees,
        "split_by": split_by,
    }
    read = partial(read_stack, stack, facts["modality"], facts)
    return OpenVolume(_files(stack.slices), facts, stack.shape, stack.affine, read)


def _common(values: list) -> object | None:
    """The value that all have, or None."""
    return values[0] if len(set(values)) == 1 else None


def _files(slices: Iterable[Slice]) -> tuple[Path, ...]:
    return tuple(sorted({item.path for item in slices}))


def _by_geometry(slices: list[Slice]) -> list[list[Slice]]:
    """Group slices by size, pixel spacing and orientation."""
    groups: list[list[Slice]] = []
    for item in slices:
        for group in groups:
            if (
                item.shape == group[0].shape
                and np.abs(item.orientation - group[0].orientation).max() < _SAME_ORIENTATION
                and np.allclose(item.spacing, group[0].spacing, rtol=1e-3)
            ):
                group.append(item)
                break
        else:
            groups.append([item])
    return groups


def _by_position(slices: list[Slice]) -> list[list[Slice]]:
    """Group slices of one orientation by their place along the normal, in rising order."""
    normal = slices[0].normal
    groups: list[list[Slice]] = []
    last = -np.inf
    for height, _, item in sorted((float(item.position @ normal), place, item) for place, item in enumerate(slices)):
        if height - last < _SAME_PLACE_MM:
            groups[-1].append(item)
        else:
            groups.append([item])
            last = height
    return groups


def _grouped(slices: list[Slice], key: Callable[[Slice], Hashable]) -> dict[Hashable, list[Slice]]:
    """Slices by the value of ``key``, values in rising order."""
    groups: dict[Hashable, list[Slice]] = {}
    for item in slices:
        groups.setdefault(key(item), []).append(item)
    return dict(sorted(groups.items()))


def _split_by_elements(slices: list[Slice], elements: tuple[str, ...] = tuple(SPLIT_BY)) -> list[tuple[list, dict]]:
    """Part slices whose positions repeat by the elements that tell the volumes apart.

    Returns:
        ``[(slices, {element: value})]``; the value is the number itself, for text its rank among the values.
    """
    repeated = [group for group in _by_position(slices) if len(group) > 1]
    if not repeated:
        return [(slices, {})]
    most = max(map(len, repeated))
    for number, name in enumerate(elements):
        values = {item.splits[name] for item in slices}
        if len(values) <= most and all(len({item.splits[name] for item in group}) > 1 for group in repeated):
            parts = _grouped(slices, lambda item, name=name: item.splits[name])
            return [
                (part, {name: _shown(value, rank)} | more)
                for rank, (value, members) in enumerate(parts.items())
                for part, more in _split_by_elements(members, elements[number + 1 :])
            ]
    return [(slices, {})]


def _shown(value: tuple, rank: int) -> object:
    """A number may be kept; of text only the rank, since a header's text may be anything."""
    if any(isinstance(item, str) for item in value):
        return rank
    return value[0] if len(value) == 1 else value or None


def _split_by_order(slices: list[Slice]) -> list[list[Slice]]:
    """Volumes of slices that only their order tells apart; of copies, slices with the same pixels, one stays.

    Raises:
        UnreadableImageError: if some positions have more slices than others.
    """
    positions = _by_position(slices)
    single = [list({item.digest: item for item in group}.values()) for group in positions]
    for groups in (single, positions):
        counts = set(map(len, groups))
        if len(counts) == 1:
            return [list(volume) for volume in zip(*(sorted(group, key=_order) for group in groups), strict=True)]
    raise UnreadableImageError(
        f"{len(slices)} slices at {len(positions)} positions, {min(counts)} to {max(counts)} at each, "
        "and nothing in the headers says which of them make a volume"
    )


def _order(item: Slice) -> tuple:
    return (*(item.splits[name] for name in _ORDER), *item.order)


def _check_whole(slices: list[Slice], min_slices: int) -> None:
    """Refuse a volume of too few slices, or with one whose pixels are gone."""
    if len(slices) < min_slices:
        count = "1 slice" if len(slices) == 1 else f"{len(slices)} slices"
        raise UnreadableImageError(f"only {count}; a volume needs {min_slices} of the same series")
    broken = next((item for item in slices if item.fault), None)
    if broken is not None:
        raise UnreadableImageError(f"{broken.fault}; its volume of {len(slices)} slices is not whole", broken.path)


def _lay_out(slices: list[Slice], min_slices: int, uneven: str) -> list[tuple[Stack, dict]]:
    """Lay out one stack, or two and more of different SliceThickness if only those are even."""
    try:
        return [(lay_out(slices), {})]
    except UnreadableImageError:
        parts = _grouped(slices, lambda item: item.thickness or 0.0)
        if len(parts) > 1 and all(len(part) >= min_slices for part in parts.values()):
            try:
                return [(lay_out(part), {"SliceThickness": value}) for value, part in parts.items()]
            except UnreadableImageError:
                pass
        return [(lay_out(slices, uneven), {})]
