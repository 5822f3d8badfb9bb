# SPDX-License-Identifier: Apache-2.0
"""Ready policies of views for CT and MR volumes in [0, 1]: contrastive, masked, whole, and for fine-tuning.

They end in the same standardisation as the policies for radiographs unless told otherwise, (x - 0.5) / 0.25. Turns stay
within the slices unless told otherwise: right whatever the slice thickness, and several times faster on a CPU. A label
map goes through the same draw with ``interpolation="nearest"``.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai_ssl.transforms.band_energy import RandomBandEnergy
from monai_ssl.transforms.base import BatchTransform
from monai_ssl.transforms.bias_field import RandomBiasField
from monai_ssl.transforms.blur import RandomGaussianBlur
from monai_ssl.transforms.cutout import RandomCutout
from monai_ssl.transforms.intensity import RandomBrightnessContrast, RandomGamma
from monai_ssl.transforms.low_resolution import RandomLowResolution
from monai_ssl.transforms.noise import RandomGaussianNoise
from monai_ssl.transforms.presets import _sides
from monai_ssl.transforms.resample import RandomResample
from monai_ssl.transforms.standardize import IntensityStandardize
from monai_ssl.transforms.views import MultiView, ViewChain
from monai_ssl.transforms.window import RandomWindow


def volume_views(
    size: int | tuple[int, ...] = 96,
    modality: str | None = None,
    spatial_dims: int = 3,
    num_views: int = 2,
    min_scale: float = 0.3,
    rotation_deg: float = 15.0,
    in_plane: bool = True,
    flip_prob: float | Sequence[float] = 0.5,
    elastic: float = 0.0,
    jitter: float = 0.3,
    jitter_prob: float = 0.8,
    gamma: tuple[float, float] = (0.7, 1.5),
    gamma_prob: float = 0.5,
    limits_hu: tuple[float, float] | None = None,
    window_prob: float = 0.5,
    bias_strength: float = 0.4,
    bias_prob: float = 0.5,
    blur_sigma: tuple[float, float] = (0.5, 1.0),
    blur_prob: float = 0.3,
    low_resolution_prob: float = 0.25,
    noise_std: float = 0.05,
    noise_prob: float = 0.3,
    cutout_holes: int = 0,
    standardize: IntensityStandardize | None = None,
    band_energy_prob: float = 0.0,
    max_scale: float = 1.0,
) -> MultiView:
    """Views of a volume for contrastive methods: another part, pose, exposure and scanner, the same patient.

    The steps are those nnU-Net changes volumes by (Isensee et al., Nature Methods 18, 2021, supplementary note 4), on
    more samples than there, since both views must differ; and the physics of the modality: another window for CT,
    a bias field for MR. A part whose strength or probability is 0 is left out of the chain.

    Args:
        size: side(s) of the views in voxels.
        modality: "CT", "MR", or None for any or a mixture: then neither window nor bias field.
        spatial_dims: 2 (slices) or 3.
        num_views: number of views.
        min_scale: least share of the volume (or of the part that was read) in a view.
        rotation_deg: greatest angle either way; beyond the volume its edge is continued.
        in_plane: turn and deform within slices only. False is for voxels of about equal sides.
        flip_prob: of a left-right mirror, or one for each axis; 0 keeps the side of the liver.
        elastic: see :class:`RandomResample`; 0.2 is mild.
        jitter: half width of the brightness and contrast factors about 1.
        jitter_prob: probability of both.
        gamma: least and greatest exponent.
        gamma_prob: probability of a gamma change.
        limits_hu: of CT: what the store's 0 and 1 stand for; needed for another window, None leaves it out.
        window_prob: of CT: probability of a narrower window, of half the limits at least.
        bias_strength: of MR: greatest logarithm of the bias field.
        bias_prob: of MR: probability of a bias field.
        blur_sigma: least and greatest blur in voxels of the view, along each axis on its own.
        blur_prob: probability of a blur.
        low_resolution_prob: probability of half to all the resolution, in half of the cases along one axis alone.
        noise_std: greatest standard deviation of added noise (the least is 0).
        noise_prob: probability of noise.
        cutout_holes: boxes of 1/7 of each side, filled with 0 after the standardisation.
        standardize: replaces the common standardisation.
        band_energy_prob: probability of other energies of the frequency bands, as other reconstruction kernels give,
            see :class:`RandomBandEnergy`.
        max_scale: greatest share of the volume in a view.

    Raises:
        ValueError: the modality is another, or ``limits_hu`` is given for one that is not CT.
    """
    modality = _checked(modality)
    if limits_hu is not None and modality != "CT":
        raise ValueError(f"limits_hu is for modality 'CT', not {modality!r}: other values are not in HU")
    parts: list[BatchTransform] = [
        RandomResample(
            _sides(size, spatial_dims),
            (min_scale, max_scale),
            rotation_deg=rotation_deg,
            flip_prob=flip_prob,
            in_plane=in_plane,
            elastic=elastic,
        )
    ]
    if limits_hu is not None and window_prob:
        parts.append(RandomWindow(limits_hu, prob=window_prob))
    if modality == "MR" and bias_strength and bias_prob:
        parts.append(RandomBiasField((0.0, bias_strength), prob=bias_prob))
    if band_energy_prob:
        parts.append(RandomBandEnergy(prob=band_energy_prob))
    if gamma_prob:
        parts.append(RandomGamma(gamma, gamma_prob))
    if jitter and jitter_prob:
        parts.append(RandomBrightnessContrast(jitter, jitter, jitter_prob))
    parts += _quality(blur_sigma, blur_prob, low_resolution_prob, noise_std, noise_prob)
    parts.append(standardize or IntensityStandardize())
    if cutout_holes:
        parts.append(RandomCutout(cutout_holes))
    return MultiView([ViewChain(parts)] * num_views)


def masked_views(
    size: int | tuple[int, ...] = 96,
    spatial_dims: int = 3,
    zoom: tuple[float, float] = (0.8, 1.25),
    rotation_deg: float = 10.0,
    in_plane: bool = True,
    flip_prob: float | Sequence[float] = 0.5,
    jitter: float = 0.1,
    jitter_prob: float = 0.5,
    standardize: IntensityStandardize | None = None,
) -> MultiView:
    """One view of a volume for methods that spoil it themselves, as masked modelling: the view need not be hard.

    A box at about the voxels' own size, somewhere in the volume, turned a little and mirrored, slightly brighter or
    darker. Neither blur nor noise: the network would have to predict them. Beyond the volume there are zeros.

    Args:
        size: side(s) of the view in voxels.
        spatial_dims: 2 (slices) or 3.
        zoom: least and greatest magnification of the voxels.
        rotation_deg: greatest angle either way.
        in_plane: turn within slices only. False is for voxels of about equal sides.
        flip_prob: of a left-right mirror, or one for each axis.
        jitter: half width of the brightness and contrast factors about 1.
        jitter_prob: probability of both.
        standardize: replaces the common standardisation.
    """
    parts: list[BatchTransform] = [
        RandomResample(
            _sides(size, spatial_dims),
            ratio=(0.9, 1.1),
            rotation_deg=rotation_deg,
            flip_prob=flip_prob,
            padding="zeros",
            zoom=zoom,
            in_plane=in_plane,
        )
    ]
    if jitter and jitter_prob:
        parts.append(RandomBrightnessContrast(jitter, jitter, jitter_prob))
    return MultiView([ViewChain([*parts, standardize or IntensityStandardize()])])


def whole_views(
    size: int | tuple[int, ...] = 96,
    spatial_dims: int = 3,
    min_scale: float = 0.8,
    rotation_deg: float = 5.0,
    in_plane: bool = True,
    flip_prob: float | Sequence[float] = 0.0,
    jitter: float = 0.1,
    jitter_prob: float = 0.5,
    standardize: IntensityStandardize | None = None,
) -> MultiView:
    """One view of nearly the whole volume, for methods that tell places apart, as volume contrast (VoCo).

    A large box about as oblong as the volume, brought to one size, turned a little and slightly brighter or darker. It
    is not mirrored: left and right are places too. Beyond the volume its edge is continued.

    Args:
        size: side(s) of the view in voxels.
        spatial_dims: 2 (slices) or 3.
        min_scale: least share of the volume in the view; the greatest is 1.
        rotation_deg: greatest angle either way.
        in_plane: turn within slices only. False is for voxels of about equal sides.
        flip_prob: of a left-right mirror, or one for each axis.
        jitter: half width of the brightness and contrast factors about 1.
        jitter_prob: probability of both.
        standardize: replaces the common standardisation.
    """
    parts: list[BatchTransform] = [
        RandomResample(
            _sides(size, spatial_dims),
            (min_scale, 1.0),
            ratio=(0.9, 1.1),
            rotation_deg=rotation_deg,
            flip_prob=flip_prob,
            in_plane=in_plane,
        )
    ]
    if jitter and jitter_prob:
        parts.append(RandomBrightnessContrast(jitter, jitter, jitter_prob))
    return MultiView([ViewChain([*parts, standardize or IntensityStandardize()])])


def volume_augmentation(
    size: int | tuple[int, ...] = 96,
    modality: str | None = None,
    spatial_dims: int = 3,
    strength: float = 1.0,
    in_plane: bool = True,
    flip_prob: float | Sequence[float] = 0.5,
    elastic: float = 0.1,
    standardize: IntensityStandardize | None = None,
) -> MultiView:
    """One randomly changed view for fine-tuning a segmentation; the label map goes through the same draw.

    The steps and, at strength 1, the ranges and probabilities of nnU-Net (Isensee et al., Nature Methods 18, 2021,
    supplementary note 4) for noise, blur, brightness, contrast, gamma and low resolution, with noise in the units of
    images in [0, 1]. nnU-Net turns and scales a fifth of its samples, widely; here every sample is, by about the same
    on average: 15 degrees and 0.86 to 1.16 times. The box has the voxels' own size up to that, as a sliding window has
    later; where it reaches beyond the volume there are zeros. MR gets a bias field, and the mild elastic deformation is
    ours: nnU-Net leaves it out by default. nnU-Net's gamma of the inverted image is left out.

    Args:
        size: side(s) of the view in voxels.
        modality: "CT", "MR" (with a bias field), or None for any.
        spatial_dims: 2 (slices) or 3.
        strength: scales all but the mirror; 0 only cuts and mirrors.
        in_plane: turn and deform within slices only. False is for voxels of about equal sides.
        flip_prob: of a left-right mirror, or one for each axis; 0 where left and right are different labels.
        elastic: of :class:`RandomResample`, at strength 1; 0 is faster on a CPU.
        standardize: what the encoder was trained with; None: the package's common one.

    Raises:
        ValueError: the strength is outside [0, 2], or the modality is another.
    """
    if not 0 <= strength <= 2:
        raise ValueError(f"the strength of the augmentation must be in [0, 2], got {strength}")
    modality = _checked(modality)
    parts: list[BatchTransform] = [
        RandomResample(
            _sides(size, spatial_dims),
            ratio=(1.0, 1.0),
            rotation_deg=15 * strength,
            flip_prob=flip_prob,
            padding="zeros",
            zoom=(0.86**strength, 1.16**strength),
            in_plane=in_plane,
            elastic=min(elastic * strength, 0.4),
        )
    ]
    if strength:
        if modality == "MR":
            parts.append(RandomBiasField((0.0, 0.3 * strength), prob=0.3))
        # sqrt(0.1), nnU-Net's greatest deviation of noise, of images of deviation 0.25
        parts += _quality((0.5 * strength, strength), 0.2, 0.25, 0.08 * strength, 0.1, 0.5**strength)
        parts.append(RandomBrightnessContrast(min(0.25 * strength, 0.9), min(0.25 * strength, 0.9), 0.3))
        parts.append(RandomGamma((0.7**strength, 1.5**strength), 0.3))
    return MultiView([ViewChain([*parts, standardize or IntensityStandardize()])])


def _quality(
    blur_sigma: tuple[float, float],
    blur_prob: float,
    low_resolution_prob: float,
    noise_std: float,
    noise_prob: float,
    least_zoom: float = 0.5,
) -> list[BatchTransform]:
    """Blur, low resolution and noise; noise last, since a scanner adds it to what it resolves."""
    parts: list[BatchTransform] = []
    if blur_prob:
        parts.append(RandomGaussianBlur(blur_sigma, blur_prob, per_axis=True))
    if low_resolution_prob:
        parts.append(RandomLowResolution((least_zoom, 1.0), low_resolution_prob, one_axis_prob=0.5))
    if noise_std and noise_prob:
        parts.append(RandomGaussianNoise((0.0, noise_std), noise_prob))
    return parts


def _checked(modality: str | None) -> str | None:
    """Term of a modality that has a policy."""
    if modality not in ("CT", "MR", None):
        raise ValueError(f"modality is {modality!r}; use 'CT', 'MR', or None for any")
    return modality
