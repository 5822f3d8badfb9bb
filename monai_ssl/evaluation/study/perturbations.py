# SPDX-License-Identifier: Apache-2.0
"""Graded changes of images, as clinical practice brings them: what each does, its levels, and where they are from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from monai_ssl.data.intensity import IntensityPolicy
from monai_ssl.evaluation.preprocessing import Preprocessing
from monai_ssl.transforms import (
    BatchTransform,
    CenterResample,
    Params,
    RandomBiasField,
    RandomBrightnessContrast,
    RandomGamma,
    RandomGaussianNoise,
    RandomLowResolution,
    RandomWindow,
    ViewChain,
)

__all__ = ["PERTURBATIONS", "Perturbation", "perturbed_view"]


@dataclass(frozen=True)
class Perturbation:
    """One kind of change.

    Attributes:
        levels: from mild to strong on either side of the identity, which is not among them.
        identity: level that changes nothing.
        unit: what a level is.
        source: where the range is from.
        make: level, preprocessing and policy -> transform of images in the store's range; None: the level changes the
            resampling itself, see ``pose``.
        pose: level and parameters of :class:`monai_ssl.transforms.CenterResample` -> changed parameters.
    """

    levels: tuple[float, ...]
    identity: float
    unit: str
    source: str
    make: Callable[[float, IntensityPolicy], BatchTransform] | None = None
    pose: Callable[[float, Params], Params] | None = None


class _Wrapped(BatchTransform):
    """A transform whose draws are not its own."""

    def __init__(self, transform: BatchTransform) -> None:
        self.transform, self.overwrites = transform, transform.overwrites

    @property
    def spatial(self) -> bool:
        return self.transform.spatial

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return self.transform.output_shape(shape)

    def _apply(self, x: torch.Tensor, params: Params, *further: object) -> torch.Tensor:
        return self.transform._apply(x, params, *further)


class _Set(_Wrapped):
    """A transform whose parameters are changed by a function after they were drawn."""

    def __init__(self, transform: BatchTransform, change: Callable[[Params], Params]) -> None:
        super().__init__(transform)
        self.change = change

    def draw(self, shape, generator=None, device=None, extent=None) -> Params:
        return self.change(self.transform.draw(shape, generator, device, extent))


class _Repeatable(_Wrapped):
    """A transform with a stream of its own: the same images in the same order change alike."""

    def __init__(self, transform: BatchTransform) -> None:
        super().__init__(transform)
        self.generator: torch.Generator | None = None

    def draw(self, shape, generator=None, device=None, extent=None) -> Params:
        if self.generator is None:
            self.generator = torch.Generator(device=device or "cpu").manual_seed(0)
        return self.transform.draw(shape, self.generator, device, extent)


def _factor(name: str) -> Callable[[float, IntensityPolicy], BatchTransform]:
    def make(level: float, _: IntensityPolicy) -> BatchTransform:
        return _Set(
            RandomBrightnessContrast(0, 0), lambda params: {**params, name: torch.full_like(params[name], level)}
        )

    return make


def _window(level: float, policy: IntensityPolicy) -> BatchTransform:
    limits = getattr(policy, "window_hu", None)
    if limits is None:
        raise ValueError(
            "the perturbation 'window' is for CT images prepared with one window in HU; these were prepared by the "
            f"policy {policy.kind!r}"
        )
    width = (limits[1] - limits[0]) * level
    center = (limits[0] + limits[1]) / 2
    return RandomWindow(limits, (width, width), (center, center), prob=1.0)


_JITTER = "half and the whole width of ColorJitter(0.4) as SimCLR's and MoCo's successors use it (Chen et al. 2020)"
_STATED = "this package's own choice; the ranges of angles and scales are usual for radiographs"

PERTURBATIONS: dict[str, Perturbation] = {
    "brightness": Perturbation((0.6, 0.8, 1.2, 1.4), 1.0, "factor", _JITTER, _factor("brightness")),
    "contrast": Perturbation((0.6, 0.8, 1.2, 1.4), 1.0, "factor about the mean", _JITTER, _factor("contrast")),
    "gamma": Perturbation(
        (0.5, 0.7, 1.5, 2.0),
        1.0,
        "exponent",
        "0.7 to 1.5 as nnU-Net trains with (Isensee et al. 2021, supplementary note 4), and one step beyond",
        lambda level, _: RandomGamma((level, level), prob=1.0),
    ),
    "noise": Perturbation(
        (0.02, 0.05, 0.1, 0.2),
        0.0,
        "standard deviation, share of the grey range",
        "0.08 to 0.38 are the five severities of ImageNet-C (Hendrycks & Dietterich 2019); here from a quarter to "
        "about their middle, as medical images are less noisy",
        lambda level, _: _Repeatable(RandomGaussianNoise((level, level), prob=1.0)),
    ),
    "resolution": Perturbation(
        (0.75, 0.5, 0.35, 0.25),
        1.0,
        "share of the pixels kept along each axis",
        "0.5 to 1 as nnU-Net trains with (Isensee et al. 2021), and two steps beyond",
        lambda level, _: RandomLowResolution((level, level), prob=1.0),
    ),
    "rotation": Perturbation(
        (-20.0, -10.0, -5.0, 5.0, 10.0, 20.0),
        0.0,
        "degrees, in the image's plane",
        _STATED,
        pose=lambda level, params: {**params, "angle_deg": torch.full_like(params["angle_deg"], level)},
    ),
    "scale": Perturbation(
        (0.7, 0.85, 1.15, 1.3),
        1.0,
        "magnification",
        _STATED,
        pose=lambda level, params: {**params, "crop": params["crop"] / level},
    ),
    "window": Perturbation(
        (0.9, 0.75, 0.6, 0.5),
        1.0,
        "share of the stored CT window's width, about its middle",
        "from the stored window to half of it, the range of this package's own RandomWindow",
        _window,
    ),
    "bias_field": Perturbation(
        (0.1, 0.2, 0.3, 0.5),
        0.0,
        "largest logarithm of the field",
        "20 and 40 % fields of BrainWeb (Collins et al. 1998) are about 0.1 and 0.2; 0.3 is this package's training "
        "range, 0.5 beyond",
        lambda level, _: _Repeatable(RandomBiasField((level, level), prob=1.0)),
    ),
}
"""All perturbations by name. ``window`` is for CT, ``bias_field`` for MR; the others are for any image."""


def perturbed_view(name: str, level: float, preprocessing: Preprocessing, policy: IntensityPolicy) -> ViewChain:
    """Return the view of whole images that :meth:`Preprocessing.view` gives, changed.

    Rotation and scale are part of the one resampling; all others act after it, in the store's range, before the
    standardisation.

    Args:
        name: key of :data:`PERTURBATIONS`.
        level: see there; the identity gives the unchanged view.
        preprocessing: of the encoder.
        policy: of the store.

    Raises:
        ValueError: the perturbation does not suit the images.
    """
    change = PERTURBATIONS[name]
    whole = CenterResample(preprocessing.image_size, preprocessing.fit)
    if level == change.identity:
        chain = [whole]
    elif change.pose is not None:
        chain = [_Set(whole, lambda params: change.pose(level, params))]
    else:
        chain = [whole, change.make(level, policy)]
    return ViewChain([*chain, preprocessing.standardize()])
