# SPDX-License-Identifier: Apache-2.0
"""Intensity policies of volumes: Hounsfield windows for CT, robust limits a volume for MR, or both by modality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.foreground import otsu_threshold
from monai_ssl.data.intensity import IntensityPolicy, policy_from_dict

_RADIOPAEDIA = "Murphy, Bell et al., Windowing (CT), Radiopaedia.org"

# name: ((low, high) in HU, where it comes from). A window of width W and level L runs from L - W/2 to L + W/2.
CT_WINDOWS: dict[str, tuple[tuple[float, float], str]] = {
    "ct_wide": (
        (-1000.0, 1000.0),
        "Tang et al., CVPR 2022 (Swin UNETR pretraining); a_min and a_max of its code, "
        "Project-MONAI/research-contributions, SwinUNETR/Pretrain/main.py",
    ),
    "ct_abdomen": ((-150.0, 250.0), f"{_RADIOPAEDIA}: abdomen, soft tissues, W 400 L 50"),
    "ct_mediastinum": ((-125.0, 225.0), f"{_RADIOPAEDIA}: chest, mediastinum, W 350 L 50"),
    "ct_lung": ((-1350.0, 150.0), f"{_RADIOPAEDIA}: chest, lungs, W 1500 L -600"),
    "ct_bone": ((-500.0, 1300.0), f"{_RADIOPAEDIA}: spine, bone, W 1800 L 400"),
    "ct_brain": ((0.0, 80.0), f"{_RADIOPAEDIA}: head and neck, brain, W 80 L 40"),
    "ct_swin_unetr": ((-175.0, 250.0), "Project-MONAI/tutorials, Swin UNETR on BTCV: a_min and a_max"),
    "ct_monai_ssl": ((-57.0, 164.0), "Project-MONAI/tutorials, self_supervised_pretraining: a_min and a_max"),
}

# Stored with the usual offset of 1000 or 1024, air is at 0 or 24 and nothing lies below -24. In Hounsfield units air,
# lung and fat lie below -50, and so does the noise of most crops of soft tissue.
_LOWEST_OF_OFFSET_CT = -50.0


@dataclass(frozen=True)
class CTIntensity(IntensityPolicy):
    """CT: a fixed window of Hounsfield units becomes [0, 1].

    Args:
        name: of the policy. Default: the name of the window in ``CT_WINDOWS``, or ``"ct_custom"``.
        citation: default: that of the window.
        unit: ``"HU"``.
        window_hu: (low, high). Default: that of ``name`` in ``CT_WINDOWS``, without a name ``"ct_wide"``.
        check_unit: refuse volumes that do not say their unit (NIfTI, NRRD) and have no value below -50, which are
            likely stored with an offset, or as a display's grey values. Set it to False for crops that hold nothing
            darker.

    Raises:
        ValueError: if the window is empty, or unnamed and of no name that is known.
    """

    name: str = ""
    citation: str = ""
    unit: str = "HU"
    window_hu: tuple[float, float] | None = None
    check_unit: bool = True

    kind: ClassVar[str] = "ct"

    def __post_init__(self):
        window, name, citation = self.window_hu, self.name, self.citation
        if window is None:
            name = name or "ct_wide"
            if name not in CT_WINDOWS:
                raise ValueError(f"window_hu is missing and {name!r} is no window; known: {', '.join(CT_WINDOWS)}")
            window = CT_WINDOWS[name][0]
        low, high = (float(value) for value in window)
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise ValueError(f"window_hu is ({low:g}, {high:g}); use two finite numbers, the lower one first")
        if name in CT_WINDOWS and CT_WINDOWS[name][0] != (low, high):
            raise ValueError(f"the window {name!r} is {CT_WINDOWS[name][0]} HU; give ({low:g}, {high:g}) another name")
        named = next((key for key, (limits, _) in CT_WINDOWS.items() if limits == (low, high)), None)
        name = name or named or "ct_custom"
        if not citation:
            citation = CT_WINDOWS[named][1] if named else f"chosen by the user: {low:g} to {high:g} HU"
        for field, value in (("window_hu", (low, high)), ("name", name), ("citation", citation)):
            object.__setattr__(self, field, value)

    def suits(self, meta: Mapping[str, Any]) -> bool:
        """Whether it is a CT."""
        return meta.get("modality") == "CT"

    def limits(self, image: np.ndarray, meta: Mapping[str, Any]) -> tuple[float, float]:
        """Return the window.

        Args:
            image: values of one volume.
            meta: with ``modality`` and ``unit`` (``"HU"``, or None if the file does not say).

        Raises:
            UnreadableImageError: if it is no CT, is in another unit, or looks as if it were.
        """
        _demand(meta, "CT", self)
        unit = meta.get("unit")
        if unit not in (None, "HU"):
            raise UnreadableImageError("its values are not in Hounsfield units but in those of another quantity")
        if unit is None and self.check_unit and image.min() > _LOWEST_OF_OFFSET_CT:
            raise UnreadableImageError(
                f"it does not look like Hounsfield units: the file says no unit and the lowest value is "
                f"{float(image.min()):g}, yet air is -1000 and fat about -100. Subtract the offset it was stored with; "
                "if it is a crop without air and fat, give the policy check_unit=False"
            )
        return self.window_hu


@dataclass(frozen=True)
class MRIntensity(IntensityPolicy):
    """MR: robust limits for each volume, since MR has no unit and scanners scale as they like.

    The lower limit is a percentile of all voxels, so that dark tissue of a crop without air is kept. The upper limit
    is a percentile of the foreground (the voxels above Otsu's threshold), so that it does not depend on how much air is
    around the patient. Whole numbers stay whole numbers. With ``deviations`` both are mean +- that many standard
    deviations of the foreground: [0, 1] is then a clipped z-score, ``z = (2 * value - 1) * deviations``.

    Args:
        name: of the policy. Default: ``"mr_percentiles"`` or ``"mr_zscore"``.
        citation: where the rule comes from.
        unit: ``"arbitrary units of the volume"``.
        percentiles: (lower one, of all voxels; upper one, of the foreground).
        deviations: standard deviations on either side, instead of percentiles.

    Raises:
        ValueError: if a number is out of range.
    """

    name: str = ""
    citation: str = ""
    unit: str = "arbitrary units of the volume"
    percentiles: tuple[float, float] = (0.5, 99.5)
    deviations: float | None = None

    kind: ClassVar[str] = "mr"

    def __post_init__(self):
        low, high = (float(value) for value in self.percentiles)
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles is ({low:g}, {high:g}); use 0 <= low < high <= 100")
        object.__setattr__(self, "percentiles", (low, high))
        if self.deviations is not None:
            if not (np.isfinite(self.deviations) and self.deviations > 0):
                raise ValueError(f"deviations is {self.deviations}; use a number above 0")
            object.__setattr__(self, "deviations", float(self.deviations))
        if not self.name:
            object.__setattr__(self, "name", "mr_percentiles" if self.deviations is None else "mr_zscore")
        if not self.citation:
            percentiles, zscore = "percentiles: Nyul and Udupa, MRM 42 (1999)", "z-score: Isensee et al. 2021 (nnU-Net)"
            rule = percentiles if self.deviations is None else zscore
            object.__setattr__(self, "citation", f"foreground: Otsu, IEEE Trans. SMC 9 (1979); {rule}")

    def suits(self, meta: Mapping[str, Any]) -> bool:
        """Whether it is an MR."""
        return meta.get("modality") == "MR"

    def limits(self, image: np.ndarray, meta: Mapping[str, Any]) -> tuple[float, float]:
        """Return the limits of one volume.

        Args:
            image: values of one volume.
            meta: with ``modality``.

        Raises:
            UnreadableImageError: if it is no MR, or has one value only.
        """
        _demand(meta, "MR", self)
        inside = image[image > otsu_threshold(image)]
        if not inside.size:
            raise UnreadableImageError("all its voxels have the same value")
        if self.deviations is not None:
            mean, spread = float(inside.mean(dtype=np.float64)), float(inside.std(dtype=np.float64))
            low, high = mean - self.deviations * spread, mean + self.deviations * spread
        else:
            # "lower" and "higher" give values the volume has, so whole numbers stay whole numbers.
            low = float(np.percentile(image, self.percentiles[0], method="lower"))
            high = float(np.percentile(inside, self.percentiles[1], method="higher"))
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise UnreadableImageError("no usable range of grey values")
        return low, high


@dataclass(frozen=True)
class ModalityIntensity(IntensityPolicy):
    """Several modalities in one store: each volume by the policy of its own modality.

    Args:
        name: of the policy.
        citation: default: that each policy has its own.
        unit: default: as in each policy.
        policies: from a term of DICOM's Modality to its policy (or what its ``to_dict`` gave). Default:
            ``CTIntensity()`` and ``MRIntensity()``.

    Raises:
        ValueError: if there is no policy, or one of them is no policy.
    """

    name: str = "by_modality"
    citation: str = "each modality's own"
    unit: str = "that of the modality's policy"
    policies: Any = None

    kind: ClassVar[str] = "modality"

    def __post_init__(self):
        given = {"CT": CTIntensity(), "MR": MRIntensity()} if self.policies is None else dict(self.policies)
        made = {key: policy_from_dict(value) if isinstance(value, Mapping) else value for key, value in given.items()}
        if not made or not all(isinstance(policy, IntensityPolicy) for policy in made.values()):
            raise ValueError("policies maps modalities such as 'CT' to intensity policies, at least one")
        object.__setattr__(self, "policies", tuple(sorted(made.items())))

    def policy_of(self, modality: str) -> IntensityPolicy:
        """Policy of a modality.

        Raises:
            KeyError: if there is none.
        """
        return dict(self.policies)[modality]

    def suits(self, meta: Mapping[str, Any]) -> bool:
        """Whether there is a policy for its modality."""
        return meta.get("modality") in dict(self.policies)

    def limits(self, image: np.ndarray, meta: Mapping[str, Any]) -> tuple[float, float]:
        """Return the limits that the policy of the volume's modality gives.

        Raises:
            UnreadableImageError: if there is no policy for its modality, or that policy refuses it.
        """
        known = dict(self.policies)
        _demand(meta, known, self)
        return known[meta["modality"]].limits(image, meta)

    def to_dict(self) -> dict[str, Any]:
        """Return the policy, and those within, as JSON values."""
        own = {"kind": self.kind, "name": self.name, "citation": self.citation, "unit": self.unit}
        return own | {"policies": {modality: policy.to_dict() for modality, policy in self.policies}}


def _demand(meta: Mapping[str, Any], wanted: str | Iterable[str], policy: IntensityPolicy) -> None:
    """Raise unless the volume is of a modality that is wanted."""
    known = [wanted] if isinstance(wanted, str) else sorted(wanted)
    modality = meta.get("modality")
    if modality is None:
        raise UnreadableImageError(
            "its modality is not known, so nobody can say what its values mean: give the column 'modality' in your "
            f"table, or the argument, as {' or '.join(known)}"
        )
    if modality not in known:
        raise UnreadableImageError(
            f"its modality is {modality}, and the intensity policy {policy.name!r} is for {' and '.join(known)}"
        )


VOLUME_POLICIES = (*CT_WINDOWS, "ct", "mr", "mr_zscore", "auto")


def volume_policy(name: str | IntensityPolicy) -> IntensityPolicy:
    """Give an intensity policy for volumes by a short name.

    Args:
        name: ``"auto"`` (CT and MR, each by its own), a modality (``"ct"``: the wide window; ``"mr"``: percentiles),
            ``"mr_zscore"`` (mean +- 3 standard deviations) or a window of ``CT_WINDOWS`` such as ``"ct_abdomen"``; case
            does not matter. A policy is returned as it is.

    Raises:
        ValueError: if there is no such name.
    """
    if isinstance(name, IntensityPolicy):
        return name
    short = str(name).lower()
    if short == "auto":
        return ModalityIntensity()
    if short == "mr":
        return MRIntensity()
    if short == "mr_zscore":
        return MRIntensity(deviations=3.0)
    if short == "ct" or short in CT_WINDOWS:
        return CTIntensity(name="ct_wide" if short == "ct" else short)
    raise ValueError(f"there is no intensity policy {name!r} for volumes; known: {', '.join(VOLUME_POLICIES)}")
