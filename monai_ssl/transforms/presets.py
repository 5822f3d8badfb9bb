# SPDX-License-Identifier: Apache-2.0
"""Ready policies of views for grey images in [0, 1], 2D and 3D.

All end in the same standardisation unless told otherwise, (x - 0.5) / 0.25, which is also what ``evaluation_view``
does: give the same ``standardize`` to both. It is a fixed one because a standardisation of each image by its own
statistics would undo the brightness and contrast changes.
"""

from __future__ import annotations

from monai_ssl.transforms.band_energy import RandomBandEnergy
from monai_ssl.transforms.blur import RandomGaussianBlur
from monai_ssl.transforms.center_resample import CenterResample
from monai_ssl.transforms.cutout import RandomCutout
from monai_ssl.transforms.intensity import RandomBrightnessContrast, RandomGamma
from monai_ssl.transforms.noise import RandomGaussianNoise
from monai_ssl.transforms.resample import RandomResample
from monai_ssl.transforms.standardize import IntensityStandardize
from monai_ssl.transforms.views import MultiView, ViewChain


def c2l_views(
    size: int | tuple[int, ...] = 224, spatial_dims: int = 2, standardize: IntensityStandardize | None = None
) -> MultiView:
    """Two views by the policy of C2L (Zhou et al., MICCAI 2020; values of the released script).

    Crop of 0.2 to 1 of the area, turn by up to 10 degrees (zeros beyond the image, not beyond the crop), brightness and
    contrast 0.4 on every sample, left-right flip with probability 1/2, standardisation, then cutout of 3 holes of 1/7
    of the side, filled with the mean. The script's saturation, hue and random grey do nothing on grey images and are
    left out; it standardises by ImageNet's statistics, of which ``IntensityStandardize(mean=0.449, std=0.226)`` is the
    grey counterpart.

    Args:
        size: side(s) of the views in pixels.
        spatial_dims: 2 or 3.
        standardize: replaces the common standardisation.
    """
    chain = ViewChain(
        [
            RandomResample(_sides(size, spatial_dims), (0.2, 1.0), rotation_deg=10, flip_prob=0.5, padding="zeros"),
            RandomBrightnessContrast(0.4, 0.4),
            standardize or IntensityStandardize(),
            RandomCutout(holes=3, fraction=1 / 7),
        ]
    )
    return MultiView([chain, chain])


def moco_v2_views(
    size: int | tuple[int, ...] = 224, spatial_dims: int = 2, standardize: IntensityStandardize | None = None
) -> MultiView:
    """Two views by the policy of MoCo v2 (Chen et al., arXiv 2003.04297), as far as it acts on grey images.

    Crop of 0.2 to 1 of the area, brightness and contrast 0.4 with probability 0.8, blur of 0.1 to 2 pixels with
    probability 0.5, left-right flip with probability 1/2, standardisation.

    Args:
        size: side(s) of the views in pixels.
        spatial_dims: 2 or 3.
        standardize: replaces the common standardisation.
    """
    chain = ViewChain(
        [
            RandomResample(_sides(size, spatial_dims), (0.2, 1.0), flip_prob=0.5),
            RandomBrightnessContrast(0.4, 0.4, prob=0.8),
            RandomGaussianBlur((0.1, 2.0), prob=0.5),
            standardize or IntensityStandardize(),
        ]
    )
    return MultiView([chain, chain])


def convirt_views(
    size: int | tuple[int, ...] = 224,
    spatial_dims: int = 2,
    num_views: int = 1,
    min_scale: float | None = None,
    flip_prob: float = 0.5,
    rotation_deg: float = 20.0,
    in_plane: bool = True,
    translate: float = 0.1,
    rescale: tuple[float, float] = (0.95, 1.05),
    jitter: float = 0.4,
    blur_sigma: tuple[float, float] = (0.1, 3.0),
    blur_prob: float = 1.0,
    standardize: IntensityStandardize | None = None,
) -> MultiView:
    """Views by the policy of ConVIRT (Zhang et al., arXiv 2010.00747, section 4.1), made for pairs of image and report.

    Crop of 0.6 to 1 of the area, left-right flip with probability 1/2, turn by up to 20 degrees, shift by up to 0.1 of
    the side, magnification by 0.95 to 1.05, all in one resampling; brightness and contrast 0.6 to 1.4; blur of 0.1 to 3
    pixels. There is no colour to change. Beyond the image there are zeros; beyond the crop there is the image itself.

    **A flip makes the words "left" and "right" of a report wrong**: the heart and a finding change sides, the sentence
    does not. The paper flips all the same; ``flip_prob=0`` keeps the sides, and is the right choice where they are to
    be learnt.

    Volumes get the same along each axis: crops of 0.6 ** 1.5 to 1 of the volume, which is 0.77 to 1 of each side as in
    an image, and turns within the slices.

    Args:
        size: side(s) of the views in pixels.
        spatial_dims: 2 or 3.
        num_views: number of views; the paper has one, the added contrast of images needs two.
        min_scale: least share of the image's area or volume; None: as above.
        flip_prob: probability of a left-right flip, see above.
        rotation_deg: greatest angle either way.
        in_plane: turn volumes within their slices only; in 2D it changes nothing.
        translate: greatest shift as a share of the crop's side.
        rescale: least and greatest magnification.
        jitter: half width of the brightness and contrast factors about 1.
        blur_sigma: least and greatest blur in pixels of the view; the paper's are for 224 pixels, smaller views want
            less.
        blur_prob: probability of a blur.
        standardize: replaces the common standardisation.
    """
    sides = _sides(size, spatial_dims)
    resample = RandomResample(
        sides,
        (0.6 ** (spatial_dims / 2) if min_scale is None else min_scale, 1.0),
        rotation_deg=rotation_deg,
        flip_prob=flip_prob,
        translate=translate,
        padding="zeros",
        in_plane=in_plane,
        rescale=rescale,
    )
    parts = [resample, RandomBrightnessContrast(jitter, jitter), RandomGaussianBlur(blur_sigma, blur_prob)]
    return MultiView([ViewChain([*parts, standardize or IntensityStandardize()])] * num_views)


def radiograph_views(
    size: int | tuple[int, ...] = 224,
    spatial_dims: int = 2,
    min_scale: float = 0.3,
    jitter: float = 0.4,
    jitter_prob: float = 0.8,
    gamma: tuple[float, float] = (0.6, 1.67),
    gamma_prob: float = 0.8,
    rotation_deg: float = 10.0,
    flip_prob: float = 0.5,
    blur_sigma: tuple[float, float] = (0.1, 1.0),
    blur_prob: float = 0.5,
    noise_std: float = 0.0,
    cutout_holes: int = 0,
    standardize: IntensityStandardize | None = None,
    num_views: int = 2,
    band_energy_prob: float = 0.0,
    max_scale: float = 1.0,
) -> MultiView:
    """Views that change a radiograph as poses and exposures do: larger crops than for photographs, gamma, no colour.

    The defaults are the recipe of the bundle ``radiograph_c2l_pretraining``. With half the jitter and neither gamma nor
    turn a network learns a pool of a thousand images by heart, and a longer training makes its features worse. A part
    whose strength or probability is 0 is left out of the chain.

    Args:
        size: side(s) of the views in pixels.
        spatial_dims: 2 or 3.
        min_scale: least share of the image's area in a view.
        jitter: half width of the brightness and contrast factors about 1.
        jitter_prob: probability of both.
        gamma: least and greatest exponent.
        gamma_prob: probability of a gamma change.
        rotation_deg: greatest angle either way; beyond the image its edge is continued.
        flip_prob: probability of a left-right flip; 0 keeps the side of the heart.
        blur_sigma: least and greatest blur in pixels of the view.
        blur_prob: probability of a blur.
        noise_std: greatest standard deviation of added noise (the least is 0), on half of the samples.
        cutout_holes: holes of 1/7 of the side, filled with 0 after the standardisation.
        standardize: replaces the common standardisation.
        num_views: number of views.
        band_energy_prob: probability of other energies of the frequency bands, as other makers' processing gives, see
            :class:`RandomBandEnergy`.
        max_scale: greatest share of the image's area in a view.
    """
    scale = (min_scale, max_scale)
    parts = [RandomResample(_sides(size, spatial_dims), scale, rotation_deg=rotation_deg, flip_prob=flip_prob)]
    if band_energy_prob:
        parts.append(RandomBandEnergy(prob=band_energy_prob))
    if jitter and jitter_prob:
        parts.append(RandomBrightnessContrast(jitter, jitter, jitter_prob))
    if gamma_prob:
        parts.append(RandomGamma(gamma, gamma_prob))
    if blur_prob:
        parts.append(RandomGaussianBlur(blur_sigma, blur_prob))
    if noise_std:
        parts.append(RandomGaussianNoise((0.0, noise_std), 0.5))
    parts.append(standardize or IntensityStandardize())
    if cutout_holes:
        parts.append(RandomCutout(cutout_holes))
    return MultiView([ViewChain(parts)] * num_views)


def evaluation_view(
    size: int | tuple[int, ...] = 224,
    spatial_dims: int = 2,
    fit: str = "stretch",
    standardize: IntensityStandardize | None = None,
) -> ViewChain:
    """The whole image at the encoder's input size, without chance.

    Args:
        size: side(s) in pixels.
        spatial_dims: 2 or 3.
        fit: see :class:`CenterResample`.
        standardize: replaces the common standardisation; the one the encoder was trained with.
    """
    return ViewChain([CenterResample(_sides(size, spatial_dims), fit), standardize or IntensityStandardize()])


def _sides(size: int | tuple[int, ...], spatial_dims: int) -> tuple[int, ...]:
    """One side for each axis."""
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
    sides = (size,) * spatial_dims if isinstance(size, int) else tuple(size)
    if len(sides) != spatial_dims:
        raise ValueError(f"size {size} does not have {spatial_dims} axes")
    return sides
