# SPDX-License-Identifier: Apache-2.0
"""Change single tensors so that they fit another network and still compute the same thing, or the nearest to it."""

from __future__ import annotations

import torch

__all__ = ["CHANNEL_POLICIES", "adapt_channels", "equal_sided_grid"]

CHANNEL_POLICIES = ("sum", "mean", "first", "repeat")


def adapt_channels(weight: torch.Tensor, in_channels: int, policy: str) -> torch.Tensor:
    r"""Give a first convolution another number of input channels.

    For a weight with C input channels :math:`w_c` and N channels wanted:

    ====== ======================================== ================================================================
    policy new :math:`w'_n`                         same response as before when
    ====== ======================================== ================================================================
    sum    :math:`\sum_c w_c / N`                   the old channels were equal (grey as RGB), and the new ones are
    mean   :math:`\sum_c w_c / C`                   never, unless N = C; with equal channels it is N / C times as large
    first  :math:`w_n`, N at most C                 the old channels that are dropped were zero
    repeat :math:`w_{n \bmod C} \cdot C / N`        N is a multiple of C and the new channels repeat the old ones
    ====== ======================================== ================================================================

    ``sum`` is the usual choice for ImageNet weights on radiographs (3 -> 1), and for weights of one channel on several
    sequences (1 -> N, where ``repeat`` gives the same).

    Args:
        weight: (out, C, \*kernel).
        in_channels: N.
        policy: one of :data:`CHANNEL_POLICIES`.

    Returns:
        (out, N, \*kernel), a new tensor.

    Raises:
        ValueError: an unknown policy, or ``first`` with N > C.

    Example:
        >>> adapt_channels(torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1), 1, "sum").item()
        6.0
    """
    channels = weight.shape[1]
    if policy == "sum":
        new = weight.sum(1, keepdim=True).div(in_channels).expand(-1, in_channels, *weight.shape[2:])
    elif policy == "mean":
        new = weight.mean(1, keepdim=True).expand(-1, in_channels, *weight.shape[2:])
    elif policy == "first":
        if in_channels > channels:
            raise ValueError(f"channel policy 'first' can't make {in_channels} channels of {channels}")
        new = weight[:, :in_channels]
    elif policy == "repeat":
        new = weight[:, torch.arange(in_channels) % channels] * (channels / in_channels)
    else:
        raise ValueError(f"channel policy must be one of {', '.join(CHANNEL_POLICIES)}, got {policy!r}")
    return new.clone(memory_format=torch.contiguous_format)


def equal_sided_grid(tokens: int, spatial_dims: int) -> tuple[int, ...] | None:
    """Return the square or cube of patches that ``tokens`` make, or None."""
    side = round(tokens ** (1 / spatial_dims))
    return (side,) * spatial_dims if side**spatial_dims == tokens else None
