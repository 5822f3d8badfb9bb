# SPDX-License-Identifier: Apache-2.0
"""Transforms in a row, and several such rows on one batch: the views of self-supervised learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from monai_ssl.transforms.base import BatchTransform, Params, check_batch, without_autocast
from monai_ssl.transforms.pyramid import AveragePyramid


class ViewChain(BatchTransform):
    """Transforms applied one after the other, with one parameter set for all of them.

    The parameter ``name`` of transform ``i`` is called ``"i.name"``. With ``interpolation="nearest"`` only the spatial
    transforms act, so a label map follows its image.

    Args:
        transforms: what to apply, in this order.

    Example:
        >>> chain = ViewChain([RandomResample(64), RandomGamma()])
        >>> chain(torch.rand(4, 1, 100, 80), torch.Generator().manual_seed(0)).shape
        torch.Size([4, 1, 64, 64])
    """

    overwrites: ClassVar[bool] = False

    def __init__(self, transforms: Sequence[BatchTransform]) -> None:
        self.transforms = tuple(transforms)
        if not self.transforms:
            raise ValueError("ViewChain needs at least one transform")
        for transform in self.transforms:
            if not isinstance(transform, BatchTransform):
                raise TypeError(f"ViewChain takes BatchTransforms, got {type(transform).__name__}")

    @property
    def spatial(self) -> bool:
        """Whether any of the transforms moves pixels."""
        return any(transform.spatial for transform in self.transforms)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the view that the chain makes of a batch of ``shape``."""
        for transform in self.transforms:
            shape = transform.output_shape(shape)
        return tuple(shape)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> Params:
        """Draw the parameters of every transform. The first spatial one takes up the extent."""
        params = {}
        for i, transform in enumerate(self.transforms):
            for name, value in transform.draw(shape, generator, device, extent).items():
                params[f"{i}.{name}"] = value
            shape = transform.output_shape(shape)
            if transform.spatial:
                extent = None
        return params

    @torch.no_grad()
    def positions(self, shape: Sequence[int], params: Params, stride: int | Sequence[int] = 1) -> torch.Tensor:
        """Where in the batch's canvas each pixel of the view was read, or each block of ``stride`` pixels.

        A position counts in pixels from the canvas's outer edge, along its axes in array order: the centre of pixel p
        is at p + 0.5. A resampling that comes first has a formula for it, which is exact (borders and anti-aliasing do
        not touch it) and costs only what is returned. Further spatial transforms move these positions as they move an
        image.

        Args:
            shape: shape of the batch, (B, C, *spatial).
            params: what :meth:`draw` returned for it.
            stride: side(s) of the blocks in pixels of the view; one number for all axes.

        Returns:
            (B, spatial_dims, *view size / stride) float32; NaN where the view shows what is outside the image (a
            resampling that is not the chain's first move repeats positions beyond its edge, as it repeats pixels).

        Raises:
            ValueError: the view's size is not a multiple of ``stride``.

        Example:
            >>> chain = ViewChain([RandomResample((4, 4), scale=(1, 1), ratio=(1, 1))])
            >>> params = chain.draw((1, 1, 8, 8))
            >>> chain.positions((1, 1, 8, 8), params, stride=2)[0, 0, :, 0]
            tensor([2., 6.])
        """
        steps = [i for i, transform in enumerate(self.transforms) if transform.spatial]
        size, grid = self._grid(shape, stride)
        first = steps.pop(0) if steps and hasattr(self.transforms[steps[0]], "positions") else None
        if first is not None:
            cells = size if steps else grid
            places = self.transforms[first].positions(shape, _own(params, first), cells)
        else:  # an image of its own positions
            device = next(iter(params.values())).device if params else None
            axes = [torch.arange(n, device=device, dtype=torch.float32) + 0.5 for n in shape[2:]]
            places = torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(shape[0], *[-1] * len(shape[1:]))
        for i in steps:
            places = self.transforms[i]._apply(places, _own(params, i))
        if tuple(places.shape[2:]) != grid:  # the mean of a block's positions is that of its centre
            pool = torch.nn.functional.avg_pool2d if len(grid) == 2 else torch.nn.functional.avg_pool3d
            places = pool(places, tuple(n // m for n, m in zip(size, grid, strict=True)))
        return places

    def _grid(self, shape: Sequence[int], stride: int | Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The view's size, and how many blocks of ``stride`` pixels it has."""
        size = self.output_shape(shape)[2:]
        strides = (stride,) * len(size) if isinstance(stride, int) else tuple(stride)
        if len(strides) != len(size) or min(strides) < 1 or any(n % s for n, s in zip(size, strides, strict=True)):
            raise ValueError(
                f"the view's size {size} must be a multiple of {strides}, the pixels that share a position"
            )
        return size, tuple(n // s for n, s in zip(size, strides, strict=True))

    def _apply(
        self,
        x: torch.Tensor,
        params: Params,
        interpolation: str = "bilinear",
        pyramid: AveragePyramid | None = None,
    ) -> torch.Tensor:
        own = False  # whether x is this chain's to overwrite
        for i, transform in enumerate(self.transforms):
            if interpolation == "nearest" and not transform.spatial:
                continue
            mine = _own(params, i)
            if transform.spatial:
                x = transform._apply(x, mine, interpolation, pyramid)
            else:
                x = transform._apply(x.clone() if transform.overwrites and not own else x, mine)
            own, pyramid = True, None
        return x


def _own(params: Params, i: int) -> Params:
    """Parameters of transform ``i`` of a chain."""
    return {name[len(f"{i}.") :]: value for name, value in params.items() if name.startswith(f"{i}.")}


class MultiView:
    """Several views of each image of a batch, each by its own chain and its own draw.

    The pyramid that anti-aliased shrinking needs is computed once for all views.

    Args:
        chains: one chain for each view.

    Example:
        >>> multi = MultiView([ViewChain([RandomResample(32)])] * 2)
        >>> [tuple(view.shape) for view in multi(torch.rand(4, 1, 50, 60))]
        [(4, 1, 32, 32), (4, 1, 32, 32)]
    """

    def __init__(self, chains: Sequence[ViewChain]) -> None:
        self.chains = tuple(chains)
        if not self.chains:
            raise ValueError("MultiView needs at least one chain")

    def __len__(self) -> int:
        return len(self.chains)

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        extent: torch.Tensor | None = None,
    ) -> list[Params]:
        """Draw one parameter set for each view; see :meth:`BatchTransform.draw`."""
        return [chain.draw(shape, generator, device, extent) for chain in self.chains]

    @torch.no_grad()
    def apply(self, x: torch.Tensor, params: Sequence[Params], interpolation: str = "bilinear") -> list[torch.Tensor]:
        """Make the views that ``params`` describe; see :meth:`BatchTransform.apply`."""
        x = check_batch(x, interpolation)
        pyramid = AveragePyramid(x)
        with without_autocast(x.device):
            return [
                chain._apply(x, own, interpolation, pyramid) for chain, own in zip(self.chains, params, strict=True)
            ]

    def positions(
        self, shape: Sequence[int], params: Sequence[Params], stride: int | Sequence[int] = 1
    ) -> list[torch.Tensor]:
        """Where each view was read: a (B, spatial_dims, *view size / stride) each; see :meth:`ViewChain.positions`."""
        return [chain.positions(shape, own, stride) for chain, own in zip(self.chains, params, strict=True)]

    def __call__(
        self, image: torch.Tensor, generator: torch.Generator | None = None, extent: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Draw and make the views: (B, C, *spatial) to a list of (B, C, *size)."""
        return self.apply(image, self.draw(image.shape, generator, image.device, extent))

    def __repr__(self) -> str:
        return f"MultiView(chains={self.chains!r})"
