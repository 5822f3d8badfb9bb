# SPDX-License-Identifier: Apache-2.0
"""Views by the source of each image: in one run radiographs, CT, MR and ultrasound each get their own policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch

from monai_ssl.transforms.base import Params, check_range
from monai_ssl.transforms.presets import _sides, radiograph_views
from monai_ssl.transforms.ultrasound import ultrasound_views
from monai_ssl.transforms.views import MultiView
from monai_ssl.transforms.volume_presets import volume_views

__all__ = ["SourceParams", "SourceViews", "modality_views"]


class SourceParams(NamedTuple):
    """What was drawn for the images of one source in a batch.

    Attributes:
        source: number of the source.
        rows: their rows in the batch, (B',) int64 on the images' device; None: all.
        params: what its policy drew for them.
    """

    source: int
    rows: torch.Tensor | None
    params: list[Params]


class SourceViews:
    """One policy of views for each source; each image of a batch gets that of its ``batch["source"]``.

    A batch from one source is handed to its policy as it is. In a mixed one the images of each source are taken out,
    changed together, and put back in their order. All policies make the same number of views of the same sizes.

    The trainer passes ``source`` to views with a true ``wants_source``.

    Args:
        views: from the source's number, or its name, to its policy.
        names: names of the sources in the order of their numbers, as ``SourceMixture.names`` has them. None: names are
            numbered in the order of ``views``.

    Raises:
        TypeError: a policy is no :class:`MultiView`.
        ValueError: there is none, one is for a source that does not exist, or they make different numbers of views.

    Example:
        >>> from monai_ssl.transforms import radiograph_views, volume_views
        >>> views = SourceViews({"chest": radiograph_views(32), "mr": volume_views(32, "MR", spatial_dims=2)})
        >>> [tuple(view.shape) for view in views(torch.rand(4, 1, 50, 60), source=torch.tensor([0, 1, 1, 0]))]
        [(4, 1, 32, 32), (4, 1, 32, 32)]
    """

    wants_source: ClassVar[bool] = True

    def __init__(self, views: Mapping[int | str, MultiView], names: Sequence[str] | None = None) -> None:
        if not views:
            raise ValueError("SourceViews needs a policy of views for at least one source")
        order = [key for key in views if isinstance(key, str)] if names is None else list(names)
        unknown = [key for key in views if isinstance(key, str) and key not in order]
        if unknown:
            raise ValueError(f"views are given for the sources {unknown}, but the sources are {order}")
        self.views: dict[int, MultiView] = {}
        for key, policy in views.items():
            if not isinstance(policy, MultiView):
                raise TypeError(f"the views of the source {key!r} must be a MultiView, got {type(policy).__name__}")
            self.views[order.index(key) if isinstance(key, str) else int(key)] = policy
        if len(self.views) < len(views):
            raise ValueError(f"two policies of views are for one source: {list(views)} of {order}")
        self.names = {number: order[number] if number < len(order) else str(number) for number in self.views}
        if len({len(policy) for policy in self.views.values()}) > 1:
            counts = {self.names[number]: len(policy) for number, policy in self.views.items()}
            raise ValueError(f"the sources must get the same number of views, got {counts}")
        self._checked: set[int] = set()

    def __len__(self) -> int:
        """Number of views."""
        return len(next(iter(self.views.values())))

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
        source: torch.Tensor | Sequence[int] | None = None,
    ) -> list[SourceParams]:
        """Draw for the images of each source, in the order of the sources' numbers.

        Args:
            shape: shape of the batch, (B, C, *spatial).
            generator: see :meth:`monai_ssl.transforms.BatchTransform.draw`, as ``device`` and ``extent``.
            device: likewise.
            extent: likewise.
            source: number of the source of each image, (B,) integers. On the CPU: what is done depends on the values.

        Raises:
            ValueError: ``source`` is missing or of another length, a source has no views, or the policies make views of
                different sizes.
        """
        if source is None or len(source) != shape[0]:
            raise ValueError(
                f"views by source need the number of the source of each of {shape[0]} images, got "
                f"{'none' if source is None else len(source)}: the dataset must give 'source', as SourceMixture does"
            )
        self._check_sizes(shape)
        numbers = torch.as_tensor(source, dtype=torch.int64).cpu()
        drawn = []
        for number in numbers.unique().tolist():
            policy = self.views.get(number)
            if policy is None:
                raise ValueError(f"there are no views for the source {number}, only for {self.names}")
            rows = (numbers == number).nonzero().squeeze(1)
            if len(rows) == len(numbers):
                return [SourceParams(number, None, policy.draw(shape, generator, device, extent))]
            own = None if extent is None else extent.index_select(0, rows.to(extent.device))
            params = policy.draw((len(rows), *shape[1:]), generator, device, own)
            drawn.append(SourceParams(number, rows.to(_device_of(params, device)), params))
        return drawn

    @torch.no_grad()
    def apply(
        self, x: torch.Tensor, params: Sequence[SourceParams], interpolation: str = "bilinear"
    ) -> list[torch.Tensor]:
        """Make the views that ``params`` describe; see :meth:`monai_ssl.transforms.BatchTransform.apply`."""
        if params[0].rows is None:
            return self.views[params[0].source].apply(x, params[0].params, interpolation)
        parts = [
            self.views[own.source].apply(x.index_select(0, own.rows.to(x.device)), own.params, interpolation)
            for own in params
        ]
        return _put_back(parts, params)

    def positions(
        self, shape: Sequence[int], params: Sequence[SourceParams], stride: int | Sequence[int] = 1
    ) -> list[torch.Tensor]:
        """Where each view was read, see :meth:`monai_ssl.transforms.MultiView.positions`."""
        if params[0].rows is None:
            return self.views[params[0].source].positions(shape, params[0].params, stride)
        parts = [self.views[own.source].positions((len(own.rows), *shape[1:]), own.params, stride) for own in params]
        return _put_back(parts, params)

    def __call__(
        self,
        image: torch.Tensor,
        generator: torch.Generator | None = None,
        extent: torch.Tensor | None = None,
        source: torch.Tensor | Sequence[int] | None = None,
    ) -> list[torch.Tensor]:
        """Draw and make the views: (B, C, *spatial) to a list of (B, C, *size)."""
        return self.apply(image, self.draw(image.shape, generator, image.device, extent, source))

    def __repr__(self) -> str:
        return f"SourceViews({ {self.names[number]: policy for number, policy in self.views.items()}!r})"

    def _check_sizes(self, shape: Sequence[int]) -> None:
        """Compare the sizes of the views that the policies make of such images, once for 2D and 3D."""
        if len(shape) in self._checked:
            return
        sizes = {
            self.names[number]: [tuple(chain.output_shape(shape)[2:]) for chain in policy.chains]
            for number, policy in self.views.items()
        }
        first = next(iter(sizes.values()))
        if any(size != first for size in sizes.values()):
            raise ValueError(f"the views of all sources must have the same sizes, got {sizes}")
        self._checked.add(len(shape))


def _put_back(parts: list[list[torch.Tensor]], params: Sequence[SourceParams]) -> list[torch.Tensor]:
    """Bring each view of each source's images back to the order of the batch."""
    back = torch.cat([own.rows for own in params]).argsort()
    return [torch.cat(view).index_select(0, back.to(view[0].device)) for view in zip(*parts, strict=True)]


def _device_of(params: list[Params], device: torch.device | str | None) -> torch.device | str:
    """Where the parameters live."""
    return next((value.device for own in params for value in own.values()), device or "cpu")


def modality_views(
    modality: str | None,
    size: int | tuple[int, ...],
    spatial_dims: int = 2,
    *,
    volumes: bool = False,
    limits_hu: tuple[float, float] | None = None,
    small_size: int | tuple[int, ...] | None = None,
    num_small: int = 4,
    small_scale: tuple[float, float] = (0.05, 0.14),
    **options: Any,
) -> MultiView:
    """The ready policy of views for images of a modality, with small views after the large ones if asked for.

    CT and MR get :func:`volume_views` in 2D (slices) and 3D alike, ultrasound (US) gets :func:`ultrasound_views`, all
    others, and unknown ones, :func:`radiograph_views`; of volumes :func:`volume_views` for any modality.

    Args:
        modality: a term of DICOM's Modality, or None.
        size: side(s) of the views in pixels.
        spatial_dims: 2 or 3.
        volumes: whether they are volumes or slices of them.
        limits_hu: of CT: what 0 and 1 stand for; None: no other window is drawn.
        small_size: side(s) of small views, smaller than ``size`` (multi-crop, see :func:`multi_crop_views`); None:
            there are none.
        num_small: number of small views.
        small_scale: least and greatest share of the image in a small view. That of the large ones are the policy's
            ``min_scale`` and ``max_scale``.
        options: further arguments of that policy.

    Raises:
        TypeError: the policy has no such option.
        ValueError: an argument is wrong, or small views are not smaller than the large ones.

    Example:
        >>> [type(step).__name__ for step in modality_views("MR", 32).chains[0].transforms][:2]
        ['RandomResample', 'RandomBiasField']
    """
    if modality in ("CT", "MR") or volumes:
        own = modality if modality in ("CT", "MR") else None
        policy = partial(volume_views, modality=own, limits_hu=limits_hu if own == "CT" else None)
    else:
        policy = ultrasound_views if modality == "US" else radiograph_views
    views = policy(size, spatial_dims=spatial_dims, **options)
    if small_size is None or num_small == 0:
        return views
    large, small = _sides(size, spatial_dims), _sides(small_size, spatial_dims)
    if any(a > b for a, b in zip(small, large, strict=True)) or small == large:
        raise ValueError(f"small_size must be smaller than the views' size, got {small_size} and {size}")
    if num_small < 0:
        raise ValueError(f"num_small must not be negative, got {num_small}")
    least, greatest = check_range("small_scale", small_scale, 1e-6, 1.0)
    of_parts = options | {"min_scale": least, "max_scale": greatest, "num_views": num_small}
    return MultiView([*views.chains, *policy(small, spatial_dims=spatial_dims, **of_parts).chains])
