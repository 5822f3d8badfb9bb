# SPDX-License-Identifier: Apache-2.0
"""How images reach an encoder: recorded with its weights, applied again in every later use, and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from monai_ssl.data.store import ImageStore
from monai_ssl.transforms import IntensityStandardize, ViewChain, evaluation_view

__all__ = ["Preprocessing"]


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
    """

    image_size: tuple[int, ...]
    policy: dict[str, Any] | None = None
    standardize_mode: str = "fixed"
    mean: float = 0.5
    std: float = 0.25
    fit: str = "stretch"

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any], image_size: tuple[int, ...] | None = None) -> Preprocessing:
        """Read it from the manifest of encoder weights (fields ``intensity`` and ``patch_size``).

        Args:
            manifest: of :func:`monai_ssl.weights.read_manifest`.
            image_size: replaces the size the encoder was trained at.

        Raises:
            ValueError: the manifest names no size and none is given, or its intensity entry can't be read.
        """
        size = image_size or manifest.get("patch_size")
        if not size:
            raise ValueError("the encoder's manifest does not say at which image size it was trained: give image_size")
        return cls.from_dict({"image_size": size, **(manifest.get("intensity") or {})})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Make it from what :meth:`to_dict` gave.

        Raises:
            ValueError: an entry is missing, unknown or wrong.
        """
        known = {"policy": None, "standardize_mode": "fixed", "mean": 0.5, "std": 0.25, "fit": "stretch"}
        unknown = sorted(set(values) - known.keys() - {"image_size"})
        if unknown or "image_size" not in values:
            raise ValueError(f"this does not describe a preprocessing: {unknown or 'no image_size'}")
        made = cls(tuple(int(side) for side in values["image_size"]), **{k: values.get(k, v) for k, v in known.items()})
        made.view()  # refuses wrong values
        return made

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values for :meth:`from_dict`."""
        return {"image_size": list(self.image_size), **self.intensity()}

    def intensity(self) -> dict[str, Any]:
        """Return the entry ``intensity`` of a manifest: everything but the size."""
        return {
            "policy": self.policy,
            "standardize_mode": self.standardize_mode,
            "mean": self.mean,
            "std": self.std,
            "fit": self.fit,
        }

    def standardize(self) -> IntensityStandardize:
        """Return the standardisation, for any chain of transforms."""
        return IntensityStandardize(self.standardize_mode, self.mean, self.std)

    def view(self) -> ViewChain:
        """Return the transform of whole images for evaluation."""
        return evaluation_view(self.image_size, len(self.image_size), self.fit, self.standardize())

    def with_store(self, store: ImageStore) -> Preprocessing:
        """Return it with the store's intensity policy, after checking that the weights know no other.

        Raises:
            ValueError: the store was prepared by another policy, or has images of other dimensions.
        """
        policy = store.policy.to_dict()
        if store.spatial_dims != len(self.image_size):
            raise ValueError(
                f"the images in {store.folder} have {store.spatial_dims} dimensions, image_size has "
                f"{len(self.image_size)}: {list(self.image_size)}"
            )
        if self.policy is not None and self.policy != policy:
            differing = sorted(
                key for key in self.policy.keys() | policy.keys() if self.policy.get(key) != policy.get(key)
            )
            told = "; ".join(f"{key}: {self.policy.get(key)!r} and {policy.get(key)!r}" for key in differing)
            raise ValueError(
                "the weights were trained on images of another intensity policy than these were prepared by "
                f"({told}); prepare them again with the weights' policy"
            )
        return replace(self, policy=policy)
