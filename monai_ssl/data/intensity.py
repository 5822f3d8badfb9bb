# SPDX-License-Identifier: Apache-2.0
"""Intensity policies: which physical values become 0 and 1 in the store, and in every later use of the weights.

A policy only names two limits of an image; clipping to them and mapping them to [0, 1] is the same for all
modalities (see ``monai_ssl.data.items``). It is written into ``store.json`` and into the weights' manifest, so that an
encoder meets the same grey values wherever it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from monai_ssl.data.errors import UnreadableImageError


@dataclass(frozen=True)
class IntensityPolicy:
    """Base of all policies. A subclass sets ``kind`` and gives ``limits``; its fields must be JSON values.

    Args:
        name: short name for tables and manifests.
        citation: where the rule comes from.
        unit: what the limits are measured in, for instance ``"HU"``.
    """

    name: str
    citation: str
    unit: str

    kind: ClassVar[str] = ""
    _kinds: ClassVar[dict[str, type[IntensityPolicy]]] = {}

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if cls.kind in IntensityPolicy._kinds:
            raise TypeError(f"the intensity policy kind {cls.kind!r} exists already")
        IntensityPolicy._kinds[cls.kind] = cls

    def limits(self, image: np.ndarray, meta: Mapping[str, Any]) -> tuple[float, float]:
        """Values of an image that become 0 and 1.

        Args:
            image: physical values, any number of dimensions.
            meta: what the reader said about it.

        Raises:
            UnreadableImageError: if the image has no usable range.
        """
        raise NotImplementedError

    def suits(self, meta: Mapping[str, Any]) -> bool:
        """Whether the policy is for such an image, by what the reader said about it."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as JSON values, for ``policy_from_dict``."""
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"kind": self.kind, **fields}


@dataclass(frozen=True)
class RadiographIntensity(IntensityPolicy):
    """Radiographs: what the reader says a viewer shows (window, VOI LUT, or the range of the pixels).

    Args:
        stretch_percentiles: for images without a window or VOI LUT, percentiles (low, high) of the pixels to use
            instead; pixels at the low end (padding, collimator) are left out of the count. None: the whole range.
    """

    name: str = "radiograph_display_range"
    citation: str = "DICOM PS3.3 section C.11 (modality and VOI LUT); percentiles: Isensee et al. 2021 (nnU-Net)"
    unit: str = "stored values after modality and VOI LUT"
    stretch_percentiles: tuple[float, float] | None = None

    kind: ClassVar[str] = "radiograph"

    def __post_init__(self):
        if self.stretch_percentiles is not None:
            low, high = (float(value) for value in self.stretch_percentiles)
            if not 0 <= low < high <= 100:
                raise ValueError(f"stretch_percentiles is ({low:g}, {high:g}); use 0 <= low < high <= 100")
            object.__setattr__(self, "stretch_percentiles", (low, high))

    def suits(self, meta: Mapping[str, Any]) -> bool:
        """Whether it is an image whose reader names what a viewer shows, and no volume."""
        return "value_range" in meta

    def limits(self, image: np.ndarray, meta: Mapping[str, Any]) -> tuple[float, float]:
        """Return the reader's ``value_range``, or percentiles of the pixels where there is no window.

        Args:
            image: physical values.
            meta: with ``value_range`` (low, high) and ``value_range_source`` (``"pixels"`` and ``"bits_stored"`` mean
                that the header has no window).

        Raises:
            UnreadableImageError: if all pixels have one value, or the range is empty or not finite.
        """
        low, high = (float(value) for value in meta["value_range"])
        if self.stretch_percentiles is not None and meta.get("value_range_source") in ("pixels", "bits_stored"):
            inside = image[image > low]
            if inside.size:
                # "lower" and "higher" give values the image has, so whole numbers stay whole numbers.
                low = float(np.percentile(inside, self.stretch_percentiles[0], method="lower"))
                high = float(np.percentile(inside, self.stretch_percentiles[1], method="higher"))
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise UnreadableImageError("no usable range of grey values")
        return low, high


def policy_from_dict(values: Mapping[str, Any]) -> IntensityPolicy:
    """Make the policy that ``to_dict`` described.

    Raises:
        ValueError: if the kind is unknown or the fields are not those of the kind.
    """
    fields = dict(values)
    kind = fields.pop("kind", None)
    known = IntensityPolicy._kinds
    if kind not in known:
        raise ValueError(f"unknown intensity policy {kind!r}; known: {', '.join(sorted(known))}")
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    try:
        return known[kind](**fields)
    except TypeError as error:
        raise ValueError(f"the fields of the intensity policy {kind!r} are wrong: {error}") from error
