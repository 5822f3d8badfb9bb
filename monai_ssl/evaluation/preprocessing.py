# SPDX-License-Identifier: Apache-2.0
"""How images reach an encoder: recorded with its weights, applied again in every later use, and compared."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from monai_ssl.data.intensity import IntensityPolicy, policy_from_dict
from monai_ssl.data.store import ImageStore
from monai_ssl.transforms import IntensityStandardize, ViewChain, evaluation_view

__all__ = ["Preprocessing"]

logger = logging.getLogger(__name__)

_GEOMETRY = ("spacing_mm", "orientation")


@dataclass(frozen=True)
class Preprocessing:
    """From a file to the network's input, as far as the weights depend on it.

    Attributes:
        image_size: size of the network's input in pixels, array order.
        policy: the store's intensity policy (``ImageStore.policy.to_dict()``); None: not known.
        standardize_mode: see :class:`monai_ssl.transforms.IntensityStandardize`.
        mean: likewise.
        std: likewise.
        fit: how whole images are brought to ``image_size``, see :class:`monai_ssl.transforms.CenterResample`.
        spacing_mm: distance of neighbouring voxels along each array axis; None: each volume's own, or not known.
        orientation: ends of the patient that the array axes run to (``"SPL"``); None: not known, or flat images.
    """

    image_size: tuple[int, ...]
    policy: dict[str, Any] | None = None
    standardize_mode: str = "fixed"
    mean: float = 0.5
    std: float = 0.25
    fit: str = "stretch"
    spacing_mm: tuple[float, ...] | None = None
    orientation: str | None = None

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any], image_size: tuple[int, ...] | None = None) -> Preprocessing:
        """Read it from the manifest of encoder weights (fields ``intensity``, ``patch_size``, ``spacing_mm``
        and ``orientation``).

        Args:
            manifest: of :func:`monai_ssl.weights.read_manifest`.
            image_size: replaces the size the encoder was trained at.

        Raises:
            ValueError: the manifest names no size and none is given, or its intensity entry can't be read.
        """
        size = image_size or manifest.get("patch_size")
        if not size:
            raise ValueError("the encoder's manifest does not say at which image size it was trained: give image_size")
        geometry = {name: manifest[name] for name in _GEOMETRY if manifest.get(name) is not None}
        return cls.from_dict({"image_size": size, **(manifest.get("intensity") or {}), **geometry})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Make it from what :meth:`to_dict` gave.

        Raises:
            ValueError: an entry is missing, unknown or wrong.
        """
        known = {"policy": None, "standardize_mode": "fixed", "mean": 0.5, "std": 0.25, "fit": "stretch"}
        unknown = sorted(set(values) - known.keys() - {"image_size", *_GEOMETRY})
        if unknown or "image_size" not in values:
            raise ValueError(f"this does not describe a preprocessing: {unknown or 'no image_size'}")
        size, spacing = tuple(int(side) for side in values["image_size"]), values.get("spacing_mm")
        spacing = None if spacing is None else checked_spacing(spacing, len(size))
        made = cls(
            size,
            **{k: values.get(k, v) for k, v in known.items()},
            spacing_mm=spacing,
            orientation=values.get("orientation"),
        )
        made.view()  # refuses wrong values
        return made

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values for :meth:`from_dict`."""
        return {"image_size": list(self.image_size), **self.intensity(), **self.geometry()}

    def geometry(self) -> dict[str, Any]:
        """Return the entries ``spacing_mm`` and ``orientation`` of a manifest, those that are known."""
        spacing = {} if self.spacing_mm is None else {"spacing_mm": list(self.spacing_mm)}
        return spacing if self.orientation is None else {**spacing, "orientation": self.orientation}

    def intensity(self) -> dict[str, Any]:
        """Return the entry ``intensity`` of a manifest: everything but size, spacing and orientation."""
        return {
            "policy": self.policy,
            "standardize_mode": self.standardize_mode,
            "mean": self.mean,
            "std": self.std,
            "fit": self.fit,
        }

    def intensity_policy(self) -> IntensityPolicy | None:
        """Return the policy that images are to be prepared by, or None if it is not known."""
        return policy_from_dict(self.policy) if self.policy else None

    def describe(self) -> str:
        """Say in a few words what of an image the network sees.

        >>> Preprocessing((24, 96, 96), fit="native", spacing_mm=(3.0, 0.75, 0.75)).describe()
        'the middle of 24 x 96 x 96 voxels as they are, at 3 x 0.75 x 0.75 mm'
        """
        sides, unit = " x ".join(map(str, self.image_size)), "voxels" if len(self.image_size) == 3 else "pixels"
        ways = {
            "stretch": f"the whole, stretched to {sides} {unit}",
            "pad": f"the whole in its proportions, padded to {sides} {unit}",
            "crop": f"as much as {sides} {unit} hold of it in its proportions",
            "native": f"the middle of {sides} {unit} as they are",
        }
        if unit == "pixels":
            return ways[self.fit]
        spacing = "each volume's own spacing" if self.spacing_mm is None else shown_spacing(self.spacing_mm)
        return f"{ways[self.fit]}{', at' if self.fit == 'native' else ', from voxels of'} {spacing}"

    def standardize(self) -> IntensityStandardize:
        """Return the standardisation, for any chain of transforms."""
        return IntensityStandardize(self.standardize_mode, self.mean, self.std)

    def value_range(self) -> tuple[float, float]:
        """Return what 0 and 1 of an image become: the range of a view, for methods that paint noise into it.

        Raises:
            ValueError: the standardisation is each image's own, so that there is no such range.
        """
        if self.standardize_mode != "fixed":
            raise ValueError(
                f"standardize_mode is {self.standardize_mode!r}: views have no common range then, and this method "
                "paints noise into one; use 'fixed'"
            )
        return (0.0 - self.mean) / self.std, (1.0 - self.mean) / self.std

    def view(self) -> ViewChain:
        """Return the transform of whole images for evaluation."""
        return evaluation_view(self.image_size, len(self.image_size), self.fit, self.standardize())

    def with_store(self, store: ImageStore) -> Preprocessing:
        """Return it with the store's policy, spacing and orientation, after checking that the weights know no others.

        Raises:
            ValueError: the store was prepared by another policy (of weights from several sources or modalities: than
                any of theirs), or at another spacing or orientation, or has images of
                other dimensions.
        """
        policy = store.policy.to_dict()
        if store.spatial_dims != len(self.image_size):
            raise ValueError(
                f"the images in {store.folder} have {store.spatial_dims} dimensions, image_size has "
                f"{len(self.image_size)}: {list(self.image_size)}"
            )
        among = (self.policy or {}).get("policies", {})  # of several sources or modalities
        if self.policy is not None and self.policy != policy and policy not in among.values():
            differing = sorted(
                key for key in self.policy.keys() | policy.keys() if self.policy.get(key) != policy.get(key)
            )
            told = "; ".join(f"{key}: {self.policy.get(key)!r} and {policy.get(key)!r}" for key in differing)
            raise ValueError(
                "the weights were trained on images of another intensity policy than these were prepared by "
                f"({told}); prepare them again with the weights' policy"
            )
        found = replace(self, policy=policy, **self._geometry_of(store))
        if found.fit == "native" and len(found.image_size) == 3 and found.spacing_mm is None:
            logger.warning(
                "fit 'native' without spacing_mm: volumes keep their own voxels, so %s of them are not equally large",
                " x ".join(map(str, found.image_size)),
            )
        return found

    def _geometry_of(self, store: ImageStore) -> dict[str, Any]:
        spacing, orientation = store.recipe.get("spacing_mm"), store.recipe.get("orientation")
        spacing = None if spacing is None else tuple(float(value) for value in spacing)
        if self.orientation is not None and orientation is not None and self.orientation != orientation:
            raise ValueError(
                f"the weights were trained on volumes whose axes run to {self.orientation}, those in {store.folder} "
                f"run to {orientation}; prepare them again with orientation={self.orientation}"
            )
        if self.spacing_mm is not None and (spacing is None or not np.allclose(spacing, self.spacing_mm, rtol=1e-3)):
            have = "each volume's own" if spacing is None else shown_spacing(spacing)
            raise ValueError(
                f"the weights were trained at a spacing of {shown_spacing(self.spacing_mm)}, the volumes in "
                f"{store.folder} have {have}; prepare them again with spacing_mm={list(self.spacing_mm)}"
            )
        return {"spacing_mm": spacing, "orientation": orientation or self.orientation}


def checked_spacing(spacing_mm: float | Sequence[float], spatial_dims: int) -> tuple[float, ...]:
    """Return one distance in mm for each axis.

    Raises:
        ValueError: they are not as many as there are axes, or not positive.
    """
    each = (spacing_mm,) * spatial_dims if isinstance(spacing_mm, (int, float)) else tuple(spacing_mm)
    each = tuple(float(value) for value in each)
    if len(each) != spatial_dims or not all(0 < value < 1000 for value in each):
        raise ValueError(f"spacing_mm must be one distance in mm, or {spatial_dims} of them, got {spacing_mm}")
    return each


def shown_spacing(spacing_mm: Sequence[float]) -> str:
    """Write a spacing for people.

    >>> shown_spacing((3.0, 0.75, 0.75))
    '3 x 0.75 x 0.75 mm'
    """
    return " x ".join(f"{value:g}" for value in spacing_mm) + " mm"
