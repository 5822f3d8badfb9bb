# SPDX-License-Identifier: Apache-2.0
"""The intensity policies of several sources as one, for the manifest of weights that were trained on all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.intensity import IntensityPolicy, policy_from_dict

__all__ = ["SourceIntensity"]


@dataclass(frozen=True)
class SourceIntensity(IntensityPolicy):
    """Each source by its own policy. New images are prepared by the policy that is for their kind.

    A radiograph finds that of the radiographs, a CT volume that of CT (see ``IntensityPolicy.suits``). Where sources
    have different policies for one kind, choose: ``policy_of(name)``.

    Args:
        name: of the policy.
        citation: default: that each policy has its own.
        unit: default: as in each policy.
        policies: from the source's name to its policy (or what its ``to_dict`` gave).

    Raises:
        ValueError: if there is no policy, or one of them is no policy.
    """

    name: str = "by_source"
    citation: str = "each source's own"
    unit: str = "that of the source's policy"
    policies: Any = ()

    kind: ClassVar[str] = "sources"

    def __post_init__(self):
        made = {
            name: policy_from_dict(value) if isinstance(value, Mapping) else value
            for name, value in dict(self.policies).items()
        }
        if not made or not all(isinstance(policy, IntensityPolicy) for policy in made.values()):
            raise ValueError("policies maps names of sources to intensity policies, at least one")
        object.__setattr__(self, "policies", tuple(sorted(made.items())))

    def policy_of(self, source: str) -> IntensityPolicy:
        """Policy of a source.

        Raises:
            KeyError: if there is none.
        """
        return dict(self.policies)[source]

    def suits(self, meta: Mapping[str, Any]) -> bool:
        """Whether a source's policy is for such an image."""
        return any(policy.suits(meta) for _, policy in self.policies)

    def limits(self, image: np.ndarray, meta: Mapping[str, Any]) -> tuple[float, float]:
        """Return the limits by the policy that is for the image.

        Raises:
            UnreadableImageError: if no source's policy is for it, or several that differ are, or that one refuses it.
        """
        fitting = {name: policy for name, policy in self.policies if policy.suits(meta)}
        known = ", ".join(f"{name} ({policy.name})" for name, policy in self.policies)
        if not fitting:
            raise UnreadableImageError(
                "no source's intensity policy is for its modality, "
                f"{meta.get('modality') or 'which is not known'}: {known}"
            )
        first = next(iter(fitting.values()))
        if any(policy != first for policy in fitting.values()):
            raise UnreadableImageError(
                f"the sources {', '.join(fitting)} have different intensity policies for it; prepare the images by one "
                "of them: policy_of(name)"
            )
        return first.limits(image, meta)

    def to_dict(self) -> dict[str, Any]:
        """Return the policy, and those within, as JSON values."""
        own = {"kind": self.kind, "name": self.name, "citation": self.citation, "unit": self.unit}
        return own | {"policies": {name: policy.to_dict() for name, policy in self.policies}}
