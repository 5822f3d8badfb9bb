# SPDX-License-Identifier: Apache-2.0
"""Multi-crop: two large views of each image and several small ones, which cost little and show parts.

Caron et al., *Unsupervised Learning of Visual Features by Contrasting Cluster Assignments* (SwAV), arXiv 2006.09882,
section 3.2, for grey images and volumes in [0, 1].
"""

from __future__ import annotations

from typing import Any

from monai_ssl.transforms.base import check_range
from monai_ssl.transforms.presets import _sides, radiograph_views
from monai_ssl.transforms.views import MultiView
from monai_ssl.transforms.volume_presets import volume_views

NUM_LARGE = 2

# By number of dimensions: side of the large views, side of the small ones, number of small ones.
_SIZES = {2: (224, 96, 6), 3: (96, 48, 4)}

# SwAV's policy on photographs (colour distortion of strength 1, blur), as far as it acts on grey images.
_PHOTOGRAPHS: dict[str, Any] = {
    "jitter": 0.8,
    "jitter_prob": 0.8,
    "gamma_prob": 0.0,
    "rotation_deg": 0.0,
    "flip_prob": 0.5,
    "blur_sigma": (0.1, 2.0),
    "blur_prob": 0.5,
}


def multi_crop_views(
    size: int | tuple[int, ...] | None = None,
    small_size: int | tuple[int, ...] | None = None,
    num_small: int | None = None,
    spatial_dims: int = 2,
    large_scale: tuple[float, float] = (0.14, 1.0),
    small_scale: tuple[float, float] = (0.05, 0.14),
    modality: str | None = None,
    **options: Any,
) -> MultiView:
    """Two large views, then the small ones, each with a draw of its own.

    In 2D the policy is SwAV's: brightness and contrast 0.8 with probability 0.8, blur of 0.1 to 2 pixels with
    probability 1/2, left-right flip with probability 1/2, standardisation. Hue, saturation and random grey do nothing
    on grey images and are left out. The milder changes of :func:`radiograph_views` are ``jitter=0.4, gamma_prob=0.8,
    rotation_deg=10``. In 3D, and in 2D for slices when a modality is given, the policy is that of :func:`volume_views`.

    Shares are of the image's area, in 3D of its volume. A view is never cut from beyond the image: where the image is
    smaller than the view, its part is magnified. Small views of small images then show nothing that the large ones do
    not: choose sizes and shares so that a part has about the view's own size in pixels, at least.

    Args:
        size: side(s) of the large views; None: 224 pixels in 2D, 96 voxels in 3D.
        small_size: side(s) of the small views; None: 96 pixels in 2D, 48 voxels in 3D.
        num_small: number of small views, may be 0; None: 6 in 2D, 4 in 3D.
        spatial_dims: 2 or 3.
        large_scale: least and greatest share of the image in a large view, within (0, 1].
        small_scale: the same of a small view.
        modality: "CT" or "MR": of :func:`volume_views`; None in 2D: SwAV's policy.
        options: further arguments of :func:`radiograph_views` (2D without a modality) or :func:`volume_views`: for both
            kinds of views.

    Raises:
        ValueError: a number is out of its range, the small views are not smaller than the large ones, or an option is
            unknown.

    Example:
        >>> import torch
        >>> views = multi_crop_views(32, 16, num_small=3)
        >>> [tuple(view.shape) for view in views(torch.rand(4, 1, 50, 60))]
        [(4, 1, 32, 32), (4, 1, 32, 32), (4, 1, 16, 16), (4, 1, 16, 16), (4, 1, 16, 16)]
    """
    if spatial_dims not in _SIZES:
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
    given = (size, small_size, num_small)
    size, small_size, num_small = (
        default if value is None else value for value, default in zip(given, _SIZES[spatial_dims], strict=True)
    )
    large, small = _sides(size, spatial_dims), _sides(small_size, spatial_dims)
    if any(a > b for a, b in zip(small, large, strict=True)) or small == large:
        raise ValueError(f"small_size must be smaller than size, got {small_size} and {size}")
    if num_small < 0:
        raise ValueError(f"num_small must not be negative, got {num_small}")
    check_range("large_scale", large_scale, 1e-6, 1.0)
    check_range("small_scale", small_scale, 1e-6, 1.0)
    if spatial_dims == 2 and modality is None:
        policy, options = radiograph_views, _PHOTOGRAPHS | options
    else:
        policy, options = volume_views, {"modality": modality} | options
    chains = []
    for sides, scale, count in ((large, large_scale, NUM_LARGE), (small, small_scale, num_small)):
        least, greatest = scale
        try:
            views = policy(sides, spatial_dims=spatial_dims, min_scale=least, max_scale=greatest, **options)
        except TypeError as error:
            raise ValueError(f"multi_crop_views passes its further options to {policy.__name__}: {error}") from error
        chains += views.chains[:1] * count
    return MultiView(chains)
