# SPDX-License-Identifier: Apache-2.0
"""What methods ask of their views and of their encoder, said plainly when it is not met."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_ssl.networks import EncoderDecoder, ImageEncoder

from .base import SSLMethod

__all__ = [
    "check_decoder",
    "check_momentum",
    "check_size",
    "check_view",
    "check_views",
    "multi_crop",
    "one_view",
    "view_pair",
]


def one_view(method: SSLMethod, views: list[Tensor]) -> Tensor:
    """Return the only view.

    Raises:
        ValueError: there are several, or it does not fit the encoder, see :func:`check_view`.
    """
    if len(views) != 1:
        raise ValueError(f"{type(method).__name__} takes one view of each image, got {len(views)}")
    check_view(method, views[0])
    return views[0]


def multi_crop(method: SSLMethod, views: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the two large views as one batch (2 B, C, *spatial), the first view's images first, and the small ones.

    Raises:
        ValueError: the first two views differ in shape; or see :func:`check_views`.
    """
    first, second, *small = check_views(method, views, most=None)
    if first.shape != second.shape:
        raise ValueError(
            f"{type(method).__name__} takes two large views of one size, and any number of small ones after them; the "
            f"first two are of {tuple(first.shape[2:])} and {tuple(second.shape[2:])}"
        )
    return torch.cat((first, second)), small


def check_view(method: SSLMethod, view: Tensor) -> None:
    """Check the dimensions and channels of a view (B, C, *spatial).

    Raises:
        ValueError: they are not those that the method's encoder takes.
    """
    dims, channels = method.encoder.spatial_dims, method.encoder.in_channels
    if view.ndim != dims + 2 or view.shape[1] != channels:
        name, axes = type(method).__name__, "H, W" if dims == 2 else "D, H, W"
        raise ValueError(f"{name} on a {dims}D encoder takes views (B, {channels}, {axes}), got {tuple(view.shape)}")


def check_views(method: SSLMethod, views: list[Tensor], least: int = 2, most: int | None = 2) -> list[Tensor]:
    """Return several views of each image.

    Args:
        method: that asks.
        views: the batch's.
        least: number of views it needs.
        most: number it can take; None: any.

    Raises:
        ValueError: there are fewer or more, they hold different numbers of images, or one does not fit the encoder.
    """
    if len(views) < least or (most is not None and len(views) > most):
        wanted = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
        raise ValueError(f"{type(method).__name__} takes {wanted} views of each image, got {len(views)}")
    if len({len(view) for view in views}) > 1:
        raise ValueError(f"all views must be of the same images, got {[len(view) for view in views]} of them")
    for view in views:
        check_view(method, view)
    return views


def view_pair(method: SSLMethod, views: list[Tensor]) -> Tensor:
    """Return the two views of each image as one batch (2B, C, *spatial), first views first.

    Raises:
        ValueError: there are not two, they differ in shape, or do not fit the encoder.
    """
    first, second = check_views(method, views)
    if first.shape != second.shape:
        raise ValueError(
            f"{type(method).__name__} takes two views of one size, got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    return torch.cat([first, second])


def check_momentum(**momenta: float | None) -> None:
    """Check a teacher's momenta, given by the names of their arguments; None is one that is not used.

    Raises:
        ValueError: one is outside [0, 1].
    """
    for name, value in momenta.items():
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")


def check_size(view: Tensor, divisor: tuple[int, ...]) -> None:
    """Check that a view (B, C, *spatial) is a multiple of what the network shrinks it by.

    Raises:
        ValueError: it is not.
    """
    if any(size % step for size, step in zip(view.shape[2:], divisor, strict=True)):
        raise ValueError(f"the view's size {tuple(view.shape[2:])} must be a multiple of the network's {divisor}")


def check_decoder(encoder: ImageEncoder, name: str) -> None:
    """Check that an encoder has a decoder that gives images of as many channels as it takes.

    Args:
        encoder: to check.
        name: of the method that needs it.

    Raises:
        ValueError: it has none, or one to another number of channels.
    """
    if not isinstance(encoder, EncoderDecoder):
        raise ValueError(
            f"{name} needs a network with a decoder (segresnet, dynunet, swinunetr, ...), not {encoder.architecture!r}"
        )
    if encoder.out_channels != encoder.in_channels:
        raise ValueError(
            f"the decoder must rebuild the image's {encoder.in_channels} channel(s), it has {encoder.out_channels}: "
            f"build_encoder({encoder.architecture!r}, ..., out_channels={encoder.in_channels})"
        )
